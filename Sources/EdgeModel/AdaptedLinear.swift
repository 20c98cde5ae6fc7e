// The linear modules of a layer with their adapters: y = o ⊙ (t(x) · Wᵀ + bias + scaling · dropout(x) · Aᵀ · Bᵀ), and the gradients.
//
// Modules that read the same input run together, so that it is rounded once and the threads meet once; so do the rows of jobs that
// train together, so that a weight is decoded once for all of them. Where a job transforms inputs (TransformedInput.swift), each linear
// has its own, and runs by itself. The narrow products with A come first, job by job (AdaptedRows.swift); those with B are added while
// the frozen product's result is in cache. What a method adds beside factors (AddedProducts.swift) comes last, job by job. Transforms,
// scales and factors are what the adapter's method makes of its matrices (Adapters/AdapterMethod.swift); a method that transforms inputs
// has no factors.
//
// A row's bits do not depend on the rows around it, so a job's are the same alone and with others.
import EdgeTensor

/// Rows of a batch that a product takes in the same way, and whose they are.
struct AlikeRows {
    fileprivate(set) var rows: Range<Int>
    fileprivate(set) var jobs: [AdaptedRows]
    fileprivate let treatment: Treatment

    fileprivate struct Treatment: Equatable {
        var transformsInput = false
        var scalesOutput = false
        var smoothing: UnsafePointer<Float>?
        /// Whether a bottleneck reads what the product gives.
        var hasReader = false
    }

    /// Whether what the product gives is scaled, and so must exist before it is added to anything.
    var scalesOutput: Bool { treatment.scalesOutput }
    /// Whether what the product gives must exist before the residual is added to it.
    var separatesOutput: Bool { treatment.scalesOutput || treatment.hasReader }
}

extension DecoderLayer {
    /// The rows of each job, or of each run of samples of one of its tasks, in a batch or a chunk; none where only the base runs.
    func jobRows(_ parts: [SamplePart]) -> [AdaptedRows] {
        guard !jobs.isEmpty else { return [] }
        var runs: [[SamplePart]] = []
        for part in parts {
            if let last = runs.last?.last, last.job == part.job, last.task == part.task {
                runs[runs.count - 1].append(part)
            } else {
                runs.append([part])
            }
        }
        return runs.map { own in
            let first = own[0].rows.lowerBound, last = own[own.count - 1].rows.upperBound
            return AdaptedRows(
                layer: self, job: jobs[own[0].job], task: own[0].task, rows: first..<last,
                parts: own.map { part in
                    var moved = part
                    moved.rows = part.rows.lowerBound - first..<part.rows.upperBound - first
                    return moved
                })
        }
    }

    /// The rows that can go through these modules together: neighbours that are treated alike.
    func alike(_ modules: [LinearModule], _ parts: [SamplePart]) -> [AlikeRows] {
        var runs: [AlikeRows] = []
        for job in jobRows(parts) {
            let treatment = AlikeRows.Treatment(
                transformsInput: modules.contains(where: job.transformsInput), scalesOutput: modules.contains(where: job.scalesOutput),
                smoothing: job.job.smoothing.map { UnsafePointer($0[modules[0]]) },
                hasReader: modules.contains { $0.site.flatMap { bottleneck(of: job, $0) }?.form.input == .output })
            if runs.last?.treatment == treatment {
                runs[runs.count - 1].rows = runs.last!.rows.lowerBound..<job.rows.upperBound
                runs[runs.count - 1].jobs.append(job)
            } else {
                runs.append(AlikeRows(rows: job.rows, jobs: [job], treatment: treatment))
            }
        }
        guard runs.isEmpty, let last = parts.last else { return runs }
        return [AlikeRows(rows: parts[0].rows.lowerBound..<last.rows.upperBound, jobs: [], treatment: AlikeRows.Treatment())]
    }

    /// y = x · Wᵀ + bias + adapter(x), for every module that reads x.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`.
    ///   - parts: the samples in x.
    ///   - projected: what `lowRankTerms` leaves there, by module.
    func project(_ modules: [(module: LinearModule, y: Tensor)], _ x: Tensor, _ parts: [SamplePart], projected: [Tensor]) {
        watch?(index, modules[0].module, x, parts)
        for run in alike(modules.map(\.module), parts) { project(modules, x, run, projected: projected) }
    }

    /// - Parameter accumulation: `.overwrite` where outputs are scaled.
    func project(
        _ modules: [(module: LinearModule, y: Tensor)], _ x: Tensor, _ run: AlikeRows, _ accumulation: Accumulation = .overwrite,
        projected: [Tensor]
    ) {
        precondition(accumulation == .overwrite || !run.scalesOutput)
        let names = modules.map(\.module)
        for job in run.jobs {
            job.renewScales(names)
            job.renewRotations(names)
        }
        let terms = run.jobs.map { $0.lowRankTerms(names, x, projected: projected, from: run.rows.lowerBound) }
        // Of down alone, which no other linear shares its input with.
        let mixed =
            mixture == nil || names != [.down] ? [] : run.jobs.compactMap { MixedRows(self, $0) }.flatMap { $0.terms(from: run.rows.lowerBound) }
        for together in sharingInput(names, run) {
            let input = transformedInput(names[together[0]], x, run)
            let outputs = together.map { index in
                LinearOutput(
                    weight: weights[names[index]], adapters: terms.compactMap { $0[index] } + mixed, y: modules[index].y.rows(run.rows))
            }
            // One token is a generated one (a training sample has at least two): then decoding bounds the product.
            if input.rows == 1 {
                for output in outputs {
                    linearVector(input, output.weight, into: output.y, accumulation, on: pool)
                    for term in output.adapters { linear(term.projected, QuantizedMatrix(term.factor), into: output.y, .add, on: pool) }
                }
            } else {
                let smoothing = smoothingVector(names[0], input, run)
                linear(rounding([input], smoothing: smoothing, on: pool)[0], outputs, accumulation, on: pool)
            }
        }
        for (module, y) in modules {
            if run.scalesOutput {
                for job in run.jobs { job.addBiasAndScale(y, of: module) }
            } else if let bias = weights.bias(module) {
                addRows(bias, to: y.rows(run.rows), on: pool)
            }
        }
        for job in run.jobs { job.addTerms(modules, x) }
    }

