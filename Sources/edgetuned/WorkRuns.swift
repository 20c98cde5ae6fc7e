// Training orders that are done in this process: one, or several of one base that train together.
import EdgeJobs
import EdgeModel
import EdgeTensor
import EdgeTrain
import EdgeWire
import Foundation

struct WorkRuns {
    private let jobs: [WorkTraining]
    private let memory: MemoryModel
    private let plan: TrainingPlan
    private let budgetBytes: UInt64
    private var isTogether: Bool { jobs.count > 1 }

    init(_ order: WorkOrder.TrainOrder) throws {
        let job = try WorkTraining(order)
        (jobs, memory, plan, budgetBytes) = ([job], job.memory, job.plan, order.budgetBytes)
    }

    init(_ order: WorkOrder.TogetherOrder) throws {
        jobs = try Self.jobs(order.jobs)
        var process = try ProcessFacts.processMemory()
        process.resident = ByteCount(Int(clamping: order.plan.processBytes))
        guard let found = Self.together(jobs, process) else {
            throw Problem(.internalError, "\(jobs.count) jobs were planned to train together and do not fit")
        }
        (memory, plan, budgetBytes) = (found.memory, found.plan, order.plan.budgetBytes)
    }

    // MARK: planning

    /// A base is opened, and its pages are counted, once.
    private static func jobs(_ orders: [WorkOrder.TrainOrder]) throws -> [WorkTraining] {
        let first = try WorkTraining(orders[0])
        return try [first] + orders.dropFirst().map { try WorkTraining($0, model: first.model) }
    }

    private static func together(_ jobs: [WorkTraining], _ process: ProcessMemory) -> (memory: MemoryModel, plan: TrainingPlan)? {
        // Layer inputs in bf16 would be another job's gradients rounded.
        guard jobs.allSatisfy({ $0.plan.shape.checkpoints != .bf16 }) else { return nil }
        // All have a backward in a round, or none has.
        guard Set(jobs.map(\.plan.shape.hasBackward)).count == 1 else { return nil }
        let memory = MemoryModel(together: jobs.map { ($0.memory, $0.plan.shape.optimizer) }, process: process)
        var limits = jobs[0].limits
        limits.budget = jobs.map(\.limits.budget).min()!
        limits.zerothOrder = jobs[0].plan.shape.hasBackward ? .never : .always
        limits.appliesLayerByLayer = jobs.allSatisfy(\.limits.appliesLayerByLayer)
        return TrainingPlan.together(memory, lengths: jobs.map(\.lengths), limits).map { (memory, $0) }
    }

    /// Less is not worth waiting longer for the first of them.
    private static let leastGain = 0.03

    /// As many of the jobs, from the first, as fit and end sooner than one after another; nil: only the first.
    static func plan(_ orders: [WorkOrder.TrainOrder]) throws -> TogetherPlan? {
        let jobs = try jobs(orders)
        let process = try ProcessFacts.processMemory()
        for count in stride(from: jobs.count, through: 2, by: -1) {
            let some = Array(jobs.prefix(count))
            guard let plan = together(some, process)?.plan else { continue }
            let apart = some.reduce(0) { $0 + $1.plan.duration }
            guard plan.duration < (1 - leastGain) * apart else { continue }
            return TogetherPlan(
                jobs: count, peakBytes: UInt64(plan.peak.bytes), budgetBytes: UInt64(plan.budget.bytes), spillBytes: UInt64(plan.spill.bytes),
                processBytes: UInt64(process.resident.bytes), seconds: plan.seconds, secondsApart: plan.seconds.map { _ in apart })
        }
        return nil
    }

    // MARK: training

    func train(_ channel: WorkChannel, _ host: HostFiles) throws {
        let channels = jobs.map { JobChannel(channel, job: $0.order.job, isOnly: !isTogether) }
        for (job, channel) in zip(jobs, channels) {
            // A job's own plan is that of its run alone.
            if !isTogether { channel.send(.plan(job.planReport)) }
            try job.begin(channel, plan)
            if isTogether {
                let others = jobs.map(\.order.job).filter { $0 != job.order.job }.joined(separator: ", ")
                channel.send(.log("trains together with \(others), planned \(plan.peak.mebibytes) MiB for all"))
            }
        }
        let end = try run(channels, host)
        // The arena is gone here: publishing has its memory.
        if let end { try publish(end, jobs[0], channels[0]) }
        if isTogether { channel.send(.jobsEnded) }
    }

    private func publish(_ end: WorkTraining.RunEnd, _ job: WorkTraining, _ channel: JobChannel) throws {
        try job.publish(end)
        let peak = ProcessFacts.residentBytes().peak
        channel.send(.log("peak memory \(peak >> 20) MiB, planned \(plan.peak.mebibytes) MiB"))
        channel.send(end.message)
    }

