// Routes of models: made from a blob by a worker that reads it, or from several by an import that goes on by itself;
// listed, and removed when no job needs them.
import EdgeJobs
import EdgeWire
import Foundation
import HummingbirdCore

extension Daemon {
    func addModel(_ call: Call) async throws -> Response {
        let request = try await decodedBody(ModelRequest.self, of: call, keys: .model)
        try request.validate()
        if let files = request.files { return try await importModel(request, files, call) }
        let digest = try complete(request.blob ?? "", what: "blob")
        if let held = try await store.model(request.name), held.blob == digest.text { return try Response(json: held) }
        let report: ModelReport
        do { report = try await inspectedModel(blobs.path(digest)) } catch let problem as Problem {
            if problem.kind == .unsupportedModel { try await release(digest.text) }
            throw problem
        }
        let record = ModelRecord(
            name: request.name, blob: digest.text, ownerUid: call.caller.uid, createdAt: now().inWholeSeconds,
            model: report, source: request.source)
        try await store.add(record)
        return try Response(json: record, status: .created, headers: [.location: Endpoint.model(record.name)])
    }

    /// Answers as soon as the files' headers are read and there is room for the result. The same request made again finds
    /// the import, or its model.
    private func importModel(_ request: ModelRequest, _ files: [ModelFile], _ call: Call) async throws -> Response {
        if let held = try await store.model(request.name), held.files == files {
            return try Response(json: ModelImportStatus(done: held))
        }
        if let held = try await store.modelImport(request.name), held.files == files, held.problem == nil {
            return try Response(json: await imports.status(of: held), status: .accepted)
        }
        let sources = try files.map { file in
            WorkOrder.SourceFile(name: file.name, path: blobs.path(try complete(file.blob, what: "\"\(file.name)\"")))
        }
        let message: WorkMessage
        do { message = try await answer(to: .planImport(files: sources)) } catch let problem as Problem {
            if problem.kind == .unsupportedModel { for file in files { try await release(file.blob) } }
            throw problem
        }
        guard case .plannedImport(let outputBytes, let peakBytes) = message else { throw wrongAnswer(message) }
        try await requireAllowance(for: call.caller, importBytes: outputBytes)
        try await imports.requireRoom(outputBytes: outputBytes, peakBytes: peakBytes)
        let status = try await imports.add(
            StoredImport(
                name: request.name, id: "i-" + Hex.text(withUnsafeBytes(of: random().bigEndian) { Array($0) }),
                ownerUid: call.caller.uid, createdAt: now().inWholeSeconds, files: files, source: request.source,
                totalBytes: outputBytes, peakBytes: peakBytes))
        return try Response(
            json: status, status: .accepted, headers: [.location: Endpoint.modelImport(request.name)])
    }

    func showImport(_ call: Call) async throws -> Response {
        let name = call.parameters[0]
        if let stored = try await store.modelImport(name) { return try Response(json: await imports.status(of: stored)) }
        guard let record = try await store.model(name) else {
            throw Problem(.notFound, "there is no import of a model \"\(name.prefix(80))\"")
        }
        return try Response(json: ModelImportStatus(done: record))
    }

    func listModels(_ call: Call) async throws -> Response {
        var statuses: [ModelImportStatus] = []
        for stored in try await store.imports() { statuses.append(await imports.status(of: stored)) }
        return try Response(
            json: ModelList(models: try await store.models(), imports: statuses.isEmpty ? nil : statuses))
    }

    func showModel(_ call: Call) async throws -> Response { try Response(json: try await model(call.parameters[0])) }

    /// Also ends an import of that name, or forgets one that failed.
    func removeModel(_ call: Call) async throws -> Response {
        let name = call.parameters[0]
        if let stored = try await store.modelImport(name) {
            try call.caller.require(ownerOf: "import \"\(stored.name)\"", uid: stored.ownerUid)
            try await imports.remove(stored)
            return Response(status: .noContent)
        }
        let record = try await model(name)
        try call.caller.require(ownerOf: "model \"\(record.name)\"", uid: record.ownerUid)
        try await store.removeModel(record.name)
        try await release(record.blob)
        return Response(status: .noContent)
    }

    private func model(_ name: String) async throws -> ModelRecord {
        guard let record = try await store.model(name) else {
            throw Problem(.notFound, "there is no model \"\(name.prefix(80))\"", hint: try await importHint(name))
        }
        return record
    }

    /// What to tell who wants a model that is on its way in.
    func importHint(_ name: String) async throws -> String? {
        guard let stored = try await store.modelImport(name) else { return nil }
        return stored.problem == nil ? "it is being imported: edgetune models list" : "its import failed: edgetune models list"
    }
}
