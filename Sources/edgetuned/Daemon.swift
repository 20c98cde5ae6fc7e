// What every route needs, in one value: the store, the queue, the blobs, and how to run a worker for a small order.
import EdgeJobs
import EdgeWire
import Foundation
import Logging
import Synchronization

/// The configuration that is in force; SIGHUP replaces it.
final class LiveConfig: Sendable {
    private let value: Mutex<DaemonConfig>
    init(_ config: DaemonConfig) { value = Mutex(config) }
    var now: DaemonConfig { value.withLock { $0 } }
    func replace(with config: DaemonConfig) { value.withLock { $0 = config } }
}

/// At most so many at once; more are told so instead of being queued.
final class Gate: Sendable {
    private let free: Mutex<Int>
    private let problem: Problem

    init(limit: Int, otherwise problem: Problem) {
        free = Mutex(limit)
        self.problem = problem
    }

    /// - Throws: the gate's problem.
    func pass() throws -> Pass {
        let entered = free.withLock { free in
            guard free > 0 else { return false }
            free -= 1
            return true
        }
        guard entered else { throw problem }
        return Pass(self)
    }

    /// Given back once: by `leave`, or when nobody holds it any more, as an answer that its client did not wait for.
    final class Pass: Sendable {
        private let gate: Mutex<Gate?>
        fileprivate init(_ gate: Gate) { self.gate = Mutex(gate) }
        deinit { leave() }

        func leave() {
            let left = gate.withLock { gate in
                defer { gate = nil }
                return gate
            }
            left?.free.withLock { $0 += 1 }
        }
    }
}

/// Orders with one answer, each in a worker of its own.
struct SmallOrders: Sendable {
    let worker: WorkerLaunch
    let logger: Logger

    func answer(to order: WorkOrder) async throws -> WorkMessage {
        let run = try await WorkerProcess.run(worker, order) { _ in }
        if !run.stderr.isEmpty { logger.info("worker: \(run.stderr.prefix(2000))") }
        if case .answered(let message) = run.end {
            if case .failure(let problem) = message { throw problem }
            return message
        }
        throw run.end.problem(last: nil, stderr: run.stderr) ?? Problem(.internalError, "the worker did not answer")
    }

    func inspectedModel(_ path: String) async throws -> ModelReport {
        let message = try await answer(to: .inspectModel(path: path))
        guard case .inspectedModel(let report) = message else { throw wrongAnswer(message) }
        return report
    }

    func wrongAnswer(_ message: WorkMessage) -> Problem {
        logger.error("a worker answered another order: \(message)")
        return Problem(.internalError, "the worker gave an answer to another order")
    }
}

struct Daemon: Sendable {
    let config: LiveConfig
    let places: Places
    let store: JobStore
    let queue: JobQueue
    let blobs: BlobStore
    let imports: ModelImports
    let log: JobLog
    let worker: WorkerLaunch
    let host: HostFiles
    let access: AccessRules
    let logger: Logger
    let startedAt: Date
    let kernelSet: String
    let now: @Sendable () -> Date
    let random: @Sendable () -> UInt64

    let generating = Gate(
        limit: 1, otherwise: Problem(.queueFull, "one generation runs already", hint: "try again when it is done"))
    let merging = Gate(
        limit: 1, otherwise: Problem(.queueFull, "one merge runs already", hint: "try again when it is done"))
    let composing = Gate(
        limit: 1, otherwise: Problem(.queueFull, "one composition runs already", hint: "try again when it is done"))
    let ranking = Gate(
        limit: 1, otherwise: Problem(.queueFull, "ranks of one job are looked for already", hint: "try again when that is done"))
    /// Plans, imports and exports: each is a process with a model's header and a data set in it.
    let smallOrders = Gate(
        limit: 4, otherwise: Problem(.queueFull, "four plans or imports run already", hint: "try again in a moment"))

    let bodies = BodyMemory()
    let recentPlans = RecentPlans()

    /// Runs a worker for an order with one answer. A problem that it answers with is thrown.
    func answer(to order: WorkOrder) async throws -> WorkMessage {
        let pass = try smallOrders.pass()
        defer { pass.leave() }
        return try await SmallOrders(worker: worker, logger: logger).answer(to: order)
    }

    func inspectedModel(_ path: String) async throws -> ModelReport {
        let pass = try smallOrders.pass()
        defer { pass.leave() }
        return try await SmallOrders(worker: worker, logger: logger).inspectedModel(path)
    }

    func wrongAnswer(_ message: WorkMessage) -> Problem {
        SmallOrders(worker: worker, logger: logger).wrongAnswer(message)
    }

    func budget(asked: String?) async throws -> MemoryBound {
        var running: UInt64 = 0
        // Of jobs that train together each says what the process holds.
        for id in await queue.runningJobs { running = max(running, try await store.job(id)?.progress?.rssBytes ?? 0) }
        return HostMemory(host).budget(asked: asked, allowed: config.now.memoryBudget, running: running)
    }

    /// For work beside the queue. While a job runs only a small share: a training run is never starved for an answer.
    func sideBudget() async -> MemoryBound {
        let isAlone = await queue.runningJobs.isEmpty
        return HostMemory(host).budget(
            asked: nil, allowed: isAlone ? config.now.memoryBudget : config.now.generateMemoryBudget)
    }

    /// Removes a blob that nothing names any more.
    func release(_ blob: String) async throws {
        guard try await store.releaseBlob(blob) else { return }
        await blobs.remove(try BlobDigest(blob))
    }
}
