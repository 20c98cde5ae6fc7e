// One decoder layer, forward and backward written out: attention and gated MLP, each with its norm and residual.
//
//   n1 = rmsNorm(h)         q,k,v = n1·Wᵀ     a = attention(rotate(q), rotate(k), v)     m = h + a·Woᵀ
//   n2 = rmsNorm(m)         g,u   = n2·Wᵀ     s = silu(g)·u                              h' = m + s·Wdᵀ
//
// Every `·Wᵀ` may carry an adapter. Gradients are named after what they differentiate: dN1 is of n1.
import EdgeTensor

/// The frozen weights of a layer: views of the mapped file.
package struct LayerWeights {
    package let attentionNorm: UnsafePointer<Float>
    package let mlpNorm: UnsafePointer<Float>
    private let linears: [QuantizedMatrix]

    /// - Parameter linears: in the order of `LinearModule.allCases`.
    package init(attentionNorm: UnsafePointer<Float>, mlpNorm: UnsafePointer<Float>, linears: [QuantizedMatrix]) {
        precondition(linears.count == LinearModule.allCases.count)
        self.attentionNorm = attentionNorm
        self.mlpNorm = mlpNorm
        self.linears = linears
    }

    package subscript(module: LinearModule) -> QuantizedMatrix { linears[module.rawValue] }
}

/// What a layer's forward leaves for its backward, and what other layers may not touch until then.
package struct LayerActivations {
    package let q: Tensor, k: Tensor, v: Tensor, attended: Tensor, logSumExp: Tensor
    package let middle: Tensor, gate: Tensor, up: Tensor
    package let inverseRMS1: UnsafeMutablePointer<Float>, inverseRMS2: UnsafeMutablePointer<Float>
    /// `[tokens, rank]` per module; empty rows where no layer adapts the module.
    package let projected: [Tensor]

    /// - Parameter mlpTokens: rows of what belongs to the MLP: all, or those that it does at once.
    package static func bytes(
        tokens: Int, mlpTokens: Int, rank: Int, adapted: Set<LinearModule>, _ spec: DecoderSpec
    ) -> ByteCount {
        let widths = [spec.hiddenSize, spec.queryWidth, spec.queryWidth, spec.keyValueWidth, spec.keyValueWidth, spec.attentionHeadCount, 1, 1]
        let attention = widths.reduce(ByteCount.zero) { $0 + .floats(tokens * $1) }
        let mlp = ByteCount.floats(mlpTokens * spec.intermediateSize)
        return adapted.reduce(attention + mlp + mlp) { $0 + .floats(($1.isOfMLP ? mlpTokens : tokens) * rank) }
    }

    package init(
        tokens: Int, mlpTokens: Int, rank: Int, adapted: Set<LinearModule>, _ spec: DecoderSpec, arena: Arena
    ) {
        q = arena.tensor(tokens, spec.queryWidth)
        k = arena.tensor(tokens, spec.keyValueWidth)
        v = arena.tensor(tokens, spec.keyValueWidth)
        attended = arena.tensor(tokens, spec.queryWidth)
        logSumExp = arena.tensor(tokens, spec.attentionHeadCount)
        middle = arena.tensor(tokens, spec.hiddenSize)
        gate = arena.tensor(mlpTokens, spec.intermediateSize)
        up = arena.tensor(mlpTokens, spec.intermediateSize)
        inverseRMS1 = arena.floats(tokens)
        inverseRMS2 = arena.floats(tokens)
        projected = LinearModule.allCases.map {
            arena.tensor(adapted.contains($0) ? ($0.isOfMLP ? mlpTokens : tokens) : 0, rank)
        }
    }
}

