// A start of LoRA that makes good some of what quantisation took (LoftQ, arXiv:2310.08659, with the base left as it is: PEFT's
// `replace_lora_weights_loftq`): of every adapted linear, scaling · B · A is the best approximation of its rank to W_original - W. W_original
// is another model's, streamed beside the base. The difference is never a dense matrix: subspace iteration (Halko et al., arXiv:0909.4061
// §4.5) multiplies by it, which is two products with frozen weights.
import EdgeFormats
import EdgeModel
import EdgeTensor

package final class LoftQStart {
    /// Directions that are followed beyond the rank: the wanted ones come to rest sooner.
    private static let spareDirections = 16
    /// Of the error's square, what one more iteration has to gain to be followed by another.
    private static let leastGain = 1e-6
    private static let mostIterations = 60

    private let adapters: AdapterSet
    private let base: BaseModel
    private let original: BaseModel
    private let seed: UInt64
    private let baseStream: WeightStream
    private let originalStream: WeightStream
    private let space: RowSpace
    private let memory: Memory

    private struct Memory {
        /// `[directions, inFeatures]` and `[directions, outFeatures]`, of the largest linear; two of each.
        let inputs: [UnsafeMutablePointer<Float>]
        let outputs: [UnsafeMutablePointer<Float>]
        let rows: [UnsafeMutablePointer<Int32>]
    }

    /// What may be told of the start.
    package struct Outcome: Equatable, Sendable {
        package var linears = 0
        /// Those whose weights are the original's.
        package var unchanged = 0
        /// ‖W_original - W‖² over all linears, and of what is left of it with the adapter.
        package var difference = 0.0
        package var rest = 0.0

        package var summary: String {
            let percent = Int((100 * (rest / difference).squareRoot()).rounded())
            return "loftq: the distance of \(linears) linears from the original's is \(percent) % of what it was"
                + (unchanged > 0 ? "; \(unchanged) have the original's weights" : "")
        }
    }

    // MARK: memory

    private static func directions(_ layout: AdapterLayout) -> Int { (layout.slots.map(\.rank).max() ?? 0) + spareDirections }
    private static func widest(_ layout: AdapterLayout) -> (input: Int, output: Int) {
        (layout.slots.map(\.inFeatures).max() ?? 0, layout.slots.map(\.outFeatures).max() ?? 0)
    }

    /// What it holds until training begins.
    package static func bytes(_ layout: AdapterLayout, base: WeightParts, original: WeightParts) -> ByteCount {
        let count = directions(layout), (input, output) = widest(layout)
        let vectors: [ByteCount] = [.floats(count * input), .floats(count * output), .floats(count)]
        return vectors.reduce(RowSpace.bytes(rows: count) + base.streamBytes + original.streamBytes) { $0 + $1 + $1 }
    }

    /// - Throws: `AdapterStartError` when the linears of both models are not alike.
    package static func check(_ base: DecoderSpec, _ original: DecoderSpec) throws {
        func differ(_ what: String, _ value: (DecoderSpec) -> String) throws {
            guard value(base) != value(original) else { return }
            throw AdapterStartError.otherModel(what: what, base: value(base), original: value(original))
        }
        try differ("architecture") { $0.ggufArchitecture }
        try differ("layers") { "\($0.layerCount)" }
        try differ("linears") { spec in
            spec.linears.map { "\($0.name) [\($0.outFeatures(spec)), \($0.inFeatures(spec))]" }.joined(separator: ", ")
        }
    }

    /// - Parameter adapters: as `initialize` leaves them.
    package init(_ adapters: AdapterSet, base: BaseModel, original: BaseModel, seed: UInt64) throws {
        try Self.check(base.spec, original.spec)
        self.adapters = adapters
        self.base = base
        self.original = original
        self.seed = seed
        let layout = adapters.layout
        let arena = try Arena(capacity: Self.bytes(layout, base: WeightParts(base), original: WeightParts(original)))
        // The streams hold the arena.
        baseStream = WeightStream(base, .streamed, arena: arena)
        originalStream = WeightStream(original, .streamed, arena: arena)
        let count = Self.directions(layout), (input, output) = Self.widest(layout)
        space = RowSpace(rows: count, arena: arena)
        memory = Memory(
            inputs: (0..<2).map { _ in arena.floats(count * input) }, outputs: (0..<2).map { _ in arena.floats(count * output) },
            rows: (0..<2).map { _ in arena.integers(count) })
    }

    // MARK: the start

    /// Fills A and B, linear by linear.
    ///
    /// - Parameter goesOn: asked before every linear.
    /// - Returns: nil when it was not to go on.
    /// - Throws: `AdapterStartError` when no linear differs, or a weight is not finite; `FileError`.
    package func run(on pool: WorkerPool, goesOn: () -> Bool) throws -> Outcome? {
        var outcome = Outcome()
        let parts = adapters.slots.map { $0.id.module.isOfMLP ? WeightParts.Part.mlp($0.id.layer) : .attention($0.id.layer) }
        for (index, slot) in adapters.slots.enumerated() {
            guard goesOn() else { return nil }
            let next = parts[index...].first { $0 != parts[index] }
            try baseStream.use(parts[index], next: next)
            try originalStream.use(parts[index], next: next)
            let (difference, rest) = try start(slot, pool)
            outcome.linears += 1
            outcome.unchanged += difference == 0 ? 1 : 0
            outcome.difference += difference
            outcome.rest += rest
        }
        guard outcome.difference > 0 else { throw AdapterStartError.sameWeights }
        adapters.parametersChanged()
        return outcome
    }

    /// A linear's two weights, product by product of a fused one.
    private struct Difference {
        struct Part {
            let rows: Range<Int>
            let base: QuantizedMatrix, original: QuantizedMatrix
            /// Of each of the base's rows, its place in the original; nil: the same.
            let places: [Int]?
        }
        let parts: [Part]
        /// `[directions, largest part]`.
        let product: UnsafeMutablePointer<Float>

        /// z = x · (W_original - W)ᵀ.
        func multiply(_ x: Tensor, into z: Tensor, on pool: WorkerPool) {
            for part in parts {
                let product = Tensor(product, rows: x.rows, columns: part.rows.count)
                linear(x, part.original, into: product, on: pool)
                forEachElement(part, z) { row, place, own in own.pointee = product.row(row)[part.places?[place] ?? place] }
                linear(x, part.base, into: product, on: pool)
                forEachElement(part, z) { row, place, own in own.pointee -= product.row(row)[place] }
            }
        }

        /// y = z · (W_original - W).
        func multiplyBack(_ z: Tensor, into y: Tensor, on pool: WorkerPool) {
            for (index, part) in parts.enumerated() {
                let product = Tensor(product, rows: z.rows, columns: part.rows.count)
                forEachElement(part, z) { row, place, own in product.row(row)[part.places?[place] ?? place] = own.pointee }
                linearBackward(product, part.original, into: y, index == 0 ? .overwrite : .add, on: pool)
                forEachElement(part, z) { row, place, own in product.row(row)[place] = -own.pointee }
                linearBackward(product, part.base, into: y, .add, on: pool)
            }
        }

        private func forEachElement(_ part: Part, _ z: Tensor, _ body: (_ row: Int, _ place: Int, UnsafeMutablePointer<Float>) -> Void) {
            for row in 0..<z.rows {
                let own = z.row(row) + part.rows.lowerBound
                for place in 0..<part.rows.count { body(row, place, own + place) }
            }
        }
    }

    private func difference(_ slot: AdapterSet.Slot) -> Difference {
        let own = baseStream.inMemory(base.layers[slot.id.layer]), theirs = originalStream.inMemory(original.layers[slot.id.layer])
        let parts = slot.linear.parts.map { module in
            Difference.Part(
                rows: slot.linear.rows(of: module, base.spec), base: own[module], original: theirs[module], places: places(module))
        }
        return Difference(parts: parts, product: memory.outputs[1])
    }

    /// Files of one model may have the rows of q and k in different orders.
    private func places(_ module: LinearModule) -> [Int]? {
        let own = base.spec.rowOrder(module), theirs = original.spec.rowOrder(module)
        guard own != theirs else { return nil }
        let count = module.outFeatures(base.spec)
        var inverse = [Int](repeating: 0, count: count)
        for place in 0..<count { inverse[theirs?[place] ?? place] = place }
        return (0..<count).map { inverse[own?[$0] ?? $0] }
    }

    /// - Returns: ‖W_original - W‖², and what is left of it.
    private func start(_ slot: AdapterSet.Slot, _ pool: WorkerPool) throws -> (difference: Double, rest: Double) {
        let difference = difference(slot)
        let whole = squares(difference, slot, pool)
        guard whole.isFinite else { throw AdapterStartError.nonFiniteWeight(module: slot.id.path(base.spec)) }
        // It has the start that other LoRAs have.
        guard whole > 0 else { return (0, 0) }
        let count = min(slot.rank + Self.spareDirections, slot.inFeatures, slot.outFeatures)
        let inputs = memory.inputs.map { Tensor($0, rows: count, columns: slot.inFeatures) }
        let outputs = memory.outputs.map { Tensor($0, rows: count, columns: slot.outFeatures) }
        let random = RandomSource(seed: seed, .adapterStart, UInt64(slot.id.layer), UInt64(slot.id.module.rawValue))
        for i in 0..<inputs[1].count { inputs[1].base[i] = random.normal(i) }
        var x = try orthonormal(inputs[1], into: inputs[0], slot, pool)
        var (explained, iterations) = (0.0, 0)
        while true {
            let z = outputs[0].prefix(x.rows)
            difference.multiply(x, into: z, on: pool)
            // Between products their memory is free.
            let left = try orthonormal(z, into: outputs[1], slot, pool)
            let before = explained
            explained = space.lengths.prefix(slot.rank).reduce(0) { $0 + $1 * $1 }
            iterations += 1
            if explained - before < Self.leastGain * (whole - explained) || iterations == Self.mostIterations {
                write(slot, left: left, x, turned: inputs[1], pool)
                return (whole, max(0, whole - explained))
            }
            let start = outputs[0].prefix(left.rows)
            start.copy(from: left)
            let y = inputs[1].prefix(left.rows)
            difference.multiplyBack(start, into: y, on: pool)
            x = try orthonormal(y, into: inputs[0], slot, pool)
        }
    }

    /// The right vectors of the matrix, as many as are found; `space` keeps its decomposition.
    private func orthonormal(_ matrix: Tensor, into place: Tensor, _ slot: AdapterSet.Slot, _ pool: WorkerPool) throws -> Tensor {
        guard let found = space.decompose(matrix, on: pool) else {
            throw AdapterStartError.nonFiniteWeight(module: slot.id.path(base.spec))
        }
        let rows = place.prefix(found)
        space.turn(matrix, into: rows, on: pool)
        for (row, length) in space.lengths.enumerated() {
            for column in 0..<rows.columns { rows.row(row)[column] /= Float(length) }
        }
        return rows
    }

    /// With x · (W_original - W)ᵀ = U · S · left as it was decomposed: the difference is near leftᵀ · S · (Uᵀ · x). A and B have √S each,
    /// of what the scaling leaves of it.
    private func write(_ slot: AdapterSet.Slot, left: Tensor, _ x: Tensor, turned: Tensor, _ pool: WorkerPool) {
        let right = turned.prefix(left.rows), lengths = space.lengths
        space.turn(x, into: right, on: pool)
        let a = adapters.tensor(slot.places[0]), b = adapters.tensor(slot.places[1])
        for row in 0..<min(a.rows, left.rows) {
            let share = Float((lengths[row] / Double(slot.scaling)).squareRoot())
            for column in 0..<a.columns { a.row(row)[column] = right.row(row)[column] * share }
            for output in 0..<b.rows { b.row(output)[row] = left.row(row)[output] * share }
        }
    }

    /// ‖W_original - W‖², a few rows at a time.
    private func squares(_ difference: Difference, _ slot: AdapterSet.Slot, _ pool: WorkerPool) -> Double {
        let rows = memory.rows, most = Self.directions(adapters.layout)
        var sum = 0.0
        for part in difference.parts {
            for first in stride(from: 0, to: part.rows.count, by: most) {
                let count = min(most, part.rows.count - first)
                for index in 0..<count {
                    rows[0][index] = Int32(first + index)
                    rows[1][index] = Int32(part.places?[first + index] ?? first + index)
                }
                let blocks = memory.inputs.map { Tensor($0, rows: count, columns: slot.inFeatures) }
                decodeRows(part.base, rows[0], into: blocks[0], on: pool)
                decodeRows(part.original, rows[1], into: blocks[1], on: pool)
                addScaled(blocks[0], scale: -1, to: blocks[1], on: pool)
                sum += dot(blocks[1].base, blocks[1].base, blocks[1].count)
            }
        }
        return sum
    }
}
