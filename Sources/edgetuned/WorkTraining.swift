// A training order: from the request's words to the data plane's values, through the run, to the published artifact.
import EdgeFormats
import EdgeJobs
import EdgeModel
import EdgeTensor
import EdgeTrain
import EdgeWire
import Foundation

struct WorkTraining {
    private let kernels: KernelSet
    private let order: WorkOrder.TrainOrder
    private let spec: TrainingSpec
    private let model: BaseModel
    private let original: BaseModel?
    private let samples: LoadedSamples
    private let dataset: Dataset
    private let memory: MemoryModel
    private let plan: TrainingPlan
    private let totalSteps: Int

    init(_ order: WorkOrder.TrainOrder) throws {
        self.order = order
        kernels = try ProcessFacts.kernelSet()
        spec = try TrainingSpec(order.request, defaultSaveSteps: order.defaultSaveSteps)
        model = try BaseModel.open(path: order.modelPath)
        samples = try LoadedSamples(
            order.datasetPaths, model: model, sequenceLength: min(spec.sequenceLength, model.spec.contextLength),
            lossScope: order.request.trainOnInputs ? .everything : .completions)
        guard !samples.tokenized.isEmpty else {
            throw TrainingError.noSamples(
                lines: samples.tooLongLines.count, tooLong: samples.tooLongLines.count,
                sequenceLength: spec.sequenceLength)
        }
        let dataset = Dataset(samples.tokenized, heldOut: order.request.valSetSize, seed: spec.seed)
        guard Dataset.lossTokens(dataset.training) > 0 else { throw TrainingError.noLossTokens }
        self.dataset = dataset
        original = try Self.original(order, model)
        model.file.releaseHeader()
        original?.file.releaseHeader()
        var process = try ProcessFacts.processMemory()
        if let planned = order.processBytes { process.resident = ByteCount(Int(clamping: planned)) }
        let initial = order.initialAdapterDirectory
        memory = try MemoryModel(model, adapter: spec.adapter, process: process, loadsAdapter: initial != nil, original: original)
        if spec.adapter.start == .eva { try EVAStart.check(memory.layout, model.spec) }
        if let initial, order.directory.isEmpty {
            // At submit; what a job began from cannot go away afterwards.
            try LoadedAdapter(directory: initial, of: model.spec).check(spec.adapter, modules: memory.modules, spec: model.spec)
        }
        let lengths = SampleLengths(dataset, spec: spec)
        // A plan is made before its directory: the model is on the same disk.
        let freeDisk = BlobStore.freeBytes(order.directory.isEmpty ? order.modelPath : order.directory) / 2
        plan = try TrainingPlan.make(
            memory, lengths: lengths,
            PlanLimits(
                budget: ByteCount(Int(clamping: order.budgetBytes)),
                threads: order.request.threads ?? ProcessFacts.coreCount, compute: try spec.computeType(on: kernels),
                optimizer: spec.optimizer, spill: ByteCount(Int(clamping: freeDisk)), appliesLayerByLayer: spec.maxGradNorm == nil,
                calibration: calibration(at: order.calibrationPath), weightsAreCached: staysCached(UInt64(model.file.fileBytes), beside: order.budgetBytes, available: order.availableBytes)))
        totalSteps = lengths.totalSteps
    }

    /// The model that the loftq start compares the base with.
    private static func original(_ order: WorkOrder.TrainOrder, _ model: BaseModel) throws -> BaseModel? {
        guard let name = order.request.originalModel else { return nil }
        guard let path = order.originalModelPath else {
            throw Problem(.notFound, "original_model: there is no model \"\(name)\"", hint: "edgetune models list")
        }
        guard order.originalModelDigest != order.modelDigest else { throw AdapterStartError.sameWeights }
        let original = try BaseModel.open(path: path)
        try LoftQStart.check(model.spec, original.spec)
        return original
    }

