// Small operations on whole tensors: sums, dropout, decoded rows.
import CEdgeKernels
import Synchronization

/// y += scale · x, same shapes.
package func addScaled(_ x: Tensor, scale: Float = 1, to y: Tensor, on pool: WorkerPool) {
    precondition(x.count == y.count)
    let kernel = pool.kernels.raw.add_scaled!
    pool.run(rowPieces(x.rows), as: .elementwise, .pass(x.count, streams: 3, flopEach: 2)) { piece, _ in
        let first = piece * elementwiseRows
        kernel(x.row(first), y.row(first), min(elementwiseRows, x.rows - first) * x.columns, scale)
    }
}

/// Every row of y += x: a bias.
///
/// - Parameters:
///   - x: `[columns]`.
///   - y: `[tokens, columns]`.
package func addRows(_ x: UnsafePointer<Float>, to y: Tensor, on pool: WorkerPool) {
    let kernel = pool.kernels.raw.add_rows!
    pool.run(rowPieces(y.rows), as: .elementwise, .pass(y.count, streams: 2, flopEach: 1)) { piece, _ in
        let first = piece * elementwiseRows
        kernel(x, y.row(first), y.columns, min(elementwiseRows, y.rows - first), y.columns)
    }
}

/// Every row of y is multiplied by `scale`, element by element.
///
/// - Parameters:
///   - y: `[tokens, columns]`.
///   - scale: as many values as y has columns.
package func scaleColumns(_ y: Tensor, by scale: Tensor, on pool: WorkerPool) {
    precondition(scale.count == y.columns)
    pool.run(rowPieces(y.rows), as: .elementwise, .pass(y.count, streams: 2, flopEach: 1)) { piece, _ in
        for i in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, y.rows) {
            let row = y.row(i)
            for column in 0..<y.columns { row[column] *= scale.base[column] }
        }
    }
}

/// Every row of y += scale ⊙ that of x.
///
/// - Parameters:
///   - x, y: `[tokens, columns]`. Must not overlap.
///   - scale: as many values as y has columns.
package func addScaledColumns(_ x: Tensor, by scale: Tensor, to y: Tensor, on pool: WorkerPool) {
    precondition(scale.count == y.columns && x.columns == y.columns && x.rows == y.rows)
    pool.run(rowPieces(y.rows), as: .elementwise, .pass(y.count, streams: 3, flopEach: 2)) { piece, _ in
        for i in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, y.rows) {
            let (from, to) = (x.row(i), y.row(i))
            for column in 0..<y.columns { to[column] += scale.base[column] * from[column] }
        }
    }
}

/// sums += Σ over tokens of x: run by run, as `addOuterProduct` adds.
///
/// - Parameters:
///   - x: `[tokens, columns]`.
///   - parts: the samples in x, in order.
///   - sums: as many values as x has columns.
package func addColumnSums(_ x: Tensor, _ parts: [SamplePart], into sums: Tensor, on pool: WorkerPool) {
    precondition(sums.count == x.columns)
    let chunk = 256
    let runs = parts.flatMap(\.outerProductRuns)
    pool.run((x.columns + chunk - 1) / chunk, as: .adapterGradient, .pass(x.count, streams: 1, flopEach: 1)) { piece, scratch in
        let columns = piece * chunk..<min((piece + 1) * chunk, x.columns)
        let target = sums.base + columns.lowerBound
        for run in runs {
            scratch.update(repeating: 0, count: columns.count)
            for token in run.rows {
                let row = x.row(token) + columns.lowerBound
                for column in 0..<columns.count { scratch[column] += row[column] }
            }
            for column in 0..<columns.count { target[column] += scratch[column] }
        }
    }
}

/// sums += Σ over tokens of x ⊙ y: run by run, as `addOuterProduct` adds, so that the order depends on the samples alone.
///
/// - Parameters:
///   - x, y: `[tokens, columns]`.
///   - parts: the samples in x, in order.
///   - divisor: what each sum is divided by first; nil: 1.
///   - sums: as many values as x has columns.
package func addColumnProducts(
    _ x: Tensor, _ y: Tensor, _ parts: [SamplePart], over divisor: Tensor? = nil, into sums: Tensor, on pool: WorkerPool
) {
    precondition(x.rows == y.rows && x.columns == y.columns && sums.count == x.columns)
    let chunk = 256
    let runs = parts.flatMap(\.outerProductRuns)
    let cost = OperationCost.pass(x.count, streams: 2, flopEach: 2)
    pool.run((x.columns + chunk - 1) / chunk, as: .adapterGradient, cost) { piece, scratch in
        let columns = piece * chunk..<min((piece + 1) * chunk, x.columns)
        for run in runs {
            scratch.update(repeating: 0, count: columns.count)
            for token in run.rows {
                let (first, second) = (x.row(token) + columns.lowerBound, y.row(token) + columns.lowerBound)
                for column in 0..<columns.count { scratch[column] += first[column] * second[column] }
            }
            let target = sums.base + columns.lowerBound
            if let divisor {
                for column in 0..<columns.count { scratch[column] /= divisor.base[columns.lowerBound + column] }
            }
            for column in 0..<columns.count { target[column] += scratch[column] }
        }
    }
}

