// A daemon of a few lines: each connection is one request, answered by a closure. Blocking sockets on a thread.
import EdgeWire
import Foundation
import Glibc
import Synchronization

struct Request: Sendable {
    var method: String
    var path: String
    var headers: [String: String]
    var body: [UInt8]
    var text: String { String(decoding: body, as: UTF8.self) }
    var route: String { "\(method) \(path)" }
}

enum Reply: Sendable {
    case json(Int, String)
    case bytes([UInt8])
    case versioned(String)
    /// Chunks with pauses; `isCut`: the connection ends without the last chunk.
    case chunks([String], isCut: Bool)
    case hang
    case drop

    static func value<Value: Encodable>(_ value: Value) -> Reply {
        .json(200, String(decoding: (try? Wire.encoder().encode(value)) ?? Data(), as: UTF8.self))
    }
    static func problem(_ kind: Problem.Kind, _ detail: String) -> Reply {
        let problem = Problem(kind, detail, hint: "the hint")
        return .json(kind.status, String(decoding: (try? Wire.encoder().encode(problem)) ?? Data(), as: UTF8.self))
    }
}

final class ScriptedDaemon: Sendable {
    let directory: String
    let path: String
    private let descriptor: Int32
    private let seen = Mutex<[Request]>([])
    private let answer: @Sendable (Request) -> Reply

    init(_ answer: @escaping @Sendable (Request) -> Reply) {
        directory = temporaryDirectory()
        path = directory + "/d.sock"
        self.answer = answer
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        let isBound = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
            }
        }
        precondition(isBound && listen(descriptor, 16) == 0, "cannot listen at \(path)")
        chmod(path, 0o600)
        let listener = descriptor
        Thread.detachNewThread { [weak self] in
            while true {
                let connection = accept(listener, nil, nil)
                guard connection >= 0 else { return }
                Thread.detachNewThread { [weak self] in
                    self?.serve(connection)
                    close(connection)
                }
            }
        }
    }

    deinit {
        shutdown(descriptor, Int32(SHUT_RDWR))
        close(descriptor)
        try? FileManager.default.removeItem(atPath: directory)
    }

    var requests: [Request] { seen.withLock { $0 } }
    var routes: [String] { requests.map(\.route) }

    private func serve(_ connection: Int32) {
        guard let request = read(connection) else { return }
        seen.withLock { $0.append(request) }
        switch answer(request) {
        case .json(let status, let text): send(connection, status, Array(text.utf8), "1.0")
        case .bytes(let bytes): send(connection, 200, bytes, "1.0")
        case .versioned(let version): send(connection, 200, Array("{}".utf8), version)
        case .chunks(let chunks, let isCut):
            write(connection, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
            for chunk in chunks {
                write(connection, String(chunk.utf8.count, radix: 16) + "\r\n" + chunk + "\r\n")
                usleep(20_000)
            }
            if !isCut { write(connection, "0\r\n\r\n") }
        case .hang: sleep(20)
        case .drop: break
        }
    }

    private func send(_ connection: Int32, _ status: Int, _ body: [UInt8], _ version: String) {
        write(
            connection,
            "HTTP/1.1 \(status) X\r\n\(Header.apiVersion): \(version)\r\nContent-Length: \(body.count)\r\n"
                + "Connection: close\r\n\r\n")
        body.withUnsafeBytes { write(connection, $0) }
    }

    private func write(_ connection: Int32, _ text: String) {
        Array(text.utf8).withUnsafeBytes { write(connection, $0) }
    }

    private func write(_ connection: Int32, _ bytes: UnsafeRawBufferPointer) {
        var rest = bytes
        while !rest.isEmpty {
            let count = Glibc.send(connection, rest.baseAddress, rest.count, Int32(MSG_NOSIGNAL))
            guard count > 0 else { return }
            rest = UnsafeRawBufferPointer(rebasing: rest[count...])
        }
    }

    private func read(_ connection: Int32) -> Request? {
        var data: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 1 << 16)
        let end = Array("\r\n\r\n".utf8)
        var headEnd: Int?
        var length = 0
        var request = Request(method: "", path: "", headers: [:], body: [])
        while true {
            if let headEnd, data.count - headEnd >= length {
                request.body = Array(data[headEnd..<headEnd + length])
                return request
            }
            let count = Glibc.recv(connection, &chunk, chunk.count, 0)
            guard count > 0 else { return nil }
            data += chunk[..<count]
            guard headEnd == nil else { continue }
            guard let start = data.indices.first(where: { data[$0...].starts(with: end) }) else { continue }
            headEnd = start + 4
            let lines = String(decoding: data[..<start], as: UTF8.self).components(separatedBy: "\r\n")
            let words = lines[0].split(separator: " ").map(String.init)
            (request.method, request.path) = (words[0], words[1])
            for line in lines.dropFirst() {
                let parts = line.split(separator: ":", maxSplits: 1).map { $0.trimmingCharacters(in: .whitespaces) }
                request.headers[parts[0].lowercased()] = parts.count > 1 ? parts[1] : ""
            }
            length = Int(request.headers["content-length"] ?? "0") ?? 0
        }
    }
}

func temporaryDirectory() -> String {
    var template = Array("/tmp/edgetune-test-XXXXXX".utf8CString)
    return template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
}
