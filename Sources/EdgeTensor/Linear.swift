// Products with a frozen weight, forward and backward, and the small dense products of low-rank adapters.
//
// A frozen weight is decoded one panel at a time into the calling thread's scratch: the extra memory is
// EDGE_PRODUCT_SCRATCH floats per thread and never a dense copy. Products that share an operand (q, k, v; gate, up) are
// one operation, so that threads meet once and a slice of the result is finished while it is in cache: the frozen
// product first, then the adapter's term. Blocking: CEdgeKernels/product.c.
import CEdgeKernels

/// Whether a product replaces what its output holds, or is added to it.
package enum Accumulation { case overwrite, add }

/// How a product is cut: by columns, and by tokens too when there are few columns. It depends on the shape alone.
private struct ProductPieces {
    let columns: Int
    let sliceColumns: Int
    let tokens: Int
    let chunkTokens: Int

    /// - Parameters:
    ///   - unit: columns that cannot be parted, because they are decoded together.
    ///   - together: columns of all products of the operation.
    init(columns: Int, together: Int, tokens: Int, unit: Int) {
        self.columns = columns
        self.tokens = tokens
        sliceColumns = max(unit, columns <= 1024 ? 32 : Int(EDGE_SLICE_COLUMNS))
        // Below sixteen slices a thread would wait for the last one; a chunk of 84 tokens is 6 tiles of 14, 14 of 6.
        chunkTokens = (together + sliceColumns - 1) / sliceColumns >= 16 ? max(tokens, 1) : 84
    }

    private var slices: Int { (columns + sliceColumns - 1) / sliceColumns }
    var count: Int { slices * ((tokens + chunkTokens - 1) / chunkTokens) }

    func callAsFunction(_ piece: Int) -> (columns: Range<Int>, tokens: Range<Int>) {
        let column = piece % slices * sliceColumns
        let token = piece / slices * chunkTokens
        return (column..<min(column + sliceColumns, columns), token..<min(token + chunkTokens, tokens))
    }
}

/// An adapter's part of a product: `projected · factorᵀ` in the forward, `projected · factor` in the backward.
package struct LowRankTerm {
    /// `[rows, rank]`, scaled.
    package let projected: Tensor
    /// B `[outFeatures, rank]` in the forward, A `[rank, inFeatures]` in the backward.
    package let factor: Tensor
    /// Of the product, the row that is `projected`'s first: rows of other adapters may be around.
    package let firstRow: Int
    package init(projected: Tensor, factor: Tensor, firstRow: Int = 0) {
        self.projected = projected
        self.factor = factor
        self.firstRow = firstRow
    }

    fileprivate func among(_ tokens: Range<Int>) -> Range<Int> { tokens.clamped(to: firstRow..<firstRow + projected.rows) }
    fileprivate func left(from row: Int) -> edge_left { LeftOperand(projected).from(row - firstRow) }
}

package struct LinearOutput {
    package let weight: QuantizedMatrix
    package let adapters: [LowRankTerm]
    package let y: Tensor
    /// Where the weight's first output is in y.
    package let column: Int
    package init(weight: QuantizedMatrix, adapters: [LowRankTerm] = [], y: Tensor, column: Int = 0) {
        self.weight = weight
        self.adapters = adapters
        self.y = y
        self.column = column
    }
}

package struct LinearGradient {
    package let dy: LeftOperand
    package let weight: QuantizedMatrix
    package let adapters: [LowRankTerm]
    package init(dy: LeftOperand, weight: QuantizedMatrix, adapters: [LowRankTerm] = []) {
        self.dy = dy
        self.weight = weight
        self.adapters = adapters
    }
}

private func cost(of weight: QuantizedMatrix, _ adapters: [LowRankTerm], tokens: Int) -> OperationCost {
    let (outFeatures, inFeatures) = (weight.outFeatures, weight.inFeatures)
    let narrow = adapters.reduce(0) { $0 + $1.projected.count * $1.factor.count / max(1, $1.projected.columns) }
    return OperationCost(
        flop: 2 * (Double(tokens) * Double(outFeatures) * Double(inFeatures) + Double(narrow)),
        bytes: Double(weight.byteCount) + 4 * Double(tokens * (outFeatures + inFeatures)))
}

