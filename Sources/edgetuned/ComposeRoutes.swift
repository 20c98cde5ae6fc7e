// The route of compositions: a worker looks for the weights and publishes, its lines are streamed, and the adapter is in the store before
// its client is told of it. A client that goes away takes the worker with him.
import EdgeJobs
import EdgeWire
import Foundation
import HummingbirdCore

extension Daemon {
    /// Of adapters and a data set that are the caller's own.
    func composeAdapters(_ call: Call) async throws -> Response {
        let request = try await decodedBody(CompositionRequest.self, of: call, keys: .composition)
        try request.validate()
        try requireName(request.name)
        let parts = try await adaptersOfOneModel(request.adapters, call.caller)
        let dataset = try await datasetBlob(request.dataset, call.caller)
        let adapter = try await unmadeAdapter(request.name, of: (parts[0].baseModel, parts[0].modelBlob), call.caller)
        let order = WorkOrder.composeAdapters(
            .init(
                request: request, adapterDirectories: parts.map { directory(of: $0) }, datasetPath: blobs.path(try BlobDigest(dataset)),
                datasetDigest: dataset, modelPath: try modelPath(of: parts[0]), modelDigest: parts[0].modelBlob,
                baseModel: parts[0].baseModel, outputDirectory: directory(of: adapter), budgetBytes: await sideBudget().bytes))
        let place = queue.directory(of: adapter.job)
        return try lines(
            of: order, through: composing,
            event: { if case .composing(let event) = $0 { event } else { nil } },
            problem: { CompositionEvent(problem: $0) },
            begun: { try DurableDirectory.make(place) },
            answered: { message in
                guard case .composed(let report) = message else { throw wrongAnswer(message) }
                try await store.add(adapter)
                return CompositionEvent(report: report, adapter: record(adapter))
            },
            ended: { answer in
                guard answer == nil else { return }
                do { try removeDirectory(place) } catch { logger.error("\(place) cannot be removed: \(error)") }
            })
    }
}
