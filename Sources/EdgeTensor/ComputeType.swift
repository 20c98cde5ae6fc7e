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

    /// Of one operand; with int8 there are scales, offsets and the smoothing, of which f16 needs the scales only.
    private static func bytes(
        _ type: ComputeType, rows: Int, columns: Int
    ) -> (codes: ByteCount, scales: ByteCount, smoothing: ByteCount) {
        func padded(_ bytes: Int) -> ByteCount { .floats((bytes + 3) / 4) }
        return switch type {
        case .f32: (.zero, .zero, .zero)
        case .bf16: (padded(rows * edge_left_stride(type.raw, columns)), .zero, .zero)
        case .f16, .int8:
            (padded(rows * edge_left_stride(type.raw, columns)), .floats(rows * blocks(columns)), .floats(columns))
        }
    }

    /// For operands of `widths` columns that one product takes together.
    package static func bytes(_ type: ComputeType, rows: Int, widths: [Int]) -> ByteCount {
        widths.reduce(.zero) { sum, columns in
            let (codes, scales, smoothing) = bytes(type, rows: rows, columns: columns)
            return sum + codes + scales + scales + smoothing
        }
    }

    /// - Parameter capacity: the largest of `bytes(_:rows:widths:)` over the products.
    package init(_ type: ComputeType, capacity: ByteCount, arena: Arena) {
        self.type = type
        self.capacity = capacity
        base = type == .f32 ? nil : UnsafeMutableRawPointer(arena.floats(capacity.bytes / 4))
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
    /// - Parameter smoothing: whether channels that stand out are divided down, for the forward product to multiply the
    ///   weights with. A token's codes then depend on the other tokens of the batch.
    package func callAsFunction(_ tensors: [Tensor], smoothing: Bool = false, on pool: WorkerPool) -> [LeftOperand] {
        guard let base else { return tensors.map { LeftOperand($0) } }
        var used = 0
        let operands = tensors.map { x in
            let (codes, scales, factors) = Self.bytes(type, rows: x.rows, columns: x.columns)
            let afterScales = used + codes.bytes + 2 * scales.bytes
            defer { used = afterScales + factors.bytes }
            precondition(afterScales + factors.bytes <= capacity.bytes, "operands larger than planned")
            let smoothed = smoothing && type == .int8
            let raw = edge_left(
                compute: type.raw, rows: base + used, stride: edge_left_stride(type.raw, x.columns),
                step: type == .int8 ? 1 : 2, scales: (base + used + codes.bytes).assumingMemoryBound(to: Float.self),
                offsets: (base + used + codes.bytes + scales.bytes).assumingMemoryBound(to: Int32.self),
                blocks: Self.blocks(x.columns),
                smoothing: smoothed ? (base + afterScales).assumingMemoryBound(to: Float.self) : nil)
            return LeftOperand(raw, rows: x.rows, columns: x.columns)
        }
        let kernel = pool.kernels.roundRows(type)
        let pieces = rowPieces(tensors[0].rows)
        let count = tensors.reduce(0) { $0 + $1.count }
        pool.perform(.rounding, OperationCost(flop: Double(3 * count), bytes: Double(5 * count))) {
            for (x, operand) in zip(tensors, operands) { smooth(x, operand.raw, on: pool) }
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

    private func smooth(_ x: Tensor, _ raw: edge_left, on pool: WorkerPool) {
        guard let smoothing = UnsafeMutablePointer(mutating: raw.smoothing) else { return }
        let kernel = pool.kernels.raw.smooth_columns!
        let columns = 128
        pool.run((x.columns + columns - 1) / columns) { piece, _ in
            let first = piece * columns
            kernel(x.base + first, x.columns, x.rows, min(columns, x.columns - first), smoothing + first)
        }
    }
}
