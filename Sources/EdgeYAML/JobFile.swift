// The job file: a JobRequest in YAML, with the two spellings of axolotl that mean exactly the same as ours.
// Ranges are JobRequest.validate's, so that flags, files and the wire have one home for them.
import EdgeWire
import Foundation

package enum JobFile {
    package static let knownKeys = JobRequest.CodingKeys.allCases.map { Wire.snakeCase($0.rawValue) }

    /// axolotl's name -> ours. The values are the same in both.
    private static let synonyms = ["peft_layers_to_transform": "layers_to_transform"]
    /// axolotl's `lora_target_linear: true` is PEFT's `all-linear`.
    private static let allLinear = "lora_target_linear"

    package static func read(text: String, fileName: String) throws -> JobRequest {
        let tree = try YAMLTree(text: text, fileName: fileName)
        return try StrictYAML.decode(
            JobRequest.self, try translated(tree, fileName: fileName), knownKeys: knownKeys, fileName: fileName)
    }

    private static func translated(_ tree: YAMLTree, fileName: String) throws -> YAMLTree {
        guard case .mapping(let entries) = tree.value else { return tree }
        var result: [YAMLTree.Entry] = []
        for entry in entries {
            var entry = entry
            if let ours = synonyms[entry.key] {
                entry = YAMLTree.Entry(key: ours, line: entry.line, value: entry.value)
            } else if entry.key == allLinear {
                let reading = YAMLReading(fileName: fileName)
                let isOn = try YAMLDecoder(tree: entry.value, name: allLinear, reading: reading).truth()
                guard isOn else { continue }
                entry = YAMLTree.Entry(
                    key: "lora_target_modules", line: entry.line,
                    value: YAMLTree(line: entry.line, value: .scalar("all-linear", quoted: true)))
            }
            if let first = result.first(where: { $0.key == entry.key }) {
                throw YAMLProblem(
                    fileName: fileName, line: entry.line,
                    message: "\"\(entry.key)\" is given twice; the first is in line \(first.line)")
            }
            result.append(entry)
        }
        return YAMLTree(line: tree.line, value: .mapping(result))
    }
}
