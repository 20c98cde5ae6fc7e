// A ranks order: one pass over some of a job's samples, and ranks for its linears by what that says of them.
import EdgeFormats
import EdgeJobs
import EdgeModel
import EdgeTensor
import EdgeTrain
import EdgeWire

func rankLinears(_ order: WorkOrder.RanksOrder, _ channel: WorkChannel) throws -> RankReport {
    let request = order.request
    let spec = try TrainingSpec(request, defaultSaveSteps: 1), adapter = spec.adapter
    try refuse(request, adapter)
    let kernels = try ProcessFacts.kernelSet()
    let model = try BaseModel.open(path: order.modelPath)
    let modules = try adapter.modules(of: model.spec)
    guard JobRequest.patternCounts.contains(modules.count) else {
        throw Problem(
            .invalidValue, "lora_target_modules: \(modules.count) linears are more than rank_pattern can have",
            hint: "name fewer than \(JobRequest.patternCounts.upperBound), or use layers_to_transform")
    }
    let samples = try LoadedSamples(
        order.datasetPaths, model: model, sequenceLength: min(spec.sequenceLength, model.spec.contextLength),
        lossScope: request.trainOnInputs ? .everything : .completions)
    guard !samples.tokenized.isEmpty else {
        throw TrainingError.noSamples(
            lines: samples.tooLongLines.count, tooLong: samples.tooLongLines.count, sequenceLength: spec.sequenceLength)
    }
    // None that is held out: those are to judge by.
    let dataset = Dataset(samples.tokenized, heldOut: request.valSetSize, seed: spec.seed)
    let seen = Array(
        DataOrder(sampleCount: dataset.training.count, spec: spec).permutation(epoch: 0).lazy.map { dataset.training[$0] }
            .filter { $0.lossTokenCount > 0 }.prefix(order.samples))
    guard !seen.isEmpty else { throw TrainingError.noLossTokens }
    model.file.releaseHeader()
    let process = try ProcessFacts.processMemory()
    var limits = PlanLimits(
        budget: ByteCount(Int(clamping: order.budgetBytes)), threads: request.threads ?? ProcessFacts.coreCount, compute: .f32,
        optimizer: nil, spill: .zero, appliesLayerByLayer: true, calibration: nil, weightsAreCached: false)
    let sensitivity: LinearSensitivity
    do {
        sensitivity = try LinearSensitivity(of: model, modules: modules, on: seen, process: process, limits: limits)
    } catch PlanError.doesNotFit(let needed, let budget, _) {
        throw Problem(
            .insufficientMemory, "measuring needs \(needed.mebibytes) MiB, the budget is \(budget.mebibytes) MiB",
            hint: "a smaller sequence_len, fewer lora_target_modules, or when no job runs", requiredBytes: UInt64(needed.bytes),
            budgetBytes: UInt64(budget.bytes))
    }
    let importance = try sensitivity.measure(kernels: kernels, seed: spec.seed) { done in
        guard !channel.isStopRequested else { throw Problem(.wrongState, "looking for ranks was stopped") }
        channel.send(.ranking(RankEvent(sample: done, of: seen.count)))
    }
    channel.send(.ranking(RankEvent(sample: seen.count, of: seen.count)))

    let apportionment = adapter.apportionment(importance, of: modules, model.spec)
    let uniform = apportionment.parameters(modules.map { _ in adapter.rank })
    var ranks = apportionment.ranks(parameters: uniform)!  // one rank everywhere is no more than the job's
    var jobPeak: ByteCount?
    if let budget = order.jobBudget {
        limits = PlanLimits(
            budget: ByteCount(Int(clamping: budget.bytes)), threads: limits.threads, compute: try spec.computeType(on: kernels),
            optimizer: spec.optimizer, spill: ByteCount(Int(clamping: BlobStore.freeBytes(order.modelPath) / 2)),
            appliesLayerByLayer: spec.maxGradNorm == nil, calibration: nil, weightsAreCached: false)
        (ranks, jobPeak) = try largest(apportionment, of: adapter, modules, model, SampleLengths(dataset, spec: spec), process, limits)
    }
    let found = adapter.with(ranks: ranks, of: modules, model.spec)
    var report = RankReport(
        rows: zip(modules, zip(importance, ranks)).map { .init(linear: $0.path(model.spec), importance: $1.0, rank: $1.1) },
        rankPattern: Dictionary(uniqueKeysWithValues: found.rankPattern.rows.map { ($0.pattern, $0.value) }),
        alphaPattern: Dictionary(uniqueKeysWithValues: found.alphaPattern.rows.map { ($0.pattern, $0.value) }), samples: seen.count,
        tokens: Dataset.lossTokens(seen), parameters: apportionment.parameters(ranks), uniformParameters: uniform,
        plannedPeakBytes: UInt64(sensitivity.plannedPeak.bytes), peakBytes: ProcessFacts.residentBytes().peak)
    (report.budgetBytes, report.budgetReason) = (order.jobBudget?.bytes, order.jobBudget?.reason)
    report.jobPeakBytes = jobPeak.map { UInt64($0.bytes) }
    return report
}

/// Jobs that ranks of their own mean nothing to.
private func refuse(_ request: JobRequest, _ adapter: AdapterSpec) throws {
    func require(_ condition: Bool, _ text: String, hint: String) throws {
        guard condition else { throw Problem(.invalidValue, text, hint: hint) }
    }
    let method = adapter.method
    try require(
        method.peftType == AdapterMethods.lora.peftType && !method.drawsRank,
        "adapter: the linears of \(method.name) have one rank", hint: "use lora, lora-fa or dora")
    try require(
        request.rankPattern == nil && request.alphaPattern == nil, "rank_pattern and alpha_pattern are what is looked for",
        hint: "leave them out")
    try require(request.initFromAdapter == nil, "init_from_adapter: that adapter has its ranks", hint: "leave it out")
    try require(
        adapter.start != .orthogonal, "init_lora_weights: orthogonal wants even ranks, and any may come out", hint: "use another start")
    try require(adapter.rank > 1, "lora_r: 1 leaves no rank to give", hint: "use 2 or more")
}

/// The most ranks whose plan fits, and its peak.
private func largest(
    _ apportionment: RankApportionment, of adapter: AdapterSpec, _ modules: [ModuleID], _ model: BaseModel, _ lengths: SampleLengths,
    _ process: ProcessMemory, _ limits: PlanLimits
) throws -> (ranks: [Int], peak: ByteCount) {
    let weights = WeightParts(model)
    func plan(_ ranks: [Int], within budget: ByteCount) throws -> TrainingPlan {
        let memory = MemoryModel(
            spec: model.spec, adapter: adapter.with(ranks: ranks, of: modules, model.spec), modules: modules, weights: weights, process: process)
        var limits = limits
        limits.budget = budget
        return try TrainingPlan.make(memory, lengths: lengths, limits)
    }
    // The worker that plans the job may hold this much more than this one.
    let inner = ByteCount(max(0, limits.budget.bytes - (1 << 20)))
    let found = try apportionment.ranks { ranks in
        do { return try plan(ranks, within: inner).peak <= inner } catch PlanError.doesNotFit { return false }
    }
    // Of one rank everywhere the plan says what would fit.
    let ranks = found ?? modules.map { _ in 1 }
    return (ranks, try plan(ranks, within: limits.budget).peak)
}
