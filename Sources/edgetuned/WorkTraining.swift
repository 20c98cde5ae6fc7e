// A training order: from the request's words to the data plane's values, and from the run's end to the published artifact. What
// runs it, alone or with others, is WorkRuns.
import EdgeFormats
import EdgeJobs
import EdgeModel
import EdgeTensor
import EdgeTrain
import EdgeWire
import Foundation

struct WorkTraining {
    let order: WorkOrder.TrainOrder
    let model: BaseModel
    private let original: BaseModel?
    let memory: MemoryModel
    /// Of this job alone.
    let plan: TrainingPlan
    let limits: PlanLimits
    let lengths: SampleLengths
    let kernels: KernelSet
    private let spec: TrainingSpec
    private let samples: LoadedSamples
    private let dataset: Dataset

    /// - Parameter model: the base, where another order has opened it.
    init(_ order: WorkOrder.TrainOrder, model opened: BaseModel? = nil) throws {
        self.order = order
        kernels = try ProcessFacts.kernelSet()
        var spec = try TrainingSpec(order.request, defaultSaveSteps: order.defaultSaveSteps)
        let model = try opened ?? BaseModel.open(path: order.modelPath)
        try spec.resolveTokens(order.request) { try ModelText(model).tokenizer }
        (self.spec, self.model) = (spec, model)
        let virtualTokens = spec.adapter.virtualTokens
        guard virtualTokens < model.spec.contextLength else {
            throw Problem(
                .invalidValue, "num_virtual_tokens: \(virtualTokens) leave no room in the model's context of \(model.spec.contextLength) tokens")
        }
        samples = try LoadedSamples(
            order.datasetPaths, model: model, sequenceLength: min(spec.sequenceLength, model.spec.contextLength - virtualTokens),
            lossScope: order.request.trainOnInputs ? .everything : .completions, tasks: spec.adapter.method.tasks?.names ?? [])
        guard !samples.tokenized.isEmpty else {
            throw TrainingError.noSamples(
                lines: samples.tooLongLines.count, tooLong: samples.tooLongLines.count,
                sequenceLength: spec.sequenceLength)
        }
        let dataset = Dataset(samples.tokenized.map { $0.behindVirtualTokens(spec.adapter.promptTokens) }, heldOut: order.request.valSetSize, seed: spec.seed)
        guard Dataset.lossTokens(dataset.training) > 0 else { throw TrainingError.noLossTokens }
        self.dataset = dataset
        original = try Self.original(order, model)
        model.file.releaseHeader()
        original?.file.releaseHeader()
        var process = try ProcessFacts.processMemory()
        if let planned = order.processBytes { process.resident = ByteCount(Int(clamping: planned)) }
        let initial = order.initialAdapterDirectory
        let lengths = SampleLengths(dataset, spec: spec)
        self.lengths = lengths
        let cached = spec.activationCache.map { MemoryModel.CachedActivations($0, lengths) }
        memory = try MemoryModel(
            model, adapter: spec.adapter, process: process, loadsAdapter: initial != nil, original: original, cache: cached)
        guard cached == nil || memory.lowestLayer > 0 else {
            throw Problem(
                .invalidValue, "activation_cache: the model's first layer is adapted, so nothing is the same in the next epoch",
                hint: "adapt upper layers only: layers_to_transform: [\(model.spec.layerCount / 2), …]")
        }
        if spec.adapter.start == .eva { try EVAStart.check(memory.layout, model.spec) }
        if let initial, order.directory.isEmpty {
            // At submit; what a job began from cannot go away afterwards.
            try LoadedAdapter(directory: initial, of: model.spec).check(spec.adapter, modules: memory.modules, spec: model.spec)
        }
        // A plan is made before its directory: the model is on the same disk.
        let freeDisk = BlobStore.freeBytes(order.directory.isEmpty ? order.modelPath : order.directory) / 2
        limits = PlanLimits(
            budget: ByteCount(Int(clamping: order.budgetBytes)),
            threads: order.request.threads ?? ProcessFacts.coreCount, compute: try spec.computeType(on: kernels),
            optimizer: spec.optimizer, spill: ByteCount(Int(clamping: freeDisk)), appliesLayerByLayer: spec.maxGradNorm == nil,
            calibration: calibration(at: order.calibrationPath),
            weightsAreCached: staysCached(UInt64(model.file.fileBytes), beside: order.budgetBytes, available: order.availableBytes),
            zerothOrder: try Self.zerothOrder(spec, checkpoints: order.directory.isEmpty ? nil : Self.checkpoints(order)))
        plan = try TrainingPlan.make(memory, lengths: lengths, limits)
        try RankAllocator.check(spec.adapter, totalSteps: lengths.totalSteps)
    }

    private static func checkpoints(_ order: WorkOrder.TrainOrder) -> String { order.directory + "/checkpoints" }