/// z = Σ of the columns of x whose number is the same modulo z's width.
///
/// - Parameters:
///   - x: `[tokens, columns]`.
///   - z: `[tokens, rank]`.
package func foldColumns(_ x: Tensor, into z: Tensor, on pool: WorkerPool) {
    precondition(x.rows == z.rows)
    pool.run(rowPieces(x.rows), as: .adapterProduct, .pass(x.count, streams: 1, flopEach: 1)) { piece, _ in
        for i in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, x.rows) {
            let (from, to) = (x.row(i), z.row(i))
            to.update(repeating: 0, count: z.columns)
            for first in stride(from: 0, to: x.columns, by: z.columns) {
                for column in 0..<min(z.columns, x.columns - first) { to[column] += from[first + column] }
            }
        }
    }
}

/// The gradient of `foldColumns`: every column of dx gets that of its sum.
package func addUnfolded(_ dz: Tensor, to dx: Tensor, on pool: WorkerPool) {
    precondition(dx.rows == dz.rows)
    pool.run(rowPieces(dx.rows), as: .adapterProduct, .pass(dx.count, streams: 2, flopEach: 1)) { piece, _ in
        for i in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, dx.rows) {
            let (from, to) = (dz.row(i), dx.row(i))
            for first in stride(from: 0, to: dx.columns, by: dz.columns) {
                for column in 0..<min(dz.columns, dx.columns - first) { to[first + column] += from[column] }
            }
        }
    }
}

/// Σ w² of every row of a frozen matrix.
///
/// - Parameter sums: as many values as the matrix has rows.
/// - Precondition: the pool's scratch holds a row.
package func rowSquares(_ matrix: QuantizedMatrix, into sums: Tensor, on pool: WorkerPool) {
    precondition(sums.count == matrix.outFeatures && pool.scratchFloats >= matrix.inFeatures)
    withUnsafePointer(to: matrix.raw) { raw in
        pool.run(rowPieces(matrix.outFeatures)) { piece, scratch in
            for row in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, matrix.outFeatures) {
                edge_decode_part(pool.kernels.pointer, raw, row, 0, matrix.inFeatures, scratch)
                sums.base[row] = pool.kernels.raw.dot(scratch, scratch, matrix.inFeatures)
            }
        }
    }
}

/// ‖W + s · B · A‖ of every row, by ‖W‖² + 2s · B · (A · Wᵀ) + s² · B · (A · Aᵀ) · Bᵀ.
///
/// - Parameters:
///   - weightSquares: ‖W‖² of every row.
///   - b: `[outFeatures, rank]`.
///   - projected: A · Wᵀ, `[rank, outFeatures]`.
///   - gram: A · Aᵀ, `[rank, rank]`.
///   - norms: as many values as B has rows.
/// - SeeAlso: PEFT's `DoraLinearLayer.get_weight_norm`, which makes the sum a dense matrix.
package func adaptedRowNorms(
    _ weightSquares: Tensor, _ b: Tensor, _ projected: Tensor, _ gram: Tensor, scaling: Float, into norms: Tensor, on pool: WorkerPool
) {
    pool.run(rowPieces(b.rows), as: .elementwise, .pass(b.count, streams: 2, flopEach: b.columns)) { piece, _ in
        for row in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, b.rows) {
            var (cross, square): (Float, Float) = (0, 0)
            for i in 0..<b.columns {
                cross += b.row(row)[i] * projected.row(i)[row]
                var sum: Float = 0
                for j in 0..<b.columns { sum += gram.row(i)[j] * b.row(row)[j] }
                square += b.row(row)[i] * sum
            }
            // A row that the change has made nothing of is no less than nothing.
            norms.base[row] = max(weightSquares.base[row] + scaling * (2 * cross + scaling * square), .leastNormalMagnitude).squareRoot()
        }
    }
}

/// x · scale, in place; nothing is done for 1, as most models have it.
package func multiply(_ x: Tensor, by scale: Float, on pool: WorkerPool) {
    guard scale != 1 else { return }
    pool.run(rowPieces(x.rows), as: .elementwise, .pass(x.count, streams: 2, flopEach: 1)) { piece, _ in
        let first = piece * elementwiseRows
        pool.kernels.scale(x.row(first), count: min(elementwiseRows, x.rows - first) * x.columns, by: scale)
    }
}

/// y = dropout(x): elements are zero with `probability`, the others grow by 1 / (1 - probability). `x` and `y` may be
/// the same. The mask of a sample is a function of its key and the element's index within the sample, so the backward (and
/// a recomputation) gets it again by the same call, whatever else is in the batch.
///
/// - Parameter parts: the samples in x, and each sample's key.
package func dropout(
    _ x: Tensor, probability: Float, parts: [(part: SamplePart, key: UInt64)], into y: Tensor, on pool: WorkerPool
) {
    let kernel = pool.kernels.raw.dropout!
    let pieces = parts.flatMap { one in
        stride(from: 0, to: one.part.rows.count, by: elementwiseRows).map { (part: one.part, key: one.key, first: $0) }
    }
    pool.run(pieces.count, as: .elementwise, .pass(x.count, streams: 2, flopEach: 1)) { piece, _ in
        let (part, key, first) = pieces[piece]
        let row = part.rows.lowerBound + first
        kernel(
            x.row(row), y.row(row), min(elementwiseRows, part.rows.count - first) * x.columns, key,
            UInt64((part.firstToken + first) * x.columns), probability)
    }
}

