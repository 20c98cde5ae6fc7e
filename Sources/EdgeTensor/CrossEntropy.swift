// Cross-entropy on rows of logits, with the gradient in the logits' own place.

/// x = cap · tanh(x / cap), in place: logits as the model means them.
package func softCap(_ x: Tensor, _ cap: Float, on pool: WorkerPool) {
    let kernel = pool.kernels.raw.soft_cap!
    pool.run(x.rows, as: .loss, .pass(x.count, streams: 2, flopEach: 15)) { row, _ in kernel(x.row(row), x.columns, 1, cap) }
}

/// Adds -log softmax(logits)[target] of every row to `total`, in nats, row by row in f64: however rows are parted over calls,
/// the total has the same bits.
///
/// - Parameters:
///   - logits: `[rows, vocabulary]`; becomes (softmax - onehot) · gradientScale, unless `gradientScale` is 0.
///   - cap: logits count as cap · tanh(logits / cap), and the gradient is that of what goes in; nil: as they are.
///   - targets: `[rows]`.
///   - losses: `[rows]`, working memory.
package func crossEntropy(
    logits: Tensor, targets: UnsafePointer<Int32>, gradientScale: Float, cap: Float? = nil, losses: UnsafeMutablePointer<Float>,
    addingTo total: inout Double, on pool: WorkerPool
) {
    let kernels = pool.kernels.raw
    pool.run(logits.rows, as: .loss, .pass(logits.count, streams: 3, flopEach: 20)) { row, _ in
        let (values, target) = (logits.row(row), Int(targets[row]))
        losses[row] =
            if let cap {
                kernels.cross_entropy_capped(values, logits.columns, target, gradientScale, cap)
            } else {
                kernels.cross_entropy(values, logits.columns, target, gradientScale)
            }
    }
    for row in 0..<logits.rows { total += Double(losses[row]) }
}
