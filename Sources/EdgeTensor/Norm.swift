// Normalisation of rows, forward and backward: root-mean-square (arXiv:1910.07467) and layer normalisation (arXiv:1607.06450).

/// Rows that one piece of an element-wise operation takes.
let elementwiseRows = 16

func rowPieces(_ rows: Int) -> Int { (rows + elementwiseRows - 1) / elementwiseRows }

package enum NormKind: Equatable, Sendable {
    /// y = x / rms(x) · (weightOffset + weight). Gemma keeps its weights as differences from 1.
    case rootMeanSquare(weightOffset: Float)
    /// y = (x - mean(x)) / deviation(x) · weight + bias.
    case layer
}

/// A norm over rows of `width` elements.
package struct Norm {
    package let kind: NormKind
    package let epsilon: Float
    package let width: Int
    /// `[width]`.
    package let weight: UnsafePointer<Float>
    /// `[width]`, of layer normalisation alone.
    package let bias: UnsafePointer<Float>?

    package init(
        _ kind: NormKind, epsilon: Float, width: Int, weight: UnsafePointer<Float>, bias: UnsafePointer<Float>? = nil
    ) {
        precondition((kind == .layer) == (bias != nil))
        self.kind = kind
        self.epsilon = epsilon
        self.width = width
        self.weight = weight
        self.bias = bias
    }

    /// The same norm, its numbers being elsewhere.
    package func moved(_ place: (UnsafePointer<Float>) -> UnsafePointer<Float>) -> Norm {
        Norm(kind, epsilon: epsilon, width: width, weight: place(weight), bias: bias.map(place))
    }
}

/// y = norm(x), `width` elements at a time: a row, or each head of a row.
///
/// - Parameters:
///   - x, y: `[tokens, n · width]`; may be the same.
///   - inverse: `[tokens · n]`, 1 / rms or 1 / deviation, kept for the backward.
package func normalize(
    _ x: Tensor, _ norm: Norm, into y: Tensor, inverse: UnsafeMutablePointer<Float>, on pool: WorkerPool
) {
    let (x, y) = (rows(x, norm), rows(y, norm))
    let kernels = pool.kernels.raw
    pool.run(rowPieces(x.rows), as: .norm, .pass(x.count, streams: 3, flopEach: 4)) { piece, _ in
        let first = piece * elementwiseRows
        let count = min(elementwiseRows, x.rows - first)
        switch norm.kind {
        case .rootMeanSquare(let offset):
            kernels.rms_norm(
                x.row(first), norm.weight, offset, y.row(first), inverse + first, count, norm.width, norm.epsilon)
        case .layer:
            kernels.layer_norm(
                x.row(first), norm.weight, norm.bias, y.row(first), inverse + first, count, norm.width, norm.epsilon)
        }
    }
}

/// dx (+)= the gradient of `normalize` with respect to x.
///
/// - Parameters:
///   - x: what was normalised.
///   - dx: where it is overwritten it may be `dy`.
package func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, _ norm: Norm, inverse: UnsafePointer<Float>, into dx: Tensor, _ accumulation: Accumulation,
    on pool: WorkerPool
) {
    let (dy, x, dx) = (rows(dy, norm), rows(x, norm), rows(dx, norm))
    let kernels = pool.kernels.raw
    pool.run(rowPieces(x.rows), as: .norm, .pass(x.count, streams: 3, flopEach: 4)) { piece, _ in
        let first = piece * elementwiseRows
        let count = min(elementwiseRows, x.rows - first)
        switch norm.kind {
        case .rootMeanSquare(let offset):
            kernels.rms_norm_backward(
                dy.row(first), x.row(first), norm.weight, offset, inverse + first, dx.row(first), count, norm.width,
                accumulation == .add)
        case .layer:
            kernels.layer_norm_backward(
                dy.row(first), x.row(first), norm.weight, inverse + first, dx.row(first), count, norm.width,
                accumulation == .add)
        }
    }
}

/// The gradients of a norm's numbers, which are added to: dWeight += Σ dy ⊙ x̂, with x̂ = x / rms(x), or (x - mean(x)) / deviation(x);
/// and dBias += Σ dy. Run by run, so that the order depends on the runs alone.
///
/// - Parameters:
///   - dy, x: `[tokens, n · width]`: the gradient of the norm's result, and what was normalised.
///   - inverse: as `normalize` has left it.
///   - runs: of tokens, in order.
///   - weight, bias: `[width]` each; bias of layer normalisation alone.
package func addNormGradients(
    _ dy: Tensor, _ x: Tensor, _ norm: Norm, inverse: UnsafePointer<Float>, _ runs: [Range<Int>], weight: Tensor, bias: Tensor?,
    on pool: WorkerPool
) {
    precondition(weight.count == norm.width && (bias == nil) == (norm.bias == nil))
    let heads = x.columns / norm.width
    let (dy, x) = (rows(dy, norm), rows(x, norm))
    let chunk = 256
    pool.run(
        (norm.width + chunk - 1) / chunk, as: .adapterGradient, .pass(x.count, streams: 2, flopEach: 3)
    ) { piece, scratch in
        let first = piece * chunk, count = min(chunk, norm.width - first)
        func add(_ terms: (_ row: Int) -> Void, to sums: Tensor) {
            for run in runs {
                scratch.update(repeating: 0, count: count)
                for row in run.lowerBound * heads..<run.upperBound * heads { terms(row) }
                for column in 0..<count { sums.base[first + column] += scratch[column] }
            }
        }
        add(
            { row in
                let (dy, x, factor) = (dy.row(row) + first, x.row(row) + first, inverse[row])
                let mean = norm.kind == .layer ? mean(of: x - first, norm.width) : 0
                for column in 0..<count { scratch[column] += dy[column] * ((x[column] - mean) * factor) }
            }, to: weight)
        guard let bias else { return }
        add(
            { row in
                let dy = dy.row(row) + first
                for column in 0..<count { scratch[column] += dy[column] }
            }, to: bias)
    }
}

private func mean(of x: UnsafePointer<Float>, _ count: Int) -> Float {
    Float((0..<count).reduce(0.0) { $0 + Double(x[$1]) } / Double(count))
}

/// A tensor as the rows that a norm sees.
private func rows(_ x: Tensor, _ norm: Norm) -> Tensor {
    precondition(x.columns % norm.width == 0)
    return Tensor(x.base, rows: x.rows * (x.columns / norm.width), columns: norm.width)
}
