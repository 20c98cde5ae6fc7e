import EdgeTensor

/// Deterministic values in [-1, 1).
struct Values {
    private let random: RandomSource
    private var next = 0
    init(seed: UInt64) { random = RandomSource(seed: seed, .sampling) }

    mutating func fill(_ tensor: Tensor, scale: Float = 1) {
        for i in 0..<tensor.count { tensor.base[i] = value() * scale }
    }
    mutating func value() -> Float {
        next += 1
        return 2 * random.uniform(next) - 1
    }
}

func testArena(mebibytes: Int = 64) throws -> Arena { try Arena(capacity: ByteCount(mebibytes << 20)) }

/// Central differences of `loss` with respect to each element of `x`, against `gradient`.
/// Returns the largest |numeric - analytic| / (|numeric| + |analytic| + floor).
func finiteDifferenceError(
    _ x: Tensor, gradient: Tensor, step: Float = 1e-2, floor: Double = 1e-2, loss: () -> Double
) -> Double {
    var worst = 0.0
    for i in 0..<x.count {
        let kept = x.base[i]
        x.base[i] = kept + step
        let above = loss()
        x.base[i] = kept - step
        let below = loss()
        x.base[i] = kept
        let numeric = (above - below) / (Double(kept + step) - Double(kept - step))
        let analytic = Double(gradient.base[i])
        worst = max(worst, abs(numeric - analytic) / (abs(numeric) + abs(analytic) + floor))
    }
    return worst
}

/// Σ weights · y: a scalar loss whose gradient with respect to y is `weights`.
func weighted(_ y: Tensor, _ weights: Tensor) -> Double {
    (0..<y.count).reduce(0) { $0 + Double(y.base[$1]) * Double(weights.base[$1]) }
}
