// Small operations on whole tensors: sums, dropout, decoded rows.
import CEdgeKernels

/// y += scale · x, same shapes.
package func addScaled(_ x: Tensor, scale: Float = 1, to y: Tensor, on pool: WorkerPool) {
    precondition(x.count == y.count)
    let kernel = pool.kernels.raw.add_scaled!
    pool.run(rowPieces(x.rows), as: .elementwise, .pass(x.count, streams: 3, flopEach: 2)) { piece, _ in
        let first = piece * elementwiseRows
        kernel(x.row(first), y.row(first), min(elementwiseRows, x.rows - first) * x.columns, scale)
    }
}

/// y = dropout(x): elements are zero with `probability`, the others grow by 1 / (1 - probability). `x` and `y` may be
/// the same. The mask is a function of `key` and the element's index, so the backward (and a recomputation) gets it
/// again by the same call.
package func dropout(_ x: Tensor, probability: Float, key: UInt64, into y: Tensor, on pool: WorkerPool) {
    let kernel = pool.kernels.raw.dropout!
    pool.run(rowPieces(x.rows), as: .elementwise, .pass(x.count, streams: 2, flopEach: 1)) { piece, _ in
        let first = piece * elementwiseRows
        kernel(
            x.row(first), y.row(first), min(elementwiseRows, x.rows - first) * x.columns, key,
            UInt64(first * x.columns), probability)
    }
}

/// y[i] = row `rows[i]` of a frozen matrix, decoded: an embedding look-up.
package func decodeRows(
    _ matrix: QuantizedMatrix, _ rows: UnsafePointer<Int32>, into y: Tensor, on pool: WorkerPool
) {
    precondition(y.columns == matrix.inFeatures)
    withUnsafePointer(to: matrix.raw) { raw in
        pool.run(rowPieces(y.rows)) { piece, _ in
            for i in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, y.rows) {
                precondition((0..<matrix.outFeatures).contains(Int(rows[i])))
                edge_decode_part(pool.kernels.pointer, raw, Int(rows[i]), 0, y.columns, y.row(i))
            }
        }
    }
}

/// Σ x², in f64 over chunks of fixed length: the same bits for any number of threads.
package func sumOfSquares(_ x: UnsafePointer<Float>, count: Int, kernels: KernelSet) -> Double {
    let dot = kernels.raw.dot!
    return stride(from: 0, to: count, by: 4096).reduce(0) { sum, first in
        sum + Double(dot(x + first, x + first, min(4096, count - first)))
    }
}
