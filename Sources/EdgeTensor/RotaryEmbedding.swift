// Rotary position embedding (arXiv:2104.09864): tables, and the rotation in both directions.
import Glibc

/// Which elements of a head are rotated together. GGUF files of the Llama family interleave pairs, Hugging Face's
/// layout pairs the halves.
package enum RotaryPairing: Equatable, Sendable { case interleaved, halves }

/// The angles of one kind of layer: frequency i is theta^(-2i / rotated) / factors[i].
package struct RotarySpec: Equatable, Sendable {
    package var theta: Double
    /// Elements of a head that are rotated, its first; the others stay.
    package var rotated: Int
    package var factors: RotaryFactors
    /// What cosines and sines are multiplied by (long contexts: YaRN's and LongRoPE's attention factor).
    package var magnitude: Float

    package init(theta: Double, rotated: Int, factors: RotaryFactors = .none, magnitude: Float = 1) {
        self.theta = theta
        self.rotated = rotated
        self.factors = factors
        self.magnitude = magnitude
    }

    /// Frequencies in f32, as torch computes them, so that both agree to the last place at long positions.
    func frequencies(_ factors: [Float]?) -> [Float] {
        (0..<rotated / 2).map { pair in
            let exponent = Float(2 * pair) / Float(rotated)
            let power = Float(pow(theta, Double(exponent)))
            return 1 / (factors.map { $0[pair] * power } ?? power)
        }
    }
}

package enum RotaryFactors: Equatable, Sendable {
    case none
    /// `[rotated / 2]`.
    case fixed([Float])
    /// LongRoPE (arXiv:2402.13753): samples of more than `original` tokens have other factors than shorter ones.
    case byLength(short: [Float], long: [Float], original: Int)
}

package struct RotaryEmbedding {
    package let headDim: Int
    /// The tables are the same for both.
    package var pairing: RotaryPairing
    private let rotated: Int
    /// Samples that are longer find their rows behind `original` others; nil: there is one kind of sample.
    private let original: Int?
    /// `[positions, rotated / 2]`.
    private let cosines: Tensor
    private let sines: Tensor

    private static func rows(positions: Int, _ spec: RotarySpec) -> Int {
        guard case .byLength(_, _, let original) = spec.factors, positions > original else { return positions }
        return original + positions
    }

    package static func bytes(positions: Int, _ spec: RotarySpec) -> ByteCount {
        let table = ByteCount.floats(rows(positions: positions, spec) * spec.rotated / 2)
        return table + table
    }

    /// - Parameter positions: tokens of the longest sample.
    package init(positions: Int, headDim: Int, _ spec: RotarySpec, pairing: RotaryPairing, arena: Arena) {
        self.headDim = headDim
        self.pairing = pairing
        rotated = spec.rotated
        let rows = Self.rows(positions: positions, spec)
        let cosines = arena.tensor(rows, spec.rotated / 2), sines = arena.tensor(rows, spec.rotated / 2)
        func fill(_ rows: Range<Int>, _ factors: [Float]?) {
            for (pair, frequency) in spec.frequencies(factors).enumerated() {
                for (position, row) in rows.enumerated() {
                    let angle = Float(position) * frequency
                    cosines.row(row)[pair] = cosf(angle) * spec.magnitude
                    sines.row(row)[pair] = sinf(angle) * spec.magnitude
                }
            }
        }
        switch spec.factors {
        case .none:
            fill(0..<rows, nil)
            original = nil
        case .fixed(let factors):
            fill(0..<rows, factors)
            original = nil
        case .byLength(let short, let long, let limit):
            fill(0..<min(rows, limit), short)
            if rows > limit { fill(limit..<rows, long) }
            original = limit
        }
        (self.cosines, self.sines) = (cosines, sines)
    }

    /// The row of the tables for a token of a sample of `length` tokens.
    package func tableRow(position: Int, length: Int) -> Int32 {
        guard let original, length > original else { return Int32(position) }
        return Int32(original + position)
    }

    package enum Direction: Float { case forward = 1, backward = -1 }

    /// Rotates every head of `x` in place. A rotation's backward is the inverse rotation.
    ///
    /// - Parameters:
    ///   - x: `[tokens, heads · headDim]`.
    ///   - positions: `[tokens]`, each token's row of the tables.
    package func rotate(
        _ x: Tensor, positions: UnsafePointer<Int32>, _ direction: Direction, on pool: WorkerPool
    ) {
        let kernel = pool.kernels.raw.rotate!
        pool.run(rowPieces(x.rows), as: .rotary, .pass(x.count, streams: 2, flopEach: 3)) { piece, _ in
            let first = piece * elementwiseRows
            kernel(
                x.row(first), x.columns, positions + first, cosines.base, sines.base,
                min(elementwiseRows, x.rows - first), x.columns / headDim, headDim, rotated / 2,
                pairing == .interleaved ? 1 : rotated / 2, direction.rawValue)
        }
    }
}
