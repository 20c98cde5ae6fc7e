// MiSS (arXiv:2409.15371): W + Mᵀ · F, where F sums the inputs whose number is the same modulo r: one matrix is trained, and the
// change is exactly a LoRA whose A is of zeros and ones.
import EdgeFormats
import EdgeTensor

package struct MiSS: AdapterMethod {
    package let name = "miss"
    package let defaultRank = 64
    package let peftType = "MISS"
    package let configKeys = AdapterConfigKeys(rank: "r", alpha: nil, dropout: "miss_dropout")

    package let foldsInputs = true

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        [.init("bias", .string("none")), .init("init_weights", .bool(true)), .init("mini_r", .number("1"))]
    }

    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        [AdapterMatrix(name: "miss_block", rows: spec.rank, columns: linear.outFeatures, outputs: .columns, start: .constant(0))]
    }


    package func derive(_ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], rank: Int, into factors: AdapterFactors) {
        let (a, b) = (factors.a, factors.b)
        a.clear()
        for column in 0..<a.columns { a.row(column % a.rows)[column] = 1 }
        for row in 0..<b.rows { for column in 0..<b.columns { b.row(row)[column] = stored[0].row(column)[row] } }
    }

    package func chain(
        _ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], _ dFactors: AdapterFactors, rank: Int, into gradients: [Tensor?]
    ) {
        let (b, gradient) = (dFactors.b, gradients[0]!)
        for row in 0..<b.rows { for column in 0..<b.columns { gradient.row(column)[row] += b.row(row)[column] } }
    }
}
