// Cross-entropy on rows of logits, with the gradient in the logits' own place.

/// Adds -log softmax(logits)[target] of every row to `total`, in nats, row by row in f64: however rows are parted over calls,
/// the total has the same bits.
///
/// - Parameters:
///   - logits: `[rows, vocabulary]`; becomes (softmax - onehot) · gradientScale, unless `gradientScale` is 0.
///   - targets: `[rows]`.
///   - losses: `[rows]`, working memory.
package func crossEntropy(
    logits: Tensor, targets: UnsafePointer<Int32>, gradientScale: Float, losses: UnsafeMutablePointer<Float>,
    addingTo total: inout Double, on pool: WorkerPool
) {
    let kernel = pool.kernels.raw.cross_entropy!
    pool.run(logits.rows, as: .loss, .pass(logits.count, streams: 3, flopEach: 20)) { row, _ in
        losses[row] = kernel(logits.row(row), logits.columns, Int(targets[row]), gradientScale)
    }
    for row in 0..<logits.rows { total += Double(losses[row]) }
}
