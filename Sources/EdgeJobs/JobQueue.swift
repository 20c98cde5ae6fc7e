// The queue: one run at a time, of one job or of some that train together, in the order of FairShare; a job that has an obstacle in
// its way is passed over, with the reason. It turns what users and workers do into transitions of the store; the store's transaction decides, so a race
// between a cancel and a last message has one outcome. The run is done in JobQueue+Run.swift and looked at in JobQueue+Watch.swift; who trains
// together is found in JobQueue+Together.swift.
import EdgeWire
import Foundation

package actor JobQueue {
    let store: JobStore
    let log: JobLog
    let settings: JobQueueSettings
    private let wakes: AsyncStream<Void>
    private let wake: AsyncStream<Void>.Continuation
    var current: CurrentRun?
    private(set) var isStopping = false
    private var nextLook: Task<Void, any Error>?
    /// What was last stored of jobs that wait, and when.
    var told: [String: (kind: Obstacle.Kind, reason: String, at: ContinuousClock.Instant)] = [:]
    /// When a job may be tried again, after so many runs of it.
    private var retries: [String: (runs: Int, at: ContinuousClock.Instant)] = [:]
    /// Jobs that a run was ended for, to train together: not tried again.
    var triedTogether: Set<Set<String>> = []
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

    /// Those of the run that have not ended.
    package var runningJobs: [String] { current?.active ?? [] }

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
            while !isStopping, let start = try await nextStartable() { try await run(start) }
            if isStopping { return }
        }
    }

    /// The first queued job that can start now, and those that it trains together with. Those before it keep their place, and the
    /// reason why they wait is stored.
    private func nextStartable() async throws -> RunStart? {
        let (entries, usage) = try await store.queueEntries(with: nil, at: settings.now())
        let ids = Set(entries.map(\.id))
        told = told.filter { ids.contains($0.key) }
        retries = retries.filter { ids.contains($0.key) }
        triedTogether = triedTogether.filter { !$0.isDisjoint(with: ids) }
        var first: String?
        var looked = 0
        let machine = settings.look()
        let order = FairShare.order(entries, usage: usage)
        for (place, entry) in order.enumerated() where looked < Self.candidates {
            guard let job = try await store.job(entry.id), job.state == .queued else { continue }
            var obstacle = retryWait(job)
            if obstacle == nil {
                looked += 1
                obstacle = machine(job, .start)
            }
            guard let obstacle else {
                waits = nil
                return try await withCompanions(job, order[(place + 1)...], machine)
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

    static func retryObstacle(_ runs: Int, in wait: Duration) -> Obstacle {
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
        for id in runningJobs { stopRunning(id) }
        while self.current != nil {
            waiting()
            try? await Task.sleep(for: .milliseconds(100))
        }
    }

    /// Asks for a checkpoint, and takes the process away when none comes in time.
    func stopRunning(_ id: String) {
        guard let current, current.active.contains(id) else { return }
        let control = current.control
        control.stop(current.isTogether ? id : nil)
        let timeout = settings.stopTimeout
        Task {
            // A machine that is suspended meanwhile has not had its time.
            try await Task.sleep(for: timeout, clock: SuspendingClock())
            if self.current?.control === control, self.current?.active.contains(id) ?? false { kill(id, .overdue) }
        }
    }

    func kill(_ id: String, _ why: CurrentRun.Kill) {
        guard let current, current.active.contains(id), current.killed == nil else { return }
        self.current?.killed = (id, why)
        // A worker that has gone meanwhile takes no notice.
        current.control.kill()
    }

    func write(_ text: String, to id: String, at now: Date) {
        do { try log.append(text, to: id, at: now) } catch { settings.report("log of \(id): \(error)") }
    }
}
