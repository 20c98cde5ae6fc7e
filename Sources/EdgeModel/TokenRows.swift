// Embeddings that a job trains: their rows instead of the base's in what the first layer reads, and, where the head is the embedding, in
// the logits. A sum over tokens goes token by token in their order, so that its bits depend on the samples alone.
import EdgeFormats
import EdgeTensor

package struct TokenRows {
    package let tokens: [TokenID]
    /// `[tokens, hiddenSize]`, and its gradient.
    package let matrix: Tensor
    package let gradient: Tensor
    private let rowOfToken: [TokenID: Int]

    fileprivate init(_ tokens: [TokenID], _ matrix: Tensor, gradient: Tensor) {
        (self.tokens, self.matrix, self.gradient) = (tokens, matrix, gradient)
        rowOfToken = Dictionary(zip(tokens, tokens.indices)) { first, _ in first }
    }

    /// h of the trained tokens becomes theirs, before any scale.
    ///
    /// - Parameter h: `[tokens.count, hiddenSize]`.
    package func replace(_ tokens: UnsafeBufferPointer<Int32>, in h: Tensor) {
        for (place, token) in tokens.enumerated() {
            guard let row = rowOfToken[token] else { continue }
            h.row(place).update(from: matrix.row(row), count: h.columns)
        }
    }

    /// - Parameters:
    ///   - dH: of what the first layer read.
    ///   - scale: what embeddings are multiplied by.
    package func addGradients(_ tokens: UnsafeBufferPointer<Int32>, _ dH: Tensor, scale: Float) {
        for (place, token) in tokens.enumerated() {
            guard let row = rowOfToken[token] else { continue }
            let (from, to) = (dH.row(place), gradient.row(row))
            for column in 0..<dH.columns { to[column] += scale * from[column] }
        }
    }

    // MARK: as rows of the head

    /// The trained tokens' logits, in f32.
    ///
    /// - Parameters:
    ///   - x: `[rows, hiddenSize]`: what the head reads.
    ///   - own: `[rows, tokens]`.
    ///   - logits: `[rows, vocabulary]`.
    package func replaceLogits(_ x: Tensor, own: Tensor, in logits: Tensor, on pool: WorkerPool) {
        linear(x, QuantizedMatrix(matrix), into: own, on: pool)
        for row in 0..<x.rows {
            for (column, token) in tokens.enumerated() { logits.row(row)[Int(token)] = own.row(row)[column] }
        }
    }

    /// Moves the trained tokens' gradients to `own`, and leaves none for the base's rows.
    package func takeLogitGradients(_ dLogits: Tensor, into own: Tensor) {
        for row in 0..<dLogits.rows {
            for (column, token) in tokens.enumerated() {
                own.row(row)[column] = dLogits.row(row)[Int(token)]
                dLogits.row(row)[Int(token)] = 0
            }
        }
    }
}

extension BaseModel {
    /// Their names in the model's file; a tied head need not be there.
    package var embeddingName: String { "\(names.embedding).weight" }
    package var headName: String { "\(names.head).weight" }
}

extension AdapterSet {
    /// Nil where the adapter has none.
    package var tokenRows: TokenRows? {
        part(.tokens, layer: nil).first.map { TokenRows(spec.trainedTokens, $0.matrix, gradient: $0.gradient) }
    }
}
