// The route of ranks: a worker measures, and its lines are streamed. It leaves nothing; a client that goes away takes the worker along.
import EdgeJobs
import EdgeWire
import HummingbirdCore

extension Daemon {
    /// Of a job that is only asked about.
    func ranks(_ call: Call) async throws -> Response {
        let request = try await jobRequest(call)
        let samples = try call.number("samples", default: RankReport.defaultSamples, in: 1...RankReport.sampleLimit)
        var jobBudget: WorkOrder.RanksOrder.Budget?
        if let asked = call.query("budget") {
            guard MemoryBudget(asked) != nil else {
                throw Problem(.invalidValue, "budget=\(asked.prefix(32)) is not allowed; use a size such as 900MiB or 2GB, or a share such as 60%")
            }
            let bound = try await budget(asked: asked)
            jobBudget = .init(bytes: bound.bytes, reason: bound.name)
        }
        let files = try await files(of: request, call.caller)
        let order = WorkOrder.rankLinears(
            .init(
                request: request, samples: samples, modelPath: blobs.path(try BlobDigest(files.model)),
                datasetPaths: try files.datasets.map { blobs.path(try BlobDigest($0)) }, budgetBytes: await sideBudget().bytes,
                jobBudget: jobBudget))
        return try lines(
            of: order, through: ranking,
            event: { if case .ranking(let event) = $0 { event } else { nil } },
            problem: { RankEvent(problem: $0) },
            answered: { message in
                guard case .ranked(let report) = message else { throw wrongAnswer(message) }
                return RankEvent(report: report)
            })
    }
}