/// y = x · Wᵀ (+ the adapter's term) for every output. Sums are f32, in the order of `inFeatures`.
///
/// - Parameters:
///   - x: `[tokens, inFeatures]`, in the type that is computed in.
///   - outputs: weights `[outFeatures, inFeatures]`, y `[tokens, outFeatures]` or wider, which must not overlap `x`.
/// - SeeAlso: Dettmers et al., *QLoRA* §3, arXiv:2305.14314.
package func linear(
    _ x: LeftOperand, _ outputs: [LinearOutput], _ accumulation: Accumulation = .overwrite,
    as operation: Operation = .frozenProduct, on pool: WorkerPool
) {
    let together = outputs.reduce(0) { $0 + $1.weight.outFeatures }
    let pieces = outputs.map { output in
        precondition(x.columns == output.weight.inFeatures)
        precondition(output.column + output.weight.outFeatures <= output.y.columns)
        precondition(x.rows == output.y.rows)
        return ProductPieces(columns: output.weight.outFeatures, together: together, tokens: x.rows, unit: 1)
    }
    let costs = outputs.map { cost(of: $0.weight, $0.adapters, tokens: x.rows) }
    pool.perform(operation, costs.sum) {
        pool.runEach(pieces.map(\.count)) { index, piece, scratch in
            let output = outputs[index]
            let (columns, tokens) = pieces[index](piece)
            let y = output.y.row(tokens.lowerBound) + output.column
            pool.product(
                edge_product_forward, output.weight.raw, x.from(tokens.lowerBound), tokens.count, into: y,
                output.y.columns, columns, accumulation, scratch)
            for adapter in output.adapters {
                let rows = adapter.among(tokens)
                guard !rows.isEmpty else { continue }
                pool.product(
                    edge_product_forward, QuantizedMatrix(adapter.factor).raw, adapter.left(from: rows.lowerBound), rows.count,
                    into: output.y.row(rows.lowerBound) + output.column, output.y.columns, columns, .add, scratch)
            }
        }
    }
}

/// dx = Σ dy · W (+ the adapters' terms): the gradient of `linear` with respect to its input. Weights are frozen and get
/// none.
///
/// - Parameters:
///   - gradients: dy `[tokens, outFeatures]`, in the type that is computed in.
///   - dx: `[tokens, inFeatures]`. Must not overlap a dy.
package func linearBackward(
    _ gradients: [LinearGradient], into dx: Tensor, _ accumulation: Accumulation = .overwrite,
    as operation: Operation = .frozenProduct, on pool: WorkerPool
) {
    for gradient in gradients {
        precondition(gradient.dy.columns == gradient.weight.outFeatures && gradient.dy.rows == dx.rows)
        precondition(dx.columns == gradient.weight.inFeatures)
    }
    let unit = gradients.map(\.weight.format.unitElements).max()!
    let pieces = ProductPieces(columns: dx.columns, together: dx.columns, tokens: dx.rows, unit: unit)
    let costs = gradients.map { cost(of: $0.weight, $0.adapters, tokens: dx.rows) }
    pool.perform(operation, costs.sum) {
        pool.run(pieces.count) { piece, scratch in
            let (columns, tokens) = pieces(piece)
            for (index, gradient) in gradients.enumerated() {
                pool.product(
                    edge_product_backward, gradient.weight.raw, gradient.dy.from(tokens.lowerBound), tokens.count,
                    into: dx.row(tokens.lowerBound), dx.columns, columns, index == 0 ? accumulation : .add, scratch)
                for adapter in gradient.adapters {
                    let rows = adapter.among(tokens)
                    guard !rows.isEmpty else { continue }
                    pool.product(
                        edge_product_backward, QuantizedMatrix(adapter.factor).raw, adapter.left(from: rows.lowerBound), rows.count,
                        into: dx.row(rows.lowerBound), dx.columns, columns, .add, scratch)
                }
            }
        }
    }
}

