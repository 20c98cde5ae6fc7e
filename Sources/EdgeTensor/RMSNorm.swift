// Root-mean-square normalisation, forward and backward (arXiv:1910.07467).

/// Rows that one piece of an element-wise operation takes.
let elementwiseRows = 16

func rowPieces(_ rows: Int) -> Int { (rows + elementwiseRows - 1) / elementwiseRows }

/// y = x / rms(x) · weight, row by row.
///
/// - Parameters:
///   - x, y: `[tokens, hiddenSize]`.
///   - weight: `[hiddenSize]`.
///   - inverseRMS: `[tokens]`, kept for the backward.
package func rmsNorm(
    _ x: Tensor, weight: UnsafePointer<Float>, epsilon: Float, into y: Tensor, inverseRMS: UnsafeMutablePointer<Float>,
    on pool: WorkerPool
) {
    let kernel = pool.kernels.raw.rms_norm!
    pool.run(rowPieces(x.rows), as: .norm, .pass(x.count, streams: 3, flopEach: 4)) { piece, _ in
        let first = piece * elementwiseRows
        kernel(
            x.row(first), weight, y.row(first), inverseRMS + first, min(elementwiseRows, x.rows - first), x.columns,
            epsilon)
    }
}

/// dx += the gradient of `rmsNorm` with respect to x; the weight is frozen.
package func rmsNormBackward(
    _ dy: Tensor, _ x: Tensor, weight: UnsafePointer<Float>, inverseRMS: UnsafePointer<Float>, addingTo dx: Tensor,
    on pool: WorkerPool
) {
    let kernel = pool.kernels.raw.rms_norm_backward!
    pool.run(rowPieces(x.rows), as: .norm, .pass(x.count, streams: 3, flopEach: 4)) { piece, _ in
        let first = piece * elementwiseRows
        kernel(
            dy.row(first), x.row(first), weight, inverseRMS + first, dx.row(first),
            min(elementwiseRows, x.rows - first), x.columns)
    }
}
