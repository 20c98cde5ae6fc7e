// The queue: one running job at a time, first in, first out; one that cannot start for want of memory is passed over. It
// turns what users and workers do into transitions of the store; the store's transaction decides, so a race between a
// cancel and a last message has one outcome.
import EdgeWire
import Foundation

/// The clock and where things are, handed in at the edge.
package struct JobQueueSettings: Sendable {
    package var worker: WorkerLaunch
    /// `<state>/jobs`: one directory per job, in which only its worker writes.
    package var jobsDirectory: String
    /// A blob's digest to its file.
    package var blobPath: @Sendable (String) -> String
    /// Bytes that a job may use now, and which bound that is.
    package var budget: @Sendable (JobRequest) -> (bytes: UInt64, reason: String)
    package var defaultSaveSteps: @Sendable () -> Int
    /// Where the board's measurement for a request is, if it was measured.
    package var calibrationPath: @Sendable (JobRequest) -> String?
    /// MemAvailable.
    package var availableBytes: @Sendable () -> UInt64?
    /// Why a job cannot start as the machine is now; nil: it can.
    package var obstacle: @Sendable (Job) -> String?
    /// Between two looks at jobs that wait for memory.
    package var obstacleInterval: Duration
    /// A cgroup for one run; nil: none is to be had. Gets the job's id and the bytes that it is planned to hold.
    package var runGroup: @Sendable (_ job: String, _ plannedBytes: UInt64) -> RunGroup?
    package var now: @Sendable () -> Date
    /// How long a worker may take from `stop` to its checkpoint before it is killed.
    package var stopTimeout: Duration
    /// Between the commits of what a worker says.
    package var commitInterval: Duration
    /// Something is wrong that no client can be told.
    package var report: @Sendable (String) -> Void

    package init(
        worker: WorkerLaunch, jobsDirectory: String, blobPath: @escaping @Sendable (String) -> String,
        budget: @escaping @Sendable (JobRequest) -> (bytes: UInt64, reason: String),
        defaultSaveSteps: @escaping @Sendable () -> Int,
        calibrationPath: @escaping @Sendable (JobRequest) -> String? = { _ in nil },
        availableBytes: @escaping @Sendable () -> UInt64? = { nil },
        obstacle: @escaping @Sendable (Job) -> String? = { _ in nil }, obstacleInterval: Duration = .seconds(3),
        runGroup: @escaping @Sendable (_ job: String, _ plannedBytes: UInt64) -> RunGroup? = { _, _ in nil },
        now: @escaping @Sendable () -> Date, stopTimeout: Duration, commitInterval: Duration = .milliseconds(200),
        report: @escaping @Sendable (String) -> Void
    ) {
        self.worker = worker
        self.jobsDirectory = jobsDirectory
        self.blobPath = blobPath
        self.budget = budget
        self.defaultSaveSteps = defaultSaveSteps
        self.calibrationPath = calibrationPath
        self.availableBytes = availableBytes
        self.obstacle = obstacle
        self.obstacleInterval = obstacleInterval
        self.runGroup = runGroup
        self.now = now
        self.stopTimeout = stopTimeout
        self.commitInterval = commitInterval
        self.report = report
    }
}

