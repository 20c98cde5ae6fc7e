// Grouped-query causal attention over samples packed one after the other, forward and backward.
//
// Scores exist for one head and `queryBlock` queries at a time, in the thread's scratch; the backward computes them
// again from the log-sum-exp that the forward kept, in square blocks (FlashAttention, arXiv:2205.14135), transposed: then
// dK and dV need no transposition and blocks after the diagonal are never touched.
import CEdgeKernels

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
    /// What scores are multiplied by.
    package let scale: Float
    /// A query sees so many keys, its own the last; nil: all before it.
    package let window: Int?
    /// Scores s become cap · tanh(s / cap) (arXiv:2408.00118 §2); nil: they stay.
    package let cap: Float?

    package static let queryBlock = 64

    /// Floats of scratch per thread for samples of up to `longest` tokens, beside the products' own: the scores of a block
    /// of queries in the forward; two square blocks and two numbers per token in the backward.
    package static func scratchFloats(longest: Int) -> Int {
        Int(EDGE_PRODUCT_SCRATCH) + max(queryBlock * longest, 2 * queryBlock * queryBlock + 2 * longest)
    }

    /// Keys that a query of a sample of so many tokens is multiplied with, in the mean: half of them, and half of a block on
    /// the diagonal, whose later half is computed for nothing.
    package static func meanKeys(_ tokens: Double, window: Int? = nil) -> Double {
        min((tokens + Double(queryBlock)) / 2, window.map { Double($0 + queryBlock) } ?? .infinity)
    }

    /// - Parameter scale: nil: 1 / √headDim.
    package init(
        headCount: Int, keyValueHeadCount: Int, headDim: Int, scale: Float? = nil, window: Int? = nil, cap: Float? = nil
    ) {
        precondition(headCount % keyValueHeadCount == 0)
        self.scale = scale ?? 1 / Float(headDim).squareRoot()
        self.window = window
        self.cap = cap
        self.headCount = headCount
        self.keyValueHeadCount = keyValueHeadCount
        self.headDim = headDim
    }

    private func keyValueHead(_ head: Int) -> Int { head / (headCount / keyValueHeadCount) }

    /// o = softmax(cap(scale · q · kᵀ), causal, in the window) · v, head by head.
    ///
    /// - Parameters:
    ///   - q, o: `[tokens, headCount · headDim]`.
    ///   - k, v: `[keys, keyValueHeadCount · headDim]`.
    ///   - logSumExp: `[tokens, headCount]`, kept for the backward.
    package func forward(
        q: Tensor, k: Tensor, v: Tensor, spans: [AttentionSpan], into o: Tensor, logSumExp: Tensor, on pool: WorkerPool
    ) {
        let kernels = pool.kernels.raw
        let blocks = spans.flatMap { span in
            stride(from: 0, to: span.queryCount, by: Self.queryBlock).map { (span: span, first: $0) }
        }
        pool.run(blocks.count * headCount, as: .attention, cost(spans, products: 2)) { piece, scratch in
            let (span, first) = blocks[piece / headCount]
            let head = piece % headCount
            let queries = min(Self.queryBlock, span.queryCount - first)
            let lastKeys = span.keyCount - span.queryCount + first + queries
            // What the first query sees first.
            let unseen = max(0, lastKeys - queries + 1 - (window ?? .max))
            let keys = lastKeys - unseen
            let queryRows = span.firstQuery + first..<span.firstQuery + first + queries
            let keyRows = span.firstKey + unseen..<span.firstKey + lastKeys
            let scores = DenseBlock(scratch + Int(EDGE_PRODUCT_SCRATCH), stride: keys, rows: queries, columns: keys)
            if span.queryCount == 1 {
                let lse = attendOne(block(q, queryRows, head), keyBlock(k, keyRows, head), keyBlock(v, keyRows, head),
                    scores: scores.base, into: block(o, queryRows, head), kernels)
                logSumExp.row(queryRows.lowerBound)[head] = lse
                return
            }
            pool.multiply(block(q, queryRows, head), byTransposed: keyBlock(k, keyRows, head), into: scores, .overwrite, scratch)
            for i in 0..<queries {
                let row = scores.base + i * keys
                let seen = keys - queries + i + 1
                let before = max(0, seen - (window ?? .max))
                logSumExp.row(queryRows.lowerBound + i)[head] = softmax(row + before, seen - before, kernels)
                row.update(repeating: 0, count: before)
                (row + seen).update(repeating: 0, count: keys - seen)
            }
            pool.multiply(scores, by: keyBlock(v, keyRows, head), into: block(o, queryRows, head), .overwrite, scratch)
        }
    }

    /// Scores become probabilities; returns log-sum-exp.
    private func softmax(_ scores: UnsafeMutablePointer<Float>, _ count: Int, _ kernels: edge_kernel_set) -> Float {
        guard let cap else { return kernels.softmax(scores, count, scale) }
        kernels.soft_cap(scores, count, scale, cap)
        return kernels.softmax(scores, count, 1)
    }

    /// One query, as in generation: packing keys for a single row would cost more than the products. Returns log-sum-exp.
    private func attendOne(
        _ q: DenseBlock, _ k: DenseBlock, _ v: DenseBlock, scores: UnsafeMutablePointer<Float>, into o: DenseBlock,
        _ kernels: edge_kernel_set
    ) -> Float {
        for key in 0..<k.rows { scores[key] = kernels.dot(q.base, k.base + key * k.stride, headDim) }
        let lse = softmax(scores, k.rows, kernels)
        o.base.update(repeating: 0, count: headDim)
        for key in 0..<v.rows { kernels.add_scaled(v.base + key * v.stride, o.base, headDim, scores[key]) }
        return lse
    }

    /// Columns of a query head.
    private func block(_ x: Tensor, _ rows: Range<Int>, _ head: Int) -> DenseBlock {
        DenseBlock(x, rows: rows, column: head * headDim, columns: headDim)
    }
    /// Columns of the key-value head that a query head uses.
    private func keyBlock(_ x: Tensor, _ rows: Range<Int>, _ head: Int) -> DenseBlock {
        DenseBlock(x, rows: rows, column: keyValueHead(head) * headDim, columns: headDim)
    }

    /// Half of the square is computed, or what the window shows of it.
    private func cost(_ spans: [AttentionSpan], products: Int) -> OperationCost {
        var (flop, bytes) = (0.0, 0.0)
        for span in spans {
            flop += Double(products * span.queryCount * min(span.keyCount, 2 * (window ?? .max / 2)) * headCount * headDim)
            bytes += 4 * Double((span.queryCount + span.keyCount) * 2 * headCount * headDim)
        }
        return OperationCost(flop: flop, bytes: bytes)
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
        let side = Self.queryBlock
        pool.run(spans.count * headCount, as: .attentionBackward, cost(spans, products: 5)) { piece, scratch in
            let span = spans[piece / headCount]
            let head = piece % headCount
            precondition(span.firstKey == span.firstQuery && span.keyCount == span.queryCount)
            let count = span.queryCount
            let squares = scratch + Int(EDGE_PRODUCT_SCRATCH)
            let lse = squares + 2 * side * side
            let delta = lse + count
            for i in 0..<count {
                let token = span.firstQuery + i
                lse[i] = logSumExp.row(token)[head]
                // Σ p · dp = dO · o, which needs no row of p.
                delta[i] = kernels.dot(dO.row(token) + head * headDim, o.row(token) + head * headDim, headDim)
            }
            for firstKey in stride(from: 0, to: count, by: side) {
                let keys = min(side, count - firstKey)
                let keyRows = span.firstKey + firstKey..<span.firstKey + firstKey + keys
                for firstQuery in stride(from: firstKey, to: count, by: side) {
                    // Keys that no query of the block sees, nor of those behind it.
                    if firstQuery - (firstKey + keys - 1) >= window ?? .max { break }
                    let firstSeen = max(0, firstQuery + 1 - (window ?? .max)) / side * side
                    let queries = min(side, count - firstQuery)
                    let queryRows = span.firstQuery + firstQuery..<span.firstQuery + firstQuery + queries
                    let p = DenseBlock(squares, stride: side, rows: keys, columns: queries)
                    let ds = DenseBlock(squares + side * side, stride: side, rows: keys, columns: queries)
                    let (qBlock, dOBlock) = (block(q, queryRows, head), block(dO, queryRows, head))
                    let kBlock = keyBlock(k, keyRows, head)
                    pool.multiply(kBlock, byTransposed: qBlock, into: p, .overwrite, scratch)
                    pool.multiply(keyBlock(v, keyRows, head), byTransposed: dOBlock, into: ds, .overwrite, scratch)
                    if window == nil && cap == nil {
                        kernels.softmax_backward(
                            p.base, ds.base, side, keys, queries, lse + firstQuery, delta + firstQuery, scale,
                            firstQuery - firstKey)
                    } else {
                        kernels.softmax_backward_limited(
                            p.base, ds.base, side, keys, queries, lse + firstQuery, delta + firstQuery, scale,
                            firstQuery - firstKey, window ?? .max, cap ?? 0)
                    }
                    let toKeys: Accumulation = firstQuery == firstKey ? .overwrite : .add
                    pool.multiply(p, by: dOBlock, into: block(headDV, keyRows, head), toKeys, scratch)
                    pool.multiply(ds, by: qBlock, into: block(headDK, keyRows, head), toKeys, scratch)
                    pool.multiply(
                        transposed: ds, by: kBlock, into: block(dQ, queryRows, head), firstKey == firstSeen ? .overwrite : .add,
                        scratch)
                }
            }
        }
        sumOfGroups(headDK, into: dK, on: pool)
        sumOfGroups(headDV, into: dV, on: pool)
    }

    /// Adds the shares of the query heads that used the same key-value head, in the order of the heads.
    private func sumOfGroups(_ shares: Tensor, into sums: Tensor, on pool: WorkerPool) {
        let group = headCount / keyValueHeadCount
        let add = pool.kernels.raw.add_scaled!
        pool.run(rowPieces(sums.rows), as: .attentionBackward, .pass(shares.count, streams: 1, flopEach: 1)) { piece, _ in
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
}