/// What only the layer at work needs: one exists, for all layers. The norms' results and the activation's cost one cheap pass to
/// make again, so no layer keeps its own.
package struct LayerWorkspace {
    package let n1: Tensor, n2: Tensor, activated: Tensor
    /// Nil where there is no backward.
    package let gradients: LayerGradients?

    package enum Use: Equatable, Sendable {
        case forwardOnly
        case training(rank: Int)
    }

    package static func bytes(tokens: Int, mlpTokens: Int, _ spec: DecoderSpec, _ use: Use) -> ByteCount {
        let n1 = ByteCount.floats(tokens * spec.hiddenSize), n2 = ByteCount.floats(mlpTokens * spec.hiddenSize)
        let i = ByteCount.floats(mlpTokens * spec.intermediateSize)
        return switch use {
        case .forwardOnly: n1 + n2 + i
        case .training(let rank):
            n1 + n2 + LayerGradients.ownBytes(tokens: tokens, rank: rank, spec)
                + max(i + i, LayerGradients.attentionBytes(tokens: tokens, spec))
        }
    }

    /// - Parameter mlpTokens: tokens that the MLP does at once.
    package init(tokens: Int, mlpTokens: Int, _ spec: DecoderSpec, _ use: Use, arena: Arena) {
        n1 = arena.tensor(tokens, spec.hiddenSize)
        n2 = arena.tensor(mlpTokens, spec.hiddenSize)
        switch use {
        case .forwardOnly:
            activated = arena.tensor(mlpTokens, spec.intermediateSize)
            gradients = nil
        case .training(let rank):
            let own = LayerGradients.Own(tokens: tokens, rank: rank, spec, arena: arena)
            // The MLP's backward is over when the attention's begins.
            let (mlp, attention) = arena.either {
                (arena.tensor(mlpTokens, spec.intermediateSize), arena.tensor(mlpTokens, spec.intermediateSize))
            } or: {
                LayerGradients.Attention(tokens: tokens, spec, arena: arena)
            }
            activated = mlp.0
            gradients = LayerGradients(own: own, dActivated: mlp.1, attention: attention)
        }
    }
}

/// Working memory of the backward.
package struct LayerGradients {
    struct Own {
        let dNormed: Tensor
        /// One per module that reads the same input.
        let dProjected: [Tensor]

        init(tokens: Int, rank: Int, _ spec: DecoderSpec, arena: Arena) {
            dNormed = arena.tensor(tokens, spec.hiddenSize)
            dProjected = (0..<mostTogether).map { _ in arena.tensor(tokens, rank) }
        }
    }

    struct Attention {
        let dAttended: Tensor, dQ: Tensor, dK: Tensor, dV: Tensor, headDK: Tensor, headDV: Tensor

        init(tokens: Int, _ spec: DecoderSpec, arena: Arena) {
            dAttended = arena.tensor(tokens, spec.queryWidth)
            dQ = arena.tensor(tokens, spec.queryWidth)
            dK = arena.tensor(tokens, spec.keyValueWidth)
            dV = arena.tensor(tokens, spec.keyValueWidth)
            headDK = arena.tensor(tokens, spec.queryWidth)
            headDV = arena.tensor(tokens, spec.queryWidth)
        }
    }

    let own: Own
    let dActivated: Tensor
    let attention: Attention

    private static let mostTogether = 3  // q, k, v

    fileprivate static func ownBytes(tokens: Int, rank: Int, _ spec: DecoderSpec) -> ByteCount {
        let projected = ByteCount.floats(tokens * rank).bytes * mostTogether
        return .floats(tokens * spec.hiddenSize) + ByteCount(projected)
    }

    fileprivate static func attentionBytes(tokens: Int, _ spec: DecoderSpec) -> ByteCount {
        let q = ByteCount.floats(tokens * spec.queryWidth), kv = ByteCount.floats(tokens * spec.keyValueWidth)
        return q + q + q + q + kv + kv
    }
}

/// The samples of a micro-batch as the layers see them: one flat run of tokens, no padding.
package struct PackedBatch {
    package let tokenCount: Int
    package let positions: UnsafePointer<Int32>
    package let spans: [AttentionSpan]
    package init(tokenCount: Int, positions: UnsafePointer<Int32>, spans: [AttentionSpan]) {
        self.tokenCount = tokenCount
        self.positions = positions
        self.spans = spans
    }

    /// Every sample whole.
    var parts: [SamplePart] {
        spans.enumerated().map { index, span in
            SamplePart(rows: span.firstQuery..<span.firstQuery + span.queryCount, sample: index, firstToken: 0)
        }
    }

    /// The tokens parted into runs of at most `limit`, for what can be done token by token. Samples are cut where their outer
    /// products' sums are, so that the runs add up to the whole's bits.
    func chunks(_ limit: Int) -> [TokenChunk] {
        guard limit < tokenCount else { return [TokenChunk(rows: 0..<tokenCount, parts: parts)] }
        precondition(limit >= outerProductTokens)
        var chunks: [TokenChunk] = []
        for part in parts {
            for first in stride(from: 0, to: part.rows.count, by: outerProductTokens) {
                let rows = part.rows.lowerBound + first..<min(part.rows.lowerBound + first + outerProductTokens, part.rows.upperBound)
                if chunks.last.map({ $0.rows.count + rows.count > limit }) ?? true {
                    chunks.append(TokenChunk(rows: rows.lowerBound..<rows.lowerBound, parts: []))
                }
                chunks[chunks.count - 1].add(rows, sample: part.sample, firstToken: first)
            }
        }
        return chunks
    }
}

