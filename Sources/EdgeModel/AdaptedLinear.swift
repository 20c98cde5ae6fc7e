// The linear modules of a layer with their adapters: y = o ⊙ ((i ⊙ x) · Wᵀ + bias + scaling · dropout(x) · Aᵀ · Bᵀ), and the gradients.
//
// Modules that read the same input run together, so that it is rounded once and the threads meet once. The narrow
// products with A come first; those with B are added while the frozen product's result is in cache. Scales and factors are
// what the adapter's method makes of its matrices (Adapters/AdapterMethod.swift); a method that scales inputs has no factors.
import EdgeTensor

extension DecoderLayer {
    /// y = x · Wᵀ + bias + adapter(x), for every module that reads x.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`.
    ///   - parts: the samples in x.
    ///   - accumulation: `.overwrite` where a method scales outputs.
    ///   - projected: what `lowRankTerms` leaves there, by module.
    func project(
        _ modules: [(module: LinearModule, y: Tensor)], _ x: Tensor, _ parts: [SamplePart],
        _ accumulation: Accumulation = .overwrite, projected: [Tensor]
    ) {
        watch?(index, modules[0].module, x, parts)
        renewScales(modules.map(\.module))
        let terms = lowRankTerms(modules.map(\.module), x, parts, projected: projected)
        let input = scaledInput(modules.map(\.module), x)
        // One token is a generated one (a training sample has at least two): then decoding bounds the product.
        if x.rows == 1 {
            for ((module, y), term) in zip(modules, terms) {
                linearVector(input, weights[module], into: y, accumulation, on: pool)
                if let term { linear(term.projected, QuantizedMatrix(term.factor), into: y, .add, on: pool) }
            }
        } else {
            let outputs = zip(modules, terms).map { LinearOutput(weight: weights[$0.module], adapter: $1, y: $0.y) }
            linear(
                rounding([input], smoothing: smoothingVector(modules[0].module, input), on: pool)[0], outputs, accumulation, on: pool)
        }
        for (module, y) in modules {
            let scale = outputScale(module)
            precondition(scale == nil || accumulation == .overwrite)
            if let scale, !scale.scalesBias { scaleColumns(y, by: scale.scale, on: pool) }
            if let bias = weights.bias(module) { addRows(bias, to: y, on: pool) }
            if let scale, scale.scalesBias { scaleColumns(y, by: scale.scale, on: pool) }
        }
    }

    private func smoothingVector(_ module: LinearModule, _ x: Tensor) -> UnsafePointer<Float>? {
        switch smoothing {
        case .none: return nil
        case .of(let layer): return UnsafePointer(layer[module])
        case .measured(let layer):
            measureSmoothing(x, into: layer[module], on: pool)
            return nil
        }
    }

    /// scaling · dropout(x) · Aᵀ of each adapted linear, in `projected`, which is kept for the backward.
    func lowRankTerms(
        _ modules: [LinearModule], _ x: Tensor, _ parts: [SamplePart], projected: [Tensor]
    ) -> [LowRankTerm?] {
        let adapted = adaptedModules(modules)
        withInputs(adapted, x, parts) { modules, input in
            if foldsInputs {
                // A method that folds is scaled by nothing.
                for module in modules { foldColumns(input, into: module.narrow(projected[module.module], x.rows), on: pool) }
            } else {
                projectDown(
                    input, modules.map { (a: $0.factors.a, z: $0.narrow(projected[$0.module], x.rows), scale: $0.slot.scaling) }, on: pool)
            }
        }
        return modules.map { module in
            adapted.first { $0.slot.linear.parts.contains(module) }.map {
                LowRankTerm(projected: $0.narrow(projected[$0.module], x.rows), factor: rows(of: module, $0.slot, $0.factors.b))
            }
        }
    }

