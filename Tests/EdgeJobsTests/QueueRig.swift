// A queue with real processes: shell scripts that speak the worker's protocol.
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Synchronization

final class QueueRig {
    static let start = Date(timeIntervalSince1970: 1_800_000_000)

    let path: String
    let store: JobStore
    let queue: JobQueue
    let log: JobLog
    let running: Task<Void, any Error>
    /// Of the jobs that are submitted.
    private let plan: PlanReport?

    init(
        train: String, together: String = "", togetherPlan: TogetherPlan? = nil, plan: PlanReport? = nil, stopTimeout: Duration = .seconds(5),
        obstacle: @escaping @Sendable (Job, RunPhase) -> Obstacle? = { _, _ in nil },
        runGroup: @escaping @Sendable (String, UInt64) -> RunGroup? = { _, _ in nil },
        retryAfter: Duration = .milliseconds(1), settings change: (inout JobQueueSettings) -> Void = { _ in },
        before: (JobStore) async throws -> Void = { _ in }
    ) async throws {
        self.plan = plan
        path = "/tmp/edge-queue-\(getpid())-\(UInt32.random(in: 0 ... .max))"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        store = try JobStore(path: path + "/jobs.db")
        log = JobLog(directory: path)
        try await before(store)
        try FileManager.default.createDirectory(atPath: path + "/jobs", withIntermediateDirectories: true)
        let worker = try FakeWorker.write(in: path, train: train, together: together, togetherPlan: togetherPlan)
        var settings = JobQueueSettings(
            worker: WorkerLaunch(executable: worker, environment: ["PATH": "/usr/bin:/bin"]),
            jobsDirectory: path + "/jobs", blobPath: { $0 }, budget: { _ in (1 << 20, "a test") }, defaultSaveSteps: { 5 },
            now: { Self.start }, stopTimeout: stopTimeout, report: { _ in })
        settings.look = { obstacle }
        settings.obstacleInterval = .milliseconds(20)
        settings.runGroup = runGroup
        settings.retryAfter = { retryAfter }
        settings.commitInterval = .milliseconds(10)
        change(&settings)
        queue = JobQueue(store: store, log: log, settings: settings)
        try await queue.recover()
        running = Task { [queue] in try await queue.run() }
    }

    deinit {
        running.cancel()
        try? FileManager.default.removeItem(atPath: path)
    }

    func submit(_ id: String, owner: UInt32 = 7, _ change: (inout JobRequest) -> Void = { _ in }) async throws {
        var job = makeJob(id)
        job.ownerUid = owner
        job.plan = plan
        change(&job.request)
        _ = try await store.submit(job, key: nil, queueLimit: 99, at: Self.start)
        queue.submitted()
    }

    func wait(_ id: String, until condition: (Job) -> Bool) async throws -> Job {
        for _ in 0..<1000 {
            if let job = try await store.job(id), condition(job) { return job }
            try await Task.sleep(for: .milliseconds(10))
        }
        throw TestFailure("\(id) stayed \(String(describing: try await store.job(id)))")
    }

    func logText(_ id: String) throws -> String { String(decoding: try log.read(id), as: UTF8.self) }
}

/// Given, and taken back, from outside of the queue.
final class Allowance: Sendable {
    private let given: Atomic<Bool>
    init(_ isGiven: Bool = false) { given = Atomic(isGiven) }
    var isGiven: Bool { given.load(ordering: .acquiring) }
    func give() { given.store(true, ordering: .releasing) }
    func take() { given.store(false, ordering: .releasing) }
}
