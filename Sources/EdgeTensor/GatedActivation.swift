// Gated activations of an MLP, forward and backward (arXiv:2002.05202).

package enum Activation: String, Equatable, Sendable {
    /// silu(gate) · up.
    case swiglu
    /// gelu(gate) · up, gelu in its tanh form.
    case geglu
}

/// y = activation(gate) · up; all `[tokens, intermediateSize]`.
package func activate(_ activation: Activation, gate: Tensor, up: Tensor, into y: Tensor, on pool: WorkerPool) {
    let kernel = activation == .swiglu ? pool.kernels.raw.swiglu! : pool.kernels.raw.geglu!
    pool.run(rowPieces(y.rows), as: .activation, .pass(y.count, streams: 3, flopEach: 20)) { piece, _ in
        let first = piece * elementwiseRows
        kernel(gate.row(first), up.row(first), y.row(first), min(elementwiseRows, y.rows - first) * y.columns)
    }
}

/// `gate` and `up` become their gradients, given the gradient of y.
package func activateBackward(_ activation: Activation, dy: Tensor, gate: Tensor, up: Tensor, on pool: WorkerPool) {
    let kernel = activation == .swiglu ? pool.kernels.raw.swiglu_backward! : pool.kernels.raw.geglu_backward!
    pool.run(rowPieces(dy.rows), as: .activation, .pass(dy.count, streams: 5, flopEach: 25)) { piece, _ in
        let first = piece * elementwiseRows
        kernel(dy.row(first), gate.row(first), up.row(first), min(elementwiseRows, dy.rows - first) * dy.columns)
    }
}
