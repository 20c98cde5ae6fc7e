// A frozen matrix in 4-bit blocks (or 8, 16, 32 bits): a view of mapped file bytes that nothing ever writes.
import CEdgeKernels

/// How the values of a matrix are stored; the list is CEdgeKernels' quant_formats.def.
package struct QuantFormat: Equatable, Hashable, Sendable {
    package let raw: edge_format

    /// Nil when no kernel decodes this ggml type.
    package init?(ggmlType: UInt32) {
        raw = edge_format_of_ggml_type(ggmlType)
        guard raw != EDGE_FORMAT_COUNT else { return nil }
    }

    private init(_ raw: edge_format) { self.raw = raw }
    package static let f32 = QuantFormat(EDGE_FORMAT_f32)
    package static var all: [QuantFormat] { (0..<EDGE_FORMAT_COUNT.rawValue).map { QuantFormat(edge_format($0)) } }

    package var name: String { String(cString: edge_quant_format(raw).pointee.name).uppercased() }
    package var ggmlType: UInt32 { edge_quant_format(raw).pointee.ggml_type }
    package var blockElements: Int { Int(edge_quant_format(raw).pointee.block_elements) }
    package var blockBytes: Int { Int(edge_quant_format(raw).pointee.block_bytes) }

    package func byteCount(of values: Int) -> Int { values / blockElements * blockBytes }
}

/// `[outFeatures, inFeatures]`; blocks run along `inFeatures`.
package struct QuantizedMatrix {
    package let raw: edge_matrix
    package var outFeatures: Int { raw.rows }
    package var inFeatures: Int { raw.columns }
    package var format: QuantFormat { QuantFormat(ggmlType: edge_quant_format(raw.format).pointee.ggml_type)! }
    package var byteCount: Int { raw.rows * raw.row_bytes }

    /// - Precondition: `inFeatures` is a multiple of the format's block and `blocks` holds all rows, as the file's
    ///   reader has checked.
    package init(_ blocks: UnsafeRawPointer, format: QuantFormat, outFeatures: Int, inFeatures: Int) {
        precondition(inFeatures % format.blockElements == 0, "\(inFeatures) values are not whole blocks of \(format.name)")
        raw = edge_matrix(
            blocks: blocks, row_bytes: format.byteCount(of: inFeatures), rows: outFeatures, columns: inFeatures,
            format: format.raw)
    }

    /// A dense f32 matrix, read through the same products.
    package init(_ dense: Tensor) {
        self.init(dense.base, format: .f32, outFeatures: dense.rows, inFeatures: dense.columns)
    }
}
