// The table of methods: the plan that each would have for the same samples, without any of them.
import EdgeFormats
import EdgeJobs
import EdgeModel
import EdgeTensor
import EdgeTrain
import EdgeWire

func methodTable(_ order: WorkOrder.MethodsOrder) throws -> MethodTable {
    let kernels = try ProcessFacts.kernelSet()
    let model = try BaseModel.open(path: order.modelPath)
    let length = min(order.request.sequenceLen, model.spec.contextLength)
    let sample = TokenizedSample(
        tokens: [TokenID](repeating: 0, count: length), carriesLoss: [Bool](repeating: true, count: length))
    model.file.releaseHeader()
    let process = try ProcessFacts.processMemory()
    let weights = WeightParts(model)
    func spec(_ method: any AdapterMethod) throws -> TrainingSpec {
        var job = order.request.job(adapter: method.name)
        if !method.adaptsLinears || !method.hasTargets { job.loraTargetModules = .pattern("all-linear") }
        // How many there are is for each job to say: the row is of one.
        if method is TrainableTokens { job.tokenIndices = [0] }
        return try TrainingSpec(job, defaultSaveSteps: 1)
    }
    let common = try spec(AdapterMethods.lora)
    let limits = PlanLimits(
        budget: ByteCount(Int(clamping: order.budgetBytes)), threads: order.threads, compute: try common.computeType(on: kernels),
        optimizer: common.optimizer, spill: ByteCount(Int(clamping: BlobStore.freeBytes(order.modelPath) / 2)),
        appliesLayerByLayer: common.maxGradNorm == nil, calibration: calibration(at: order.calibrationPath),
        weightsAreCached: staysCached(UInt64(model.file.fileBytes), beside: order.budgetBytes, available: order.availableBytes))
    let rows = try AdapterMethods.all.compactMap { method -> MethodTable.Row? in
        let spec = try spec(method)
        guard let modules = try adapted(by: spec.adapter, of: model.spec) else { return nil }
        let memory = MemoryModel(
            spec: model.spec, adapter: spec.adapter, modules: modules, weights: weights, process: process)
        var row = MethodTable.Row(
            name: method.name, rank: method.configKeys.rank.map { _ in spec.adapter.rank },
            trainableParameters: memory.layout.trainableCount, peakBytes: 0, fits: false, tokensPerSecond: nil,
            adapterBytes: UInt64(memory.layout.fileBytes),
            exports: (method is HubAdapter ? ["adapters"] : method.isPEFTs ? ["peft"] : [])
                + (method.isLoRA(spec.adapter) || spec.adapter.method.tasks != nil ? ["gguf"] : []))
        let own = sample.behindVirtualTokens(spec.adapter.promptTokens)
        let dataset = Dataset(training: [TokenizedSample](repeating: own, count: order.request.samplesPerStep), heldOut: [])
        let lengths = SampleLengths(dataset, spec: spec)
        row.forwardOnlyPeakBytes = TrainingPlan.leastPeakWithoutBackward(memory, lengths: lengths, limits).map { UInt64($0.bytes) }
        do {
            let plan = try TrainingPlan.make(memory, lengths: lengths, limits)
            (row.peakBytes, row.fits) = (UInt64(plan.peak.bytes), true)
            row.tokensPerSecond = plan.seconds.map { plan.tokens / $0 }
        } catch PlanError.doesNotFit(let required, _, _) {
            row.peakBytes = UInt64(required.bytes)
        }
        return row
    }
    return MethodTable(rows: rows, budgetBytes: order.budgetBytes, budgetReason: order.budgetReason)
}

/// Nil of a method that these linears cannot have, which has no row.
private func adapted(by adapter: AdapterSpec, of spec: DecoderSpec) throws -> [ModuleID]? {
    do {
        return try adapter.modules(of: spec)
    } catch let error as AdapterTargetError {
        if error.isOfMethod { return nil }
        throw error
    }
}
