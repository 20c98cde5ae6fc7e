// Norms that jobs have numbers of their own for: each job's rows go through its own, and leave the gradients of its numbers.
//
// A job's numbers are Hugging Face's, whatever the base file has added to its own; so they are what PEFT trains and stores.
import EdgeTensor

/// A job's own norm, and the gradients of its numbers.
package struct TrainedNorm {
    package let norm: Norm
    package let weightGradient: Tensor
    package let biasGradient: Tensor?

    /// Adds what some tokens say of the numbers, run by run.
    ///
    /// - Parameters: as of `addNormGradients`.
    package func addGradients(_ dy: Tensor, _ x: Tensor, inverse: UnsafePointer<Float>, _ runs: [Range<Int>], on pool: WorkerPool) {
        addNormGradients(dy, x, norm, inverse: inverse, runs, weight: weightGradient, bias: biasGradient, on: pool)
    }
}

extension AdapterSet {
    /// Nil where the adapter leaves the base's as it is.
    ///
    /// - Parameter layer: nil: the model's last.
    package func norm(_ place: NormPlace, layer: Int?, insteadOf base: Norm, _ spec: DecoderSpec) -> TrainedNorm? {
        let stored = part(.norm(place), layer: layer)
        guard let weight = stored.first else { return nil }
        let bias = stored.dropFirst().first
        let kind: NormKind = base.kind == .layer ? .layer : .rootMeanSquare(weightOffset: spec.hubNormOffset)
        return TrainedNorm(
            norm: Norm(
                kind, epsilon: base.epsilon, width: base.width, weight: weight.matrix.base, bias: bias.map { UnsafePointer($0.matrix.base) }),
            weightGradient: weight.gradient, biasGradient: bias?.gradient)
    }

    /// Own norms become the base's.
    package func copyNorms(of base: BaseModel) {
        for placed in layout.parts {
            guard case .norm(let place) = placed.part.site,
                let norm = base.norm(ModelNorm(place: place, layer: placed.part.layer))
            else { continue }
            let offset: Float = switch norm.kind {
            case .rootMeanSquare(let offset): offset - base.spec.hubNormOffset
            case .layer: 0
            }
            for (stored, values) in zip(placed.places.map(tensor), [norm.weight, norm.bias]) {
                guard let values else { continue }
                for i in 0..<stored.count { stored.base[i] = values[i] + offset }
            }
        }
    }
}

/// Rows that go through the same norm.
private struct NormedRows {
    let rows: Range<Int>
    let norm: Norm
    /// Nil: the base's, which is frozen.
    var trained: TrainedNorm?
    var runs: [Range<Int>] = []
}

extension DecoderLayer {
    /// - Parameters:
    ///   - parts: the samples in the rows.
    ///   - rows: those among them that are asked for; nil: all.
    private func normedRows(_ place: NormPlace, _ base: Norm, _ parts: [SamplePart], _ rows: Range<Int>?) -> [NormedRows] {
        let own = jobs.map { $0.adapters.norm(place, layer: index, insteadOf: base, spec) }
        let whole = rows ?? (parts.first?.rows.lowerBound ?? 0)..<(parts.last?.rows.upperBound ?? 0)
        guard own.contains(where: { $0 != nil }) else { return [NormedRows(rows: whole, norm: base)] }
        return jobs.indices.compactMap { job in
            let parts = parts.filter { $0.job == job && whole.contains($0.rows.lowerBound) }
            guard let first = parts.first?.rows.lowerBound, let last = parts.last?.rows.upperBound else { return nil }
            guard let trained = own[job] else { return NormedRows(rows: first..<last, norm: base) }
            let runs = parts.flatMap(\.outerProductRuns).map { $0.rows.lowerBound - first..<$0.rows.upperBound - first }
            return NormedRows(rows: first..<last, norm: trained.norm, trained: trained, runs: runs)
        }
    }

    /// y = norm(x) of some rows, each job's by its own numbers.
    ///
    /// - Parameters:
    ///   - x, y, inverse: as of `EdgeTensor.normalize`, of all rows that `parts` counts.
    ///   - rows: those that are normalised; nil: all.
    func normalize(
        _ x: Tensor, _ place: NormPlace, _ base: Norm, _ parts: [SamplePart], _ rows: Range<Int>? = nil, into y: Tensor,
        inverse: UnsafeMutablePointer<Float>
    ) {
        for one in normedRows(place, base, parts, rows) {
            let inverse = inverse + one.rows.lowerBound * (x.columns / base.width)
            EdgeTensor.normalize(x.rows(one.rows), one.norm, into: y.rows(one.rows), inverse: inverse, on: pool)
        }
    }

    /// dx (+)= the gradient of `normalize` with respect to x; and those of the jobs' own numbers, which are added to.
    func normalizeBackward(
        _ dy: Tensor, _ x: Tensor, _ place: NormPlace, _ base: Norm, _ parts: [SamplePart], inverse: UnsafePointer<Float>, into dx: Tensor,
        _ accumulation: Accumulation
    ) {
        for one in normedRows(place, base, parts, nil) {
            let (dy, x, inverse) = (dy.rows(one.rows), x.rows(one.rows), inverse + one.rows.lowerBound * (x.columns / base.width))
            one.trained?.addGradients(dy, x, inverse: inverse, one.runs, on: pool)
            EdgeTensor.normalizeBackward(dy, x, one.norm, inverse: inverse, into: dx.rows(one.rows), accumulation, on: pool)
        }
    }
}
