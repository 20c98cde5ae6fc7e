// A job's bottleneck at one place of a layer, in the job's rows of a batch: what it adds, and its gradients.
//
// Its two products are as narrow as an adapter's others, and so they are theirs (EdgeTensor/Linear.swift). Nothing but what it reads is
// kept for the backward: the rest is made again.
import EdgeTensor

struct BottleneckRows {
    let form: Bottleneck
    /// Of the batch, or of the chunk.
    let rows: Range<Int>
    /// With rows counted from the first of `rows`.
    private let parts: [SamplePart]
    private let down: (matrix: Tensor, gradient: Tensor)
    private let downBias: (matrix: Tensor, gradient: Tensor)
    private let up: (matrix: Tensor, gradient: Tensor)
    private let upBias: (matrix: Tensor, gradient: Tensor)
    /// w and b; empty where there is no gate.
    private let ofGate: [AdapterSet.PartMatrix]
    private let running: RunningGates.Mean?
    private let pool: WorkerPool
    private var scaling: Float { Float(form.scaling) }

    /// Nil where the job's method has none there.
    init?(_ job: LayerJob, _ site: AdapterSite, layer: Int, rows: Range<Int>, _ parts: [SamplePart], on pool: WorkerPool) {
        guard let form = job.adapters.spec.method.bottleneck else { return nil }
        let matrices = job.adapters.part(site, layer: layer)
        guard matrices.count >= 4 else { return nil }
        (down, downBias, up, upBias) = (matrices[0], matrices[1], matrices[2], matrices[3])
        (ofGate, running) = (Array(matrices[4...]), job.runningGates?.ofBottleneck(site, layer: layer))
        (self.form, self.rows, self.parts, self.pool) = (form, rows, parts, pool)
    }

    /// Memory for the widest of any job, as wide as this one.
    private func narrow(_ memory: Tensor) -> Tensor {
        let width = down.matrix.rows
        precondition(rows.upperBound <= memory.rows && width <= memory.columns)
        return Tensor(memory.row(rows.lowerBound), rows: rows.count, columns: width)
    }

    /// z · Dᵀ + d.
    private func projected(_ z: Tensor, into hidden: Tensor) -> Tensor {
        let p = narrow(hidden)
        projectDown(z.rows(rows), [(a: down.matrix, z: p, scale: 1)], on: pool)
        addRows(downBias.matrix, scale: 1, to: p, on: pool)
        return p
    }

    private func gate(_ z: Tensor) -> SampleGate? {
        ofGate.isEmpty ? nil : SampleGate(ofGate[0], ofGate[1], x: z.rows(rows), parts, running, on: pool)
    }

    /// y += g · scaling · (f(z · Dᵀ + d) · Uᵀ + u). z and y may be the same.
    ///
    /// - Parameters:
    ///   - z, y: `[tokens, hiddenSize]`, of the batch.
    ///   - hidden: `[tokens, width]`, to work in.
    func forward(_ z: Tensor, addingTo y: Tensor, hidden: Tensor) {
        let p = projected(z, into: hidden), y = y.rows(rows)
        activate(form.nonLinearity, p, scale: scaling, into: p, on: pool)
        guard let gate = gate(z) else {
            linear(p, QuantizedMatrix(up.matrix), into: y, .add, on: pool)
            addRows(upBias.matrix, scale: scaling, to: y, on: pool)
            return
        }
        let values = gate.values()
        gate.scale(p, by: values)
        linear(p, QuantizedMatrix(up.matrix), into: y, .add, on: pool)
        for (part, value) in zip(parts, values) { addRows(upBias.matrix, scale: scaling * value, to: y.rows(part.rows), on: pool) }
    }

    /// Adds the gradients of all matrices, and leaves that of z · Dᵀ + d.
    ///
    /// - Parameters:
    ///   - z: as in the forward.
    ///   - dY: `[tokens, hiddenSize]`, of the batch.
    ///   - hidden, dHidden: `[tokens, width]`; and of those that have a gate `gated`.
    /// - Returns: nil where there is no gate.
    func backward(_ z: Tensor, dY: Tensor, hidden: Tensor, dHidden: Tensor, gated: Tensor) -> GateGradient? {
        let p = projected(z, into: hidden), dY = dY.rows(rows), dP = narrow(dHidden)
        let gate = gate(z)
        var dValues: [Float] = []
        if let gate {
            dValues = gatedBackward(gate, p, dY: dY, dP: dP, activated: narrow(gated))
        } else {
            activate(form.nonLinearity, p, scale: scaling, into: dP, on: pool)
            addOuterProduct(dY, dP, parts, into: up.gradient, on: pool)
            addColumnSums(dY, scale: scaling, parts, into: upBias.gradient, on: pool)
            projectDownBackward([(parts: [(dy: dY, b: up.matrix)], dz: dP, scale: scaling)], on: pool)
        }
        activateBackward(form.nonLinearity, p, dy: dP, on: pool)
        addOuterProduct(dP, z.rows(rows), parts, into: down.gradient, on: pool)
        addColumnSums(dP, parts, into: downBias.gradient, on: pool)
        return gate.map { GateGradient(gate: $0, dValues: dValues, rows: rows) }
    }

