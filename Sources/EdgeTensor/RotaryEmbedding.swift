// Rotary position embedding (arXiv:2104.09864): tables, and the rotation in both directions.
import Glibc

/// Which elements of a head are rotated together. GGUF files of the Llama family interleave pairs, Hugging Face's
/// layout pairs the halves.
package enum RotaryPairing: Equatable, Sendable { case interleaved, halves }

package struct RotaryEmbedding {
    package let headDim: Int
    package let pairing: RotaryPairing
    /// `[positions, headDim / 2]`.
    private let cosines: Tensor
    private let sines: Tensor

    package static func bytes(positions: Int, headDim: Int) -> ByteCount {
        let table = ByteCount.floats(positions * headDim / 2)
        return table + table
    }

    /// Angles in f32, as torch computes them, so that both agree to the last place at long positions.
    package init(positions: Int, headDim: Int, theta: Double, pairing: RotaryPairing, arena: Arena) {
        self.headDim = headDim
        self.pairing = pairing
        cosines = arena.tensor(positions, headDim / 2)
        sines = arena.tensor(positions, headDim / 2)
        for pair in 0..<headDim / 2 {
            let exponent = Float(2 * pair) / Float(headDim)
            let frequency = 1 / Float(pow(theta, Double(exponent)))
            for position in 0..<positions {
                let angle = Float(position) * frequency
                cosines.row(position)[pair] = cosf(angle)
                sines.row(position)[pair] = sinf(angle)
            }
        }
    }

    package enum Direction: Float { case forward = 1, backward = -1 }

    /// Rotates every head of `x` in place. The rotation is orthogonal: its backward is the inverse rotation.
    ///
    /// - Parameters:
    ///   - x: `[tokens, heads · headDim]`.
    ///   - positions: `[tokens]`, position of each token within its sample.
    package func rotate(
        _ x: Tensor, positions: UnsafePointer<Int32>, _ direction: Direction, on pool: WorkerPool
    ) {
        let kernel = pool.kernels.raw.rotate!
        pool.run(rowPieces(x.rows), as: .rotary, .pass(x.count, streams: 2, flopEach: 3)) { piece, _ in
            let first = piece * elementwiseRows
            kernel(
                x.row(first), x.columns, positions + first, cosines.base, sines.base,
                min(elementwiseRows, x.rows - first), x.columns / headDim, headDim,
                pairing == .interleaved ? 1 : headDim / 2, direction.rawValue)
        }
    }
}
