// A client that goes on: after an error it tries again, after the daemon's death it starts the daemon again. What it was
// told once it takes for granted, and says when that was not so.
import EdgeFormats
import EdgeTestSupport
import EdgeWire
import Foundation

final class StubbornClient {
    let files: FaultyFiles
    private(set) var daemon: DaemonProcess
    /// Answers that were errors, and starts of the daemon that failed.
    private(set) var refusals: [String] = []
    private(set) var restarts = 0
    /// Called whenever an answer is awaited.
    var meanwhile: () throws -> Void = {}

    /// What is asked for or was last: "POST jobs", "POST jobs pause", or `starting`.
    private(set) var doing = StubbornClient.starting
    /// The same when a fault was first seen.
    private(set) var doingWhenStruck: String?
    static let starting = "start"

    private static let attempts = 60

    init(_ files: FaultyFiles) throws {
        self.files = files
        daemon = try files.startDaemon()
    }

    func forgetRefusals() {
        refusals = []
        restarts = 0
        doingWhenStruck = nil
    }

    private func noteStrike() {
        if doingWhenStruck == nil, files.hasStruck { doingWhenStruck = doing }
    }

    /// Method and kind of thing; of what is done to a job, the verb too.
    private static func kind(_ method: String, _ path: String) -> String {
        let parts = path.split(whereSeparator: { "/?".contains($0) })
        guard parts.count > 1 else { return method }
        let verb = method == "POST" && parts.count > 3 ? " \(parts[3])" : ""
        return "\(method) \(parts[1])\(verb)"
    }

    func restart() throws {
        daemon.killNow()
        try reviveIfGone()
    }

    func reviveIfGone() throws {
        guard !daemon.process.isRunning else { return }
        noteStrike()
        doing = Self.starting
        defer { noteStrike() }
        var last: any Error = TestFailure("")
        for _ in 0..<5 {
            restarts += 1
            do {
                daemon = try files.startDaemon()
                return
            } catch {
                refusals.append("start: \("\(error)".suffix(300))")
                last = error
            }
        }
        throw last
    }

    /// The first answer with one of these statuses.
    func call(
        _ method: String, _ path: String, headers: [String: String] = [:], body: Data? = nil, accepting: Set<Int>
    ) throws -> HTTPAnswer {
        for _ in 0..<Self.attempts {
            noteStrike()
            doing = Self.kind(method, path)
            defer { noteStrike() }
            do {
                let answer = try daemon.call(method, path, headers: headers, body: body)
                if accepting.contains(answer.status) { return answer }
                refusals.append("\(method) \(path): \(answer.status) \(answer.text)")
            } catch { refusals.append("\(method) \(path): \(error)") }
            try meanwhile()
            usleep(20_000)
            try reviveIfGone()
        }
        throw TestFailure("\(method) \(path): \(refusals.suffix(3).joined(separator: "\n"))")
    }

    func post(_ path: String, _ value: some Encodable, headers: [String: String] = [:], accepting: Set<Int>) throws -> HTTPAnswer {
        try call("POST", path, headers: headers, body: try Wire.encoder().encode(value), accepting: accepting)
    }

    func get<Value: Decodable>(_ type: Value.Type, _ path: String) throws -> Value {
        try call("GET", path, accepting: [200]).decoded(type)
    }

    /// Sends what the daemon does not have, in two requests.
    func upload(_ bytes: Data) throws -> String {
        let digest = "sha256:" + bytes.withUnsafeBytes { SHA256.hex(SHA256.hash($0)) }
        for _ in 0..<Self.attempts {
            let status = try get(BlobStatus.self, Endpoint.blob(digest))
            if status.complete { return digest }
            let offset = Int(status.receivedBytes)
            // The second request brings the rest; when all is there it has no byte.
            let end = offset == 0 ? bytes.count / 2 : bytes.count
            _ = try call(
                "PATCH", Endpoint.blob(digest),
                headers: [Header.uploadOffset: "\(offset)", Header.uploadLength: "\(bytes.count)"], body: bytes[offset..<end],
                // 409: more has arrived than was known.
                accepting: [200, 409, 422])
        }
        throw TestFailure("upload of \(digest): \(refusals.suffix(3).joined(separator: "\n"))")
    }

    /// - Parameters:
    ///   - accepting: statuses beside success.
    ///   - value: what names the blobs; they are sent again when the daemon has none of them.
    func add<Value: Encodable>(
        _ bytes: [Data], to endpoint: String, accepting: Set<Int> = [], _ value: ([String]) -> Value
    ) throws -> HTTPAnswer {
        for _ in 0..<Self.attempts {
            let digests = try bytes.map(upload)
            let answer = try post(endpoint, value(digests), accepting: accepting.union([200, 201, 202, 404]))
            if answer.status != 404 { return answer }
            refusals.append("POST \(endpoint): 404 \(answer.text)")
        }
        throw TestFailure("\(endpoint): \(refusals.suffix(3).joined(separator: "\n"))")
    }

    /// 404: an answer before was lost on its way.
    func delete(_ path: String) throws { _ = try call("DELETE", path, accepting: [204, 404]) }

    /// The job once it satisfies `condition`.
    func wait(for id: String, until condition: (JobStatus) throws -> Bool) throws -> JobStatus {
        let deadline = Date().addingTimeInterval(60)
        var last: JobStatus?
        while Date() < deadline {
            try meanwhile()
            let job = try get(JobStatus.self, Endpoint.job(id))
            if try condition(job) { return job }
            last = job
            usleep(10_000)
        }
        throw TestFailure("job \(id) stayed \(String(describing: last))\n\(daemon.log.suffix(2000))")
    }
}
