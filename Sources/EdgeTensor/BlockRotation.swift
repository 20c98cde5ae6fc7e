// Block-diagonal orthogonal matrices: made from skew-symmetric ones, multiplied by, and the gradient of what they are made of.
//
// A rotation of n values by blocks of b is a matrix `[n, b]`: row i is row i mod b of block i / b. What is trained of a block is the upper
// triangle of Q = -Qᵀ, row by row, as PEFT's OFT has it (peft, tuners/oft/layer.py). A block is a piece of work, and its temporary
// matrices lie in the scratch of the thread that does it.
import CEdgeKernels

/// How a block R is made of Q. The two forms turn in opposite directions, as PEFT's do.
package enum CayleyForm: Equatable, Sendable {
    /// (I - Q) · (I + Q)⁻¹: orthogonal.
    case exact
    /// (I + Q) · (I - Q)⁻¹ by its series, of which PEFT takes `terms`: I + 2Q + … + 2Qᵐ⁻¹ + Qᵐ. Orthogonal as far as Qᵐ is nothing.
    case neumann(terms: Int)

    /// Of the powers of Q, from 0 on. PEFT adds the last power once; with three terms and with four that is the third.
    fileprivate static func coefficients(terms: Int) -> [Float] {
        guard terms > 2 else { return [1, 2] }
        let degree = max(3, terms - 1)
        return [1] + [Float](repeating: 2, count: degree - 1) + [1]
    }
}

