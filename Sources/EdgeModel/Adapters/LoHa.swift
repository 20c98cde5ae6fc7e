// LoHa (arXiv:2108.06098): W + alpha/r · (P₁ · Q₁) ⊙ (P₂ · Q₂), P `[out, r]`, Q `[r, in]`. The element-wise product of two matrices of
// rank r is one of rank r²: B is P₁ and P₂ multiplied row by row, every column of one with every column of the other, and A is Q₁ and Q₂
// so, column by column. So the change is never a dense matrix, as it is in PEFT.
import EdgeFormats
import EdgeTensor

package struct LoHa: AdapterMethod {
    package let name = "loha"
    package let defaultRank = 4
    /// Its factors have the square of it.
    package let largestRank = 22
    package let peftType = "LOHA"
    package let configKeys = AdapterConfigKeys(rank: "r", alpha: "alpha", dropout: nil)

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        [
            .init("alpha_pattern", .object([])), .init("init_weights", .bool(true)), .init("module_dropout", .number("0.0")),
            .init("rank_dropout", .number("0.0")), .init("rank_pattern", .object([])), .init("use_effective_conv2d", .bool(false)),
        ]
    }

    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        func left(_ name: String) -> AdapterMatrix {
            AdapterMatrix(
                name: name, rows: linear.outFeatures, columns: spec.rank, outputs: .rows, start: AdapterMatrix.kaiming(columns: spec.rank))
        }
        func right(_ name: String, _ start: AdapterMatrix.Start) -> AdapterMatrix {
            AdapterMatrix(name: name, rows: spec.rank, columns: linear.inFeatures, start: start)
        }
        return [
            left("hada_w1_a"), right("hada_w1_b", AdapterMatrix.kaiming(columns: linear.inFeatures)), left("hada_w2_a"),
            right("hada_w2_b", .constant(0)),
        ]
    }

    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { spec.rank * spec.rank }

    package func derive(_ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], rank: Int, into factors: AdapterFactors) {
        let (p1, q1, p2, q2) = (stored[0], stored[1], stored[2], stored[3])
        for i in 0..<rank {
            for j in 0..<rank {
                let row = factors.a.row(i * rank + j)
                for column in 0..<q1.columns { row[column] = q1.row(i)[column] * q2.row(j)[column] }
            }
        }
        for row in 0..<p1.rows {
            for i in 0..<rank { for j in 0..<rank { factors.b.row(row)[i * rank + j] = p1.row(row)[i] * p2.row(row)[j] } }
        }
    }

    package func chain(
        _ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], _ dFactors: AdapterFactors, rank: Int, into gradients: [Tensor?]
    ) {
        let (p1, q1, p2, q2) = (stored[0], stored[1], stored[2], stored[3])
        let (dP1, dQ1, dP2, dQ2) = (gradients[0]!, gradients[1]!, gradients[2]!, gradients[3]!)
        for i in 0..<rank {
            for j in 0..<rank {
                let row = dFactors.a.row(i * rank + j)
                for column in 0..<q1.columns {
                    dQ1.row(i)[column] += row[column] * q2.row(j)[column]
                    dQ2.row(j)[column] += row[column] * q1.row(i)[column]
                }
            }
        }
        for row in 0..<p1.rows {
            for i in 0..<rank {
                for j in 0..<rank {
                    let gradient = dFactors.b.row(row)[i * rank + j]
                    dP1.row(row)[i] += gradient * p2.row(row)[j]
                    dP2.row(row)[j] += gradient * p1.row(row)[i]
                }
            }
        }
    }
}
