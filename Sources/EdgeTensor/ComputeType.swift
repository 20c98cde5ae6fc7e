// The types that products with frozen weights are computed in, and a left operand rounded to one of them.
import CEdgeKernels

/// Sums are f32 in all of them; adapters, attention, norms and the optimizer are f32 always.
package enum ComputeType: String, CaseIterable, Sendable {
    case f32
    /// Both operands rounded to bfloat16.
    case bf16
    /// Both operands scaled like int8's and rounded to binary16, with sums of 32 products in binary16.
    case f16
    /// Both operands rounded to 8 bits, with a scale per token and 64 contracted elements, and per output and 64.
    case int8

    package var raw: edge_compute {
        switch self {
        case .f32: EDGE_COMPUTE_f32
        case .bf16: EDGE_COMPUTE_bf16
        case .f16: EDGE_COMPUTE_f16
        case .int8: EDGE_COMPUTE_int8
        }
    }

    init(_ raw: edge_compute) {
        self = Self.allCases.first { $0.raw == raw }!  // one case for each of the header's
    }
}

/// `[rows, columns]` as the kernels take it on the left of a product.
package struct LeftOperand {
    let raw: edge_left
    package let rows: Int
    package let columns: Int

    /// The tensor itself, in f32.
    package init(_ x: Tensor) {
        raw = edge_left(
            compute: EDGE_COMPUTE_f32, rows: x.base, stride: x.columns * MemoryLayout<Float>.stride,
            step: MemoryLayout<Float>.stride, scales: nil, offsets: nil, blocks: 0, smoothing: nil)
        rows = x.rows
        columns = x.columns
    }

    fileprivate init(_ raw: edge_left, rows: Int, columns: Int) {
        self.raw = raw
        self.rows = rows
        self.columns = columns
    }

    /// The rows from `first` on.
    func from(_ first: Int) -> edge_left {
        withUnsafePointer(to: raw) { edge_left_at($0, first, 0) }
    }

    /// Some of the columns, from a whole block of the compute types on.
    package func columns(_ range: Range<Int>) -> LeftOperand {
        precondition(range.lowerBound % Int(EDGE_INT8_BLOCK) == 0 && range.upperBound <= columns)
        return LeftOperand(
            withUnsafePointer(to: raw) { edge_left_at($0, 0, range.lowerBound) }, rows: rows, columns: range.count)
    }
}

/// Memory for the left operands of one product, used again by the next. With f32 there is none: tensors are taken as
/// they are.
///
/// `@unchecked Sendable`: `unrounded` has no memory.
package struct RoundedRows: @unchecked Sendable {
    package let type: ComputeType
    private let base: UnsafeMutableRawPointer?
    private let capacity: ByteCount

    private static func blocks(_ columns: Int) -> Int { (columns + Int(EDGE_INT8_BLOCK) - 1) / Int(EDGE_INT8_BLOCK) }

    /// Of one operand.
    private static func bytes(
        _ type: ComputeType, rows: Int, columns: Int
    ) -> (codes: ByteCount, scales: ByteCount, offsets: ByteCount) {
        let codes = ByteCount.wholeLines(rows * edge_left_stride(type.raw, columns)), perBlock = ByteCount.floats(rows * blocks(columns))
        return switch type {
        case .f32: (.zero, .zero, .zero)
        case .bf16: (codes, .zero, .zero)
        case .f16: (codes, perBlock, .zero)
        case .int8: (codes, perBlock, perBlock)
        }
    }

    /// For operands of `widths` columns that one product takes together.
    package static func bytes(_ type: ComputeType, rows: Int, widths: [Int]) -> ByteCount {
        widths.reduce(.zero) { sum, columns in
            let (codes, scales, offsets) = bytes(type, rows: rows, columns: columns)
            return sum + codes + scales + offsets
        }
    }

    /// - Parameter capacity: the largest of `bytes(_:rows:widths:)` over the products.
    package init(_ type: ComputeType, capacity: ByteCount, arena: Arena) {
        self.type = type
        self.capacity = capacity
        base = type == .f32 ? nil : arena.bytes(capacity).baseAddress
    }

    /// Takes tensors as they are.
    package static let unrounded = RoundedRows()
    private init() {
        type = .f32
        capacity = .zero
        base = nil
    }

    /// Rounded copies, valid until the next call.
    ///
    /// - Parameter smoothing: `[columns]`, what channels that stand out are divided by in int8; the forward product multiplies
    ///   the weights with it. Constant for a run, so that a token's codes do not depend on the rest of the batch.
    package func callAsFunction(
        _ tensors: [Tensor], smoothing: UnsafePointer<Float>? = nil, on pool: WorkerPool
    ) -> [LeftOperand] {
        guard let base else { return tensors.map { LeftOperand($0) } }
        var used = 0
        let operands = tensors.map { x in
            let (codes, scales, offsets) = Self.bytes(type, rows: x.rows, columns: x.columns)
            defer { used += (codes + scales + offsets).bytes }
            precondition(used + (codes + scales + offsets).bytes <= capacity.bytes, "operands larger than planned")
            let raw = edge_left(
                compute: type.raw, rows: base + used, stride: edge_left_stride(type.raw, x.columns),
                step: type == .int8 ? 1 : 2, scales: (base + used + codes.bytes).assumingMemoryBound(to: Float.self),
                offsets: (base + used + codes.bytes + scales.bytes).assumingMemoryBound(to: Int32.self),
                blocks: Self.blocks(x.columns),
                smoothing: type == .int8 ? smoothing : nil)
            return LeftOperand(raw, rows: x.rows, columns: x.columns)
        }
        let kernel = pool.kernels.roundRows(type)
        let pieces = rowPieces(tensors[0].rows)
        let count = tensors.reduce(0) { $0 + $1.count }
        pool.perform(.rounding, OperationCost(flop: Double(3 * count), bytes: Double(5 * count))) {
            pool.run(pieces * tensors.count) { piece, _ in
                let (x, first) = (tensors[piece / pieces], piece % pieces * elementwiseRows)
                guard first < x.rows else { return }
                let part = operands[piece / pieces].from(first)
                kernel(
                    x.row(first), x.columns, min(elementwiseRows, x.rows - first), x.columns,
                    UnsafeMutableRawPointer(mutating: part.rows), part.stride, UnsafeMutablePointer(mutating: part.scales),
                    UnsafeMutablePointer(mutating: part.offsets), part.blocks, part.smoothing)
            }
        }
        return operands
    }
}

/// smoothing[j] becomes the root of column j's largest magnitude, if that is more than it is: what int8 products of inputs like x
/// divide the column by (SmoothQuant, arXiv:2211.10438 §4, with the strength at one half).
///
/// - Parameters:
///   - x: `[tokens, columns]`.
///   - smoothing: `[columns]`; zeros before the first call.
package func measureSmoothing(_ x: Tensor, into smoothing: UnsafeMutablePointer<Float>, on pool: WorkerPool) {
    let kernel = pool.kernels.raw.smooth_columns!
    let columns = 128
    pool.run((x.columns + columns - 1) / columns, as: .rounding, .pass(x.count, streams: 1, flopEach: 1)) { piece, found in
        let first = piece * columns
        let count = min(columns, x.columns - first)
        kernel(x.base + first, x.columns, x.rows, count, found)
        for i in 0..<count { smoothing[first + i] = max(smoothing[first + i], found[i]) }
    }
}
