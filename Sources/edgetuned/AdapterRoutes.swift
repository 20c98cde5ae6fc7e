// Routes of adapters: their files are streamed from the job's directory; two forms are made on demand by a worker and
// kept in the cache, which may be emptied at any time.
import EdgeJobs
import EdgeWire
import Foundation
import HTTPTypes
import HummingbirdCore
import NIOCore

extension Daemon {
    func listAdapters(_ call: Call) async throws -> Response {
        try Response(json: AdapterList(adapters: try await store.adapters().filter { call.caller.owns($0.ownerUid) }.map(record)))
    }

    func showAdapter(_ call: Call) async throws -> Response { try Response(json: record(try await adapter(call))) }

    /// Of another program, or of this one on another machine.
    func addAdapter(_ call: Call) async throws -> Response {
        let request = try await decodedBody(AdapterImportRequest.self, of: call, keys: .importingAdapter)
        try requireName(request.name)
        guard let model = try await store.model(request.baseModel) else {
            throw Problem(
                .notFound, "there is no model \"\(request.baseModel.prefix(80))\"", hint: "edgetune models list")
        }
        let digests = try [("tensors", request.tensors), ("config", request.config)].compactMap { what, blob in
            try blob.map { try complete($0, what: what) }
        }
        let adapter = try await newAdapter(
            request.name, of: (model.name, model.blob), call.caller
        ) { directory in
            .importAdapter(
                .init(
                    tensorsPath: blobs.path(digests[0]), configPath: digests.dropFirst().first.map(blobs.path),
                    modelPath: blobs.path(try BlobDigest(model.blob)), baseModel: model.name, outputDirectory: directory,
                    budgetBytes: await sideBudget().bytes))
        }
        for digest in digests { try await release(digest.text) }
        return try created(adapter)
    }

    /// Of adapters that are the caller's own.
    func combineAdapters(_ call: Call) async throws -> Response {
        let request = try await decodedBody(CombinationRequest.self, of: call, keys: .combination)
        try request.validate()
        try requireName(request.name)
        let parts = try await adaptersOfOneModel(request.adapters.map(\.adapter), call.caller)
        let modelPath = try modelPath(of: parts[0])
        return try created(
            try await newAdapter(request.name, of: (parts[0].baseModel, parts[0].modelBlob), call.caller) { output in
                .combineAdapters(
                    .init(
                        request: request, adapterDirectories: parts.map { self.directory(of: $0) }, modelPath: modelPath,
                        baseModel: parts[0].baseModel, outputDirectory: output, budgetBytes: await sideBudget().bytes))
            })
    }

    /// - Parameter names: at least one.
    func adaptersOfOneModel(_ names: [String], _ caller: Caller) async throws -> [StoredAdapter] {
        var adapters: [StoredAdapter] = []
        for name in names { adapters.append(try await adapter(named: name, for: caller)) }
        if let other = adapters.first(where: { $0.modelBlob != adapters[0].modelBlob }) {
            throw Problem(
                .conflict, "\(adapters[0].name) is an adapter of \(adapters[0].baseModel), \(other.name) of \(other.baseModel)",
                hint: "adapters of one model can be combined")
        }
        return adapters
    }

    /// What a worker publishes by `order`, which gets the directory to make.
    private func newAdapter(
        _ name: String, of model: (name: String, blob: String), _ caller: Caller, order: (_ directory: String) async throws -> WorkOrder
    ) async throws -> StoredAdapter {
        let adapter = try await unmadeAdapter(name, of: model, caller)
        let directory = queue.directory(of: adapter.job)
        try DurableDirectory.make(directory)
        do {
            let message = try await answer(to: try await order(self.directory(of: adapter)))
            guard case .importedAdapter = message else { throw wrongAnswer(message) }
            try await store.add(adapter)
        } catch {
            try removeDirectory(directory)
            throw error
        }
        return adapter
    }

    /// An adapter as it will be in the store, where there is none of its name.
    func unmadeAdapter(_ name: String, of model: (name: String, blob: String), _ caller: Caller) async throws -> StoredAdapter {
        guard try await store.adapter(name) == nil else {
            throw Problem(.conflict, "there is another adapter \"\(name)\"", hint: "another name, or remove it first")
        }
        return StoredAdapter(
            name: name, job: JobID.make(now: self.now(), random: random()), baseModel: model.name, modelBlob: model.blob,
            ownerUid: caller.uid, createdAt: now().inWholeSeconds)
    }

    private func created(_ adapter: StoredAdapter) throws -> Response {
        try Response(json: record(adapter), status: .created, headers: [.location: Endpoint.adapter(adapter.name)])
    }

    func removeAdapter(_ call: Call) async throws -> Response {
        let adapter = try await adapter(call)
        try await store.removeAdapter(adapter.name)
        try removeDirectory(exportDirectory(of: adapter))
        // Of a job that is still listed only the artifact goes.
        let isListed = try await store.job(adapter.job) != nil
        try removeDirectory(isListed ? directory(of: adapter) : queue.directory(of: adapter.job))
        return Response(status: .noContent)
    }

