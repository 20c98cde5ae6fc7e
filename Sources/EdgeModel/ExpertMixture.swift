// An MLP that is a mixture of experts, in the rows of a job that has one (Adapters/MixLoRA.swift): each expert is the frozen MLP with its own
// LoRA. Frozen products are done once for all experts: those of gate and up before they part, that of down after their weighted sum,
// since it is linear:
//
//   g_e = Wg·x + s·B_e·A_e·x     u_e the same     s_e = activation(g_e)·u_e     y = Wd·(Σ w_e·s_e) + Σ w_e·s·B_e·A_e·s_e
//
// An expert's tokens are gathered in their order, some at a time, and every sum over tokens is cut where `addOuterProduct` cuts it: so
// bits depend on the samples alone, and not on what is packed together.
import EdgeTensor

/// The rows of a job whose MLP is a mixture, in a batch, or in a chunk of one.
struct MixedRows {
    let layer: DecoderLayer
    let adapted: AdaptedRows
    let mixture: ExpertMixture
    let memory: MixtureMemory
    /// The chunk's first row, in the batch.
    let offset: Int
    private let part: [(matrix: Tensor, gradient: Tensor)]

    private var pool: WorkerPool { layer.pool }
    private var rows: Range<Int> { adapted.rows }
    private var scaling: Float { adapted.job.adapters.spec.scaling }
    private var rank: Int { adapted.job.adapters.spec.rank }

    /// Nil where the job has none in this layer.
    init?(_ layer: DecoderLayer, _ adapted: AdaptedRows, offset: Int = 0) {
        let part = adapted.job.adapters.part(.experts, layer: layer.index)
        guard !part.isEmpty, let mixture = adapted.job.adapters.spec.method.mixture else { return nil }
        guard let memory = layer.mixture else { preconditionFailure("a mixture of experts without room for it") }
        self.layer = layer
        self.adapted = adapted
        self.mixture = mixture
        self.memory = memory
        self.offset = offset
        self.part = part
    }

    // MARK: matrices

    private struct Factors {
        let a: Tensor, b: Tensor, dA: Tensor, dB: Tensor
    }

    private var router: (matrix: Tensor, gradient: Tensor) { part[0] }

    /// Of a product, which has a part of its linear's B where that is fused.
    private func factors(_ expert: Int, _ module: LinearModule) -> Factors {
        let linears = layer.spec.linears.filter(\.leader.isOfMLP), linear = layer.spec.linear(doing: module)
        let first = 1 + 2 * (expert * linears.count + linears.firstIndex { $0.leader == linear.leader }!)
        let (a, b) = (part[first], part[first + 1]), outputs = linear.rows(of: module, layer.spec)
        return Factors(a: a.matrix, b: b.matrix.rows(outputs), dA: a.gradient, dB: b.gradient.rows(outputs))
    }

    // MARK: routes

    /// Of the rows, or of some of them.
    private func routing(_ some: Range<Int>? = nil) -> ExpertRouting {
        let own = some ?? 0..<rows.count, first = offset + rows.lowerBound
        return memory.routing(first + own.lowerBound..<first + own.upperBound, mixture)
    }

    /// - Parameter x: of the chunk.
    func route(_ x: Tensor) {
        let routing = routing()
        projectDown(x.rows(rows), [(a: router.matrix, z: routing.probabilities, scale: 1)], on: pool)
        routing.choose(on: pool)
    }

    /// Some of the rows at a time, with the samples in them.
    private var tiles: [(rows: Range<Int>, runs: [SamplePart])] {
        var tiles: [(rows: Range<Int>, runs: [SamplePart])] = []
        for run in adapted.parts.flatMap(\.outerProductRuns) {
            if let last = tiles.last, last.rows.count + run.rows.count <= memory.tile {
                tiles[tiles.count - 1].rows = last.rows.lowerBound..<run.rows.upperBound
                tiles[tiles.count - 1].runs.append(run)
            } else {
                tiles.append((run.rows, [run]))
            }
        }
        return tiles
    }

    /// An expert's tokens among those of a tile: their numbers there, and what its output counts for each.
    private struct OwnTokens {
        let count: Int
        let rows: UnsafeMutablePointer<Int32>
        let places: UnsafeMutablePointer<Int32>
        let weights: UnsafeMutablePointer<Float>

        /// The samples that they are of.
        func parts(_ tile: (rows: Range<Int>, runs: [SamplePart])) -> [SamplePart] {
            var first = 0
            return tile.runs.compactMap { run in
                let end = run.rows.upperBound - tile.rows.lowerBound
                let from = first
                while first < count, Int(rows[first]) < end { first += 1 }
                guard first > from else { return nil }
                return SamplePart(rows: from..<first, job: run.job, sample: run.sample, firstToken: run.firstToken)
            }
        }
    }

