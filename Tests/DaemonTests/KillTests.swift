// The real daemon and the real worker on a tiny model, killed with SIGKILL at random moments. Whatever was killed, a job
// ends with the adapter of a run that nothing happened to, byte for byte.
//
// EDGETUNE_KILLS sets the number of kills of each kind (default 8); EDGETUNE_SEED the seed, which is printed.
import EdgeFormats
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct KillTests {
    static let kills = ProcessInfo.processInfo.environment["EDGETUNE_KILLS"].flatMap { Int($0) } ?? 8
    static let seed = ProcessInfo.processInfo.environment["EDGETUNE_SEED"].flatMap { UInt64($0) } ?? UInt64.random(in: 1...99_999)

    struct SeededGenerator: RandomNumberGenerator {
        var state: UInt64
        mutating func next() -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state ^ state >> 29
        }
    }

    /// Returns the blob's digest.
    static func upload(_ bytes: Data, _ daemon: DaemonProcess) throws -> String {
        let digest = "sha256:" + bytes.withUnsafeBytes { SHA256.hex(SHA256.hash($0)) }
        let upload = try daemon.call(
            "PATCH", Endpoint.blob(digest),
            headers: [Header.uploadOffset: "0", Header.uploadLength: "\(bytes.count)"], body: bytes)
        #expect(upload.status == 200, "\(upload.text)")
        return digest
    }

    static func importBlob(_ bytes: Data, as name: String, at endpoint: String, _ daemon: DaemonProcess) throws {
        let digest = try upload(bytes, daemon)
        let answer = try daemon.post(endpoint, ImportRequest(name: name, blob: digest))
        #expect(answer.status == 201, "\(answer.text)")
    }

    static func prepare(_ daemon: DaemonProcess) throws {
        let model = try Data(contentsOf: URL(filePath: TestModel.repositoryRoot + "/Tests/Goldens/tiny-llama.gguf"))
        try importBlob(model, as: "tiny", at: Endpoint.models, daemon)
        let lines = (0..<24).map { "{\"text\":\"sample \($0) says \(String(repeating: "ab\($0 % 7) ", count: 3))\"}\n" }
        try importBlob(Data(lines.joined().utf8), as: "lines", at: Endpoint.datasets, daemon)
    }

    static let saveSteps = 3

    /// About two seconds of steps, with a checkpoint every few milliseconds.
    static func request(_ name: String) -> JobRequest {
        var request = JobRequest(baseModel: "tiny", datasets: [DatasetReference(path: "lines")])
        request.name = name
        request.loraR = 4
        request.loraDropout = 0.1
        request.sequenceLen = 64
        request.valSetSize = 4
        request.microBatchSize = 2
        request.gradientAccumulationSteps = 10
        request.maxSteps = 150
        request.evalSteps = 25
        request.saveSteps = saveSteps
        request.memoryBudget = "500MiB"
        return request
    }

    static func submit(_ name: String, to daemon: DaemonProcess) throws -> String {
        let answer = try daemon.post(Endpoint.jobs, request(name))
        #expect(answer.status == 201, "\(answer.text)")
        return try answer.decoded(JobStatus.self).id
    }

    static func files(of name: String, _ daemon: DaemonProcess) throws -> [Data] {
        try ["adapter_model.safetensors.lz4", "adapter_config.json"].map {
            try daemon.call("GET", Endpoint.adapterFile(name, $0)).body
        }
    }

    /// Processes whose parent is `parent`.
    static func children(of parent: pid_t) -> [pid_t] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return names.compactMap { pid_t($0) }.filter { pid in
            guard let stat = try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8),
                let fields = stat.split(separator: ")").last?.split(separator: " "), fields.count > 1
            else { return false }
            return fields[1] == "\(parent)"
        }
    }

    @Test func aKilledWorkerLeavesNoTrace() throws {
        try Self.everyJobSurvives(killing: "worker", seed: Self.seed) { daemon in
            let workers = Self.children(of: daemon.process.processIdentifier)
            for worker in workers { kill(worker, SIGKILL) }
            return workers.count
        }
    }

    @Test func aKilledDaemonLeavesNoTrace() throws {
        try Self.everyJobSurvives(killing: "daemon", seed: Self.seed &+ 1) { daemon in
            daemon.killNow()
            daemon = try DaemonProcess(in: daemon.directory)
            return 1
        }
    }

    /// - Parameter strike: kills, brings back what must come back, and returns how many it killed.
    static func everyJobSurvives(
        killing what: String, seed: UInt64, strike: (inout DaemonProcess) throws -> Int
    ) throws {
        print("seed \(seed), \(kills) kills of the \(what)")
        var random = SeededGenerator(state: seed)
        let directory = try TemporaryDirectory()
        var daemon = try DaemonProcess(in: directory.path)
        try prepare(daemon)
        let first = try submit("whole", to: daemon)
        #expect(try daemon.wait(for: first) { $0.state.isFinal }.state == .succeeded, "\(daemon.log)")
        let expected = try files(of: "whole", daemon)

        var (done, number) = (0, 0)
        while done < kills {
            number += 1
            let name = "killed\(number)"
            let job = try submit(name, to: daemon)
            // The daemon gives a job up after five runs without a new checkpoint, so every second run may make one.
            var strikes = 0
            while done < kills {
                usleep(UInt32.random(in: 20_000...700_000, using: &random))
                let status = try daemon.wait(for: job, until: { _ in true })
                if status.state.isFinal { break }
                if strikes % 2 == 1 {
                    let checkpointed = (status.progress?.step ?? 0) + Self.saveSteps + 1
                    let later = try daemon.wait(for: job) { $0.state.isFinal || ($0.progress?.step ?? 0) >= checkpointed }
                    if later.state.isFinal { break }
                }
                done += try strike(&daemon)
                strikes += 1
            }
            let status = try daemon.wait(for: job) { $0.state.isFinal }
            #expect(status.state == .succeeded, "seed \(seed): \(status)")
            #expect(try files(of: name, daemon) == expected, "seed \(seed): \(name) differs")
        }
    }
}
