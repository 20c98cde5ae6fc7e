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

/// Keys and values that every sample sees before its own, as if they were those of the tokens before its first.
package struct AttentionPrefix {
    /// `[tokens, keyValueHeadCount · headDim]`.
    package let keys: Tensor
    package let values: Tensor
    /// Of the same shape; added to by the backward.
    package let dKeys: Tensor
    package let dValues: Tensor

    package init(keys: Tensor, values: Tensor, dKeys: Tensor, dValues: Tensor) {
        self.keys = keys
        self.values = values
        self.dKeys = dKeys
        self.dValues = dValues
    }

    package var tokens: Int { keys.rows }
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

    /// Floats of scratch per thread for samples of up to `longest` tokens, a prefix included, beside the products' own: the scores of a block
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
    ///   - prefixes: by span; empty: none has one.
    ///   - logSumExp: `[tokens, headCount]`, kept for the backward.
    package func forward(
        q: Tensor, k: Tensor, v: Tensor, spans: [AttentionSpan], prefixes: [AttentionPrefix?] = [], into o: Tensor, logSumExp: Tensor,
        on pool: WorkerPool
    ) {
        precondition(prefixes.isEmpty || prefixes.count == spans.count)
        let kernels = pool.kernels.raw
        let blocks = spans.enumerated().flatMap { index, span in
            stride(from: 0, to: span.queryCount, by: Self.queryBlock).map {
                (span: span, first: $0, prefix: prefixes.isEmpty ? nil : prefixes[index])
            }
        }
        pool.run(blocks.count * headCount, as: .attention, cost(spans, products: 2)) { piece, scratch in
            let (span, first, prefix) = blocks[piece / headCount]
            let head = piece % headCount
            let before = prefix?.tokens ?? 0
            let queries = min(Self.queryBlock, span.queryCount - first)
            // The prefix's come first.
            let lastKeys = before + span.keyCount - span.queryCount + first + queries
            // What the first query sees first.
            let unseen = max(0, lastKeys - queries + 1 - (window ?? .max))
            let keys = lastKeys - unseen
            let queryRows = span.firstQuery + first..<span.firstQuery + first + queries
            let keyRows = span.firstKey + max(0, unseen - before)..<span.firstKey + lastKeys - before
            let ofPrefix = min(unseen, before)..<before
            let scores = DenseBlock(scratch + Int(EDGE_PRODUCT_SCRATCH), stride: keys, rows: queries, columns: keys)
            let own = scores.columns(ofPrefix.count..<keys)
            if span.queryCount == 1, before == 0 {
                let lse = attendOne(block(q, queryRows, head), keyBlock(k, keyRows, head), keyBlock(v, keyRows, head),
                    scores: scores.base, into: block(o, queryRows, head), kernels)
                logSumExp.row(queryRows.lowerBound)[head] = lse
                return
            }
            pool.multiply(block(q, queryRows, head), byTransposed: keyBlock(k, keyRows, head), into: own, .overwrite, scratch)
            if let prefix, !ofPrefix.isEmpty {
                pool.multiply(
                    block(q, queryRows, head), byTransposed: keyBlock(prefix.keys, ofPrefix, head),
                    into: scores.columns(0..<ofPrefix.count), .overwrite, scratch)
            }
            for i in 0..<queries {
                let row = scores.base + i * keys
                let seen = keys - queries + i + 1
                let hidden = max(0, seen - (window ?? .max))
                logSumExp.row(queryRows.lowerBound + i)[head] = softmax(row + hidden, seen - hidden, kernels)
                row.update(repeating: 0, count: hidden)
                (row + seen).update(repeating: 0, count: keys - seen)
            }
            pool.multiply(own, by: keyBlock(v, keyRows, head), into: block(o, queryRows, head), .overwrite, scratch)
            if let prefix, !ofPrefix.isEmpty {
                pool.multiply(
                    scores.columns(0..<ofPrefix.count), by: keyBlock(prefix.values, ofPrefix, head), into: block(o, queryRows, head), .add,
                    scratch)
            }
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
    ///   - prefixes: as in the forward; their gradients are added to, span by span.
    package func backward(
        dO: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logSumExp: Tensor, spans: [AttentionSpan], prefixes: [AttentionPrefix?] = [],
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
            rowSums(span, head, dO, o, logSumExp, lse: lse, delta: delta, kernels)
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
                    softmaxBackward(p, ds, lse + firstQuery, delta + firstQuery, diagonal: firstQuery - firstKey, kernels)
                    let toKeys: Accumulation = firstQuery == firstKey ? .overwrite : .add
                    pool.multiply(p, by: dOBlock, into: block(headDV, keyRows, head), toKeys, scratch)
                    pool.multiply(ds, by: qBlock, into: block(headDK, keyRows, head), toKeys, scratch)
                    pool.multiply(
                        transposed: ds, by: kBlock, into: block(dQ, queryRows, head), firstKey == firstSeen ? .overwrite : .add,
                        scratch)
                }
            }
        }
        let withPrefix = zip(spans, prefixes).compactMap { span, prefix in prefix.map { (span: span, prefix: $0) } }
        if !withPrefix.isEmpty { prefixBackward(withPrefix, dO: dO, q: q, o: o, logSumExp: logSumExp, dQ: dQ, on: pool) }
        sumOfGroups(headDK, into: dK, on: pool)
        sumOfGroups(headDV, into: dV, on: pool)
    }

    /// Of a head's queries: log-sum-exp, and Σ p · dp = dO · o, which needs no row of p.
    private func rowSums(
        _ span: AttentionSpan, _ head: Int, _ dO: Tensor, _ o: Tensor, _ logSumExp: Tensor, lse: UnsafeMutablePointer<Float>,
        delta: UnsafeMutablePointer<Float>, _ kernels: edge_kernel_set
    ) {
        for i in 0..<span.queryCount {
            let token = span.firstQuery + i
            lse[i] = logSumExp.row(token)[head]
            delta[i] = kernels.dot(dO.row(token) + head * headDim, o.row(token) + head * headDim, headDim)
        }
    }

    /// Scores become probabilities, and the gradients of probabilities those of scores.
    ///
    /// - Parameters:
    ///   - p, ds: `[keys, queries]`.
    ///   - diagonal: how many keys the first query sees behind the first key.
    private func softmaxBackward(
        _ p: DenseBlock, _ ds: DenseBlock, _ lse: UnsafePointer<Float>, _ delta: UnsafePointer<Float>, diagonal: Int, _ kernels: edge_kernel_set
    ) {
        if window == nil && cap == nil {
            kernels.softmax_backward(p.base, ds.base, p.stride, p.rows, p.columns, lse, delta, scale, diagonal)
        } else {
            kernels.softmax_backward_limited(
                p.base, ds.base, p.stride, p.rows, p.columns, lse, delta, scale, diagonal, window ?? .max, cap ?? 0)
        }
    }

    /// Adds to the gradients of the prefixes and to dQ. A key-value head is one piece, which goes through the spans in their order: what is
    /// added, and in which order, depends on the samples alone.
    private func prefixBackward(
        _ spans: [(span: AttentionSpan, prefix: AttentionPrefix)], dO: Tensor, q: Tensor, o: Tensor, logSumExp: Tensor, dQ: Tensor,
        on pool: WorkerPool
    ) {
        let kernels = pool.kernels.raw
        let side = Self.queryBlock, group = headCount / keyValueHeadCount
        let flop = spans.reduce(0.0) { $0 + Double(10 * $1.span.queryCount * $1.prefix.tokens * headCount * headDim) }
        pool.run(keyValueHeadCount, as: .attentionBackward, OperationCost(flop: flop, bytes: 4 * Double(3 * q.count))) { piece, scratch in
            let squares = scratch + Int(EDGE_PRODUCT_SCRATCH)
            for (span, prefix) in spans {
                let lse = squares + 2 * side * side
                let delta = lse + span.queryCount
                for head in piece * group..<(piece + 1) * group {
                    rowSums(span, head, dO, o, logSumExp, lse: lse, delta: delta, kernels)
                    for firstKey in stride(from: 0, to: prefix.tokens, by: side) {
                        let keyRows = firstKey..<min(firstKey + side, prefix.tokens)
                        for firstQuery in stride(from: 0, to: span.queryCount, by: side) {
                            let beyond = prefix.tokens + firstQuery - firstKey
                            if beyond - (keyRows.count - 1) >= window ?? .max { break }
                            let queries = min(side, span.queryCount - firstQuery)
                            let queryRows = span.firstQuery + firstQuery..<span.firstQuery + firstQuery + queries
                            let p = DenseBlock(squares, stride: side, rows: keyRows.count, columns: queries)
                            let ds = DenseBlock(squares + side * side, stride: side, rows: keyRows.count, columns: queries)
                            let (qBlock, dOBlock) = (block(q, queryRows, head), block(dO, queryRows, head))
                            let keys = keyBlock(prefix.keys, keyRows, head)
                            pool.multiply(keys, byTransposed: qBlock, into: p, .overwrite, scratch)
                            pool.multiply(keyBlock(prefix.values, keyRows, head), byTransposed: dOBlock, into: ds, .overwrite, scratch)
                            softmaxBackward(p, ds, lse + firstQuery, delta + firstQuery, diagonal: beyond, kernels)
                            pool.multiply(p, by: dOBlock, into: keyBlock(prefix.dValues, keyRows, head), .add, scratch)
                            pool.multiply(ds, by: qBlock, into: keyBlock(prefix.dKeys, keyRows, head), .add, scratch)
                            pool.multiply(transposed: ds, by: keys, into: block(dQ, queryRows, head), .add, scratch)
                        }
                    }
                }
            }
        }
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
