// One blocked product on the calling thread: what the pieces of linear layers, adapters and attention are made of.
import CEdgeKernels

/// `edge_product_forward` or `edge_product_backward`.
typealias ProductKernel = @convention(c) (
    UnsafePointer<edge_kernel_set>?, UnsafePointer<edge_matrix>?, UnsafePointer<edge_left>?, Int,
    UnsafeMutablePointer<Float>?, Int, Int, Int, Bool, UnsafeMutablePointer<Float>?
) -> Void

extension WorkerPool {
    /// `columns` of the result, at most EDGE_SLICE_COLUMNS of them.
    ///
    /// - Parameters:
    ///   - y: the first row, at column 0.
    ///   - scratch: EDGE_PRODUCT_SCRATCH floats.
    func product(
        _ kernel: ProductKernel, _ right: edge_matrix, _ left: edge_left, _ rows: Int, into y: UnsafeMutablePointer<Float>,
        _ stride: Int, _ columns: Range<Int>, _ accumulation: Accumulation, _ scratch: UnsafeMutablePointer<Float>
    ) {
        withUnsafePointer(to: right) { right in
            withUnsafePointer(to: left) { left in
                kernel(
                    kernels.pointer, right, left, rows, y, stride, columns.lowerBound, columns.count,
                    accumulation == .add, scratch)
            }
        }
    }

    /// All of a result with `columns` columns, slice by slice.
    func productSlices(
        _ kernel: ProductKernel, _ right: edge_matrix, _ left: edge_left, _ rows: Int, into y: UnsafeMutablePointer<Float>,
        _ stride: Int, columns: Int, _ accumulation: Accumulation, _ scratch: UnsafeMutablePointer<Float>
    ) {
        for first in Swift.stride(from: 0, to: columns, by: Int(EDGE_SLICE_COLUMNS)) {
            product(
                kernel, right, left, rows, into: y, stride, first..<min(first + Int(EDGE_SLICE_COLUMNS), columns),
                accumulation, scratch)
        }
    }
}

/// A part of a row-major f32 matrix, as either operand of a product.
struct DenseBlock {
    let base: UnsafeMutablePointer<Float>
    let stride: Int
    let rows: Int
    let columns: Int

    init(_ base: UnsafeMutablePointer<Float>, stride: Int, rows: Int, columns: Int) {
        self.base = base
        self.stride = stride
        self.rows = rows
        self.columns = columns
    }

    func columns(_ range: Range<Int>) -> DenseBlock {
        DenseBlock(base + range.lowerBound, stride: stride, rows: rows, columns: range.count)
    }

    /// `rows` of a tensor, `columns` from `column` on.
    init(_ tensor: Tensor, rows: Range<Int>, column: Int, columns: Int) {
        self.init(tensor.row(rows.lowerBound) + column, stride: tensor.columns, rows: rows.count, columns: columns)
    }

    private var strideBytes: Int { stride * MemoryLayout<Float>.stride }

    var right: edge_matrix {
        edge_matrix(blocks: base, row_bytes: strideBytes, rows: rows, columns: columns, format: EDGE_FORMAT_f32,
            absmax_codes: nil, absmax: nil, nested_offset: 0, first_block: 0)
    }
    var left: edge_left {
        edge_left(
            compute: EDGE_COMPUTE_f32, rows: base, stride: strideBytes, step: MemoryLayout<Float>.stride, scales: nil,
            offsets: nil, blocks: 0, smoothing: nil)
    }
    var transposedLeft: edge_left {
        edge_left(
            compute: EDGE_COMPUTE_f32, rows: base, stride: MemoryLayout<Float>.stride, step: strideBytes, scales: nil,
            offsets: nil, blocks: 0, smoothing: nil)
    }
}

extension WorkerPool {
    /// y (+)= a · bᵀ: a `[rows, k]`, b `[columns, k]`.
    func multiply(
        _ a: DenseBlock, byTransposed b: DenseBlock, into y: DenseBlock, _ accumulation: Accumulation,
        _ scratch: UnsafeMutablePointer<Float>
    ) {
        productSlices(
            edge_product_forward, b.right, a.left, a.rows, into: y.base, y.stride, columns: b.rows, accumulation, scratch)
    }

    /// y (+)= a · b: a `[rows, k]`, b `[k, columns]`.
    func multiply(
        _ a: DenseBlock, by b: DenseBlock, into y: DenseBlock, _ accumulation: Accumulation,
        _ scratch: UnsafeMutablePointer<Float>
    ) {
        productSlices(
            edge_product_backward, b.right, a.left, a.rows, into: y.base, y.stride, columns: b.columns, accumulation,
            scratch)
    }

    /// y (+)= aᵀ · b: a `[k, rows]`, b `[k, columns]`.
    func multiply(
        transposed a: DenseBlock, by b: DenseBlock, into y: DenseBlock, _ accumulation: Accumulation,
        _ scratch: UnsafeMutablePointer<Float>
    ) {
        productSlices(
            edge_product_backward, b.right, a.transposedLeft, a.columns, into: y.base, y.stride, columns: b.columns,
            accumulation, scratch)
    }
}
