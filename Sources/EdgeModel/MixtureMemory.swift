// The memory in which an MLP's mixture of experts works. What experts compute is done for at most `outerProductTokens` tokens at a time,
// so that only what a token says of its route grows with the batch.
import EdgeTensor

/// The largest of each among the jobs that train together.
package struct MixtureSizes: Equatable, Sendable {
    package var experts = 0
    package var chosen = 0
    package var rank = 0
    /// Ranks of all experts of one job.
    package var ranks = 0

    /// - Returns: nil where no layout has a mixture.
    package init?(_ layouts: [AdapterLayout]) {
        for layout in layouts {
            guard let mixture = layout.spec.method.mixture else { continue }
            experts = max(experts, mixture.experts)
            chosen = max(chosen, mixture.chosen)
            rank = max(rank, layout.spec.rank)
            ranks = max(ranks, mixture.experts * layout.spec.rank)
        }
        if experts == 0 { return nil }
    }
}

package struct MixtureMemory {
    let sizes: MixtureSizes
    /// Tokens that experts work on at a time.
    let tile: Int
    private let probabilities: UnsafeMutablePointer<Float>
    private let experts: UnsafeMutablePointer<Int32>
    private let weights: UnsafeMutablePointer<Float>
    /// Of the tokens that the MLP does at once.
    private let projected: UnsafeMutablePointer<Float>
    /// Of the tokens that an expert has among some.
    let rows: UnsafeMutablePointer<Int32>, places: UnsafeMutablePointer<Int32>
    let ownWeights: UnsafeMutablePointer<Float>
    private let x: Tensor, gate: Tensor, up: Tensor, activated: Tensor
    private let z: [UnsafeMutablePointer<Float>]
    private let backward: Backward?

    private struct Backward {
        let dWeights: UnsafeMutablePointer<Float>
        let ownGradients: UnsafeMutablePointer<Float>
        /// Of the tokens that the MLP does at once.
        let dInput: Tensor
        let dOutput: Tensor, dX: Tensor, dActivated: Tensor, dUp: Tensor
    }

    private static func tile(_ mlpTokens: Int) -> Int { min(mlpTokens, outerProductTokens) }

    /// Of all that is taken, in this order.
    private static func floats(
        _ sizes: MixtureSizes, tokens: Int, mlpTokens: Int, _ spec: DecoderSpec, _ use: LayerWorkspace.Use
    ) -> [Int] {
        let tile = tile(mlpTokens)
        let forward = [
            tokens * sizes.experts, tokens * sizes.chosen, tokens * sizes.chosen, mlpTokens * sizes.ranks, tile, tile, tile,
            tile * spec.hiddenSize, tile * spec.intermediateSize, tile * spec.intermediateSize, tile * spec.intermediateSize,
        ] + [Int](repeating: tile * sizes.rank, count: zCount)
        guard case .training = use else { return forward }
        return forward + [
            tokens * sizes.chosen, tile, mlpTokens * spec.hiddenSize, tile * spec.hiddenSize, tile * spec.hiddenSize,
            tile * spec.intermediateSize, tile * spec.intermediateSize,
        ]
    }

    private static let zCount = 4

    package static func bytes(
        _ sizes: MixtureSizes, tokens: Int, mlpTokens: Int, _ spec: DecoderSpec, _ use: LayerWorkspace.Use
    ) -> ByteCount {
        floats(sizes, tokens: tokens, mlpTokens: mlpTokens, spec, use).reduce(.zero) { $0 + .floats($1) }
    }

    package init(_ sizes: MixtureSizes, tokens: Int, mlpTokens: Int, _ spec: DecoderSpec, _ use: LayerWorkspace.Use, arena: Arena) {
        self.sizes = sizes
        let tile = Self.tile(mlpTokens)
        self.tile = tile
        probabilities = arena.floats(tokens * sizes.experts)
        experts = arena.integers(tokens * sizes.chosen)
        weights = arena.floats(tokens * sizes.chosen)
        projected = arena.floats(mlpTokens * sizes.ranks)
        rows = arena.integers(tile)
        places = arena.integers(tile)
        ownWeights = arena.floats(tile)
        x = arena.tensor(tile, spec.hiddenSize)
        gate = arena.tensor(tile, spec.intermediateSize)
        up = arena.tensor(tile, spec.intermediateSize)
        activated = arena.tensor(tile, spec.intermediateSize)
        z = (0..<Self.zCount).map { _ in arena.floats(tile * sizes.rank) }
        guard case .training = use else {
            backward = nil
            return
        }
        backward = Backward(
            dWeights: arena.floats(tokens * sizes.chosen), ownGradients: arena.floats(tile), dInput: arena.tensor(mlpTokens, spec.hiddenSize),
            dOutput: arena.tensor(tile, spec.hiddenSize), dX: arena.tensor(tile, spec.hiddenSize),
            dActivated: arena.tensor(tile, spec.intermediateSize), dUp: arena.tensor(tile, spec.intermediateSize))
    }

    // MARK: views

    /// Of rows of the batch.
    func routing(_ rows: Range<Int>, _ mixture: ExpertMixture) -> ExpertRouting {
        ExpertRouting(
            probabilities: Tensor(probabilities + rows.lowerBound * sizes.experts, rows: rows.count, columns: mixture.experts),
            experts: experts + rows.lowerBound * sizes.chosen,
            weights: Tensor(weights + rows.lowerBound * sizes.chosen, rows: rows.count, columns: mixture.chosen))
    }

    /// Of rows of a chunk, an expert's z, weighted; zero where it is not chosen.
    func projected(_ expert: Int, rows: Range<Int>, rank: Int) -> Tensor {
        Tensor(projected + rows.lowerBound * sizes.ranks + expert * rows.count * rank, rows: rows.count, columns: rank)
    }

    /// Of so many tokens of an expert.
    func own(_ count: Int, rank: Int) -> (x: Tensor, gate: Tensor, up: Tensor, activated: Tensor, z: [Tensor]) {
        (
            x.prefix(count), gate.prefix(count), up.prefix(count), activated.prefix(count),
            z.map { Tensor($0, rows: count, columns: rank) }
        )
    }

    private var ofBackward: Backward {
        guard let backward else { preconditionFailure("a mixture without room for gradients") }
        return backward
    }

    func dWeights(_ rows: Range<Int>, _ mixture: ExpertMixture) -> Tensor {
        Tensor(ofBackward.dWeights + rows.lowerBound * sizes.chosen, rows: rows.count, columns: mixture.chosen)
    }

    /// Of rows of a chunk.
    func dInput(_ rows: Range<Int>) -> Tensor { ofBackward.dInput.rows(rows) }

    func ownGradients(_ count: Int) -> (dWeights: UnsafeMutablePointer<Float>, dOutput: Tensor, dX: Tensor, dActivated: Tensor) {
        let memory = ofBackward
        return (memory.ownGradients, memory.dOutput.prefix(count), memory.dX.prefix(count), memory.dActivated.prefix(count))
    }

    /// Of so many tokens.
    func dUp(_ count: Int) -> Tensor { ofBackward.dUp.prefix(count) }
}