    func adapterFile(_ call: Call) async throws -> Response {
        let adapter = try await adapter(call)
        let name = try fileName(call)
        if let made = Self.madeOnDemand(name) { return try stream(try await exported(adapter, name, made.format, task: made.task)) }
        return try stream("\(directory(of: adapter))/\(name)")
    }

    /// The file that the path of a request names, which is no path itself.
    func fileName(_ call: Call) throws -> String {
        let name = call.parameters[1]
        guard Wire.isName(name) else { throw Problem(.notFound, "there is no file \"\(name.prefix(80))\"") }
        return name
    }

    /// What is made for a file of this name; nil: it is one that the artifact has, or none.
    private static func madeOnDemand(_ name: String) -> (format: WorkOrder.ExportOrder.Format, task: String?)? {
        let (task, file) = Endpoint.taskAndFile(name)
        return switch file {
        case "adapter_model.safetensors": (.safetensors, task)
        case "adapter.safetensors": (.hubSafetensors, task)
        case "adapter.gguf": (.gguf, task)
        case "adapter_config.json" where task != nil: (.config, task)
        default: nil
        }
    }

    func adapter(_ call: Call) async throws -> StoredAdapter {
        try await adapter(named: call.parameters[0], for: call.caller)
    }

    private func adapter(named name: String, for caller: Caller) async throws -> StoredAdapter {
        guard let adapter = try await store.adapter(name) else {
            throw Problem(.notFound, "there is no adapter \"\(name.prefix(80))\"", hint: "edgetune adapters list")
        }
        try caller.require(ownerOf: "adapter \"\(adapter.name)\"", uid: adapter.ownerUid)
        return adapter
    }

    /// Where the adapter is that a request names.
    func adapterDirectoryNamed(_ name: String, for caller: Caller) async throws -> String {
        directory(of: try await adapter(named: name, for: caller))
    }

    func directory(of adapter: StoredAdapter) -> String { queue.directory(of: adapter.job) + "/adapter" }

    func record(_ adapter: StoredAdapter) -> AdapterRecord {
        let directory = directory(of: adapter)
        return AdapterRecord(
            name: adapter.name, job: adapter.job, baseModel: adapter.baseModel, ownerUid: adapter.ownerUid,
            createdAt: adapter.createdAt, path: directory, files: Self.files(in: directory))
    }

    /// Regular files; none where there is no such directory.
    static func files(in directory: String) -> [AdapterRecord.File] {
        ((try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []).sorted().compactMap { name in
            regularFileBytes("\(directory)/\(name)").map { AdapterRecord.File(name: name, bytes: $0) }
        }
    }

    /// The file of the base that it belongs to, which may have been removed since.
    func modelPath(of adapter: StoredAdapter) throws -> String {
        let path = blobs.path(try BlobDigest(adapter.modelBlob))
        guard Self.regularFileBytes(path) != nil else {
            throw Problem(
                .notFound, "the model \"\(adapter.baseModel)\" that the adapter belongs to has been removed", hint: "add it again: edgetune models add")
        }
        return path
    }

    /// What is made of it is kept here, and may go away at any time.
    func exportDirectory(of adapter: StoredAdapter) -> String { "\(places.exports)/\(adapter.job)" }

    func madeExportDirectory(of adapter: StoredAdapter) throws -> String {
        let directory = exportDirectory(of: adapter)
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        return directory
    }

    /// The path of the made file; made first when the cache does not have it.
    private func exported(
        _ adapter: StoredAdapter, _ name: String, _ format: WorkOrder.ExportOrder.Format, task: String?
    ) async throws -> String {
        let directory = try madeExportDirectory(of: adapter)
        let path = "\(directory)/\(name)"
        if Self.regularFileBytes(path) != nil { return path }
        // Two requests at once make two files; the second rename replaces the first with the same bytes.
        let staging = "\(directory)/.\(random())-\(name)"
        defer { unlink(staging) }
        let message = try await answer(
            to: .export(
                .init(
                    format: format, task: task, adapterDirectory: self.directory(of: adapter),
                    modelPath: try modelPath(of: adapter), outputPath: staging)))
        guard case .exported = message else { throw wrongAnswer(message) }
        guard rename(staging, path) == 0 else {
            throw Problem(.internalError, "\(name) cannot be published: \(String(cString: strerror(errno)))")
        }
        return path
    }

    static func regularFileBytes(_ path: String) -> UInt64? {
        var status = stat()
        guard lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return nil }
        return UInt64(status.st_size)
    }

    func stream(_ path: String) throws -> Response {
        let name = path.split(separator: "/").last ?? ""
        guard let (bytes, file) = openedRegularFile(path) else {
            throw Problem(.notFound, "the adapter has no file \"\(name)\"")
        }
        return Response(
            status: .ok, headers: [.contentType: "application/octet-stream"],
            body: ResponseBody(contentLength: Int(bytes)) { writer in
                defer { try? file.close() }
                var left = Int(bytes)
                while left > 0, let piece = try file.read(upToCount: min(left, 256 << 10)), !piece.isEmpty {
                    try await writer.write(ByteBuffer(bytes: piece))
                    left -= piece.count
                }
                try await writer.finish(nil)
            })
    }
}
