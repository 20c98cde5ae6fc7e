// What one job's adapter does to the linears of a layer, in the job's rows of a batch: its narrow products, its scales, and the
// gradients of what it stores. The products with frozen weights, which jobs share, are in AdaptedLinear.swift.
import EdgeTensor

/// A job that trains, as a layer sees it.
package struct LayerJob {
    let adapters: AdapterSet
    /// Nil: no dropout (evaluation, generation).
    let masks: DropoutMasks?
    /// What int8 products divide the channels of this job's inputs by; nil: nothing.
    let smoothing: LayerSmoothing?
    /// What a sample counts in what is a mean over the step's samples.
    let sampleShare: Float
    /// While text is generated.
    let runningGates: RunningGates?

    package init(
        _ adapters: AdapterSet, masks: DropoutMasks? = nil, smoothing: LayerSmoothing? = nil, sampleShare: Float = 0,
        runningGates: RunningGates? = nil
    ) {
        self.runningGates = runningGates
        self.sampleShare = sampleShare
        self.adapters = adapters
        self.masks = masks
        self.smoothing = smoothing
    }
}

/// The rows of a job, or of one of its tasks, in a batch, or in a chunk of one: what tensors and `parts` of that are given, this takes its own of.
struct AdaptedRows {
    let layer: DecoderLayer
    let job: LayerJob
    /// Of a job that has some.
    let task: Int?
    let rows: Range<Int>
    /// With rows counted from the first of `rows`.
    let parts: [SamplePart]

    private var adapters: AdapterSet { job.adapters }
    private var pool: WorkerPool { layer.pool }
    private var method: any AdapterMethod { adapters.spec.method }
    private var foldsInputs: Bool { method.foldsInputs }
    private var hasDropout: Bool { job.masks != nil && adapters.spec.dropout > 0 }

    /// A linear with factors.
    struct AdaptedModule {
        let slot: AdapterSet.Slot
        let factors: AdapterFactors
        var module: Int { slot.id.module.rawValue }
    }

    /// Memory for the largest rank of any job, as wide as this module's.
    private func narrow(_ memory: Tensor, _ module: AdaptedModule) -> Tensor {
        precondition(rows.upperBound <= memory.rows && module.slot.factorRank <= memory.columns)
        return Tensor(memory.row(rows.lowerBound), rows: rows.count, columns: module.slot.factorRank)
    }

    /// The adapted linears that do these products, each at its leader; the other products of a fused one come with it.
    func slots(_ modules: [LinearModule]) -> [AdapterSet.Slot] {
        modules.compactMap { module in
            adapters.slot(layer: layer.index, module).flatMap { $0.id.module == module ? $0 : nil }
        }
    }

    /// Those with factors, which are made here.
    private func adaptedModules(_ modules: [LinearModule]) -> [AdaptedModule] {
        let slots = slots(modules)
        adapters.derive(slots, task: task, on: pool)
        return slots.compactMap { slot in adapters.factors(slot, task: task).map { AdaptedModule(slot: slot, factors: $0) } }
    }

    /// What a product of a fused linear has of its B, or of B's gradient.
    private func part(_ module: LinearModule, _ slot: AdapterSet.Slot, _ b: Tensor) -> Tensor {
        b.rows(slot.linear.rows(of: module, layer.spec))
    }

    // MARK: forward

    /// scaling · dropout(x) · Aᵀ of each adapted linear, in `projected`, which is kept for the backward.
    ///
    /// - Parameter first: the product's first row.
    /// - Returns: of each module.
    func lowRankTerms(_ modules: [LinearModule], _ x: Tensor, projected: [Tensor], from first: Int) -> [LowRankTerm?] {
        let adapted = adaptedModules(modules)
        withInputs(adapted, x.rows(rows)) { modules, input in
            if foldsInputs {
                // A method that folds is scaled by nothing.
                for module in modules { foldColumns(input, into: narrow(projected[module.module], module), on: pool) }
            } else {
                projectDown(
                    input, modules.map { (a: $0.factors.a, z: narrow(projected[$0.module], $0), scale: $0.slot.scaling) }, on: pool)
            }
        }
        for module in adapted {
            if let gate = gate(module, x.rows(rows)) { gate.scale(narrow(projected[module.module], module), by: gate.values()) }
        }
        return modules.map { term(of: $0, adapted, projected, from: first) }
    }