/// y[i] = row `rows[i]` of a frozen matrix, decoded: an embedding look-up.
package func decodeRows(
    _ matrix: QuantizedMatrix, _ rows: UnsafePointer<Int32>, into y: Tensor, on pool: WorkerPool
) {
    precondition(y.columns == matrix.inFeatures)
    withUnsafePointer(to: matrix.raw) { raw in
        pool.run(rowPieces(y.rows)) { piece, _ in
            for i in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, y.rows) {
                precondition((0..<matrix.outFeatures).contains(Int(rows[i])))
                edge_decode_part(pool.kernels.pointer, raw, Int(rows[i]), 0, y.columns, y.row(i))
            }
        }
    }
}

/// The same where no page of the matrix is to become resident: `read` brings a row's blocks.
///
/// - Parameters:
///   - read: copies `byteCount` bytes of the matrix, from byte `offset` on, to where it is told.
///   - row: room for one row's blocks.
package func decodeRows(
    _ matrix: QuantizedMatrix, _ rows: UnsafePointer<Int32>, into y: Tensor, row: UnsafeMutableRawPointer,
    kernels: KernelSet, read: (_ offset: Int, _ byteCount: Int, UnsafeMutableRawPointer) throws -> Void
) rethrows {
    precondition(y.columns == matrix.inFeatures)
    for i in 0..<y.rows {
        precondition((0..<matrix.outFeatures).contains(Int(rows[i])))
        let first = Int(rows[i])
        try read(first * matrix.rowBytes, matrix.rowBytes, row)
        withUnsafePointer(to: matrix.rows(first..<first + 1).moved(to: row).raw) {
            edge_decode_part(kernels.pointer, $0, 0, 0, y.columns, y.row(i))
        }
    }
}

/// Σ x², in f64 over chunks of fixed length: the same bits for any number of threads.
package func sumOfSquares(_ x: UnsafePointer<Float>, count: Int, kernels: KernelSet) -> Double {
    let dot = kernels.raw.dot!
    return stride(from: 0, to: count, by: 4096).reduce(0) { sum, first in
        sum + Double(dot(x + first, x + first, min(4096, count - first)))
    }
}

/// y = x rounded to bfloat16, to nearest even; NaN stays NaN.
package func roundToBF16(_ x: Tensor, into y: UnsafeMutablePointer<UInt16>, on pool: WorkerPool) {
    pool.run(rowPieces(x.rows), as: .elementwise, .pass(x.count, streams: 2, flopEach: 1)) { piece, _ in
        for i in piece * elementwiseRows * x.columns..<min((piece + 1) * elementwiseRows, x.rows) * x.columns {
            let bits = x.base[i].bitPattern
            let rounded = bits & 0x7FFF_FFFF > 0x7F80_0000 ? bits | 0x40_0000 : bits &+ 0x7FFF &+ (bits >> 16 & 1)
            y[i] = UInt16(truncatingIfNeeded: rounded >> 16)
        }
    }
}

package func expandBF16(_ x: UnsafePointer<UInt16>, into y: Tensor, on pool: WorkerPool) {
    pool.run(rowPieces(y.rows), as: .elementwise, .pass(y.count, streams: 2, flopEach: 1)) { piece, _ in
        for i in piece * elementwiseRows * y.columns..<min((piece + 1) * elementwiseRows, y.rows) * y.columns {
            y.base[i] = Float(bitPattern: UInt32(x[i]) << 16)
        }
    }
}

/// Whole blocks of `format` from every row, values rounded to nearest.
///
/// - Parameters:
///   - format: one with an encoder, whose blocks part the rows without rest.
///   - blocks: `x.rows · format.byteCount(of: x.columns)` bytes.
/// - Returns: whether every value was finite and in the range of the format.
package func encodeRows(
    _ x: Tensor, as format: QuantFormat, into blocks: UnsafeMutableRawPointer, on pool: WorkerPool
) -> Bool {
    guard let encode = format.encoder else { preconditionFailure("\(format.name) is never written") }
    precondition(x.columns % format.blockElements == 0)
    let rowBytes = format.byteCount(of: x.columns)
    let tooLarge = Atomic(false)
    pool.run(rowPieces(x.rows), as: .elementwise, .pass(x.count, streams: 2, flopEach: 2)) { piece, _ in
        for row in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, x.rows) {
            // A NaN compares as false.
            if !(0..<x.columns).allSatisfy({ abs(x.row(row)[$0]) <= format.largestMagnitude }) {
                tooLarge.store(true, ordering: .relaxed)
            }
            encode(x.row(row), blocks + row * rowBytes, x.columns)
        }
    }
    return !tooLarge.load(ordering: .relaxed)
}
