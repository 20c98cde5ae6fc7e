// One decoder layer, forward and backward written out: attention and gated MLP, each with its norms and residual.
//
//   n1 = norm(h)     q,k,v = n1·Wᵀ     a = attention(rotate(q), rotate(k), v)     m = h + scale · norm(a·Woᵀ)
//   n2 = norm(m)     g,u   = n2·Wᵀ     s = activation(g)·u                        h' = m + scale · norm(s·Wdᵀ)
//
// Of the norms a model has some: before, after, or both, and of q and k. Every `·Wᵀ` may carry a bias and an adapter.
// Gradients are named after what they differentiate: dN1 is of n1.
import EdgeTensor

/// A layer, with what it needs to run; a value made anew for each use.
package struct DecoderLayer {
    let index: Int
    let spec: DecoderSpec
    let weights: LayerWeights
    /// In the order of their rows in a batch; none where only the base runs.
    let jobs: [LayerJob]
    /// Of the model, by `LayerKind.rotary`.
    let rotaries: [RotaryEmbedding]
    /// `[tokens, widest input]` when there is dropout.
    let dropped: Tensor?
    /// Room for a product's inputs or outputs when the adapter scales some: `AdapterLayout.scaledCount` elements.
    let scaledRows: UnsafeMutablePointer<Float>?
    /// The type that products with frozen weights are computed in, and the memory for their operands.
    let rounding: RoundedRows
    /// Set while the base runs to find what its smoothing is to be.
    let measured: LayerSmoothing?
    let pool: WorkerPool
    /// Of the workspace; nil where no job's MLP is a mixture of experts.
    package var mixture: MixtureMemory?
    /// Sees what linears read; see `InputWatch`.
    package var watch: InputWatch?

    /// - Parameters:
    ///   - module: the first of those that read x.
    ///   - x: `[tokens, inFeatures]`; of an MLP that is done in parts, one of them.
    package typealias InputWatch = (_ layer: Int, _ module: LinearModule, _ x: Tensor, _ parts: [SamplePart]) -> Void

    package init(
        index: Int, spec: DecoderSpec, weights: LayerWeights, jobs: [LayerJob], rotaries: [RotaryEmbedding], dropped: Tensor?,
        scaledRows: UnsafeMutablePointer<Float>?, rounding: RoundedRows, measured: LayerSmoothing? = nil, pool: WorkerPool
    ) {
        self.index = index
        self.spec = spec
        self.weights = weights
        self.jobs = jobs
        self.rotaries = rotaries
        self.dropped = dropped
        self.scaledRows = scaledRows
        self.rounding = rounding
        self.measured = measured
        self.pool = pool
    }

    private var attention: CausalAttention {
        CausalAttention(
            headCount: spec.attentionHeadCount, keyValueHeadCount: spec.keyValueHeadCount, headDim: spec.headDim,
            scale: spec.attentionScale, window: spec.layerKinds[index].window, cap: spec.attentionCap)
    }

    /// The layer's first half, to `middle`.
    ///
    /// - Parameter h: `[tokens, hiddenSize]`, the layer's input.
    package func attentionForward(_ h: Tensor, _ batch: PackedBatch, _ a: LayerActivations, _ w: LayerWorkspace) {
        let tokens = batch.tokenCount
        let q = a.q.prefix(tokens), k = a.k.prefix(tokens), v = a.v.prefix(tokens)
        let x = attentionInput(h, batch.parts, a, w)
        project([(.query, q), (.key, k), (.value, v)], x, batch.parts, projected: a.projected)
        if spec.headNorm == .none {
            rotate(q, k, batch.positions, .forward)
        } else if w.gradients != nil {
            normalizeHeads(batch, a, w)
        } else {
            normalizeHeads(q, k, batch.parts, into: q, k, a)
            rotate(q, k, batch.positions, .forward)
        }
        let heads = attentionHeads(a, w, tokens)
        attend(h, x, q: heads.q, k: heads.k, v: v, batch.spans, ofPrefixes: batch.parts, batch.parts, a, w)
    }

    /// What the attention's backward needs again of a layer that has kept its products.
    package func restoreAttention(_ h: Tensor, _ batch: PackedBatch, _ a: LayerActivations, _ w: LayerWorkspace) {
        _ = attentionInput(h, batch.parts, a, w)
        if spec.headNorm != .none { normalizeHeads(batch, a, w) }
    }

    /// The input of q, k and v.
    private func attentionInput(_ h: Tensor, _ parts: [SamplePart], _ a: LayerActivations, _ w: LayerWorkspace) -> Tensor {
        guard let norm = weights.attentionInput else { return h }
        let n1 = w.n1.prefix(h.rows)
        normalize(h, .attentionInput, norm, parts, into: n1, inverse: a.inverses.attentionInput)
        return n1
    }

    /// From what the products gave, which the backward needs, to the workspace.
    private func normalizeHeads(_ batch: PackedBatch, _ a: LayerActivations, _ w: LayerWorkspace) {
        let (q, k) = (w.q.prefix(batch.tokenCount), w.k.prefix(batch.tokenCount))
        normalizeHeads(a.q.prefix(q.rows), a.k.prefix(k.rows), batch.parts, into: q, k, a)
        rotate(q, k, batch.positions, .forward)
    }

    private func normalizeHeads(_ q: Tensor, _ k: Tensor, _ parts: [SamplePart], into nq: Tensor, _ nk: Tensor, _ a: LayerActivations) {
        guard let ofQuery = weights.query, let ofKey = weights.key else { preconditionFailure("head norms without weights") }
        normalize(q, .query, ofQuery, parts, into: nq, inverse: a.inverses.query)
        normalize(k, .key, ofKey, parts, into: nk, inverse: a.inverses.key)
    }

    private func rotate(_ q: Tensor, _ k: Tensor, _ positions: UnsafePointer<Int32>, _ direction: RotaryEmbedding.Direction) {
        guard let kind = spec.layerKinds[index].rotary else { return }
        rotaries[kind].rotate(q, positions: positions, direction, on: pool)
        rotaries[kind].rotate(k, positions: positions, direction, on: pool)
    }

    /// After `attentionForward`, of a batch of one sample: what its queries see.
    package func keysAndValues(_ a: LayerActivations, _ w: LayerWorkspace, tokens: Int) -> (keys: Tensor, values: Tensor) {
        (attentionHeads(a, w, tokens).k, a.v.prefix(tokens))
    }

    /// What attention multiplies.
    private func attentionHeads(_ a: LayerActivations, _ w: LayerWorkspace, _ tokens: Int) -> (q: Tensor, k: Tensor) {
        spec.headNorm == .none || w.gradients == nil
            ? (a.q.prefix(tokens), a.k.prefix(tokens)) : (w.q.prefix(tokens), w.k.prefix(tokens))
    }

    /// The layer's second half, from `middle`.
    ///
    /// - Parameter output: `[tokens, hiddenSize]`.
    package func mlpForward(_ batch: PackedBatch, _ a: LayerActivations, _ w: LayerWorkspace, into output: Tensor) {
        for chunk in batch.chunks(w.mlpTokens) { mlp(chunk, a, w, into: chunk.of(output)) }
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
        let q = a.q.prefix(tokens)
        let k = Tensor(keyCache.row(past), rows: tokens, columns: keyCache.columns)
        let v = Tensor(valueCache.row(past), rows: tokens, columns: valueCache.columns)
        let x = attentionInput(h, parts, a, w)
        project([(.query, q), (.key, k), (.value, v)], x, parts, projected: a.projected)
        if spec.headNorm != .none { normalizeHeads(q, k, parts, into: q, k, a) }
        rotate(q, k, positions, .forward)
        let span = AttentionSpan(firstQuery: 0, queryCount: tokens, firstKey: 0, keyCount: past + tokens)
        // A prefix is in the cache: one with a gate as these tokens see it.
        for gated in gatedPrefixes(parts, x) { gated.scale(into: keyCache, valueCache, on: pool) }
        attend(h, x, q: q, k: keyCache, v: valueCache, [span], ofPrefixes: [], parts, a, w)
        mlp(TokenChunk(rows: 0..<tokens, parts: parts), a, w, into: output)
    }

    /// From rotated q, k and v to the middle of the layer.
    ///
    /// - Parameters:
    ///   - x: what they were made of.
    ///   - samples: those whose prefix is not in k and v.
    private func attend(
        _ h: Tensor, _ x: Tensor, q: Tensor, k: Tensor, v: Tensor, _ spans: [AttentionSpan], ofPrefixes samples: [SamplePart],
        _ parts: [SamplePart], _ a: LayerActivations, _ w: LayerWorkspace
    ) {
        let attended = a.attended.prefix(h.rows), middle = a.middle.prefix(h.rows), logSumExp = a.logSumExp.prefix(h.rows)
        let gated = gatedPrefixes(samples, x), others = GatedPrefix.without(gated, spans, prefixes(samples))
        attention.forward(q: q, k: k, v: v, spans: others.spans, prefixes: others.prefixes, into: attended, logSumExp: logSumExp, on: pool)
        for one in gated {
            let memory = w.forGatedPrefix, rows = one.rows
            one.scale(into: memory.keys, memory.values, on: pool)
            attention.forward(
                q: q.rows(rows), k: k.rows(rows), v: v.rows(rows), spans: [one.ownSpan], prefixes: [one.seen(memory)],
                into: attended.rows(rows), logSumExp: logSumExp.rows(rows), on: pool)
        }
        addToResidual(
            .output, attended, parts, residual: h, into: middle, norm: weights.attentionOutput,
            output: a.attentionOutput.prefix(h.rows), inverse: a.inverses.attentionOutput, projected: a.projected,
            kept: a.read.afterAttention(h.rows), w)
    }

    /// sum = residual + scale · norm(x · Wᵀ), and what bottlenecks give to it.
    ///
    /// - Parameters:
    ///   - output: x · Wᵀ is kept there where there is a norm.
    ///   - kept: what bottlenecks read is kept there, where there is room.
    private func addToResidual(
        _ module: LinearModule, _ x: Tensor, _ parts: [SamplePart], residual: Tensor, into sum: Tensor, norm: Norm?,
        output: Tensor, inverse: UnsafeMutablePointer<Float>, projected: [Tensor], kept: Tensor, _ w: LayerWorkspace
    ) {
        watch?(index, module, x, parts)
        let bottlenecks = module.site.map { self.bottlenecks($0, parts) } ?? []
        for run in alike([module], parts) {
            let (ownSum, ownResidual) = (sum.rows(run.rows), residual.rows(run.rows))
            guard spec.hasOwnOutputs || run.separatesOutput else {
                ownSum.copy(from: ownResidual)
                project([(module, sum)], x, run, .add, projected: projected)
                continue
            }
            if let norm {
                project([(module, output)], x, run, projected: projected)
                normalize(output, module.outputNorm, norm, parts, run.rows, into: sum, inverse: inverse)
            } else {
                project([(module, sum)], x, run, projected: projected)
            }
            multiply(ownSum, by: spec.residualScale, on: pool)
            addBottlenecks(bottlenecks.filter { run.rows.contains($0.rows.lowerBound) }, reading: .output, sum, to: sum, kept: kept, w)
            addScaled(ownResidual, to: ownSum, on: pool)
        }
        addBottlenecks(bottlenecks, reading: .residual, residual, to: sum, kept: kept, w)
        addBottlenecks(bottlenecks, reading: .sum, sum, to: sum, kept: kept, w)
    }

    /// What bottlenecks after the MLP have read, to the same bits: what they do not leave behind costs the product once more.
    ///
    /// - Parameter output: x · Wᵀ, where there is a norm.
    private func readAgain(
        _ bottlenecks: [BottleneckRows], _ x: Tensor, _ chunk: TokenChunk, output: Tensor, inverse: UnsafeMutablePointer<Float>,
        projected: [Tensor], residual: Tensor, into kept: Tensor
    ) {
        for run in alike([.down], chunk.parts) {
            let readers = bottlenecks.filter { run.rows.contains($0.rows.lowerBound) && $0.form.input != .residual }
            guard !readers.isEmpty else { continue }
            let own = kept.rows(run.rows)
            guard spec.hasOwnOutputs || run.separatesOutput else {
                own.copy(from: residual.rows(run.rows))
                project([(.down, kept)], x, run, .add, projected: projected)
                continue
            }
            if let norm = weights.mlpOutput {
                normalize(output, .mlpOutput, norm, chunk.parts, run.rows, into: kept, inverse: inverse)
            } else {
                project([(.down, kept)], x, run, projected: projected)
            }
            multiply(own, by: spec.residualScale, on: pool)
            for one in readers where one.form.input == .sum { addScaled(residual.rows(one.rows), to: kept.rows(one.rows), on: pool) }
        }
    }

    /// From the middle of the layer to its output.
    private func mlp(_ chunk: TokenChunk, _ a: LayerActivations, _ w: LayerWorkspace, into output: Tensor) {
        let x = mlpInput(chunk, a, w)
        gates(chunk, x, a)
        let activated = w.activated.prefix(chunk.rows.count)
        activate(spec.activation, gate: chunk.of(a.gate), up: chunk.of(a.up), into: activated, on: pool)
        for mixed in mixtures(chunk) {
            mixed.route(x)
            mixed.forward(x: x, gate: chunk.of(a.gate), up: chunk.of(a.up), into: activated)
        }
        addToResidual(
            .down, activated, chunk.parts, residual: chunk.of(a.middle), into: output, norm: weights.mlpOutput,
            output: chunk.of(a.mlpOutput), inverse: a.inverses.mlpOutput + chunk.rows.lowerBound,
            projected: a.projected.map(chunk.of), kept: chunk.of(a.read.afterMLP), w)
    }

    /// The rows of jobs whose MLP is a mixture of experts.
    private func mixtures(_ chunk: TokenChunk) -> [MixedRows] {
        mixture == nil ? [] : jobRows(chunk.parts).compactMap { MixedRows(self, $0, offset: chunk.rows.lowerBound) }
    }

    /// The input of gate and up.
    private func mlpInput(_ chunk: TokenChunk, _ a: LayerActivations, _ w: LayerWorkspace) -> Tensor {
        let middle = chunk.of(a.middle)
        guard let norm = weights.mlpInput else { return middle }
        let n2 = w.n2.prefix(chunk.rows.count)
        normalize(middle, .mlpInput, norm, chunk.parts, into: n2, inverse: a.inverses.mlpInput + chunk.rows.lowerBound)
        return n2
    }

    private func gates(_ chunk: TokenChunk, _ x: Tensor, _ a: LayerActivations) {
        project(
            [(.gate, chunk.of(a.gate)), (.up, chunk.of(a.up))], x, chunk.parts, projected: a.projected.map(chunk.of))
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
        if mixture != nil {
            // Which experts a sample's tokens have is asked of all of them.
            for chunk in batch.chunks(w.mlpTokens) {
                let mixtures = mixtures(chunk)
                guard !mixtures.isEmpty else { continue }
                let x = mlpInput(chunk, a, w)
                for mixed in mixtures { mixed.route(x) }
            }
        }
        for chunk in batch.chunks(w.mlpTokens) {
            let mixtures = mixtures(chunk), count = chunk.rows.count
            let gate = chunk.of(a.gate), up = chunk.of(a.up), dH = chunk.of(dH), dNormed = chunk.of(dNormed)
            let activated = w.activated.prefix(count), dActivated = g.dActivated.prefix(count)
            let projected = a.projected.map(chunk.of), inverse = a.inverses.mlpOutput + chunk.rows.lowerBound
            let output = chunk.of(a.mlpOutput)
            let bottlenecks = bottlenecks(.afterMLP, chunk.parts), middle = chunk.of(a.middle), read = chunk.of(a.read.afterMLP)
            let x = mlpInput(chunk, a, w)
            if kept == .input { gates(chunk, x, a) }
            activate(spec.activation, gate: gate, up: up, into: activated, on: pool)
            if kept == .input {
                // The norm's backward needs the product again; without one the adapter's narrow part of it is enough.
                if let norm = weights.mlpOutput {
                    for mixed in mixtures { mixed.forward(x: x, gate: gate, up: up, into: activated) }
                    project([(.down, output)], activated, chunk.parts, projected: projected)
                    normalize(output, .mlpOutput, norm, chunk.parts, into: dNormed, inverse: inverse)
                } else {
                    projectNarrow([.down], activated, chunk.parts, projected: projected)
                }
                readAgain(
                    bottlenecks, activated, chunk, output: output, inverse: inverse, projected: projected, residual: middle, into: read)
            }
            let dAdded = bottlenecksBackward(bottlenecks, dH: dH, residual: middle, kept: read, w, g)
            let dOutput = ofOutput(.down, dAdded, output, chunk.parts, weights.mlpOutput, inverse, into: dNormed)
            projectBackward([(.down, dOutput)], x: activated, chunk.parts, into: dActivated, projected, g)
            addResidualGradients(bottlenecks, to: dH, g)
            for mixed in mixtures {
                mixed.backward(x: x, gate: gate, up: up, dOutput: dOutput, dSum: dActivated, dGate: activated, batch.parts)
            }
            activateBackward(spec.activation, dy: dActivated, gate: gate, up: up, on: pool)
            for mixed in mixtures { mixed.place(dGate: activated, dUp: dActivated, into: gate, up) }
            throughInput(
                [(.gate, gate), (.up, up)], x: x, input: middle, chunk.parts, .mlpInput, weights.mlpInput,
                a.inverses.mlpInput + chunk.rows.lowerBound, dNormed: dNormed, addingTo: dH, projected, g
            ) { dX in
                for mixed in mixtures { mixed.addInput(to: dX) }
            }
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
        let dNormed = g.own.dNormed.prefix(tokens)
        let dQ = g.attention.dQ.prefix(tokens), dK = g.attention.dK.prefix(tokens), dV = g.attention.dV.prefix(tokens)
        let dAttended = g.attention.dAttended.prefix(tokens)
        let bottlenecks = bottlenecks(.afterAttention, parts)
        let dAdded = bottlenecksBackward(bottlenecks, dH: dH, residual: h, kept: a.read.afterAttention(tokens), w, g)
        let dOutput = ofOutput(
            .output, dAdded, a.attentionOutput.prefix(tokens), parts, weights.attentionOutput, a.inverses.attentionOutput, into: dNormed)
        projectBackward([(.output, dOutput)], x: a.attended.prefix(tokens), parts, into: dAttended, a.projected, g)
        if below == .needsGradient { addResidualGradients(bottlenecks, to: dH, g) }
        let heads = attentionHeads(a, w, tokens), x = weights.attentionInput == nil ? h : w.n1.prefix(tokens)
        func attendBackward(_ rows: Range<Int>, _ spans: [AttentionSpan], _ prefixes: [AttentionPrefix?]) {
            attention.backward(
                dO: dAttended.rows(rows), q: heads.q.rows(rows), k: heads.k.rows(rows), v: a.v.rows(rows), o: a.attended.rows(rows),
                logSumExp: a.logSumExp.rows(rows), spans: spans, prefixes: prefixes, dQ: dQ.rows(rows), headDK: g.attention.headDK.rows(rows),
                headDV: g.attention.headDV.rows(rows), dK: dK.rows(rows), dV: dV.rows(rows), on: pool)
        }
        let gated = gatedPrefixes(parts, x), others = GatedPrefix.without(gated, batch.spans, prefixes(parts))
        attendBackward(0..<tokens, others.spans, others.prefixes)
        let dGates = gated.map { one in
            let memory = w.forGatedPrefix, seen = one.seen(memory)
            let value = one.scale(into: memory.keys, memory.values, on: pool)
            seen.dKeys.clear()
            seen.dValues.clear()
            attendBackward(one.rows, [one.ownSpan], [seen])
            return one.backward(seen, value: value, on: pool)
        }
        rotate(dQ, dK, batch.positions, .backward)
        if let ofQuery = weights.query, let ofKey = weights.key {
            normalizeBackward(dQ, a.q.prefix(tokens), .query, ofQuery, parts, inverse: a.inverses.query, into: dQ, .overwrite)
            normalizeBackward(dK, a.k.prefix(tokens), .key, ofKey, parts, inverse: a.inverses.key, into: dK, .overwrite)
        }
        let modules: [(LinearModule, Tensor)] = [(.query, dQ), (.key, dK), (.value, dV)]
        guard below == .needsGradient else {
            projectBackward(modules, x: x, parts, into: nil, a.projected, g)
            return
        }
        throughInput(
            modules, x: x, input: h, parts, .attentionInput, weights.attentionInput, a.inverses.attentionInput, dNormed: dNormed,
            addingTo: dH, a.projected, g
        ) { dX in
            for one in dGates { one.addInputGradient(to: dX) }
        }
    }

    /// The gradient of x · Wᵀ, given that of what became of it in the residual: the same, or made in `place`.
    private func ofOutput(
        _ module: LinearModule, _ dH: Tensor, _ output: Tensor, _ parts: [SamplePart], _ norm: Norm?, _ inverse: UnsafePointer<Float>,
        into place: Tensor
    ) -> Tensor {
        if let norm {
            normalizeBackward(dH, output, module.outputNorm, norm, parts, inverse: inverse, into: place, .overwrite)
        } else {
            // What is scaled is overwritten by the scale's backward.
            guard spec.hasOwnOutputs || alike([module], parts).contains(where: \.scalesOutput) else { return dH }
            place.copy(from: dH)
        }
        multiply(place, by: spec.residualScale, on: pool)
        return place
    }

    /// dH += the gradient of the half's input, by way of its products, of what else reads what they read, and its norm.
    ///
    /// - Parameter addOthers: to the gradient of x.
    private func throughInput(
        _ modules: [(module: LinearModule, dy: Tensor)], x: Tensor, input: Tensor, _ parts: [SamplePart], _ place: NormPlace, _ norm: Norm?,
        _ inverse: UnsafePointer<Float>, dNormed: Tensor, addingTo dH: Tensor, _ projected: [Tensor], _ g: LayerGradients,
        _ addOthers: (Tensor) -> Void
    ) {
        guard let norm else {
            projectBackward(modules, x: x, parts, into: dH, projected, g, .add)
            addOthers(dH)
            return
        }
        projectBackward(modules, x: x, parts, into: dNormed, projected, g)
        addOthers(dNormed)
        normalizeBackward(dNormed, input, place, norm, parts, inverse: inverse, into: dH, .add)
    }
}

extension LinearModule {
    /// The norm of what it adds to the residual.
    fileprivate var outputNorm: NormPlace { self == .down ? .mlpOutput : .attentionOutput }
}