/// `linear` of one weight, in f32.
package func linear(
    _ x: Tensor, _ weight: QuantizedMatrix, into y: Tensor, _ accumulation: Accumulation = .overwrite,
    on pool: WorkerPool
) {
    linear(LeftOperand(x), [LinearOutput(weight: weight, y: y)], accumulation, on: pool)
}

/// `linearBackward` of one weight, in f32.
package func linearBackward(
    _ dy: Tensor, _ weight: QuantizedMatrix, into dx: Tensor, _ accumulation: Accumulation = .overwrite,
    on pool: WorkerPool
) {
    linearBackward([LinearGradient(dy: LeftOperand(dy), weight: weight)], into: dx, accumulation, on: pool)
}

/// Tokens that one piece of an adapter's narrow products takes: enough to hide the packing of the factor.
private let narrowTokens = 126

/// z = scale · x · Aᵀ for every adapter that reads x.
///
/// - Parameters:
///   - x: `[tokens, inFeatures]`.
///   - factors: A `[rank, inFeatures]` and z `[tokens, rank]` of each.
package func projectDown(_ x: Tensor, _ factors: [(a: Tensor, z: Tensor, scale: Float)], on pool: WorkerPool) {
    let chunks = (x.rows + narrowTokens - 1) / narrowTokens
    let cost = OperationCost(
        flop: 2 * Double(x.count) * Double(factors.reduce(0) { $0 + $1.a.rows }), bytes: 4 * Double(x.count))
    pool.perform(.adapterProduct, cost) {
        pool.run(chunks * factors.count) { piece, scratch in
            let (a, z, scale) = factors[piece / chunks]
            let first = piece % chunks * narrowTokens
            let tokens = first..<min(first + narrowTokens, x.rows)
            pool.productSlices(
                edge_product_forward, QuantizedMatrix(a).raw, LeftOperand(x).from(first), tokens.count,
                into: z.row(first), z.columns, columns: a.rows, .overwrite, scratch)
            pool.kernels.scale(z.row(first), count: tokens.count * z.columns, by: scale)
        }
    }
}

/// dz = scale · dy · B for every adapter.
///
/// - Parameter factors: dz `[tokens, rank]` of each, and its parts: dy `[tokens, outFeatures]` and B `[outFeatures, rank]`.
package func projectDownBackward(
    _ factors: [(parts: [(dy: Tensor, b: Tensor)], dz: Tensor, scale: Float)], on pool: WorkerPool
) {
    let rows = factors[0].dz.rows
    let chunks = (rows + narrowTokens - 1) / narrowTokens
    let cost = factors.flatMap(\.parts).map {
        OperationCost(flop: 2 * Double($0.dy.count) * Double($0.b.columns), bytes: 4 * Double($0.dy.count))
    }
    pool.perform(.adapterProduct, cost.sum) {
        pool.run(chunks * factors.count) { piece, scratch in
            let (parts, dz, scale) = factors[piece / chunks]
            let first = piece % chunks * narrowTokens
            let tokens = first..<min(first + narrowTokens, rows)
            for (index, part) in parts.enumerated() {
                pool.productSlices(
                    edge_product_backward, QuantizedMatrix(part.b).raw, LeftOperand(part.dy).from(first), tokens.count,
                    into: dz.row(first), dz.columns, columns: part.b.columns, index == 0 ? .overwrite : .add, scratch)
            }
            pool.kernels.scale(dz.row(first), count: tokens.count * dz.columns, by: scale)
        }
    }
}

/// y (+)= W · x for one token. Bound by decoding, so there are no panels; the order of sums differs from `linear`'s.
/// - Precondition: the pool's scratch holds a row of W.
package func linearVector(
    _ x: Tensor, _ weight: QuantizedMatrix, into y: Tensor, _ accumulation: Accumulation = .overwrite,
    on pool: WorkerPool
) {
    precondition(x.rows == 1 && x.columns == weight.inFeatures && y.columns == weight.outFeatures)
    precondition(pool.scratchFloats >= weight.inFeatures)
    let slice = 16
    withUnsafePointer(to: weight.raw) { matrix in
        pool.run((weight.outFeatures + slice - 1) / slice) { piece, scratch in
            let first = piece * slice
            edge_product_vector(
                pool.kernels.pointer, matrix, x.base, y.base, first, min(slice, weight.outFeatures - first),
                accumulation == .add, scratch)
        }
    }
}

