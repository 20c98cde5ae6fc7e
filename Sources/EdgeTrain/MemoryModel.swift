// Bytes of every pool of a run, by arithmetic alone: no weight is mapped and nothing is allocated to know them. What
// TrainStep allocates is asserted against these numbers.
import EdgeModel
import EdgeTensor

/// What a step may trade for memory, and the sizes that decide how much it takes.
package struct StepShape: Equatable, Sendable {
    /// Tokens of the largest micro-batch, held-out batches included.
    package var tokens: Int
    /// Tokens of the longest sample.
    package var longestSample: Int
    /// Loss tokens whose logits exist at once.
    package var lossChunk: Int
    /// Trained layers, the uppermost, that keep the results of their products; those of the others are computed again in the
    /// backward.
    package var keptLayers: Int
    /// Tokens that the MLP of a layer does at once: all, or a part. Of layers that are kept the results are kept in any case.
    package var mlpTokens: Int
    package var weights: WeightResidence
    package var checkpoints: CheckpointStorage
    package var gradients: AdapterSet.GradientExtent
    package var threads: Int
    /// What products with frozen weights are computed in while training; held-out loss is always computed in f32.
    package var compute: ComputeType
    /// How the optimizer's moments are stored; there are none without a backward.
    package var optimizer: OptimizerState
    package var hasBackward: Bool { gradients != .forwardOnly }

    package init(
        tokens: Int, longestSample: Int, lossChunk: Int, keptLayers: Int, mlpTokens: Int? = nil, weights: WeightResidence = .resident,
        checkpoints: CheckpointStorage = .memory, gradients: AdapterSet.GradientExtent = .allLayers, threads: Int,
        compute: ComputeType, optimizer: OptimizerState = .f32
    ) {
        self.tokens = tokens
        self.longestSample = longestSample
        self.lossChunk = lossChunk
        self.keptLayers = keptLayers
        self.mlpTokens = min(tokens, max(mlpTokens ?? tokens, outerProductTokens))
        self.weights = weights
        self.checkpoints = checkpoints
        self.gradients = gradients
        self.threads = threads
        self.compute = compute
        self.optimizer = optimizer
    }
}

/// What the process holds beside the run's own memory, as it measured itself when everything but that was there.
package struct ProcessMemory: Codable, Equatable, Sendable {
    /// Program, libraries, runtime, heap, tokenised samples, thread stacks.
    package var resident: ByteCount
    /// The most that there was until then: reading a large data set takes more than a small model's training.
    package let preparation: ByteCount

    package init(resident: ByteCount, preparation: ByteCount) {
        self.resident = resident
        self.preparation = preparation
    }

    /// Of program, libraries and stacks. Measured 270 to 330 KiB on x86-64.
    package static let pageTables = ByteCount(384 << 10)

    /// A worker's on x86-64 with some hundred samples, for plans that no worker makes.
    package static let typical = ProcessMemory(resident: ByteCount(32 << 20), preparation: .zero)
}

