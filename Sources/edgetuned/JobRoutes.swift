// Routes of jobs, of the plan, and of the daemon itself.
import EdgeJobs
import EdgeWire
import Foundation
import HTTPTypes
import HummingbirdCore
import NIOCore

extension Daemon {
    func health(_ call: Call) async throws -> Response {
        try await store.ping()
        return try Response(json: ["status": "ok", "version": Edgetuned.version])
    }

    func status(_ call: Call) async throws -> Response {
        let memory = HostMemory(host)
        let policies = config.now.policies
        let conditions = HostConditions(host, disk: places.state)
        let temperatures = conditions.zones.map {
            HostStatus.Temperature(
                zone: $0.name, celsius: $0.celsius, limitCelsius: policies.limit(of: $0, in: conditions.zones))
        }
        var status = HostStatus(
            version: Edgetuned.version, startedAt: startedAt, kernelSet: kernelSet,
            cores: ProcessFacts.coreCount, memoryTotalBytes: memory.total.bytes,
            memoryAvailableBytes: memory.available.bytes, diskFreeBytes: BlobStore.freeBytes(places.state),
            temperatures: temperatures, runningJobs: await queue.runningJobs,
            queuedJobs: try await store.count(of: .queued), models: try await store.modelCount(),
            adapters: try await store.adapterCount())
        status.policies = policies.report(conditions, pressure: MemoryPressure(host.text("/proc/pressure/memory")))
        status.waits = await queue.waits
        return try Response(json: status)
    }

    // MARK: plan and submit

    func plan(_ call: Call) async throws -> Response {
        let request = try await jobRequest(call)
        return try Response(json: try await plan(request, files: try await files(of: request, call.caller), call.caller))
    }

    func methods(_ call: Call) async throws -> Response {
        let request = try await decodedBody(MethodsRequest.self, of: call, keys: .methods)
        var job = request.job(adapter: "lora")
        try job.validate()
        job.threads = config.now.threads
        let model = try await model(named: job.baseModel)
        let budget = try await budget(asked: job.memoryBudget)
        await calibrate(job)
        var order = WorkOrder.MethodsOrder(
            request: request, modelPath: blobs.path(try BlobDigest(model.blob)), threads: job.threads ?? ProcessFacts.coreCount,
            budgetBytes: budget.bytes, budgetReason: budget.name)
        order.calibrationPath = places.calibration(of: job, kernelSet: kernelSet)
        order.availableBytes = HostMemory(host).available.bytes
        let message = try await answer(to: .compareMethods(order))
        guard case .comparedMethods(let table) = message else { throw wrongAnswer(message) }
        return try Response(json: table)
    }

    func submit(_ call: Call) async throws -> Response {
        let request = try await jobRequest(call)
        if let priority = request.priority, priority > 0, call.caller.role < .admin {
            throw Problem(
                .notPermitted, "priority \(priority) is above 0, which is for administrators",
                hint: "0, or less to let others go first")
        }
        let key = try idempotencyKey(call, request)
        if let key, let existing = try await store.submitted(key, ownerUid: call.caller.uid) {
            return try Response(json: JobStatus(existing))
        }
        let files = try await files(of: request, call.caller)
        let plan = try await plan(request, files: files, call.caller)
        let now = now().inWholeSeconds
        let id = JobID.make(now: self.now(), random: random())
        let job = Job(
            id: id, name: request.name ?? id, ownerUid: call.caller.uid, createdAt: now, request: request,
            modelBlob: files.model, datasetBlobs: files.datasets, plan: plan)
        let ownLimit = call.caller.role == .admin ? nil : config.now.queuedJobsPerUser
        switch try await store.submit(job, key: key, queueLimit: config.now.queuedJobs, ownLimit: ownLimit, at: now) {
        case .existing(let job): return try Response(json: JobStatus(job))
        case .created(let job):
            logger.info("\(job.id) \(job.name) submitted by uid \(job.ownerUid)")
            queue.submitted()
            return try Response(json: JobStatus(job), status: .created, headers: [.location: Endpoint.job(job.id)])
        }
    }

    func jobRequest(_ call: Call) async throws -> JobRequest {
        var request = try await decodedBody(JobRequest.self, of: call, keys: .job)
        try request.validate()
        request.threads = request.threads ?? config.now.threads
        return request
    }

