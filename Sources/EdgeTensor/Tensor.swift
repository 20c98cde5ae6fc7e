// A view of a row-major f32 matrix in an arena. It owns nothing and checks shapes, not lifetimes: a view must not
// outlive its arena.

package struct Tensor {
    package let base: UnsafeMutablePointer<Float>
    package let rows: Int
    package let columns: Int

    package init(_ base: UnsafeMutablePointer<Float>, rows: Int, columns: Int) {
        self.base = base
        self.rows = rows
        self.columns = columns
    }

    package var count: Int { rows * columns }

    /// The first `count` rows: how a buffer sized for the largest batch serves a smaller one.
    package func prefix(_ count: Int) -> Tensor {
        precondition(count <= rows, "\(count) rows of a tensor that has \(rows)")
        return Tensor(base, rows: count, columns: columns)
    }

    package func rows(_ range: Range<Int>) -> Tensor {
        precondition(0 <= range.lowerBound && range.upperBound <= rows, "rows \(range) of a tensor that has \(rows)")
        return Tensor(row(range.lowerBound), rows: range.count, columns: columns)
    }

    package func row(_ index: Int) -> UnsafeMutablePointer<Float> { base + index * columns }

    package func copy(from other: Tensor) {
        precondition(other.rows == rows && other.columns == columns, "copy between different shapes")
        base.update(from: other.base, count: count)
    }

    package func clear() { base.update(repeating: 0, count: count) }
}
