// A frozen matrix in blocks of 2 to 32 bits a value: a view of mapped file bytes that nothing ever writes.
import CEdgeKernels

/// How the values of a matrix are stored; the list is CEdgeKernels' quant_formats.def.
package struct QuantFormat: Equatable, Hashable, Sendable {
    package let raw: edge_format

    /// Nil when no kernel decodes this ggml type.
    package init?(ggmlType: UInt32) {
        raw = edge_format_of_ggml_type(ggmlType)
        guard raw != EDGE_FORMAT_COUNT, ggmlType != UInt32.max else { return nil }
    }

    fileprivate init(_ raw: edge_format) { self.raw = raw }
    package static let f32 = QuantFormat(EDGE_FORMAT_f32)
    package static let f16 = QuantFormat(EDGE_FORMAT_f16)
    package static let bf16 = QuantFormat(EDGE_FORMAT_bf16)
    package static let q4_0 = QuantFormat(EDGE_FORMAT_q4_0)
    package static let q4_1 = QuantFormat(EDGE_FORMAT_q4_1)
    package static let q8_0 = QuantFormat(EDGE_FORMAT_q8_0)
    package static let nf4 = QuantFormat(EDGE_FORMAT_nf4)
    package static let fp4 = QuantFormat(EDGE_FORMAT_fp4)
    package static var all: [QuantFormat] { (0..<EDGE_FORMAT_COUNT.rawValue).map { QuantFormat(edge_format($0)) } }

    package var name: String { String(cString: edge_quant_format(raw).pointee.name).uppercased() }
    package var ggmlType: UInt32 { edge_quant_format(raw).pointee.ggml_type }
    package var blockElements: Int { Int(edge_quant_format(raw).pointee.block_elements) }
    package var blockBytes: Int { Int(edge_quant_format(raw).pointee.block_bytes) }
    /// Values that are decoded together; a block, or less of a long one.
    package var unitElements: Int { Int(edge_quant_format(raw).pointee.unit_elements) }
    /// NF4 and FP4: an `Absmax` beside the blocks.
    package var hasAbsmaxBeside: Bool { edge_quant_format(raw).pointee.levels != nil }
    /// No value beyond it can be written; what scales a block is a binary16, as F16's values are.
    package var largestMagnitude: Float { self == .f32 || self == .bf16 ? 0x1.FEp127 : 65504 }
    /// Writes whole blocks, values rounded to nearest. Nil: the format is read, and never written.
    package var encoder: edge_encode_fn? { edge_quant_format(raw).pointee.encode }

    /// Whether all values of a block can be multiplied while its codes stay: its scales are binary16, or it is one F32 value.
    package var hasBlockScales: Bool { edge_has_block_scales(raw) }

    /// Multiplies the values of whole blocks, each scale rounded to nearest.
    ///
    /// - Returns: false where a scale is not finite any more.
    package func scale(_ blocks: UnsafeMutableRawPointer, values: Int, by factor: Float) -> Bool {
        precondition(hasBlockScales && values % blockElements == 0)
        return edge_scale_blocks(raw, blocks, values / blockElements, factor)
    }

    package func byteCount(of values: Int) -> Int { values / blockElements * blockBytes }
}

/// Rows of a matrix parted so that products over the parts, one after the other, give the bits of one over the whole:
/// `edge_panel_depth` of each is that of the whole. One part where that cannot be.
package func headSliceRanges(rows: Int, mostRows: Int) -> [Range<Int>] {
    let pass = edge_panel_depth(rows)
    func keepsPasses(_ count: Int) -> Bool { count <= pass || edge_panel_depth(count) == pass }
    let passes = (1...max(1, mostRows / pass)).last { keepsPasses($0 * pass) && keepsPasses(rows % ($0 * pass)) }
    guard let slice = passes.map({ $0 * pass }), slice < rows else { return [0..<rows] }
    return stride(from: 0, to: rows, by: slice).map { $0..<min($0 + slice, rows) }
}

/// The scales of NF4 and FP4, which lie beside their blocks; numbered in the order of the blocks.
package enum Absmax {
    /// One per block of 64.
    case plain(UnsafePointer<Float>)
    /// In 8 bits of bitsandbytes' signed dynamic map (double quantisation).
    ///
    /// - Parameters:
    ///   - codes: one per block of 64.
    ///   - absmax: one per `nestedBlock` codes.
    ///   - offset: the mean that was taken off the absmax values.
    case nested(codes: UnsafePointer<UInt8>, absmax: UnsafePointer<Float>, offset: Float)

    /// Codes that share an absmax of their own.
    package static let nestedBlock = Int(EDGE_NESTED_BLOCK)
}

