// Products with a sparse matrix, and the gradient of its values: what a sparse adapter (SHiRA) adds to a frozen product. Tokens go some
// at a time, packed side by side, so that an entry reads whole cache lines of its input (CEdgeKernels/sparse.inc).
import CEdgeKernels

/// ΔW `[outFeatures, inFeatures]` with entries at fixed places, sorted by row and then by column.
package struct SparseMatrix {
    let values: UnsafePointer<Float>
    let rows: UnsafePointer<Float>
    let columns: UnsafePointer<Float>
    package let count: Int
    package let outFeatures: Int
    package let inFeatures: Int
    private let firstRow: Int
    /// Of the first entry, in the whole matrix.
    private let first: Int

    /// - Parameters:
    ///   - values: `[count]`.
    ///   - places: `[2, count]`: the rows, and the columns; whole numbers, which f32 holds to 2^24.
    package init(values: Tensor, places: Tensor, outFeatures: Int, inFeatures: Int) {
        precondition(places.rows == 2 && places.columns == values.count)
        self.init(
            values.base, places.row(0), places.row(1), count: values.count, outFeatures: outFeatures, inFeatures: inFeatures, firstRow: 0,
            first: 0)
    }

    private init(
        _ values: UnsafePointer<Float>, _ rows: UnsafePointer<Float>, _ columns: UnsafePointer<Float>, count: Int, outFeatures: Int,
        inFeatures: Int, firstRow: Int, first: Int
    ) {
        (self.values, self.rows, self.columns, self.count) = (values, rows, columns, count)
        (self.outFeatures, self.inFeatures, self.firstRow, self.first) = (outFeatures, inFeatures, firstRow, first)
    }

    /// The matrix of these rows: of one product of a fused linear, or what a thread does of it.
    package func rows(_ range: Range<Int>) -> SparseMatrix {
        precondition(0 <= range.lowerBound && range.upperBound <= outFeatures)
        let (from, to) = (entry(ofRow: firstRow + range.lowerBound), entry(ofRow: firstRow + range.upperBound))
        return SparseMatrix(
            values + from, rows + from, columns + from, count: to - from, outFeatures: range.count, inFeatures: inFeatures,
            firstRow: firstRow + range.lowerBound, first: first + from)
    }

    /// The first entry that is not above a row.
    private func entry(ofRow row: Int) -> Int {
        var (low, high) = (0, count)
        while low < high {
            let middle = (low + high) / 2
            if Int(rows[middle]) < row { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// Of a thread's scratch.
    package static func scratchFloats(inFeatures: Int) -> Int { inFeatures * Int(EDGE_SPARSE_TOKENS) }

    private var raw: edge_sparse {
        edge_sparse(values: values, rows: rows, columns: columns, count: count, first_row: firstRow, row_count: outFeatures)
    }

    private func cost(tokens: Int) -> OperationCost {
        OperationCost(
            flop: 2 * Double(count) * Double(tokens), bytes: 4 * (3 * Double(count) + Double(tokens) * Double(inFeatures + outFeatures)))
    }

    private static let tokens = Int(EDGE_SPARSE_TOKENS)
    /// Outputs that one piece takes.
    private static let pieceRows = 256

    /// y += x · ΔWᵀ. A token's bits do not depend on those around it, but for a token that is alone: a generated one.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`.
    ///   - y: `[tokens, outFeatures]`. Must not overlap x.
    /// - Precondition: the pool's scratch holds `scratchFloats`.
    package func addProduct(_ x: Tensor, to y: Tensor, on pool: WorkerPool) {
        precondition(x.columns == inFeatures && y.columns == outFeatures && x.rows == y.rows)
        precondition(pool.scratchFloats >= Self.scratchFloats(inFeatures: inFeatures))
        let pieces = (outFeatures + Self.pieceRows - 1) / Self.pieceRows
        func part(_ piece: Int) -> (matrix: SparseMatrix, column: Int) {
            let first = piece * Self.pieceRows
            return (rows(first..<min(first + Self.pieceRows, outFeatures)), first)
        }
        if x.rows == 1 {
            pool.run(pieces, as: .adapterProduct, cost(tokens: 1)) { piece, _ in
                let (matrix, column) = part(piece)
                withUnsafePointer(to: matrix.raw) { pool.kernels.raw.sparse_vector($0, x.base, y.base + column) }
            }
            return
        }
        let chunks = (x.rows + Self.tokens - 1) / Self.tokens
        pool.run(chunks, as: .adapterProduct, cost(tokens: x.rows)) { chunk, scratch in
            let first = chunk * Self.tokens, count = min(Self.tokens, x.rows - first)
            edge_pack_tokens(x.row(first), x.columns, count, x.columns, scratch)
            withUnsafePointer(to: raw) { pool.kernels.raw.sparse_forward($0, scratch, y.row(first), y.columns, count) }
        }
    }

    /// dx += dy · ΔW.
    ///
    /// - Parameters:
    ///   - dy: `[tokens, outFeatures]`.
    ///   - dx: `[tokens, inFeatures]`. Must not overlap dy.
    /// - Precondition: the pool's scratch holds `scratchFloats`.
    package func addInputGradient(_ dy: Tensor, to dx: Tensor, on pool: WorkerPool) {
        precondition(dx.columns == inFeatures && dy.columns == outFeatures && dx.rows == dy.rows)
        precondition(pool.scratchFloats >= Self.scratchFloats(inFeatures: inFeatures))
        let chunks = (dy.rows + Self.tokens - 1) / Self.tokens
        pool.run(chunks, as: .adapterProduct, cost(tokens: dy.rows)) { chunk, scratch in
            let first = chunk * Self.tokens, count = min(Self.tokens, dy.rows - first)
            scratch.update(repeating: 0, count: Self.scratchFloats(inFeatures: inFeatures))
            withUnsafePointer(to: raw) { pool.kernels.raw.sparse_backward($0, dy.row(first), dy.columns, count, scratch) }
            edge_add_packed_tokens(scratch, count, dx.columns, dx.row(first), dx.columns)
        }
    }

    /// Adds to the gradient of the values: of each the sum over tokens of dy · x, EDGE_SPARSE_TOKENS of a sample after the other, so that
    /// the order depends on the samples alone, as in `addOuterProduct`.
    ///
    /// - Parameters:
    ///   - dy: `[tokens, outFeatures]`.
    ///   - x: `[tokens, inFeatures]`.
    ///   - parts: the samples in x, in order.
    ///   - gradient: of all values of the matrix that this is, or is rows of: `[count]`.
    /// - Precondition: the pool's scratch holds `scratchFloats`.
    package func addGradient(_ dy: Tensor, _ x: Tensor, _ parts: [SamplePart], into gradient: Tensor, on pool: WorkerPool) {
        precondition(x.columns == inFeatures && dy.columns == outFeatures && x.rows == dy.rows && first + count <= gradient.count)
        precondition(pool.scratchFloats >= Self.scratchFloats(inFeatures: inFeatures))
        let chunks = parts.flatMap(\.outerProductRuns).flatMap { run in
            stride(from: run.rows.lowerBound, to: run.rows.upperBound, by: Self.tokens).map {
                $0..<min($0 + Self.tokens, run.rows.upperBound)
            }
        }
        let pieces = (outFeatures + Self.pieceRows - 1) / Self.pieceRows
        pool.run(pieces, as: .adapterGradient, cost(tokens: x.rows)) { piece, scratch in
            let column = piece * Self.pieceRows
            let matrix = rows(column..<min(column + Self.pieceRows, outFeatures))
            withUnsafePointer(to: matrix.raw) { entries in
                for chunk in chunks {
                    edge_pack_tokens(x.row(chunk.lowerBound), x.columns, chunk.count, x.columns, scratch)
                    pool.kernels.raw.sparse_gradient(
                        entries, dy.row(chunk.lowerBound) + column, dy.columns, chunk.count, scratch, gradient.base + matrix.first)
                }
            }
        }
    }
}
