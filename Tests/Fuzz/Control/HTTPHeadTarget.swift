// A connection's bytes, heads and bodies of requests, pipelined or not, through the daemon's own accept, HTTP pipeline, route table,
// handlers and store. A worker is never started: whoever wants one is told that too many run.
//
// Claims: nothing traps; every request that the daemon reads is answered once, in order, with well-formed HTTP/1.1 that says what
// it is, and a status of the API: 2xx, 4xx, or 507 for a disk without room; 500 never. What cannot be read as HTTP is answered with
// 400 at most, and the connection ends by itself, as after every answer that says so. A stranger gets nothing but the daemon's
// health. A user sees no word of others' names, logs, events and files, and changes nothing of theirs. Files come and go below the
// state's directory alone, under names that the daemon makes; the store stays whole. When the client has gone so has the
// connection. The heap holds at most 2 MiB for the 16 KiB that are sent at most.
import EdgeJobs
import EdgeWire
import Foundation
import edgetuned

extension FuzzTarget {
    /// Who connects and whether he goes on listening; where the bytes are cut in two; the bytes, as HTTPWords reads them.
    static let httpHead = FuzzTarget(
        name: "http-head", longestInput: 1024, heap: HeapClaim(bytesPerByte: 0, fixedBytes: 2 << 20), seconds: 20, errors: [],
        prepare: { try HTTPState.shared.get().putBack() }
    ) { bytes in
        guard bytes.count >= 2 else { return }
        let state = try HTTPState.shared.get()
        let role: HTTPState.Role = [.user, .admin, .stranger, .user][Int(bytes[0]) & 3]
        let ending: HTTPExchange.Ending = bytes[0] & 4 == 0 ? .sendingEnds : .listensOn
        let content = try HTTPWords.shared.get().spelled(bytes[2...])
        let exchange = HTTPExchange(state: state, role: role)
        try content.withUnsafeBytes { try exchange.run($0, cut: $0.count * Int(bytes[1]) / 256, ending) }
        try state.check(after: role)
    }
}

/// One connection, and what is claimed of its answers.
private struct HTTPExchange {
    enum Ending { case sendingEnds, listensOn }

    let state: HTTPState
    let role: HTTPState.Role
    /// Milliseconds that the daemon may be silent. Under libFuzzer it has a core for itself, among other tests it has not.
    private static let patience = ProcessInfo.processInfo.environment["EDGETUNE_FUZZ"] != nil ? 3000 : 60_000
    private static let statuses: Set<Int> = [200, 201, 202, 204, 400, 403, 404, 405, 409, 410, 413, 422, 429, 507]

    func run(_ content: UnsafeRawBufferPointer, cut: Int, _ ending: Ending) throws {
        let daemon = state.daemon
        daemon.expect(uid: role.uid, groups: role.groups)
        let client = try HTTPClient(socket: state.socket)
        client.send(UnsafeRawBufferPointer(rebasing: content[..<cut]))
        if cut > 0 { client.waitUntilRead() }
        client.send(UnsafeRawBufferPointer(rebasing: content[cut...]))
        if ending == .sendingEnds { client.endSending() }
        try readToEnd(client, ending)
        client.leave()
        let exchanges = daemon.exchanges
        let (answers, rest) = try StrictAnswer.read(client.received, methods: exchanges.map(\.method))
        try BrokenClaim.unless(rest.isEmpty, "an answer that is not whole: \(String(decoding: rest, as: UTF8.self))")
        try BrokenClaim.unless(
            answers.count == exchanges.count || answers.count == exchanges.count + 1,
            "\(answers.count) answers to \(exchanges.count) requests")
        for (index, answer) in answers.enumerated() {
            let isLast = index == answers.count - 1
            try check(answer, exchanges.indices.contains(index) ? exchanges[index] : nil, isLast: isLast)
        }
        if role != .admin {
            let told = Data(client.received).range(of: Data(HTTPState.secret.utf8))
            try BrokenClaim.unless(told == nil, "another user's words are told")
        }
        for _ in 0..<Self.patience where daemon.openConnections > 0 { usleep(1000) }
        try BrokenClaim.unless(daemon.openConnections == 0, "the connection is given up")
    }

    private func readToEnd(_ client: HTTPClient, _ ending: Ending) throws {
        let daemon = state.daemon
        var (isSending, isReadingEvents, left) = (ending == .listensOn, true, Self.patience)
        while true {
            let wait: Int32 = isSending ? 3 : isReadingEvents ? 30 : 100
            switch client.receive(within: wait) {
            case .end: return
            case .bytes: continue
            case .nothing: left -= Int(wait)
            }
            try BrokenClaim.unless(left > 0, "the connection ends: \(String(decoding: client.received, as: UTF8.self))")
            let exchanges = daemon.exchanges
            if isSending {
                // The daemon waits for more, unless it has said that it ends.
                let answers = try StrictAnswer.read(client.received, methods: exchanges.map(\.method)).answers
                if answers.last?.values("connection") == ["close"] { continue }
                client.endSending()
                isSending = false
            } else if isReadingEvents, exchanges.last?.path.contains("events") == true {
                // Of a job that is not finished they go on.
                try FuzzTarget.waitFor { for id in HTTPState.unfinished { try await daemon.cancel(id) } }
                isReadingEvents = false
            }
        }
    }

    private func check(_ answer: StrictAnswer, _ exchange: ServedDaemon.Exchange?, isLast: Bool) throws {
        try BrokenClaim.unless(isLast || answer.values("connection") != ["close"], "an answer that ends the connection is the last")
        guard let exchange else {
            try BrokenClaim.unless(
                answer.status == 400 && answer.values("connection") == ["close"] && answer.body.isEmpty,
                "what cannot be read is told with 400, not \(answer)")
            return
        }
        try BrokenClaim.unless(
            exchange.status == answer.status && Self.statuses.contains(answer.status),
            "\(exchange.method) \(exchange.path.prefix(80)) is answered with \(answer.status)")
        try BrokenClaim.unless(
            answer.values("server") == ["edgetuned"] && answer.values("edgetune-api-version") == [Endpoint.version],
            "an answer says whose it is: \(answer.fields)")
        if role == .stranger, (200..<300).contains(answer.status) {
            try BrokenClaim.unless(
                exchange.path.split(separator: "/") == ["v1", "health"], "a stranger gets \(exchange.path.prefix(80))")
        }
        if exchange.method != "HEAD" { try checkBody(answer) }
    }

    private func checkBody(_ answer: StrictAnswer) throws {
        let type = answer.values("content-type").first
        let body = Data(answer.body)
        if answer.status >= 400 {
            try BrokenClaim.unless(type == Header.problemType, "\(answer.status) is a problem")
            let problem = try Wire.decoder().decode(Problem.self, from: body)
            try BrokenClaim.unless(problem.status == answer.status && !problem.detail.isEmpty, "\(problem) of \(answer.status)")
        } else if type == "application/json" {
            _ = try JSONSerialization.jsonObject(with: body)
        } else if type == Header.jsonLines {
            for line in answer.body.split(separator: UInt8(ascii: "\n")) {
                _ = try Wire.decoder().decode(JobEvent.self, from: Data(line))
            }
        } else {
            try BrokenClaim.unless(
                type == "application/octet-stream" || type?.hasPrefix("text/plain") == true || answer.status == 204,
                "\(answer.status) says what it is, not \(type ?? "nothing")")
        }
    }
}
