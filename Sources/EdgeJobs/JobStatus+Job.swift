// Stored to wire, in one place.
import EdgeWire

extension JobStatus {
    package init(_ job: Job) {
        self.init(
            id: job.id, name: job.name, state: job.state, reason: job.reason, ownerUid: job.ownerUid,
            createdAt: job.createdAt, startedAt: job.startedAt, finishedAt: job.finishedAt, runs: job.runs,
            request: job.request, progress: job.progress, plan: job.plan, problem: job.problem, adapter: job.adapter)
        if job.runs > 0 { runSeconds = Self.shown(runSeconds: job.runSeconds) }
    }

    static func shown(runSeconds: Double) -> Double { (runSeconds * 10).rounded() / 10 }

    /// As other users see it: without names, reasons and problems, which may quote a data set.
    package var forOthers: JobStatus {
        var status = self
        status.name = id
        (status.reason, status.plan, status.adapter) = (nil, nil, nil)
        status.request = request.forOthers
        status.problem = problem?.forOthers
        return status
    }
}

extension JobRequest {
    var forOthers: JobRequest { .forOthers(baseModel: baseModel) }

    static func forOthers(baseModel: String) -> JobRequest { JobRequest(baseModel: baseModel, datasets: []) }
}

extension Problem {
    var forOthers: Problem {
        var bare = self
        (bare.detail, bare.hint) = ("of another user's job", nil)
        return bare
    }
}
