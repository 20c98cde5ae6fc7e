// One run: a worker process from its order to what its end means for each of its jobs.
import EdgeWire
import Foundation

/// The run that is under way.
struct CurrentRun {
    struct Member {
        /// Asked to leave for this.
        var obstacle: Obstacle?
        /// Seen once: one look can be a spike.
        var suspected: Obstacle.Kind?
        /// `max_time` is over.
        var isFinishing = false
    }

    /// Of its jobs, those that have not ended, in their order.
    private(set) var active: [String]
    private(set) var members: [String: Member]
    let isTogether: Bool
    let control = WorkerControl()
    let start = SuspendingClock.now
    /// Why the queue took the process away, and of which job's account; nil: it did not.
    var killed: (job: String, why: Kill)?

    /// After it was asked to stop, or because it hangs.
    enum Kill { case overdue, silent(Duration) }

    init(_ jobs: [String]) {
        active = jobs
        isTogether = jobs.count > 1
        members = Dictionary(uniqueKeysWithValues: jobs.map { ($0, Member()) })
    }

    subscript(_ id: String) -> Member? {
        get { members[id] }
        set { if members[id] != nil { members[id] = newValue } }
    }

    mutating func ended(_ id: String) { active.removeAll { $0 == id } }

    var ran: Duration { SuspendingClock.now - start }
}

/// What a run begins with.
struct RunStart {
    var jobs: [Job]
    /// Of all of them, where there are several.
    var plan: TogetherPlan?
}

extension JobQueue {
    func run(_ start: RunStart) async throws {
        let run = CurrentRun(start.jobs.map(\.id))
        let control = run.control
        // Before a job runs: who cancels it from then on is heard.
        current = run
        defer { current = nil }
        var jobs: [Job] = []
        for queued in start.jobs {
            do { jobs.append(try await store.apply(.start, to: queued.id, reason: nil, at: settings.now())) } catch is Problem {
                // Cancelled, paused or deleted since it was read.
                current?.ended(queued.id)
            }
        }
        guard let first = jobs.first else { return }
        if isStopping { control.stop() }
        var orders: [WorkOrder.TrainOrder] = []
        for job in jobs { orders.append(try await order(for: job)) }
        let together = jobs.count > 1 ? start.plan : nil
        // What a run writes it holds in memory before, but for layer inputs that it spills.
        orders[0].largestFileBytes =
            together.map { max($0.peakBytes, $0.spillBytes) } ?? first.plan.map { max($0.peakBytes, $0.spillBytes ?? 0) }
        let group = settings.runGroup(first.id, together?.peakBytes ?? first.plan?.peakBytes ?? orders[0].budgetBytes)
        orders[0].controlGroup = group?.directory
        orders[0].groupHoldsQuota = group?.holdsQuota ?? false
        let order: WorkOrder = together.map { .trainTogether(WorkOrder.TogetherOrder(jobs: orders, plan: $0)) } ?? .train(orders[0])
        let transcripts = Dictionary(
            uniqueKeysWithValues: jobs.map {
                ($0.id, WorkerTranscript(job: $0.id, since: run.start, store: store, log: log, settings: settings))
            })
        let outcome: Result<WorkerRun, any Error>
        do {
            for job in jobs { try DurableDirectory.make(directory(of: job.id)) }
            outcome = .success(try await supervise(jobs, order, control, transcripts))
        } catch { outcome = .failure(error) }
        // The worker was waited for, whichever it was: nothing is in the group any more.
        let report = await group?.end()
        for job in jobs { tell(job.id, outcome, report) }
        for id in runningJobs {
            switch outcome {
            case .success(let run): try await conclude(id, run, last: await transcripts[id]?.lastProgress, report)
            case .failure(let problem as Problem): try await end(id, with: problem)
            case .failure(let error):
                settings.report("\(id): \(error)")
                try await crash(id, Problem(.internalError, "the worker could not be run: \(error)"))
            }
        }
    }

    /// What the job's log gets of the process's end.
    private func tell(_ id: String, _ outcome: Result<WorkerRun, any Error>, _ group: RunGroupReport?) {
        guard case .success(let run) = outcome else { return }
        let now = settings.now()
        if !run.stderr.isEmpty { write(run.stderr, to: id, at: now) }
        if let group { write("cgroup of the run: \(group.figures)", to: id, at: now) }
    }

    func order(for job: Job) async throws -> WorkOrder.TrainOrder {
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
        order.scheduling = settings.scheduling()
        return order
    }