/// A sample, or a run of its tokens, among the rows of a tensor.
package struct SamplePart: Equatable, Sendable {
    package var rows: Range<Int>
    /// Number of the job whose sample it is, among those that train together.
    package let job: Int
    /// Number of the sample's task among the job's; nil: the job has none.
    package let task: Int?
    /// Number of the sample in the job's batch.
    package let sample: Int
    /// Of the run, in the sample.
    package let firstToken: Int
    package init(rows: Range<Int>, job: Int = 0, task: Int? = nil, sample: Int, firstToken: Int) {
        self.rows = rows
        self.job = job
        self.task = task
        self.sample = sample
        self.firstToken = firstToken
    }

    /// By `outerProductTokens`; the part begins or goes on at a multiple of them.
    package var outerProductRuns: [SamplePart] {
        precondition(firstToken % outerProductTokens == 0)
        return stride(from: rows.lowerBound, to: rows.upperBound, by: outerProductTokens).map {
            SamplePart(
                rows: $0..<min($0 + outerProductTokens, rows.upperBound), job: job, task: task, sample: sample,
                firstToken: firstToken + $0 - rows.lowerBound)
        }
    }
}

/// Tokens that one sum of an outer product runs over before it is added to the gradient.
package let outerProductTokens = 256

/// dw += dyᵀ · x: the gradient of a small dense matrix, contracted over tokens: sample by sample, and within a sample by
/// `outerProductTokens` from its first token on. So the sums' order depends on the samples alone, and however they are parted
/// into batches the gradient has the same bits.
///
/// - Parameters:
///   - dy: `[tokens, outFeatures]`.
///   - x: `[tokens, inFeatures]`.
///   - parts: the samples in x, in order; a sample begins or goes on at a multiple of `outerProductTokens`.
///   - dw: `[outFeatures, inFeatures]`.
package func addOuterProduct(_ dy: Tensor, _ x: Tensor, _ parts: [SamplePart], into dw: Tensor, on pool: WorkerPool) {
    precondition(dy.rows == x.rows && dw.rows == dy.columns && dw.columns == x.columns)
    // Cut along the longer side: the other one is the adapter's rank. A multiple of the tiles' rows and of a slice.
    let alongColumns = dw.columns >= dw.rows
    let chunk = alongColumns ? 2 * Int(EDGE_SLICE_COLUMNS) : 126
    let pieces = (max(dw.rows, dw.columns) + chunk - 1) / chunk
    let cost = OperationCost(
        flop: 2 * Double(dy.rows) * Double(dw.count), bytes: 4 * Double(dy.count + x.count + dw.count))
    let sums = parts.flatMap(\.outerProductRuns).map(\.rows)
    pool.run(pieces, as: .adapterGradient, cost) { piece, scratch in
        let part = piece * chunk..<min((piece + 1) * chunk, max(dw.rows, dw.columns))
        for tokens in sums {
            if alongColumns {
                pool.multiply(
                    transposed: DenseBlock(dy, rows: tokens, column: 0, columns: dy.columns),
                    by: DenseBlock(x, rows: tokens, column: part.lowerBound, columns: part.count),
                    into: DenseBlock(dw, rows: 0..<dw.rows, column: part.lowerBound, columns: part.count), .add, scratch)
            } else {
                pool.multiply(
                    transposed: DenseBlock(dy, rows: tokens, column: part.lowerBound, columns: part.count),
                    by: DenseBlock(x, rows: tokens, column: 0, columns: x.columns),
                    into: DenseBlock(dw, rows: part, column: 0, columns: dw.columns), .add, scratch)
            }
        }
    }
}
