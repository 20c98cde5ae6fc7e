// AdaLoRA (arXiv:2303.10512): W + alpha/r · P · Λ · Q, with Λ a diagonal. Steps in the middle of a run set what matters least of all Λ to
// zero, so that what is left of the ranks lies where it is worth most (EdgeTrain/RankAllocator.swift). Q, Λ and P are PEFT's lora_A, lora_E
// and lora_B. To the layer it is a LoRA with Λ · Q for A.
import EdgeFormats
import EdgeTensor

/// When ranks are taken away, and by what they are measured: PEFT's `AdaLoraConfig`. Steps count from 0.
package struct RankAllocation: Equatable, Sendable {
    /// That a linear is left with in the mean, PEFT's `target_r`; nil: two thirds of the first one.
    package var targetRank: Int?
    /// Steps before the first rank goes (`tinit`), and after the last has gone (`tfinal`).
    package var initialSteps = 0
    package var finalSteps = 0
    /// Steps from one allocation to the next (`deltaT`).
    package var interval = 1
    /// Of the moving means of a parameter's importance, and of how much that varies.
    package var beta1 = 0.85
    package var beta2 = 0.85
    /// What the distance of Q · Qᵀ and Pᵀ · P from the identity weighs in the loss (`orth_reg_weight`).
    package var orthogonality = 0.5
    /// Of the run; nil: not known yet.
    package var totalSteps: Int?
    package init() {}

    package func target(of rank: Int) -> Int { targetRank ?? max(1, 2 * rank / 3) }
}

package struct AdaLoRA: AdapterMethod {
    package let name = "adalora"
    package let defaultRank = 12
    package let peftType = "ADALORA"
    package let configKeys = AdapterConfigKeys(rank: "init_r", alpha: "lora_alpha", dropout: "lora_dropout")
    package var allocation: RankAllocation
    /// PEFT saves a linear without the ranks that it lost.
    package var rankTensor: String? { "lora_E" }

    package init(_ allocation: RankAllocation = RankAllocation()) { self.allocation = allocation }

    package func defaultAlpha(rank: Int) -> Double { 32 }

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        func number(_ value: Double) -> JSONText { .number("\(value)") }
        // Published whole, with zeros where ranks were taken away: PEFT's rank_pattern is for files without them.
        return [
            .init("alpha_pattern", .object([])), .init("beta1", number(allocation.beta1)), .init("beta2", number(allocation.beta2)),
            .init("bias", .string("none")), .init("deltaT", .number("\(allocation.interval)")), .init("fan_in_fan_out", .bool(false)),
            .init("init_lora_weights", .bool(true)), .init("orth_reg_weight", number(allocation.orthogonality)),
            .init("rank_pattern", .null), .init("target_r", .number("\(allocation.target(of: values.rank))")),
            .init("tfinal", .number("\(allocation.finalSteps)")), .init("tinit", .number("\(allocation.initialSteps)")),
            .init("total_step", allocation.totalSteps.map { .number("\($0)") } ?? .null),
        ]
    }

    package func configured(by config: JSONText) throws -> any AdapterMethod {
        func read<Value>(_ key: String, default: Value, _ decode: (JSONText) -> Value?) throws -> Value {
            guard let found = config[key], found != .null else { return `default` }
            guard let value = decode(found) else { throw AdapterSettingError(key: key) }
            return value
        }
        func steps(_ key: String, from lowest: Int, default: Int) throws -> Int {
            try read(key, default: `default`) { $0.integer.flatMap { $0 >= lowest ? $0 : nil } }
        }
        // PEFT has a rule of its own for such, by the ranks that are left.
        guard config["lora_alpha"]?.double.map({ $0 > 0 }) ?? true else { throw AdapterSettingError(key: "lora_alpha") }
        var allocation = RankAllocation()
        allocation.targetRank = try steps("target_r", from: 1, default: 8)
        allocation.initialSteps = try steps("tinit", from: 0, default: 0)
        allocation.finalSteps = try steps("tfinal", from: 0, default: 0)
        allocation.interval = try steps("deltaT", from: 1, default: 1)
        allocation.beta1 = try read("beta1", default: 0.85) { $0.double }
        allocation.beta2 = try read("beta2", default: 0.85) { $0.double }
        allocation.orthogonality = try read("orth_reg_weight", default: 0.5) { $0.double }
        allocation.totalSteps = try read("total_step", default: nil) { $0.integer }
        return AdaLoRA(allocation)
    }

    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        [
            AdapterMatrix(name: "lora_A", rows: spec.rank, columns: linear.inFeatures, start: .normal(deviation: 0.02)),
            AdapterMatrix(name: "lora_E", rows: spec.rank, columns: 1, start: .constant(0)),
            AdapterMatrix(name: "lora_B", rows: linear.outFeatures, columns: spec.rank, outputs: .rows, start: .normal(deviation: 0.02)),
        ]
    }

    /// PEFT's, which keeps a rank of zero from dividing.
    package var rankMargin: Double { 1e-5 }

    package func derive(_ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], rank: Int, into factors: AdapterFactors) {
        let (q, lambda) = (stored[0], stored[1].base)
        for row in 0..<q.rows { for column in 0..<q.columns { factors.a.row(row)[column] = lambda[row] * q.row(row)[column] } }
        factors.b.copy(from: stored[2])
    }

    package func chain(
        _ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], _ dFactors: AdapterFactors, rank: Int, into gradients: [Tensor?]
    ) {
        let (q, lambda) = (stored[0], stored[1].base)
        let (dQ, dLambda, dP) = (gradients[0]!, gradients[1]!.base, gradients[2]!)
        for row in 0..<q.rows {
            let (dA, values) = (dFactors.a.row(row), q.row(row))
            var sum: Float = 0
            for column in 0..<q.columns {
                dQ.row(row)[column] += lambda[row] * dA[column]
                sum += dA[column] * values[column]
            }
            dLambda[row] += sum
        }
        for i in 0..<dP.count { dP.base[i] += dFactors.b.base[i] }
    }
}
