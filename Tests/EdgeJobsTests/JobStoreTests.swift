import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import GRDB
import Testing

private let now = Date(timeIntervalSince1970: 1_800_000_000)

func makeJob(_ id: String, name: String? = nil) -> Job {
    Job(
        id: id, name: name ?? id, ownerUid: 7, createdAt: now,
        request: JobRequest(baseModel: "m", datasets: [DatasetReference(path: "d")]), modelBlob: "sha256:m",
        datasetBlobs: ["sha256:d"], plan: nil)
}

func listed(
    _ store: JobStore, in state: JobState? = nil, limit: Int = 1000, by uid: UInt32? = nil
) async throws -> [JobStatus] {
    let text = try await store.listing(in: state, limit: limit) { uid == nil || uid == $0 }
    return try Wire.decoder().decode(JobList.self, from: text).jobs
}

@Suite struct JobStoreTests {
    @Test func aSubmittedJobIsReadBackEqualAfterReopening() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/jobs.db"
        let job = makeJob("j-1")
        do {
            let store = try JobStore(path: path)
            #expect(try await store.submit(job, key: nil, queueLimit: 9, at: now) == .created(job))
            try store.close()
        }
        #expect(try await JobStore(path: path).job("j-1") == job)
    }

    @Test(
        "a damaged row is an error and no trap",
        arguments: [
            "jobs SET owner_uid = -1", "jobs SET owner_uid = 1 << 40", "jobs SET created_at = 1e300", "jobs SET started_at = -1e300",
            "jobs SET runs = 1e30", "jobs SET request = '{'", "jobs SET dataset_blobs = 'x'", "datasets SET bytes = -1",
            "datasets SET report = ''", "imports SET total_bytes = -1", "imports SET peak_bytes = -9", "blobs SET bytes = -1",
        ])
    func damagedRows(_ damage: String) async throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/jobs.db"
        let store = try JobStore(path: path)
        _ = try await store.submit(makeJob("j-1"), key: nil, queueLimit: 9, at: now)
        try await store.add(
            DatasetRecord(
                name: "d", blob: "sha256:d", bytes: 1, ownerUid: 7, createdAt: now, dataset: .init(samples: 1, kinds: [:])))
        try await store.addBlob("sha256:b", bytes: 1, ownerUid: 7, at: now)
        _ = try await store.add(
            StoredImport(
                name: "i", id: "i-1", ownerUid: 7, createdAt: now, files: [ModelFile(name: "f", blob: "sha256:b")], source: nil,
                totalBytes: 1, peakBytes: 1))
        func readAll() async throws {
            _ = try await (listed(store), store.job("j-1"))
            _ = try await (store.datasets(), store.imports(), store.blobBytes(ofOwner: 7))
        }
        try await readAll()
        let raw = try DatabaseQueue(path: path)
        try await raw.write { try $0.execute(sql: "UPDATE \(damage)") }
        try raw.close()
        await #expect(throws: (any Error).self) { try await readAll() }
    }

    @Test func theStoreIsDurable() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/jobs.db"
        let store = try JobStore(path: path)
        let raw = try DatabaseQueue(path: path)
        #expect(try raw.read { try String.fetchOne($0, sql: "PRAGMA journal_mode") } == "wal")
        try raw.close()
        try store.close()
    }

    @Test func eventsAreNumberedFromOneWithoutGaps() async throws {
        let directory = try TemporaryDirectory()
        let store = try JobStore(path: directory.path + "/jobs.db")
        _ = try await store.submit(makeJob("j-1"), key: nil, queueLimit: 9, at: now)
        try await store.record([.log("a"), .log("b")], of: "j-1", at: now)
        try await store.apply(.cancel, to: "j-1", reason: nil, at: now)
        let events = try await store.events(of: "j-1", after: 0, limit: 100)
        #expect(events.map(\.seq) == [1, 2, 3, 4, 5])
        let last = try Wire.decoder().decode(JobEvent.self, from: Data(events[4].line.utf8))
        #expect(last == JobEvent(seq: 5, at: now, event: .end(.cancelled)))
        #expect(try await store.events(of: "j-1", after: 3, limit: 1).map(\.seq) == [4])
    }

    @Test func onlyTheNewestEventsAreKeptAndAnOlderCursorIsToldSo() async throws {
        let directory = try TemporaryDirectory()
        let store = try JobStore(path: directory.path + "/jobs.db")
        _ = try await store.submit(makeJob("j-1"), key: nil, queueLimit: 9, at: now)
        let batch = [JobEvent.Kind](repeating: .log("x"), count: WireLimit.eventsPerJob)
        try await store.record(batch, of: "j-1", at: now)
        try await store.record([.log("y")], of: "j-1", at: now)
        // seq 1 was the state; 20002 in all, so 1 and 2 are gone.
        #expect(try await store.events(of: "j-1", after: 0, limit: 1).first?.seq == 3)
        #expect(try await store.events(of: "j-1", after: 2, limit: 1).first?.seq == 3)
        await #expect { try await store.events(of: "j-1", after: 1, limit: 1) } throws: {
            ($0 as? Problem)?.kind == .cursorExpired
        }
    }

    @Test func theSameKeyGivesTheSameJobAndAnotherBodyAConflict() async throws {
        let directory = try TemporaryDirectory()
        let store = try JobStore(path: directory.path + "/jobs.db")
        let key = IdempotencyKey(key: "k", bodyDigest: "a")
        let first = try await store.submit(makeJob("j-1"), key: key, queueLimit: 9, at: now)
        #expect(first == .created(makeJob("j-1")))
        #expect(try await store.submit(makeJob("j-2"), key: key, queueLimit: 9, at: now) == .existing(makeJob("j-1")))
        await #expect {
            try await store.submit(
                makeJob("j-3"), key: IdempotencyKey(key: "k", bodyDigest: "b"), queueLimit: 9, at: now)
        } throws: { ($0 as? Problem)?.kind == .conflict }
        #expect(try await listed(store).map(\.id) == ["j-1"])
    }

    @Test func aFullQueueAndATakenNameAreRefused() async throws {
        let directory = try TemporaryDirectory()
        let store = try JobStore(path: directory.path + "/jobs.db")
        _ = try await store.submit(makeJob("j-1", name: "a"), key: nil, queueLimit: 1, at: now)
        await #expect { try await store.submit(makeJob("j-2"), key: nil, queueLimit: 1, at: now) } throws: {
            ($0 as? Problem)?.kind == .queueFull
        }
        await #expect { try await store.submit(makeJob("j-2", name: "a"), key: nil, queueLimit: 9, at: now) } throws: {
            ($0 as? Problem)?.kind == .conflict
        }
    }

    @Test func aDataSetOfAnUnfinishedJobCannotBeRemoved() async throws {
        let directory = try TemporaryDirectory()
        let store = try JobStore(path: directory.path + "/jobs.db")
        let record = DatasetRecord(
            name: "d", blob: "sha256:d", bytes: 1, ownerUid: 7, createdAt: now, dataset: .init(samples: 1, kinds: [:]))
        try await store.add(record)
        _ = try await store.submit(makeJob("j-1"), key: nil, queueLimit: 9, at: now)
        await #expect { try await store.removeDataset("d") } throws: { ($0 as? Problem)?.kind == .wrongState }
        #expect(try await !store.releaseBlob("sha256:d"))
        try await store.apply(.cancel, to: "j-1", reason: nil, at: now)
        try await store.removeDataset("d")
        #expect(try await store.releaseBlob("sha256:d"))
    }

    @Test func theListIsTheJobsAsTheyAreShownOneByOne() async throws {
        let directory = try TemporaryDirectory()
        let store = try JobStore(path: directory.path + "/jobs.db")
        var job = makeJob("j-1", name: "a")
        job.plan = FakeWorker.plan
        job.request.name = "a"
        _ = try await store.submit(job, key: nil, queueLimit: 9, at: now)
        _ = try await store.submit(makeJob("j-2"), key: nil, queueLimit: 9, at: now)
        _ = try await store.submit(makeJob("j-3"), key: nil, queueLimit: 9, at: now)
        try await store.apply(.start, to: "j-1", reason: nil, at: now)
        let progress = JobProgress(
            step: 1, totalSteps: 2, epoch: 0.5, loss: 1e-7, learningRate: 1e-4, gradNorm: 3, tokensPerSecond: 1,
            rssBytes: 1, plannedPeakBytes: 2, budgetBytes: 3, etaSeconds: 4, evalLoss: 5, bestEvalLoss: 6)
        try await store.record([.step(progress)], of: "j-1", at: now)
        try await store.apply(.trained, to: "j-1", reason: nil, at: now.addingTimeInterval(9))
        try await store.apply(.pause, to: "j-2", reason: "a \"quoted\" reason\n\u{1}\\ é", at: now)
        try await store.apply(.start, to: "j-3", reason: nil, at: now)
        try await store.apply(.failed, to: "j-3", reason: "r", problem: Problem(.nonFinite, "d", hint: "h"), at: now)
        for (state, ids) in [(nil, ["j-3", "j-2", "j-1"]), (.paused, ["j-2"]), (.running, [])] as [(JobState?, [String])] {
            var expected: [JobStatus] = []
            for id in ids { expected.append(JobStatus(try #require(try await store.job(id)))) }
            #expect(try await listed(store, in: state) == expected)
            // Byte for byte: no field of a status is left out of the list.
            func text(_ jobs: [JobStatus]) throws -> Data { try Wire.encoder().encode(JobList(jobs: jobs)) }
            #expect(try await store.listing(in: state, limit: 9) { $0 == 7 } == text(expected))
            #expect(try await store.listing(in: state, limit: 9) { $0 == 8 } == text(expected.map(\.forOthers)))
        }
        #expect(try await listed(store, limit: 2).map(\.id) == ["j-3", "j-2"])
    }

    @Test func idsSortByCreationAndAreValid() {
        let early = JobID.make(now: now, random: .max)
        let late = JobID.make(now: now.addingTimeInterval(1), random: 0)
        #expect(early < late)
        #expect(JobID.isValid(early) && JobID.isValid(late))
        #expect(!JobID.isValid("j-../../etc/pa"))
    }
}
