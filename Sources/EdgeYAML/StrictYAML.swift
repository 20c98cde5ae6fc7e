// Strict YAML for anything that is Decodable: no unknown key, no key twice, no value of the wrong type, each named
// with its line. The job file and the daemon's configuration both come through here.
import EdgeWire
import Foundation

package enum StrictYAML {
    /// Reads one YAML document as `type`. Keys are the type's CodingKeys in snake case.
    ///
    /// - Parameter knownKeys: every key that the top level may have, in snake case. Nested mappings are held to the keys
    ///   that their own type asks for.
    package static func decode<Value: Decodable>(
        _ type: Value.Type, _ text: String, knownKeys: [String], fileName: String = "configuration"
    ) throws -> Value {
        try decode(type, YAMLTree(text: text, fileName: fileName), knownKeys: knownKeys, fileName: fileName)
    }

    static func decode<Value: Decodable>(
        _ type: Value.Type, _ tree: YAMLTree, knownKeys: [String], fileName: String
    ) throws -> Value {
        let reading = YAMLReading(fileName: fileName)
        if case .mapping(let entries) = tree.value {
            for entry in entries where !knownKeys.contains(entry.key) {
                throw reading.problem(entry.line, unknownKey(entry.key, known: knownKeys))
            }
        } else if !tree.isNull {
            throw reading.problem(tree.line, "keys and values are wanted here, found \(tree.found)")
        }
        let value = try Value(from: YAMLDecoder(tree: tree, name: "", reading: reading))
        if let problem = reading.unknownKey() { throw problem }
        return value
    }

    static func unknownKey(_ key: String, known: [String]) -> String {
        let shown = key.prefix(64)
        guard let nearest = Wire.nearest(to: key, among: known) else { return "unknown key \"\(shown)\"" }
        return "unknown key \"\(shown)\"; did you mean \"\(nearest)\"?"
    }
}