package actor JobQueue {
    private let store: JobStore
    private let log: JobLog
    private let settings: JobQueueSettings
    private let wakes: AsyncStream<Void>
    private let wake: AsyncStream<Void>.Continuation
    private var running: (id: String, control: WorkerControl)?
    private var isStopping = false
    private var nextLook: Task<Void, any Error>?
    /// What was last stored of jobs that wait, and when.
    private var told: [String: (reason: String, at: Date)] = [:]

    /// Queued jobs that are looked at when those before them wait for memory.
    private static let candidates = 32
    /// The numbers of a wait change with every look; they are stored no more often than this, in seconds.
    private static let secondsBetweenReasons: TimeInterval = 60

    package init(store: JobStore, log: JobLog, settings: JobQueueSettings) {
        self.store = store
        self.log = log
        self.settings = settings
        (wakes, wake) = AsyncStream.makeStream(bufferingPolicy: .bufferingNewest(1))
    }

    package var runningJob: String? { running?.id }

    package nonisolated func directory(of job: String) -> String { "\(settings.jobsDirectory)/\(job)" }

    /// Resolves the jobs that the last daemon left in the middle of a run. Before `run`.
    package func recover() async throws {
        for job in try await store.interruptedJobs() {
            let reason: String? =
                switch job.state {
                case .running: "resumes after a restart of the daemon"
                case .pausing: "paused by request"
                default: "cancelled by request"
                }
            try await store.apply(.restarted, to: job.id, reason: reason, at: settings.now())
        }
    }

    /// Runs jobs until `stop`. Throws when the store can no longer be written: nothing can be promised then.
    package func run() async throws {
        wake.yield()
        for await _ in wakes {
            while !isStopping, let job = try await nextStartable() { try await runOnce(job) }
            if isStopping { return }
        }
    }

    /// The first queued job that can start now. Those before it keep their place, and the reason why they wait is stored.
    private func nextStartable() async throws -> Job? {
        let queued = try await store.queued(limit: Self.candidates)
        told = told.filter { entry in queued.contains { $0.id == entry.key } }
        for job in queued {
            guard let reason = settings.obstacle(job) else { return job }
            try await tell(job, "\(Self.waiting): \(reason)")
        }
        if !queued.isEmpty { lookAgain() }
        return nil
    }

    private func lookAgain() {
        // One at a time: every submit comes here too.
        nextLook?.cancel()
        let (wake, interval) = (wake, settings.obstacleInterval)
        nextLook = Task {
            try await Task.sleep(for: interval)
            wake.yield()
        }
    }

    private static let waiting = "waits for memory"

    private func tell(_ job: Job, _ reason: String) async throws {
        let now = settings.now()
        if let last = told[job.id], job.reason?.hasPrefix(Self.waiting) == true {
            guard last.reason != reason, now.timeIntervalSince(last.at) >= Self.secondsBetweenReasons else { return }
        }
        told[job.id] = (reason, now)
        // Cancelled or paused meanwhile: nothing waits.
        do { try await store.apply(.waits, to: job.id, reason: reason, at: now) } catch is Problem {}
    }

    /// A job was submitted.
    package nonisolated func submitted() { wake.yield() }

    package func act(_ action: JobAction, on id: String) async throws -> Job {
        let transition: JobTransition =
            switch action {
            case .cancel: .cancel
            case .pause: .pause
            case .resume: .resume
            }
        let reason: String? =
            switch action {
            case .cancel: "cancelled by request"
            case .pause: "paused by request"
            case .resume: nil
            }
        let job = try await store.apply(transition, to: id, reason: reason, at: settings.now())
        switch job.state {
        case .pausing, .cancelling: stopRunning(id)
        case .queued: wake.yield()
        default: break
        }
        return job
    }

    /// Starts nothing more, asks the running worker for a checkpoint, and returns once it is gone.
    ///
    /// - Parameter waiting: called every second of the wait.
    package func stop(waiting: @Sendable () -> Void) async {
        isStopping = true
        wake.yield()
        guard let running else { return }
        stopRunning(running.id)
        while self.running != nil {
            waiting()
            try? await Task.sleep(for: .milliseconds(100))
        }
    }

    /// Asks for a checkpoint, and takes the process away when none comes in time.
    private func stopRunning(_ id: String) {
        guard let running, running.id == id else { return }
        let control = running.control
        control.stop()
        let timeout = settings.stopTimeout
        Task {
            try await Task.sleep(for: timeout)
            // A worker that has gone meanwhile takes no notice.
            control.kill()
        }
    }

    private func runOnce(_ queued: Job) async throws {
        let control = WorkerControl()
        running = (queued.id, control)
        defer { running = nil }
        let job: Job
        do { job = try await store.apply(.start, to: queued.id, reason: nil, at: settings.now()) } catch is Problem {
            // Cancelled, paused or deleted since it was read.
            return
        }
        if isStopping { control.stop() }
        // The budget that the job was planned with at submit: another one could need 8-bit state or not, and a resumed run
        // would not find its own checkpoint's.
        let budget = job.plan.map { ($0.budgetBytes, $0.budgetReason) } ?? settings.budget(job.request)
        var order = WorkOrder.TrainOrder(
            job: job.id, request: job.request, modelPath: settings.blobPath(job.modelBlob),
            modelDigest: job.modelBlob,
            datasetPaths: job.datasetBlobs.map(settings.blobPath), directory: directory(of: job.id),
            budgetBytes: budget.0, budgetReason: budget.1,
            defaultSaveSteps: settings.defaultSaveSteps())
        order.processBytes = job.plan?.processBytes
        if let name = job.request.initFromAdapter {
            // It cannot be removed before the job has ended.
            order.initialAdapterDirectory = try await store.adapter(name).map { directory(of: $0.job) + "/adapter" }
        }
        order.calibrationPath = settings.calibrationPath(job.request)
        order.availableBytes = settings.availableBytes()
        // What a run writes it holds in memory before, but for layer inputs that it spills.
        order.largestFileBytes = job.plan.map { max($0.peakBytes, $0.spillBytes ?? 0) }
        let group = settings.runGroup(job.id, job.plan?.peakBytes ?? order.budgetBytes)
        order.controlGroup = group?.directory
        let transcript = WorkerTranscript(job: job.id, store: store, log: log, settings: settings)
        let outcome: Result<WorkerRun, any Error>
        do { outcome = .success(try await supervise(order, control, transcript)) } catch { outcome = .failure(error) }
        // The worker was waited for, whichever it was: nothing is in the group any more.
        let report = await group?.end()
        switch outcome {
        case .success(let run): try await conclude(job.id, run, last: await transcript.lastProgress, report)
        case .failure(let problem as Problem): try await fail(job.id, problem)
        case .failure(let error):
            settings.report("\(job.id): \(error)")
            try await runAgain(job.id, Problem(.internalError, "the worker could not be run: \(error)"))
        }
    }

    /// Runs the worker to its end, and stores what it says meanwhile.
    private func supervise(
        _ order: WorkOrder.TrainOrder, _ control: WorkerControl, _ transcript: WorkerTranscript
    ) async throws -> WorkerRun {
        try DurableDirectory.make(order.directory)
        let run = try await withThrowingTaskGroup(of: WorkerRun?.self) { group in
            group.addTask {
                try await WorkerProcess.run(self.settings.worker, .train(order), control: control) { message in
                    try await transcript.take(message)
                }
            }
            group.addTask {
                while !Task.isCancelled {
                    try await transcript.commit()
                    try? await Task.sleep(for: self.settings.commitInterval)
                }
                return nil
            }
            var run: WorkerRun?
            while run == nil, let next = try await group.next() { run = next }
            group.cancelAll()
            while try await group.next() != nil {}
            guard let run else { throw CancellationError() }
            return run
        }
        try await transcript.commit()
        return run
    }

    /// What the end of a run means for its job.
    private func conclude(
        _ id: String, _ run: WorkerRun, last: JobProgress?, _ group: RunGroupReport?
    ) async throws {
        let now = settings.now()
        if !run.stderr.isEmpty { write(run.stderr, to: id, at: now) }
        if let group { write("cgroup of the run: \(group.figures)", to: id, at: now) }
        switch run.end {
        case .answered(.trained): try await store.apply(.trained, to: id, reason: nil, at: now)
        case .answered(.stopped(let step)):
            try await store.apply(
                .stopped, to: id, reason: isStopping ? "the daemon stopped; resumes at step \(step)" : nil, at: now)
        case .answered(.yielded(let step, let why)):
            let reason = "\(Self.waiting): \(why); goes on from step \(step)"
            write(reason, to: id, at: now)
            told[id] = (reason, now)
            try await store.apply(.yielded, to: id, reason: reason, at: now)
        case .answered(.salvaged(let problem)):
            write("\(problem.title): \(problem.detail)", to: id, at: now)
            try await store.apply(.salvaged, to: id, reason: problem.detail, problem: problem, at: now)
        case .answered(.failure(let problem)):
            // The machine's trouble and not the job's: a disk error, no file left to open.
            if problem.kind == .internalError { try await runAgain(id, problem) } else { try await fail(id, problem) }
        case .answered(let other):
            try await fail(id, Problem(.internalError, "the worker gave an answer to another order: \(other)"))
        case .signalled, .exited:
            guard let problem = run.end.problem(last: last, stderr: run.stderr, group: group) else { return }
            try await runAgain(id, problem)
        }
    }

    /// The run came to nothing through no fault of the job: there is another, unless those before came to no checkpoint either.
    private func runAgain(_ id: String, _ problem: Problem) async throws {
        write(problem.detail, to: id, at: settings.now())
        guard let job = try await store.job(id) else { return }
        if job.fruitlessRuns + 1 >= Job.fruitlessRunLimit, job.state == .running {
            var last = problem
            last.detail += "; \(Job.fruitlessRunLimit) runs in a row came to no new checkpoint"
            try await fail(id, last)
        } else {
            try await store.apply(.lost, to: id, reason: "runs again: \(problem.detail)", at: settings.now())
        }
    }

    private func fail(_ id: String, _ problem: Problem) async throws {
        write("\(problem.title): \(problem.detail)", to: id, at: settings.now())
        // A full disk is no fault of the job: what it has is kept, and it goes on when there is room.
        if problem.kind == .insufficientDisk {
            let reason = "\(problem.detail); free some space, then: edgetune resume \(id)"
            try await store.apply(.obstructed, to: id, reason: reason, at: settings.now())
            return
        }
        try await store.apply(.failed, to: id, reason: problem.detail, problem: problem, at: settings.now())
    }

    private func write(_ text: String, to id: String, at now: Date) {
        do { try log.append(text, to: id, at: now) } catch { settings.report("log of \(id): \(error)") }
    }
}