package enum BlockRotation {
    /// Q, and the four matrices that a gradient is made with.
    private static let temporaries = 5

    /// That a pool needs for blocks of this size.
    package static func scratchFloats(blockSize: Int) -> Int { Int(EDGE_PRODUCT_SCRATCH) + temporaries * blockSize * blockSize }

    /// Values of a block's upper triangle.
    package static func skewCount(blockSize: Int) -> Int { blockSize * (blockSize - 1) / 2 }

    /// Square matrices in a thread's scratch, behind what products need.
    private static func temporary(_ index: Int, _ size: Int, _ scratch: UnsafeMutablePointer<Float>) -> DenseBlock {
        DenseBlock(scratch + Int(EDGE_PRODUCT_SCRATCH) + index * size * size, stride: size, rows: size, columns: size)
    }

    /// R of every block.
    ///
    /// - Parameters:
    ///   - skew: `[blocks, skewCount]`.
    ///   - r: `[blocks · b, b]`.
    package static func derive(_ skew: Tensor, _ form: CayleyForm, into r: Tensor, on pool: WorkerPool) {
        let size = r.columns
        precondition(r.rows == skew.rows * size && skew.columns == skewCount(blockSize: size))
        precondition(pool.scratchFloats >= scratchFloats(blockSize: size))
        let flop = 2 * Double(r.count) * Double(size)
        pool.run(skew.rows, as: .adapterProduct, OperationCost(flop: 4 * flop, bytes: 4 * Double(skew.count + r.count))) { block, scratch in
            let target = DenseBlock(r, rows: block * size..<(block + 1) * size, column: 0, columns: size)
            let q = temporary(0, size, scratch)
            q.fillSkew(skew.row(block))
            switch form {
            case .exact:
                // The symmetric part of I + Q is I, so no pivot is below 1. R = 2 · (I + Q)⁻¹ - I.
                q.addToDiagonal(1)
                q.invert()
                target.set(to: q, times: 2)
                target.addToDiagonal(-1)
            case .neumann(let terms):
                // Horner's scheme, from c_m · Q + c_(m-1) · I on.
                let c = CayleyForm.coefficients(terms: terms)
                var (sum, next) = (temporary(1, size, scratch), temporary(2, size, scratch))
                sum.set(to: q, times: c[c.count - 1])
                sum.addToDiagonal(c[c.count - 2])
                for power in (0..<c.count - 2).reversed() {
                    pool.multiply(q, by: sum, into: next, .overwrite, scratch)
                    next.addToDiagonal(c[power])
                    swap(&sum, &next)
                }
                target.set(to: sum, times: 1)
            }
        }
    }

    /// Tokens that a piece takes: enough to hide the packing of its block.
    private static let pieceTokens = 126

    /// Calls `body` with the columns of a block and some of the tokens of x.
    private static func forEachPiece(
        _ x: Tensor, _ r: Tensor, on pool: WorkerPool,
        _ body: (_ tokens: Range<Int>, _ column: Int, _ block: DenseBlock, _ scratch: UnsafeMutablePointer<Float>) -> Void
    ) {
        precondition(x.columns == r.rows)
        let size = r.columns, blocks = r.rows / size
        let cost = OperationCost(flop: 2 * Double(x.count) * Double(size), bytes: 4 * Double(2 * x.count + r.count))
        pool.run(blocks * ((x.rows + pieceTokens - 1) / pieceTokens), as: .adapterProduct, cost) { piece, scratch in
            let first = piece / blocks * pieceTokens, column = piece % blocks * size
            body(
                first..<min(first + pieceTokens, x.rows), column, DenseBlock(r, rows: column..<column + size, column: 0, columns: size), scratch)
        }
    }

    /// y = x · R.
    ///
    /// - Parameters:
    ///   - x, y: `[tokens, n]`; must not overlap.
    ///   - r: `[n, b]`.
    package static func apply(_ r: Tensor, to x: Tensor, into y: Tensor, on pool: WorkerPool) {
        precondition(x.rows == y.rows && x.columns == y.columns)
        forEachPiece(x, r, on: pool) { tokens, column, block, scratch in
            pool.multiply(
                DenseBlock(x, rows: tokens, column: column, columns: r.columns), by: block,
                into: DenseBlock(y, rows: tokens, column: column, columns: r.columns), .overwrite, scratch)
        }
    }

    /// dx (+)= dy · Rᵀ: the gradient of `apply` with respect to x.
    ///
    /// - Parameter dx: must not overlap dy.
    package static func applyBackward(_ r: Tensor, to dy: Tensor, into dx: Tensor, _ accumulation: Accumulation, on pool: WorkerPool) {
        precondition(dx.rows == dy.rows && dx.columns == dy.columns)
        forEachPiece(dy, r, on: pool) { tokens, column, block, scratch in
            pool.multiply(
                DenseBlock(dy, rows: tokens, column: column, columns: r.columns), byTransposed: block,
                into: DenseBlock(dx, rows: tokens, column: column, columns: r.columns), accumulation, scratch)
        }
    }

    /// x becomes x · Rᵀ, row by row: what a weight becomes whose input is no longer rotated.
    package static func applyTransposed(_ r: Tensor, to x: Tensor, on pool: WorkerPool) {
        precondition(x.columns == r.rows && pool.scratchFloats >= r.columns)
        let size = r.columns, dot = pool.kernels.raw.dot!
        pool.run(rowPieces(x.rows)) { piece, scratch in
            for row in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, x.rows) {
                for column in stride(from: 0, to: x.columns, by: size) {
                    let values = x.row(row) + column
                    scratch.update(from: values, count: size)
                    for i in 0..<size { values[i] = dot(scratch, r.row(column + i), size) }
                }
            }
        }
    }

    /// Adds to the gradient of the skew matrices that of `apply` and `derive`: with G = xᵀ · dy of a block, summed over a run of tokens as
    /// in `addOuterProduct`, the chain rule is applied to each run by itself, so that the bits depend on the samples alone.
    ///
    ///     exact      dQ = -½ · (I + R)ᵀ · G · (I + R)ᵀ
    ///     series     dQ = Σ over k of c_k · Σ over i + j = k - 1 of (Qᵀ)ⁱ · G · (Qᵀ)ʲ
    ///
    /// - Parameters:
    ///   - x: what was rotated, `[tokens, n]`.
    ///   - dy: of x · R.
    ///   - parts: the samples in x, in order.
    ///   - r: of the last `derive`.
    ///   - gradient: as `skew`: `[blocks, skewCount]`.
    package static func addGradient(
        _ x: Tensor, _ dy: Tensor, _ parts: [SamplePart], skew: Tensor, _ form: CayleyForm, r: Tensor, into gradient: Tensor,
        on pool: WorkerPool
    ) {
        let size = r.columns
        precondition(x.columns == r.rows && dy.columns == x.columns && dy.rows == x.rows && gradient.count == skew.count)
        precondition(pool.scratchFloats >= scratchFloats(blockSize: size))
        let runs = parts.flatMap(\.outerProductRuns).map(\.rows)
        let flop = 2 * Double(size) * (Double(x.count) + 9 * Double(runs.count) * Double(r.count))
        pool.run(skew.rows, as: .adapterGradient, OperationCost(flop: flop, bytes: 8 * Double(x.count))) { block, scratch in
            let columns = block * size
            func part(_ tensor: Tensor, _ tokens: Range<Int>) -> DenseBlock {
                DenseBlock(tensor, rows: tokens, column: columns, columns: size)
            }
            let g = temporary(0, size, scratch), q = temporary(1, size, scratch)
            switch form {
            case .exact:
                q.set(to: DenseBlock(r, rows: columns..<columns + size, column: 0, columns: size), times: 1)
                q.addToDiagonal(1)
            case .neumann: q.fillSkew(skew.row(block))
            }
            for tokens in runs {
                pool.multiply(transposed: part(x, tokens), by: part(dy, tokens), into: g, .overwrite, scratch)
                switch form {
                case .exact:
                    let half = temporary(2, size, scratch), dQ = temporary(3, size, scratch)
                    pool.multiply(transposed: q, by: g, into: half, .overwrite, scratch)
                    pool.multiply(half, byTransposed: q, into: dQ, .overwrite, scratch)
                    dQ.addSkewPart(times: -0.5, to: gradient.row(block))
                case .neumann(let terms):
                    chain(g, q, CayleyForm.coefficients(terms: terms), scratch, pool).addSkewPart(times: 1, to: gradient.row(block))
                }
            }
        }
    }

    /// dQ of the series, from its highest power down: with P_i = c_(i+1) · I + Qᵀ · P_(i+1), dQ_i = G · P_i + Qᵀ · dQ_(i+1).
    private static func chain(
        _ g: DenseBlock, _ q: DenseBlock, _ c: [Float], _ scratch: UnsafeMutablePointer<Float>, _ pool: WorkerPool
    ) -> DenseBlock {
        let size = g.rows, degree = c.count - 1
        var (p, dQ, next) = (temporary(2, size, scratch), temporary(3, size, scratch), temporary(4, size, scratch))
        p.base.update(repeating: 0, count: size * size)
        p.addToDiagonal(c[degree])
        dQ.set(to: g, times: c[degree])
        for i in (0..<degree - 1).reversed() {
            pool.multiply(transposed: q, by: p, into: next, .overwrite, scratch)
            next.addToDiagonal(c[i + 1])
            swap(&p, &next)
            pool.multiply(transposed: q, by: dQ, into: next, .overwrite, scratch)
            pool.multiply(g, by: p, into: next, .add, scratch)
            swap(&dQ, &next)
        }
        return dQ
    }
}

