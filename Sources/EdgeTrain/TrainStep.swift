// One micro-batch through the model and back. All memory is taken when the value is made; a step allocates nothing.
import EdgeFormats
import EdgeModel
import EdgeTensor

/// Samples of a micro-batch, one after the other, with the rows that carry loss.
package struct MicroBatch {
    package let tokens: [TokenID]
    package let positions: [Int32]
    package let spans: [AttentionSpan]
    /// Of the samples, numbers of their tasks.
    package let tasks: [Int?]
    /// Rows whose next token counts, and that token.
    package let lossRows: [Int32]
    package let targets: [Int32]

    package init(_ samples: [TokenizedSample]) {
        var tokens: [TokenID] = []
        var positions: [Int32] = []
        var spans: [AttentionSpan] = []
        var lossRows: [Int32] = []
        var targets: [Int32] = []
        for sample in samples {
            let first = tokens.count
            let count = sample.tokens.count
            tokens += sample.tokens
            positions += (0..<Int32(count))
            spans.append(AttentionSpan(firstQuery: first, queryCount: count, firstKey: first, keyCount: count))
            for i in 1..<max(count, 1) where sample.carriesLoss[i] {
                lossRows.append(Int32(first + i - 1))
                targets.append(sample.tokens[i])
            }
        }
        self.tokens = tokens
        self.positions = positions
        self.spans = spans
        tasks = samples.map(\.task)
        self.lossRows = lossRows
        self.targets = targets
    }
}

/// A micro-batch of one of the jobs that train together, and what comes of it.
package struct JobMicroBatch {
    /// Number of the job.
    package let job: Int
    package let batch: MicroBatch
    /// What the gradients are of: so many times Σ nll.
    package let lossScale: Float
    /// Where the adapter is meanwhile, in a step that has no backward; nil: where it is.
    package let perturbation: Perturbation?
    /// And so much of each sample's own part of the loss, of a method that has one.
    package let sampleShare: Float
    /// Nil: no dropout.
    package let masks: DropoutMasks?
    /// What the step has drawn, of a method that draws one; nil: all ranks.
    package let rank: Int?
    /// Where the layers below the adapted ones have left what they made of the samples; nil: they run. Only of a job that is alone.
    package let cached: CachedSamples?
    /// Σ nll over the loss tokens, in nats, which is added to.
    package var loss: Double

    package init(
        job: Int = 0, _ batch: MicroBatch, lossScale: Float, sampleShare: Float = 0, masks: DropoutMasks? = nil, rank: Int? = nil,
        cached: CachedSamples? = nil, perturbation: Perturbation? = nil, addingTo loss: Double = 0
    ) {
        self.perturbation = perturbation
        self.cached = cached
        self.job = job
        self.batch = batch
        self.lossScale = lossScale
        self.sampleShare = sampleShare
        self.masks = masks
        self.rank = rank
        self.loss = loss
    }
}