    /// dx = Σ dy · W + the adapters' parts, and the adapters' own gradients, which are added to.
    ///
    /// - Parameters:
    ///   - modules: dy `[tokens, outFeatures]` of every module that read x; overwritten where a method scales outputs.
    ///   - dx: `[tokens, inFeatures]`; nil when nothing below needs it.
    func projectBackward(
        _ modules: [(module: LinearModule, dy: Tensor)], x: Tensor, _ parts: [SamplePart], into dx: Tensor?,
        _ projected: [Tensor], _ gradients: LayerGradients, _ accumulation: Accumulation = .overwrite
    ) {
        let adapted = adaptedModules(modules.map(\.module))
        for (module, dy) in modules { scaleBackward(module, dy, x: x, parts, adapted, projected) }
        // dB = dyᵀ · (scaling · x · Aᵀ); with dz = scaling · dy · B: dA = dzᵀ · x, dx = dz · A.
        let narrow = zip(adapted, gradients.own.dProjected).map { module, dz in
            NarrowGradient(
                module: module, dz: module.narrow(dz, x.rows), dys: modules.filter { module.slot.linear.parts.contains($0.module) },
                z: module.narrow(projected[module.module], x.rows))
        }
        if !narrow.isEmpty {
            let factors = narrow.map { one in
                (
                    parts: one.dys.map { ($0.dy, rows(of: $0.module, one.module.slot, one.module.factors.b)) }, dz: one.dz,
                    scale: one.module.slot.scaling
                )
            }
            projectDownBackward(factors, on: pool)
            addGradients(narrow, x: x, parts)
        }
        guard let dx else { return }
        let dys = rounding(modules.map(\.dy), on: pool)
        if scalesInputs(modules.map(\.module)) {
            inputScaleBackward(zip(modules, dys).map { ($0.module, $1) }, x: x, parts, into: dx, accumulation)
            return
        }
        linearBackward(
            zip(modules, dys).map { one, dy in
                let term = narrow.first { $0.module.slot.id.module == one.module && !hasDropout && !foldsInputs }
                return LinearGradient(
                    dy: dy, weight: weights[one.module],
                    adapter: term.map { LowRankTerm(projected: $0.dz, factor: $0.module.factors.a) })
            }, into: dx, accumulation, on: pool)
        guard hasDropout, let dropped else {
            if foldsInputs { for one in narrow { addUnfolded(one.dz, to: dx, on: pool) } }
            return
        }
        let masked = Tensor(dropped.base, rows: x.rows, columns: x.columns)
        for one in narrow {
            if foldsInputs {
                masked.clear()
                addUnfolded(one.dz, to: masked, on: pool)
            } else {
                linearBackward(one.dz, QuantizedMatrix(one.module.factors.a), into: masked, on: pool)
            }
            dropout(masked, parts, one.module, into: masked)
            addScaled(masked, to: dx, on: pool)
        }
    }

    /// A linear with factors.
    struct AdaptedModule {
        let slot: AdapterSet.Slot
        let factors: AdapterFactors
        var module: Int { slot.id.module.rawValue }

        /// Memory for the largest rank, as wide as this one's.
        func narrow(_ memory: Tensor, _ rows: Int) -> Tensor {
            precondition(rows <= memory.rows && slot.factorRank <= memory.columns)
            return Tensor(memory.base, rows: rows, columns: slot.factorRank)
        }
    }

    private struct NarrowGradient {
        let module: AdaptedModule
        let dz: Tensor
        let dys: [(module: LinearModule, dy: Tensor)]
        let z: Tensor
    }

    private var foldsInputs: Bool { adapters?.spec.method.foldsInputs ?? false }
    private var hasDropout: Bool { masks != nil && (adapters?.spec.dropout ?? 0) > 0 }

    /// The adapted linears that do these products, each at its leader; the other products of a fused one come with it.
    private func slots(_ modules: [LinearModule]) -> [AdapterSet.Slot] {
        guard let adapters else { return [] }
        return modules.compactMap { module in
            adapters.slot(layer: index, module).flatMap { $0.id.module == module ? $0 : nil }
        }
    }

    /// Those with factors, which are made here.
    private func adaptedModules(_ modules: [LinearModule]) -> [AdaptedModule] {
        guard let adapters else { return [] }
        let slots = slots(modules)
        adapters.derive(slots, on: pool)
        return slots.compactMap { slot in adapters.factors(slot).map { AdaptedModule(slot: slot, factors: $0) } }
    }

