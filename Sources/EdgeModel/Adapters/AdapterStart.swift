// What A and B of a LoRA begin as: PEFT's `init_lora_weights`.
import EdgeTensor

package enum AdapterStart: String, CaseIterable, Sendable {
    /// A uniform in ±1/√inFeatures, B zero.
    case kaiming
    /// A normal with a deviation of 1/r, B zero.
    case gaussian
    /// Neither is zero, but B · A is: their rows and columns lie in spaces that are orthogonal to each other. Of even ranks.
    case orthogonal
    /// A has the directions in which a linear's inputs vary most, B zero: made from activations (EdgeTrain/EVAStart.swift).
    case eva
    /// B · A is near to what quantisation took from W: made from another model's weights (EdgeTrain/LoftQStart.swift). Kaiming where it
    /// took nothing.
    case loftq

    /// Rows of A and columns of B lie in the odd and the even rows' span of a random orthogonal matrix, and are a tenth of normal there
    /// (peft, `LoraLayer.orthogonal_init`).
    static func fillOrthogonal(a: Tensor, b: Tensor, _ random: RandomSource) {
        let rank = a.rows
        precondition(rank % 2 == 0)
        let basis = orthonormalBasis(rank, random)
        var drawn = rank * rank
        func fill(_ count: Int, of start: Int, _ element: (_ index: Int, _ k: Int) -> UnsafeMutablePointer<Float>) {
            for index in 0..<count {
                let share = (0..<rank / 2).map { random.normal(drawn + $0) / 10 }
                drawn += rank / 2
                for k in 0..<rank {
                    element(index, k).pointee = share.indices.reduce(Float(0)) { $0 + share[$1] * Float(basis[2 * $1 + start][k]) }
                }
            }
        }
        fill(a.columns, of: 0) { a.row($1) + $0 }
        fill(b.rows, of: 1) { b.row($0) + $1 }
    }

    /// Gram and Schmidt, twice, on random rows.
    private static func orthonormalBasis(_ rank: Int, _ random: RandomSource) -> [[Double]] {
        var rows = (0..<rank).map { row in (0..<rank).map { Double(random.normal(row * rank + $0)) } }
        for i in rows.indices {
            for j in [Int](0..<i) + [Int](0..<i) {
                let part = zip(rows[i], rows[j]).reduce(0) { $0 + $1.0 * $1.1 }
                for k in 0..<rank { rows[i][k] -= part * rows[j][k] }
            }
            let length = rows[i].reduce(0) { $0 + $1 * $1 }.squareRoot()
            for k in 0..<rank { rows[i][k] /= length }
        }
        return rows
    }
}