    private func tokens(of expert: Int, _ routing: ExpertRouting) -> OwnTokens? {
        let count = routing.find(expert, rows: memory.rows, places: memory.places)
        guard count > 0 else { return nil }
        for i in 0..<count { memory.ownWeights[i] = routing.weights.row(Int(memory.rows[i]))[Int(memory.places[i])] }
        return OwnTokens(count: count, rows: memory.rows, places: memory.places, weights: memory.ownWeights)
    }

    // MARK: forward

    /// g_e, u_e and s_e of an expert's tokens, and what A makes of their input: of gate, of up.
    ///
    /// - Parameters:
    ///   - x, gate, up: of the tile: the MLP's input, and the frozen products with it.
    private func compute(
        _ expert: Int, _ tokens: OwnTokens, x: Tensor, gate: Tensor, up: Tensor
    ) -> (x: Tensor, gate: Tensor, up: Tensor, activated: Tensor, z: [Tensor]) {
        let own = memory.own(tokens.count, rank: rank)
        let ofGate = factors(expert, .gate), ofUp = factors(expert, .up)
        gather(tokens.rows, of: x, into: own.x, on: pool)
        gather(tokens.rows, of: gate, into: own.gate, on: pool)
        gather(tokens.rows, of: up, into: own.up, on: pool)
        projectDown(own.x, [(a: ofGate.a, z: own.z[0], scale: scaling), (a: ofUp.a, z: own.z[1], scale: scaling)], on: pool)
        linear(own.z[0], QuantizedMatrix(ofGate.b), into: own.gate, .add, on: pool)
        linear(own.z[1], QuantizedMatrix(ofUp.b), into: own.up, .add, on: pool)
        activate(layer.spec.activation, gate: own.gate, up: own.up, into: own.activated, on: pool)
        return own
    }

    /// Σ w_e·s_e, and the terms that `terms` gives.
    ///
    /// - Parameters:
    ///   - x, gate, up, sum: of the chunk; the first is routed already.
    func forward(x: Tensor, gate: Tensor, up: Tensor, into sum: Tensor) {
        let (x, gate, up, sum) = (x.rows(rows), gate.rows(rows), up.rows(rows), sum.rows(rows))
        sum.clear()
        let projected = (0..<mixture.experts).map { memory.projected($0, rows: rows, rank: rank) }
        for one in projected { one.clear() }
        for tile in tiles {
            let routing = routing(tile.rows), sum = sum.rows(tile.rows)
            for expert in 0..<mixture.experts {
                guard let tokens = tokens(of: expert, routing) else { continue }
                let own = compute(expert, tokens, x: x.rows(tile.rows), gate: gate.rows(tile.rows), up: up.rows(tile.rows))
                addGathered(own.activated, weights: tokens.weights, to: tokens.rows, of: sum, on: pool)
                projectDown(own.activated, [(a: factors(expert, .down).a, z: own.z[2], scale: scaling)], on: pool)
                addGathered(own.z[2], weights: tokens.weights, to: tokens.rows, of: projected[expert].rows(tile.rows), on: pool)
            }
        }
    }

    /// What the experts' own part of down is, in a product that begins with row `first` of the chunk.
    func terms(from first: Int) -> [LowRankTerm] {
        (0..<mixture.experts).map {
            LowRankTerm(
                projected: memory.projected($0, rows: rows, rank: rank), factor: factors($0, .down).b, firstRow: rows.lowerBound - first)
        }
    }

    // MARK: backward

    /// The gradients of experts and router, which are added to, and those of what they got.
    ///
    /// - Parameters:
    ///   - x, gate, up: of the chunk, as in the forward.
    ///   - dOutput: of what down gives.
    ///   - dSum: of Σ w_e·s_e when called; of `up`, that is of the frozen product, on return.
    ///   - dGate: gets that of `gate`.
    ///   - whole: the samples of the batch: their routes are there.
    func backward(x: Tensor, gate: Tensor, up: Tensor, dOutput: Tensor, dSum: Tensor, dGate: Tensor, _ whole: [SamplePart]) {
        let (x, gate, up) = (x.rows(rows), gate.rows(rows), up.rows(rows))
        let (dOutput, dSum, dGate) = (dOutput.rows(rows), dSum.rows(rows), dGate.rows(rows))
        let dInput = memory.dInput(rows), dWeights = memory.dWeights(rows, mixture)
        dInput.clear()
        dGate.clear()
        for tile in tiles {
            let routing = routing(tile.rows), dUp = memory.dUp(tile.rows.count), dWeights = dWeights.rows(tile.rows)
            dUp.clear()
            for expert in 0..<mixture.experts {
                guard let tokens = tokens(of: expert, routing) else { continue }
                let own = compute(expert, tokens, x: x.rows(tile.rows), gate: gate.rows(tile.rows), up: up.rows(tile.rows))
                backward(
                    expert, tokens, tokens.parts(tile), own, dOutput: dOutput.rows(tile.rows), dSum: dSum.rows(tile.rows), dWeights)
                addGathered(own.gate, to: tokens.rows, of: dGate.rows(tile.rows), on: pool)
                addGathered(own.up, to: tokens.rows, of: dUp, on: pool)
                addGathered(memory.ownGradients(tokens.count).dX, to: tokens.rows, of: dInput.rows(tile.rows), on: pool)
            }
            dSum.rows(tile.rows).copy(from: dUp)
        }
        routerBackward(x, dWeights, dInput, whole)
    }

