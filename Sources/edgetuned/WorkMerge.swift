// A merge order: the base with an adapter in its weights, written within the budget, then measured on what the job held out.
import EdgeFormats
import EdgeJobs
import EdgeModel
import EdgeTensor
import EdgeTrain
import EdgeWire

func merge(_ order: WorkOrder.MergeOrder, _ channel: WorkChannel) throws {
    let base = try BaseModel.open(path: order.modelPath)
    base.file.releaseHeader()
    var report = MergeReport(format: try write(order, base, channel)?.name ?? "the base's blocks", files: [])
    if let job = order.job {
        do {
            report.losses = try losses(order, job, base, channel)
            if report.losses == nil { report.notMeasured = "the job held no samples\(order.task == nil ? "" : " of this task") back" }
        } catch let error as PlanError {
            // The model is there, and that is what was asked for.
            report.notMeasured = Problem(workError: error).detail
        }
    }
    channel.send(.merging(MergeEvent(report: report)))
}

/// Writes the model; returns the format of what was changed, nil: the base's own.
private func write(_ order: WorkOrder.MergeOrder, _ base: BaseModel, _ channel: WorkChannel) throws -> QuantFormat? {
    let idle = ProcessFacts.idleBytes, threads = ProcessFacts.coreCount
    func require(_ bytes: ByteCount) throws {
        let needed = idle + UInt64(bytes.bytes)
        guard needed <= order.budgetBytes else {
            throw Problem(
                .insufficientMemory, "merging needs \(needed >> 20) MiB, the budget is \(order.budgetBytes >> 20) MiB",
                hint: "a larger memory budget, or when no job runs", requiredBytes: needed, budgetBytes: order.budgetBytes)
        }
    }
    // Before it is read, and then with what the base adds.
    try require(LoadedAdapter.loadingBytes(try AdapterArtifact.tensorFileBytes(order.adapterDirectory)))
    let adapter = try LoadedAdapter(directory: order.adapterDirectory, task: order.task, of: base.spec)
    let merged =
        switch order.format {
        case .some(let format): try MergedModel(base, adapter, format: QuantFormat(format))
        case nil where base.isImported: try MergedModel(base, adapter, format: .bf16)
        case nil: try MergedModel.keepingBlocks(base, adapter, or: .q8_0)
        }
    try require(merged.peakBytes(threads: threads))
    let total = UInt64(try merged.fileBytes)
    try BlobStore.requireFree(total, on: parent(of: order.outputDirectory), what: "are to be written")
    var meter = MergeMeter(.writing, total: total, channel)
    try merged.write(to: order.outputDirectory, kernels: try ProcessFacts.kernelSet(), threads: threads) { try meter.report(UInt64($0)) }
    return merged.format
}

/// Nil where the job held nothing back.
private func losses(
    _ order: WorkOrder.MergeOrder, _ job: WorkOrder.MergeOrder.HeldOut, _ base: BaseModel, _ channel: WorkChannel
) throws -> MergeReport.Losses? {
    let spec = try TrainingSpec(job.request, defaultSaveSteps: 1)
    let samples = try LoadedSamples(
        job.datasetPaths, model: base, sequenceLength: min(spec.sequenceLength, base.spec.contextLength),
        lossScope: job.request.trainOnInputs ? .everything : .completions, tasks: spec.adapter.method.tasks?.names ?? [])
    // What is merged is of one task, and is measured on that one's.
    let task = order.task.flatMap { spec.adapter.method.tasks?.names.firstIndex(of: $0) }
    let heldOut = Dataset(samples.tokenized, heldOut: job.request.valSetSize, seed: spec.seed).heldOut.filter { $0.task == task }
    let tokens = Dataset.lossTokens(heldOut)
    guard tokens > 0 else { return nil }
    var meter = MergeMeter(.measuring, total: 2 * UInt64(tokens), channel)
    func loss(of model: BaseModel, _ adapter: LoadedAdapter?, from start: Int) throws -> Double {
        let limits = PlanLimits(
            budget: ByteCount(Int(clamping: order.budgetBytes)), threads: ProcessFacts.coreCount, compute: .f32,
            optimizer: spec.optimizer, spill: ByteCount(Int(clamping: BlobStore.freeBytes(order.outputDirectory) / 2)),
            appliesLayerByLayer: spec.maxGradNorm == nil, calibration: nil, weightsAreCached: false)
        let measurement = try HeldOutLoss(
            of: model, adapter, on: heldOut, spec: spec, process: try ProcessFacts.processMemory(), limits: limits)
        return try measurement.measure(kernels: try ProcessFacts.kernelSet(), spillDirectory: order.outputDirectory) {
            try meter.report(UInt64(start + $0))
        }.mean
    }
    let unmerged = try loss(of: base, try LoadedAdapter(directory: order.adapterDirectory, task: order.task, of: base.spec), from: 0)
    base.releaseResidentWeights()
    let merged = try loss(of: try MergedModel.open(order.outputDirectory, madeFrom: base), nil, from: tokens)
    return MergeReport.Losses(tokens: tokens, adapter: unmerged, merged: merged)
}

extension QuantFormat {
    /// Nil: the base's own blocks.
    fileprivate init?(_ format: MergeFormat) {
        switch format {
        case .base: return nil
        case .f16: self = .f16
        case .bf16: self = .bf16
        case .q8: self = .q8_0
        case .q4WithMinimum: self = .q4_1
        case .q4: self = .q4_0
        }
    }
}

/// Says four times a second how far it is, and stops when asked to.
private struct MergeMeter {
    private let phase: MergeEvent.Phase
    private let total: UInt64
    private let channel: WorkChannel
    private var said = ContinuousClock.now

    init(_ phase: MergeEvent.Phase, total: UInt64, _ channel: WorkChannel) {
        (self.phase, self.total, self.channel) = (phase, total, channel)
    }

    mutating func report(_ done: UInt64) throws {
        guard !channel.isStopRequested else { throw Problem(.wrongState, "the merge was stopped") }
        guard ContinuousClock.now - said >= .milliseconds(250) else { return }
        said = .now
        channel.send(.merging(MergeEvent(phase: phase, done: min(done, total), total: total)))
    }
}