/// Some of the tokens of a batch that follow each other.
struct TokenChunk {
    /// In the batch.
    private(set) var rows: Range<Int>
    /// With rows counted from the chunk's first.
    private(set) var parts: [SamplePart]

    mutating func add(_ added: Range<Int>, sample: Int, firstToken: Int) {
        let offset = rows.lowerBound
        rows = rows.lowerBound..<added.upperBound
        let own = added.lowerBound - offset..<added.upperBound - offset
        if let last = parts.last, last.sample == sample {
            parts[parts.count - 1].rows = last.rows.lowerBound..<own.upperBound
        } else {
            parts.append(SamplePart(rows: own, sample: sample, firstToken: firstToken))
        }
    }

    /// Its rows of a tensor of the batch, or the tensor's first where it has room for one chunk only.
    func of(_ tensor: Tensor) -> Tensor {
        // A module that nobody adapts has no rows.
        guard tensor.rows > 0 else { return tensor }
        guard tensor.rows >= rows.upperBound else { return tensor.prefix(rows.count) }
        return Tensor(tensor.row(rows.lowerBound), rows: rows.count, columns: tensor.columns)
    }
}

/// Which elements a micro-batch drops: a function of the step's key and the sample's number within the step alone.
package struct DropoutMasks: Equatable, Sendable {
    package let stepKey: UInt64
    /// Number of the micro-batch's first sample.
    package let firstSample: Int

    package init(stepKey: UInt64, firstSample: Int) {
        self.stepKey = stepKey
        self.firstSample = firstSample
    }

    func key(sample: Int, stream: Int) -> UInt64 {
        mix64(mix64(stepKey ^ UInt64(firstSample + sample)) ^ UInt64(stream))
    }
}

/// What int8 products of a layer divide the channels of their inputs by; see `measureSmoothing`.
package struct LayerSmoothing {
    private let attentionInput: UnsafeMutablePointer<Float>, attended: UnsafeMutablePointer<Float>
    private let mlpInput: UnsafeMutablePointer<Float>, activated: UnsafeMutablePointer<Float>

    package static func bytes(_ spec: DecoderSpec) -> ByteCount {
        .floats(spec.hiddenSize) + .floats(spec.queryWidth) + .floats(spec.hiddenSize) + .floats(spec.intermediateSize)
    }

    package init(_ spec: DecoderSpec, arena: Arena) {
        attentionInput = arena.floats(spec.hiddenSize)
        attended = arena.floats(spec.queryWidth)
        mlpInput = arena.floats(spec.hiddenSize)
        activated = arena.floats(spec.intermediateSize)
    }

    subscript(module: LinearModule) -> UnsafeMutablePointer<Float> {
        switch module {
        case .query, .key, .value: attentionInput
        case .output: attended
        case .gate, .up: mlpInput
        case .down: activated
        }
    }
}