package struct MemoryModel {
    package struct Pool: Equatable, Sendable {
        package let name: String
        package let size: ByteCount
    }

    package let spec: DecoderSpec
    package let weights: WeightParts
    package let process: ProcessMemory
    /// Of the jobs that train together.
    private let jobs: [JobMemory]
    package let layouts: [AdapterLayout]
    package let adapters: ByteCount
    /// The largest.
    let factorRank: Int
    /// Widest input of a module that is adapted with dropout: what that needs per token.
    let widestDropped: Int
    package let lowestLayer: Int
    private let lowestBackwardLayer: Int
    let adaptedModules: Set<LinearModule>
    let partMemory: PartMemory
    /// Whether an MLP can be done in parts.
    package let partsMLP: Bool
    /// Nil where no job's MLP is a mixture of experts.
    let mixture: MixtureSizes?
    /// Nil where nothing is beside the layers.
    let side: SideSizes?
    /// The most of a job.
    let trainedHeadRows: Int
    private let prefixTokens: Int

    /// What a job has for itself.
    private struct JobMemory {
        let layout: AdapterLayout
        let modules: [ModuleID]
        /// Whether its run begins from an adapter that is read into its place.
        let loadsAdapter: Bool
        /// How its optimizer's moments are stored; nil: as `StepShape.optimizer` has it.
        var optimizer: OptimizerState?
        /// With the padding between their matrices.
        let adapters: ByteCount
        /// Gradients of the layer that has most.
        let largestLayer: ByteCount
        let optimizerStates: [OptimizerState: ByteCount]
        /// What the adapter's start takes while there are no gradients yet.
        let start: ByteCount
        /// Of the model that the loftq start compares the base with.
        let original: WeightParts?
        let cache: CachedActivations?

        init(
            _ adapter: AdapterSpec, modules: [ModuleID], of spec: DecoderSpec, weights: WeightParts, loadsAdapter: Bool,
            original: WeightParts?, cache: CachedActivations?
        ) {
            self.cache = cache
            self.original = original
            self.modules = modules
            self.loadsAdapter = loadsAdapter
            // Walked once: a planner asks for hundreds of peaks.
            let layout = AdapterLayout(adapter, modules: modules, of: spec)
            self.layout = layout
            adapters = .floats(layout.parameterCount)
            largestLayer = .floats(layout.gradientCount(.oneLayer))
            let matrices = layout.trained
            optimizerStates = Dictionary(uniqueKeysWithValues: OptimizerState.allCases.map { ($0, AdamW.bytes(matrices, $0) + RankAllocator.bytes(layout)) })
            start =
                switch adapter.start {
                case .eva: EVAStart.bytes(layout)
                case .loftq: original.map { LoftQStart.bytes(layout, base: weights, original: $0) } ?? .zero
                case .kaiming, .gaussian, .orthogonal: .zero
                }
        }
    }

    /// A job's cache of activations.
    package struct CachedActivations: Equatable, Sendable {
        package let format: ActivationFormat
        /// Held-out ones, too.
        package let samples: Int
        package let tokens: Int
        package init(_ format: ActivationFormat, _ lengths: SampleLengths) {
            let all = lengths.training + lengths.heldOut
            (self.format, samples, tokens) = (format, all.count, all.reduce(0) { $0 + $1.tokens })
        }
    }

    package init(
        spec: DecoderSpec, adapter: AdapterSpec, modules: [ModuleID], weights: WeightParts, process: ProcessMemory = .typical,
        loadsAdapter: Bool = false, original: WeightParts? = nil, cache: CachedActivations? = nil
    ) {
        let job = JobMemory(
            adapter, modules: modules, of: spec, weights: weights, loadsAdapter: loadsAdapter, original: original, cache: cache)
        self.init([job], spec: spec, weights: weights, process: process)
    }

    package init(
        _ model: BaseModel, adapter: AdapterSpec, process: ProcessMemory = .typical, loadsAdapter: Bool = false,
        original: BaseModel? = nil, cache: CachedActivations? = nil
    ) throws {
        self.init(
            spec: model.spec, adapter: adapter, modules: try adapter.modules(of: model.spec), weights: WeightParts(model),
            process: process, loadsAdapter: loadsAdapter, original: original.map(WeightParts.init), cache: cache)
    }

    /// Of jobs that train together, each with the moments that it has alone.
    package init(together jobs: [(memory: MemoryModel, optimizer: OptimizerState)], process: ProcessMemory) {
        let first = jobs[0].memory
        self.init(
            jobs.flatMap { memory, optimizer in
                memory.jobs.map {
                    var job = $0
                    job.optimizer = optimizer
                    return job
                }
            }, spec: first.spec, weights: first.weights, process: process)
    }

    private init(_ jobs: [JobMemory], spec: DecoderSpec, weights: WeightParts, process: ProcessMemory) {
        self.jobs = jobs
        self.spec = spec
        self.weights = weights
        self.process = process
        layouts = jobs.map(\.layout)
        adapters = jobs.reduce(.zero) { $0 + $1.adapters }
        factorRank = layouts.map(\.factorRank).max() ?? 0
        widestDropped = layouts.filter { $0.spec.dropout > 0 }.flatMap(\.modules).map { $0.inFeatures(spec) }.max() ?? 0
        lowestLayer = jobs.map(\.layout.lowestLayer).min() ?? 0
        lowestBackwardLayer = jobs.map(\.layout.lowestBackwardLayer).min() ?? 0
        adaptedModules = jobs.reduce([]) { $0.union($1.layout.modules) }
        partMemory = PartMemory(layouts.map(\.spec), of: spec)
        partsMLP = !layouts.contains { $0.spec.method.isGated }
        mixture = MixtureSizes(layouts)
        side = SideSizes(layouts)
        trainedHeadRows = weights.isHeadTied ? layouts.map(\.spec.trainedTokens.count).max() ?? 0 : 0
        prefixTokens = layouts.map { $0.spec.prefixTokens }.max() ?? 0
    }

    /// Of the first job, or of the only one.
    package var layout: AdapterLayout { layouts[0] }
    var original: WeightParts? { jobs[0].original }
    package var modules: [ModuleID] { jobs[0].modules }
    package var adapter: AdapterSpec { layout.spec }
    /// Of the base's layers, those that a backward goes through.
    package var trainedLayers: Int { spec.layerCount - lowestBackwardLayer }
    /// Those whose inputs stay until a backward needs them.
    package var keptInputs: Int { spec.layerCount - lowestLayer }

    private func sum(_ bytes: (JobMemory) -> ByteCount) -> ByteCount { jobs.reduce(.zero) { $0 + bytes($1) } }

    func scaledCount(_ shape: StepShape) -> Int {
        layouts.map { $0.scaledCount(tokens: shape.tokens, isTrained: shape.hasBackward) }.max() ?? 0
    }

    /// What methods that store other matrices make of them for the layer at work, and the gradients of that.
    func factors(_ shape: StepShape) -> ByteCount {
        layouts.reduce(.zero) { $0 + .floats($1.factorCount(isTrained: shape.hasBackward)) }
    }

    /// An adapter, and its copy in an adapter file's order, which is written and read back in pieces. Of the only job that is all
    /// that there is then: the rest of the arena and the weights are gone. Of jobs that train together the others go on, and there is the
    /// file, too, when it is read back.
    package var publication: ByteCount { adapters + adapters }
    private var publicationBeside: ByteCount { jobs.count > 1 ? jobs.map { $0.adapters + $0.adapters }.max()! : .zero }

    /// Or, without a backward, the perturbed parameters of one layer.
    package func gradients(_ shape: StepShape) -> ByteCount {
        sum { shape.gradients == .allLayers ? .floats($0.layout.trainedCount) : $0.largestLayer }
    }
    package func optimizer(_ shape: StepShape) -> ByteCount {
        guard shape.hasBackward else { return .zero }
        return sum { $0.optimizerStates[$0.optimizer ?? shape.optimizer]! }  // all cases are there
    }
    package func optimizerState(job: Int, _ shape: StepShape) -> OptimizerState { jobs[job].optimizer ?? shape.optimizer }

    /// Of a job that is alone.
    var cache: CachedActivations? { jobs.count == 1 ? jobs[0].cache : nil }
    package func activationCache(_ shape: StepShape) -> ByteCount {
        cache.map { ActivationCache.bytes($0.format, samples: $0.samples, longest: shape.longestSample, spec) } ?? .zero
    }

    /// The lowest layer whose input stays until a backward needs it; the layer count where there is none.
    func lowestKeptInput(_ shape: StepShape) -> Int { shape.hasBackward ? lowestLayer : spec.layerCount }
    package func layerCheckpoints(_ shape: StepShape) -> ByteCount {
        LayerCheckpoints.bytes(
            shape.checkpoints, tokens: shape.tokens, trainedLayers: spec.layerCount - lowestKeptInput(shape), spec)
    }
    /// Of disk.
    package func spill(_ shape: StepShape) -> ByteCount {
        shape.checkpoints == .file
            ? LayerCheckpoints.fileBytes(tokens: shape.tokens, trainedLayers: keptInputs, spec) : .zero
    }

    private func oneLayer(_ shape: StepShape, mlpTokens: Int) -> ByteCount {
        LayerActivations.bytes(
            tokens: shape.tokens, mlpTokens: mlpTokens, rank: factorRank, adapted: adaptedModules, partMemory, spec)
    }
    /// Of the layers that keep them.
    package func keptActivations(_ shape: StepShape) -> ByteCount {
        ByteCount(oneLayer(shape, mlpTokens: shape.tokens).bytes * shape.keptLayers)
    }

    /// Whether the base's layers have one.
    private func layersHaveBackward(_ shape: StepShape) -> Bool { shape.hasBackward && trainedLayers > 0 }

    func layerUse(_ shape: StepShape) -> LayerWorkspace.Use { layersHaveBackward(shape) ? .training(rank: factorRank) : .forwardOnly }

    func sideUse(_ shape: StepShape) -> SideMemory.Use { shape.hasBackward ? .training : .forwardOnly }

    /// What is between a side network's blocks.
    package func sideStates(_ shape: StepShape) -> ByteCount {
        side.map { SideMemory.stateBytes($0, tokens: shape.tokens, layers: spec.layerCount, sideUse(shape)) } ?? .zero
    }

    private func sideWork(_ shape: StepShape) -> ByteCount {
        side.map { SideMemory.workBytes($0, tokens: shape.tokens, sideUse(shape)) } ?? .zero
    }

    /// The layer at work: what it computes again, and the backward's own.
    func layerWork(_ shape: StepShape) -> ByteCount {
        oneLayer(shape, mlpTokens: shape.mlpTokens)
            + LayerWorkspace.bytes(
                tokens: shape.tokens, mlpTokens: shape.mlpTokens, partMemory, spec, layerUse(shape), mixture)
            + .floats(shape.tokens * widestDropped) + .floats(scaledCount(shape))
    }

    func loss(_ shape: StepShape) -> ByteCount {
        let hidden = ByteCount.floats(shape.lossChunk * spec.hiddenSize)
        let row = ByteCount.floats(shape.lossChunk), states = ByteCount.floats(shape.lossChunk * (side?.width ?? 0))
        return .floats(shape.lossChunk * spec.vocabularySize) + hidden + hidden + (shape.hasBackward ? hidden : .zero) + row + row + states
    }

    /// Of trained tokens whose rows the head has, too: what it read, and the gradients of their logits, until the embeddings' own come.
    func tokenHead(_ shape: StepShape) -> ByteCount {
        trainedHeadRows == 0 ? .zero : .floats(shape.tokens * spec.hiddenSize) + .floats(shape.tokens * trainedHeadRows)
    }

    /// Between forward and backward the head works, before and after it a layer, or a side network's block, in the same memory.
    package func work(_ shape: StepShape) -> ByteCount { max(layerWork(shape), sideWork(shape), loss(shape)) }

    /// The gradient of the layer's output, which goes from layer to layer.
    package func hiddenGradient(_ shape: StepShape) -> ByteCount { shape.hasBackward ? .floats(shape.tokens * spec.hiddenSize) : .zero }

    package func smoothing(_ shape: StepShape) -> ByteCount {
        guard shape.compute == .int8 else { return .zero }
        return ByteCount(LayerSmoothing.bytes(spec).bytes * spec.layerCount) + .floats(spec.hiddenSize)
    }

    /// The largest of a step's products: its left operands in the type that is computed in.
    package func rounding(_ shape: StepShape) -> ByteCount {
        guard layersHaveBackward(shape) else {
            let operands = [
                (shape.tokens, spec.hiddenSize), (shape.tokens, spec.queryWidth), (shape.mlpTokens, spec.intermediateSize),
                (shape.lossChunk, spec.hiddenSize),
            ] + (shape.hasBackward ? [(shape.lossChunk, spec.vocabularySize)] : [])
            return operands.map { RoundedRows.bytes(shape.compute, rows: $0, widths: [$1]) }.max()!
        }
        let ofLayers = [
            [spec.hiddenSize], [spec.queryWidth], [spec.intermediateSize], [spec.intermediateSize, spec.intermediateSize],
            [spec.queryWidth, spec.keyValueWidth, spec.keyValueWidth],
        ].map { RoundedRows.bytes(shape.compute, rows: shape.tokens, widths: $0) }
        let ofHead = [spec.hiddenSize, spec.vocabularySize].map {
            RoundedRows.bytes(shape.compute, rows: shape.lossChunk, widths: [$0])
        }
        return (ofLayers + ofHead).max()!
    }

    package func scratchFloats(_ shape: StepShape) -> Int {
        max(
            CausalAttention.scratchFloats(longest: positions(shape)), spec.intermediateSize, spec.hiddenSize,
            layouts.map(\.scratchFloats).max() ?? 0)
    }

    /// Of the longest sample's last token, and of what comes before its first.
    func positions(_ shape: StepShape) -> Int { shape.longestSample + prefixTokens }

    /// That go through the step before the first, to make what virtual tokens begin as.
    var startTokens: Int {
        layouts.map { $0.spec.method.virtualTokenStart == .samples ? $0.virtualTokens : 0 }.max() ?? 0
    }

    package func scratch(_ shape: StepShape) -> ByteCount {
        WorkerPool.scratchBytes(threads: shape.threads, scratchFloats: scratchFloats(shape))
            + RotaryEmbedding.bytes(positions: positions(shape), spec)
            + ByteCount(4 * ByteCount.floats(shape.tokens).bytes) + .wholeLines(weights.embeddingRowBytes)
    }

    /// Everything that one arena holds.
    package func arena(_ shape: StepShape) -> ByteCount {
        adapters + factors(shape) + gradients(shape) + optimizer(shape) + layerCheckpoints(shape) + keptActivations(shape)
            + work(shape) + sideStates(shape) + tokenHead(shape) + hiddenGradient(shape) + rounding(shape) + smoothing(shape) + scratch(shape)
            + activationCache(shape)
            + (shape.weights == .streamed ? weights.streamBytes : .zero)
    }

    /// Eight bytes for each page that is ever mapped, in whole pages per 2 MiB; and what the program's own take.
    package func pageTables(_ shape: StepShape) -> ByteCount {
        ByteCount(ProcessMemory.pageTables.bytes + (arena(shape).bytes + (shape.weights == .resident ? weights.fileBytes : 0)) / 512)
    }

    package func pools(_ shape: StepShape) -> [Pool] {
        let optimizers = Set(jobs.indices.map { optimizerState(job: $0, shape).name }).sorted().joined(separator: " and ")
        let pools = [
            Pool(name: "base weights, \(shape.weights.rawValue)", size: shape.weights == .resident ? weights.mappedBytes : weights.streamBytes),
            Pool(name: "adapters", size: adapters + factors(shape)),
            Pool(name: shape.hasBackward ? "gradients" : "perturbed adapters of one layer", size: gradients(shape)),
            Pool(name: "optimizer state, \(optimizers)", size: optimizer(shape)),
            Pool(name: shape.hasBackward ? "layer checkpoints" : "layer inputs", size: layerCheckpoints(shape)),
            Pool(name: "kept activations", size: keptActivations(shape)),
            Pool(name: "layer at work, or head and loss", size: work(shape) + tokenHead(shape) + hiddenGradient(shape)),
            Pool(name: "rounded operands", size: rounding(shape) + smoothing(shape)),
            Pool(name: "kernel panels and tables", size: scratch(shape)),
            Pool(name: "program, libraries and samples", size: process.resident),
            Pool(name: "page tables", size: pageTables(shape)),
        ]
        let cached = activationCache(shape), states = sideStates(shape)
        // What only a backward has is not named where there is none.
        return pools.filter { shape.hasBackward || $0.size > .zero }
            + (states > .zero ? [Pool(name: "side network between its blocks", size: states)] : [])
            + (cached > .zero ? [Pool(name: "activation cache's buffer and index", size: cached)] : [])
            + (jobs.count > 1 ? [Pool(name: "an adapter that is published beside", size: publicationBeside)] : [])
    }

    /// Before the first step there are the adapters' own block and what is read into it.
    private var loading: ByteCount {
        jobs.filter(\.loadsAdapter).map { adapters + LoadedAdapter.loadingBytes($0.adapters) }.max() ?? .zero
    }

    /// With a job's start, which ends before there are gradients. Eva computes with the model. Loftq, of a job that is alone, has its own
    /// memory for weights: the run's are given back meanwhile, and a step's other memory is not in use yet, but where int8 products were
    /// measured for.
    private func starting(_ job: JobMemory, _ shape: StepShape, pools: ByteCount) -> ByteCount {
        switch job.layout.spec.start {
        case .eva: pools + ByteCount(max(0, job.start.bytes - gradients(shape).bytes))
        case .loftq:
            job.start + process.resident + pageTables(shape)
                + (shape.compute == .int8
                    ? ByteCount(arena(shape).bytes - gradients(shape).bytes - optimizer(shape).bytes) : adapters + scratch(shape))
        case .kaiming, .gaussian, .orthogonal: .zero
        }
    }

    /// The largest of the training's, the start's, the publication's, the loading's and the preparation's; the first, but for the
    /// smallest jobs.
    package func peak(_ shape: StepShape) -> ByteCount {
        let pools = pools(shape).reduce(.zero) { $0 + $1.size }
        let starting = jobs.map { self.starting($0, shape, pools: pools) }.max()!
        return max(max(pools, starting), publication + process.resident, loading + process.resident, process.preparation)
    }
}