    var planReport: PlanReport {
        var report = PlanReport(
            pools: plan.pools.map { .init(name: $0.name, bytes: UInt64($0.size.bytes)) },
            peakBytes: UInt64(plan.peak.bytes), budgetBytes: order.budgetBytes, choices: plan.trades.map(\.text),
            precision: Precision(rawValue: plan.shape.compute.rawValue), trainableParameters: memory.layout.trainableCount,
            samples: dataset.training.count, heldOutSamples: dataset.heldOut.count,
            tooLongSamples: samples.tooLongLines.count, tooLongLines: Array(samples.tooLongLines.prefix(100)),
            totalSteps: totalSteps, budgetReason: order.budgetReason)
        report.processBytes = UInt64(memory.process.resident.bytes)
        report.trades = plan.trades.map {
            PlanTrade(what: $0.what, savesBytes: UInt64($0.saves.bytes), costsTime: $0.costs)
        }
        report.microBatchTokens = plan.shape.tokens
        report.spillBytes = plan.spill == .zero ? nil : UInt64(plan.spill.bytes)
        if let seconds = plan.secondsPerStep {
            report.tokensPerSecond = plan.tokensPerStep / seconds
            report.totalSeconds = seconds * Double(totalSteps)
        }
        return report
    }

    func train(_ channel: WorkChannel, _ host: HostFiles) throws {
        try DirectoryPublish.removeLeftovers(in: order.directory)
        let checkpoints = order.directory + "/checkpoints"
        if access(checkpoints, F_OK) == 0 { try DirectoryPublish.removeLeftovers(in: checkpoints) }
        channel.send(.plan(planReport))
        channel.send(.log("kernel set \(kernels.name), precision \(plan.shape.compute.rawValue), \(plan.shape.threads) threads"))
        if !samples.tooLongLines.isEmpty {
            channel.send(
                .log("left out \(samples.tooLongLines.count) samples longer than \(spec.sequenceLength) tokens, lines "
                    + samples.tooLongLines.prefix(20).map(String.init).joined(separator: ", ")))
        }
        guard let end = try run(channel, host) else { return }
        // The arena is gone here: publishing has its memory.
        do { try publish(end) } catch {
            guard var problem = end.problem else { throw error }
            problem.detail += "; its best adapter cannot be published: \(Problem(workError: error).detail)"
            throw problem
        }
        let peak = ProcessFacts.residentBytes().peak
        channel.send(.log("peak memory \(peak >> 20) MiB, planned \(plan.peak.mebibytes) MiB"))
        channel.send(end.problem.map(WorkMessage.salvaged) ?? .trained)
    }

    /// What is to be published.
    private struct RunEnd {
        let finished: FinishedRun
        let tensors: [AdapterTensor]
        /// Why training went no further than that, when it failed.
        var problem: Problem?
    }

