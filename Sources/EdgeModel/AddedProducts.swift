// What a job's adapter adds to what a linear gives, beside factors, and the gradients (Adapters/AddedTerms.swift):
//
//   forward    y += f + l ⊙ v + x · ΔWᵀ                with u = r ⊙ x, v = u · Wᵀ
//   backward   df = Σ dy, dl = Σ dy ⊙ v, dr = Σ du ⊙ x    with du = (l ⊙ dy) · W
//              dx += r ⊙ du + dy · ΔW
//
// v is computed again in the backward. u and v, and du and l ⊙ dy, are in the memory for scaled rows, of one linear at a time.
import EdgeTensor

extension AdaptedRows {
    /// - Parameters:
    ///   - modules: y of every module that reads x, of the batch; added to.
    ///   - x: of the batch.
    func addTerms(_ modules: [(module: LinearModule, y: Tensor)], _ x: Tensor) {
        let x = x.rows(rows), pool = layer.pool
        for slot in slots(modules.map(\.module)) {
            guard let added = job.adapters.addedParts(slot) else { continue }
            let products = own(modules.map { ($0.module, $0.y) }, slot)
            if let bias = added.bias {
                for (outputs, _, y) in products { addRows(bias.change.base + outputs.lowerBound, to: y, on: pool) }
            }
            if let sparse = added.sparse {
                for (outputs, _, y) in products { sparse.matrix.rows(outputs).addProduct(x, to: y, on: pool) }
            }
            if let (left, right, _, _) = added.rescaling {
                let input = rescaledInput(x, right), rounded = rounded(input, of: slot)
                for (outputs, module, y) in products {
                    let v = rescaledOutput(slot, x, outputs)
                    product(input, rounded, module, into: v)
                    addScaledColumns(v, by: part(left, outputs), to: y, on: pool)
                }
            }
        }
    }

    /// The gradients of what is trained, which are added to.
    ///
    /// - Parameters:
    ///   - modules: dy of every module that read x, of the batch.
    ///   - x: of the batch.
    ///   - dx: of the batch; nil when nothing below needs it.
    func addedTermsBackward(_ modules: [(module: LinearModule, dy: Tensor)], _ x: Tensor, addingTo dx: Tensor?) {
        let x = x.rows(rows), dx = dx?.rows(rows), pool = layer.pool
        for slot in slots(modules.map(\.module)) {
            guard let added = job.adapters.addedParts(slot) else { continue }
            let products = own(modules.map { ($0.module, $0.dy) }, slot)
            if let bias = added.bias {
                for (outputs, _, dy) in products { addColumnSums(dy, parts, into: part(bias.gradient, outputs), on: pool) }
            }
            if let sparse = added.sparse {
                for (outputs, _, dy) in products {
                    let matrix = sparse.matrix.rows(outputs)
                    matrix.addGradient(dy, x, parts, into: sparse.gradient, on: pool)
                    if let dx { matrix.addInputGradient(dy, to: dx, on: pool) }
                }
            }
            if let (left, right, dLeft, dRight) = added.rescaling {
                let input = rescaledInput(x, right), rounded = rounded(input, of: slot)
                var scaled: [Tensor] = []
                for (outputs, module, dy) in products {
                    let v = rescaledOutput(slot, x, outputs)
                    product(input, rounded, module, into: v)
                    addColumnProducts(dy, v, parts, into: part(dLeft, outputs), on: pool)
                    v.copy(from: dy)
                    scaleColumns(v, by: part(left, outputs), on: pool)
                    scaled.append(v)
                }
                let dys = layer.rounding(scaled, on: pool)
                linearBackward(
                    zip(dys, products).map { LinearGradient(dy: $0, weight: layer.weights[$1.module]) }, into: input, on: pool)
                addColumnProducts(input, x, parts, into: dRight, on: pool)
                if let dx { addScaledColumns(input, by: right, to: dx, on: pool) }
            }
        }
    }

    /// The products of a linear, with their outputs among its own, and these rows of what they gave or its gradient.
    private func own(
        _ modules: [(module: LinearModule, values: Tensor)], _ slot: AdapterSet.Slot
    ) -> [(outputs: Range<Int>, module: LinearModule, values: Tensor)] {
        modules.filter { slot.linear.parts.contains($0.module) }.map {
            (slot.linear.rows(of: $0.module, layer.spec), $0.module, $0.values.rows(rows))
        }
    }

    private func part(_ vector: Tensor, _ outputs: Range<Int>) -> Tensor {
        Tensor(vector.base + outputs.lowerBound, rows: 1, columns: outputs.count)
    }

    private var rescaledRows: UnsafeMutablePointer<Float> {
        guard let scaledRows = layer.scaledRows else { preconditionFailure("a rescaled product without room for it") }
        return scaledRows
    }

    /// r ⊙ x.
    private func rescaledInput(_ x: Tensor, _ right: Tensor) -> Tensor {
        let input = Tensor(rescaledRows, rows: x.rows, columns: x.columns)
        input.copy(from: x)
        scaleColumns(input, by: right, on: layer.pool)
        return input
    }

    /// As the frozen product's left operand is; nil for one token, whose product is another.
    private func rounded(_ input: Tensor, of slot: AdapterSet.Slot) -> LeftOperand? {
        guard input.rows > 1 else { return nil }
        let smoothing = job.smoothing.map { UnsafePointer($0[slot.id.module]) }
        return layer.rounding([input], smoothing: smoothing, on: layer.pool)[0]
    }

    /// Where v of these outputs is, behind the input.
    private func rescaledOutput(_ slot: AdapterSet.Slot, _ x: Tensor, _ outputs: Range<Int>) -> Tensor {
        Tensor(rescaledRows + x.rows * (slot.inFeatures + outputs.lowerBound), rows: x.rows, columns: outputs.count)
    }

    private func product(_ input: Tensor, _ rounded: LeftOperand?, _ module: LinearModule, into v: Tensor) {
        let weight = layer.weights[module]
        if let rounded {
            linear(rounded, [LinearOutput(weight: weight, y: v)], on: layer.pool)
        } else {
            linearVector(input, weight, into: v, on: layer.pool)
        }
    }
}
