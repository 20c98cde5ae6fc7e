// Cross-entropy on rows of logits, with the gradient in the logits' own place.

/// Sum over rows of -log softmax(logits)[target], in nats.
///
/// - Parameters:
///   - logits: `[rows, vocabulary]`; becomes (softmax - onehot) · gradientScale, unless `gradientScale` is 0.
///   - targets: `[rows]`.
///   - losses: `[rows]`, working memory; the sum runs over it in row order, in f64.
package func crossEntropy(
    logits: Tensor, targets: UnsafePointer<Int32>, gradientScale: Float, losses: UnsafeMutablePointer<Float>,
    on pool: WorkerPool
) -> Double {
    let kernel = pool.kernels.raw.cross_entropy!
    pool.run(logits.rows, as: .loss, .pass(logits.count, streams: 3, flopEach: 20)) { row, _ in
        losses[row] = kernel(logits.row(row), logits.columns, Int(targets[row]), gradientScale)
    }
    return (0..<logits.rows).reduce(0) { $0 + Double(losses[$1]) }
}