/// A layer, with what it needs to run; a value made anew for each use.
package struct DecoderLayer {
    let index: Int
    let spec: DecoderSpec
    let weights: LayerWeights
    let adapters: AdapterSet?
    let rotary: RotaryEmbedding
    /// `[tokens, widest input]` when there is dropout.
    let dropped: Tensor?
    /// Nil: no dropout (evaluation, generation).
    let masks: DropoutMasks?
    /// The type that products with frozen weights are computed in, and the memory for their operands.
    let rounding: RoundedRows
    let smoothing: Smoothing
    let pool: WorkerPool

    package enum Smoothing {
        case none
        case of(LayerSmoothing)
        /// The layer runs to find what its smoothing is to be.
        case measured(LayerSmoothing)
    }

    package init(
        index: Int, spec: DecoderSpec, weights: LayerWeights, adapters: AdapterSet?, rotary: RotaryEmbedding,
        dropped: Tensor?, masks: DropoutMasks?, rounding: RoundedRows, smoothing: Smoothing, pool: WorkerPool
    ) {
        self.index = index
        self.spec = spec
        self.weights = weights
        self.adapters = adapters
        self.rotary = rotary
        self.dropped = dropped
        self.masks = masks
        self.rounding = rounding
        self.smoothing = smoothing
        self.pool = pool
    }

    private var attention: CausalAttention {
        CausalAttention(
            headCount: spec.attentionHeadCount, keyValueHeadCount: spec.keyValueHeadCount, headDim: spec.headDim)
    }

    /// The layer's first half, to `middle`.
    ///
    /// - Parameter h: `[tokens, hiddenSize]`, the layer's input.
    package func attentionForward(_ h: Tensor, _ batch: PackedBatch, _ a: LayerActivations, _ w: LayerWorkspace) {
        let tokens = batch.tokenCount
        let n1 = w.n1.prefix(tokens), q = a.q.prefix(tokens), k = a.k.prefix(tokens), v = a.v.prefix(tokens)
        attentionInput(h, a, w)
        project([(.query, q), (.key, k), (.value, v)], n1, batch.parts, projected: a.projected)
        rotary.rotate(q, positions: batch.positions, .forward, on: pool)
        rotary.rotate(k, positions: batch.positions, .forward, on: pool)
        attend(h, q: q, k: k, v: v, batch.spans, batch.parts, a)
    }

    /// What the attention's backward needs again of a layer that has kept its products.
    package func attentionInput(_ h: Tensor, _ a: LayerActivations, _ w: LayerWorkspace) {
        rmsNorm(
            h, weight: weights.attentionNorm, epsilon: spec.rmsNormEpsilon, into: w.n1.prefix(h.rows),
            inverseRMS: a.inverseRMS1, on: pool)
    }

    /// The layer's second half, from `middle`.
    ///
    /// - Parameter output: `[tokens, hiddenSize]`.
    package func mlpForward(_ batch: PackedBatch, _ a: LayerActivations, _ w: LayerWorkspace, into output: Tensor) {
        for chunk in batch.chunks(w.n2.rows) { mlp(chunk, a, w, into: chunk.of(output)) }
    }

    /// One layer over new tokens of a sequence whose earlier keys and values are cached.
    ///
    /// - Parameters:
    ///   - keyCache, valueCache: `[context, keyValueWidth]`; rows `past ..< past + tokens` are written.
    package func forwardCached(
        _ h: Tensor, positions: UnsafePointer<Int32>, past: Int, keyCache: Tensor, valueCache: Tensor,
        _ a: LayerActivations, _ w: LayerWorkspace, into output: Tensor
    ) {
        let tokens = h.rows
        let parts = [SamplePart(rows: 0..<tokens, sample: 0, firstToken: 0)]
        let n1 = w.n1.prefix(tokens), q = a.q.prefix(tokens)
        let k = Tensor(keyCache.row(past), rows: tokens, columns: keyCache.columns)
        let v = Tensor(valueCache.row(past), rows: tokens, columns: valueCache.columns)
        rmsNorm(
            h, weight: weights.attentionNorm, epsilon: spec.rmsNormEpsilon, into: n1, inverseRMS: a.inverseRMS1, on: pool)
        project([(.query, q), (.key, k), (.value, v)], n1, parts, projected: a.projected)
        rotary.rotate(q, positions: positions, .forward, on: pool)
        rotary.rotate(k, positions: positions, .forward, on: pool)
        let span = AttentionSpan(firstQuery: 0, queryCount: tokens, firstKey: 0, keyCount: past + tokens)
        attend(h, q: q, k: keyCache, v: valueCache, [span], parts, a)
        mlp(TokenChunk(rows: 0..<tokens, parts: parts), a, w, into: output)
    }

    /// From rotated q, k and v to the middle of the layer.
    private func attend(
        _ h: Tensor, q: Tensor, k: Tensor, v: Tensor, _ spans: [AttentionSpan], _ parts: [SamplePart], _ a: LayerActivations
    ) {
        let attended = a.attended.prefix(h.rows), middle = a.middle.prefix(h.rows)
        attention.forward(
            q: q, k: k, v: v, spans: spans, into: attended, logSumExp: a.logSumExp.prefix(h.rows), on: pool)
        middle.copy(from: h)
        project([(.output, middle)], attended, parts, .add, projected: a.projected)
    }

    /// From the middle of the layer to its output.
    private func mlp(_ chunk: TokenChunk, _ a: LayerActivations, _ w: LayerWorkspace, into output: Tensor) {
        mlpInput(chunk, a, w)
        gates(chunk, a, w)
        swiglu(gate: chunk.of(a.gate), up: chunk.of(a.up), into: w.activated.prefix(chunk.rows.count), on: pool)
        output.copy(from: chunk.of(a.middle))
        project(
            [(.down, output)], w.activated.prefix(chunk.rows.count), chunk.parts, .add, projected: a.projected.map(chunk.of))
    }

    private func mlpInput(_ chunk: TokenChunk, _ a: LayerActivations, _ w: LayerWorkspace) {
        rmsNorm(
            chunk.of(a.middle), weight: weights.mlpNorm, epsilon: spec.rmsNormEpsilon, into: w.n2.prefix(chunk.rows.count),
            inverseRMS: a.inverseRMS2 + chunk.rows.lowerBound, on: pool)
    }

    private func gates(_ chunk: TokenChunk, _ a: LayerActivations, _ w: LayerWorkspace) {
        project(
            [(.gate, chunk.of(a.gate)), (.up, chunk.of(a.up))], w.n2.prefix(chunk.rows.count), chunk.parts,
            projected: a.projected.map(chunk.of))
    }

    /// What a layer's forward has left for its backward.
    package enum Kept: Equatable, Sendable {
        /// The results of all products.
        case products
        /// Its input alone.
        case input
    }

    /// Below the lowest adapted layer nothing needs a gradient, and neither does that layer's own input.
    package enum Below: Equatable, Sendable { case needsGradient, isFrozen }

    /// - Parameters:
    ///   - dH: `[tokens, hiddenSize]`: of the layer's output when called, of `middle` on return.
    ///   - kept: what is in `a` beside `middle`; the rest is made again, to the same bits. `gate` and `up` are overwritten.
    package func mlpBackward(
        dH: Tensor, _ batch: PackedBatch, _ a: LayerActivations, _ kept: Kept, _ w: LayerWorkspace
    ) {
        guard let g = w.gradients else { preconditionFailure("a workspace without room for gradients") }
        let dNormed = g.own.dNormed.prefix(batch.tokenCount)
        for chunk in batch.chunks(w.n2.rows) {
            let count = chunk.rows.count
            let gate = chunk.of(a.gate), up = chunk.of(a.up), dH = chunk.of(dH), dNormed = chunk.of(dNormed)
            let activated = w.activated.prefix(count), dActivated = g.dActivated.prefix(count)
            let projected = a.projected.map(chunk.of)
            mlpInput(chunk, a, w)
            if kept == .input { gates(chunk, a, w) }
            swiglu(gate: gate, up: up, into: activated, on: pool)
            if kept == .input { _ = lowRankTerms([.down], activated, chunk.parts, projected: projected) }
            projectBackward([(.down, dH)], x: activated, chunk.parts, into: dActivated, projected, g)
            swigluBackward(dy: dActivated, gate: gate, up: up, on: pool)
            projectBackward([(.gate, gate), (.up, up)], x: w.n2.prefix(count), chunk.parts, into: dNormed, projected, g)
            rmsNormBackward(
                dNormed, chunk.of(a.middle), weight: weights.mlpNorm, inverseRMS: a.inverseRMS2 + chunk.rows.lowerBound,
                addingTo: dH, on: pool)
        }
    }

    /// After `mlpBackward`, whose memory it uses.
    ///
    /// - Parameters:
    ///   - dH: `[tokens, hiddenSize]`: of `middle` when called, of the layer's input on return (undefined when what is below is
    ///     frozen).
    ///   - h: the layer's input; its norm is in the workspace.
    package func attentionBackward(
        dH: Tensor, _ h: Tensor, _ batch: PackedBatch, _ a: LayerActivations, _ w: LayerWorkspace, _ below: Below
    ) {
        guard let g = w.gradients else { preconditionFailure("a workspace without room for gradients") }
        let tokens = batch.tokenCount, parts = batch.parts
        let dNormed = g.own.dNormed.prefix(tokens), n1 = w.n1.prefix(tokens)
        let dQ = g.attention.dQ.prefix(tokens), dK = g.attention.dK.prefix(tokens), dV = g.attention.dV.prefix(tokens)
        let dAttended = g.attention.dAttended.prefix(tokens)
        projectBackward([(.output, dH)], x: a.attended.prefix(tokens), parts, into: dAttended, a.projected, g)
        attention.backward(
            dO: dAttended, q: a.q.prefix(tokens), k: a.k.prefix(tokens), v: a.v.prefix(tokens),
            o: a.attended.prefix(tokens), logSumExp: a.logSumExp.prefix(tokens), spans: batch.spans, dQ: dQ,
            headDK: g.attention.headDK.prefix(tokens), headDV: g.attention.headDV.prefix(tokens), dK: dK, dV: dV, on: pool)
        rotary.rotate(dQ, positions: batch.positions, .backward, on: pool)
        rotary.rotate(dK, positions: batch.positions, .backward, on: pool)

        let dN1 = below == .needsGradient ? dNormed : nil
        projectBackward([(.query, dQ), (.key, dK), (.value, dV)], x: n1, parts, into: dN1, a.projected, g)
        if let dN1 {
            rmsNormBackward(
                dN1, h, weight: weights.attentionNorm, inverseRMS: a.inverseRMS1, addingTo: dH, on: pool)
        }
    }
}