    /// With the gate between dY and U: adds the gradients of U, u, w and b, and leaves that of f(p) in dP.
    ///
    /// - Returns: of each sample's g.
    private func gatedBackward(_ gate: SampleGate, _ p: Tensor, dY: Tensor, dP: Tensor, activated: Tensor) -> [Float] {
        let values = gate.values()
        projectDownBackward([(parts: [(dy: dY, b: up.matrix)], dz: dP, scale: scaling)], on: pool)
        activate(form.nonLinearity, p, scale: 1, into: activated, on: pool)
        let dot = pool.kernels.raw.dot!
        let dValues = zip(parts, gate.products(dP, activated)).map { part, product in
            part.rows.reduce(product) { $0 + scaling * dot(dY.row($1), upBias.matrix.base, dY.columns) }
        }
        gate.scale(activated, by: values, times: scaling)
        addOuterProduct(dY, activated, parts, into: up.gradient, on: pool)
        for (part, value) in zip(parts, values) { addColumnSums(dY, scale: scaling * value, [part], into: upBias.gradient, on: pool) }
        gate.scale(dP, by: values)
        gate.addGradients(dValues)
        return dValues
    }

    /// dz += what z's gradient is by way of the bottleneck, after `backward`.
    func addInputGradient(_ dHidden: Tensor, to dz: Tensor) {
        linearBackward(narrow(dHidden), QuantizedMatrix(down.matrix), into: dz.rows(rows), .add, on: pool)
    }
}

extension DecoderLayer {
    func bottleneck(of job: AdaptedRows, _ site: AdapterSite) -> BottleneckRows? {
        BottleneckRows(job.job, site, layer: index, rows: job.rows, job.parts, on: pool)
    }

    /// Those of the jobs whose samples these are.
    func bottlenecks(_ site: AdapterSite, _ parts: [SamplePart]) -> [BottleneckRows] {
        jobRows(parts).compactMap { bottleneck(of: $0, site) }
    }

    /// Adds what those that read `input` give.
    ///
    /// - Parameters:
    ///   - z: what they read.
    ///   - kept: where it is kept for the backward; of no rows where there is none, or what they read is there in any case.
    func addBottlenecks(
        _ bottlenecks: [BottleneckRows], reading input: Bottleneck.Input, _ z: Tensor, to y: Tensor, kept: Tensor, _ w: LayerWorkspace
    ) {
        for one in bottlenecks where one.form.input == input {
            if input != .residual, kept.rows > 0 { kept.rows(one.rows).copy(from: z.rows(one.rows)) }
            one.forward(z, addingTo: y, hidden: w.bottleneck)
        }
    }

    /// The gradients of the bottlenecks of a half, and of what they read where that is its sum or its output. `addResidualGradients` has the
    /// rest.
    ///
    /// - Parameters:
    ///   - dH: of the half's sum; on return, without the bottlenecks that read the sum.
    ///   - kept: what was kept by the forward; overwritten.
    /// - Returns: of the half's output, before its norm: dH, or in place of what was kept.
    func bottlenecksBackward(
        _ bottlenecks: [BottleneckRows], dH: Tensor, residual: Tensor, kept: Tensor, _ w: LayerWorkspace, _ g: LayerGradients
    ) -> Tensor {
        let dHidden = g.own.dBottleneck
        for one in bottlenecks {
            let dGate = one.backward(
                one.form.input == .residual ? residual : kept, dY: dH, hidden: w.bottleneck, dHidden: dHidden, gated: g.own.gatedBottleneck)
            precondition(dGate == nil || one.form.input == .sum, "a gate of a bottleneck that does not read the sum")
            guard one.form.input == .sum else { continue }
            one.addInputGradient(dHidden, to: dH)
            dGate?.addInputGradient(to: dH)
        }
        let readers = bottlenecks.filter { $0.form.input == .output }
        guard !readers.isEmpty else { return dH }
        kept.copy(from: dH)
        for one in readers { one.addInputGradient(dHidden, to: kept) }
        return kept
    }

    /// Adds to dH what the residual's gradient is by way of those that read it, once the output's is not needed any more.
    func addResidualGradients(_ bottlenecks: [BottleneckRows], to dH: Tensor, _ g: LayerGradients) {
        for one in bottlenecks where one.form.input == .residual { one.addInputGradient(g.own.dBottleneck, to: dH) }
    }
}
