// The held-out loss of a model outside a run: what a merged model is compared by, and compositions are chosen by.
import EdgeFormats
import EdgeModel
import EdgeTensor

package struct HeldOutLoss {
    private let model: BaseModel
    private let adapter: LoadedAdapter?
    private let samples: [TokenizedSample]
    private let memory: MemoryModel
    private let plan: TrainingPlan

    /// Plans it as a run over these samples: a run that fits computes its held-out losses in the same memory.
    ///
    /// - Parameters:
    ///   - adapter: nil: the model by itself.
    ///   - samples: at least one.
    ///   - limits: `compute` does not matter, for held-out loss is always f32.
    /// - Throws: `PlanError` where it does not fit, `ModelError`, `AdapterMismatch`.
    package init(
        of model: BaseModel, _ adapter: LoadedAdapter?, on samples: [TokenizedSample], spec: TrainingSpec, process: ProcessMemory,
        limits: PlanLimits
    ) throws {
        // While every B is zero, none is computed with.
        let none = AdapterSpec(rank: 1, alpha: 1, dropout: 0, targets: .allLinear, layers: nil)
        let memory = MemoryModel(
            spec: model.spec, adapter: adapter?.spec ?? none, modules: try adapter?.modules(of: model.spec) ?? none.modules(of: model.spec),
            weights: WeightParts(model), process: process, loadsAdapter: adapter != nil)
        try self.init(of: model, adapter, memory, on: samples, spec: spec, limits: limits)
    }

    /// The same of whatever adapters the caller fills into the step, of this form.
    package init(
        of model: BaseModel, filling adapter: AdapterSpec, modules: [ModuleID], on samples: [TokenizedSample], spec: TrainingSpec,
        process: ProcessMemory, limits: PlanLimits
    ) throws {
        let memory = MemoryModel(spec: model.spec, adapter: adapter, modules: modules, weights: WeightParts(model), process: process)
        try self.init(of: model, nil, memory, on: samples, spec: spec, limits: limits)
    }

    private init(
        of model: BaseModel, _ adapter: LoadedAdapter?, _ memory: MemoryModel, on samples: [TokenizedSample], spec: TrainingSpec,
        limits: PlanLimits
    ) throws {
        (self.model, self.adapter, self.samples, self.memory) = (model, adapter, samples, memory)
        plan = try TrainingPlan.make(
            memory, lengths: SampleLengths(Dataset(training: samples, heldOut: samples), spec: spec), limits)
    }

    package var plannedPeak: ByteCount { plan.peak }

    /// - Parameters:
    ///   - spillDirectory: where layer inputs go when the plan has them in a file.
    ///   - progress: gets the loss tokens that are done.
    /// - Returns: mean nll per loss token, in nats, and how many loss tokens there are.
    package func measure(
        kernels: KernelSet, spillDirectory: String, progress: (Int) throws -> Void
    ) throws -> (mean: Double, tokens: Int) {
        let step = try step(kernels: kernels, spillDirectory: spillDirectory)
        if let adapter { try adapter.load(into: step.adapters[0], model.spec) } else { step.adapters[0].initialize(seed: 1) }
        return try loss(by: step, progress: progress)
    }

    /// All memory of it; its adapters are still to be filled.
    func step(kernels: KernelSet, spillDirectory: String) throws -> TrainStep {
        try TrainStep(
            model: model, memory: memory, shape: plan.shape, kernels: kernels, arena: try Arena(capacity: memory.arena(plan.shape)),
            spillDirectory: spillDirectory)
    }

    func loss(by step: TrainStep, progress: (Int) throws -> Void) throws -> (mean: Double, tokens: Int) {
        try step.heldOutLoss(samples, tokenBudget: plan.tokenBudget, progress: progress)
    }
}