    /// - Parameter own: of the forward; gate and up become their gradients, and the input's is the memory's dX.
    private func backward(
        _ expert: Int, _ tokens: OwnTokens, _ parts: [SamplePart],
        _ own: (x: Tensor, gate: Tensor, up: Tensor, activated: Tensor, z: [Tensor]), dOutput: Tensor, dSum: Tensor, _ dWeights: Tensor
    ) {
        let ofGate = factors(expert, .gate), ofUp = factors(expert, .up), ofDown = factors(expert, .down)
        let d = memory.ownGradients(tokens.count), z = own.z[2], dz = own.z[3]
        gather(tokens.rows, of: dSum, into: d.dActivated, on: pool)
        gather(tokens.rows, of: dOutput, into: d.dOutput, on: pool)
        // dw = ⟨s_e, Wdᵀ·dy⟩ + ⟨A·s_e, s·Bᵀ·dy⟩.
        projectDown(own.activated, [(a: ofDown.a, z: z, scale: 1)], on: pool)
        projectDownBackward([(parts: [(dy: d.dOutput, b: ofDown.b)], dz: dz, scale: scaling)], on: pool)
        rowProducts(own.activated, d.dActivated, into: d.dWeights, .overwrite, on: pool)
        rowProducts(z, dz, into: d.dWeights, .add, on: pool)
        for i in 0..<tokens.count { dWeights.row(Int(tokens.rows[i]))[Int(tokens.places[i])] = d.dWeights[i] }
        multiply(z, by: scaling, on: pool)
        for one in [d.dOutput, d.dActivated, dz] { scaleRows(one, by: tokens.weights, on: pool) }
        addOuterProduct(d.dOutput, z, parts, into: ofDown.dB, on: pool)
        addOuterProduct(dz, own.activated, parts, into: ofDown.dA, on: pool)
        linearBackward(dz, QuantizedMatrix(ofDown.a), into: d.dActivated, .add, on: pool)
        activateBackward(layer.spec.activation, dy: d.dActivated, gate: own.gate, up: own.up, on: pool)
        for (factors, dy, z, accumulation) in [(ofGate, own.gate, own.z[0], Accumulation.overwrite), (ofUp, own.up, own.z[1], .add)] {
            projectDownBackward([(parts: [(dy: dy, b: factors.b)], dz: dz, scale: scaling)], on: pool)
            addOuterProduct(dy, z, parts, into: factors.dB, on: pool)
            addOuterProduct(dz, own.x, parts, into: factors.dA, on: pool)
            linearBackward(dz, QuantizedMatrix(factors.a), into: d.dX, accumulation, on: pool)
        }
    }

    private func routerBackward(_ x: Tensor, _ dWeights: Tensor, _ dInput: Tensor, _ whole: [SamplePart]) {
        let routing = routing()
        for part in adapted.parts {
            let sample = whole.first { $0.job == part.job && $0.sample == part.sample }!
            routing.backward(dWeights, balance: balance(of: sample), part.rows)
        }
        let dLogits = routing.probabilities
        addOuterProduct(dLogits, x, adapted.parts, into: router.gradient, on: pool)
        linearBackward(dLogits, QuantizedMatrix(router.matrix), into: dInput, .add, on: pool)
    }

    /// Gradients of a token's probabilities by the balance: N · F_e / tokens, times its share of the loss.
    ///
    /// - Parameter sample: whole, of the batch.
    private func balance(of sample: SamplePart) -> [Float] {
        let tokens = Float(sample.rows.count), counts = memory.routing(sample.rows, mixture).counts(0..<sample.rows.count)
        let layers = adapted.job.adapters.layout.mixedLayers
        let share = mixture.balance * adapted.job.sampleShare / Float(layers) * Float(mixture.experts)
        return counts.map { share * Float($0) / tokens / tokens }
    }

    /// Adds the gradient of what the MLP read that `backward` has left.
    ///
    /// - Parameter dx: of the chunk.
    func addInput(to dx: Tensor) { addScaled(memory.dInput(rows), to: dx.rows(rows), on: pool) }

    /// Puts the gradients that `backward` has left in their places.
    ///
    /// - Parameters: of the chunk.
    func place(dGate: Tensor, dUp: Tensor, into gate: Tensor, _ up: Tensor) {
        gate.rows(rows).copy(from: dGate.rows(rows))
        up.rows(rows).copy(from: dUp.rows(rows))
    }
}
