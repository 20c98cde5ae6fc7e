// Matrices of every format with their values, and what products of rounded operands should give.
import CEdgeKernels
import EdgeTensor

/// A frozen matrix with its decoded values.
struct FrozenMatrix {
    let matrix: QuantizedMatrix
    /// `[rows, columns]`, as the portable decoder has them.
    let values: Tensor

    /// - Parameter columns: rounded up to whole blocks.
    init(_ format: QuantFormat, rows: Int, columns least: Int, arena: Arena, seed: UInt64) {
        let unit = format.blockElements
        let columns = (least + unit - 1) / unit * unit
        var random = Values(seed: seed)
        values = arena.tensor(rows, columns)
        let rowBytes = format.byteCount(of: columns)
        let blocks = UnsafeMutableRawPointer(arena.floats((rows * rowBytes + 3) / 4))
        if let encode = format.encoder {
            random.fill(values)
            for row in 0..<rows { encode(values.row(row), blocks + row * rowBytes, columns) }
        } else {
            let known = SomeBlocks(format)
            for block in 0..<rows * columns / unit { known.copy(&random, to: blocks + block * format.blockBytes) }
        }
        if format.hasAbsmaxBeside {
            matrix = QuantizedMatrix(
                blocks.assumingMemoryBound(to: UInt8.self), format: format,
                absmax: Self.absmax(blocks: rows * columns / unit, isNested: seed % 2 == 0, arena, &random),
                outFeatures: rows, inFeatures: columns)
        } else {
            matrix = QuantizedMatrix(blocks, format: format, outFeatures: rows, inFeatures: columns)
        }
        let pool = WorkerPool(kernels: KernelSet.supported[0], threadCount: 1, scratchFloats: 0, arena: arena)
        decodeRows(matrix, (0..<Int32(rows)).map { $0 }, into: values, on: pool)
    }

    private static func absmax(blocks: Int, isNested: Bool, _ arena: Arena, _ random: inout Values) -> Absmax {
        guard isNested else {
            let absmax = arena.floats(blocks)
            for block in 0..<blocks { absmax[block] = 1 + random.value() }
            return .plain(absmax)
        }
        let codes = UnsafeMutableRawPointer(arena.floats((blocks + 3) / 4)).assumingMemoryBound(to: UInt8.self)
        let nested = arena.floats(blocks / Absmax.nestedBlock + 1)
        for block in 0..<blocks { codes[block] = UInt8(truncatingIfNeeded: Int(random.value() * 128)) }
        for i in 0...blocks / Absmax.nestedBlock { nested[i] = 0.25 + 0.125 * Float(i % 3) }
        return .nested(codes: codes, absmax: nested, offset: 0.75)
    }
}

/// Blocks of random bytes whose values are of a weight's size: for formats that nothing writes.
struct SomeBlocks {
    private let format: QuantFormat
    private var bytes: [UInt8] = []
    private static let count = 64

    init(_ format: QuantFormat) {
        self.format = format
        let random = RandomSource(seed: 23, .sampling, UInt64(format.raw.rawValue))
        var values = [Float](repeating: 0, count: format.blockElements)
        var next = 0
        while bytes.count < Self.count * format.blockBytes {
            let block = (0..<format.blockBytes).map { UInt8(truncatingIfNeeded: random.bits(next + $0)) }
            next += block.count
            edge_quant_format(format.raw).pointee.decode(block, 0, &values, values.count)
            // Of random scales many are infinite, or next to nothing.
            if values.allSatisfy(\.isFinite), (0x1p-4...0x1p4).contains(values.map(abs).max()!) { bytes += block }
        }
    }

    /// One of them.
    func copy(_ random: inout Values, to block: UnsafeMutableRawPointer) {
        let index = Int((random.value() + 1) * Float(Self.count / 2))
        bytes.withUnsafeBytes {
            block.copyMemory(from: $0.baseAddress! + index * format.blockBytes, byteCount: format.blockBytes)
        }
    }
}

/// An operand as a product in `type` sees it: `[rows][contracted]`, exact in f64.
func rounded(_ type: ComputeType, rows: Int, contracted: Int, _ value: (_ row: Int, _ k: Int) -> Float) -> [[Double]] {
    (0..<rows).map { row in
        switch type {
        case .f32: (0..<contracted).map { Double(value(row, $0)) }
        case .bf16:
            (0..<contracted).map {
                let bits = value(row, $0).bitPattern
                return Double(Float(bitPattern: (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000))
            }
        case .f16:
            stride(from: 0, to: contracted, by: Int(EDGE_INT8_BLOCK)).flatMap { first in
                let block = (first..<min(first + Int(EDGE_INT8_BLOCK), contracted)).map { value(row, $0) }
                let largest = block.map(abs).max()!
                let factor = largest > 0x1p-100 ? 1 / largest : 0
                return block.map { value in
                    let unit = Double(value * factor)
                    let place = Double(sign: .plus, exponent: max(unit.exponent, -14) - 10, significand: 1)
                    return unit == 0 ? 0 : (unit / place).rounded(.toNearestOrEven) * place * Double(largest)
                }
            }
        case .int8:
            stride(from: 0, to: contracted, by: Int(EDGE_INT8_BLOCK)).flatMap { first in
                let block = (first..<min(first + Int(EDGE_INT8_BLOCK), contracted)).map { value(row, $0) }
                let largest = block.map(abs).max()!
                let factor = largest > 0x1p-100 ? 127 / largest : 0
                return block.map { Double(($0 * factor).rounded(.toNearestOrEven)) * Double(largest / 127) }
            }
        }
    }
}

/// γ_k = k·u / (1 - k·u) times Σ|a·b| bounds any order of an f32 sum of k products (Higham, *Accuracy and Stability*,
/// §3.1); a block in 8 bits is exact and adds three roundings of its own.
func sumBound(_ terms: Int, _ magnitude: Double, _ type: ComputeType = .f32) -> Double {
    // A chain of binary16, whose last place is 2^13 of binary32's.
    let ku = Double(terms + 4 + (type == .f16 ? Int(EDGE_F16_CHAIN) << 13 : 0)) * 0x1p-24
    return ku / (1 - ku) * magnitude + 1e-30
}
