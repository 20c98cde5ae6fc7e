// A frozen matrix in 4-bit blocks (or 8, 16, 32 bits): a view of mapped file bytes that nothing ever writes.
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
    package static let nf4 = QuantFormat(EDGE_FORMAT_nf4)
    package static var all: [QuantFormat] { (0..<EDGE_FORMAT_COUNT.rawValue).map { QuantFormat(edge_format($0)) } }

    package var name: String { String(cString: edge_quant_format(raw).pointee.name).uppercased() }
    package var ggmlType: UInt32 { edge_quant_format(raw).pointee.ggml_type }
    package var blockElements: Int { Int(edge_quant_format(raw).pointee.block_elements) }
    package var blockBytes: Int { Int(edge_quant_format(raw).pointee.block_bytes) }

    package func byteCount(of values: Int) -> Int { values / blockElements * blockBytes }
}

/// Rows of a matrix parted so that products over the parts, one after the other, give the bits of one over the whole:
/// `edge_panel_depth` of each is that of the whole. One part where that cannot be.
package func headSliceRanges(rows: Int, mostRows: Int, canBeParted: Bool) -> [Range<Int>] {
    let pass = edge_panel_depth(rows)
    func keepsPasses(_ count: Int) -> Bool { count <= pass || edge_panel_depth(count) == pass }
    let passes = (1...max(1, mostRows / pass)).last { keepsPasses($0 * pass) && keepsPasses(rows % ($0 * pass)) }
    guard canBeParted, let slice = passes.map({ $0 * pass }), slice < rows else { return [0..<rows] }
    return stride(from: 0, to: rows, by: slice).map { $0..<min($0 + slice, rows) }
}

/// `[outFeatures, inFeatures]`; blocks run along `inFeatures`.
package struct QuantizedMatrix {
    package let raw: edge_matrix
    package var outFeatures: Int { raw.rows }
    package var inFeatures: Int { raw.columns }
    package var format: QuantFormat { QuantFormat(raw.format) }
    /// Blocks, and NF4's scales.
    package var byteCount: Int {
        let blocks = raw.absmax_codes == nil ? 0 : outFeatures * inFeatures / format.blockElements
        return raw.rows * raw.row_bytes + blocks + (blocks + Self.nestedBlock - 1) / Self.nestedBlock * 4
    }
    package var rowBytes: Int { raw.row_bytes }
    package var blocks: UnsafeRawPointer { raw.blocks }
    /// The same matrix, its blocks and scales being where `place` says.
    package func moved(_ place: (UnsafeRawPointer) -> UnsafeRawPointer) -> QuantizedMatrix {
        var moved = raw
        moved.blocks = place(raw.blocks)
        moved.absmax_codes = raw.absmax_codes.map { place($0).assumingMemoryBound(to: UInt8.self) }
        moved.nested_absmax = raw.nested_absmax.map { place($0).assumingMemoryBound(to: Float.self) }
        return QuantizedMatrix(moved)
    }
    private init(_ raw: edge_matrix) { self.raw = raw }
    /// Some of the rows. Not for NF4, whose scales are counted from the first block of the matrix.
    package func rows(_ range: Range<Int>) -> QuantizedMatrix {
        precondition(format != .nf4 && range.lowerBound >= 0 && range.upperBound <= outFeatures)
        return QuantizedMatrix(
            raw.blocks + range.lowerBound * rowBytes, format: format, outFeatures: range.count, inFeatures: inFeatures)
    }
    /// Blocks of NF4 whose absmax values share a nested absmax.
    package static let nestedBlock = Int(EDGE_NESTED_BLOCK)

    /// - Precondition: `inFeatures` is a multiple of the format's block and `blocks` holds all rows, as the file's
    ///   reader has checked.
    package init(_ blocks: UnsafeRawPointer, format: QuantFormat, outFeatures: Int, inFeatures: Int) {
        precondition(inFeatures % format.blockElements == 0, "\(inFeatures) values are not whole blocks of \(format.name)")
        precondition(format != .nf4, "NF4 has its scales beside its blocks")
        raw = edge_matrix(
            blocks: blocks, row_bytes: format.byteCount(of: inFeatures), rows: outFeatures, columns: inFeatures,
            format: format.raw, absmax_codes: nil, nested_absmax: nil, nested_offset: 0)
    }

    /// NF4 with double quantisation, in bitsandbytes' layout.
    ///
    /// - Parameters:
    ///   - codes: `[outFeatures, inFeatures / 2]` bytes.
    ///   - absmaxCodes: one per block of 64, in the order of the codes.
    ///   - nestedAbsmax: one per `nestedBlock` blocks.
    ///   - nestedOffset: the mean that was taken off the absmax values.
    package init(
        nf4 codes: UnsafePointer<UInt8>, absmaxCodes: UnsafePointer<UInt8>, nestedAbsmax: UnsafePointer<Float>,
        nestedOffset: Float, outFeatures: Int, inFeatures: Int
    ) {
        precondition(inFeatures % QuantFormat.nf4.blockElements == 0, "\(inFeatures) values are not whole blocks of NF4")
        raw = edge_matrix(
            blocks: codes, row_bytes: inFeatures / 2, rows: outFeatures, columns: inFeatures, format: EDGE_FORMAT_nf4,
            absmax_codes: absmaxCodes, nested_absmax: nestedAbsmax, nested_offset: nestedOffset)
    }

    /// A dense f32 matrix, read through the same products.
    package init(_ dense: Tensor) {
        self.init(dense.base, format: .f32, outFeatures: dense.rows, inFeatures: dense.columns)
    }
}
