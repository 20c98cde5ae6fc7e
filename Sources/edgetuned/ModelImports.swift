// Imports of models of several files: one at a time, each in a worker of its own. The store has an import before its worker
// starts; a daemon that was killed goes on with it. Only the worker writes an import's directory, and what it made there is
// moved to the blobs when it is complete.
import EdgeJobs
import EdgeWire
import Foundation
import Logging

/// What imports need of the daemon, handed in by `serve`.
struct ModelImportSettings: Sendable {
    var worker: WorkerLaunch
    /// One directory per import.
    var directory: String
    /// What an import may hold now, and what says so.
    var budget: @Sendable () async throws -> MemoryBound
    /// Why nothing that needs these bytes may start now; nil: it may.
    var obstacle: @Sendable (_ plannedBytes: UInt64) -> String?
    var runGroup: @Sendable (_ name: String, _ plannedBytes: UInt64) -> RunGroup?
    /// Looks at what was made, in a worker of its own.
    var inspect: @Sendable (_ path: String) async throws -> ModelReport
    var now: @Sendable () -> Date
}

actor ModelImports {
    private let store: JobStore
    private let blobs: BlobStore
    private let settings: ModelImportSettings
    private let logger: Logger
    private let wakes: AsyncStream<Void>
    private let wake: AsyncStream<Void>.Continuation
    private var running: (id: String, control: WorkerControl, writtenBytes: UInt64)?
    private var isStopping = false

    /// Days that what nobody went on with is kept: uploads, their partial files, failed imports.
    static let keptDays = 7.0

    init(store: JobStore, blobs: BlobStore, settings: ModelImportSettings, logger: Logger) {
        self.store = store
        self.blobs = blobs
        self.settings = settings
        self.logger = logger
        (wakes, wake) = AsyncStream.makeStream(bufferingPolicy: .bufferingNewest(1))
    }

    /// Removes what interrupted imports and uploads left and nobody will go on with. Before `run`.
    func recover() async throws {
        let limit = settings.now().addingTimeInterval(-Self.keptDays * 86400)
        await blobs.removeAbandoned(olderThan: limit)
        for old in try await store.imports() where old.problem != nil && old.createdAt < limit {
            try await removeBlobs(store.removeImport(old))
        }
        try await removeBlobs(store.sweepBlobs(present: blobs.present(), before: limit))
        try await removeStrayDirectories()
    }

    /// Runs imports until `stop`. Throws when the store can no longer be written.
    func run() async throws {
        wake.yield()
        for await _ in wakes {
            while !isStopping, let next = try await store.nextImport() { try await runOnce(next) }
            if isStopping { return }
        }
    }

    /// The worker is killed: what it has written it goes on from.
    func stop() async {
        isStopping = true
        wake.yield()
        while let running {
            running.control.kill()
            try? await Task.sleep(for: .milliseconds(20))
        }
    }

    /// Throws a problem when there is no room on the disk or in memory for it now.
    func requireRoom(outputBytes: UInt64, peakBytes: UInt64) async throws {
        try blobs.requireFree(outputBytes, what: "are to be written")
        let budget = try await settings.budget()
        guard peakBytes <= budget.bytes else {
            throw Problem(
                .insufficientMemory,
                "the import needs \(peakBytes >> 20) MiB of memory, \(budget.bytes >> 20) MiB are allowed: \(budget.name)",
                hint: "try again when more is free; the files that were uploaded are kept", requiredBytes: peakBytes,
                budgetBytes: budget.bytes)
        }
        if let obstacle = settings.obstacle(peakBytes) {
            throw Problem(
                .insufficientMemory, "the import cannot start now: \(obstacle)",
                hint: "try again when more is free; the files that were uploaded are kept", requiredBytes: peakBytes,
                budgetBytes: budget.bytes)
        }
    }

    /// Stores the import and sees to it that it runs.
    func add(_ new: StoredImport) async throws -> ModelImportStatus {
        let (stored, released) = try await store.add(new)
        // Whatever goes wrong from here on, what is stored runs.
        wake.yield()
        await removeBlobs(released)
        if running == nil { try await removeStrayDirectories() }
        return status(of: stored)
    }

    func remove(_ removed: StoredImport) async throws {
        await removeBlobs(try await store.removeImport(removed))
        // Its directory goes when its worker has gone.
        if let running, running.id == removed.id { running.control.kill() } else { try await removeStrayDirectories() }
    }

    func status(of stored: StoredImport) -> ModelImportStatus {
        let run = running.flatMap { $0.id == stored.id ? $0 : nil }
        return ModelImportStatus(
            name: stored.name, state: stored.problem != nil ? .failed : run == nil ? .waiting : .running,
            ownerUid: stored.ownerUid, createdAt: stored.createdAt, writtenBytes: run?.writtenBytes ?? 0,
            totalBytes: stored.totalBytes, peakBytes: stored.peakBytes, problem: stored.problem)
    }

    // MARK: one import

    private func runOnce(_ next: StoredImport) async throws {
        let control = WorkerControl()
        running = (next.id, control, 0)
        defer { running = nil }
        do {
            // Since it was asked for another one may have run.
            try await requireRoom(outputBytes: next.totalBytes, peakBytes: next.peakBytes)
            let directory = "\(settings.directory)/\(next.id)"
            try DurableDirectory.make(directory)
            let output = directory + "/model.gguf"
            try await write(next, to: output, control)
            if isStopping { return }
            let report = try await settings.inspect(output)
            try await publish(next, output, report)
            logger.info("model \(next.name) imported from \(next.files.count) files, \(report.fileBytes) bytes")
        } catch {
            // Killed by `stop`: it goes on after a restart.
            guard !isStopping else { return }
            try await fail(next, error as? Problem ?? Problem(.internalError, "\(error)"))
        }
        try await removeStrayDirectories()
    }

    private func write(_ next: StoredImport, to output: String, _ control: WorkerControl) async throws {
        let files = try next.files.map { WorkOrder.SourceFile(name: $0.name, path: blobs.path(try BlobDigest($0.blob))) }
        let group = settings.runGroup("import-\(next.id)", next.peakBytes)
        let order = WorkOrder.importModel(
            .init(files: files, outputPath: output, outputBytes: next.totalBytes, controlGroup: group?.directory))
        let outcome: Result<WorkerRun, any Error>
        do {
            outcome = .success(
                try await WorkerProcess.run(settings.worker, order, control: control) { message in
                    await self.took(message, of: next)
                })
        } catch { outcome = .failure(error) }
        let report = await group?.end()
        let run = try outcome.get()
        if !run.stderr.isEmpty { logger.info("worker: \(run.stderr.prefix(2000))") }
        switch run.end {
        case .answered(.importedModel): return
        case .answered(.failure(let problem)): throw problem
        default:
            throw run.end.problem(last: nil, stderr: run.stderr, group: report)
                ?? Problem(.internalError, "the worker gave an answer to another order")
        }
    }

    private func took(_ message: WorkMessage, of taken: StoredImport) {
        switch message {
        case .imported(let bytes): running?.writtenBytes = bytes
        case .log(let text): logger.info("import of \(taken.name): \(text)")
        default: break
        }
    }

    private func publish(_ done: StoredImport, _ output: String, _ report: ModelReport) async throws {
        let digest = try await BlobStore.digest(ofFile: output)
        let now = settings.now()
        // Stored first: a file that nobody knows of would be removed at the next start, and the import made anew.
        try await store.addBlob(digest.text, bytes: report.fileBytes, ownerUid: done.ownerUid, at: now)
        try await blobs.adopt(output, as: digest)
        let record = ModelRecord(
            name: done.name, blob: digest.text, ownerUid: done.ownerUid, createdAt: now, model: report, files: done.files,
            source: done.source)
        if let released = try await store.finish(done, as: record) {
            await removeBlobs(released)
        } else if try await store.releaseBlob(digest.text) {
            await blobs.remove(digest)
        }
    }

    private func fail(_ failed: StoredImport, _ problem: Problem) async throws {
        logger.error("import of \(failed.name): \(problem.detail)")
        let sources: JobStore.Sources = problem.mayPass ? .kept : .released
        await removeBlobs(try await store.fail(failed, problem, sources: sources) ?? [])
        if sources == .released { removeDirectory(failed.id) }
    }

    // MARK: files

    private func removeBlobs(_ digests: [String]) async {
        for digest in digests {
            // Stored digests were checked when they came in.
            guard let digest = try? BlobDigest(digest) else { continue }
            await blobs.remove(digest)
        }
    }

    /// Of imports that the store does not have.
    private func removeStrayDirectories() async throws {
        let names: [String]
        do { names = try FileManager.default.contentsOfDirectory(atPath: settings.directory) } catch {
            // They are looked for after every import, and at every start.
            logger.error("\(settings.directory) cannot be read: \(error)")
            return
        }
        let known = Set(try await store.imports().map(\.id))
        for name in names where !known.contains(name) { removeDirectory(name) }
    }

    private func removeDirectory(_ name: String) {
        let path = "\(settings.directory)/\(name)"
        guard FileManager.default.fileExists(atPath: path) else { return }
        do { try FileManager.default.removeItem(atPath: path) } catch { logger.error("\(path) cannot be removed: \(error)") }
    }
}
