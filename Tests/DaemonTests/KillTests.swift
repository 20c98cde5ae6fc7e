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

    static func importBlob(_ bytes: Data, as name: String, at endpoint: String, _ daemon: DaemonProcess) throws {
        let digest = "sha256:" + bytes.withUnsafeBytes { SHA256.hex(SHA256.hash($0)) }
        let upload = try daemon.call(
            "PATCH", Endpoint.blob(digest),
            headers: [Header.uploadOffset: "0", Header.uploadLength: "\(bytes.count)"], body: bytes)
        #expect(upload.status == 200, "\(upload.text)")
        let answer = try daemon.post(endpoint, ImportRequest(name: name, blob: digest))
        #expect(answer.status == 201, "\(answer.text)")
    }

    static func prepare(_ daemon: DaemonProcess) throws {
        let model = try Data(contentsOf: URL(filePath: TestModel.repositoryRoot + "/Tests/Goldens/tiny-llama.gguf"))
        try importBlob(model, as: "tiny", at: Endpoint.models, daemon)
        let lines = (0..<24).map { "{\"text\":\"sample \($0) says \(String(repeating: "ab\($0 % 7) ", count: 3))\"}\n" }
        try importBlob(Data(lines.joined().utf8), as: "lines", at: Endpoint.datasets, daemon)
    }

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
        request.saveSteps = 3
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
        print("seed \(Self.seed), \(Self.kills) kills of the worker")
        var random = SeededGenerator(state: Self.seed)
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try Self.prepare(daemon)
        let first = try Self.submit("whole", to: daemon)
        #expect(try daemon.wait(for: first) { $0.state.isFinal }.state == .succeeded, "\(daemon.log)")
        let expected = try Self.files(of: "whole", daemon)

        var (done, number) = (0, 0)
        while done < Self.kills {
            number += 1
            let name = "killed\(number)"
            let job = try Self.submit(name, to: daemon)
            while done < Self.kills {
                usleep(UInt32.random(in: 50_000...700_000, using: &random))
                if try daemon.wait(for: job, until: { _ in true }).state.isFinal { break }
                for worker in Self.children(of: daemon.process.processIdentifier) {
                    kill(worker, SIGKILL)
                    done += 1
                }
            }
            let status = try daemon.wait(for: job) { $0.state.isFinal }
            #expect(status.state == .succeeded, "seed \(Self.seed): \(status)")
            #expect(try Self.files(of: name, daemon) == expected, "seed \(Self.seed): \(name) differs")
        }
    }

    @Test func aKilledDaemonLeavesNoTrace() throws {
        print("seed \(Self.seed), \(Self.kills) kills of the daemon")
        var random = SeededGenerator(state: Self.seed &+ 1)
        let directory = try TemporaryDirectory()
        var daemon = try DaemonProcess(in: directory.path)
        try Self.prepare(daemon)
        let first = try Self.submit("whole", to: daemon)
        #expect(try daemon.wait(for: first) { $0.state.isFinal }.state == .succeeded, "\(daemon.log)")
        let expected = try Self.files(of: "whole", daemon)

        var (done, number) = (0, 0)
        while done < Self.kills {
            number += 1
            let name = "killed\(number)"
            let job = try Self.submit(name, to: daemon)
            while done < Self.kills {
                usleep(UInt32.random(in: 20_000...700_000, using: &random))
                if try daemon.wait(for: job, until: { _ in true }).state.isFinal { break }
                daemon.killNow()
                done += 1
                daemon = try DaemonProcess(in: directory.path)
            }
            let status = try daemon.wait(for: job) { $0.state.isFinal }
            #expect(status.state == .succeeded, "seed \(Self.seed): \(status)")
            #expect(try Self.files(of: name, daemon) == expected, "seed \(Self.seed): \(name) differs")
        }
    }
}