    private func idempotencyKey(_ call: Call, _ request: JobRequest) throws -> IdempotencyKey? {
        guard let text = call.header(Header.idempotencyKey) else { return nil }
        guard (1...WireLimit.idempotencyKeyBytes).contains(text.utf8.count) else {
            throw Problem(
                .invalidValue, "\(Header.idempotencyKey) has \(text.utf8.count) bytes; use 1 to \(WireLimit.idempotencyKeyBytes)")
        }
        return try IdempotencyKey(key: text, request: request)
    }

    private func model(named name: String) async throws -> ModelRecord {
        if let model = try await store.model(name) { return model }
        let known = try await store.models().map(\.name)
        throw Problem(
            .notFound, "there is no model \"\(name.prefix(80))\"",
            hint: try await importHint(name) ?? Wire.nearest(to: name, among: known).map { "did you mean \"\($0)\"?" }
                ?? "edgetune models add FILE.gguf")
    }

    /// What the request's names mean now.
    func files(of request: JobRequest, _ caller: Caller) async throws -> (model: String, datasets: [String]) {
        let model = try await model(named: request.baseModel)
        var datasets: [String] = []
        for reference in request.datasets { datasets.append(try await datasetBlob(reference.path, caller)) }
        return (model.blob, datasets)
    }

    /// Of a data set that is named, or of an upload by its digest.
    func datasetBlob(_ name: String, _ caller: Caller) async throws -> String {
        guard name.hasPrefix("sha256:") else {
            guard let dataset = try await store.dataset(name) else {
                throw Problem(.notFound, "there is no data set \"\(name.prefix(80))\"")
            }
            try caller.require(ownerOf: "data set \"\(dataset.name)\"", uid: dataset.ownerUid)
            return dataset.blob
        }
        let digest = try BlobDigest(name)
        guard blobs.status(digest).complete else {
            throw Problem(.notFound, "there is no data set \(digest.text)", hint: "upload it first")
        }
        return digest.text
    }

    private func plan(
        _ request: JobRequest, files: (model: String, datasets: [String]), _ caller: Caller
    ) async throws -> PlanReport {
        let budget = try await budget(asked: request.memoryBudget)
        await calibrate(request)
        var order = WorkOrder.TrainOrder(
            job: "", request: request, modelPath: blobs.path(try BlobDigest(files.model)),
            modelDigest: files.model,
            datasetPaths: try files.datasets.map { blobs.path(try BlobDigest($0)) }, directory: "",
            budgetBytes: budget.bytes, budgetReason: budget.name, defaultSaveSteps: config.now.defaultSaveSteps)
        if let name = request.initFromAdapter {
            order.initialAdapterDirectory = try await adapterDirectoryNamed(name, for: caller)
        }
        if let name = request.originalModel {
            let original = try await model(named: name).blob
            (order.originalModelPath, order.originalModelDigest) = (blobs.path(try BlobDigest(original)), original)
        }
        order.calibrationPath = places.calibration(of: request, kernelSet: kernelSet)
        order.availableBytes = HostMemory(host).available.bytes
        let key = try RecentPlans.key(
            order, freeDisk: BlobStore.freeBytes(order.modelPath), modelBytes: blobs.status(try BlobDigest(files.model)).receivedBytes)
        if let plan = recentPlans.plan(key) { return plan }
        let message: WorkMessage
        do { message = try await answer(to: .plan(order)) } catch var problem as Problem {
            if problem.kind == .insufficientMemory { problem.detail += "; the budget is \(budget.name)" }
            throw problem
        }
        guard case .planned(let plan) = message else { throw wrongAnswer(message) }
        recentPlans.keep(plan, for: key)
        return plan
    }

    /// Measures the board for this request's plan, once, and not beside a job that would disturb it. Without a measurement
    /// there are plans without times.
    private func calibrate(_ request: JobRequest) async {
        let path = places.calibration(of: request, kernelSet: kernelSet)
        guard !FileManager.default.fileExists(atPath: path), await queue.runningJobs.isEmpty else { return }
        let threads = request.threads ?? ProcessFacts.coreCount
        let order = WorkOrder.CalibrateOrder(precision: request.precision, threads: threads, path: path)
        do { _ = try await answer(to: .calibrate(order)) } catch {
            logger.warning("the board could not be measured: \(error)")
        }
    }

    // MARK: jobs

    func listJobs(_ call: Call) async throws -> Response {
        let limit = try call.number("limit", default: WireLimit.listedJobs, in: 1...WireLimit.listedJobs)
        var state: JobState?
        if let text = call.query("state") {
            guard let known = JobState(rawValue: text) else {
                throw Problem(
                    .invalidValue, "state=\(text.prefix(32)) is not a state",
                    hint: "one of " + JobState.allCases.map(\.rawValue).joined(separator: ", "))
            }
            state = known
        }
        return Response(jsonText: try await store.listing(in: state, limit: limit) { call.caller.owns($0) })
    }

