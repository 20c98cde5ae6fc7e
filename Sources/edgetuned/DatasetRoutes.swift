// Routes of data sets: made from a blob by a worker that reads it, listed, removed when no job needs them.
import EdgeJobs
import EdgeWire
import Foundation
import HummingbirdCore

extension Daemon {
    func importDataset(_ call: Call) async throws -> Response {
        let request = try await decodedBody(ImportRequest.self, of: call, keys: .importing)
        try requireName(request.name)
        let digest = try complete(request.blob, what: "blob")
        if let held = try await store.dataset(request.name), held.blob == digest.text, call.caller.owns(held.ownerUid) {
            return try Response(json: held)
        }
        let message = try await answer(to: .inspectDataset(path: blobs.path(digest)))
        guard case .inspectedDataset(let report) = message else { throw wrongAnswer(message) }
        let record = DatasetRecord(
            name: request.name, blob: digest.text, bytes: blobs.status(digest).receivedBytes,
            ownerUid: call.caller.uid, createdAt: now().inWholeSeconds, dataset: report)
        try await store.add(record)
        return try Response(json: record, status: .created, headers: [.location: Endpoint.dataset(record.name)])
    }

    func listDatasets(_ call: Call) async throws -> Response {
        try Response(json: DatasetList(datasets: try await store.datasets().filter { call.caller.owns($0.ownerUid) }))
    }

    func showDataset(_ call: Call) async throws -> Response { try Response(json: try await dataset(call)) }

    func removeDataset(_ call: Call) async throws -> Response {
        let record = try await dataset(call)
        try await store.removeDataset(record.name)
        try await release(record.blob)
        return Response(status: .noContent)
    }

    private func dataset(_ call: Call) async throws -> DatasetRecord {
        guard let record = try await store.dataset(call.parameters[0]) else {
            throw Problem(.notFound, "there is no data set \"\(call.parameters[0].prefix(80))\"")
        }
        try call.caller.require(ownerOf: "data set \"\(record.name)\"", uid: record.ownerUid)
        return record
    }

    func requireName(_ name: String) throws {
        guard Wire.isName(name) else {
            throw Problem(.invalidValue, "name: \"\(name.prefix(80))\" is not allowed; use 1 to 64 of A-Z a-z 0-9 . _ -")
        }
    }

    /// The digest of an upload that has all its bytes.
    func complete(_ blob: String, what: String) throws -> BlobDigest {
        let digest = try BlobDigest(blob)
        guard blobs.status(digest).complete else {
            throw Problem(
                .notFound, "\(what): there is no blob \(digest.text)",
                hint: "upload it first: PATCH \(Endpoint.blob(digest.text))")
        }
        return digest
    }
}
