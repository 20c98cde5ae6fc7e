// Eigenvalues and eigenvectors of a small symmetric matrix, in f64 and on the calling thread: Householder's reflections to a
// tridiagonal matrix, and then QL steps with implicit shifts (Golub and Van Loan, *Matrix Computations*, §8.3). Some 9n³ operations.

/// The matrix becomes its eigenvectors, one a row, in no order.
///
/// - Parameters:
///   - matrix: `[count, count]`, both halves.
///   - values: `[count]`: the eigenvalue of each row.
///   - work: `[2 · count]`.
/// - Returns: false when the matrix has values that are not finite; nothing is then of use.
func symmetricEigenvectors(
    _ matrix: UnsafeMutablePointer<Double>, count: Int, values: UnsafeMutablePointer<Double>, work: UnsafeMutablePointer<Double>
) -> Bool {
    let offDiagonal = work, scratch = work + count
    tridiagonalise(matrix, count, diagonal: values, offDiagonal: offDiagonal, scratch)
    return diagonalise(rows: matrix, count, diagonal: values, offDiagonal: offDiagonal)
}

/// T = Qᵀ · M · Q; the matrix becomes Qᵀ.
///
/// - Parameter offDiagonal: `[count]`, the last unused.
private func tridiagonalise(
    _ matrix: UnsafeMutablePointer<Double>, _ count: Int, diagonal: UnsafeMutablePointer<Double>,
    offDiagonal: UnsafeMutablePointer<Double>, _ product: UnsafeMutablePointer<Double>
) {
    func row(_ index: Int) -> UnsafeMutablePointer<Double> { matrix + index * count }
    for k in 0..<max(0, count - 2) {
        diagonal[k] = row(k)[k]
        let rest = count - k - 1, v = row(k) + k + 1
        let length = dot(v, v, rest).squareRoot()
        offDiagonal[k] = v[0] > 0 ? -length : length
        // I - v·vᵀ, with ‖v‖² = 2, takes the row to its first element; a row of zeros stays.
        v[0] -= offDiagonal[k]
        let scale = length > 0 ? (2 / dot(v, v, rest)).squareRoot() : 0
        for i in 0..<rest { v[i] *= scale }
        for i in 0..<rest { product[i] = dot(row(k + 1 + i) + k + 1, v, rest) }
        let half = dot(product, v, rest) / 2
        for i in 0..<rest { product[i] -= half * v[i] }
        for i in 0..<rest {
            let (own, vi, pi) = (row(k + 1 + i) + k + 1, v[i], product[i])
            for j in 0..<rest { own[j] -= vi * product[j] + pi * v[j] }
        }
    }
    for k in max(0, count - 2)..<count { diagonal[k] = row(k)[k] }
    if count > 1 { offDiagonal[count - 2] = row(count - 2)[count - 1] }
    offDiagonal[count - 1] = 0
    // The product of the reflections, from the last on: each leaves the rows and columns before its own as they are.
    for k in stride(from: count - 1, through: 0, by: -1) {
        let rest = count - k - 1, v = row(k) + k + 1
        if rest > 1 {
            for i in k + 1..<count { add(-dot(row(i) + k + 1, v, rest), v, to: row(i) + k + 1, rest) }
        }
        for i in k..<count { (row(k)[i], row(i)[k]) = (0, 0) }
        row(k)[k] = 1
    }
}

/// Rotates rows with the tridiagonal matrix until that is diagonal.
private func diagonalise(
    rows: UnsafeMutablePointer<Double>, _ count: Int, diagonal d: UnsafeMutablePointer<Double>, offDiagonal e: UnsafeMutablePointer<Double>
) -> Bool {
    for first in 0..<count {
        var turns = 0
        while true {
            let last = (first..<count - 1).first { abs(e[$0]) <= 0x1p-52 * (abs(d[$0]) + abs(d[$0 + 1])) } ?? count - 1
            guard last > first else { break }
            // Three do in the mean; what has no end is not finite.
            turns += 1
            guard turns <= 100 else { return false }
            // The eigenvalue of the upper 2 · 2 matrix that is nearer to its first element.
            let tangent = (d[first + 1] - d[first]) / (2 * e[first])
            let length = (tangent * tangent + 1).squareRoot()
            var g = d[last] - d[first] + e[first] / (tangent + (tangent < 0 ? -length : length))
            var (sine, cosine, shift) = (1.0, 1.0, 0.0)
            var isParted = false
            for i in stride(from: last - 1, through: first, by: -1) {
                let f = sine * e[i], b = cosine * e[i]
                let r = (f * f + g * g).squareRoot()
                e[i + 1] = r
                guard r != 0 else {
                    d[i + 1] -= shift
                    e[last] = 0
                    isParted = true
                    break
                }
                (sine, cosine) = (f / r, g / r)
                g = d[i + 1] - shift
                let change = (d[i] - g) * sine + 2 * cosine * b
                shift = sine * change
                d[i + 1] = g + shift
                g = cosine * change - b
                rotate(rows + i * count, rows + (i + 1) * count, count, cosine, sine)
            }
            guard !isParted else { continue }
            d[first] -= shift
            e[first] = g
            e[last] = 0
        }
    }
    return (0..<count).allSatisfy { d[$0].isFinite }
}

private func rotate(_ x: UnsafeMutablePointer<Double>, _ y: UnsafeMutablePointer<Double>, _ count: Int, _ cosine: Double, _ sine: Double) {
    for k in 0..<count {
        let (a, b) = (x[k], y[k])
        x[k] = cosine * a - sine * b
        y[k] = sine * a + cosine * b
    }
}

private func add(_ factor: Double, _ x: UnsafePointer<Double>, to y: UnsafeMutablePointer<Double>, _ count: Int) {
    for k in 0..<count { y[k] += factor * x[k] }
}

private func dot(_ x: UnsafePointer<Double>, _ y: UnsafePointer<Double>, _ count: Int) -> Double {
    var sums = SIMD4<Double>.zero
    for k in stride(from: 0, to: count - 3, by: 4) {
        sums += UnsafeRawPointer(x + k).loadUnaligned(as: SIMD4<Double>.self) * UnsafeRawPointer(y + k).loadUnaligned(as: SIMD4<Double>.self)
    }
    return (count & ~3..<count).reduce(sums.sum()) { $0 + x[$1] * y[$1] }
}