    /// - Parameter x: of these rows.
    private func gate(_ module: AdaptedModule, _ x: Tensor) -> SampleGate? {
        adapters.gate(module.slot).map {
            SampleGate($0.weight, $0.bias, x: x, parts, job.runningGates?.of(module.slot.id.module, layer: layer.index), on: pool)
        }
    }

    private func term(of module: LinearModule, _ adapted: [AdaptedModule], _ projected: [Tensor], from first: Int) -> LowRankTerm? {
        adapted.first { $0.slot.linear.parts.contains(module) }.map {
            LowRankTerm(
                projected: narrow(projected[$0.module], $0), factor: part(module, $0.slot, $0.factors.b), firstRow: rows.lowerBound - first)
        }
    }

    /// Calls `body` with the modules and the input that they see: all with x, or one by one when each has a mask.
    ///
    /// - Parameter x: of these rows.
    private func withInputs(_ adapted: [AdaptedModule], _ x: Tensor, _ body: ([AdaptedModule], Tensor) -> Void) {
        guard hasDropout, let dropped = layer.dropped else {
            if !adapted.isEmpty { body(adapted, x) }
            return
        }
        let masked = Tensor(dropped.base, rows: x.rows, columns: x.columns)
        for module in adapted {
            dropout(x, module, into: masked)
            body([module], masked)
        }
    }

    private func dropout(_ x: Tensor, _ module: AdaptedModule, into y: Tensor) {
        guard let masks = job.masks else { preconditionFailure("dropout without masks") }
        let stream = layer.index * LinearModule.allCases.count + module.slot.id.module.rawValue
        EdgeTensor.dropout(
            x, probability: adapters.spec.dropout,
            parts: parts.map { ($0, masks.key(sample: $0.sample, stream: stream)) }, into: y, on: pool)
    }

    // MARK: backward

    struct NarrowGradient {
        let module: AdaptedModule
        let dz: Tensor
        let dys: [(module: LinearModule, dy: Tensor)]
        let z: Tensor
        /// Nil where there is no gate.
        var gate: GateGradient?
    }

    /// The gradients of what is stored for these modules, which are added to, and the narrow ones that dx needs.
    ///
    /// - Parameters:
    ///   - modules: dy of every module that read x; overwritten where the method scales outputs.
    ///   - dProjected: one for each module that reads the same input.
    func narrowGradients(
        _ modules: [(module: LinearModule, dy: Tensor)], _ x: Tensor, projected: [Tensor], dProjected: [Tensor]
    ) -> [NarrowGradient] {
        let x = x.rows(rows), modules = modules.map { (module: $0.module, dy: $0.dy.rows(rows)) }
        let adapted = adaptedModules(modules.map(\.module))
        for (module, dy) in modules { scaleBackward(module, dy, x, adapted, projected) }
        // dB = dyᵀ · (scaling · x · Aᵀ); with dz = scaling · dy · B: dA = dzᵀ · x, dx = dz · A.
        let gradients = zip(adapted, dProjected).map { module, dz in
            NarrowGradient(
                module: module, dz: narrow(dz, module), dys: modules.filter { module.slot.linear.parts.contains($0.module) },
                z: narrow(projected[module.module], module))
        }
        guard !gradients.isEmpty else { return [] }
        let factors = gradients.map { one in
            (
                parts: one.dys.map { ($0.dy, part($0.module, one.module.slot, one.module.factors.b)) }, dz: one.dz,
                scale: one.module.slot.scaling
            )
        }
        projectDownBackward(factors, on: pool)
        let throughGates = gradients.map { throughGate($0, x) }
        addGradients(throughGates, x)
        return throughGates
    }