    /// Runs the worker to its end, and stores what it says meanwhile.
    private func supervise(
        _ jobs: [Job], _ order: WorkOrder, _ control: WorkerControl, _ transcripts: [String: WorkerTranscript]
    ) async throws -> WorkerRun {
        for transcript in transcripts.values { try await transcript.share(with: jobs.count) }
        let run = try await withThrowingTaskGroup(of: WorkerRun?.self) { group in
            group.addTask {
                try await WorkerProcess.run(self.settings.worker, order, control: control) { message in
                    guard case .ofJob(let id, let message) = message else {
                        try await transcripts[jobs[0].id]?.take(message)
                        return
                    }
                    try await self.take(message, of: id, transcripts)
                }
            }
            group.addTask {
                while !Task.isCancelled {
                    for transcript in transcripts.values { try await transcript.commit() }
                    try? await Task.sleep(for: self.settings.commitInterval)
                }
                return nil
            }
            for job in jobs {
                guard let transcript = transcripts[job.id] else { continue }
                group.addTask {
                    // The run's end cancels this in the middle of a look; then what the store says to that is nobody's error.
                    do { try await self.watch(job, transcript) } catch { if !Task.isCancelled { throw error } }
                    return nil
                }
            }
            var run: WorkerRun?
            while run == nil, let next = try await group.next() { run = next }
            group.cancelAll()
            while try await group.next() != nil {}
            guard let run else { throw CancellationError() }
            return run
        }
        for transcript in transcripts.values { try await transcript.end() }
        return run
    }

    /// What the worker says of one of the jobs that train together: its last word ends it, and the others go on.
    private func take(_ message: WorkMessage, of id: String, _ transcripts: [String: WorkerTranscript]) async throws {
        guard let transcript = transcripts[id], runningJobs.contains(id) else {
            settings.report("a worker spoke of \(id), which is not its job")
            return
        }
        for other in transcripts.values { await other.hear() }
        guard message.isLast else { return try await transcript.take(message) }
        try await transcript.end()
        try await conclude(id, message)
        let active = runningJobs
        for other in active { try await transcripts[other]?.share(with: active.count) }
    }

    // MARK: ends

    /// What the end of the process means for a job of which nothing last was said.
    private func conclude(_ id: String, _ run: WorkerRun, last: JobProgress?, _ group: RunGroupReport?) async throws {
        if case .answered(let message) = run.end { return try await conclude(id, message) }
        guard let problem = run.end.problem(last: last, stderr: run.stderr, group: group) else { return }
        switch current?.killed {
        case (let job, .overdue)? where job == id: try await killedOverdue(id)
        case (let job, .overdue)?:
            let reason = "its worker was killed with \(job), which came to no checkpoint; goes on from the last one"
            write(reason, to: id, at: settings.now())
            try await store.apply(.stopped, to: id, reason: reason, at: settings.now())
        case (_, .silent(let time))?:
            let minutes = Int(time / .seconds(60))
            try await crash(id, Problem(.workerCrashed, "the worker said nothing for \(minutes) min and was killed"))
        case nil: try await crash(id, problem)
        }
        current?.ended(id)
    }

    /// What a job's last message means for it.
    private func conclude(_ id: String, _ message: WorkMessage) async throws {
        defer { current?.ended(id) }
        let now = settings.now()
        switch message {
        case .trained: try await store.apply(.trained, to: id, reason: nil, at: now)
        case .stopped(let step):
            if let obstacle = current?[id]?.obstacle, !isStopping {
                try await yield(id, obstacle, "goes on from step \(step)")
            } else {
                try await store.apply(
                    .stopped, to: id, reason: isStopping ? "the daemon stopped; resumes at step \(step)" : nil, at: now)
            }
        case .yielded(let step, let why): try await yield(id, Obstacle(.memory, why), "goes on from step \(step)")
        case .salvaged(let problem):
            write("\(problem.title): \(problem.detail)", to: id, at: now)
            try await store.apply(.salvaged, to: id, reason: problem.detail, problem: problem, at: now)
        case .failure(let problem): try await end(id, with: problem)
        case .jobsEnded: try await crash(id, Problem(.internalError, "the worker ended without a word of this job"))
        default: try await crash(id, Problem(.internalError, "the worker gave an answer to another order: \(message)"))
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
        if let obstacle = current?[id]?.obstacle, !isStopping { return try await yield(id, obstacle, goesOn) }
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
}
