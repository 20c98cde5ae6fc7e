// JSON bodies in and out, and problems for everything that goes wrong: the one place where an error becomes a response.
import EdgeWire
import Foundation
import HTTPTypes
import HummingbirdCore
import NIOCore

extension Response {
    init(json value: some Encodable, status: HTTPResponse.Status = .ok, headers: HTTPFields = [:]) throws {
        var headers = headers
        headers[.contentType] = "application/json"
        self.init(
            status: status, headers: headers, body: ResponseBody(byteBuffer: ByteBuffer(bytes: try Wire.encoder().encode(value))))
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
    try keys.decode(type, try await collectedBody(request))
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
