// Products with a frozen weight, forward and backward, and the small dense products of low-rank adapters.
//
// A frozen weight is decoded one panel at a time into the calling thread's scratch: the extra memory is
// EDGE_PRODUCT_SCRATCH floats per thread and never a dense copy. Blocking: CEdgeKernels/product.c.
import CEdgeKernels
import COpenBLAS

/// Whether a product replaces what its output holds, or is added to it.
package enum Accumulation { case overwrite, add }

/// How a product is cut: by columns, and by tokens too when there are few columns. It depends on the shape alone.
private struct ProductPieces {
    let columns: Int
    let sliceColumns: Int
    let tokens: Int
    let chunkTokens: Int

    /// - Parameter unit: columns that cannot be parted, because they share a block.
    init(columns: Int, tokens: Int, unit: Int) {
        self.columns = columns
        self.tokens = tokens
        sliceColumns = max(unit, columns <= 1024 ? 32 : Int(EDGE_SLICE_COLUMNS))
        // Below sixteen slices a thread would wait for the last one; a chunk of 96 tokens is 16 tiles of 6.
        chunkTokens = (columns + sliceColumns - 1) / sliceColumns >= 16 ? max(tokens, 1) : 96
    }

    private var slices: Int { (columns + sliceColumns - 1) / sliceColumns }
    var count: Int { slices * ((tokens + chunkTokens - 1) / chunkTokens) }

    func callAsFunction(_ piece: Int) -> (columns: Range<Int>, tokens: Range<Int>) {
        let column = piece % slices * sliceColumns
        let token = piece / slices * chunkTokens
        return (column..<min(column + sliceColumns, columns), token..<min(token + chunkTokens, tokens))
    }
}

/// y = x · Wᵀ, with W frozen in blocks. Accumulation is f32, in the order of `inFeatures`.
///
/// - Parameters:
///   - x: `[tokens, inFeatures]`.
///   - weight: `[outFeatures, inFeatures]`.
///   - y: `[tokens, outFeatures]`. Must not overlap `x`.
/// - SeeAlso: Dettmers et al., *QLoRA* §3, arXiv:2305.14314.
package func linear(
    _ x: Tensor, _ weight: QuantizedMatrix, into y: Tensor, _ accumulation: Accumulation = .overwrite,
    on pool: WorkerPool
) {
    precondition(x.columns == weight.inFeatures && y.columns == weight.outFeatures && x.rows == y.rows)
    let pieces = ProductPieces(columns: weight.outFeatures, tokens: x.rows, unit: 1)
    var set = pool.kernels.raw
    var matrix = weight.raw
    withUnsafePointer(to: &set) { set in
        withUnsafePointer(to: &matrix) { matrix in
            pool.run(pieces.count) { piece, scratch in
                let (columns, tokens) = pieces(piece)
                edge_product_forward(
                    set, matrix, x.row(tokens.lowerBound), x.columns, tokens.count, y.row(tokens.lowerBound), y.columns,
                    columns.lowerBound, columns.count, accumulation == .add, scratch)
            }
        }
    }
}

/// dx = dy · W: the gradient of `linear` with respect to its input. W is frozen and gets none.
///
/// - Parameters:
///   - dy: `[tokens, outFeatures]`.
///   - dx: `[tokens, inFeatures]`. Must not overlap `dy`.
package func linearBackward(
    _ dy: Tensor, _ weight: QuantizedMatrix, into dx: Tensor, _ accumulation: Accumulation = .overwrite,
    on pool: WorkerPool
) {
    precondition(dy.columns == weight.outFeatures && dx.columns == weight.inFeatures && dx.rows == dy.rows)
    let pieces = ProductPieces(columns: weight.inFeatures, tokens: dy.rows, unit: weight.format.blockElements)
    var set = pool.kernels.raw
    var matrix = weight.raw
    withUnsafePointer(to: &set) { set in
        withUnsafePointer(to: &matrix) { matrix in
            pool.run(pieces.count) { piece, scratch in
                let (columns, tokens) = pieces(piece)
                edge_product_backward(
                    set, matrix, dy.row(tokens.lowerBound), dy.columns, tokens.count, dx.row(tokens.lowerBound),
                    dx.columns, columns.lowerBound, columns.count, accumulation == .add, scratch)
            }
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
    var set = pool.kernels.raw
    var matrix = weight.raw
    withUnsafePointer(to: &set) { set in
        withUnsafePointer(to: &matrix) { matrix in
            pool.run((weight.outFeatures + slice - 1) / slice) { piece, scratch in
                let first = piece * slice
                edge_product_vector(
                    set, matrix, x.base, y.base, first, min(slice, weight.outFeatures - first), accumulation == .add, scratch)
            }
        }
    }
}

/// dw += scale · dyᵀ · x: the gradient of a small dense matrix, contracted over tokens.
///
/// - Parameters:
///   - dy: `[tokens, outFeatures]`.
///   - x: `[tokens, inFeatures]`.
///   - dw: `[outFeatures, inFeatures]`.
package func addOuterProduct(_ dy: Tensor, _ x: Tensor, scale: Float, into dw: Tensor, on pool: WorkerPool) {
    precondition(dy.rows == x.rows && dw.rows == dy.columns && dw.columns == x.columns)
    // Cut along the longer side: the other one is the adapter's rank.
    let chunk = 128
    if dw.columns >= dw.rows {
        pool.run((dw.columns + chunk - 1) / chunk) { piece, _ in
            let first = piece * chunk
            cblas_sgemm(
                CblasRowMajor, CblasTrans, CblasNoTrans, Int32(dw.rows), Int32(min(chunk, dw.columns - first)),
                Int32(x.rows), scale, dy.base, Int32(dy.columns), x.base + first, Int32(x.columns), 1, dw.base + first,
                Int32(dw.columns))
        }
    } else {
        pool.run((dw.rows + chunk - 1) / chunk) { piece, _ in
            let first = piece * chunk
            cblas_sgemm(
                CblasRowMajor, CblasTrans, CblasNoTrans, Int32(min(chunk, dw.rows - first)), Int32(dw.columns),
                Int32(x.rows), scale, dy.base + first, Int32(dy.columns), x.base, Int32(x.columns), 1, dw.row(first),
                Int32(dw.columns))
        }
    }
}

/// Makes OpenBLAS run on the calling thread only: the pool's threads call it on parts that do not depend on their
/// number. Call once, before any product.
package func useCallingThreadForDenseProducts() { openblas_set_num_threads(1) }
