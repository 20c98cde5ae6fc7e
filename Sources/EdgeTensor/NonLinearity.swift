// What a bottleneck adapter has between its two matrices, forward and backward, and the sums and gradients of its biases.
import Glibc

/// By the names of transformers' `get_activation`, which the adapters library's configurations have.
package enum NonLinearity: String, Equatable, Sendable, CaseIterable {
    case relu
    /// x · σ(x).
    case swish
    /// x · Φ(x) (arXiv:1606.08415), by the error function.
    case gelu
    /// The same by a hyperbolic tangent.
    case geluNew = "gelu_new"
    case tanh

    func value(_ x: Float) -> Float {
        switch self {
        case .relu: max(x, 0)
        case .swish: x / (1 + expf(-x))
        case .gelu: 0.5 * x * (1 + erff(x * Self.halfRoot))
        case .geluNew: 0.5 * x * (1 + tanhf(Self.inner(x)))
        case .tanh: tanhf(x)
        }
    }

    func slope(_ x: Float) -> Float {
        switch self {
        case .relu: return x > 0 ? 1 : 0
        case .swish:
            let sigmoid = 1 / (1 + expf(-x))
            return sigmoid * (1 + x * (1 - sigmoid))
        case .gelu: return 0.5 * (1 + erff(x * Self.halfRoot)) + x * Self.normalPeak * expf(-0.5 * x * x)
        case .geluNew:
            let t = tanhf(Self.inner(x))
            return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * Self.tanhFactor * (1 + 3 * Self.cubic * x * x)
        case .tanh:
            let t = tanhf(x)
            return 1 - t * t
        }
    }

    private static let halfRoot = Float(0.5).squareRoot()
    /// 1 / √(2π), and √(2/π).
    private static let normalPeak: Float = 0.3989422804, tanhFactor: Float = 0.7978845608
    private static let cubic: Float = 0.044715
    private static func inner(_ x: Float) -> Float { tanhFactor * (x + cubic * x * x * x) }
}

/// y = scale · f(x), element by element; they may be the same.
package func activate(_ f: NonLinearity, _ x: Tensor, scale: Float, into y: Tensor, on pool: WorkerPool) {
    precondition(x.count == y.count)
    pool.run(rowPieces(x.rows), as: .activation, .pass(x.count, streams: 2, flopEach: 10)) { piece, _ in
        for i in piece * elementwiseRows * x.columns..<min((piece + 1) * elementwiseRows, x.rows) * x.columns {
            y.base[i] = scale * f.value(x.base[i])
        }
    }
}

/// dy becomes the gradient of x, by that of f(x).
package func activateBackward(_ f: NonLinearity, _ x: Tensor, dy: Tensor, on pool: WorkerPool) {
    precondition(x.count == dy.count)
    pool.run(rowPieces(x.rows), as: .activation, .pass(x.count, streams: 3, flopEach: 12)) { piece, _ in
        for i in piece * elementwiseRows * x.columns..<min((piece + 1) * elementwiseRows, x.rows) * x.columns {
            dy.base[i] *= f.slope(x.base[i])
        }
    }
}

/// Every row of y += scale · x.
///
/// - Parameter x: as many values as y has columns.
package func addRows(_ x: Tensor, scale: Float, to y: Tensor, on pool: WorkerPool) {
    precondition(x.count == y.columns)
    let kernel = pool.kernels.raw.add_scaled!
    pool.run(rowPieces(y.rows), as: .elementwise, .pass(y.count, streams: 2, flopEach: 2)) { piece, _ in
        for i in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, y.rows) { kernel(x.base, y.row(i), y.columns, scale) }
    }
}

/// sums += scale · Σ over tokens of x: run by run, as `addOuterProduct` adds, so that the order depends on the samples alone.
///
/// - Parameters:
///   - x: `[tokens, columns]`.
///   - parts: the samples in x, in order.
///   - sums: as many values as x has columns.
package func addColumnSums(_ x: Tensor, scale: Float = 1, _ parts: [SamplePart], into sums: Tensor, on pool: WorkerPool) {
    precondition(sums.count == x.columns)
    let chunk = 256
    let runs = parts.flatMap(\.outerProductRuns)
    pool.run((x.columns + chunk - 1) / chunk, as: .adapterGradient, .pass(x.count, streams: 1, flopEach: 1)) { piece, scratch in
        let columns = piece * chunk..<min((piece + 1) * chunk, x.columns)
        for run in runs {
            scratch.update(repeating: 0, count: columns.count)
            for token in run.rows {
                let row = x.row(token) + columns.lowerBound
                for column in 0..<columns.count { scratch[column] += row[column] }
            }
            let target = sums.base + columns.lowerBound
            for column in 0..<columns.count { target[column] += scale * scratch[column] }
        }
    }
}
