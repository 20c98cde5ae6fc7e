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
        let most = settings.mostTogether()
        guard most > 1, Self.canShare(job) else { return alone }
        var jobs = [job]
        for entry in others where jobs.count < most {
            guard let other = try await store.job(entry.id), other.state == .queued, retryWait(other) == nil, machine(other, .start) == nil
            else { continue }
            // Nobody's job waits longer for one that was behind it.
            guard Self.canShare(other), Self.areCompatible(job, other) else { break }
            jobs.append(other)
        }
        guard jobs.count > 1, let plan = try await planTogether(jobs), (2...jobs.count).contains(plan.jobs) else { return alone }
        var asOne = job
        asOne.plan?.peakBytes = plan.peakBytes
        asOne.plan?.spillBytes = plan.spillBytes
        guard machine(asOne, .start) == nil else { return alone }
        return RunStart(jobs: Array(jobs.prefix(plan.jobs)), plan: plan)
    }

    /// Who brought a worker down is alone the next time, and so are those who were with it: it is not known who it was.
    private static func canShare(_ job: Job) -> Bool { job.fruitlessRuns == 0 && job.interruptedRuns == 0 && job.plan != nil }

    /// One process reads what each of them may read: that is one user's. The rest is what a step has one of.
    private static func areCompatible(_ a: Job, _ b: Job) -> Bool {
        a.ownerUid == b.ownerUid && a.modelBlob == b.modelBlob && a.request.precision == b.request.precision
            && a.request.threads == b.request.threads
    }

    /// Nil: not together.
    private func planTogether(_ jobs: [Job]) async throws -> TogetherPlan? {
        var orders: [WorkOrder.TrainOrder] = []
        for job in jobs { orders.append(try await order(for: job)) }
        let run: WorkerRun
        do { run = try await WorkerProcess.run(settings.worker, .planTogether(orders)) { _ in } } catch {
            settings.report("\(jobs[0].id) runs alone, the others could not be planned with it: \(error)")
            return nil
        }
        if case .answered(.plannedTogether(let plan)) = run.end { return plan }
        settings.report("\(jobs[0].id) runs alone, the worker that planned it with others ended: \(run.end) \(run.stderr.prefix(500))")
        return nil
    }
}
