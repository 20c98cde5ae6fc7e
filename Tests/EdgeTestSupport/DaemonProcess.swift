// The real edgetuned on a temporary socket and state directory, and a raw HTTP client for it.
import EdgeWire
import Foundation

package struct TestFailure: Error, CustomStringConvertible {
    package let description: String
    package init(_ description: String) { self.description = description }
}

package struct TemporaryDirectory: ~Copyable {
    package let path: String

    package init(in parent: String = "/tmp") throws {
        // Short: a socket's path has at most 107 bytes.
        path = parent + "/edge-\(getpid())-\(UInt32.random(in: 0 ... .max))"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}

package struct HTTPAnswer: Sendable {
    package let status: Int
    /// Names in lower case.
    package let headers: [String: String]
    package let body: Data

    package func decoded<Value: Decodable>(_ type: Value.Type) throws -> Value {
        do { return try Wire.decoder().decode(type, from: body) } catch {
            throw TestFailure("status \(status): \(String(decoding: body.prefix(500), as: UTF8.self)): \(error)")
        }
    }

    package var text: String { String(decoding: body, as: UTF8.self) }
}

package enum RawHTTP {
    /// A connected Unix stream socket.
    package static func connect(_ path: String) throws -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard result == 0 else {
            close(descriptor)
            throw TestFailure("connect \(path): \(String(cString: strerror(errno)))")
        }
        var timeout = timeval(tv_sec: 30, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
        return descriptor
    }

    package static func send(_ data: Data, to descriptor: Int32) {
        data.withUnsafeBytes { (bytes: UnsafeRawBufferPointer) in
            var rest = Slice(base: bytes, bounds: 0..<bytes.count)
            while !rest.isEmpty {
                let count = Glibc.send(
                    descriptor, UnsafeRawBufferPointer(rebasing: rest).baseAddress, rest.count,
                    Int32(MSG_NOSIGNAL))
                guard count > 0 else { return }
                rest = rest.dropFirst(count)
            }
        }
    }

    /// Until the other end closes.
    package static func readAll(_ descriptor: Int32) throws -> Data {
        var data = Data()
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = recv(descriptor, &buffer, buffer.count, 0)
            if count == 0 { return data }
            guard count > 0 else {
                if errno == ECONNRESET { return data }
                throw TestFailure("recv: \(String(cString: strerror(errno)))")
            }
            data.append(contentsOf: buffer[..<count])
        }
    }

    package static func request(
        _ method: String, _ path: String, headers: [String: String] = [:], body: Data? = nil
    ) -> Data {
        var text = "\(method) \(path) HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        for (name, value) in headers { text += "\(name): \(value)\r\n" }
        if let body { text += "Content-Length: \(body.count)\r\n" }
        return Data((text + "\r\n").utf8) + (body ?? Data())
    }

    package static func answer(_ data: Data) throws -> HTTPAnswer {
        guard let end = data.range(of: Data("\r\n\r\n".utf8)) else {
            throw TestFailure("no answer: \(String(decoding: data.prefix(200), as: UTF8.self))")
        }
        let lines = String(decoding: data[..<end.lowerBound], as: UTF8.self).components(separatedBy: "\r\n")
        let status = Int(lines[0].split(separator: " ")[1]) ?? 0
        var headers: [String: String] = [:]
        for line in lines.dropFirst() {
            let parts = line.split(separator: ":", maxSplits: 1)
            if parts.count == 2 { headers[parts[0].lowercased()] = parts[1].trimmingCharacters(in: .whitespaces) }
        }
        var body = Data(data[end.upperBound...])
        if headers["transfer-encoding"] == "chunked" { body = dechunked(body) }
        return HTTPAnswer(status: status, headers: headers, body: body)
    }

    private static func dechunked(_ data: Data) -> Data {
        var (result, rest) = (Data(), data[...])
        while let line = rest.range(of: Data("\r\n".utf8)),
            let size = Int(String(decoding: rest[rest.startIndex..<line.lowerBound], as: UTF8.self), radix: 16), size > 0
        {
            result.append(rest[line.upperBound...].prefix(size))
            rest = rest[line.upperBound...].dropFirst(size + 2)
        }
        return result
    }
}

