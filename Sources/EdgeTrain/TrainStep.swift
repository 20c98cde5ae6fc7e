// One micro-batch through the model and back. All memory is taken when the value is made; a step allocates nothing.
import EdgeFormats
import EdgeModel
import EdgeTensor

/// Samples of a micro-batch, one after the other, with the rows that carry loss.
package struct MicroBatch {
    package let tokens: [TokenID]
    package let positions: [Int32]
    package let spans: [AttentionSpan]
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
        self.lossRows = lossRows
        self.targets = targets
    }
}

package final class TrainStep {
    private let model: BaseModel
    package let adapters: AdapterSet
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
    private let dH: Tensor
    private let dropped: Tensor?
    private let scaledRows: UnsafeMutablePointer<Float>
    private let head: HeadMemory
    /// Empty unless products are computed in int8.
    private let smoothing: [LayerSmoothing]
    private let headSmoothing: UnsafeMutablePointer<Float>?
    private let embeddingRow: UnsafeMutableRawPointer
    private let tokens: UnsafeMutablePointer<Int32>
    private let positions: UnsafeMutablePointer<Int32>
    private let lossRows: UnsafeMutablePointer<Int32>
    private let targets: UnsafeMutablePointer<Int32>

    /// What the head needs for one chunk of loss tokens.
    private struct HeadMemory {
        let logits: Tensor, input: Tensor, normed: Tensor, dInput: Tensor
        let inverseNorm: UnsafeMutablePointer<Float>
        let losses: UnsafeMutablePointer<Float>

        init(_ shape: StepShape, _ spec: DecoderSpec, arena: Arena) {
            logits = arena.tensor(shape.lossChunk, spec.vocabularySize)
            input = arena.tensor(shape.lossChunk, spec.hiddenSize)
            normed = arena.tensor(shape.lossChunk, spec.hiddenSize)
            dInput = arena.tensor(shape.lossChunk, spec.hiddenSize)
            inverseNorm = arena.floats(shape.lossChunk)
            losses = arena.floats(shape.lossChunk)
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
        let layout = memory.layout
        adapters = AdapterSet(
            layout, of: spec, parameters: arena.floats(layout.parameterCount),
            gradients: arena.floats(layout.gradientCount(shape.gradients)), factorSpace: arena.floats(layout.factorCount(isTrained: true)),
            shape.gradients)
        pool = WorkerPool(
            kernels: kernels, threadCount: shape.threads, scratchFloats: memory.scratchFloats(shape), arena: arena)
        rotaries = RotaryEmbedding.tables(positions: shape.longestSample, spec, arena: arena)
        rounding = RoundedRows(shape.compute, capacity: memory.rounding(shape), arena: arena)
        weights = WeightStream(model, shape.weights, arena: arena)
        checkpoints = try LayerCheckpoints(
            shape.checkpoints, tokens: shape.tokens, lowest: memory.lowestLayer, spec, directory: spillDirectory,
            arena: arena)
        func layerActivations(mlpTokens: Int) -> LayerActivations {
            LayerActivations(
                tokens: shape.tokens, mlpTokens: mlpTokens, rank: memory.layout.factorRank, adapted: memory.adaptedModules, spec, arena: arena)
        }
        kept = (0..<shape.keptLayers).map { _ in layerActivations(mlpTokens: shape.tokens) }
        let (layer, head) = arena.either {
            (
                layerActivations(mlpTokens: shape.mlpTokens),
                LayerWorkspace(
                    tokens: shape.tokens, mlpTokens: shape.mlpTokens, spec, .training(rank: memory.layout.factorRank), arena: arena),
                memory.adapter.dropout > 0 ? arena.tensor(shape.tokens, memory.widestInput) : nil,
                arena.floats(memory.layout.scaledCount(tokens: shape.tokens, isTrained: true))
            )
        } or: {
            HeadMemory(shape, spec, arena: arena)
        }
        (activations, workspace, dropped, scaledRows) = layer
        self.head = head
        dH = arena.tensor(shape.tokens, spec.hiddenSize)
        let isSmoothed = shape.compute == .int8
        smoothing = isSmoothed ? (0..<spec.layerCount).map { _ in LayerSmoothing(spec, arena: arena) } : []
        headSmoothing = isSmoothed ? arena.floats(spec.hiddenSize) : nil
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

    /// Finds what int8 products divide the channels of their inputs by, from the frozen model's own activations on these
    /// samples: before the first step, and again before a resumed run's. Other types need none. Sample by sample, so that the
    /// plan's micro-batches have no part in it.
    package func measureSmoothing(_ samples: [TokenizedSample]) throws {
        for sample in samples { try measureSmoothing(sample) }
    }

    private func measureSmoothing(_ sample: TokenizedSample) throws {
        guard let headSmoothing else { return }
        let batch = load(MicroBatch([sample]))
        try forward(batch, .measuringSmoothing)
        // The head's input, where gradients will be.
        let normed = dH.prefix(batch.tokenCount)
        normalizeForHead(checkpoints.input(of: model.spec.layerCount), into: normed, inverse: activations.logSumExp.base)
        EdgeTensor.measureSmoothing(normed, into: headSmoothing, on: pool)
    }

    /// What every linear of the frozen model reads of a sample, from the first layer on.
    package func watchInputs(_ sample: TokenizedSample, _ watch: @escaping DecoderLayer.InputWatch) throws {
        try forward(load(MicroBatch([sample])), .watchingInputs(watch))
    }

    /// Adds the gradients of `lossScale` · Σ nll to the adapters' gradients, and Σ nll over the loss tokens to `loss`, in nats.
    ///
    /// - Parameters:
    ///   - masks: nil: no dropout.
    ///   - rank: what the step has drawn, of a method that draws one; nil: all ranks.
    ///   - finished: called with each adapted layer once its gradients are complete, from the last to the first, and with `loss`.
    /// - Throws: `FileError` when weights or spilled layer inputs cannot be read or written, and what `finished` throws.
    package func accumulate(
        _ microBatch: MicroBatch, lossScale: Float, masks: DropoutMasks?, rank: Int? = nil, loss: inout Double,
        finished: (_ layer: Int, _ loss: Double) throws -> Void = { _, _ in }
    ) throws {
        let batch = load(microBatch)
        adapters.use(rank: rank)
        defer { adapters.use(rank: nil) }
        try forward(batch, .training(masks))
        let dH = dH.prefix(batch.tokenCount)
        dH.clear()
        try headLoss(microBatch.lossRows.count, .gradient(scale: lossScale), after: first(ofBackward: model.spec.layerCount - 1), &loss)
        for index in stride(from: model.spec.layerCount - 1, through: adapters.lowestLayer, by: -1) {
            let isLowest = index == adapters.lowestLayer
            let input = try checkpoints.fetch(index, on: pool)
            let activations = activations(of: index)
            if !keeps(index) {
                try weights.use(.attention(index), next: .mlp(index))
                layer(index, .training(masks)).attentionForward(input, batch, activations, workspace)
            }
            try weights.use(.mlp(index), next: .attention(index))
            layer(index, .training(masks)).mlpBackward(
                dH: dH, batch, activations, keeps(index) ? .products : .input, workspace)
            try weights.use(.attention(index), next: isLowest ? .attention(0) : first(ofBackward: index - 1))
            let layer = layer(index, .training(masks))
            if keeps(index) { layer.restoreAttention(input, batch, activations, workspace) }
            layer.attentionBackward(
                dH: dH, input, batch, activations, workspace, isLowest ? .isFrozen : .needsGradient)
            if !adapters.layerRanges[index].isEmpty { try finished(index, loss) }
        }
    }

    /// Adds Σ nll over the loss tokens to `loss`, in nats, without gradients or dropout.
    package func evaluate(_ microBatch: MicroBatch, loss: inout Double) throws {
        try forward(load(microBatch), .evaluation)
        try headLoss(microBatch.lossRows.count, .lossOnly, after: .attention(0), &loss)
    }

    /// Held-out loss: samples packed in their order, as many as `tokenBudget` tokens hold.
    ///
    /// - Parameter progress: gets the loss tokens that are done, after every micro-batch.
    /// - Returns: mean nll per loss token, in nats, and how many loss tokens there are.
    package func heldOutLoss(
        _ samples: [TokenizedSample], tokenBudget: Int, progress: (Int) throws -> Void = { _ in }
    ) throws -> (mean: Double, tokens: Int) {
        var (loss, tokens) = (0.0, 0)
        for batch in packed(samples, tokenBudget: tokenBudget, tokens: \.tokens.count) {
            try evaluate(MicroBatch(batch), loss: &loss)
            tokens += Dataset.lossTokens(Array(batch))
            try progress(tokens)
        }
        return (loss / Double(max(1, tokens)), tokens)
    }

    /// Logits of every token, a chunk at a time: for goldens and tools.
    package func logits(of microBatch: MicroBatch, _ body: (_ firstToken: Int, _ logits: Tensor) -> Void) throws {
        let batch = load(microBatch)
        try forward(batch, .evaluation)
        for row in 0..<batch.tokenCount { lossRows[row] = Int32(row) }
        for first in stride(from: 0, to: batch.tokenCount, by: shape.lossChunk) {
            let rows = min(shape.lossChunk, batch.tokenCount - first)
            let logits = try headLogits(first: first, rows: rows, .unrounded, after: .headSlice(0))
            if let cap = model.spec.logitCap { softCap(logits, cap, on: pool) }
            body(first, logits)
        }
    }

    package func clearGradients() { adapters.gradients.update(repeating: 0, count: adapters.gradientCount) }

    /// Copies the micro-batch into the arena, where the kernels read it.
    private func load(_ microBatch: MicroBatch) -> PackedBatch {
        let count = microBatch.tokens.count
        precondition(count <= shape.tokens, "\(count) tokens in a step planned for \(shape.tokens)")
        microBatch.tokens.withUnsafeBufferPointer { tokens.update(from: $0.baseAddress!, count: count) }
        for span in microBatch.spans {
            for token in span.firstQuery..<span.firstQuery + span.queryCount {
                positions[token] = rotaries.row(position: Int(microBatch.positions[token]), length: span.queryCount)
            }
        }
        let losses = microBatch.lossRows.count
        if losses > 0 {
            microBatch.lossRows.withUnsafeBufferPointer { lossRows.update(from: $0.baseAddress!, count: losses) }
            microBatch.targets.withUnsafeBufferPointer { targets.update(from: $0.baseAddress!, count: losses) }
        }
        return PackedBatch(tokenCount: count, positions: UnsafePointer(positions), spans: microBatch.spans)
    }

    private enum Pass {
        case training(DropoutMasks?)
        /// In f32, without dropout.
        case evaluation
        /// In f32, without adapters.
        case measuringSmoothing
        case watchingInputs(DecoderLayer.InputWatch)
    }

    /// To be asked for anew when another part of the weights is in use.
    private func layer(_ index: Int, _ pass: Pass) -> DecoderLayer {
        var masks: DropoutMasks?
        var smoothed = DecoderLayer.Smoothing.none
        var (adapters, rounding) = (Optional(adapters), RoundedRows.unrounded)
        var watch: DecoderLayer.InputWatch?
        switch pass {
        case .training(let ofBatch):
            (masks, rounding) = (ofBatch, self.rounding)
            if !smoothing.isEmpty { smoothed = .of(smoothing[index]) }
        case .evaluation: break
        case .measuringSmoothing:
            adapters = nil
            smoothed = .measured(smoothing[index])
        case .watchingInputs(let ofCaller): (adapters, watch) = (nil, ofCaller)
        }
        var layer = DecoderLayer(
            index: index, spec: model.spec, weights: weights.inMemory(model.layers[index]), adapters: adapters, rotaries: rotaries,
            dropped: dropped, scaledRows: scaledRows, masks: masks, rounding: rounding, smoothing: smoothed, pool: pool)
        layer.watch = watch
        return layer
    }

    private func keeps(_ index: Int) -> Bool { index >= model.spec.layerCount - shape.keptLayers }

    /// The part of the weights that a layer's backward begins with.
    private func first(ofBackward index: Int) -> WeightParts.Part { keeps(index) ? .mlp(index) : .attention(index) }

    private func activations(of index: Int) -> LayerActivations {
        keeps(index) ? kept[index - (model.spec.layerCount - shape.keptLayers)] : activations
    }

    private func forward(_ batch: PackedBatch, _ pass: Pass) throws {
        let last = model.spec.layerCount - 1
        checkpoints.begin(tokens: batch.tokenCount)
        try embed(into: checkpoints.input(of: 0))
        for index in 0...last {
            let activations = activations(of: index)
            try weights.use(.attention(index), next: .mlp(index))
            layer(index, pass).attentionForward(checkpoints.input(of: index), batch, activations, workspace)
            try weights.use(.mlp(index), next: index < last ? .attention(index + 1) : .headSlice(0))
            layer(index, pass).mlpForward(batch, activations, workspace, into: try checkpoints.output(of: index))
            if case .training = pass { checkpoints.keep(index, on: pool) }
        }
    }

    /// Rows of the embedding are read, not mapped, unless they are the head's and stay in any case.
    private func embed(into h: Tensor) throws {
        defer { multiply(h, by: model.spec.embeddingScale, on: pool) }
        if shape.weights == .resident && model.isHeadTied {
            decodeRows(model.embedding, tokens, into: h, on: pool)
            return
        }
        let (region, first) = (model.file.region, model.embeddingRange.lowerBound)
        try decodeRows(model.embedding, tokens, into: h, row: embeddingRow, kernels: pool.kernels) { offset, count, row in
            try region.read(at: first + offset, count: count, into: row)
        }
    }

    /// - Parameter after: the part of the weights that is needed when the head is done.
    private func headLogits(first: Int, rows: Int, _ rounding: RoundedRows, after next: WeightParts.Part) throws -> Tensor {
        let hidden = checkpoints.input(of: model.spec.layerCount)
        let input = head.input.prefix(rows), normed = head.normed.prefix(rows), logits = head.logits.prefix(rows)
        for row in 0..<rows {
            input.row(row).update(from: hidden.row(Int(lossRows[first + row])), count: hidden.columns)
        }
        normalizeForHead(input, into: normed, inverse: head.inverseNorm)
        let x = rounding([normed], smoothing: headSmoothing.map { UnsafePointer($0) }, on: pool)[0]
        try forEachHeadSlice(then: next) { slice, rows in
            linear(x, [LinearOutput(weight: slice, adapter: nil, y: logits, column: rows.lowerBound)], as: .headProduct, on: pool)
        }
        return logits
    }

    /// A factor of the logits is one of what the head reads.
    private func normalizeForHead(_ hidden: Tensor, into normed: Tensor, inverse: UnsafeMutablePointer<Float>) {
        normalize(hidden, model.outputNorm, into: normed, inverse: inverse, on: pool)
        multiply(normed, by: model.spec.logitScale, on: pool)
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
        case lossOnly
        case gradient(scale: Float)
    }

    /// Head and cross-entropy together, a chunk of loss tokens at a time: logits of all tokens never exist.
    private func headLoss(_ count: Int, _ work: HeadWork, after next: WeightParts.Part, _ loss: inout Double) throws {
        for first in stride(from: 0, to: count, by: shape.lossChunk) {
            let rows = min(shape.lossChunk, count - first)
            let afterChunk = first + rows < count ? .headSlice(0) : next
            let (scale, rounding, afterLogits): (Float, RoundedRows, WeightParts.Part) =
                switch work {
                case .lossOnly: (0, .unrounded, afterChunk)
                case .gradient(let scale): (scale, self.rounding, .headSlice(0))
                }
            let logits = try headLogits(first: first, rows: rows, rounding, after: afterLogits)
            crossEntropy(
                logits: logits, targets: targets + first, gradientScale: scale, cap: model.spec.logitCap, losses: head.losses, addingTo: &loss,
                on: pool)
            guard case .gradient = work else { continue }
            let dInput = head.dInput.prefix(rows)
            let dNormed = head.normed.prefix(rows)  // its values are not needed again
            let dLogits = rounding([logits], on: pool)[0]
            try forEachHeadSlice(then: afterChunk) { slice, rows in
                linearBackward(
                    [LinearGradient(dy: dLogits.columns(rows), weight: slice, adapter: nil)], into: dNormed,
                    rows.lowerBound == 0 ? .overwrite : .add, as: .headProduct, on: pool)
            }
            multiply(dNormed, by: model.spec.logitScale, on: pool)
            normalizeBackward(
                dNormed, head.input.prefix(rows), model.outputNorm, inverse: head.inverseNorm, into: dInput, .overwrite,
                on: pool)
            // A row carries loss once, so this is a copy and not a sum.
            for row in 0..<rows {
                dH.row(Int(lossRows[first + row])).update(from: dInput.row(row), count: dInput.columns)
            }
        }
    }
}
