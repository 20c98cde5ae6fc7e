// Stored to wire, in one place.
import EdgeWire

extension JobStatus {
    package init(_ job: Job) {
        self.init(
            id: job.id, name: job.name, state: job.state, reason: job.reason, ownerUid: job.ownerUid,
            createdAt: job.createdAt, startedAt: job.startedAt, finishedAt: job.finishedAt, runs: job.runs,
            request: job.request, progress: job.progress, plan: job.plan, problem: job.problem, adapter: job.adapter)
        if job.runs > 0 { runSeconds = (job.runSeconds * 10).rounded() / 10 }
    }
}