/// `[outFeatures, inFeatures]`; blocks run along `inFeatures`.
package struct QuantizedMatrix {
    package private(set) var raw: edge_matrix
    package var outFeatures: Int { raw.rows }
    package var inFeatures: Int { raw.columns }
    package var format: QuantFormat { QuantFormat(raw.format) }
    /// Blocks, and the scales beside them.
    package var byteCount: Int {
        let blocks = format.hasAbsmaxBeside ? outFeatures * inFeatures / format.blockElements : 0
        let absmax = raw.absmax_codes == nil ? 4 * blocks : blocks + 4 * ((blocks + Absmax.nestedBlock - 1) / Absmax.nestedBlock)
        return raw.rows * raw.row_bytes + absmax
    }
    package var rowBytes: Int { raw.row_bytes }
    package var blocks: UnsafeRawPointer { raw.blocks }
    /// The same matrix, its blocks and the scales beside them being where `place` says.
    package func moved(_ place: (UnsafeRawPointer) -> UnsafeRawPointer) -> QuantizedMatrix {
        var matrix = self
        matrix.raw.blocks = place(raw.blocks)
        matrix.raw.absmax_codes = raw.absmax_codes.map { place($0).assumingMemoryBound(to: UInt8.self) }
        matrix.raw.absmax = raw.absmax.map { place($0).assumingMemoryBound(to: Float.self) }
        return matrix
    }
    /// The same matrix with its blocks copied to elsewhere; the scales beside them stay where they are.
    func moved(to blocks: UnsafeRawPointer) -> QuantizedMatrix {
        var matrix = self
        matrix.raw.blocks = blocks
        return matrix
    }
    /// Some of the rows.
    package func rows(_ range: Range<Int>) -> QuantizedMatrix {
        precondition(range.lowerBound >= 0 && range.upperBound <= outFeatures)
        var matrix = self
        matrix.raw.blocks += range.lowerBound * rowBytes
        matrix.raw.rows = range.count
        if format.hasAbsmaxBeside { matrix.raw.first_block += range.lowerBound * inFeatures / format.blockElements }
        return matrix
    }

    /// - Precondition: `inFeatures` is a multiple of the format's block and `blocks` holds all rows, as the file's
    ///   reader has checked.
    package init(_ blocks: UnsafeRawPointer, format: QuantFormat, outFeatures: Int, inFeatures: Int) {
        precondition(!format.hasAbsmaxBeside, "\(format.name) has its scales beside its blocks")
        self.init(blocks, format, outFeatures, inFeatures, nil)
    }

    /// NF4 or FP4 in bitsandbytes' layout.
    ///
    /// - Parameter codes: `[outFeatures, inFeatures / 2]` bytes, the first value of two in the high nibble.
    /// - Precondition: `inFeatures` is a multiple of 64, so that no block has values of two rows.
    package init(_ codes: UnsafePointer<UInt8>, format: QuantFormat, absmax: Absmax, outFeatures: Int, inFeatures: Int) {
        precondition(format.hasAbsmaxBeside, "\(format.name) has its scales within its blocks")
        self.init(codes, format, outFeatures, inFeatures, absmax)
    }

    private init(
        _ blocks: UnsafeRawPointer, _ format: QuantFormat, _ outFeatures: Int, _ inFeatures: Int, _ absmax: Absmax?
    ) {
        precondition(inFeatures % format.blockElements == 0, "\(inFeatures) values are not whole blocks of \(format.name)")
        raw = edge_matrix(
            blocks: blocks, row_bytes: format.byteCount(of: inFeatures), rows: outFeatures, columns: inFeatures,
            format: format.raw, absmax_codes: nil, absmax: nil, nested_offset: 0, first_block: 0)
        switch absmax {
        case nil: break
        case .plain(let values): raw.absmax = values
        case .nested(let codes, let values, let offset):
            (raw.absmax_codes, raw.absmax, raw.nested_offset) = (codes, values, offset)
        }
    }

    /// A dense f32 matrix, read through the same products.
    package init(_ dense: Tensor) {
        self.init(dense.base, format: .f32, outFeatures: dense.rows, inFeatures: dense.columns)
    }
}
