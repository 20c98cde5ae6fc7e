// Rows of activations as they are stored between epochs: fewer bytes than f32, and exact from the second rounding on.

/// How a value of a layer's output is stored.
package enum ActivationFormat: String, Sendable, CaseIterable {
    case bf16
    /// 8 bits, with an f32 scale per row: its largest magnitude is 127 of them.
    case int8

    package func rowBytes(_ columns: Int) -> Int { self == .bf16 ? 2 * columns : columns + 4 }

    /// Rounds rows in place, and leaves what they are stored as in `bytes`, of which there are `rowBytes` for each.
    package func encode(_ rows: Tensor, into bytes: UnsafeMutableRawPointer, on pool: WorkerPool) {
        switch self {
        case .bf16: roundToBF16(rows, into: bytes.assumingMemoryBound(to: UInt16.self), on: pool)
        case .int8:
            pool.run(rowPieces(rows.rows), as: .elementwise, .pass(rows.count, streams: 2, flopEach: 4)) { piece, _ in
                for row in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, rows.rows) {
                    encodeInt8(rows.row(row), rows.columns, into: bytes + row * rowBytes(rows.columns))
                }
            }
        }
        decode(bytes, into: rows, on: pool)
    }

    private func encodeInt8(_ values: UnsafePointer<Float>, _ columns: Int, into bytes: UnsafeMutableRawPointer) {
        var largest: Float = 0
        var isFinite = true
        for i in 0..<columns {
            largest = max(largest, abs(values[i]))
            isFinite = isFinite && values[i].isFinite
        }
        // What is not a number has no code, so its row has none.
        let scale = isFinite ? largest / 127 : .nan
        bytes.storeBytes(of: scale, as: Float.self)
        let codes = (bytes + 4).assumingMemoryBound(to: Int8.self)
        guard isFinite, largest > 0 else {
            codes.update(repeating: 0, count: columns)
            return
        }
        for i in 0..<columns { codes[i] = Int8(max(-127, min(127, (values[i] / scale).rounded(.toNearestOrEven)))) }
    }

    package func decode(_ bytes: UnsafeRawPointer, into rows: Tensor, on pool: WorkerPool) {
        switch self {
        case .bf16: expandBF16(bytes.assumingMemoryBound(to: UInt16.self), into: rows, on: pool)
        case .int8:
            pool.run(rowPieces(rows.rows), as: .elementwise, .pass(rows.count, streams: 2, flopEach: 1)) { piece, _ in
                for row in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, rows.rows) {
                    let values = rows.row(row), stored = bytes + row * rowBytes(rows.columns)
                    let scale = stored.loadUnaligned(as: Float.self), codes = (stored + 4).assumingMemoryBound(to: Int8.self)
                    for i in 0..<rows.columns { values[i] = scale * Float(codes[i]) }
                }
            }
        }
    }
}
