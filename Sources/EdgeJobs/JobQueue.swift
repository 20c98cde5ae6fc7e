// The queue: one running job at a time, in the order of FairShare; one that has an obstacle in its way is passed over, with
// the reason. It turns what users and workers do into transitions of the store; the store's transaction decides, so a race
// between a cancel and a last message has one outcome. The running job is looked at in JobQueue+Watch.swift.
import EdgeWire
import Foundation

package actor JobQueue {
    let store: JobStore
    private let log: JobLog
    let settings: JobQueueSettings
    private let wakes: AsyncStream<Void>
    private let wake: AsyncStream<Void>.Continuation
    var current: CurrentRun?
    private(set) var isStopping = false
    private var nextLook: Task<Void, any Error>?
    /// What was last stored of jobs that wait, and when.
    private var told: [String: (kind: Obstacle.Kind, reason: String, at: ContinuousClock.Instant)] = [:]
    /// When a job may be tried again, after so many runs of it.
    private var retries: [String: (runs: Int, at: ContinuousClock.Instant)] = [:]
    /// Why the job that is next does not run; nil when none waits, or one runs.
    package private(set) var waits: String?

    /// Queued jobs that are looked at when there is something in the way of those before them. Jobs that wait for another try
    /// are not counted.
    static let candidates = 32
    /// The numbers of a wait change with every look; they are stored no more often than this.
    private static let betweenReasons = Duration.seconds(60)

    package init(store: JobStore, log: JobLog, settings: JobQueueSettings) {
        self.store = store
        self.log = log
        self.settings = settings
        (wakes, wake) = AsyncStream.makeStream(bufferingPolicy: .bufferingNewest(1))
    }

    package var runningJob: String? { current?.id }

    package nonisolated func directory(of job: String) -> String { "\(settings.jobsDirectory)/\(job)" }

    /// Resolves the jobs that the last daemon left in the middle of a run. Before `run`.
    package func recover() async throws {
        for job in try await store.interruptedJobs() {
            if job.interruptedRuns + 1 >= Job.interruptedRunLimit {
                let reason = "\(Job.interruptedRunLimit) runs in a row ended with the daemon or the machine before a checkpoint; "
                    + "edgetune resume \(job.id)"
                try await store.apply(.obstructed, to: job.id, reason: reason, at: settings.now())
                continue
            }
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
        let (entries, usage) = try await store.queueEntries(with: nil, at: settings.now())
        let ids = Set(entries.map(\.id))
        told = told.filter { ids.contains($0.key) }
        retries = retries.filter { ids.contains($0.key) }
        var first: String?
        var looked = 0
        let machine = settings.look()
        for entry in FairShare.order(entries, usage: usage) where looked < Self.candidates {
            guard let job = try await store.job(entry.id), job.state == .queued else { continue }
            var obstacle = retryWait(job)
            if obstacle == nil {
                looked += 1
                obstacle = machine(job, .start)
            }
            guard let obstacle else {
                waits = nil
                return job
            }
            first = first ?? obstacle.reason
            try await tell(job, obstacle)
        }
        waits = first
        if !entries.isEmpty { lookAgain() }
        return nil
    }

    /// Nil when `job` may be tried now.
    func retryWait(_ job: Job) -> Obstacle? {
        let delay = Retry.delay(
            crashed: job.fruitlessRuns, interrupted: job.interruptedRuns, base: settings.retryAfter())
        guard delay > .zero else { return nil }
        let now = ContinuousClock.now
        // Not stored: after a restart it waits as long again, and no clock that was set makes that longer.
        if retries[job.id]?.runs != job.runs { retries[job.id] = (job.runs, now + delay) }
        guard let at = retries[job.id]?.at, at > now else { return nil }
        return Self.retryObstacle(max(job.fruitlessRuns, job.interruptedRuns), in: at - now)
    }

    private static func retryObstacle(_ runs: Int, in wait: Duration) -> Obstacle {
        Obstacle(.retry, "\(runs) runs in a row came to no new checkpoint, the next is in \(Int((wait / .seconds(1)).rounded(.up))) s")
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

    private func tell(_ job: Job, _ obstacle: Obstacle) async throws {
        let (now, reason) = (ContinuousClock.now, obstacle.reason)
        if let last = told[job.id], last.kind == obstacle.kind, Obstacle.isReason(job.reason) {
            guard last.reason != reason, now - last.at >= Self.betweenReasons else { return }
        }
        told[job.id] = (obstacle.kind, reason, now)
        // Cancelled or paused meanwhile: nothing waits.
        do { try await store.apply(.waits, to: job.id, reason: reason, at: settings.now()) } catch is Problem {}
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
        guard let current else { return }
        stopRunning(current.id)
        while self.current != nil {
            waiting()
            try? await Task.sleep(for: .milliseconds(100))
        }
    }

    /// Asks for a checkpoint, and takes the process away when none comes in time.
    func stopRunning(_ id: String) {
        guard let current, current.id == id else { return }
        let control = current.control
        control.stop()
        let timeout = settings.stopTimeout
        Task {
            // A machine that is suspended meanwhile has not had its time.
            try await Task.sleep(for: timeout, clock: SuspendingClock())
            if self.current?.control === control { kill(id, .overdue) }
        }
    }

    func kill(_ id: String, _ why: CurrentRun.Kill) {
        guard let current, current.id == id, current.killed == nil else { return }
        self.current?.killed = why
        // A worker that has gone meanwhile takes no notice.
        current.control.kill()
    }

    private func runOnce(_ queued: Job) async throws {
        let run = CurrentRun(queued.id)
        let control = run.control
        current = run
        defer { current = nil }
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
        if let name = job.request.originalModel, let original = try await store.model(name)?.blob {
            // It cannot be removed before the job has ended, either; without it the worker says what is missing.
            (order.originalModelPath, order.originalModelDigest) = (settings.blobPath(original), original)
        }
        order.calibrationPath = settings.calibrationPath(job.request)
        order.availableBytes = settings.availableBytes()
        // What a run writes it holds in memory before, but for layer inputs that it spills.
        order.largestFileBytes = job.plan.map { max($0.peakBytes, $0.spillBytes ?? 0) }
        let group = settings.runGroup(job.id, job.plan?.peakBytes ?? order.budgetBytes)
        order.controlGroup = group?.directory
        order.scheduling = settings.scheduling()
        order.groupHoldsQuota = group?.holdsQuota ?? false
        let transcript = WorkerTranscript(job: job.id, since: run.start, store: store, log: log, settings: settings)
        let outcome: Result<WorkerRun, any Error>
        do { outcome = .success(try await supervise(job, order, control, transcript)) } catch { outcome = .failure(error) }
        // The worker was waited for, whichever it was: nothing is in the group any more.
        let report = await group?.end()
        switch outcome {
        case .success(let run): try await conclude(job.id, run, last: await transcript.lastProgress, report)
        case .failure(let problem as Problem): try await end(job.id, with: problem)
        case .failure(let error):
            settings.report("\(job.id): \(error)")
            try await crash(job.id, Problem(.internalError, "the worker could not be run: \(error)"))
        }
    }

    /// Runs the worker to its end, and stores what it says meanwhile.
    private func supervise(
        _ job: Job, _ order: WorkOrder.TrainOrder, _ control: WorkerControl, _ transcript: WorkerTranscript
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
            group.addTask {
                // The run's end cancels this in the middle of a look; then what the store says to that is nobody's error.
                do { try await self.watch(job, transcript) } catch { if !Task.isCancelled { throw error } }
                return nil
            }
            var run: WorkerRun?
            while run == nil, let next = try await group.next() { run = next }
            group.cancelAll()
            while try await group.next() != nil {}
            guard let run else { throw CancellationError() }
            return run
        }
        try await transcript.end()
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
            if let obstacle = current?.obstacle, !isStopping {
                try await yield(id, obstacle, "goes on from step \(step)")
            } else {
                try await store.apply(
                    .stopped, to: id, reason: isStopping ? "the daemon stopped; resumes at step \(step)" : nil, at: now)
            }
        case .answered(.yielded(let step, let why)): try await yield(id, Obstacle(.memory, why), "goes on from step \(step)")
        case .answered(.salvaged(let problem)):
            write("\(problem.title): \(problem.detail)", to: id, at: now)
            try await store.apply(.salvaged, to: id, reason: problem.detail, problem: problem, at: now)
        case .answered(.failure(let problem)): try await end(id, with: problem)
        case .answered(let other):
            try await crash(id, Problem(.internalError, "the worker gave an answer to another order: \(other)"))
        case .signalled, .exited:
            guard let problem = run.end.problem(last: last, stderr: run.stderr, group: group) else { return }
            switch current?.killed {
            case .overdue: try await killedOverdue(id)
            case .silent(let time):
                let minutes = Int(time / .seconds(60))
                try await crash(id, Problem(.workerCrashed, "the worker said nothing for \(minutes) min and was killed"))
            case nil: try await crash(id, problem)
            }
        }
    }

    private func yield(_ id: String, _ obstacle: Obstacle, _ goesOn: String) async throws {
        let reason = "\(obstacle.reason); \(goesOn)"
        write(reason, to: id, at: settings.now())
        told[id] = (obstacle.kind, reason, .now)
        try await store.apply(.yielded, to: id, reason: reason, at: settings.now())
    }

    /// It was asked to leave, and had not come to a checkpoint when its time for that was over.
    private func killedOverdue(_ id: String) async throws {
        let seconds = settings.stopTimeout / .seconds(1)
        let within = seconds == seconds.rounded() ? "\(Int(seconds))" : "\(seconds)"
        let goesOn = "came to no checkpoint within \(within) s and was killed; goes on from the last one"
        if let obstacle = current?.obstacle, !isStopping { return try await yield(id, obstacle, goesOn) }
        write(goesOn, to: id, at: settings.now())
        try await store.apply(.stopped, to: id, reason: goesOn, at: settings.now())
    }

    private func end(_ id: String, with problem: Problem) async throws {
        // A full disk does not get better by trying again.
        if problem.mayPass, problem.kind != .insufficientDisk { try await crash(id, problem) } else { try await fail(id, problem) }
    }

    /// The run came to nothing, and it may have been the machine: it is tried again, a few times, and later each time.
    private func crash(_ id: String, _ problem: Problem) async throws {
        write(problem.detail, to: id, at: settings.now())
        guard let job = try await store.job(id) else { return }
        let runs = job.fruitlessRuns + 1
        if runs >= Job.fruitlessRunLimit, job.state == .running {
            var last = problem
            last.detail += "; \(runs) runs in a row came to no new checkpoint"
            return try await fail(id, last)
        }
        let delay = Retry.delay(crashed: runs, interrupted: job.interruptedRuns, base: settings.retryAfter())
        var reason = "runs again: \(problem.detail)"
        if delay > .zero {
            let obstacle = Self.retryObstacle(runs, in: delay)
            reason = "\(obstacle.reason): \(problem.detail)"
            told[id] = (.retry, reason, .now)
        }
        try await store.apply(.lost, to: id, reason: reason, at: settings.now())
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

    func write(_ text: String, to id: String, at now: Date) {
        do { try log.append(text, to: id, at: now) } catch { settings.report("log of \(id): \(error)") }
    }
}
