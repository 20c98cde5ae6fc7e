// EVA (arXiv:2410.07170), as PEFT has it (peft, tuners/lora/eva.py): the rows of A begin as the directions in which what its linear reads
// varies most, and B as zero. They are the right singular vectors of the frozen model's own activations less their mean, of the tokens that
// carry loss, found sample by sample; linears that share an input share them. Every linear keeps its rank (PEFT's rho is 1): memory is
// planned before any activation is there.
import EdgeFormats
import EdgeModel
import EdgeTensor

package final class EVAStart {
    /// Directions that are followed beyond the rank: what is let go of after each addition is then small.
    private static let spareDirections = 8
    /// As many as there are directions cost least; fewer than these are not worth meeting for.
    private static let leastRowsAtOnce = 16
    /// A direction has come to rest when a step's samples turn it by less than this cosine: PEFT's `tau`.
    private static let restingCosine = 0.99
    /// Tokens after which what has not come to rest is near enough: of directions that data has about as much of, some never do.
    package static let mostTokens = 8192

    /// What some linears of a layer read.
    private struct Input {
        let slots: [AdapterSet.Slot]
        /// The largest of those linears'. Its A has the directions that there were after the last step's samples.
        let leader: AdapterSet.Slot
        /// `[rank + spare, inFeatures]`: right singular vectors, each as long as its singular value.
        let directions: Tensor
        let mean: Tensor
        var found = 0
        var tokens = 0
        var isResting = false
    }

    private struct Key: Hashable {
        let layer: Int, module: LinearModule
    }

    private let adapters: AdapterSet
    private let seed: UInt64
    private let arena: Arena
    private var inputs: [Input] = []
    private var places: [Key: Int] = [:]
    private let space: RowSpace
    private let rows: UnsafeMutablePointer<Float>
    private let turned: UnsafeMutablePointer<Float>
    private let rowsAtOnce: Int
    private var isFinite = true

    // MARK: memory

    private struct Sizes {
        /// Of each input.
        var directions: [Key: (leader: AdapterSet.Slot, slots: [AdapterSet.Slot], count: Int)] = [:]
        var order: [Key] = []
        var mostDirections = 0, widest = 0

        init(_ layout: AdapterLayout) {
            for slot in layout.slots {
                let key = Key(layer: slot.id.layer, module: slot.id.module.sharesInputWith)
                if directions[key] == nil { order.append(key) }
                let slots = (directions[key]?.slots ?? []) + [slot]
                let leader = slots.max { $0.rank < $1.rank }!
                let count = min(slot.inFeatures, leader.rank + spareDirections)
                directions[key] = (leader, slots, count)
                (mostDirections, widest) = (max(mostDirections, count), max(widest, slot.inFeatures))
            }
        }

        var rowsAtOnce: Int { max(leastRowsAtOnce, mostDirections) }
        /// The directions so far, tokens, and one for the change of the mean.
        var rows: Int { mostDirections + rowsAtOnce + 1 }
    }

    /// What it holds until training begins.
    package static func bytes(_ layout: AdapterLayout) -> ByteCount {
        let sizes = Sizes(layout)
        return sizes.directions.values.reduce(
            RowSpace.bytes(rows: sizes.rows) + .floats(sizes.rows * sizes.widest) + .floats(sizes.mostDirections * sizes.widest)
        ) { $0 + .floats($1.count * $1.leader.inFeatures) + .floats($1.leader.inFeatures) }
    }

    /// - Throws: `AdapterStartError` for a rank that is more than there are directions.
    package static func check(_ layout: AdapterLayout, _ spec: DecoderSpec) throws {
        for slot in layout.slots where slot.rank > slot.inFeatures {
            throw AdapterStartError.rankAboveInputs(module: slot.id.path(spec), rank: slot.rank, inputs: slot.inFeatures)
        }
    }

    /// - Parameter adapters: with A and B zero.
    package init(_ adapters: AdapterSet, seed: UInt64) throws {
        self.adapters = adapters
        self.seed = seed
        let sizes = Sizes(adapters.layout)
        arena = try Arena(capacity: Self.bytes(adapters.layout))
        space = RowSpace(rows: sizes.rows, arena: arena)
        rows = arena.floats(sizes.rows * sizes.widest)
        turned = arena.floats(sizes.mostDirections * sizes.widest)
        rowsAtOnce = sizes.rowsAtOnce
        for key in sizes.order {
            let one = sizes.directions[key]!
            places[key] = inputs.count
            inputs.append(
                Input(
                    slots: one.slots, leader: one.leader, directions: arena.tensor(one.count, one.leader.inFeatures),
                    mean: arena.tensor(1, one.leader.inFeatures)))
        }
    }

    // MARK: gathering

    /// Adds what the linears read of this sample's tokens that carry loss (PEFT's `use_label_mask`).
    ///
    /// - Throws: `AdapterStartError` when an activation is not finite, `FileError`.
    package func add(_ sample: TokenizedSample, _ step: TrainStep) throws {
        try step.watchInputs(sample) { layer, module, x, parts in
            if let place = self.places[Key(layer: layer, module: module)] { self.add(x, parts, of: sample, to: place, step.pool) }
        }
        guard isFinite else { throw AdapterStartError.nonFiniteActivation }
    }

    private func add(_ x: Tensor, _ parts: [SamplePart], of sample: TokenizedSample, to place: Int, _ pool: WorkerPool) {
        guard !inputs[place].isResting, isFinite else { return }
        // Sums of the same tokens, however the plan parts the sample.
        for run in parts.flatMap(\.outerProductRuns) {
            let wanted = run.rows.filter { sample.carriesLoss[run.firstToken + $0 - run.rows.lowerBound] }
            for first in stride(from: 0, to: wanted.count, by: rowsAtOnce) {
                add(x, wanted[first..<min(first + rowsAtOnce, wanted.count)], to: &inputs[place], pool)
            }
        }
    }

    /// The matrix of all rows so far less their mean has the Gram matrix of: its directions, the new rows less their own mean, and
    /// √(n·m / (n + m)) times the difference of the means (Ross et al., doi:10.1007/s11263-007-0075-7, §3.1).
    private func add(_ x: Tensor, _ added: ArraySlice<Int>, to input: inout Input, _ pool: WorkerPool) {
        let (old, new, columns) = (Double(input.tokens), Double(added.count), x.columns)
        let matrix = Tensor(rows, rows: input.found + added.count + (input.tokens > 0 ? 1 : 0), columns: columns)
        matrix.prefix(input.found).copy(from: input.directions.prefix(input.found))
        let correction = (old * new / (old + new)).squareRoot()
        let chunk = 256
        pool.run((columns + chunk - 1) / chunk) { piece, _ in
            for column in piece * chunk..<min((piece + 1) * chunk, columns) {
                let before = Double(input.mean.base[column])
                let mean = added.reduce(0.0) { $0 + Double(x.row($1)[column]) } / new
                for (place, row) in added.enumerated() {
                    matrix.row(input.found + place)[column] = Float(Double(x.row(row)[column]) - mean)
                }
                if old > 0 { matrix.row(matrix.rows - 1)[column] = Float(correction * (before - mean)) }
                input.mean.base[column] = Float(before + (mean - before) * new / (old + new))
            }
        }
        input.tokens += added.count
        guard let found = space.decompose(matrix, on: pool) else {
            isFinite = false
            return
        }
        input.found = min(found, input.directions.rows)
        let kept = Tensor(turned, rows: input.found, columns: columns)
        space.turn(matrix, into: kept, on: pool)
        input.directions.prefix(input.found).copy(from: kept)
    }

    /// To be called after the samples of a step.
    ///
    /// - Returns: whether all directions have come to rest, or seen enough.
    package func endStep() -> Bool {
        for place in inputs.indices where !inputs[place].isResting { inputs[place].isResting = comesToRest(inputs[place]) }
        return inputs.allSatisfy { $0.isResting || $0.tokens >= Self.mostTokens }
    }

    private func comesToRest(_ input: Input) -> Bool {
        let a = adapters.tensor(input.leader.places[0])
        var isResting = input.found >= a.rows
        for row in 0..<min(a.rows, input.found) {
            let direction = input.directions.row(row)
            let scale = 1 / dot(direction, direction, a.columns).squareRoot()
            if abs(dot(direction, a.row(row), a.columns)) * scale < Self.restingCosine { isResting = false }
            for column in 0..<a.columns { a.row(row)[column] = Float(Double(direction[column]) * scale) }
        }
        return isResting
    }

    // MARK: the end

    /// Leaves the directions in A.
    ///
    /// - Returns: what is worth telling.
    package func finish() -> String {
        var short = 0
        for (place, input) in inputs.enumerated() {
            let a = adapters.tensor(input.leader.places[0])
            for row in 0..<min(a.rows, input.found) { a.row(row).update(from: input.directions.row(row), count: a.columns) }
            let lengths = (0..<a.rows).map { $0 < input.found ? dot(a.row($0), a.row($0), a.columns).squareRoot() : 0 }
            if input.found < a.rows { short += 1 }
            complete(a, from: input.found, RandomSource(seed: seed, .adapterStart, UInt64(place)))
            for row in 0..<a.rows { orient(a.row(row), a.columns, length: lengths[row]) }
            for slot in input.slots where slot != input.leader {
                let own = adapters.tensor(slot.places[0])
                own.copy(from: a.prefix(own.rows))
            }
        }
        adapters.parametersChanged()
        let resting = inputs.filter(\.isResting).count, tokens = inputs.map(\.tokens).max() ?? 0
        return "eva: the directions of \(resting) of \(inputs.count) inputs have come to rest within \(tokens) tokens"
            + (short > 0 ? "; \(short) have fewer than the rank, the rest of theirs is random" : "")
    }

    /// Rows that the data has no direction for: random ones, orthogonal to all others, as any SVD ends with.
    private func complete(_ a: Tensor, from first: Int, _ random: RandomSource) {
        for row in min(first, a.rows)..<a.rows {
            for column in 0..<a.columns { a.row(row)[column] = random.normal(row * a.columns + column) }
            for other in [Int](0..<row) + [Int](0..<row) {
                let part = dot(a.row(row), a.row(other), a.columns) / dot(a.row(other), a.row(other), a.columns)
                for column in 0..<a.columns { a.row(row)[column] -= Float(part) * a.row(other)[column] }
            }
        }
    }

    /// Of length 1, or whitened 1/√(singular value), and with its largest element above zero, as PEFT's are.
    private func orient(_ row: UnsafeMutablePointer<Float>, _ count: Int, length: Double) {
        let largest = (0..<count).max { abs(row[$0]) < abs(row[$1]) }!
        let whitening = adapters.spec.whitensStart && length > 0 ? length.squareRoot() : 1
        let scale = (row[largest] < 0 ? -1 : 1) / (dot(row, row, count).squareRoot() * whitening)
        for column in 0..<count { row[column] = Float(Double(row[column]) * scale) }
    }
}