    /// The modules whose products have one input, by their places: all, or those of one linear where inputs are transformed.
    private func sharingInput(_ modules: [LinearModule], _ run: AlikeRows) -> [[Int]] {
        guard run.treatment.transformsInput else { return [Array(modules.indices)] }
        let leaders = modules.map { spec.linear(doing: $0).leader }
        return modules.indices.reduce(into: [[Int]]()) { groups, index in
            if let last = groups.last, leaders[last[0]] == leaders[index] {
                groups[groups.count - 1].append(index)
            } else {
                groups.append([index])
            }
        }
    }

    /// What int8 products divide the channels of x by, they do those of a transformed x, too: any vector gives the same product, and
    /// training, which begins where nothing is transformed, does not go far from there.
    private func smoothingVector(_ module: LinearModule, _ x: Tensor, _ run: AlikeRows) -> UnsafePointer<Float>? {
        if let measured { measureSmoothing(x, into: measured[module], on: pool) }
        return run.treatment.smoothing
    }

    /// The narrow half of `project` alone.
    func projectNarrow(_ modules: [LinearModule], _ x: Tensor, _ parts: [SamplePart], projected: [Tensor]) {
        for job in jobRows(parts) { _ = job.lowRankTerms(modules, x, projected: projected, from: job.rows.lowerBound) }
    }

    /// t(x), or x, of the run's rows.
    private func transformedInput(_ module: LinearModule, _ x: Tensor, _ run: AlikeRows) -> Tensor {
        let x = x.rows(run.rows)
        guard run.jobs.contains(where: { $0.transformsInput(module) }) else { return x }
        let transformed = transformed(x.rows, columns: x.columns)
        for job in run.jobs { job.transformInput(own(x, job, run), of: module, into: own(transformed, job, run)) }
        return transformed
    }

    private func transformed(_ rows: Int, columns: Int) -> Tensor {
        guard let scaledRows else { preconditionFailure("transformed inputs without room for them") }
        return Tensor(scaledRows, rows: rows, columns: columns)
    }

    /// A job's rows of a tensor that begins with the run's first.
    private func own(_ tensor: Tensor, _ job: AdaptedRows, _ run: AlikeRows) -> Tensor {
        tensor.rows(job.rows.lowerBound - run.rows.lowerBound..<job.rows.upperBound - run.rows.lowerBound)
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
        let names = modules.map(\.module)
        for run in alike(names, parts) {
            let narrow = run.jobs.map { $0.narrowGradients(modules, x, projected: projected, dProjected: gradients.own.dProjected) }
            // To what is in dx by then; and where nothing below needs dx there are gradients, too.
            defer { for job in run.jobs { job.addedTermsBackward(modules, x, addingTo: dx) } }
            guard dx != nil || run.treatment.transformsInput else { continue }
            let dys = rounding(modules.map { $0.dy.rows(run.rows) }, on: pool), dx = dx?.rows(run.rows)
            var accumulation = accumulation
            for together in sharingInput(names, run) {
                let products = together.map { index in
                    LinearGradient(
                        dy: dys[index], weight: weights[names[index]],
                        adapters: zip(run.jobs, narrow).compactMap { $0.inputTerm(names[index], $1, from: run.rows.lowerBound) })
                }
                let module = names[together[0]]
                if run.jobs.contains(where: { $0.transformsInput(module) }) {
                    transformedInputBackward(products, module, x, run, into: dx, accumulation)
                } else if let dx {
                    linearBackward(products, into: dx, accumulation, on: pool)
                }
                accumulation = .add
            }
            guard let dx else { continue }
            for (job, narrow) in zip(run.jobs, narrow) { job.addInputTerms(narrow, to: own(dx, job, run)) }
        }
    }

    /// - Parameters:
    ///   - products: of the linear that `module` is the first of.
    ///   - x: of the batch.
    ///   - dx: of the run's rows.
    private func transformedInputBackward(
        _ products: [LinearGradient], _ module: LinearModule, _ x: Tensor, _ run: AlikeRows, into dx: Tensor?, _ accumulation: Accumulation
    ) {
        let dTransformed = transformed(run.rows.count, columns: x.columns)
        linearBackward(products, into: dTransformed, on: pool)
        for job in run.jobs {
            job.transformInputBackward(own(dTransformed, job, run), x, of: module, into: dx.map { own($0, job, run) }, accumulation)
        }
    }
}