    func showJob(_ call: Call) async throws -> Response {
        try Response(json: JobStatus(try await job(call), for: call.caller))
    }

    func deleteJob(_ call: Call) async throws -> Response {
        try await delete(try await ownJob(call))
        return Response(status: .noContent)
    }

    func act(_ action: JobAction, _ call: Call) async throws -> Response {
        let job = try await ownJob(call)
        return try Response(json: JobStatus(try await queue.act(action, on: job.id)))
    }

    func jobLog(_ call: Call) async throws -> Response {
        let job = try await ownJob(call)
        return Response(
            status: .ok, headers: [.contentType: "text/plain; charset=utf-8"],
            body: ResponseBody(byteBuffer: ByteBuffer(bytes: try log.read(job.id))))
    }

    func job(_ call: Call) async throws -> Job {
        let id = call.parameters[0]
        guard JobID.isValid(id), let job = try await store.job(id) else {
            throw Problem(.notFound, "there is no job \(id.prefix(80))")
        }
        return job
    }

    private func ownJob(_ call: Call) async throws -> Job {
        let job = try await job(call)
        try call.caller.require(ownerOf: "job \(job.id)", uid: job.ownerUid)
        return job
    }

    func removeDirectory(_ path: String) throws {
        guard FileManager.default.fileExists(atPath: path) else { return }
        try FileManager.default.removeItem(atPath: path)
    }

    // MARK: events

    /// Lines until the job's `end`, or until nothing more is stored with `follow=0`.
    func events(_ call: Call) async throws -> Response {
        let job = try await ownJob(call)
        let after = try call.number("after", default: 0, in: 0...Int.max)
        let follows = try call.number("follow", default: 1, in: 0...1) == 1
        // Here, and not in the stream: a cursor that is too old is a status of its own.
        _ = try await store.events(of: job.id, after: after, limit: 1)
        let follower = EventFollower(job: job.id, store: store, now: now)
        return Response(
            status: .ok, headers: [.contentType: Header.jsonLines],
            body: ResponseBody { writer in
                do {
                    try await follower.send(after: after, follow: follows ? .untilEnd : .whatIsStored, through: &writer)
                } catch let problem as Problem {
                    // The status line is out: the problem is the last line.
                    try await writer.write(follower.line(0, .problem(problem)))
                }
                try await writer.finish(nil)
            })
    }
}

/// One reader of a job's events. It is as slow as its client, of whom StallGuard has some patience: it holds a page of events
/// and a cursor.
struct EventFollower: Sendable {
    enum Extent { case whatIsStored, untilEnd }

    let job: String
    let store: JobStore
    let now: @Sendable () -> Date

    private static let heartbeat = Duration.seconds(15)
    private static let eventsPerRead = 64

    func line(_ seq: Int, _ event: JobEvent.Kind) throws -> ByteBuffer {
        var buffer = ByteBuffer(bytes: try Wire.encoder().encode(JobEvent(seq: seq, at: now(), event: event)))
        buffer.writeString("\n")
        return buffer
    }

    func send(after: Int, follow: Extent, through writer: inout any ResponseBodyWriter) async throws {
        var cursor = after
        while true {
            // Watched before the read: what is stored in between ends the wait.
            let changes = store.changes.watch(job)
            // Asked before the events are read: those of a finished job are then all there.
            let state = try await store.job(job)?.state
            let page = try await store.events(of: job, after: cursor, limit: Self.eventsPerRead)
            if !page.isEmpty {
                cursor = page[page.count - 1].seq
                try await writer.write(ByteBuffer(string: page.map { $0.line + "\n" }.joined()))
                continue
            }
            guard let state else { return }
            if state.isFinal {
                // The stored `end` is behind the cursor; the answer ends with one all the same.
                if cursor == after { try await writer.write(try line(cursor, .end(state))) }
                return
            }
            guard follow == .untilEnd, !Task.isCancelled else { return }
            if await !changed(changes) { try await writer.write(try line(cursor, .heartbeat)) }
        }
    }

    /// False after a heartbeat's time without a change.
    private func changed(_ changes: AsyncStream<Void>) async -> Bool {
        await withTaskGroup(of: Bool.self) { group in
            group.addTask {
                for await _ in changes { return true }
                return false
            }
            group.addTask {
                try? await Task.sleep(for: Self.heartbeat)
                return false
            }
            let first = await group.next() ?? false
            group.cancelAll()
            return first
        }
    }
}