/// What one run says, stored in batches: a commit costs an fsync, and an SD card has few of those in a second.
private actor WorkerTranscript {
    private let job: String
    private let store: JobStore
    private let log: JobLog
    private let settings: JobQueueSettings
    private var pending: [JobEvent.Kind] = []
    private(set) var lastProgress: JobProgress?
    private var committing: Task<Void, any Error>?

    /// Messages that may wait for a commit; then the worker waits.
    private static let pendingLimit = 1024

    init(job: String, store: JobStore, log: JobLog, settings: JobQueueSettings) {
        self.job = job
        self.store = store
        self.log = log
        self.settings = settings
    }

    func take(_ message: WorkMessage) async throws {
        let event: JobEvent.Kind
        switch message {
        case .plan(let plan): event = .plan(plan)
        case .step(let progress):
            lastProgress = progress
            event = .step(progress)
        case .evaluation(let evaluation): event = .evaluation(evaluation)
        case .checkpoint(let step): event = .checkpoint(step: step)
        case .log(let text):
            let text = String(text.prefix(WireLimit.eventLineBytes / 8))
            // The log is a convenience: what ails it must not end the run.
            do { try log.append(text, to: job, at: settings.now()) } catch { settings.report("log of \(job): \(error)") }
            event = .log(text)
        case .generated, .merging, .stopped, .yielded, .trained, .salvaged, .planned, .calibrated, .inspectedModel,
            .plannedImport, .imported, .importedModel, .inspectedDataset, .importedAdapter, .exported, .failure:
            return
        }
        pending.append(event)
        if pending.count >= Self.pendingLimit { try await commit() }
    }

    func commit() async throws {
        let events = pending
        pending = []
        let (store, job, now) = (store, job, settings.now())
        // In a task of its own: the end of the run cancels the committing loop, and must not roll this back. After the
        // one before it: events keep their order.
        let previous = committing
        let task = Task {
            try await previous?.value
            try await store.record(events, of: job, at: now)
        }
        committing = task
        try await task.value
    }
}