/// Of square matrices.
extension DenseBlock {
    fileprivate func row(_ index: Int) -> UnsafeMutablePointer<Float> { base + index * stride }

    /// - Parameter upper: the triangle, row by row, without the diagonal.
    fileprivate func fillSkew(_ upper: UnsafePointer<Float>) {
        var next = 0
        for i in 0..<rows {
            row(i)[i] = 0
            for j in i + 1..<max(i + 1, rows) {
                row(i)[j] = upper[next]
                row(j)[i] = -upper[next]
                next += 1
            }
        }
    }

    /// The gradient of what `fillSkew` was given.
    fileprivate func addSkewPart(times factor: Float, to upper: UnsafeMutablePointer<Float>) {
        var next = 0
        for i in 0..<rows {
            for j in i + 1..<max(i + 1, rows) {
                upper[next] += factor * (row(i)[j] - row(j)[i])
                next += 1
            }
        }
    }

    fileprivate func addToDiagonal(_ value: Float) { for i in 0..<rows { row(i)[i] += value } }

    fileprivate func set(to other: DenseBlock, times factor: Float) {
        for i in 0..<rows { for j in 0..<columns { row(i)[j] = factor * other.row(i)[j] } }
    }

    /// In place, by Gauss and Jordan without pivoting.
    fileprivate func invert() {
        for pivot in 0..<rows {
            let own = row(pivot), factor = 1 / own[pivot]
            own[pivot] = 1
            for j in 0..<columns { own[j] *= factor }
            for i in 0..<rows where i != pivot {
                let other = row(i), share = other[pivot]
                other[pivot] = 0
                for j in 0..<columns { other[j] -= share * own[j] }
            }
        }
    }
}
