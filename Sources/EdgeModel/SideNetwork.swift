// A side network (Adapters/LadderSideTuning.swift) in the rows of its job: a block at a time, forward beside the base's layers and backward
// without them. Of a block the state that it reads is kept, [tokens, width]; its backward makes the rest again, to the same bits where the base's
// hidden states are. All products are f32. Sums over tokens are cut where `addOuterProduct` cuts them, so that bits depend on the samples alone.
import EdgeTensor
import Glibc

package struct SideNetwork {
    private let adapters: AdapterSet
    private let shape: SideShape
    private let spec: DecoderSpec
    private let memory: SideMemory
    /// Of the base, by `LayerKind.rotary`, for pairs in halves of a head: adapters are the same whatever the base file's order is.
    private let rotaries: [RotaryEmbedding]
    /// Of the first of its rows.
    private let positions: UnsafePointer<Int32>
    /// In the batch.
    private let rows: Range<Int>
    /// With rows counted from the first of `rows`.
    private let parts: [SamplePart]
    private let pool: WorkerPool

    /// - Parameter job: number of the job among those of the batch.
    /// - Returns: nil where the adapter has no side network.
    package init?(
        _ adapters: AdapterSet, _ spec: DecoderSpec, _ memory: SideMemory?, _ rotaries: [RotaryEmbedding], _ batch: PackedBatch, job: Int,
        on pool: WorkerPool
    ) {
        let parts = batch.parts.filter { $0.job == job }
        guard let first = parts.first?.rows.lowerBound, let end = parts.last?.rows.upperBound else { return nil }
        self.init(
            adapters, spec, memory, rotaries, positions: batch.positions + first, rows: first..<end,
            parts: parts.map {
                var own = $0
                own.rows = $0.rows.lowerBound - first..<$0.rows.upperBound - first
                return own
            }, on: pool)
    }

    /// Of new tokens of one sequence.
    package init?(
        _ adapters: AdapterSet, _ spec: DecoderSpec, _ memory: SideMemory?, _ rotaries: [RotaryEmbedding], tokens: Int,
        positions: UnsafePointer<Int32>, on pool: WorkerPool
    ) {
        self.init(
            adapters, spec, memory, rotaries, positions: positions, rows: 0..<tokens,
            parts: [SamplePart(rows: 0..<tokens, sample: 0, firstToken: 0)], on: pool)
    }

    private init?(
        _ adapters: AdapterSet, _ spec: DecoderSpec, _ memory: SideMemory?, _ rotaries: [RotaryEmbedding], positions: UnsafePointer<Int32>,
        rows: Range<Int>, parts: [SamplePart], on pool: WorkerPool
    ) {
        guard let shape = adapters.layout.side else { return nil }
        guard let memory else { preconditionFailure("a side network without room for it") }
        self.adapters = adapters
        self.shape = shape
        self.spec = spec
        self.memory = memory
        self.rotaries = rotaries.map {
            var own = $0
            own.pairing = .halves
            return own
        }
        self.positions = positions
        self.rows = rows
        self.parts = parts
        self.pool = pool
    }

    // MARK: matrices

    private typealias Matrix = AdapterSet.PartMatrix

    /// In the order of `LadderSideTuning.parts`.
    private struct Block {
        let gate: Matrix, downsample: Matrix
        let attentionNorm: Matrix, query: Matrix, key: Matrix, value: Matrix, output: Matrix
        let mlpNorm: Matrix, mlpGate: Matrix, mlpUp: Matrix, mlpDown: Matrix

        init(_ part: [Matrix]) {
            (gate, downsample, attentionNorm, query, key, value) = (part[0], part[1], part[2], part[3], part[4], part[5])
            (output, mlpNorm, mlpGate, mlpUp, mlpDown) = (part[6], part[7], part[8], part[9], part[10])
        }

        /// μ: what the state below counts; the layer's output counts the rest.
        var mix: Float { 1 / (1 + expf(-gate.matrix.base[0] / LadderSideTuning.temperature)) }
    }

    private func block(_ layer: Int) -> Block { Block(adapters.part(.side, layer: layer)) }
    private var downsample: Matrix { adapters.part(.side, layer: nil)[0] }
    private var upsample: Matrix { adapters.part(.side, layer: nil)[1] }

    private func norm(_ weight: Matrix) -> TrainedNorm {
        TrainedNorm(
            norm: Norm(.rootMeanSquare(weightOffset: 0), epsilon: spec.normEpsilon, width: shape.width, weight: weight.matrix.base),
            weightGradient: weight.gradient, biasGradient: nil)
    }

    private func attention(_ layer: Int) -> CausalAttention {
        CausalAttention(
            headCount: shape.headCount, keyValueHeadCount: shape.headCount, headDim: shape.headDim, window: spec.layerKinds[layer].window)
    }

    private func rotate(_ layer: Int, _ q: Tensor, _ k: Tensor, _ direction: RotaryEmbedding.Direction) {
        guard let kind = spec.layerKinds[layer].rotary else { return }
        rotaries[kind].rotate(q, positions: positions, direction, on: pool)
        rotaries[kind].rotate(k, positions: positions, direction, on: pool)
    }

    /// What block `index` reads, and the one before it leaves.
    private func state(_ index: Int) -> Tensor { memory.state(index, rows, shape) }

    // MARK: forward

    /// The first state.
    ///
    /// - Parameter embeddings: `[tokens of the batch, hiddenSize]`: what the first layer reads.
    package func begin(_ embeddings: Tensor) {
        linear(embeddings.rows(rows), QuantizedMatrix(downsample.matrix), into: state(0), on: pool)
    }

    /// The block beside a layer.
    ///
    /// - Parameter h: `[tokens of the batch, hiddenSize]`: what the layer gives.
    package func forward(_ layer: Int, _ h: Tensor) { finish(layer, run(layer, h, cache: nil)) }

    /// The block beside a layer over new tokens of a sequence whose earlier keys and values are cached.
    ///
    /// - Parameter keys, values: `[context, queryWidth]`; rows `past ..< past + tokens` are written.
    package func forwardCached(_ layer: Int, _ h: Tensor, past: Int, keys: Tensor, values: Tensor) {
        finish(layer, run(layer, h, cache: (past, keys, values)))
    }

    private func finish(_ layer: Int, _ w: SideMemory.Work) {
        let output = state(layer + 1)
        output.copy(from: w.middle)
        linear(w.activated, QuantizedMatrix(block(layer).mlpDown.matrix), into: output, .add, on: pool)
    }

    /// All of a block but its last product.
    private func run(_ layer: Int, _ h: Tensor, cache: (past: Int, keys: Tensor, values: Tensor)?) -> SideMemory.Work {
        let block = block(layer), w = memory.work(rows.count, shape), mix = block.mix
        linear(h.rows(rows), QuantizedMatrix(block.downsample.matrix), into: w.read, on: pool)
        w.x.copy(from: state(layer))
        multiply(w.x, by: mix, on: pool)
        addScaled(w.read, scale: 1 - mix, to: w.x, on: pool)
        normalize(w.x, norm(block.attentionNorm).norm, into: w.n1, inverse: w.attentionInverse, on: pool)
        let (k, v) = cache.map { cache in
            (
                Tensor(cache.keys.row(cache.past), rows: rows.count, columns: shape.queryWidth),
                Tensor(cache.values.row(cache.past), rows: rows.count, columns: shape.queryWidth)
            )
        } ?? (w.k, w.v)
        linear(
            LeftOperand(w.n1),
            [
                LinearOutput(weight: QuantizedMatrix(block.query.matrix), y: w.q), LinearOutput(weight: QuantizedMatrix(block.key.matrix), y: k),
                LinearOutput(weight: QuantizedMatrix(block.value.matrix), y: v),
            ], on: pool)
        rotate(layer, w.q, k, .forward)
        let seen = cache.map {
            [AttentionSpan(firstQuery: 0, queryCount: rows.count, firstKey: 0, keyCount: $0.past + rows.count)]
        }
        attention(layer).forward(
            q: w.q, k: cache?.keys ?? k, v: cache?.values ?? v, spans: seen ?? spans, into: w.attended, logSumExp: w.logSumExp, on: pool)
        w.middle.copy(from: w.x)
        linear(w.attended, QuantizedMatrix(block.output.matrix), into: w.middle, .add, on: pool)
        normalize(w.middle, norm(block.mlpNorm).norm, into: w.n2, inverse: w.mlpInverse, on: pool)
        linear(
            LeftOperand(w.n2),
            [
                LinearOutput(weight: QuantizedMatrix(block.mlpGate.matrix), y: w.gate),
                LinearOutput(weight: QuantizedMatrix(block.mlpUp.matrix), y: w.up),
            ], on: pool)
        activate(.swiglu, gate: w.gate, up: w.up, into: w.activated, on: pool)
        return w
    }

    private var spans: [AttentionSpan] {
        parts.map {
            AttentionSpan(firstQuery: $0.rows.lowerBound, queryCount: $0.rows.count, firstKey: $0.rows.lowerBound, keyCount: $0.rows.count)
        }
    }

    /// h += s·Uᵀ of some tokens, with s the last state.
    ///
    /// - Parameters:
    ///   - tokens: rows of the batch, as many as h has.
    ///   - gathered: room for the states of so many.
    ///   - h: `[count, hiddenSize]`.
    package func addOutput(of tokens: UnsafePointer<Int32>, gathered: UnsafeMutablePointer<Float>, to h: Tensor) {
        let last = state(spec.layerCount), own = Tensor(gathered, rows: h.rows, columns: shape.width)
        for row in 0..<h.rows { own.row(row).update(from: last.row(Int(tokens[row]) - rows.lowerBound), count: shape.width) }
        linear(own, QuantizedMatrix(upsample.matrix), into: h, .add, on: pool)
    }

    // MARK: backward

    /// The gradients of U and of the last state.
    ///
    /// - Parameter dH: `[tokens of the batch, hiddenSize]`: of what the model's last norm reads.
    package func beginBackward(_ dH: Tensor) {
        let dH = dH.rows(rows)
        addOuterProduct(dH, state(spec.layerCount), parts, into: upsample.gradient, on: pool)
        linearBackward(dH, QuantizedMatrix(upsample.matrix), into: memory.dState(rows, shape), on: pool)
    }

    /// The gradients of a block, which are added to; that of the state above it becomes that of the one that it reads.
    ///
    /// - Parameter h: `[tokens of the batch, hiddenSize]`: what the layer gave.
    package func backward(_ layer: Int, _ h: Tensor) {
        let block = block(layer), w = run(layer, h, cache: nil), g = memory.gradients(rows.count, shape), d = memory.dState(rows, shape)
        addOuterProduct(d, w.activated, parts, into: block.mlpDown.gradient, on: pool)
        linearBackward(d, QuantizedMatrix(block.mlpDown.matrix), into: g.dActivated, on: pool)
        activateBackward(.swiglu, dy: g.dActivated, gate: w.gate, up: w.up, on: pool)
        throughNorm([(w.gate, block.mlpGate), (w.up, block.mlpUp)], w.n2, norm(block.mlpNorm), of: w.middle, inverse: w.mlpInverse, g, addingTo: d)
        addOuterProduct(d, w.attended, parts, into: block.output.gradient, on: pool)
        linearBackward(d, QuantizedMatrix(block.output.matrix), into: g.dAttended, on: pool)
        attention(layer).backward(
            dO: g.dAttended, q: w.q, k: w.k, v: w.v, o: w.attended, logSumExp: w.logSumExp, spans: spans, dQ: g.dQ, headDK: g.headDK,
            headDV: g.headDV, dK: g.dK, dV: g.dV, on: pool)
        rotate(layer, g.dQ, g.dK, .backward)
        throughNorm(
            [(g.dQ, block.query), (g.dK, block.key), (g.dV, block.value)], w.n1, norm(block.attentionNorm), of: w.x, inverse: w.attentionInverse, g,
            addingTo: d)
        mixBackward(block, h.rows(rows), state(layer), d, w, g)
    }

    /// dX += the gradient of what a norm read, by way of the products with what it gave; and those of all their numbers.
    private func throughNorm(
        _ products: [(dy: Tensor, matrix: Matrix)], _ normed: Tensor, _ norm: TrainedNorm, of x: Tensor, inverse: UnsafePointer<Float>,
        _ g: SideMemory.Gradients, addingTo dX: Tensor
    ) {
        for one in products { addOuterProduct(one.dy, normed, parts, into: one.matrix.gradient, on: pool) }
        linearBackward(
            products.map { LinearGradient(dy: LeftOperand($0.dy), weight: QuantizedMatrix($0.matrix.matrix)) }, into: g.dNormed, on: pool)
        norm.addGradients(g.dNormed, x, inverse: inverse, runs.map(\.rows), on: pool)
        normalizeBackward(g.dNormed, x, norm.norm, inverse: inverse, into: dX, .add, on: pool)
    }

    private var runs: [SamplePart] { parts.flatMap(\.outerProductRuns) }

    /// With dx of x = μ·s + (1 - μ)·h·Dᵀ: da += μ·(1 - μ) / T · ⟨dx, s - h·Dᵀ⟩ and dD += (1 - μ)·dxᵀ·h; dx becomes ds = μ·dx.
    private func mixBackward(_ block: Block, _ h: Tensor, _ s: Tensor, _ dX: Tensor, _ w: SideMemory.Work, _ g: SideMemory.Gradients) {
        let mix = block.mix, slope = mix * (1 - mix) / LadderSideTuning.temperature
        multiply(w.read, by: -1, on: pool)
        addScaled(s, to: w.read, on: pool)
        rowProducts(dX, w.read, into: g.rowSums, .overwrite, on: pool)
        for run in runs {
            let sum = run.rows.reduce(Float(0)) { $0 + g.rowSums[$1] }
            block.gate.gradient.base[0] += slope * sum
        }
        // The norm's result is not needed any more.
        w.n1.copy(from: dX)
        multiply(w.n1, by: 1 - mix, on: pool)
        addOuterProduct(w.n1, h, parts, into: block.downsample.gradient, on: pool)
        multiply(dX, by: mix, on: pool)
    }

    /// After all blocks, the gradient of D_0.
    package func endBackward(_ embeddings: Tensor) {
        addOuterProduct(memory.dState(rows, shape), embeddings.rows(rows), parts, into: downsample.gradient, on: pool)
    }
}