    /// A run that goes on keeps its kind of steps, whatever would fit by now.
    private static func zerothOrder(_ spec: TrainingSpec, checkpoints directory: String?) throws -> ZerothOrderUse {
        guard spec.zerothOrder == .whereNothingElseFits, let directory, let hasMoments = try CheckpointStore.newestHasMoments(in: directory) else {
            return spec.zerothOrder
        }
        return hasMoments ? .never : .always
    }

    var smoothingSamples: [TokenizedSample] { samples.smoothing }

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
            peakBytes: UInt64(plan.peak.bytes), budgetBytes: order.budgetBytes, choices: plan.trades.map(\.text) + cacheText + stepText,
            precision: Precision(rawValue: plan.shape.compute.rawValue), trainableParameters: memory.layout.trainableCount,
            samples: dataset.training.count, heldOutSamples: dataset.heldOut.count,
            tooLongSamples: samples.tooLongLines.count, tooLongLines: Array(samples.tooLongLines.prefix(100)),
            totalSteps: lengths.totalSteps, budgetReason: order.budgetReason)
        report.processBytes = UInt64(memory.process.resident.bytes)
        report.trades = plan.trades.map {
            PlanTrade(what: $0.what, savesBytes: UInt64($0.saves.bytes), costsTime: $0.costs)
        }
        report.microBatchTokens = plan.shape.tokens
        report.spillBytes = plan.spill == .zero ? nil : UInt64(plan.spill.bytes)
        if let seconds = plan.seconds {
            report.tokensPerSecond = plan.tokens / seconds
            report.totalSeconds = seconds
        }
        return report
    }

    private var cacheText: [String] {
        guard spec.activationCache != nil else { return [] }
        let layers = memory.lowestLayer
        return ["layers 0 to \(layers - 1) run in the first epoch: \(plan.cache.mebibytes) MiB of disk for what they give"]
    }

    private var stepText: [String] {
        spec.zerothOrder == .always ? ["two forwards a step and no backward, as zeroth_order: always asks for"] : []
    }

    /// - Parameter plan: of the run: this job's, or that of all that train together.
    func begin(_ channel: JobChannel, _ plan: TrainingPlan) throws {
        try DirectoryPublish.removeLeftovers(in: order.directory)
        let checkpoints = Self.checkpoints(order)
        if access(checkpoints, F_OK) == 0 { try DirectoryPublish.removeLeftovers(in: checkpoints) }
        channel.send(.log("kernel set \(kernels.name), precision \(plan.shape.compute.rawValue), \(plan.shape.threads) threads"))
        if !samples.tooLongLines.isEmpty {
            channel.send(
                .log("left out \(samples.tooLongLines.count) samples longer than \(spec.sequenceLength) tokens, lines "
                    + samples.tooLongLines.prefix(20).map(String.init).joined(separator: ", ")))
        }
    }

    /// The job as the data plane has it.
    func job(
        tokenBudget: Int, emit: @escaping (TrainingEvent) -> Void, direction: @escaping (MicroBatchPurpose) -> RunDirection
    ) throws -> TrainingRun.Job {
        TrainingRun.Job(
            spec: spec, dataset: dataset, tokenBudget: tokenBudget, cache: (limit: plan.cache, directory: order.directory),
            checkpoints: CheckpointStore(directory: Self.checkpoints(order), runFingerprint: try runFingerprint()),
            initial: order.initialAdapterDirectory.map { [model] directory in { try LoadedAdapter(directory: directory, of: model.spec) } },
            original: original, emit: emit, direction: direction)
    }

    /// What is to be published.
    struct RunEnd {
        let finished: FinishedRun
        let tensors: [AdapterTensor]
        /// Why training went no further than that, when it failed.
        var problem: Problem?

        /// What the worker says of it, once it is published.
        var message: WorkMessage { problem.map(WorkMessage.salvaged) ?? .trained }
    }

    /// The best adapter of a run that failed because a number was not finite.
    ///
    /// - Parameter tensors: asked for once the adapter to publish is in its place.
    func salvage(_ error: any Error, _ run: TrainingRun, tensors: () -> [AdapterTensor]) throws -> RunEnd {
        guard let error = error as? TrainingError, var problem = divergence(error) else { throw error }
        guard let kept = try run.salvage() else {
            problem.detail += "; no adapter was measured before that"
            throw problem
        }
        let best = kept.evaluations.first { $0.step == kept.keptStep }
        problem.detail += "; the adapter of step \(kept.keptStep) is kept"
        if let best { problem.detail += ", its held-out loss is \(best.loss)" }
        return RunEnd(finished: kept, tensors: tensors(), problem: problem)
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

    func publish(_ end: RunEnd) throws {
        do { try publishArtifact(end) } catch {
            guard var problem = end.problem else { throw error }
            problem.detail += "; its best adapter cannot be published: \(Problem(workError: error).detail)"
            throw problem
        }
    }

    private func publishArtifact(_ end: RunEnd) throws {
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
                spec.adapter.lasting(lengths.totalSteps), modules: memory.modules, of: model.spec, baseModelNameOrPath: order.request.baseModel),
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
