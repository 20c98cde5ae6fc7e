// A daemon put together from its configuration and its directories: the store, the queue, the blobs and the imports as they were
// left, with what was interrupted resolved. Nothing runs yet: tasks, the socket, signals and systemd are Serve.swift's.
import EdgeJobs
import EdgeWire
import Foundation
import Logging

extension Places {
    /// Makes the directories that are missing, for their owner alone.
    func make() throws {
        for directory in [state, jobs, imports, logs, exports, calibrations] {
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        }
        try DurableDirectory.sync(state)
    }
}

extension Daemon {
    /// - Parameters:
    ///   - places: made, and nobody else's.
    ///   - lookInterval: between two looks at the machine; nil: the queue's own.
    static func opened(
        _ config: LiveConfig, _ places: Places, worker: WorkerLaunch, host: HostFiles, access: AccessRules, logger: Logger,
        lookInterval: Duration? = nil
    ) async throws -> Daemon {
        try StrayFiles.requireStore(places)
        let store = try JobStore(path: places.store)
        let blobs = try BlobStore(directory: places.blobs)
        let log = JobLog(directory: places.logs)
        // Before READY, and before there is a worker: the kernel lets a group with processes in it have no children.
        let controlGroup = claimControlGroup(host, logger)
        let kernelSet = (try? ProcessFacts.kernelSet().name) ?? "unknown"
        let obstacle: @Sendable (UInt64) -> String? = {
            startObstacle(
                planned: $0, memory: HostMemory(host), pressure: MemoryPressure(host.text("/proc/pressure/memory")))
        }
        let runGroup: @Sendable (String, UInt64) -> RunGroup? = { name, planned in
            do { return try controlGroup?.makeRun(name, planned: planned, cpuQuota: config.now.scheduling.cpuQuota) } catch {
                logger.error("\(name) runs without a cgroup of its own: \(error)")
                return nil
            }
        }
        var settings = queueSettings(config, places, worker: worker, host: host, kernelSet: kernelSet, blobs: blobs, logger: logger)
        if let lookInterval { settings.obstacleInterval = lookInterval }
        settings.runGroup = runGroup
        let queue = JobQueue(store: store, log: log, settings: settings)
        try await queue.recover()
        try await StrayFiles(places: places, store: store, logger: logger).remove()
        let imports = ModelImports(
            store: store, blobs: blobs,
            settings: ModelImportSettings(
                worker: worker, directory: places.imports,
                budget: { try await importBudget(queue, store, HostMemory(host), config.now) },
                obstacle: obstacle,
                runGroup: runGroup,
                inspect: { try await SmallOrders(worker: worker, logger: logger).inspectedModel($0) },
                now: { Date().inWholeSeconds }),
            logger: logger)
        try await imports.recover()

        return Daemon(
            config: config, places: places, store: store, queue: queue, blobs: blobs, imports: imports, log: log,
            worker: worker, host: host, access: access, logger: logger, startedAt: Date().inWholeSeconds,
            kernelSet: kernelSet, now: { Date() },
            random: { UInt64.random(in: .min ... .max) })
    }

    private static func queueSettings(
        _ config: LiveConfig, _ places: Places, worker: WorkerLaunch, host: HostFiles, kernelSet: String, blobs: BlobStore,
        logger: Logger
    ) -> JobQueueSettings {
        var settings = JobQueueSettings(
            worker: worker, jobsDirectory: places.jobs,
            // Stored digests were checked when they came in.
            blobPath: { (try? BlobDigest($0)).map(blobs.path) ?? "" },
            budget: {
                let budget = HostMemory(host).budget(asked: $0.memoryBudget, allowed: config.now.memoryBudget)
                return (budget.bytes, budget.name)
            },
            defaultSaveSteps: { config.now.defaultSaveSteps }, now: { Date().inWholeSeconds },
            stopTimeout: .seconds(config.now.stopTimeoutSeconds), report: { logger.error("\($0)") })
        settings.calibrationPath = { places.calibration(of: $0, kernelSet: kernelSet) }
        settings.availableBytes = { HostMemory(host).available.bytes }
        settings.look = {
            let (policies, conditions) = (config.now.policies, HostConditions(host, disk: places.state))
            let (memory, pressure) = (HostMemory(host), MemoryPressure(host.text("/proc/pressure/memory")))
            return { job, phase in
                if let found = policies.obstacle(
                    conditions, jobHours: job.request.runBetween.flatMap(DayWindow.init), spill: job.plan?.spillBytes ?? 0, phase)
                {
                    return found
                }
                // A running one watches its memory itself, closer.
                guard phase == .start, let plan = job.plan else { return nil }
                return startObstacle(planned: plan.peakBytes, memory: memory, pressure: pressure).map { Obstacle(.memory, $0) }
            }
        }
        settings.mostTogether = { config.now.jobsTogether }
        settings.turn = { config.now.turnLength }
        settings.retryAfter = { config.now.retryDelay }
        settings.patience = { patience(with: $0.plan) }
        settings.scheduling = { config.now.scheduling }
        return settings
    }

    /// How long a worker may say nothing. It says something with every step, and every half a minute of micro-batches: an hour
    /// is a hundred of those, unless the plan has steps that long.
    private static func patience(with plan: PlanReport?) -> Duration {
        let step = (plan?.totalSeconds ?? 0) / Double(max(1, plan?.totalSteps ?? 1))
        return .seconds(max(3600, 20 * step))
    }

    /// What a job may have, less what the running one has not taken yet of its plan.
    private static func importBudget(
        _ queue: JobQueue, _ store: JobStore, _ memory: HostMemory, _ config: DaemonConfig
    ) async throws -> MemoryBound {
        let bound = memory.budget(asked: nil, allowed: config.memoryBudget)
        var (planned, held) = (UInt64(0), UInt64(0))
        let running = await queue.runningJobs
        for id in running {
            guard let job = try await store.job(id), let plan = job.plan else { continue }
            // What is planned of jobs that train together, each says with its steps; before the first, no more than all apart.
            planned = job.progress.map { max(planned, $0.plannedPeakBytes) } ?? planned + plan.peakBytes
            held = max(held, job.progress?.rssBytes ?? 0)
        }
        guard planned > held else { return bound }
        let growth = planned - held
        return MemoryBound(
            bytes: bound.bytes - min(bound.bytes, growth),
            name: "\(bound.name), less the \(growth >> 20) MiB that \(running.joined(separator: ", ")) may still take")
    }

    private static func claimControlGroup(_ host: HostFiles, _ logger: Logger) -> ControlGroup? {
        do {
            let group = try ControlGroup.claim(host, pid: getpid())
            for left in group.removeLeftovers() { logger.warning("the cgroup of an earlier run stays: \(left)") }
            return group
        } catch {
            logger.info("runs get no cgroup of their own and watch themselves: \(error)")
            return nil
        }
    }
}
