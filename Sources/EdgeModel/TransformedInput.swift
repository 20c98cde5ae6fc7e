// What a job's adapter makes of a linear's input before the frozen product, and the gradients: i ⊙ x, or x · R with R block-diagonal and
// orthogonal. Rotations lie in the adapter's block beside what they are made of, and are made once for the parameters that there are.
import EdgeTensor

extension AdaptedRows {
    private func inputChange(_ module: LinearModule) -> AdapterSet.InputChange? {
        job.adapters.slot(layer: layer.index, module).flatMap { job.adapters.inputChange($0) }
    }

    func transformsInput(_ module: LinearModule) -> Bool { inputChange(module) != nil }

    /// Makes the rotations of these modules where parameters have changed.
    func renewRotations(_ modules: [LinearModule]) {
        for slot in slots(modules) where slot.rotation != nil && !job.adapters.isFresh(slot) {
            guard case .rotation(let skew, let matrix, let form, _) = job.adapters.inputChange(slot) else { continue }
            BlockRotation.derive(skew, form, into: matrix, on: layer.pool)
            job.adapters.becameFresh(slot)
        }
    }

    /// What the product takes for x.
    ///
    /// - Parameters:
    ///   - x: of these rows, as y.
    ///   - y: must not overlap x.
    func transformInput(_ x: Tensor, of module: LinearModule, into y: Tensor) {
        switch inputChange(module) {
        case nil: y.copy(from: x)
        case .scale(let scale, _):
            y.copy(from: x)
            scaleColumns(y, by: scale, on: layer.pool)
        case .rotation(_, let matrix, _, _): BlockRotation.apply(matrix, to: x, into: y, on: layer.pool)
        }
    }

    /// The gradient of what is trained, which is added to; and that of x.
    ///
    /// - Parameters:
    ///   - dTransformed: of these rows, as `dx`; overwritten.
    ///   - x: of the batch.
    ///   - dx: nil when nothing below needs it.
    func transformInputBackward(
        _ dTransformed: Tensor, _ x: Tensor, of module: LinearModule, into dx: Tensor?, _ accumulation: Accumulation
    ) {
        let x = x.rows(rows), pool = layer.pool
        switch inputChange(module) {
        case nil: break
        case .scale(let scale, let gradient):
            addColumnProducts(dTransformed, x, parts, into: gradient, on: pool)
            scaleColumns(dTransformed, by: scale, on: pool)
        case .rotation(let skew, let matrix, let form, let gradient):
            BlockRotation.addGradient(x, dTransformed, parts, skew: skew, form, r: matrix, into: gradient, on: pool)
            if let dx { BlockRotation.applyBackward(matrix, to: dTransformed, into: dx, accumulation, on: pool) }
            return
        }
        guard let dx else { return }
        if accumulation == .overwrite { dx.copy(from: dTransformed) } else { addScaled(dTransformed, to: dx, on: pool) }
    }
}
