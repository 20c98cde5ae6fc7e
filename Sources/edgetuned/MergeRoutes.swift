// Routes of merged models: made on demand by a worker, fetched file by file, and removed when they are fetched, for they are as
// large as their base.
import EdgeJobs
import EdgeWire
import Foundation
import HummingbirdCore
import Logging

extension Daemon {
    func mergeAdapter(_ call: Call) async throws -> Response {
        let request = try await decodedBody(MergeRequest.self, of: call, keys: .merge)
        let adapter = try await adapter(call)
        let parent = try madeExportDirectory(of: adapter)
        let (job, reason) = try await heldOut(of: adapter, request)
        let order = WorkOrder.merge(
            .init(
                format: request.format, task: request.task, adapterDirectory: directory(of: adapter),
                modelPath: try modelPath(of: adapter), outputDirectory: "\(parent)/\(Self.mergedName)",
                budgetBytes: await sideBudget().bytes, job: job))
        let logger = logger
        return try lines(
            of: order, through: merging,
            event: { message in
                guard case .merging(var event) = message else { return nil }
                event.report?.files = Self.files(in: "\(parent)/\(Self.mergedName)")
                if event.report?.losses == nil, let reason { event.report?.notMeasured = reason }
                return event
            },
            problem: { MergeEvent(problem: $0) },
            ended: { _ in Self.removeUnfinishedMerges(in: parent, logger) })
    }

    func mergedFile(_ call: Call) async throws -> Response {
        let adapter = try await adapter(call)
        return try stream("\(exportDirectory(of: adapter))/\(Self.mergedName)/\(try fileName(call))")
    }

    func removeMerged(_ call: Call) async throws -> Response {
        let adapter = try await adapter(call)
        try removeDirectory("\(exportDirectory(of: adapter))/\(Self.mergedName)")
        return Response(status: .noContent)
    }

    /// The job's held-out samples, or why there are none.
    private func heldOut(
        of adapter: StoredAdapter, _ request: MergeRequest
    ) async throws -> (WorkOrder.MergeOrder.HeldOut?, reason: String?) {
        guard request.measure else { return (nil, "not asked for") }
        guard let job = try await store.job(adapter.job) else {
            return (nil, "its job is no longer listed, or it was trained elsewhere")
        }
        let paths = try job.datasetBlobs.map { blobs.path(try BlobDigest($0)) }
        guard paths.allSatisfy({ Self.regularFileBytes($0) != nil }) else { return (nil, "its job's data sets have been removed") }
        return (.init(request: job.request, datasetPaths: paths), nil)
    }

    /// In an adapter's exports; a worker that is not done has it with a suffix.
    static let mergedName = "merged"

    /// What a worker that was killed has left.
    private static func removeUnfinishedMerges(in directory: String, _ logger: Logger) {
        do {
            for name in try FileManager.default.contentsOfDirectory(atPath: directory) where name.hasPrefix(mergedName + ".") {
                try FileManager.default.removeItem(atPath: "\(directory)/\(name)")
            }
        } catch { logger.error("\(directory) cannot be tidied: \(error)") }
    }
}
