// Bodies of requests, strictly: which keys each may have, and a sentence for what is wrong with one.
import Foundation

/// Which keys a body may have, at its top and in the objects of some of its lists.
package struct BodyKeys: Sendable {
    private let top: [String]
    private var lists: [String: [String]] = [:]

    package static let job = BodyKeys(
        top: JobRequest.CodingKeys.allCases.map { Wire.snakeCase($0.rawValue) }, lists: ["datasets": ["path"]])
    package static let methods = BodyKeys(top: MethodsRequest.CodingKeys.allCases.map { Wire.snakeCase($0.rawValue) })
    package static let importing = BodyKeys(top: ["name", "blob"])
    package static let importingAdapter = BodyKeys(top: ["name", "base_model", "tensors", "config"])
    package static let model = BodyKeys(top: ["name", "blob", "files", "source"], lists: ["files": ["name", "blob"]])
    package static let combination = BodyKeys(
        top: ["name", "adapters", "combination", "density", "rank", "seed"], lists: ["adapters": ["adapter", "weight"]])
    package static let composition = BodyKeys(top: ["name", "adapters", "dataset", "steps", "seed"])
    package static let merge = BodyKeys(top: ["format", "task", "measure"])
    package static let generate = BodyKeys(
        top: ["model", "adapter", "task", "messages", "max_tokens", "temperature", "seed"],
        lists: ["messages": ["role", "content"]])

    /// The value of a body that has no other keys.
    ///
    /// - Throws: `Problem`.
    package func decode<Value: Decodable>(_ type: Value.Type, _ body: Data) throws -> Value {
        do {
            try check(body)
            return try Wire.decoder().decode(type, from: body)
        } catch let error as DecodingError {
            throw Problem(.badRequest, error.sentence)
        }
    }

    private func check(_ body: Data) throws {
        let found = try JSONDecoder().decode(Object.self, from: body)
        try Self.require(found.keys, among: top, in: "")
        for (list, known) in lists {
            for object in found.lists[list] ?? [] { try Self.require(object.keys, among: known, in: "\(list): ") }
        }
    }

    private static func require(_ keys: [String], among known: [String], in place: String) throws {
        for key in keys where !known.contains(key) {
            throw Problem(
                .unknownKey, "\(place)unknown key \"\(key.prefix(64))\"",
                hint: Wire.nearest(to: key, among: known).map { "did you mean \"\($0)\"?" })
        }
    }

    /// The keys of a JSON object and of the objects in its lists; values are not looked at.
    private struct Object: Decodable {
        struct Key: CodingKey {
            let stringValue: String
            var intValue: Int? { nil }
            init(stringValue: String) { self.stringValue = stringValue }
            init?(intValue: Int) { nil }
        }
        struct Inner: Decodable {
            let keys: [String]
            init(from decoder: any Decoder) throws {
                keys = try decoder.container(keyedBy: Key.self).allKeys.map(\.stringValue).sorted()
            }
        }
        let keys: [String]
        let lists: [String: [Inner]]

        init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: Key.self)
            keys = values.allKeys.map(\.stringValue).sorted()
            lists = Dictionary(
                uniqueKeysWithValues: values.allKeys.compactMap { key in
                    (try? values.decode([Inner].self, forKey: key)).map { (key.stringValue, $0) }
                })
        }
    }
}

extension DecodingError {
    /// One sentence with the key in it.
    fileprivate var sentence: String {
        func path(_ context: Context) -> String {
            context.codingPath.map { $0.intValue.map { "[\($0)]" } ?? Wire.snakeCase($0.stringValue) }.joined(separator: ".")
        }
        switch self {
        case .keyNotFound(let key, _): return "\"\(Wire.snakeCase(key.stringValue))\" is missing"
        case .typeMismatch(let type, let context): return "\"\(path(context))\" has the wrong type: \(type) is wanted"
        case .valueNotFound(_, let context): return "\"\(path(context))\" may not be null"
        case .dataCorrupted(let context):
            return context.codingPath.isEmpty ? "the body is not JSON" : "\"\(path(context))\": \(context.debugDescription)"
        @unknown default: return "the body cannot be read"
        }
    }
}
