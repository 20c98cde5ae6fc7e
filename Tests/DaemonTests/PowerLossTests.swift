// The power goes at a random moment of a recorded life, and of what was not synced anything may be missing. What a client had
// been told by then is there; no file under a final name is torn; and a real daemon on such a disk finishes the job with the
// bytes of a run that nothing happened to.
//
//   EDGETUNE_POWER_CUTS   histories (default 120); EDGETUNE_SEED the seed, which is printed; every 250th history gets a real
//                         daemon (EDGETUNE_POWER_CUT_DAEMONS: another number than 250)
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct PowerLossTests {
    private static func setting(_ name: String) -> Int? { ProcessInfo.processInfo.environment[name].flatMap { Int($0) } }

    /// What was done, and what the client knew when.
    struct Recording {
        let before: String
        let operations: [FaultyFiles.Operation]
        var told: [(sequence: Int, fact: Told)] = []
        var adapter: [Data] = []
        /// By id: jobs of before, with which nothing happens.
        var bystanders: [String: JobState] = [:]
    }
    enum Told { case life(JobLife.Fact), others(OtherLife.Fact) }

    /// A first start and a life on an empty disk, or a migration, a life with a pause, and what else there is.
    enum Kind: CaseIterable { case first, later }

    static func record(_ kind: Kind, in directory: String) throws -> Recording {
        let files = try FaultyFiles(in: directory)
        let before = directory + "/before"
        var bystanders: Bystanders?
        if kind == .later {
            files.record(.nothing)
            let client = try StubbornClient(files)
            bystanders = try Bystanders(client)
            guard client.daemon.terminate() == 0 else { throw TestFailure(client.daemon.log) }
            try OldStore.make(of: files.state + "/jobs.db", migrations: 1)
        } else {
            try FileManager.default.createDirectory(atPath: files.state, withIntermediateDirectories: true)
        }
        try FileManager.default.copyItem(atPath: files.state, toPath: before)
        files.record(.bytes)
        let client = try StubbornClient(files)
        var told: [(Int, Told)] = []
        var life = JobLife(number: 1, course: kind == .first ? .runs : .isPaused)
        life.told = { told.append((files.sequence, .life($0))) }
        guard let adapter = try life.run(client) else { throw TestFailure("the life came to nothing: \(client.refusals)") }
        if let bystanders {
            var others = OtherLife(adapter: bystanders.adapter)
            others.told = { told.append((files.sequence, .others($0))) }
            try others.run(client)
        }
        guard client.daemon.terminate() == 0, client.refusals.isEmpty else { throw TestFailure("\(client.refusals)\n\(client.daemon.log)") }
        return Recording(
            before: before, operations: try files.operations(), told: told, adapter: adapter,
            bystanders: Dictionary(uniqueKeysWithValues: (bystanders?.jobs ?? [:]).values.map { ($0.id, $0.state) }))
    }

    @Test func aPowerCutLosesNothingThatWasPromised() async throws {
        let cuts = Self.setting("EDGETUNE_POWER_CUTS") ?? 120
        let (seed, perDaemon) = (KillTests.seed, Self.setting("EDGETUNE_POWER_CUT_DAEMONS") ?? 250)
        for (index, kind) in Kind.allCases.enumerated() {
            let directory = try TemporaryDirectory()
            let recording = try Self.record(kind, in: directory.path)
            print("seed \(seed): \(cuts / 2) power cuts in \(recording.operations.count) operations of a \(kind) life")
            var (histories, daemons) = (0, 0)
            let began = Date()
            try await Self.eachCut(recording, count: cuts / 2, seed: seed &+ UInt64(index)) { image, cut, name in
                let problems = await Self.problems(of: image, recording, cut)
                #expect(problems.isEmpty, "seed \(seed), \(kind), \(name): \(problems)")
                histories += 1
                guard histories % perDaemon == 1 else { return }
                try Self.finish(image, recording, cut, name)
                daemons += 1
            }
            let seconds = Date().timeIntervalSince(began)
            #expect(histories >= cuts / 2)
            try await Self.requireThatADiskThatIgnoresSyncsIsNoticed(recording)
            let rate = String(format: "%.1f", Double(histories) / seconds)
            print("\(kind): \(histories) histories, \(daemons) of them finished by a daemon, \(rate) histories/s")
        }
    }

    /// The checks see what missing syncs do.
    private static func requireThatADiskThatIgnoresSyncsIsNoticed(_ recording: Recording) async throws {
        var noticed = 0
        try await eachCut(recording, count: 40, seed: 1, ignoresSyncs: true) { image, cut, _ in
            noticed += await problems(of: image, recording, cut).isEmpty ? 0 : 1
        }
        #expect(noticed > 10)
    }

    /// Spreads cuts over the recording, and writes a disk for each.
    private static func eachCut(
        _ recording: Recording, count: Int, seed: UInt64, ignoresSyncs: Bool = false,
        _ body: (_ image: String, _ cut: Int, _ name: String) async throws -> Void
    ) async throws {
        // Nothing of it needs a disk, and the store syncs each.
        let directory = try TemporaryDirectory(in: FileManager.default.isWritableFile(atPath: "/dev/shm") ? "/dev/shm" : "/tmp")
        let image = directory.path + "/state"
        let disk = try PowerLossDisk(recording.before, ignoresSyncs: ignoresSyncs)
        var random = PowerLossDisk.Random(seed: seed)
        var cuts = Array(repeating: 0, count: recording.operations.count)
        for _ in 0..<count { cuts[random.below(cuts.count)] += 1 }
        for (index, operation) in recording.operations.enumerated() {
            try disk.apply(operation)
            for number in 0..<cuts[index] {
                let survival = [0, 0.2, 0.5, 0.8, 1][random.below(5)]
                try? FileManager.default.removeItem(atPath: image)
                try disk.write(to: image, survival: survival, &random)
                let kind = FaultyFiles.kind(ofPath: operation.path)
                try await body(image, operation.sequence, "cut \(index).\(number) after \(operation.kind) \(kind), survival \(survival)")
            }
        }
    }

    // MARK: checks without a daemon

    private static func problems(of image: String, _ recording: Recording, _ cut: Int) async -> [String] {
        do {
            let promises = Promises(recording, cut)
            // Made when it is not there: then nothing may have been promised.
            let store = try JobStore(path: image + "/jobs.db")
            var problems = try StateAudit.tornFiles(in: image, adapters: try await store.adapters().map(\.job))
            problems += try await promises.broken(in: store, image, recording.adapter)
            problems += try await missingFiles(store, image)
            try store.close()
            return problems
        } catch { return ["\(error)"] }
    }

    /// Files that the store names.
    private static func missingFiles(_ store: JobStore, _ image: String) async throws -> [String] {
        let jobs = try await StateAudit.jobs(of: store)
        var blobs = try await store.models().map(\.blob) + store.datasets().map(\.blob)
        blobs += try await store.imports().filter { $0.problem == nil }.flatMap { $0.files.map(\.blob) }
        for job in jobs {
            if !job.state.isFinal { blobs += [job.modelBlob] + job.datasetBlobs }
            let events = try await store.events(of: job.id, after: 0, limit: 10_000)
            if events.map(\.seq) != Array(1...max(1, events.count)) { return ["events of \(job.id): \(events.map(\.seq))"] }
            for event in events { _ = try Wire.decoder().decode(JobEvent.self, from: Data(event.line.utf8)) }
        }
        var missing = blobs.map { "blobs/sha256-" + $0.dropFirst("sha256:".count) }
        missing += try await store.adapters().map { "jobs/\($0.job)/adapter/adapter_model.safetensors.lz4" }
        return missing.filter { !FileManager.default.fileExists(atPath: image + "/" + $0) }.map { "\($0) is not there" }
    }

    /// What must be and what must not be at a cut.
    private struct Promises {
        private var models: [String: Bool] = [:], datasets: [String: Bool] = [:], adapters: [String: Bool] = [:]
        /// True: there; false: gone.
        private var jobs: [String: Bool] = [:]
        private var states: [String: Set<JobState>] = [:]
        private var published: [String] = []

        init(_ recording: Recording, _ cut: Int) {
            for (id, state) in recording.bystanders {
                jobs[id] = true
                states[id] = [state]
                if state == .succeeded { adapters["kept"] = true }
            }
            for (sequence, told) in recording.told where sequence <= cut {
                switch told {
                case .life(let fact): take(fact)
                case .others(.imported): models["split"] = true
                case .others(.willDeleteModel): models["split"] = nil
                case .others(.modelDeleted): models["split"] = false
                case .others(.brought): adapters["brought"] = true
                case .others(.willDeleteAdapter): adapters["brought"] = nil
                case .others(.adapterDeleted): adapters["brought"] = false
                }
            }
        }

        private mutating func take(_ fact: JobLife.Fact) {
            switch fact {
            case .model(let name): models[name] = true
            case .willDeleteModel(let name): models[name] = nil
            case .modelDeleted(let name): models[name] = false
            case .dataset(let name): datasets[name] = true
            case .willDeleteDataset(let name): datasets[name] = nil
            case .datasetDeleted(let name): datasets[name] = false
            case .submitted(let id, _): jobs[id] = true
            case .cancelled(let id): states[id] = [.cancelling, .cancelled]
            case .succeeded(let id, let name):
                states[id] = [.succeeded]
                adapters[name] = true
                published.append(id)
            case .willDeleteJob(let id):
                jobs[id] = nil
                states[id] = nil
            case .jobDeleted(let id): jobs[id] = false
            case .willDeleteAdapter(let name):
                adapters[name] = nil
                published = []
            case .adapterDeleted(let name): adapters[name] = false
            }
        }

        func broken(in store: JobStore, _ image: String, _ adapter: [Data]) async throws -> [String] {
            var broken: [String] = []
            func compare(_ what: String, _ wanted: [String: Bool], _ found: [String]) {
                for (name, isThere) in wanted where found.contains(name) != isThere {
                    broken.append("\(what) \(name) is \(isThere ? "lost" : "there again")")
                }
                if Set(found).count != found.count { broken.append("\(what) twice: \(found)") }
            }
            compare("model", models, try await store.models().map(\.name))
            compare("data set", datasets, try await store.datasets().map(\.name))
            compare("adapter", adapters, try await store.adapters().map(\.name))
            let found = try await StateAudit.jobs(of: store)
            compare("job", jobs, found.map(\.id))
            compare("job's name", [:], found.map(\.name))
            for job in found {
                if let allowed = states[job.id], !allowed.contains(job.state) { broken.append("job \(job.id) is \(job.state)") }
            }
            for id in published {
                let files = try ["adapter_model.safetensors.lz4", "adapter_config.json"].map {
                    try Data(contentsOf: URL(filePath: "\(image)/jobs/\(id)/adapter/\($0)"))
                }
                if files != adapter { broken.append("the adapter of \(id) has other bytes") }
            }
            return broken
        }
    }

    // MARK: checks with a daemon

    /// The client goes on from what it finds, whatever that is.
    private static func finish(_ image: String, _ recording: Recording, _ cut: Int, _ name: String) throws {
        let directory = try TemporaryDirectory()
        try FileManager.default.copyItem(atPath: image, toPath: directory.path + "/state")
        let files = try FaultyFiles(in: directory.path)
        files.record(.nothing)
        let client = try StubbornClient(files)
        for job in try client.get(JobList.self, Endpoint.jobs).jobs where ["life1", "second1"].contains(job.name) {
            if job.state == .paused { _ = try client.call("POST", Endpoint.jobAction(job.id, .resume), accepting: [200]) }
            let done = try client.wait(for: job.id) { $0.state.isFinal }
            guard job.name == "life1" else { continue }
            #expect(done.state == .succeeded, "\(name): \(done)")
            guard try !client.get(AdapterList.self, Endpoint.adapters).adapters.filter({ $0.name == "life1" }).isEmpty else { continue }
            #expect(try KillTests.files(of: "life1", client.daemon) == recording.adapter, "\(name): other bytes")
        }
        // Another life works as ever, under another name.
        let again = try JobLife(number: 2, course: .runs).run(client)
        #expect(again == recording.adapter, "\(name): the next life's adapter has other bytes")
        #expect(client.refusals.isEmpty, "\(name): \(client.refusals)")
    }
}