    /// What a product of a fused linear has of its B, or of B's gradient.
    private func rows(of module: LinearModule, _ slot: AdapterSet.Slot, _ b: Tensor) -> Tensor {
        let rows = slot.linear.rows(of: module, spec)
        return Tensor(b.row(rows.lowerBound), rows: rows.count, columns: b.columns)
    }

    /// Calls `body` with the modules and the input that they see: all with x, or one by one when each has a mask.
    private func withInputs(
        _ adapted: [AdaptedModule], _ x: Tensor, _ parts: [SamplePart], _ body: ([AdaptedModule], Tensor) -> Void
    ) {
        guard hasDropout, let dropped else {
            if !adapted.isEmpty { body(adapted, x) }
            return
        }
        let masked = Tensor(dropped.base, rows: x.rows, columns: x.columns)
        for module in adapted {
            dropout(x, parts, module, into: masked)
            body([module], masked)
        }
    }

    private func dropout(_ x: Tensor, _ parts: [SamplePart], _ module: AdaptedModule, into y: Tensor) {
        guard let masks else { preconditionFailure("dropout without masks") }
        let stream = index * LinearModule.allCases.count + module.slot.id.module.rawValue
        EdgeTensor.dropout(
            x, probability: adapters?.spec.dropout ?? 0,
            parts: parts.map { ($0, masks.key(sample: $0.sample, stream: stream)) }, into: y, on: pool)
    }
}

// Gradients of the factors, and of what they are made of.
extension DecoderLayer {
    private func addGradients(_ narrow: [NarrowGradient], x: Tensor, _ parts: [SamplePart]) {
        guard let adapters else { return }
        guard let stored = adapters.spec.method.storedFactors else {
            addDerivedGradients(narrow, x: x, parts, adapters)
            return
        }
        func gradient(_ one: NarrowGradient, _ matrix: Int) -> Tensor { adapters.gradient(one.module.slot.places[matrix], layer: index) }
        for one in narrow { addB(one, parts, into: gradient(one, stored.b)) }
        let trained = narrow.filter { $0.module.slot.places[stored.a].matrix.isTrained }
        withInputs(trained.map(\.module), x, parts) { modules, input in
            for one in trained where modules.contains(where: { $0.slot == one.module.slot }) {
                addOuterProduct(one.dz, input, parts, into: gradient(one, stored.a), on: pool)
            }
        }
    }

    private func addB(_ one: NarrowGradient, _ parts: [SamplePart], into gradient: Tensor) {
        for (module, dy) in one.dys {
            addOuterProduct(dy, one.z, parts, into: rows(of: module, one.module.slot, gradient), on: pool)
        }
    }

    /// The chain rule is applied to each run of tokens by itself: so what is added to a gradient, and in which order, depends on the
    /// samples alone, as in `addOuterProduct`.
    private func addDerivedGradients(_ narrow: [NarrowGradient], x: Tensor, _ parts: [SamplePart], _ adapters: AdapterSet) {
        withInputs(narrow.map(\.module), x, parts) { modules, input in
            let together = narrow.filter { one in modules.contains { $0.slot == one.module.slot } }
            for run in parts.flatMap(\.outerProductRuns) {
                for one in together {
                    let gradients = adapters.factorGradients(one.module.slot)
                    gradients.a.clear()
                    gradients.b.clear()
                    addB(one, [run], into: gradients.b)
                    if !foldsInputs { addOuterProduct(one.dz, input, [run], into: gradients.a, on: pool) }
                }
                pool.run(together.count) { index, _ in adapters.chain(together[index].module.slot) }
            }
        }
    }
}

// Scales.
extension DecoderLayer {
    /// Of the outputs that are `module`'s.
    private func outputScale(_ module: LinearModule) -> AdapterSet.OutputScaling? {
        guard let adapters, let slot = adapters.slot(layer: index, module) else { return nil }
        return adapters.outputScale(slot, slot.linear.rows(of: module, spec))
    }