    /// Nil when the run was stopped, which has been reported.
    private func run(_ channel: WorkChannel, _ host: HostFiles) throws -> RunEnd? {
        let watch = MemoryWatch(host, plannedPeakBytes: UInt64(plan.peak.bytes), group: order.controlGroup)
        defer { watch.end() }
        let progress = ProgressMeter(plan: plan, budgetBytes: order.budgetBytes)
        let pulse = Pulse(channel)
        var pacer = order.groupHoldsQuota ? nil : order.scheduling.cpuQuota.map(CPUPacer.init)
        let run = try TrainingRun(
            model: model, memory: memory, spec: spec, plan: plan, dataset: dataset, kernels: kernels,
            checkpoints: CheckpointStore(
                directory: order.directory + "/checkpoints", runFingerprint: try runFingerprint()),
            initial: order.initialAdapterDirectory.map { [model] directory in { try LoadedAdapter(directory: directory, of: model.spec) } },
            original: original,
            spillDirectory: order.directory,
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
        let outcome: RunOutcome
        do { outcome = try run.run() } catch let error as TrainingError {
            guard var problem = divergence(error) else { throw error }
            guard let kept = try run.salvage() else {
                problem.detail += "; no adapter was measured before that"
                throw problem
            }
            let best = kept.evaluations.first { $0.step == kept.keptStep }
            problem.detail += "; the adapter of step \(kept.keptStep) is kept"
            if let best { problem.detail += ", its held-out loss is \(best.loss)" }
            return RunEnd(finished: kept, tensors: run.takeTensors(), problem: problem)
        }
        switch outcome {
        case .stopped(let step):
            switch watch.stop {
            case nil: channel.send(.stopped(step: step))
            case _ where channel.isStopRequested: channel.send(.stopped(step: step))
            case .yield(let reason): channel.send(.yielded(step: step, reason: reason))
            case .failure(let problem): throw problem
            }
            return nil
        case .finished(let finished):
            return RunEnd(finished: finished, tensors: run.takeTensors())
        }
    }

    /// The problem of numbers that are not finite, with the lines whose samples they came up in; nil: another error.
    private func divergence(_ error: TrainingError) -> Problem? {
        var problem = Problem(workError: error)
        guard problem.kind == .nonFinite else { return nil }
        if case .nonFinite(let step, let loss, let gradNorm, let indices) = error {
            let what =
                loss.isFinite
                ? "a gradient is not finite (their norm is \(gradNorm ?? .nan), the loss \(loss))" : "the loss is \(loss)"
            problem.detail = "step \(step): \(what); \(lines(ofTrainingSamples: indices))"
        }
        return problem
    }

    /// "lines 3, 9 of "chats"; line 1 of "notes"": at most a hundred of them.
    private func lines(ofTrainingSamples indices: [Int]) -> String {
        let origins = indices.map { samples.origins[dataset.trainingIndices[$0]] }
        return order.request.datasets.enumerated().compactMap { number, set in
            let lines = Set(origins.filter { $0.dataset == number }.map(\.line)).sorted()
            guard !lines.isEmpty else { return nil }
            let shown = lines.prefix(100).map(String.init).joined(separator: ", ") + (lines.count > 100 ? ", …" : "")
            return "\(lines.count == 1 ? "line" : "lines") \(shown) of \"\(set.path)\""
        }.joined(separator: "; ")
    }

    /// SHA-256 over everything that decides the adapter's bytes: a checkpoint of another run is never continued.
    private func runFingerprint() throws -> [UInt8] {
        var request = order.request
        // These change neither the order of samples nor a sum.
        (request.name, request.threads, request.memoryBudget, request.saveSteps) = (nil, nil, nil, nil)
        (request.priority, request.maxTime, request.runBetween) = (nil, nil, nil)
        var digest = SHA256()
        digest.update(Array(order.modelDigest.utf8))
        digest.update(Array((order.originalModelDigest ?? "").utf8))
        digest.update(Array(try Wire.encoder().encode(request)))
        for path in order.datasetPaths { try ByteRegion.map(path: path).withBytes { digest.update($0) } }
        return digest.finalize()
    }

    private func publish(_ end: RunEnd) throws {
        let finished = end.finished
        let record = TrainingRecord(
            baseFingerprint: order.modelDigest, baseModel: order.request.baseModel,
            quantisation: model.quantisation, kernelSet: kernels.name, precision: plan.shape.compute.rawValue, request: order.request,
            method: spec.adapter.method.name, adapter: spec.adapter.summary, plan: planReport,
            evaluations: finished.evaluations.map {
                EvaluationReport($0, isBest: $0.step == finished.keptStep && $0.step > 0)
            },
            keptStep: finished.keptStep, steps: finished.steps, lastLoss: finished.lastLoss,
            endedEarly: finished.endedEarly, problem: end.problem?.detail)
        let encoder = Wire.encoder()
        encoder.outputFormatting.insert(.prettyPrinted)
        try AdapterArtifact.publish(
            to: order.directory + "/adapter", tensors: end.tensors,
            config: AdapterConfig(
                spec.adapter, modules: memory.modules, of: model.spec, baseModelNameOrPath: order.request.baseModel),
            provenance: [
                "base_fingerprint": order.modelDigest, "base_quantisation": model.quantisation,
                "seed": "\(spec.seed)", "step": "\(finished.keptStep)",
            ],
            trainingJSON: Array(try encoder.encode(record)), modelCard: record.modelCard)
    }
}

/// The kernel keeps a model's file in memory while there is room beside the job; with a budget that takes all, there is none.
func staysCached(_ fileBytes: UInt64, beside budgetBytes: UInt64, available: UInt64?) -> Bool {
    (available ?? 0) >= budgetBytes + fileBytes
}

/// Tells `serve` now and then that micro-batches are being done, however long a step or an evaluation takes.
private final class Pulse {
    private let channel: WorkChannel
    private var last = SuspendingClock.now
    private static let interval = Duration.seconds(30)

    init(_ channel: WorkChannel) { self.channel = channel }

    func beat() {
        let now = SuspendingClock.now
        guard now - last >= Self.interval else { return }
        last = now
        channel.send(.alive)
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
