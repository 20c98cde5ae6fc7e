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

/// What costs one cheap pass to make again from what a layer keeps: never more than one layer's exists.
package struct RemadeActivations {
    package let n1: Tensor, n2: Tensor, activated: Tensor

    package static func bytes(tokens: Int, _ spec: DecoderSpec) -> ByteCount {
        .floats(tokens * spec.hiddenSize) + .floats(tokens * spec.hiddenSize) + .floats(tokens * spec.intermediateSize)
    }

    package init(tokens: Int, _ spec: DecoderSpec, arena: Arena) {
        n1 = arena.tensor(tokens, spec.hiddenSize)
        n2 = arena.tensor(tokens, spec.hiddenSize)
        activated = arena.tensor(tokens, spec.intermediateSize)
    }
}

/// What a layer's forward leaves for its backward.
package struct LayerActivations {
    package let n1: Tensor, q: Tensor, k: Tensor, v: Tensor, attended: Tensor, logSumExp: Tensor
    package let middle: Tensor, n2: Tensor, gate: Tensor, up: Tensor, activated: Tensor
    package let inverseRMS1: UnsafeMutablePointer<Float>, inverseRMS2: UnsafeMutablePointer<Float>
    /// `[tokens, rank]` per module; empty rows where no layer adapts the module.
    package let projected: [Tensor]

    package static func bytes(tokens: Int, rank: Int, adapted: Set<LinearModule>, _ spec: DecoderSpec) -> ByteCount {
        let widths =
            [spec.hiddenSize, spec.queryWidth, spec.queryWidth, spec.keyValueWidth, spec.keyValueWidth]
            + [spec.intermediateSize, spec.intermediateSize, spec.attentionHeadCount, 1, 1] + adapted.map { _ in rank }
        return widths.reduce(.zero) { $0 + .floats(tokens * $1) }
    }

    package init(
        tokens: Int, rank: Int, adapted: Set<LinearModule>, _ spec: DecoderSpec, remade: RemadeActivations, arena: Arena
    ) {
        (n1, n2, activated) = (remade.n1, remade.n2, remade.activated)
        q = arena.tensor(tokens, spec.queryWidth)
        k = arena.tensor(tokens, spec.keyValueWidth)
        v = arena.tensor(tokens, spec.keyValueWidth)
        attended = arena.tensor(tokens, spec.queryWidth)
        logSumExp = arena.tensor(tokens, spec.attentionHeadCount)
        middle = arena.tensor(tokens, spec.hiddenSize)
        gate = arena.tensor(tokens, spec.intermediateSize)
        up = arena.tensor(tokens, spec.intermediateSize)
        inverseRMS1 = arena.floats(tokens)
        inverseRMS2 = arena.floats(tokens)
        projected = LinearModule.allCases.map { arena.tensor(adapted.contains($0) ? tokens : 0, rank) }
    }
}