    /// z has g and the scaling, dz only the scaling; on return dz has g, too.
    private func throughGate(_ one: NarrowGradient, _ x: Tensor) -> NarrowGradient {
        guard let gate = gate(one.module, x) else { return one }
        let values = gate.values(), scaling = one.module.slot.scaling
        // Where a gate is nothing, so is its slope.
        let dValues = zip(gate.products(one.dz, one.z), values).map { $1 * scaling == 0 ? 0 : $0 / ($1 * scaling) }
        gate.scale(one.dz, by: values)
        gate.addGradients(dValues)
        var own = one
        own.gate = GateGradient(gate: gate, dValues: dValues, rows: 0..<x.rows)
        return own
    }

    /// What the gradient of `module`'s input gets with the frozen product; nil where it is not a product with A.
    ///
    /// - Parameter first: the product's first row.
    func inputTerm(_ module: LinearModule, _ gradients: [NarrowGradient], from first: Int) -> LowRankTerm? {
        guard !hasDropout, !foldsInputs else { return nil }
        return gradients.first { $0.module.slot.id.module == module }.map {
            LowRankTerm(projected: $0.dz, factor: $0.module.factors.a, firstRow: rows.lowerBound - first)
        }
    }

    /// Adds what `inputTerm` leaves out.
    ///
    /// - Parameter dx: of these rows.
    func addInputTerms(_ gradients: [NarrowGradient], to dx: Tensor) {
        for one in gradients { one.gate?.addInputGradient(to: dx) }
        guard hasDropout, let dropped = layer.dropped else {
            if foldsInputs { for one in gradients { addUnfolded(one.dz, to: dx, on: pool) } }
            return
        }
        let masked = Tensor(dropped.base, rows: dx.rows, columns: dx.columns)
        for one in gradients {
            if foldsInputs {
                masked.clear()
                addUnfolded(one.dz, to: masked, on: pool)
            } else {
                linearBackward(one.dz, QuantizedMatrix(one.module.factors.a), into: masked, on: pool)
            }
            dropout(masked, one.module, into: masked)
            addScaled(masked, to: dx, on: pool)
        }
    }

    private func addGradients(_ narrow: [NarrowGradient], _ x: Tensor) {
        guard let stored = method.storedFactors else {
            addDerivedGradients(narrow, x)
            return
        }
        func gradient(_ one: NarrowGradient, _ matrix: Int) -> Tensor {
            adapters.gradient(one.module.slot.places[matrix], layer: layer.index)
        }
        for one in narrow { addB(one, parts, into: gradient(one, stored.b)) }
        let trained = narrow.filter { $0.module.slot.places[stored.a].matrix.isTrained }
        withInputs(trained.map(\.module), x) { modules, input in
            for one in trained where modules.contains(where: { $0.slot == one.module.slot }) {
                addOuterProduct(one.dz, input, parts, into: gradient(one, stored.a), on: pool)
            }
        }
    }

    private func addB(_ one: NarrowGradient, _ parts: [SamplePart], into gradient: Tensor) {
        for (module, dy) in one.dys { addOuterProduct(dy, one.z, parts, into: part(module, one.module.slot, gradient), on: pool) }
    }

    /// The chain rule is applied to each run of tokens by itself: so what is added to a gradient, and in which order, depends on the
    /// samples alone, as in `addOuterProduct`.
    private func addDerivedGradients(_ narrow: [NarrowGradient], _ x: Tensor) {
        withInputs(narrow.map(\.module), x) { modules, input in
            let together = narrow.filter { one in modules.contains { $0.slot == one.module.slot } }
            for run in parts.flatMap(\.outerProductRuns) {
                for one in together {
                    let gradients = adapters.factorGradients(one.module.slot)
                    gradients.a.clear()
                    gradients.b.clear()
                    addB(one, [run], into: gradients.b)
                    if !foldsInputs { addOuterProduct(one.dz, input, [run], into: gradients.a, on: pool) }
                }
                pool.run(together.count) { index, _ in adapters.chain(together[index].module.slot, task: task) }
            }
        }
    }