package final class TrainStep {
    private let model: BaseModel
    /// Of the jobs that train together.
    package let adapters: [AdapterSet]
    private let shape: StepShape
    package let pool: WorkerPool
    private let rotaries: [RotaryEmbedding]
    private let rounding: RoundedRows
    private let weights: WeightStream
    private let checkpoints: LayerCheckpoints
    /// Of the uppermost layers, by layer.
    private let kept: [LayerActivations]
    /// What every other layer uses.
    private let activations: LayerActivations
    private let workspace: LayerWorkspace
    /// Empty where there is no backward.
    private let dH: Tensor
    private let dropped: Tensor?
    private let scaledRows: UnsafeMutablePointer<Float>
    /// Nil where no job has a side network.
    private let side: SideMemory?
    private let head: HeadMemory
    private let tokenHead: TokenHead?
    /// Nil unless products are computed in int8.
    private let smoothing: Smoothing?
    private let embeddingRow: UnsafeMutableRawPointer
    private let tokens: UnsafeMutablePointer<Int32>
    private let positions: UnsafeMutablePointer<Int32>
    private let lossRows: UnsafeMutablePointer<Int32>
    private let targets: UnsafeMutablePointer<Int32>

    private struct Smoothing {
        let layers: [LayerSmoothing]
        let head: UnsafeMutablePointer<Float>

        init(_ spec: DecoderSpec, arena: Arena) {
            layers = (0..<spec.layerCount).map { _ in LayerSmoothing(spec, arena: arena) }
            head = arena.floats(spec.hiddenSize)
        }
    }

    /// What the head needs for one chunk of loss tokens; `dInput` is empty where there is no backward.
    private struct HeadMemory {
        let logits: Tensor, input: Tensor, normed: Tensor, dInput: Tensor
        let inverseNorm: UnsafeMutablePointer<Float>
        let losses: UnsafeMutablePointer<Float>
        /// Of side networks; empty where there is none.
        let states: UnsafeMutablePointer<Float>

        init(_ shape: StepShape, _ spec: DecoderSpec, _ side: SideSizes?, arena: Arena) {
            logits = arena.tensor(shape.lossChunk, spec.vocabularySize)
            input = arena.tensor(shape.lossChunk, spec.hiddenSize)
            normed = arena.tensor(shape.lossChunk, spec.hiddenSize)
            dInput = arena.tensor(shape.hasBackward ? shape.lossChunk : 0, spec.hiddenSize)
            inverseNorm = arena.floats(shape.lossChunk)
            losses = arena.floats(shape.lossChunk)
            states = arena.floats(shape.lossChunk * (side?.width ?? 0))
        }
    }

    /// What trained tokens that are rows of the head, too, need of it for their gradients, which come sample by sample: with the
    /// embeddings' own. By loss token of the batch.
    private struct TokenHead {
        /// What the head read.
        let normed: Tensor
        /// Logits of a job's trained tokens, and then their gradients: a job's rows follow each other, as wide as it has tokens.
        private let ownLogits: Tensor

        /// Nil where there are none.
        init?(_ shape: StepShape, _ memory: MemoryModel, arena: Arena) {
            guard memory.trainedHeadRows > 0 else { return nil }
            normed = arena.tensor(shape.tokens, memory.spec.hiddenSize)
            ownLogits = arena.tensor(shape.tokens, memory.trainedHeadRows)
        }

        /// - Parameters:
        ///   - jobStart: the job's first loss token.
        ///   - lossTokens: of the batch.
        func logits(_ lossTokens: Range<Int>, jobStart: Int, width: Int) -> Tensor {
            Tensor(
                ownLogits.row(jobStart) + (lossTokens.lowerBound - jobStart) * width, rows: lossTokens.count, columns: width)
        }
    }

    /// - Parameters:
    ///   - arena: has room for all pools of `MemoryModel.arena` that this type and its pool take.
    ///   - spillDirectory: where layer checkpoints go when they go to a file.
    /// - Throws: `FileError` when that file cannot have its size.
    package init(
        model: BaseModel, memory: MemoryModel, shape: StepShape, kernels: KernelSet, arena: Arena,
        spillDirectory: String
    ) throws {
        let spec = model.spec
        self.model = model
        self.shape = shape
        // First in the arena: publishing gives back everything behind them.
        let parameters = memory.layouts.map { arena.floats($0.parameterCount) }
        adapters = zip(memory.layouts, parameters).map { layout, parameters in
            AdapterSet(
                layout, of: spec, parameters: parameters, gradients: arena.floats(layout.gradientCount(shape.gradients)),
                factorSpace: arena.floats(layout.factorCount(isTrained: shape.hasBackward)), shape.gradients)
        }
        pool = WorkerPool(
            kernels: kernels, threadCount: shape.threads, scratchFloats: memory.scratchFloats(shape), arena: arena)
        rotaries = RotaryEmbedding.tables(positions: memory.positions(shape), spec, arena: arena)
        rounding = RoundedRows(shape.compute, capacity: memory.rounding(shape), arena: arena)
        weights = WeightStream(model, shape.weights, arena: arena)
        checkpoints = try LayerCheckpoints(
            shape.checkpoints, tokens: shape.tokens, lowest: memory.lowestKeptInput(shape), spec, directory: spillDirectory,
            arena: arena)
        func layerActivations(mlpTokens: Int) -> LayerActivations {
            LayerActivations(
                tokens: shape.tokens, mlpTokens: mlpTokens, rank: memory.factorRank, adapted: memory.adaptedModules, memory.partMemory, spec,
                arena: arena)
        }
        kept = (0..<shape.keptLayers).map { _ in layerActivations(mlpTokens: shape.tokens) }
        let ((layer, sideWork), head) = arena.either {
            arena.either {
                (
                    layerActivations(mlpTokens: shape.mlpTokens),
                    LayerWorkspace(
                        tokens: shape.tokens, mlpTokens: shape.mlpTokens, memory.partMemory, spec, memory.layerUse(shape),
                        memory.mixture, arena: arena),
                    memory.widestDropped > 0 ? arena.tensor(shape.tokens, memory.widestDropped) : nil,
                    arena.floats(memory.scaledCount(shape))
                )
            } or: {
                memory.side.map { SideMemory.work($0, tokens: shape.tokens, memory.sideUse(shape), arena: arena) } ?? []
            }
        } or: {
            HeadMemory(shape, spec, memory.side, arena: arena)
        }
        (activations, workspace, dropped, scaledRows) = layer
        self.head = head
        side = memory.side.map {
            let states = SideMemory.states($0, tokens: shape.tokens, layers: spec.layerCount, memory.sideUse(shape), arena: arena)
            return SideMemory($0, states: states, work: sideWork)
        }
        tokenHead = TokenHead(shape, memory, arena: arena)
        dH = arena.tensor(shape.hasBackward ? shape.tokens : 0, spec.hiddenSize)
        smoothing = shape.compute == .int8 ? Smoothing(spec, arena: arena) : nil
        embeddingRow = arena.bytes(.wholeLines(model.embedding.rowBytes)).baseAddress!
        tokens = arena.integers(shape.tokens)
        positions = arena.integers(shape.tokens)
        lossRows = arena.integers(shape.tokens)
        targets = arena.integers(shape.tokens)
    }

    package var kernels: KernelSet { pool.kernels }

    /// Called around every operation; see `OperationObserver`.
    package var observer: OperationObserver? {
        get { pool.observer }
        set { pool.observer = newValue }
    }

    /// Finds what int8 products divide the channels of their inputs by, from the frozen model's own activations on these samples:
    /// before the first step, and again before a resumed run's. Other types need none. It is the largest of each channel, so how
    /// samples are packed has no part in it.
    package func measureSmoothing(_ samples: [TokenizedSample]) throws {
        guard let smoothing else { return }
        for some in packed(samples, tokenBudget: shape.tokens, tokens: \.tokens.count) {
            let batch = load([(MicroBatch(some), nil)])
            try forward(batch, .measuringSmoothing)
            // The head's input, in the place of the last layer's, which has been read.
            let normed = checkpoints.input(of: model.spec.layerCount - 1)
            normalizeForHead(
                checkpoints.input(of: model.spec.layerCount), [HeadRows(adapters: nil, rows: 0..<batch.tokenCount)], into: normed,
                inverse: activations.logSumExp.base)
            EdgeTensor.measureSmoothing(normed, into: smoothing.head, on: pool)
        }
    }

    /// What every linear of the frozen model reads of a sample, from the first layer on.
    package func watchInputs(_ sample: TokenizedSample, _ watch: @escaping DecoderLayer.InputWatch) throws {
        try forward(load([(MicroBatch([sample]), nil)]), .watchingInputs(watch))
    }

    /// A job's adapter as its method begins it; what begins as the base is, too.
    ///
    /// - Throws: `FileError` when embeddings cannot be read.
    package func initialize(seed: UInt64, job: Int = 0) throws {
        adapters[job].initialize(seed: seed)
        adapters[job].copyNorms(of: model)
        // Each has brought the pages around it, which a plan with streamed weights has no room for later.
        if shape.weights != .resident { model.releaseResidentWeights() }
        if let rows = adapters[job].tokenRows {
            try rows.tokens.withUnsafeBufferPointer { tokens in try decodeEmbeddings(tokens.baseAddress!, into: rows.matrix) }
        }
        adapters[job].parametersChanged()
    }

    /// Makes virtual tokens of what the frozen model makes of these: their embeddings, and their keys and values in each layer.
    ///
    /// - Parameter tokens: as many as the job's method has virtual ones.
    package func startVirtualTokens(_ tokens: [TokenID], job: Int = 0) throws {
        let adapters = adapters[job]
        let sample = TokenizedSample(tokens: tokens, carriesLoss: [Bool](repeating: false, count: tokens.count))
        let batch = load([(MicroBatch([sample]), nil)])
        if let prompt = adapters.part(.prompt, layer: nil).first?.matrix { try decodeEmbeddings(self.tokens, into: prompt) }
        if adapters.layout.parts.contains(where: { $0.part.site == .prefix }) {
            try forward(
                batch,
                .keepingKeys { layer, keys, values in
                    for (part, rows) in zip(adapters.part(.prefix, layer: layer), [keys, values]) { part.matrix.copy(from: rows) }
                })
        }
        adapters.parametersChanged()
    }

    /// Adds the gradients of each job's `lossScale` · Σ nll to its adapter's gradients, and Σ nll to its `loss`: where there is no
    /// backward, only that, of the adapter as it is perturbed. Every number is what it would be if the job were alone.
    ///
    /// - Parameters:
    ///   - work: at most one micro-batch of each job.
    ///   - finished: called with each adapted layer once a job's gradients of it are complete, from the last layer to the first, and then
    ///     with the number of layers for those that are no layer's.
    /// - Throws: `FileError` when weights or spilled layer inputs cannot be read or written, and what `finished` throws.
    package func accumulate(
        _ work: inout [JobMicroBatch], finished: (_ layer: Int, JobMicroBatch) throws -> Void = { _, _ in }
    ) throws {
        for one in work { adapters[one.job].use(rank: one.rank) }
        defer { for one in work { adapters[one.job].use(rank: nil) } }
        let batch = load(work.map { ($0.batch, $0.job) })
        let pass = Pass.training(work)
        precondition(work.count == 1 || work.allSatisfy { $0.cached == nil })
        precondition(work.allSatisfy { ($0.perturbation == nil) == shape.hasBackward })
        guard shape.hasBackward else { return try probe(&work, batch) }
        let sides = try forward(batch, pass, work[0].cached)
        let dH = dH.prefix(batch.tokenCount)
        dH.clear()
        let lowest = work.map { adapters[$0.job].layout.lowestBackwardLayer }.min()!
        let hasLayers = lowest < model.spec.layerCount
        try headLoss(&work, sides, .gradient, after: hasLayers ? first(ofBackward: model.spec.layerCount - 1) : .attention(0))
        // Before the layers make another gradient of this one.
        try sideBackward(work, sides, dH, finished)
        let needsInput = work.contains { adapters[$0.job].layout.needsInputGradient(of: lowest) }
        for index in stride(from: model.spec.layerCount - 1, through: lowest, by: -1) {
            let isLowest = index == lowest
            let input = try checkpoints.fetch(index, on: pool)
            let activations = activations(of: index)
            if !keeps(index) {
                try weights.use(.attention(index), next: .mlp(index))
                layer(index, pass).attentionForward(input, batch, activations, workspace)
            }
            try weights.use(.mlp(index), next: .attention(index))
            layer(index, pass).mlpBackward(
                dH: dH, batch, activations, keeps(index) ? .products : .input, workspace)
            try weights.use(.attention(index), next: isLowest ? .attention(0) : first(ofBackward: index - 1))
            let layer = layer(index, pass)
            if keeps(index) { layer.restoreAttention(input, batch, activations, workspace) }
            layer.attentionBackward(
                dH: dH, input, batch, activations, workspace, isLowest && !needsInput ? .isFrozen : .needsGradient)
            for one in work where !adapters[one.job].layerRanges[index].isEmpty && adapters[one.job].layout.side == nil { try finished(index, one) }
        }
        addPromptGradients(work, batch)
        addTokenGradients(work, batch)
        for one in work where !adapters[one.job].layout.modelRange.isEmpty { try finished(model.spec.layerCount, one) }
    }

    /// Of side networks alone: the layers beside them have none, and none of theirs is computed again.
    private func sideBackward(
        _ work: [JobMicroBatch], _ sides: [SideNetwork?], _ dH: Tensor, _ finished: (_ layer: Int, JobMicroBatch) throws -> Void
    ) throws {
        let networks = zip(work, sides).compactMap { one, side in side.map { (one: one, side: $0) } }
        guard !networks.isEmpty else { return }
        for network in networks { network.side.beginBackward(dH) }
        let count = model.spec.layerCount
        for index in stride(from: count - 1, through: 0, by: -1) {
            let output = index + 1 == count ? checkpoints.input(of: count) : try checkpoints.fetch(index + 1, on: pool)
            for network in networks {
                network.side.backward(index, output)
                try finished(index, network.one)
            }
        }
        let embeddings = try checkpoints.fetch(0, on: pool)
        for network in networks { network.side.endBackward(embeddings) }
    }

    /// What is derived from the adapters and kept is, meanwhile, that of the perturbed ones.
    private func probe(_ work: inout [JobMicroBatch], _ batch: PackedBatch) throws {
        for one in work { adapters[one.job].parametersChanged() }
        defer { for one in work { adapters[one.job].parametersChanged() } }
        let sides = try forward(batch, .training(work), work[0].cached)
        try headLoss(&work, sides, .trainingLoss, after: .attention(0))
    }

    /// `accumulate` of the only job.
    package func accumulate(
        _ batch: MicroBatch, lossScale: Float, sampleShare: Float = 0, masks: DropoutMasks?, rank: Int? = nil, loss: inout Double
    ) throws {
        var work = [JobMicroBatch(batch, lossScale: lossScale, sampleShare: sampleShare, masks: masks, rank: rank, addingTo: loss)]
        try accumulate(&work)
        loss = work[0].loss
    }

    /// Adds Σ nll over the loss tokens to `loss`, in nats, without gradients or dropout.
    package func evaluate(_ microBatch: MicroBatch, job: Int = 0, cached: CachedSamples? = nil, loss: inout Double) throws {
        let sides = try forward(load([(microBatch, job)]), .evaluation(job: job), cached)
        var work = [JobMicroBatch(job: job, microBatch, lossScale: 0, addingTo: loss)]
        try headLoss(&work, sides, .heldOutLoss, after: .attention(0))
        loss = work[0].loss
    }

    /// Held-out loss: samples packed in their order, as many as `tokenBudget` tokens hold.
    ///
    /// - Parameters:
    ///   - cached: of the samples with these numbers.
    ///   - progress: gets the loss tokens that are done, after every micro-batch.
    /// - Returns: mean nll per loss token, in nats, and how many loss tokens there are.
    package func heldOutLoss(
        _ samples: [TokenizedSample], job: Int = 0, tokenBudget: Int, cached: (Range<Int>) -> CachedSamples? = { _ in nil },
        progress: (Int) throws -> Void = { _ in }
    ) throws -> (mean: Double, tokens: Int) {
        var (loss, tokens, first) = (0.0, 0, 0)
        for batch in packed(samples, tokenBudget: tokenBudget, tokens: \.tokens.count) {
            try evaluate(MicroBatch(batch), job: job, cached: cached(first..<first + batch.count), loss: &loss)
            first += batch.count
            tokens += Dataset.lossTokens(Array(batch))
            try progress(tokens)
        }
        return (loss / Double(max(1, tokens)), tokens)
    }

    package enum LogitRows {
        case everyToken
        /// The micro-batch's `lossRows`, in their order.
        case carryingLoss
    }

    /// Logits, a chunk of rows at a time: for goldens and tools.
    ///
    /// - Parameter body: gets the number of the chunk's first row, and `[rows, vocabulary]`.
    package func logits(
        of microBatch: MicroBatch, at rows: LogitRows = .everyToken, _ body: (_ firstRow: Int, _ logits: Tensor) -> Void
    ) throws {
        let batch = load([(microBatch, 0)])
        let sides = try forward(batch, .evaluation(job: 0))
        var count = microBatch.lossRows.count
        if rows == .everyToken {
            count = batch.tokenCount
            for row in 0..<count { lossRows[row] = Int32(row) }
        }
        for first in stride(from: 0, to: count, by: shape.lossChunk) {
            let rows = min(shape.lossChunk, count - first)
            let logits = try headLogits(
                first: first, [HeadRows(adapters: adapters[0], side: sides[0], rows: 0..<rows, chunkStart: first)], .unrounded, smoothing: nil, after: .headSlice(0))
            if let cap = model.spec.logitCap { softCap(logits, cap, on: pool) }
            body(first, logits)
        }
    }

    /// Of one job, or of the only one.
    package func clearGradients(job: Int = 0) { adapters[job].gradients.update(repeating: 0, count: adapters[job].gradientCount) }

    /// Copies the jobs' micro-batches into the arena, one after the other, where the kernels read them.
    ///
    /// - Parameter microBatches: with the number of the job; nil: the base alone runs.
    private func load(_ microBatches: [(batch: MicroBatch, job: Int?)]) -> PackedBatch {
        var (count, losses) = (0, 0)
        var spans: [AttentionSpan] = []
        for (batch, job) in microBatches {
            // Its keys are before the first.
            let before = job.map { adapters[$0].layout.positionShift } ?? 0
            precondition(
                count + batch.tokens.count <= shape.tokens, "\(count + batch.tokens.count) tokens in a step planned for \(shape.tokens)")
            let first = count
            (tokens + first).update(from: batch.tokens, count: batch.tokens.count)
            for span in batch.spans {
                for token in span.firstQuery..<span.firstQuery + span.queryCount {
                    positions[first + token] = rotaries.row(position: before + Int(batch.positions[token]), length: before + span.queryCount)
                }
                spans.append(
                    AttentionSpan(
                        firstQuery: first + span.firstQuery, queryCount: span.queryCount, firstKey: first + span.firstKey, keyCount: span.keyCount))
            }
            for (row, target) in zip(batch.lossRows, batch.targets) {
                (lossRows[losses], targets[losses]) = (Int32(first) + row, target)
                losses += 1
            }
            count += batch.tokens.count
        }
        return PackedBatch(
            tokenCount: count, positions: UnsafePointer(positions), spans: spans, jobs: microBatches.map(\.batch.spans.count),
            tasks: microBatches.flatMap(\.batch.tasks))
    }

    private enum Pass {
        case training([JobMicroBatch])
        /// In f32, without dropout.
        case evaluation(job: Int)
        /// In f32, without adapters.
        case measuringSmoothing
        case watchingInputs(DecoderLayer.InputWatch)
        /// Without adapters; each layer's keys and values, as they are attended to.
        case keepingKeys((_ layer: Int, _ keys: Tensor, _ values: Tensor) -> Void)
    }

    /// To be asked for anew when another part of the weights is in use.
    private func layer(_ index: Int, _ pass: Pass) -> DecoderLayer {
        var (jobs, rounding, measured) = ([LayerJob](), RoundedRows.unrounded, LayerSmoothing?.none)
        var watch: DecoderLayer.InputWatch?
        switch pass {
        case .training(let work):
            jobs = work.map { one in
                let own = adapters[one.job]
                return LayerJob(
                    one.perturbation == nil ? own : own.perturbed(layer: index), masks: one.masks, smoothing: smoothing?.layers[index],
                    sampleShare: one.sampleShare)
            }
            rounding = self.rounding
        case .evaluation(let job): jobs = [LayerJob(adapters[job])]
        case .measuringSmoothing: measured = smoothing?.layers[index]
        case .watchingInputs(let ofCaller): watch = ofCaller
        case .keepingKeys: break
        }
        var layer = DecoderLayer(
            index: index, spec: model.spec, weights: weights.inMemory(model.layers[index]), jobs: jobs, rotaries: rotaries,
            dropped: dropped, scaledRows: scaledRows, rounding: rounding, measured: measured, pool: pool)
        layer.watch = watch
        layer.mixture = jobs.isEmpty ? nil : workspace.mixture
        return layer
    }

    private func keeps(_ index: Int) -> Bool { index >= model.spec.layerCount - shape.keptLayers }

    /// The part of the weights that a layer's backward begins with.
    private func first(ofBackward index: Int) -> WeightParts.Part { keeps(index) ? .mlp(index) : .attention(index) }

    private func activations(of index: Int) -> LayerActivations {
        keeps(index) ? kept[index - (model.spec.layerCount - shape.keptLayers)] : activations
    }

    /// Side networks of the jobs in the batch, in its order; nil of those that have none.
    private func sides(_ batch: PackedBatch, _ pass: Pass) -> [SideNetwork?] {
        passAdapters(pass).enumerated().map { index, own in
            SideNetwork(own, model.spec, side, rotaries, batch, job: index, on: pool)
        }
    }

    /// - Returns: of the jobs in the batch, with their last states.
    @discardableResult
    private func forward(_ batch: PackedBatch, _ pass: Pass, _ cached: CachedSamples? = nil) throws -> [SideNetwork?] {
        let last = model.spec.layerCount - 1
        checkpoints.begin(tokens: batch.tokenCount)
        // The head's norm is perturbed where the lower layers come from the cache, too.
        perturb(model.spec.layerCount, pass)
        var first = 0
        if let cached, cached.areThere {
            first = cached.layer
            try cached.load(into: checkpoints.input(of: first), batch.spans, on: pool)
        } else {
            try embed(batch, pass, into: checkpoints.input(of: 0))
        }
        let sides = sides(batch, pass)
        for side in sides { side?.begin(checkpoints.input(of: 0)) }
        for index in first...last {
            if let cached, index == cached.layer, first < index { try cached.keep(checkpoints.input(of: index), batch.spans, on: pool) }
            let activations = activations(of: index)
            perturb(index, pass)
            try weights.use(.attention(index), next: .mlp(index))
            layer(index, pass).attentionForward(checkpoints.input(of: index), batch, activations, workspace)
            if case .keepingKeys(let keep) = pass {
                let (keys, values) = layer(index, pass).keysAndValues(activations, workspace, tokens: batch.tokenCount)
                keep(index, keys, values)
            }
            try weights.use(.mlp(index), next: index < last ? .attention(index + 1) : .headSlice(0))
            let output = try checkpoints.output(of: index)
            layer(index, pass).mlpForward(batch, activations, workspace, into: output)
            for side in sides { side?.forward(index, output) }
            if case .training = pass { checkpoints.keep(index, on: pool) }
        }
        return sides
    }

    /// Virtual tokens are rows of the batch, whose embeddings are the adapter's.
    private func embed(_ batch: PackedBatch, _ pass: Pass, into h: Tensor) throws {
        try decodeEmbeddings(tokens, into: h)
        let jobs = passAdapters(pass)
        for (prompt, rows) in prompts(of: jobs, batch) { h.rows(rows).copy(from: prompt.matrix) }
        for (index, job) in jobs.enumerated() {
            guard let trained = job.tokenRows else { continue }
            for rows in batch.samples(job: index) { trained.replace(loadedTokens(rows), in: h.rows(rows)) }
        }
        multiply(h, by: model.spec.embeddingScale, on: pool)
    }

    /// Of the jobs in the batch, with what is no layer's.
    private func passAdapters(_ pass: Pass) -> [AdapterSet] {
        switch pass {
        case .training(let work): work.map(modelAdapters)
        case .evaluation(let job): [adapters[job]]
        case .measuringSmoothing, .watchingInputs, .keepingKeys: []
        }
    }

    /// The rows of virtual tokens of each sample, in the samples' order.
    ///
    /// - Parameter jobs: their adapters, in the batch's order.
    private func prompts(of jobs: [AdapterSet], _ batch: PackedBatch) -> [(prompt: AdapterSet.PartMatrix, rows: Range<Int>)] {
        var prompts: [(prompt: AdapterSet.PartMatrix, rows: Range<Int>)] = []
        for (index, job) in jobs.enumerated() {
            guard let prompt = job.part(.prompt, layer: nil).first else { continue }
            prompts += batch.firstRows(job: index).map { (prompt, $0..<$0 + prompt.matrix.rows) }
        }
        return prompts
    }

    /// Of what the first layer read.
    private func addPromptGradients(_ work: [JobMicroBatch], _ batch: PackedBatch) {
        for (prompt, rows) in prompts(of: work.map { adapters[$0.job] }, batch) {
            addScaled(dH.rows(rows), scale: model.spec.embeddingScale, to: prompt.gradient, on: pool)
        }
    }

    /// A job's adapter, or what it is perturbed to, with what is no layer's.
    private func modelAdapters(_ one: JobMicroBatch) -> AdapterSet {
        one.perturbation == nil ? adapters[one.job] : adapters[one.job].perturbed(layer: model.spec.layerCount)
    }

    /// Of each job whose adapter is perturbed: that of the layer which is to run, or what is no layer's.
    private func perturb(_ index: Int, _ pass: Pass) {
        guard case .training(let work) = pass else { return }
        for one in work {
            if let perturbation = one.perturbation { adapters[one.job].perturb(layer: index, perturbation, on: pool) }
        }
    }

    private func loadedTokens(_ rows: Range<Int>) -> UnsafeBufferPointer<Int32> {
        UnsafeBufferPointer(start: tokens + rows.lowerBound, count: rows.count)
    }

    /// Of each sample those of the head's rows, and then those of what the first layer read.
    private func addTokenGradients(_ work: [JobMicroBatch], _ batch: PackedBatch) {
        var losses = 0
        for (index, one) in work.enumerated() {
            let jobStart = losses
            losses += one.batch.lossRows.count
            guard let trained = adapters[one.job].tokenRows else { continue }
            var next = jobStart
            for rows in batch.samples(job: index) {
                let first = next
                while next < losses, rows.contains(Int(lossRows[next])) { next += 1 }
                if let tokenHead {
                    let dLogits = tokenHead.logits(first..<next, jobStart: jobStart, width: trained.tokens.count)
                    let whole = SamplePart(rows: 0..<next - first, sample: 0, firstToken: 0)
                    addOuterProduct(dLogits, tokenHead.normed.rows(first..<next), [whole], into: trained.gradient, on: pool)
                }
                trained.addGradients(loadedTokens(rows), dH.rows(rows), scale: model.spec.embeddingScale)
            }
        }
    }

    /// Rows of the embedding are read, not mapped, unless they are the head's and stay in any case.
    private func decodeEmbeddings(_ tokens: UnsafePointer<Int32>, into h: Tensor) throws {
        if shape.weights == .resident && model.isHeadTied {
            decodeRows(model.embedding, tokens, into: h, on: pool)
            return
        }
        let (region, first) = (model.file.region, model.embeddingRange.lowerBound)
        try decodeRows(model.embedding, tokens, into: h, row: embeddingRow, kernels: pool.kernels) { offset, count, row in
            try region.read(at: first + offset, count: count, into: row)
        }
    }

    /// Rows that go through the head together, of one job, or, where there are no adapters, of the base alone.
    private struct HeadRows {
        let adapters: AdapterSet?
        var side: SideNetwork?
        /// In the chunk.
        let rows: Range<Int>
        /// Loss tokens of the batch before the chunk's first, and before the job's.
        var chunkStart = 0
        var jobStart = 0

        var lossTokens: Range<Int> { chunkStart + rows.lowerBound..<chunkStart + rows.upperBound }
    }

    /// A job's trained tokens that are rows of the head, and the memory for their logits.
    private func headTokens(_ part: HeadRows) -> (rows: TokenRows, logits: Tensor, normed: Tensor)? {
        guard let tokenHead, let rows = part.adapters?.tokenRows else { return nil }
        return (
            rows, tokenHead.logits(part.lossTokens, jobStart: part.jobStart, width: rows.tokens.count), tokenHead.normed.rows(part.lossTokens)
        )
    }

    /// - Parameters:
    ///   - first: loss token of the first row.
    ///   - after: the part of the weights that is needed when the head is done.
    private func headLogits(
        first: Int, _ parts: [HeadRows], _ rounding: RoundedRows, smoothing: UnsafePointer<Float>?, after next: WeightParts.Part
    ) throws -> Tensor {
        let rows = parts.last?.rows.upperBound ?? 0
        let hidden = checkpoints.input(of: model.spec.layerCount)
        let input = head.input.prefix(rows), normed = head.normed.prefix(rows), logits = head.logits.prefix(rows)
        for row in 0..<rows {
            input.row(row).update(from: hidden.row(Int(lossRows[first + row])), count: hidden.columns)
        }
        for part in parts {
            part.side?.addOutput(of: lossRows + part.lossTokens.lowerBound, gathered: head.states, to: input.rows(part.rows))
        }
        normalizeForHead(input, parts, into: normed, inverse: head.inverseNorm)
        let x = rounding([normed], smoothing: smoothing, on: pool)[0]
        try forEachHeadSlice(then: next) { slice, rows in
            linear(x, [LinearOutput(weight: slice, y: logits, column: rows.lowerBound)], as: .headProduct, on: pool)
        }
        for part in parts {
            guard let tokens = headTokens(part) else { continue }
            tokens.normed.copy(from: normed.rows(part.rows))
            tokens.rows.replaceLogits(tokens.normed, own: tokens.logits, in: logits.rows(part.rows), on: pool)
        }
        return logits
    }

    /// A factor of the logits is one of what the head reads.
    private func normalizeForHead(_ hidden: Tensor, _ parts: [HeadRows], into normed: Tensor, inverse: UnsafeMutablePointer<Float>) {
        for part in parts {
            let norm = ownFinalNorm(part)?.norm ?? model.outputNorm
            normalize(hidden.rows(part.rows), norm, into: normed.rows(part.rows), inverse: inverse + part.rows.lowerBound, on: pool)
        }
        multiply(normed, by: model.spec.logitScale, on: pool)
    }

    private func ownFinalNorm(_ part: HeadRows) -> TrainedNorm? {
        part.adapters?.norm(.final, layer: nil, insteadOf: model.outputNorm, model.spec)
    }

    /// The gradients of what the norm read, and of jobs' own norms. A row carries loss once, and each is added by itself: however loss
    /// tokens are parted into chunks, the sums have the same bits.
    private func finalNormBackward(_ dNormed: Tensor, _ parts: [HeadRows], into dInput: Tensor) {
        for part in parts {
            let (dNormed, input, inverse) = (dNormed.rows(part.rows), head.input.rows(part.rows), head.inverseNorm + part.rows.lowerBound)
            let own = ownFinalNorm(part)
            own?.addGradients(dNormed, input, inverse: inverse, (0..<part.rows.count).map { $0..<$0 + 1 }, on: pool)
            normalizeBackward(
                dNormed, input, own?.norm ?? model.outputNorm, inverse: inverse, into: dInput.rows(part.rows), .overwrite, on: pool)
        }
    }

    private func forEachHeadSlice(
        then next: WeightParts.Part, _ body: (_ slice: QuantizedMatrix, _ rows: Range<Int>) -> Void
    ) throws {
        let slices = weights.headSlices
        for (index, rows) in slices.enumerated() {
            try weights.use(.headSlice(index), next: index + 1 < slices.count ? .headSlice(index + 1) : next)
            body(weights.inMemory(slices.count == 1 ? model.head : model.head.rows(rows)), rows)
        }
    }

    private enum HeadWork {
        /// In f32.
        case heldOutLoss
        /// Computed as in training, without gradients.
        case trainingLoss
        case gradient
    }

    /// Loss tokens that go through the head together, and those of them that each of some micro-batches has.
    private struct LossChunk {
        var rows: Range<Int>
        var parts: [(work: Int, rows: Range<Int>)]
    }

    /// At most `lossChunk` tokens at a time, in order.
    private func lossChunks(_ counts: [Int]) -> [LossChunk] {
        var (chunks, first) = ([LossChunk](), 0)
        for (work, count) in counts.enumerated() {
            let end = first + count
            while first < end {
                let room = chunks.last.map { shape.lossChunk - $0.rows.count } ?? 0
                if room == 0 { chunks.append(LossChunk(rows: first..<first, parts: [])) }
                let rows = first..<min(end, chunks.last!.rows.lowerBound + shape.lossChunk)
                chunks[chunks.count - 1].rows = chunks.last!.rows.lowerBound..<rows.upperBound
                chunks[chunks.count - 1].parts.append((work, rows))
                first = rows.upperBound
            }
        }
        return chunks
    }

    /// Head and cross-entropy together, a chunk of loss tokens at a time: logits of all tokens never exist.
    ///
    /// - Parameter sides: of the jobs in `work`.
    private func headLoss(_ work: inout [JobMicroBatch], _ sides: [SideNetwork?], _ kind: HeadWork, after next: WeightParts.Part) throws {
        let counts = work.map(\.batch.lossRows.count), chunks = lossChunks(counts)
        for (index, chunk) in chunks.enumerated() {
            let (first, rows) = (chunk.rows.lowerBound, chunk.rows.count)
            let afterChunk = index + 1 < chunks.count ? .headSlice(0) : next
            let isTraining = kind != .heldOutLoss, hasGradient = kind == .gradient
            let rounding = isTraining ? self.rounding : .unrounded
            let smoothed = isTraining ? smoothing.map { UnsafePointer($0.head) } : nil
            let parts = chunk.parts.map {
                HeadRows(
                    adapters: kind == .heldOutLoss ? adapters[work[$0.work].job] : modelAdapters(work[$0.work]),
                    side: sides[$0.work], rows: $0.rows.lowerBound - first..<$0.rows.upperBound - first, chunkStart: first,
                    jobStart: counts.prefix($0.work).reduce(0, +))
            }
            let logits = try headLogits(first: first, parts, rounding, smoothing: smoothed, after: hasGradient ? .headSlice(0) : afterChunk)
            for part in chunk.parts {
                crossEntropy(
                    logits: logits.rows(part.rows.lowerBound - first..<part.rows.upperBound - first), targets: targets + part.rows.lowerBound,
                    gradientScale: hasGradient ? work[part.work].lossScale : 0, cap: model.spec.logitCap, losses: head.losses,
                    addingTo: &work[part.work].loss, on: pool)
            }
            guard hasGradient else { continue }
            let dInput = head.dInput.prefix(rows)
            let dNormed = head.normed.prefix(rows)  // its values are not needed again
            for part in parts {
                guard let tokens = headTokens(part) else { continue }
                tokens.rows.takeLogitGradients(logits.rows(part.rows), into: tokens.logits)
            }
            let dLogits = rounding([logits], on: pool)[0]
            try forEachHeadSlice(then: afterChunk) { slice, rows in
                linearBackward(
                    [LinearGradient(dy: dLogits.columns(rows), weight: slice)], into: dNormed,
                    rows.lowerBound == 0 ? .overwrite : .add, as: .headProduct, on: pool)
            }
            for part in parts {
                guard let tokens = headTokens(part) else { continue }
                linearBackward(tokens.logits, QuantizedMatrix(tokens.rows.matrix), into: dNormed.rows(part.rows), .add, on: pool)
            }
            multiply(dNormed, by: model.spec.logitScale, on: pool)
            finalNormBackward(dNormed, parts, into: dInput)
            // A row carries loss once, so this is a copy and not a sum.
            for row in 0..<rows {
                dH.row(Int(lossRows[first + row])).update(from: dInput.row(row), count: dInput.columns)
            }
        }
    }
}
