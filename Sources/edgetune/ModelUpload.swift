// A model's files to a model of the daemon: uploaded, registered, and followed until the daemon has made one file of them.
import EdgeWire
import Foundation

enum ModelUpload {
    /// Uploads what is at `path` and names it.
    static func add(_ source: ModelSource, name: String?, to client: DaemonClient) async throws -> ModelRecord {
        let held = try await client.get(ModelList.self, Endpoint.models)
        switch source.form {
        case .single(let file):
            let digest = try BlobUpload.digest(of: file)
            let chosen = ModelName(given: name, proposed: source.name, files: nil, digest: digest)
            if let same = chosen.same(in: held) { return same }
            try await BlobUpload.send(file, as: digest, to: client)
            return try await register(ModelRequest(name: chosen.free(in: held), blob: digest), on: client)
        case .several(let files):
            var listed: [ModelFile] = []
            for file in files { listed.append(ModelFile(name: file.name, blob: try BlobUpload.digest(of: file))) }
            let chosen = ModelName(given: name, proposed: source.name, files: listed, digest: listed[0].blob)
            if let same = chosen.same(in: held) { return same }
            try await requireRoom(for: zip(listed, files).map { ($0.blob, $1.bytes) }, on: client)
            for (file, entry) in zip(files, listed) { try await BlobUpload.send(file, as: entry.blob, to: client) }
            return try await register(ModelRequest(name: chosen.free(in: held), files: listed), on: client)
        }
    }

    /// Before the first byte is sent: what is to come has to fit the daemon's disk together.
    static func requireRoom(for blobs: [(digest: String, bytes: UInt64)], on client: DaemonClient) async throws {
        var missing: UInt64 = 0
        for blob in blobs {
            let held = try await BlobUpload.status(of: blob.digest, on: client)
            if !held.complete { missing += blob.bytes - min(blob.bytes, held.receivedBytes) }
        }
        let free = try await client.get(HostStatus.self, Endpoint.status).diskFreeBytes
        guard missing <= free else {
            throw CommandFailure(
                .doesNotFit, "\(Amount.bytes(missing)) are to come, \(Amount.bytes(free)) are free on the daemon's disk",
                hint: "beside them the daemon needs room for the one file that it makes of them")
        }
    }

    static func register(_ request: ModelRequest, on client: DaemonClient) async throws -> ModelRecord {
        guard request.files != nil else {
            return try await client.repeated { () async throws(DaemonError) in
                try await client.post(ModelRecord.self, Endpoint.models, request)
            }
        }
        let interrupt = InterruptExit(
            saying: "detached; the import goes on. `edgetune models list` shows it, "
                + "`edgetune models remove \(request.name)` ends it")
        defer { interrupt.cancel() }
        let line = StatusLine()
        defer { line.clear() }
        var status = try await client.repeated { () async throws(DaemonError) in
            try await client.post(ModelImportStatus.self, Endpoint.models, request)
        }
        let path = Endpoint.modelImport(client.escaped(request.name))
        while true {
            switch status.state {
            case .done:
                guard let record = status.record else { throw DaemonError.unreadable("an import without its model") }
                return record
            case .failed:
                throw CommandFailure(status.problem ?? Problem(.internalError, "the import failed"))
            case .waiting: line.draw("waits for another import")
            case .running:
                line.draw(
                    ProgressLine.transfer(
                        "import", request.name, done: status.writtenBytes, of: status.totalBytes, width: line.width))
            }
            try await Task.sleep(for: .milliseconds(500))
            status = try await client.repeated { () async throws(DaemonError) in
                try await client.get(ModelImportStatus.self, path)
            }
        }
    }
}

/// What a model is to be called: as somebody said, or the proposed name, with digits of a digest where that is taken.
struct ModelName {
    let given: String?
    let proposed: String
    /// Of a model of several files.
    let files: [ModelFile]?
    /// Of its file, or of the first of several.
    let digest: String

    /// The model that is there already, unless it has another name than the given one.
    func same(in held: ModelList) -> ModelRecord? {
        held.models.first { record in
            (given == nil || record.name == given) && (files.map { $0 == record.files } ?? (record.blob == digest))
        }
    }

    func free(in held: ModelList) -> String {
        if let given { return given }
        // An import that failed or runs is gone on with under its name; another one's name the daemon refuses.
        let isTaken = held.models.contains { $0.name == proposed }
        return isTaken ? "\(proposed)-\(digest.dropFirst("sha256:".count).prefix(8))" : proposed
    }
}
