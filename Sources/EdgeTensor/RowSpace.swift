// The singular value decomposition of a matrix of few rows and many columns, by the Gram matrix of its rows in f64:
// M · Mᵀ = U · Λ · Uᵀ, so the rows of Uᵀ · M are orthogonal, their lengths the singular values, their directions the right vectors.
import CEdgeKernels

/// Memory for it, and the decomposition that was made last. Lengths below a millionth of the longest are rounding's, and not found.
package final class RowSpace {
    private let mostRows: Int
    /// `[rows, rows]`: M · Mᵀ, and then Uᵀ.
    private let gram: UnsafeMutablePointer<Double>
    private let values: UnsafeMutablePointer<Double>
    private let work: UnsafeMutablePointer<Double>
    private var rows = 0
    /// Of the eigenvectors that are found, the largest eigenvalue's first.
    private var order: [Int] = []

    package static func bytes(rows: Int) -> ByteCount { bytes(rows * rows) + bytes(rows) + bytes(2 * rows) }
    private static func bytes(_ doubles: Int) -> ByteCount { .wholeLines(8 * doubles) }

    /// - Parameters:
    ///   - rows: the most that a matrix may have.
    ///   - arena: gives `bytes`.
    package init(rows: Int, arena: Arena) {
        mostRows = rows
        func doubles(_ count: Int) -> UnsafeMutablePointer<Double> {
            arena.bytes(Self.bytes(count)).baseAddress!.bindMemory(to: Double.self, capacity: count)
        }
        gram = doubles(rows * rows)
        values = doubles(rows)
        work = doubles(2 * rows)
    }

    /// Singular values that are found, the largest first.
    package var lengths: [Double] { order.map { values[$0].squareRoot() } }

    /// - Parameter matrix: `[rows, columns]`.
    /// - Returns: how many singular values are found; nil when a value of the matrix is not finite.
    package func decompose(_ matrix: Tensor, on pool: WorkerPool) -> Int? {
        precondition(matrix.rows <= mostRows)
        rows = matrix.rows
        order = []
        guard rows > 0 else { return 0 }
        let (gram, rows) = (gram, rows)
        pool.run(rows) { row, _ in
            for other in 0...row {
                let product = dot(matrix.row(row), matrix.row(other), matrix.columns)
                gram[row * rows + other] = product
                gram[other * rows + row] = product
            }
        }
        guard symmetricEigenvectors(gram, count: rows, values: values, work: work) else { return nil }
        let largest = (0..<rows).map { values[$0] }.max()!
        order = (0..<rows).filter { values[$0] > 1e-12 * largest && values[$0] > 0 }
        order.sort { values[$0] != values[$1] ? values[$0] > values[$1] : $0 < $1 }
        return order.count
    }

    /// The rows of Uᵀ · matrix, the longest singular value's first: of the decomposed matrix itself its right vectors, each as long as
    /// its singular value.
    ///
    /// - Parameters:
    ///   - matrix: as many rows as what was decomposed.
    ///   - turned: as many rows as are wanted, and not more than were found. Must not overlap `matrix`.
    package func turn(_ matrix: Tensor, into turned: Tensor, on pool: WorkerPool) {
        precondition(matrix.rows == rows && matrix.columns == turned.columns && turned.rows <= order.count)
        let (gram, rows, order) = (gram, rows, order)
        let width = 8, pieces = (matrix.columns + 64 * width - 1) / (64 * width)
        pool.run(pieces) { piece, _ in
            let columns = piece * 64 * width..<min((piece + 1) * 64 * width, matrix.columns)
            for row in 0..<turned.rows {
                let factors = gram + order[row] * rows
                var column = columns.lowerBound
                while column + width <= columns.upperBound {
                    var sums = SIMD8<Double>.zero
                    for other in 0..<rows { sums += factors[other] * SIMD8<Double>(load8(matrix.row(other) + column)) }
                    for k in 0..<width { turned.row(row)[column + k] = Float(sums[k]) }
                    column += width
                }
                for rest in column..<columns.upperBound {
                    turned.row(row)[rest] = Float((0..<rows).reduce(0.0) { $0 + factors[$1] * Double(matrix.row($1)[rest]) })
                }
            }
        }
    }
}

private func load8(_ x: UnsafePointer<Float>) -> SIMD8<Float> { UnsafeRawPointer(x).loadUnaligned(as: SIMD8<Float>.self) }

/// Σ x · y, in f64.
package func dot(_ x: UnsafePointer<Float>, _ y: UnsafePointer<Float>, _ count: Int) -> Double {
    var sums = SIMD8<Double>.zero
    for k in stride(from: 0, to: count - 7, by: 8) { sums += SIMD8<Double>(load8(x + k)) * SIMD8<Double>(load8(y + k)) }
    return (count & ~7..<count).reduce(sums.sum()) { $0 + Double(x[$1]) * Double(y[$1]) }
}
