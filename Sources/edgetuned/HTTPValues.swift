// JSON bodies in and out, and problems for everything that goes wrong: the one place where an error becomes a response.
import EdgeWire
import Foundation
import HTTPTypes
import HummingbirdCore
import NIOCore
import Synchronization

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

/// What bodies hold while they come in, of all requests and of each user's: many that come slowly would else be all memory.
final class BodyMemory: Sendable {
    private static let (all, perUser) = (32 << 20, 8 << 20)
    private let held = Mutex<[UInt32: Int]>([:])

    func take(_ bytes: Int, for uid: UInt32) throws(Problem) {
        let isTaken = held.withLock { held in
            let own = held[uid] ?? 0
            guard own + bytes <= Self.perUser, held.values.reduce(bytes, +) <= Self.all else { return false }
            held[uid] = own + bytes
            return true
        }
        guard isTaken else {
            throw Problem(
                .queueFull, "bodies of requests on their way in hold all that they may: \(Self.perUser >> 20) MiB of a user's, "
                    + "\(Self.all >> 20) MiB in all", hint: "try again in a moment")
        }
    }

    func giveBack(_ bytes: Int, of uid: UInt32) {
        held.withLock { held in
            let left = (held[uid] ?? 0) - bytes
            held[uid] = left > 0 ? left : nil
        }
    }
}

/// The body of a request as a value, strictly: a limit on its size, no unknown keys.
func decodedBody<Value: Decodable>(_ type: Value.Type, of call: Call, keys: BodyKeys) async throws -> Value {
    let body = try await collectedBody(call)
    defer { call.bodies.giveBack(body.count, of: call.caller.uid) }
    return try keys.decode(type, body)
}

/// Its bytes are taken from the memory of bodies.
private func collectedBody(_ call: Call) async throws -> Data {
    var data = Data()
    do {
        for try await buffer in call.request.body {
            guard data.count + buffer.readableBytes <= WireLimit.bodyBytes else {
                throw Problem(.tooLarge, "the body is over \(WireLimit.bodyBytes) bytes")
            }
            try call.bodies.take(buffer.readableBytes, for: call.caller.uid)
            data.append(contentsOf: buffer.readableBytesView)
        }
    } catch {
        call.bodies.giveBack(data.count, of: call.caller.uid)
        // Others than ours are the client's who left, or was closed.
        throw error as? Problem ?? Problem(.badRequest, "the body ended after \(data.count) bytes, before it was whole")
    }
    return data
}