    /// Of magnitudes, where parameters have changed: magnitude / ‖W + scaling · B · A‖, row by row. What was never measured is:
    /// the rows of W, and magnitudes that begin as their lengths.
    private func renewScales(_ modules: [LinearModule]) {
        guard let adapters, let scaledRows, adapters.layout.hasMagnitudes else { return }
        for slot in slots(modules) where !adapters.isFresh(slot) {
            guard let factors = adapters.factors(slot) else { continue }
            for module in slot.linear.parts {
                guard let scale = outputScale(module), let squares = scale.weightSquares else { continue }
                if squares.base[0] == 0 { rowSquares(weights[module], into: squares, on: pool) }
                let b = rows(of: module, slot, factors.b)
                let rank = factors.a.rows
                let projected = Tensor(scaledRows, rows: rank, columns: b.rows)
                linear(factors.a, weights[module], into: projected, on: pool)
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

    /// Whether what `module` gives is scaled, and so must exist before it is added to anything.
    func scalesOutput(_ module: LinearModule) -> Bool { outputScale(module) != nil }

    private func inputScale(_ module: LinearModule) -> (scale: Tensor, gradient: Tensor)? {
        adapters.flatMap { adapters in adapters.slot(layer: index, module).flatMap { adapters.inputScale($0) } }
    }

    private func scalesInputs(_ modules: [LinearModule]) -> Bool { modules.contains { inputScale($0) != nil } }

    /// i ⊙ x, or x.
    private func scaledInput(_ modules: [LinearModule], _ x: Tensor) -> Tensor {
        guard let scale = inputScale(modules[0]), let scaledRows else { return x }
        precondition(modules.count == 1, "modules that share an input have one scale each")
        let scaled = Tensor(scaledRows, rows: x.rows, columns: x.columns)
        scaled.copy(from: x)
        scaleColumns(scaled, by: scale.scale, on: pool)
        return scaled
    }

    /// The gradient of an output's scale, for which the output is computed again; and dy becomes that of what was scaled.
    private func scaleBackward(
        _ module: LinearModule, _ dy: Tensor, x: Tensor, _ parts: [SamplePart], _ adapted: [AdaptedModule], _ projected: [Tensor]
    ) {
        guard let scale = outputScale(module), let scaledRows else { return }
        let output = Tensor(scaledRows, rows: x.rows, columns: weights[module].outFeatures)
        let term = adapted.first { $0.slot.linear.parts.contains(module) }.map {
            LowRankTerm(projected: $0.narrow(projected[$0.module], x.rows), factor: rows(of: module, $0.slot, $0.factors.b))
        }
        linear(
            rounding([x], smoothing: smoothingVector(module, x), on: pool)[0],
            [LinearOutput(weight: weights[module], adapter: term, y: output)], on: pool)
        if scale.scalesBias {
            if let bias = weights.bias(module) { addRows(bias, to: output, on: pool) }
            addColumnProducts(dy, output, parts, into: scale.gradient, on: pool)
            scaleColumns(dy, by: scale.scale, on: pool)
        } else {
            // With the length a constant: d magnitude = Σ dy ⊙ output / length = Σ (scale ⊙ dy) ⊙ output / magnitude.
            scaleColumns(dy, by: scale.scale, on: pool)
            addColumnProducts(dy, output, parts, over: scale.trained, into: scale.gradient, on: pool)
        }
    }

    /// di = Σ over tokens of dx' ⊙ x, and dx = i ⊙ dx'.
    private func inputScaleBackward(
        _ modules: [(module: LinearModule, dy: LeftOperand)], x: Tensor, _ parts: [SamplePart], into dx: Tensor, _ accumulation: Accumulation
    ) {
        guard let scaledRows, let scale = inputScale(modules[0].module) else { return }
        precondition(modules.count == 1, "modules that share an input have one scale each")
        let gradient = Tensor(scaledRows, rows: x.rows, columns: x.columns)
        linearBackward(
            [LinearGradient(dy: modules[0].dy, weight: weights[modules[0].module], adapter: nil)], into: gradient, on: pool)
        addColumnProducts(gradient, x, parts, into: scale.gradient, on: pool)
        scaleColumns(gradient, by: scale.scale, on: pool)
        if accumulation == .overwrite { dx.copy(from: gradient) } else { addScaled(gradient, to: dx, on: pool) }
    }
}
