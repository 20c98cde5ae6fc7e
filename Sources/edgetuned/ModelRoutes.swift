// Routes of models and data sets: made from a blob by a worker that reads it, listed, removed when no job needs them.
import EdgeJobs
import EdgeWire
import Foundation
import HummingbirdCore

extension Daemon {
    func importModel(_ call: Call) async throws -> Response {
        let (request, digest) = try await importRequest(call)
        if let held = try await store.model(request.name), held.blob == digest.text { return try Response(json: held) }
        let message = try await answer(to: .inspectModel(path: blobs.path(digest)))
        guard case .inspectedModel(let report) = message else { throw wrongAnswer(message) }
        let record = ModelRecord(
            name: request.name, blob: digest.text, ownerUid: call.caller.uid, createdAt: now().inWholeSeconds,
            model: report)
        try await store.add(record)
        return try Response(json: record, status: .created, headers: [.location: Endpoint.model(record.name)])
    }

    func listModels(_ call: Call) async throws -> Response {
        try Response(json: ModelList(models: try await store.models()))
    }

    func showModel(_ call: Call) async throws -> Response {
        guard let record = try await store.model(call.parameters[0]) else {
            throw Problem(.notFound, "there is no model \"\(call.parameters[0].prefix(80))\"")
        }
        return try Response(json: record)
    }

    func removeModel(_ call: Call) async throws -> Response {
        guard let record = try await store.model(call.parameters[0]) else {
            throw Problem(.notFound, "there is no model \"\(call.parameters[0].prefix(80))\"")
        }
        try call.caller.require(ownerOf: "model \"\(record.name)\"", uid: record.ownerUid)
        try await store.removeModel(record.name)
        try await release(record.blob)
        return Response(status: .noContent)
    }

    func importDataset(_ call: Call) async throws -> Response {
        let (request, digest) = try await importRequest(call)
        if let held = try await store.dataset(request.name), held.blob == digest.text { return try Response(json: held) }
        let message = try await answer(to: .inspectDataset(path: blobs.path(digest)))
        guard case .inspectedDataset(let report) = message else { throw wrongAnswer(message) }
        let record = DatasetRecord(
            name: request.name, blob: digest.text, bytes: blobs.status(digest).receivedBytes,
            ownerUid: call.caller.uid, createdAt: now().inWholeSeconds, dataset: report)
        try await store.add(record)
        return try Response(json: record, status: .created, headers: [.location: Endpoint.dataset(record.name)])
    }

    func listDatasets(_ call: Call) async throws -> Response {
        try Response(json: DatasetList(datasets: try await store.datasets()))
    }

    func showDataset(_ call: Call) async throws -> Response { try Response(json: try await dataset(call)) }

    func removeDataset(_ call: Call) async throws -> Response {
        let record = try await dataset(call)
        try call.caller.require(ownerOf: "data set \"\(record.name)\"", uid: record.ownerUid)
        try await store.removeDataset(record.name)
        try await release(record.blob)
        return Response(status: .noContent)
    }

    private func dataset(_ call: Call) async throws -> DatasetRecord {
        guard let record = try await store.dataset(call.parameters[0]) else {
            throw Problem(.notFound, "there is no data set \"\(call.parameters[0].prefix(80))\"")
        }
        return record
    }

    private func importRequest(_ call: Call) async throws -> (ImportRequest, BlobDigest) {
        let request = try await decodedBody(ImportRequest.self, of: call.request, keys: .importing)
        try requireName(request.name)
        return (request, try uploaded(request.blob))
    }

    func requireName(_ name: String) throws {
        guard Wire.isName(name) else {
            throw Problem(.invalidValue, "name: \"\(name.prefix(80))\" is not allowed; use 1 to 64 of A-Z a-z 0-9 . _ -")
        }
    }

    /// A blob that is all there.
    func uploaded(_ text: String) throws -> BlobDigest {
        let digest = try BlobDigest(text)
        guard blobs.status(digest).complete else {
            throw Problem(.notFound, "there is no blob \(digest.text)", hint: "upload it first: PATCH \(Endpoint.blob(digest.text))")
        }
        return digest
    }
}