    /// - Returns: what the only job has to publish; of several, each publishes when it ends.
    private func run(_ channels: [JobChannel], _ host: HostFiles) throws -> WorkTraining.RunEnd? {
        let order = jobs[0].order
        let watch = MemoryWatch(host, plannedPeakBytes: UInt64(plan.peak.bytes), group: order.controlGroup)
        defer { watch.end() }
        let pulse = Pulse(channels)
        var pacer = order.groupHoldsQuota ? nil : order.scheduling.cpuQuota.map(CPUPacer.init)
        let members = try jobs.indices.map { index in
            let (channel, progress) = (channels[index], ProgressMeter(plan: plan, budgetBytes: budgetBytes))
            return try jobs[index].job(
                tokenBudget: plan.tokenBudgets[index],
                emit: { event in
                    switch event {
                    case .step(let step): channel.send(.step(progress.report(step)))
                    case .evaluation(let evaluation, let isBest):
                        channel.send(.evaluation(EvaluationReport(evaluation, isBest: isBest)))
                    case .checkpoint(let step): channel.send(.checkpoint(step: step))
                    case .log(let text): channel.send(.log(text))
                    }
                },
                direction: { _ in
                    pulse.beat()
                    pacer?.rest { channel.isStopRequested }
                    if channel.isStopRequested { return .stop }
                    let (direction, note) = watch.direction()
                    if let note { channel.send(.log(note)) }
                    return direction == .stop ? .stop : channel.isFinishRequested ? .finish : direction
                })
        }
        let group = try TrainingGroup(
            members, model: jobs[0].model, memory: memory, shape: plan.shape, kernels: jobs[0].kernels,
            smoothingSamples: jobs[0].smoothingSamples, spillDirectory: order.directory)
        var only: WorkTraining.RunEnd?
        try group.run { index, outcome in
            do {
                guard let end = try self.end(index, outcome, group, channels[index], watch) else { return }
                if isTogether { try publish(end, jobs[index], channels[index]) } else { only = end }
            } catch {
                guard isTogether else { throw error }
                channels[index].send(.failure(Problem(workError: error)))
            }
        }
        return only
    }

    /// Nil when the run was stopped, which has been reported.
    private func end(
        _ index: Int, _ outcome: Result<RunOutcome, any Error>, _ group: TrainingGroup, _ channel: JobChannel, _ watch: MemoryWatch
    ) throws -> WorkTraining.RunEnd? {
        let tensors = { group.takeTensors(of: index) }
        switch outcome {
        case .success(.finished(let finished)): return WorkTraining.RunEnd(finished: finished, tensors: tensors())
        case .success(.stopped(let step)):
            switch watch.stop {
            case nil: channel.send(.stopped(step: step))
            case _ where channel.isStopRequested: channel.send(.stopped(step: step))
            case .yield(let reason): channel.send(.yielded(step: step, reason: reason))
            case .failure(let problem): throw problem
            }
            return nil
        case .failure(let error): return try jobs[index].salvage(error, group.runs[index], tensors: tensors)
        }
    }
}

/// Tells `serve` now and then that micro-batches are being done, however long a step or an evaluation takes.
private final class Pulse {
    private let channels: [JobChannel]
    private var last = SuspendingClock.now
    private static let interval = Duration.seconds(30)

    init(_ channels: [JobChannel]) { self.channels = channels }

    func beat() {
        let now = SuspendingClock.now
        guard now - last >= Self.interval else { return }
        last = now
        for channel in channels { channel.send(.alive) }
    }
}

/// Steps as the API reports them: with times and memory, which the data plane does not know.
private final class ProgressMeter {
    private let plan: TrainingPlan
    private let budgetBytes: UInt64
    /// Of a clock that stands still while the machine is suspended.
    private var last: SuspendingClock.Instant = .now
    /// Seconds per step, smoothed over some ten steps.
    private var secondsPerStep: Double?

    init(plan: TrainingPlan, budgetBytes: UInt64) {
        self.plan = plan
        self.budgetBytes = budgetBytes
    }

    func report(_ step: StepReport) -> JobProgress {
        let now = SuspendingClock.now
        let elapsed = (now - last) / .seconds(1)
        last = now
        secondsPerStep = secondsPerStep.map { 0.9 * $0 + 0.1 * elapsed } ?? elapsed
        return JobProgress(
            step: step.step, totalSteps: step.totalSteps, epoch: step.epoch, loss: step.loss,
            learningRate: step.learningRate, gradNorm: step.gradNorm,
            tokensPerSecond: Double(step.tokens) / max(elapsed, 1e-9), rssBytes: ProcessFacts.residentBytes().now,
            plannedPeakBytes: UInt64(plan.peak.bytes), budgetBytes: budgetBytes,
            etaSeconds: secondsPerStep.map { $0 * Double(step.totalSteps - step.step) }, evalLoss: step.evalLoss,
            bestEvalLoss: step.bestEvalLoss)
    }
}
