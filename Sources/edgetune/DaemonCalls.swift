// The API's calls as functions: values in, values out. Repeats after a lost connection where that is safe.
import EdgeWire
import Foundation
import NIOCore
import NIOHTTP1

extension DaemonClient {
    func get<Value: Decodable>(_ type: Value.Type, _ path: String) async throws(DaemonError) -> Value {
        try decode(type, await collect(Call(path: path)))
    }

    /// `idleSeconds` is long: the daemon reads the whole file of an import, and plans over the whole data set.
    func post<Value: Decodable, Body: Encodable>(
        _ type: Value.Type, _ path: String, _ body: Body, headers: [(String, String)] = []
    ) async throws(DaemonError) -> Value {
        let call = Call(
            method: .POST, path: path, headers: headers + [("Content-Type", "application/json")],
            body: try encode(body), idleSeconds: 900)
        return try decode(type, await collect(call))
    }

    func delete(_ path: String) async throws(DaemonError) { _ = try await collect(Call(method: .DELETE, path: path)) }

    func act(_ action: JobAction, on job: String) async throws(DaemonError) -> JobStatus {
        _ = try await collect(Call(method: .POST, path: Endpoint.jobAction(escaped(job), action)))
        return try await get(JobStatus.self, Endpoint.job(escaped(job)))
    }

    func encode<Body: Encodable>(_ body: Body) throws(DaemonError) -> ByteBuffer {
        do { return ByteBuffer(bytes: try Wire.encoder().encode(body)) } catch { throw .unreadable("\(error)") }
    }

    func decode<Value: Decodable>(_ type: Value.Type, _ body: ByteBuffer) throws(DaemonError) -> Value {
        do { return try Wire.decoder().decode(type, from: Data(body.readableBytesView)) } catch {
            throw .unreadable("\(error)")
        }
    }

    func decode<Value: Decodable>(_ type: Value.Type, from line: Substring) throws(DaemonError) -> Value {
        do { return try Wire.decoder().decode(type, from: Data(line.utf8)) } catch { throw .unreadable("\(error)") }
    }

    /// Whole lines of a streamed body. A last line without its newline is an interruption and is dropped.
    func lines(_ call: Call, take: (Substring) throws -> StreamDemand) async throws(DaemonError) {
        var rest = ByteBuffer()
        try await stream(call) { piece in
            rest.writeImmutableBuffer(piece)
            while let end = rest.readableBytesView.firstIndex(of: UInt8(ascii: "\n")) {
                let length = end - rest.readableBytesView.startIndex
                let line = rest.readString(length: length) ?? ""
                rest.moveReaderIndex(forwardBy: 1)
                if !line.isEmpty, try take(line[...]) == .enough { return .enough }
            }
            guard rest.readableBytes <= WireLimit.bodyBytes else {
                throw DaemonError.unreadable("a line of more than \(WireLimit.bodyBytes) bytes")
            }
            rest.discardReadBytes()
            return .more
        }
    }

    /// Events of a job until its `end`, across lost connections and restarts of the daemon.
    ///
    /// The caller has already reached the daemon once, so a missing socket is a restart and worth waiting for.
    ///
    /// - Parameter interrupted: told once for each loss, before the first wait.
    func follow(
        _ job: String, interrupted: () -> Void, take: (JobEvent, Substring) throws -> Void
    ) async throws(DaemonError) -> JobState {
        var after = 0
        var cursor = 0
        var backOff = BackOff()
        while true {
            var end: JobState?
            do {
                // A heartbeat comes every 15 s.
                try await lines(Call(path: Endpoint.jobEvents(escaped(job)) + "?after=\(cursor)")) { line in
                    guard let event = try Self.event(line) else { return .more }
                    backOff = BackOff()
                    // What was sent again after a resume is not shown again.
                    guard event.event != .heartbeat, event.seq > after else {
                        guard case .end(let state) = event.event else { return .more }
                        end = state
                        return .enough
                    }
                    after = event.seq
                    cursor = after
                    try take(event, line)
                    guard case .end(let state) = event.event else { return .more }
                    end = state
                    return .enough
                }
            } catch {
                // More was made while away than is kept: 0 goes on with the oldest that there is.
                if case .problem(let problem) = error, problem.kind == .cursorExpired, cursor > 0 {
                    cursor = 0
                    continue
                }
                guard error.isConnectionLoss else { throw error }
                if backOff.isFirst { interrupted() }
                guard await backOff.wait() else { throw error }
                continue
            }
            if let end { return end }
            // Ended without `end`: the daemon is going down.
            if backOff.isFirst { interrupted() }
            guard await backOff.wait() else { throw .lost("edgetuned ended the events of \(job) without their end") }
        }
    }

    /// Nil for a type of event that this client does not know: within 1.x events may be added.
    private static func event(_ line: Substring) throws -> JobEvent? {
        struct Name: Decodable { let type: String }
        let data = Data(line.utf8)
        do { return try Wire.decoder().decode(JobEvent.self, from: data) } catch {
            guard let name = try? Wire.decoder().decode(Name.self, from: data), !JobEvent.knownTypes.contains(name.type)
            else { throw DaemonError.unreadable("\(error)") }
            return nil
        }
    }

    /// Makes the call again while the connection is lost; safe only for calls that the daemon recognises.
    func repeated<Value>(_ call: () async throws(DaemonError) -> Value) async throws(DaemonError) -> Value {
        var backOff = BackOff()
        while true {
            do { return try await call() } catch {
                guard error.isConnectionLoss else { throw error }
                guard await backOff.wait() else { throw error }
            }
        }
    }

    func escaped(_ name: String) -> String {
        name.addingPercentEncoding(withAllowedCharacters: Self.pathCharacters) ?? "-"
    }

    private static let pathCharacters = CharacterSet(
        charactersIn: "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-:")
}

/// 0.1 s, doubled to 5 s, for a minute and a half in all: longer than a daemon takes to restart.
struct BackOff {
    private var nextSeconds = 0.1
    private var waitedSeconds = 0.0
    var isFirst: Bool { waitedSeconds == 0 }

    /// False when it is time to give up.
    mutating func wait() async -> Bool {
        guard waitedSeconds < 90 else { return false }
        waitedSeconds += nextSeconds
        try? await Task.sleep(for: .seconds(nextSeconds))
        nextSeconds = min(5, nextSeconds * 2)
        return true
    }
}
