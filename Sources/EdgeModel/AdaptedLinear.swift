// The linear modules of a layer with their adapters: y = x · Wᵀ + scaling · dropout(x) · Aᵀ · Bᵀ, and the gradients.
//
// Modules that read the same input run together, so that it is rounded once and the threads meet once. The narrow
// products with A come first; those with B are added while the frozen product's result is in cache.
import EdgeTensor

extension DecoderLayer {
    /// y = x · Wᵀ + bias + adapter(x), for every module that reads x.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`.
    ///   - parts: the samples in x.
    ///   - projected: what `lowRankTerms` leaves there, by module.
    func project(
        _ modules: [(module: LinearModule, y: Tensor)], _ x: Tensor, _ parts: [SamplePart],
        _ accumulation: Accumulation = .overwrite, projected: [Tensor]
    ) {
        let terms = lowRankTerms(modules.map(\.module), x, parts, projected: projected)
        // One token is a generated one (a training sample has at least two): then decoding bounds the product.
        if x.rows == 1 {
            for ((module, y), term) in zip(modules, terms) {
                linearVector(x, weights[module], into: y, accumulation, on: pool)
                if let term { linear(term.projected, QuantizedMatrix(term.factor), into: y, .add, on: pool) }
            }
        } else {
            let outputs = zip(modules, terms).map { LinearOutput(weight: weights[$0.module], adapter: $1, y: $0.y) }
            linear(
                rounding([x], smoothing: smoothingVector(modules[0].module, x), on: pool)[0], outputs, accumulation, on: pool)
        }
        for (module, y) in modules { if let bias = weights.bias(module) { addRows(bias, to: y, on: pool) } }
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
        func z(_ module: AdaptedModule) -> Tensor { projected[module.slot.id.module.rawValue].prefix(x.rows) }
        withInputs(adapted, x, parts) { modules, input in
            projectDown(input, modules.map { ($0.loraA, z($0)) }, scale: scaling, on: pool)
        }
        return modules.map { module in
            adapted.first { $0.slot.linear.parts.contains(module) }.map {
                LowRankTerm(projected: z($0), factor: rows(of: module, $0.slot, $0.loraB))
            }
        }
    }

    /// dx = Σ dy · W + the adapters' parts, and the adapters' own gradients, which are added to.
    ///
    /// - Parameters:
    ///   - modules: dy `[tokens, outFeatures]` of every module that read x.
    ///   - dx: `[tokens, inFeatures]`; nil when nothing below needs it.
    func projectBackward(
        _ modules: [(module: LinearModule, dy: Tensor)], x: Tensor, _ parts: [SamplePart], into dx: Tensor?,
        _ projected: [Tensor], _ gradients: LayerGradients, _ accumulation: Accumulation = .overwrite
    ) {
        let adapted = adaptedModules(modules.map(\.module))
        // dB = dyᵀ · (scaling · x · Aᵀ); with dz = scaling · dy · B: dA = dzᵀ · x, dx = dz · A.
        let narrow = zip(adapted, gradients.own.dProjected).map { module, dz in
            (
                module: module, dz: dz.prefix(x.rows), dys: modules.filter { module.slot.linear.parts.contains($0.module) },
                z: projected[module.slot.id.module.rawValue].prefix(x.rows)
            )
        }
        if let adapters, !narrow.isEmpty {
            let factors = narrow.map { one in
                (parts: one.dys.map { ($0.dy, rows(of: $0.module, one.module.slot, one.module.loraB)) }, dz: one.dz)
            }
            projectDownBackward(factors, scale: scaling, on: pool)
            for one in narrow {
                let gradient = adapters.gradientB(one.module.slot)
                for (module, dy) in one.dys {
                    addOuterProduct(dy, one.z, parts, into: rows(of: module, one.module.slot, gradient), on: pool)
                }
            }
            withInputs(adapted, x, parts) { modules, input in
                for one in narrow where modules.contains(where: { $0.slot == one.module.slot }) {
                    addOuterProduct(one.dz, input, parts, into: adapters.gradientA(one.module.slot), on: pool)
                }
            }
        }
        guard let dx else { return }
        let dys = rounding(modules.map(\.dy), on: pool)
        linearBackward(
            zip(modules, dys).map { one, dy in
                let term = narrow.first { $0.module.slot.id.module == one.module && !hasDropout }
                return LinearGradient(
                    dy: dy, weight: weights[one.module],
                    adapter: term.map { LowRankTerm(projected: $0.dz, factor: $0.module.loraA) })
            }, into: dx, accumulation, on: pool)
        guard hasDropout, let dropped else { return }
        let masked = Tensor(dropped.base, rows: x.rows, columns: x.columns)
        for one in narrow {
            linearBackward(one.dz, QuantizedMatrix(one.module.loraA), into: masked, on: pool)
            dropout(masked, parts, one.module, into: masked)
            addScaled(masked, to: dx, on: pool)
        }
    }

    struct AdaptedModule {
        let slot: AdapterSet.Slot
        let loraA: Tensor
        let loraB: Tensor
    }

    private var scaling: Float { adapters?.spec.scaling ?? 0 }
    private var hasDropout: Bool { masks != nil && (adapters?.spec.dropout ?? 0) > 0 }

    /// The adapted linears that do these products.
    private func adaptedModules(_ modules: [LinearModule]) -> [AdaptedModule] {
        guard let adapters else { return [] }
        return modules.compactMap { module in
            adapters.slot(layer: index, module).flatMap {
                guard $0.id.module == module else { return nil }  // its leader has brought it
                return AdaptedModule(slot: $0, loraA: adapters.loraA($0), loraB: adapters.loraB($0))
            }
        }
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
