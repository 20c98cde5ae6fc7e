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
    private let pool: WorkerPool
    private let rotary: RotaryEmbedding
    private let rounding: RoundedRows

    /// Inputs of the layers from the lowest adapted one on, and the last layer's output.
    private let layerInputs: [Tensor]
    /// What the frozen layers below alternate with.
    private let spare: Tensor
    /// One, or one per trained layer: `RecomputePolicy`.
    private let activations: [LayerActivations]
    private let layerGradients: LayerGradients
    private let dH: Tensor
    private let dropped: Tensor?
    private let logits: Tensor
    private let headInput: Tensor
    private let headNormed: Tensor
    private let dHead: Tensor
    private let headInverseRMS: UnsafeMutablePointer<Float>
    private let losses: UnsafeMutablePointer<Float>
    private let tokens: UnsafeMutablePointer<Int32>
    private let positions: UnsafeMutablePointer<Int32>
    private let lossRows: UnsafeMutablePointer<Int32>
    private let targets: UnsafeMutablePointer<Int32>

    /// - Parameter arena: has room for all pools of `MemoryModel.arena` that this type and its pool take.
    package init(model: BaseModel, memory: MemoryModel, shape: StepShape, kernels: KernelSet, arena: Arena) {
        let spec = model.spec
        self.model = model
        self.shape = shape
        pool = WorkerPool(
            kernels: kernels, threadCount: shape.threads, scratchFloats: memory.scratchFloats(shape), arena: arena)
        rotary = RotaryEmbedding(
            positions: shape.longestSample, headDim: spec.headDim, theta: spec.ropeTheta, pairing: spec.rotaryPairing,
            arena: arena)
        rounding = RoundedRows(shape.compute, capacity: memory.rounding(shape), arena: arena)
        let count = AdapterSet.layout(memory.modules, rank: memory.lora.rank, of: spec).count
        adapters = AdapterSet(
            memory.lora, modules: memory.modules, of: spec, parameters: arena.floats(count),
            gradients: arena.floats(count))
        layerInputs = (0...memory.trainedLayers).map { _ in arena.tensor(shape.tokens, spec.hiddenSize) }
        spare = arena.tensor(shape.tokens, spec.hiddenSize)
        let remade = RemadeActivations(tokens: shape.tokens, spec, arena: arena)
        activations = (0..<(shape.policy == .keepAll ? memory.trainedLayers : 1)).map { _ in
            LayerActivations(
                tokens: shape.tokens, rank: memory.lora.rank, adapted: memory.adaptedModules, spec, remade: remade,
                arena: arena)
        }
        layerGradients = LayerGradients(tokens: shape.tokens, rank: memory.lora.rank, spec, arena: arena)
        dH = arena.tensor(shape.tokens, spec.hiddenSize)
        dropped = memory.lora.dropout > 0 ? arena.tensor(shape.tokens, memory.widestInput) : nil
        logits = arena.tensor(shape.lossChunk, spec.vocabularySize)
        headInput = arena.tensor(shape.lossChunk, spec.hiddenSize)
        headNormed = arena.tensor(shape.lossChunk, spec.hiddenSize)
        dHead = arena.tensor(shape.lossChunk, spec.hiddenSize)
        headInverseRMS = arena.floats(shape.lossChunk)
        losses = arena.floats(shape.lossChunk)
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

    /// Adds the gradients of `lossScale` · Σ nll to the adapters' gradients; returns Σ nll over the loss tokens, in nats.
    ///
    /// - Parameter dropoutKey: seeds the masks; nil: no dropout.
    package func accumulate(_ microBatch: MicroBatch, lossScale: Float, dropoutKey: UInt64?) -> Double {
        let batch = load(microBatch)
        forward(batch, dropoutKey: dropoutKey, rounding)
        let dH = dH.prefix(batch.tokenCount)
        dH.clear()
        let loss = headLoss(microBatch.lossRows.count, tokens: batch.tokenCount, .gradient(scale: lossScale))
        for index in stride(from: model.spec.layerCount - 1, through: adapters.lowestLayer, by: -1) {
            let layer = layer(index, dropoutKey: dropoutKey, rounding)
            let input = input(of: index, tokens: batch.tokenCount)
            let kept = activations(of: index)
            switch shape.policy {
            case .everyLayer: layer.forward(input, batch, kept, into: nil)
            case .keepAll: layer.remake(input, kept)
            }
            layer.backward(
                dH: dH, input, batch, kept, layerGradients,
                index == adapters.lowestLayer ? .isFrozen : .needsGradient)
        }
        return loss
    }

    /// Σ nll over the loss tokens, in nats, without gradients or dropout.
    package func evaluate(_ microBatch: MicroBatch) -> Double {
        let batch = load(microBatch)
        forward(batch, dropoutKey: nil, .unrounded)
        return headLoss(microBatch.lossRows.count, tokens: batch.tokenCount, .lossOnly)
    }

    /// Logits of every token, a chunk at a time: for goldens and tools.
    package func logits(of microBatch: MicroBatch, _ body: (_ firstToken: Int, _ logits: Tensor) -> Void) {
        let batch = load(microBatch)
        forward(batch, dropoutKey: nil, .unrounded)
        for row in 0..<batch.tokenCount { lossRows[row] = Int32(row) }
        for first in stride(from: 0, to: batch.tokenCount, by: shape.lossChunk) {
            let rows = min(shape.lossChunk, batch.tokenCount - first)
            body(first, headLogits(first: first, rows: rows, tokens: batch.tokenCount, .unrounded))
        }
    }

    package func clearGradients() { adapters.gradients.update(repeating: 0, count: adapters.parameterCount) }

    /// Copies the micro-batch into the arena, where the kernels read it.
    private func load(_ microBatch: MicroBatch) -> PackedBatch {
        let count = microBatch.tokens.count
        precondition(count <= shape.tokens, "\(count) tokens in a step planned for \(shape.tokens)")
        microBatch.tokens.withUnsafeBufferPointer { tokens.update(from: $0.baseAddress!, count: count) }
        microBatch.positions.withUnsafeBufferPointer { positions.update(from: $0.baseAddress!, count: count) }
        let losses = microBatch.lossRows.count
        if losses > 0 {
            microBatch.lossRows.withUnsafeBufferPointer { lossRows.update(from: $0.baseAddress!, count: losses) }
            microBatch.targets.withUnsafeBufferPointer { targets.update(from: $0.baseAddress!, count: losses) }
        }
        return PackedBatch(tokenCount: count, positions: UnsafePointer(positions), spans: microBatch.spans)
    }

    private func layer(_ index: Int, dropoutKey: UInt64?, _ rounding: RoundedRows) -> DecoderLayer {
        DecoderLayer(
            index: index, spec: model.spec, weights: model.layers[index], adapters: adapters, rotary: rotary,
            dropped: dropped, dropoutKey: dropoutKey, rounding: rounding, pool: pool)
    }

    /// Input of layer `index`, or the output of the last layer when `index` is the layer count.
    private func input(of index: Int, tokens: Int) -> Tensor {
        let lowest = adapters.lowestLayer
        if index >= lowest { return layerInputs[index - lowest].prefix(tokens) }
        // Frozen layers alternate, so that the lowest adapted layer's input lands in its own place.
        return ((lowest - index) % 2 == 0 ? layerInputs[0] : spare).prefix(tokens)
    }

    private func activations(of index: Int) -> LayerActivations {
        shape.policy == .keepAll ? activations[max(0, index - adapters.lowestLayer)] : activations[0]
    }

    private func forward(_ batch: PackedBatch, dropoutKey: UInt64?, _ rounding: RoundedRows) {
        let count = batch.tokenCount
        decodeRows(model.embedding, tokens, into: input(of: 0, tokens: count), on: pool)
        for index in 0..<model.spec.layerCount {
            layer(index, dropoutKey: dropoutKey, rounding).forward(
                input(of: index, tokens: count), batch, activations(of: index),
                into: input(of: index + 1, tokens: count))
        }
    }

    private func headLogits(first: Int, rows: Int, tokens: Int, _ rounding: RoundedRows) -> Tensor {
        let hidden = input(of: model.spec.layerCount, tokens: tokens)
        let headInput = headInput.prefix(rows), headNormed = headNormed.prefix(rows), logits = logits.prefix(rows)
        for row in 0..<rows {
            headInput.row(row).update(from: hidden.row(Int(lossRows[first + row])), count: hidden.columns)
        }
        rmsNorm(
            headInput, weight: model.outputNorm, epsilon: model.spec.rmsNormEpsilon, into: headNormed,
            inverseRMS: headInverseRMS, on: pool)
        linear(
            rounding([headNormed], smoothing: true, on: pool)[0], [LinearOutput(weight: model.head, adapter: nil, y: logits)],
            as: .headProduct, on: pool)
        return logits
    }

    private enum HeadWork {
        case lossOnly
        case gradient(scale: Float)
    }

    /// Head and cross-entropy together, a chunk of loss tokens at a time: logits of all tokens never exist.
    private func headLoss(_ count: Int, tokens: Int, _ work: HeadWork) -> Double {
        var loss = 0.0
        for first in stride(from: 0, to: count, by: shape.lossChunk) {
            let rows = min(shape.lossChunk, count - first)
            let (scale, rounding): (Float, RoundedRows) =
                switch work {
                case .lossOnly: (0, .unrounded)
                case .gradient(let scale): (scale, self.rounding)
                }
            let logits = headLogits(first: first, rows: rows, tokens: tokens, rounding)
            loss += crossEntropy(
                logits: logits, targets: targets + first, gradientScale: scale, losses: losses, on: pool)
            guard case .gradient = work else { continue }
            let dHead = dHead.prefix(rows)
            let dNormed = headNormed.prefix(rows)  // its values are not needed again
            linearBackward(
                [LinearGradient(dy: rounding([logits], on: pool)[0], weight: model.head, adapter: nil)], into: dNormed,
                as: .headProduct, on: pool)
            dHead.clear()
            rmsNormBackward(
                dNormed, headInput.prefix(rows), weight: model.outputNorm, inverseRMS: headInverseRMS,
                addingTo: dHead, on: pool)
            // A row carries loss once, so this is a copy and not a sum.
            for row in 0..<rows {
                dH.row(Int(lossRows[first + row])).update(from: dHead.row(row), count: dHead.columns)
            }
        }
        return loss
    }
}