/// Working memory of the backward, shared by all layers.
package struct LayerGradients {
    package let dNormed: Tensor, dActivated: Tensor, dAttended: Tensor
    package let dQ: Tensor, dK: Tensor, dV: Tensor, headDK: Tensor, headDV: Tensor
    /// One per module that reads the same input.
    package let dProjected: [Tensor]

    private static let mostTogether = 3  // q, k, v

    package static func bytes(tokens: Int, rank: Int, _ spec: DecoderSpec) -> ByteCount {
        let widths =
            [spec.hiddenSize, spec.intermediateSize, spec.keyValueWidth, spec.keyValueWidth]
            + Array(repeating: rank, count: mostTogether) + Array(repeating: spec.queryWidth, count: 4)
        return widths.reduce(.zero) { $0 + .floats(tokens * $1) }
    }

    package init(tokens: Int, rank: Int, _ spec: DecoderSpec, arena: Arena) {
        dNormed = arena.tensor(tokens, spec.hiddenSize)
        dActivated = arena.tensor(tokens, spec.intermediateSize)
        dAttended = arena.tensor(tokens, spec.queryWidth)
        dQ = arena.tensor(tokens, spec.queryWidth)
        dK = arena.tensor(tokens, spec.keyValueWidth)
        dV = arena.tensor(tokens, spec.keyValueWidth)
        headDK = arena.tensor(tokens, spec.queryWidth)
        headDV = arena.tensor(tokens, spec.queryWidth)
        dProjected = (0..<Self.mostTogether).map { _ in arena.tensor(tokens, rank) }
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
    /// Seeds the masks of this micro-batch; nil: no dropout (evaluation, generation).
    let dropoutKey: UInt64?
    /// The type that products with frozen weights are computed in, and the memory for their operands.
    let rounding: RoundedRows
    let pool: WorkerPool

    package init(
        index: Int, spec: DecoderSpec, weights: LayerWeights, adapters: AdapterSet?, rotary: RotaryEmbedding,
        dropped: Tensor?, dropoutKey: UInt64?, rounding: RoundedRows, pool: WorkerPool
    ) {
        self.index = index
        self.spec = spec
        self.weights = weights
        self.adapters = adapters
        self.rotary = rotary
        self.dropped = dropped
        self.dropoutKey = dropoutKey
        self.rounding = rounding
        self.pool = pool
    }

    private var attention: CausalAttention {
        CausalAttention(
            headCount: spec.attentionHeadCount, keyValueHeadCount: spec.keyValueHeadCount, headDim: spec.headDim)
    }

    /// - Parameters:
    ///   - h: `[tokens, hiddenSize]`, the layer's input.
    ///   - output: `[tokens, hiddenSize]`; nil when the activations are made again for the backward, which needs all
    ///     but the last product.
    package func forward(_ h: Tensor, _ batch: PackedBatch, _ a: LayerActivations, into output: Tensor?) {
        let tokens = batch.tokenCount
        let n1 = a.n1.prefix(tokens), q = a.q.prefix(tokens), k = a.k.prefix(tokens), v = a.v.prefix(tokens)
        rmsNorm(
            h, weight: weights.attentionNorm, epsilon: spec.rmsNormEpsilon, into: n1, inverseRMS: a.inverseRMS1, on: pool)
        project([(.query, q), (.key, k), (.value, v)], n1, projected: a.projected)
        rotary.rotate(q, positions: batch.positions, .forward, on: pool)
        rotary.rotate(k, positions: batch.positions, .forward, on: pool)
        attend(h, q: q, k: k, v: v, spans: batch.spans, a, tokens: tokens, into: output)
    }

    /// One layer over new tokens of a sequence whose earlier keys and values are cached.
    ///
    /// - Parameters:
    ///   - keyCache, valueCache: `[context, keyValueWidth]`; rows `past ..< past + tokens` are written.
    package func forwardCached(
        _ h: Tensor, positions: UnsafePointer<Int32>, past: Int, keyCache: Tensor, valueCache: Tensor,
        _ a: LayerActivations, into output: Tensor
    ) {
        let tokens = h.rows
        let n1 = a.n1.prefix(tokens), q = a.q.prefix(tokens)
        let k = Tensor(keyCache.row(past), rows: tokens, columns: keyCache.columns)
        let v = Tensor(valueCache.row(past), rows: tokens, columns: valueCache.columns)
        rmsNorm(
            h, weight: weights.attentionNorm, epsilon: spec.rmsNormEpsilon, into: n1, inverseRMS: a.inverseRMS1, on: pool)
        project([(.query, q), (.key, k), (.value, v)], n1, projected: a.projected)
        rotary.rotate(q, positions: positions, .forward, on: pool)
        rotary.rotate(k, positions: positions, .forward, on: pool)
        let span = AttentionSpan(firstQuery: 0, queryCount: tokens, firstKey: 0, keyCount: past + tokens)
        attend(h, q: q, k: keyCache, v: valueCache, spans: [span], a, tokens: tokens, into: output)
    }

    /// From rotated q, k and v to the layer's output.
    private func attend(
        _ h: Tensor, q: Tensor, k: Tensor, v: Tensor, spans: [AttentionSpan], _ a: LayerActivations, tokens: Int,
        into output: Tensor?
    ) {
        let attended = a.attended.prefix(tokens), middle = a.middle.prefix(tokens), n2 = a.n2.prefix(tokens)
        let gate = a.gate.prefix(tokens), up = a.up.prefix(tokens), activated = a.activated.prefix(tokens)
        attention.forward(
            q: q, k: k, v: v, spans: spans, into: attended, logSumExp: a.logSumExp.prefix(tokens), on: pool)
        middle.copy(from: h)
        project([(.output, middle)], attended, .add, projected: a.projected)
        rmsNorm(
            middle, weight: weights.mlpNorm, epsilon: spec.rmsNormEpsilon, into: n2, inverseRMS: a.inverseRMS2, on: pool)
        project([(.gate, gate), (.up, up)], n2, projected: a.projected)
        swiglu(gate: gate, up: up, into: activated, on: pool)
        if let output {
            output.copy(from: middle)
            project([(.down, output)], activated, .add, projected: a.projected)
        } else {
            _ = lowRankTerms([.down], activated, projected: a.projected)
        }
    }

    /// Makes again what `forward` shared with other layers: the norms' results and the activation's, to the same bits.
    package func remake(_ h: Tensor, _ a: LayerActivations) {
        let tokens = h.rows
        rmsNorm(
            h, weight: weights.attentionNorm, epsilon: spec.rmsNormEpsilon, into: a.n1.prefix(tokens),
            inverseRMS: a.inverseRMS1, on: pool)
        rmsNorm(
            a.middle.prefix(tokens), weight: weights.mlpNorm, epsilon: spec.rmsNormEpsilon, into: a.n2.prefix(tokens),
            inverseRMS: a.inverseRMS2, on: pool)
        swiglu(gate: a.gate.prefix(tokens), up: a.up.prefix(tokens), into: a.activated.prefix(tokens), on: pool)
    }

    /// Below the lowest adapted layer nothing needs a gradient, and neither does that layer's own input.
    package enum Below: Equatable, Sendable { case needsGradient, isFrozen }

    /// - Parameters:
    ///   - dH: `[tokens, hiddenSize]`: of the layer's output when called, of its input on return (undefined when what
    ///     is below is frozen).
    ///   - h: the layer's input.
    ///   - a: what `forward` left; `gate` and `up` are overwritten.
    package func backward(
        dH: Tensor, _ h: Tensor, _ batch: PackedBatch, _ a: LayerActivations, _ g: LayerGradients, _ below: Below
    ) {
        let tokens = batch.tokenCount
        let gate = a.gate.prefix(tokens), up = a.up.prefix(tokens), activated = a.activated.prefix(tokens)
        let dActivated = g.dActivated.prefix(tokens), dNormed = g.dNormed.prefix(tokens)
        let n1 = a.n1.prefix(tokens), n2 = a.n2.prefix(tokens)

        projectBackward([(.down, dH)], x: activated, into: dActivated, a, g)
        swigluBackward(dy: dActivated, gate: gate, up: up, on: pool)
        projectBackward([(.gate, gate), (.up, up)], x: n2, into: dNormed, a, g)
        rmsNormBackward(
            dNormed, a.middle.prefix(tokens), weight: weights.mlpNorm, inverseRMS: a.inverseRMS2, addingTo: dH, on: pool)

        let dQ = g.dQ.prefix(tokens), dK = g.dK.prefix(tokens), dV = g.dV.prefix(tokens)
        let dAttended = g.dAttended.prefix(tokens)
        projectBackward([(.output, dH)], x: a.attended.prefix(tokens), into: dAttended, a, g)
        attention.backward(
            dO: dAttended, q: a.q.prefix(tokens), k: a.k.prefix(tokens), v: a.v.prefix(tokens),
            o: a.attended.prefix(tokens), logSumExp: a.logSumExp.prefix(tokens), spans: batch.spans, dQ: dQ,
            headDK: g.headDK.prefix(tokens), headDV: g.headDV.prefix(tokens), dK: dK, dV: dV, on: pool)
        rotary.rotate(dQ, positions: batch.positions, .backward, on: pool)
        rotary.rotate(dK, positions: batch.positions, .backward, on: pool)

        let dN1 = below == .needsGradient ? dNormed : nil
        projectBackward([(.query, dQ), (.key, dK), (.value, dV)], x: n1, into: dN1, a, g)
        if let dN1 {
            rmsNormBackward(
                dN1, h, weight: weights.attentionNorm, inverseRMS: a.inverseRMS1, addingTo: dH, on: pool)
        }
    }
}
