// The real daemon and the real worker on a tiny model, killed with SIGKILL at random moments, alone, together and in groups,
// while many jobs are submitted, run, paused and cancelled. Whatever was killed, a job ends with the adapter of a run that
// nothing happened to, byte for byte.
//
//   EDGETUNE_KILLS=1000 EDGETUNE_KILL_JOBS=100   (default: 6 and 3); EDGETUNE_SEED the seed, which is printed
import EdgeFormats
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct KillTests {
    static let kills = ProcessInfo.processInfo.environment["EDGETUNE_KILLS"].flatMap { Int($0) } ?? 6
    static let loadedJobs = ProcessInfo.processInfo.environment["EDGETUNE_KILL_JOBS"].flatMap { Int($0) } ?? 3
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
        let lines = (0..<24).map { "{\"task\":\"\($0 % 2 == 0 ? "a" : "b")\",\"text\":\"sample \($0) says \(String(repeating: "ab\($0 % 7) ", count: 3))\"}\n" }
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

    /// Living processes whose parent is `parent`.
    static func children(of parent: pid_t) -> [pid_t] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return names.compactMap { pid_t($0) }.filter { pid in
            guard let stat = try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8),
                let fields = stat.split(separator: ")").last?.split(separator: " "), fields.count > 1
            else { return false }
            return fields[1] == "\(parent)" && fields[0] != "Z"
        }
    }

    // MARK: a mixed load

    /// Makes jobs longer, so that they are not over before the last kill: one stands some four in its usual length.
    private static let lengthening = max(1, (kills + 3 * loadedJobs) / (4 * loadedJobs))

    /// What is asked for; jobs of a kind have the same adapter.
    private enum LoadKind: Int, CaseIterable {
        case usual, wider, shorter, cancelled

        func request(_ name: String) -> JobRequest {
            var request = KillTests.request(name)
            switch self {
            case .usual, .cancelled: request.maxSteps = 80
            case .wider:
                request.maxSteps = 60
                request.loraR = 8
                request.seed = 7
            case .shorter:
                request.maxSteps = 40
                request.valSetSize = 0
                request.evalSteps = nil
            }
            request.maxSteps = request.maxSteps.map { $0 * lengthening }
            return request
        }
    }

    private struct LoadedJob {
        let name: String, kind: LoadKind
        var id = ""
        /// Its pause was accepted.
        var isPaused = false
    }

    @Test func killsDuringAMixedLoadLoseNothingAndDoNothingTwice() throws {
        print("seed \(Self.seed), \(Self.kills) kills, \(Self.loadedJobs) jobs")
        let directory = try TemporaryDirectory()
        let files = try FaultyFiles(in: directory.path)
        files.record(.nothing)
        let client = try StubbornClient(files)
        try Self.prepare(client.daemon)
        var expected: [LoadKind: [Data]] = [:]
        for kind in LoadKind.allCases where kind != .cancelled {
            let id = try client.post(Endpoint.jobs, kind.request("whole-\(kind)"), accepting: [201]).decoded(JobStatus.self).id
            guard try client.wait(for: id, until: { $0.state.isFinal }).state == .succeeded else { throw TestFailure(client.daemon.log) }
            expected[kind] = try Self.files(of: "whole-\(kind)", client.daemon)
        }
        var killer = Killer(seed: Self.seed)
        let began = Date()
        var jobs = (1...Self.loadedJobs).map { LoadedJob(name: "load\($0)", kind: LoadKind.allCases[$0 % LoadKind.allCases.count]) }
        for index in jobs.indices {
            let job = jobs[index]
            if killer.done < Self.kills / 4, index % 3 == 1 { try killer.strike(client, &jobs) }
            jobs[index].id = try Self.submit(job, client)
            if job.kind == .cancelled, index % 2 == 0 {
                _ = try client.call("POST", Endpoint.jobAction(jobs[index].id, .cancel), accepting: [200, 409])
            }
        }
        while killer.done < Self.kills {
            if try Self.isDone(client) {
                var job = LoadedJob(name: "load\(jobs.count + 1)", kind: .usual)
                job.id = try Self.submit(job, client)
                jobs.append(job)
            }
            try killer.strike(client, &jobs)
        }
        let rate = String(format: "%.2f", Double(killer.done) / Date().timeIntervalSince(began))
        try Self.check(jobs, expected, client)
        let tally = killer.tally.sorted { $0.key < $1.key }.map { "\($0.value)x \($0.key)" }.joined(separator: ", ")
        print("killed: \(tally); \(jobs.count) jobs; \(client.restarts) restarts, \(rate) kills/s")
    }

    private static func submit(_ job: LoadedJob, _ client: StubbornClient) throws -> String {
        try client.post(
            Endpoint.jobs, job.kind.request(job.name), headers: [Header.idempotencyKey: job.name], accepting: [200, 201]
        ).decoded(JobStatus.self).id
    }

    private static func isDone(_ client: StubbornClient) throws -> Bool {
        try client.get(JobList.self, Endpoint.jobs).jobs.allSatisfy { $0.state.isFinal || $0.state == .paused }
    }

    private static func check(_ jobs: [LoadedJob], _ expected: [LoadKind: [Data]], _ client: StubbornClient) throws {
        for job in jobs {
            if job.kind == .cancelled { _ = try client.call("POST", Endpoint.jobAction(job.id, .cancel), accepting: [200, 409]) }
        }
        for job in jobs {
            let done = try finished(job, client)
            // One that ended before it was cancelled is whole as well.
            if done.state == .cancelled, job.kind == .cancelled { continue }
            #expect(done.state == .succeeded, "seed \(seed): \(done)")
            let whole = expected[job.kind == .cancelled ? .usual : job.kind]
            #expect(try files(of: job.name, client.daemon) == whole, "seed \(seed): \(job.name) differs")
        }
        let listed = try client.get(JobList.self, Endpoint.jobs).jobs.filter { $0.name.hasPrefix("load") }
        #expect(Set(listed.map(\.id)) == Set(jobs.map(\.id)) && listed.count == jobs.count, "seed \(seed): jobs lost or made twice")
        for job in listed {
            let text = try client.call("GET", Endpoint.jobEvents(job.id) + "?follow=0", accepting: [200]).text
            #expect(text.components(separatedBy: "\"end\"").count == 2, "seed \(seed): \(job.name) ended twice")
        }
        let adapters = try client.get(AdapterList.self, Endpoint.adapters).adapters.map(\.job)
        let torn = try StateAudit.tornFiles(in: client.files.state, adapters: adapters)
        #expect(torn.isEmpty, "seed \(seed): \(torn)")
    }

    private static func finished(_ job: LoadedJob, _ client: StubbornClient) throws -> JobStatus {
        while true {
            let now = try client.wait(for: job.id) { $0.state.isFinal || $0.state == .paused }
            if now.state.isFinal { return now }
            _ = try client.call("POST", Endpoint.jobAction(job.id, .resume), accepting: [200, 409])
        }
    }

    /// Kills daemon, worker or both, alone or several times in a row, and asks for pauses in between.
    private struct Killer {
        private var random: SeededGenerator
        private(set) var done = 0
        private(set) var tally: [String: Int] = [:]

        init(seed: UInt64) { random = SeededGenerator(state: seed) }

        mutating func strike(_ client: StubbornClient, _ jobs: inout [LoadedJob]) throws {
            usleep(UInt32.random(in: 5_000...300_000, using: &random))
            let group = Int.random(in: 0..<4, using: &random) == 0 ? Int.random(in: 2...4, using: &random) : 1
            for _ in 0..<group { try killOnce(client) }
            guard Int.random(in: 0..<6, using: &random) == 0 else { return }
            // Pauses what runs, or resumes what is paused.
            let running = try client.get(HostStatus.self, Endpoint.status).runningJobs.first
            for index in jobs.indices where !jobs[index].id.isEmpty && (jobs[index].id == running || jobs[index].isPaused) {
                let action = jobs[index].isPaused ? JobAction.resume : .pause
                // Not accepted when it has ended meanwhile, or is still on its way to the pause.
                let answer = try client.call("POST", Endpoint.jobAction(jobs[index].id, action), accepting: [200, 409])
                if answer.status == 200 { jobs[index].isPaused.toggle() }
            }
        }

        private mutating func killOnce(_ client: StubbornClient) throws {
            let target = ["worker", "daemon", "both"].randomElement(using: &random) ?? "daemon"
            var killed = 0
            if target != "daemon" {
                while killed == 0, try !KillTests.isDone(client) {
                    // In this order: a run is stored before its worker is there.
                    let workers = KillTests.children(of: client.daemon.process.processIdentifier)
                    if try workers.isEmpty || Self.mayFail(client) {
                        usleep(5_000)
                        continue
                    }
                    for worker in workers where kill(worker, SIGKILL) == 0 { killed += 1 }
                }
            }
            if target != "worker" { try client.restart() }
            guard target == "daemon" || killed > 0 else { return }
            done += 1
            tally[target, default: 0] += 1
        }

        /// The daemon gives a job up after so many runs without a new checkpoint, of which the running one would be the last.
        private static func mayFail(_ client: StubbornClient) throws -> Bool {
            guard let id = try client.get(HostStatus.self, Endpoint.status).runningJobs.first else { return false }
            let text = try client.call("GET", Endpoint.jobEvents(id) + "?follow=0", accepting: [200]).text
            var runs = 0
            for line in text.split(separator: "\n") {
                switch try Wire.decoder().decode(JobEvent.self, from: Data(line.utf8)).event {
                case .checkpoint: runs = 0
                case .state(.running, _): runs += 1
                default: break
                }
            }
            return runs >= Job.fruitlessRunLimit
        }
    }
}
