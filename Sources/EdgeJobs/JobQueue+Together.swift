// Which queued jobs train together: neighbours in the queue's order, of one user, on one base. A worker plans them; where they do not
// fit, or would not end sooner than one after another, the first runs alone.
import EdgeWire
import Foundation

extension JobQueue {
    /// - Parameter others: what is next in the queue, in order.
    func withCompanions(
        _ job: Job, _ others: ArraySlice<QueueEntry>, _ machine: (Job, RunPhase) -> Obstacle?
    ) async throws -> RunStart {
        let alone = RunStart(jobs: [job])
        let jobs = try await [job] + companions(of: job, among: others, most: settings.mostTogether() - 1) { machine($0, .start) }
        guard jobs.count > 1, let plan = try await planTogether(jobs) else { return alone }
        var asOne = job
        asOne.plan?.peakBytes = plan.peakBytes
        asOne.plan?.spillBytes = plan.spillBytes
        guard machine(asOne, .start) == nil else { return alone }
        return RunStart(jobs: Array(jobs.prefix(plan.jobs)), plan: plan)
    }

    private func companions(
        of job: Job, among others: ArraySlice<QueueEntry>, most: Int, obstacle: (Job) -> Obstacle?
    ) async throws -> [Job] {
        guard most > 0, Self.canShare(job) else { return [] }
        var jobs: [Job] = []
        for entry in others where jobs.count < most {
            guard let other = try await store.job(entry.id), other.state == .queued, retryWait(other) == nil, obstacle(other) == nil
            else { continue }
            // Nobody's job waits longer for one that was behind it.
            guard Self.canShare(other), Self.areCompatible(job, other) else { break }
            jobs.append(other)
        }
        return jobs
    }

    /// Whether jobs are queued that the run's would better train together with, from their last steps on.
    ///
    /// - Parameter first: the run's first job.
    func isWorthJoining(_ run: CurrentRun, _ first: Job, _ machine: (Job, RunPhase) -> Obstacle?) async throws -> Bool {
        let room = settings.mostTogether() - run.active.count
        guard room > 0 else { return false }
        var running: [Job] = []
        for id in run.active {
            guard let job = try await store.job(id), job.state == .running else { return false }
            running.append(job)
        }
        let left = running.compactMap { $0.progress?.etaSeconds }.max() ?? 0
        guard .seconds(left) >= settings.worthJoining else { return false }
        let (entries, usage) = try await store.queueEntries(with: first.id, at: settings.now())
        let order = FairShare.order(entries, usage: usage)
        // Else it would not be the next to start.
        guard order.first?.id == first.id else { return false }
        // The memory that they lack is what this run holds.
        let others = try await companions(of: running[0], among: order.dropFirst(), most: room) { other in
            machine(other, .start).flatMap { $0.kind == .memory ? nil : $0 }
        }
        let all = running + others
        guard !others.isEmpty, triedTogether.insert(Set(all.map(\.id))).inserted else { return false }
        return try await planTogether(all).map { $0.jobs > running.count } ?? false
    }

    /// Who brought a worker down is alone the next time, and so are those who were with it: it is not known who it was.
    private static func canShare(_ job: Job) -> Bool { job.fruitlessRuns == 0 && job.interruptedRuns == 0 && job.plan != nil }

    /// One process reads what each of them may read: that is one user's. The rest is what a step has one of, or has no room for beside
    /// others.
    private static func areCompatible(_ a: Job, _ b: Job) -> Bool {
        a.ownerUid == b.ownerUid && a.modelBlob == b.modelBlob && a.request.precision == b.request.precision
            && a.request.threads == b.request.threads && [a, b].allSatisfy { $0.request.activationCache == nil && $0.request.originalModel == nil }
            && kindOfSteps(a) == kindOfSteps(b) && kindOfSteps(a) != .auto
    }

    /// With `auto` what it is is known when the job is planned by itself, and then from its checkpoints.
    private static func kindOfSteps(_ job: Job) -> ZerothOrderSteps { job.request.zerothOrder ?? .never }

    /// Nil: not together.
    private func planTogether(_ jobs: [Job]) async throws -> TogetherPlan? {
        var orders: [WorkOrder.TrainOrder] = []
        for job in jobs { orders.append(try await order(for: job)) }
        let run: WorkerRun
        do { run = try await WorkerProcess.run(settings.worker, .planTogether(orders)) { _ in } } catch {
            settings.report("\(jobs[0].id) runs alone, the others could not be planned with it: \(error)")
            return nil
        }
        if case .answered(.plannedTogether(let plan)) = run.end { return plan.flatMap { (2...jobs.count).contains($0.jobs) ? $0 : nil } }
        settings.report("\(jobs[0].id) runs alone, the worker that planned it with others ended: \(run.end) \(run.stderr.prefix(500))")
        return nil
    }
}
