// Counter-based randomness: a value is a function of (seed, stream, index), so nothing has a state to save, and any
// number can be drawn again.
import Glibc

/// SplitMix64's finaliser (Steele et al., doi:10.1145/2660193.2660195): a bijection on 64 bits that passes BigCrush on
/// counters.
package func mix64(_ value: UInt64) -> UInt64 {
    var z = value &+ 0x9E37_79B9_7F4A_7C15
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
}

package struct RandomSource: Sendable {
    /// What a stream is for: two uses never share numbers.
    package enum Purpose: UInt64, Sendable {
        case adapterInit = 1, shuffle, split, dropout, sampling, pruning, rank, adapterStart, composition, sensitivity
        case direction = 11
    }

    private let key: UInt64

    package init(seed: UInt64, _ purpose: Purpose, _ parts: UInt64...) {
        key = parts.reduce(mix64(mix64(seed) ^ purpose.rawValue)) { mix64($0 ^ mix64($1)) }
    }

    /// The stream's own key, for kernels that draw their numbers themselves.
    package var streamKey: UInt64 { key }

    package func bits(_ index: Int) -> UInt64 { mix64(key ^ UInt64(bitPattern: Int64(index))) }

    /// Uniform in [0, 1), 24 bits.
    package func uniform(_ index: Int) -> Float { Float(bits(index) >> 40) * 0x1p-24 }

    /// Normal, of mean 0 and deviation 1 (Box and Muller).
    package func normal(_ index: Int) -> Float {
        let radius = (-2 * log(1 - Double(uniform(2 * index)))).squareRoot()
        return Float(radius * cos(2 * .pi * Double(uniform(2 * index + 1))))
    }

    /// Two normals, both that Box and Muller's formula has for one point: numbers of another stream than `normal`'s.
    package func normals(pair: Int) -> (Float, Float) {
        let bits = bits(pair)
        // In (0, 1] by 32 bits: the logarithm is finite.
        let radius = (-2 * log(Float(Double(bits >> 32 + 1) * 0x1p-32))).squareRoot()
        let angle = Float(2 * Double.pi * Double(bits & 0xFFFF_FFFF) * 0x1p-32)
        return (radius * cos(angle), radius * sin(angle))
    }

    /// Uniform in 0 ..< bound, by multiplication (Lemire, arXiv:1805.10941; the bias is below bound / 2^64).
    package func integer(_ index: Int, below bound: Int) -> Int {
        Int(bits(index).multipliedFullWidth(by: UInt64(bound)).high)
    }

    /// A permutation of 0 ..< count (Fisher and Yates).
    package func permutation(_ count: Int) -> [Int] {
        var order = Array(0..<count)
        for i in stride(from: count - 1, to: 0, by: -1) { order.swapAt(i, integer(i, below: i + 1)) }
        return order
    }
}