    // MARK: scales

    /// Of the outputs that are `module`'s.
    private func outputScale(_ module: LinearModule) -> AdapterSet.OutputScaling? {
        adapters.slot(layer: layer.index, module).flatMap { adapters.outputScale($0, $0.linear.rows(of: module, layer.spec)) }
    }

    func scalesOutput(_ module: LinearModule) -> Bool { outputScale(module) != nil }

    /// Of magnitudes, where parameters have changed: magnitude / ‖W + scaling · B · A‖, row by row. What was never measured is:
    /// the rows of W, and magnitudes that begin as their lengths.
    func renewScales(_ modules: [LinearModule]) {
        guard let scaledRows = layer.scaledRows, adapters.layout.hasMagnitudes else { return }
        for slot in slots(modules) where !adapters.isFresh(slot) {
            guard let factors = adapters.factors(slot) else { continue }
            for module in slot.linear.parts {
                guard let scale = outputScale(module), let squares = scale.weightSquares else { continue }
                let weight = layer.weights[module]
                if squares.base[0] == 0 { rowSquares(weight, into: squares, on: pool) }
                let b = part(module, slot, factors.b)
                let rank = factors.a.rows
                let projected = Tensor(scaledRows, rows: rank, columns: b.rows)
                linear(factors.a, weight, into: projected, on: pool)
                let gram = Tensor(scaledRows + rank * b.rows, rows: rank, columns: rank)
                linear(factors.a, QuantizedMatrix(factors.a), into: gram, on: pool)
                adaptedRowNorms(squares, b, projected, gram, scaling: slot.scaling, into: scale.scale, on: pool)
                // Now the lengths; then what they make of the magnitudes.
                if scale.trained.base[0] == 0 { scale.trained.copy(from: scale.scale) }
                for i in 0..<scale.scale.count { scale.scale.base[i] = scale.trained.base[i] / scale.scale.base[i] }
            }
            adapters.becameFresh(slot)
        }
    }

    /// y becomes o ⊙ y + bias, or o ⊙ (y + bias), as the method has it.
    ///
    /// - Parameter y: of the batch.
    func addBiasAndScale(_ y: Tensor, of module: LinearModule) {
        let y = y.rows(rows), scale = outputScale(module)
        if let scale, !scale.scalesBias { scaleColumns(y, by: scale.scale, on: pool) }
        if let bias = layer.weights.bias(module) { addRows(bias, to: y, on: pool) }
        if let scale, scale.scalesBias { scaleColumns(y, by: scale.scale, on: pool) }
    }

    /// The gradient of an output's scale, for which the output is computed again; and dy becomes that of what was scaled.
    private func scaleBackward(_ module: LinearModule, _ dy: Tensor, _ x: Tensor, _ adapted: [AdaptedModule], _ projected: [Tensor]) {
        guard let scale = outputScale(module), let scaledRows = layer.scaledRows else { return }
        let weight = layer.weights[module]
        let output = Tensor(scaledRows, rows: x.rows, columns: weight.outFeatures)
        let terms = [term(of: module, adapted, projected, from: rows.lowerBound)].compactMap { $0 }
        let smoothing = job.smoothing.map { UnsafePointer($0[module]) }
        linear(layer.rounding([x], smoothing: smoothing, on: pool)[0], [LinearOutput(weight: weight, adapters: terms, y: output)], on: pool)
        if scale.scalesBias {
            if let bias = layer.weights.bias(module) { addRows(bias, to: output, on: pool) }
            addColumnProducts(dy, output, parts, into: scale.gradient, on: pool)
            scaleColumns(dy, by: scale.scale, on: pool)
        } else {
            // With the length a constant: d magnitude = Σ dy ⊙ output / length = Σ (scale ⊙ dy) ⊙ output / magnitude.
            scaleColumns(dy, by: scale.scale, on: pool)
            addColumnProducts(dy, output, parts, over: scale.trained, into: scale.gradient, on: pool)
        }
    }
}
