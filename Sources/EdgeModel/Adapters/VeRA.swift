// VeRA (arXiv:2310.11454): W + diag(b) · B · diag(d) · A. A and B are random, frozen, and the same for every module, which takes its
// corner of them; a module trains two vectors.
import EdgeFormats
import EdgeTensor

package struct VeRA: AdapterMethod {
    package let name = "vera"
    package let defaultRank = 256
    /// PEFT's `d_initial`.
    static let dInitial: Float = 0.1
    package let peftType = "VERA"
    package let configKeys = AdapterConfigKeys(rank: "r", alpha: nil, dropout: "vera_dropout")

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        [
            .init("bias", .string("none")), .init("d_initial", .number("0.1")), .init("fan_in_fan_out", .bool(false)),
            .init("init_weights", .bool(true)), .init("projection_prng_key", .number("0")), .init("save_projection", .bool(true)),
        ]
    }

    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        [
            AdapterMatrix(
                name: "vera_lambda_b", rows: 1, columns: linear.outFeatures, isVector: true, outputs: .columns, start: .constant(0)),
            AdapterMatrix(name: "vera_lambda_d", rows: 1, columns: spec.rank, isVector: true, start: .constant(Self.dInitial)),
        ]
    }

    /// PEFT's start: `kaiming_uniform_` with a = 0, ±√(6 / columns).
    package func shared(_ widest: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        func random(_ name: String, rows: Int, columns: Int) -> AdapterMatrix {
            AdapterMatrix(
                name: name, rows: rows, columns: columns, isTrained: false,
                start: .uniform(bound: (6 / Float(columns)).squareRoot()))
        }
        return [
            random("base_model.vera_A", rows: spec.rank, columns: widest.inFeatures),
            random("base_model.vera_B", rows: widest.outFeatures, columns: spec.rank),
        ]
    }


    package func derive(_ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], rank: Int, into factors: AdapterFactors) {
        let (lambdaB, lambdaD) = (stored[0].base, stored[1].base)
        let (a, b) = (factors.a, factors.b)
        for row in 0..<a.rows { for column in 0..<a.columns { a.row(row)[column] = lambdaD[row] * shared[0].row(row)[column] } }
        for row in 0..<b.rows {
            let random = shared[1].row(linear.rowOrder?[row] ?? row)
            for column in 0..<b.columns { b.row(row)[column] = lambdaB[row] * random[column] }
        }
    }

    package func chain(
        _ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], _ dFactors: AdapterFactors, rank: Int, into gradients: [Tensor?]
    ) {
        func add(_ x: Tensor, _ y: Tensor, _ order: [Int]?, to sums: UnsafeMutablePointer<Float>) {
            for row in 0..<x.rows {
                let random = y.row(order?[row] ?? row)
                var sum: Float = 0
                for column in 0..<x.columns { sum += x.row(row)[column] * random[column] }
                sums[row] += sum
            }
        }
        add(dFactors.b, shared[1], linear.rowOrder, to: gradients[0]!.base)
        add(dFactors.a, shared[0], nil, to: gradients[1]!.base)
    }
}
