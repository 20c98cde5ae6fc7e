// JSON bodies in and out, and problems for everything that goes wrong: the one place where an error becomes a response.
import EdgeWire
import Foundation
import HTTPTypes
import HummingbirdCore
import NIOCore

extension Response {
    init(json value: some Encodable, status: HTTPResponse.Status = .ok, headers: HTTPFields = [:]) throws {
        self.init(jsonText: try Wire.encoder().encode(value), status: status, headers: headers)
    }

    init(jsonText: Data, status: HTTPResponse.Status = .ok, headers: HTTPFields = [:]) {
        var headers = headers
        headers[.contentType] = "application/json"
        self.init(status: status, headers: headers, body: ResponseBody(byteBuffer: ByteBuffer(bytes: jsonText)))
    }

    init(_ problem: Problem, headers: HTTPFields = [:]) {
        var headers = headers
        headers[.contentType] = Header.problemType
        // A refused body is not read to its end.
        headers[.connection] = "close"
        let body = (try? Wire.encoder().encode(problem)) ?? Data("{}".utf8)
        self.init(
            status: .init(code: problem.status), headers: headers, body: ResponseBody(byteBuffer: ByteBuffer(bytes: body)))
    }
}

extension Problem {
    /// Any error as a problem. Those that are not typed are ours, and their text is for the log.
    init(apiError error: any Error) {
        switch error {
        case let problem as Problem: self = problem
        case let error as InvalidRequest: self.init(.invalidValue, error.description)
        default: self.init(.internalError, "edgetuned failed; its log has the reason")
        }
    }
}

/// The body of a request as a value, strictly: a limit on its size, no unknown keys.
func decodedBody<Value: Decodable>(_ type: Value.Type, of request: Request, keys: BodyKeys) async throws -> Value {
    let body = try await collectedBody(request)
    do {
        try keys.check(body)
        return try Wire.decoder().decode(type, from: body)
    } catch let error as DecodingError {
        throw Problem(.badRequest, error.sentence)
    }
}

private func collectedBody(_ request: Request) async throws -> Data {
    var data = Data()
    for try await buffer in request.body {
        guard data.count + buffer.readableBytes <= WireLimit.bodyBytes else {
            throw Problem(.tooLarge, "the body is over \(WireLimit.bodyBytes) bytes")
        }
        data.append(contentsOf: buffer.readableBytesView)
    }
    return data
}

/// Which keys a body may have, at its top and in the objects of some of its lists.
struct BodyKeys: Sendable {
    let top: [String]
    var lists: [String: [String]] = [:]

    static let job = BodyKeys(
        top: JobRequest.CodingKeys.allCases.map { Wire.snakeCase($0.rawValue) }, lists: ["datasets": ["path"]])
    static let importing = BodyKeys(top: ["name", "blob"])
    static let importingAdapter = BodyKeys(top: ["name", "base_model", "tensors", "config"])
    static let model = BodyKeys(top: ["name", "blob", "files", "source"], lists: ["files": ["name", "blob"]])
    static let generate = BodyKeys(
        top: ["model", "adapter", "messages", "max_tokens", "temperature", "seed"],
        lists: ["messages": ["role", "content"]])

    func check(_ body: Data) throws {
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
    var sentence: String {
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
