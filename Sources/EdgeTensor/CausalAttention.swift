// Grouped-query causal attention over samples packed one after the other, forward and backward.
//
// Scores exist for one head and `queryBlock` queries at a time, in the thread's scratch; the backward computes them
// again from the log-sum-exp that the forward kept (FlashAttention, arXiv:2205.14135, without its tiling over keys).
import COpenBLAS

/// Where a sample's queries and keys lie. In training both are the same tokens; in generation the keys are the cache.
package struct AttentionSpan: Equatable, Sendable {
    package var firstQuery: Int
    package var queryCount: Int
    package var firstKey: Int
    /// At least `queryCount`: the last query sees all keys, the one before it one less.
    package var keyCount: Int

    package init(firstQuery: Int, queryCount: Int, firstKey: Int, keyCount: Int) {
        precondition(keyCount >= queryCount)
        self.firstQuery = firstQuery
        self.queryCount = queryCount
        self.firstKey = firstKey
        self.keyCount = keyCount
    }
}

package struct CausalAttention {
    package let headCount: Int
    package let keyValueHeadCount: Int
    package let headDim: Int

    package static let queryBlock = 64

    /// Floats of scratch per thread for samples of up to `longest` tokens: two blocks of scores.
    package static func scratchFloats(longest: Int) -> Int { 2 * queryBlock * longest }

    package init(headCount: Int, keyValueHeadCount: Int, headDim: Int) {
        precondition(headCount % keyValueHeadCount == 0)
        self.headCount = headCount
        self.keyValueHeadCount = keyValueHeadCount
        self.headDim = headDim
    }

    private var scale: Float { 1 / Float(headDim).squareRoot() }
    private func keyValueHead(_ head: Int) -> Int { head / (headCount / keyValueHeadCount) }

    /// o = softmax(q · kᵀ / √headDim, causal) · v, head by head.
    ///
    /// - Parameters:
    ///   - q, o: `[tokens, headCount · headDim]`.
    ///   - k, v: `[keys, keyValueHeadCount · headDim]`.
    ///   - logSumExp: `[tokens, headCount]`, kept for the backward.
    package func forward(
        q: Tensor, k: Tensor, v: Tensor, spans: [AttentionSpan], into o: Tensor, logSumExp: Tensor, on pool: WorkerPool
    ) {
        let softmax = pool.kernels.raw.softmax!
        let blocks = spans.flatMap { span in
            stride(from: 0, to: span.queryCount, by: Self.queryBlock).map { (span: span, first: $0) }
        }
        pool.run(blocks.count * headCount) { piece, scratch in
            let (span, first) = blocks[piece / headCount]
            let head = piece % headCount
            let block = QueryBlock(self, span: span, first: first, head: head)
            block.scores(q: q, k: k, into: scratch)
            for i in 0..<block.queries {
                let row = scratch + i * block.keys
                let seen = block.keysSeen(by: i)
                logSumExp.row(block.firstQuery + i)[head] = softmax(row, seen, scale)
                (row + seen).update(repeating: 0, count: block.keys - seen)
            }
            cblas_sgemm(
                CblasRowMajor, CblasNoTrans, CblasNoTrans, Int32(block.queries), Int32(headDim), Int32(block.keys), 1,
                scratch, Int32(block.keys), block.keyRow(v), Int32(v.columns), 0, block.queryRow(o), Int32(o.columns))
        }
    }

    /// Gradients with respect to q, k and v. Spans must be a sample's own tokens (`firstKey == firstQuery`).
    ///
    /// - Parameters:
    ///   - dO, o, q, dQ: `[tokens, headCount · headDim]`. `dQ` is overwritten and must not overlap the others.
    ///   - headDK, headDV: `[tokens, headCount · headDim]`, working memory: each query head's share.
    ///   - dK, dV: `[tokens, keyValueHeadCount · headDim]`, overwritten.
    package func backward(
        dO: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logSumExp: Tensor, spans: [AttentionSpan],
        dQ: Tensor, headDK: Tensor, headDV: Tensor, dK: Tensor, dV: Tensor, on pool: WorkerPool
    ) {
        let kernels = pool.kernels.raw
        pool.run(spans.count * headCount) { piece, scratch in
            let span = spans[piece / headCount]
            let head = piece % headCount
            precondition(span.firstKey == span.firstQuery && span.keyCount == span.queryCount)
            for first in stride(from: 0, to: span.queryCount, by: Self.queryBlock) {
                let block = QueryBlock(self, span: span, first: first, head: head)
                let (queries, keys) = (Int32(block.queries), Int32(block.keys))
                let p = scratch
                let ds = scratch + block.queries * block.keys
                block.scores(q: q, k: k, into: p)
                // dP = dO · vᵀ
                cblas_sgemm(
                    CblasRowMajor, CblasNoTrans, CblasTrans, queries, keys, Int32(headDim), 1, block.queryRow(dO),
                    Int32(dO.columns), block.keyRow(v), Int32(v.columns), 0, ds, keys)
                for i in 0..<block.queries {
                    let token = block.firstQuery + i
                    let seen = block.keysSeen(by: i)
                    let (pRow, dsRow) = (p + i * block.keys, ds + i * block.keys)
                    // Σ p · dp = dO · o, which needs no row of p.
                    let delta = kernels.dot(dO.row(token) + head * headDim, o.row(token) + head * headDim, headDim)
                    kernels.softmax_again(pRow, seen, scale, logSumExp.row(token)[head])
                    kernels.softmax_backward(pRow, dsRow, seen, delta, scale)
                    (pRow + seen).update(repeating: 0, count: block.keys - seen)
                    (dsRow + seen).update(repeating: 0, count: block.keys - seen)
                }
                cblas_sgemm(
                    CblasRowMajor, CblasNoTrans, CblasNoTrans, queries, Int32(headDim), keys, 1, ds, keys,
                    block.keyRow(k), Int32(k.columns), 0, block.queryRow(dQ), Int32(dQ.columns))
                // The last block sees all keys, so walking backwards would let its product start the sums; forwards,
                // the rows that a block reaches first are cleared before.
                for key in first..<block.keys {
                    (headDK.row(span.firstKey + key) + head * headDim).update(repeating: 0, count: headDim)
                    (headDV.row(span.firstKey + key) + head * headDim).update(repeating: 0, count: headDim)
                }
                cblas_sgemm(
                    CblasRowMajor, CblasTrans, CblasNoTrans, keys, Int32(headDim), queries, 1, ds, keys,
                    block.queryRow(q), Int32(q.columns), 1, headDK.row(span.firstKey) + head * headDim,
                    Int32(headDK.columns))
                cblas_sgemm(
                    CblasRowMajor, CblasTrans, CblasNoTrans, keys, Int32(headDim), queries, 1, p, keys,
                    block.queryRow(dO), Int32(dO.columns), 1, headDV.row(span.firstKey) + head * headDim,
                    Int32(headDV.columns))
            }
        }
        sumOfGroups(headDK, into: dK, on: pool)
        sumOfGroups(headDV, into: dV, on: pool)
    }

    /// Adds the shares of the query heads that used the same key-value head, in the order of the heads.
    private func sumOfGroups(_ shares: Tensor, into sums: Tensor, on pool: WorkerPool) {
        let group = headCount / keyValueHeadCount
        let add = pool.kernels.raw.add_scaled!
        pool.run(rowPieces(sums.rows)) { piece, _ in
            for token in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, sums.rows) {
                for keyValueHead in 0..<keyValueHeadCount {
                    let sum = sums.row(token) + keyValueHead * headDim
                    let first = shares.row(token) + keyValueHead * group * headDim
                    sum.update(from: first, count: headDim)
                    for head in 1..<max(group, 1) { add(first + head * headDim, sum, headDim, 1) }
                }
            }
        }
    }

    /// Up to `queryBlock` queries of one head against all keys that the last of them sees.
    private struct QueryBlock {
        let attention: CausalAttention
        let firstQuery: Int
        let queries: Int
        let firstKey: Int
        let keys: Int
        let head: Int

        init(_ attention: CausalAttention, span: AttentionSpan, first: Int, head: Int) {
            self.attention = attention
            self.head = head
            queries = min(CausalAttention.queryBlock, span.queryCount - first)
            firstQuery = span.firstQuery + first
            firstKey = span.firstKey
            keys = span.keyCount - span.queryCount + first + queries
        }

        func keysSeen(by query: Int) -> Int { keys - queries + query + 1 }
        func queryRow(_ x: Tensor) -> UnsafeMutablePointer<Float> { x.row(firstQuery) + head * attention.headDim }
        func keyRow(_ x: Tensor) -> UnsafeMutablePointer<Float> {
            x.row(firstKey) + attention.keyValueHead(head) * attention.headDim
        }

        /// q · kᵀ, unscaled: `[queries, keys]`.
        func scores(q: Tensor, k: Tensor, into scores: UnsafeMutablePointer<Float>) {
            cblas_sgemm(
                CblasRowMajor, CblasNoTrans, CblasTrans, Int32(queries), Int32(keys), Int32(attention.headDim), 1,
                queryRow(q), Int32(q.columns), keyRow(k), Int32(k.columns), 0, scores, Int32(keys))
        }
    }
}