/// One edgetuned. Stopped with SIGKILL when it goes away.
package final class DaemonProcess {
    package let directory: String
    package let socket: String
    package let process = Process()
    private let workerExecutable: String?

    /// The product beside the test bundle.
    package static var binary: String {
        if let path = ProcessInfo.processInfo.environment["EDGETUNED_BINARY"] { return path }
        let own = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? ""
        let beside = (own as NSString).deletingLastPathComponent + "/edgetuned"
        if FileManager.default.isExecutableFile(atPath: beside) { return beside }
        return FileManager.default.currentDirectoryPath + "/.build/release/edgetuned"
    }

    /// - Parameters:
    ///   - directory: holds the socket, the state and the log; may be that of an earlier daemon.
    ///   - executable: becomes the daemon with the arguments that it gets.
    package init(
        in directory: String, executable: String = DaemonProcess.binary, workerExecutable: String? = nil, environment: [String: String] = [:],
        arguments: [String] = []
    ) throws {
        self.directory = directory
        self.workerExecutable = workerExecutable
        socket = directory + "/s.sock"
        process.executableURL = URL(fileURLWithPath: executable)
        process.arguments =
            ["serve", "--socket", socket, "--state-dir", directory + "/state"]
            + (workerExecutable.map { ["--worker-executable", $0] } ?? []) + arguments
        process.environment = ["PATH": "/usr/bin:/bin", "HOME": directory].merging(environment) { $1 }
        let log = directory + "/log"
        if !FileManager.default.fileExists(atPath: log) {
            _ = FileManager.default.createFile(atPath: log, contents: nil)
        }
        let handle = FileHandle(forWritingAtPath: log)
        _ = try handle?.seekToEnd()
        process.standardError = handle
        process.standardOutput = handle
        try process.run()
        try waitUntilUp()
    }

    deinit { killNow() }

    package var log: String { (try? String(contentsOfFile: directory + "/log", encoding: .utf8)) ?? "" }

    private func waitUntilUp() throws {
        let deadline = Date().addingTimeInterval(120)  // a board that does something else as well
        while Date() < deadline, process.isRunning {
            if (try? call("GET", Endpoint.health))?.status == 200 { return }
            usleep(10_000)
        }
        throw TestFailure("edgetuned did not come up: \(log)")
    }

    package func call(
        _ method: String, _ path: String, headers: [String: String] = [:], body: Data? = nil
    ) throws -> HTTPAnswer {
        let descriptor = try RawHTTP.connect(socket)
        defer { close(descriptor) }
        RawHTTP.send(RawHTTP.request(method, path, headers: headers, body: body), to: descriptor)
        return try RawHTTP.answer(try RawHTTP.readAll(descriptor))
    }

    package func post(_ path: String, _ value: some Encodable, headers: [String: String] = [:]) throws -> HTTPAnswer {
        try call("POST", path, headers: headers, body: try Wire.encoder().encode(value))
    }

    package func terminate() -> Int32 {
        process.terminate()
        process.waitUntilExit()
        return process.terminationStatus
    }

    package func killNow() {
        guard process.isRunning else { return }
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    /// The job once it satisfies `condition`.
    package func wait(for id: String, until condition: (JobStatus) -> Bool) throws -> JobStatus {
        let deadline = Date().addingTimeInterval(120)  // a board that does something else as well
        var last = ""
        while Date() < deadline {
            let answer = try call("GET", Endpoint.job(id))
            let job = try answer.decoded(JobStatus.self)
            if condition(job) { return job }
            last = answer.text
            usleep(20_000)
        }
        throw TestFailure("job \(id) stayed: \(last)\n\(log)")
    }
}
