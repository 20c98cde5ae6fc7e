// MTLoRA (arXiv:2403.20320 §3.2), for a decoder: every linear has a LoRA that all tasks train, and one for each task that only its samples
// do. The same is trained and computed as with PEFT's two LoRAs active together:
//
//   y = W·x + s·B·A·x + s·B_t·A_t·x = W·x + s·[B, B_t]·[A; A_t]·x      of a sample of task t
//
// So to a layer it is a LoRA whose factors depend on the sample, and what is exported of a task is a plain LoRA.
import EdgeFormats
import EdgeTensor

package struct MTLoRA: AdapterMethod {
    package let name = "mtlora"
    package let peftType = "MTLORA"
    package let configKeys = AdapterConfigKeys(rank: "r", alpha: "lora_alpha", dropout: "lora_dropout")

    /// None: what all tasks share, alone.
    package let taskNames: [String]
    /// Of what a task has for itself; nil: that of what they share, and a file that says the same number is read as that.
    package let taskRank: Int?

    package static let mostTasks = 64
    package static let mostNameBytes = 32

    package init(tasks: [String] = [], taskRank: Int? = nil) {
        taskNames = tasks
        self.taskRank = taskRank
    }

    /// What is a part of tensors' and files' names: 1 to 32 of `[A-Za-z0-9_-]`.
    package static func isTaskName(_ name: String) -> Bool {
        (1...mostNameBytes).contains(name.utf8.count)
            && name.utf8.allSatisfy { byte in
                switch byte {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "0")...UInt8(ascii: "9"),
                    UInt8(ascii: "_"), UInt8(ascii: "-"): true
                default: false
                }
            }
    }

    package var tasks: AdapterTasks? { taskNames.isEmpty ? nil : AdapterTasks(names: taskNames, shared: 2, own: 2) }

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        [
            .init("bias", .string("none")), .init("fan_in_fan_out", .bool(false)), .init("task_r", .number("\(taskRank ?? values.rank)")),
            .init("tasks", .array(taskNames.map(JSONText.string))),
        ]
    }

    package func configured(by config: JSONText) throws -> any AdapterMethod {
        let names = config["tasks"]?.array?.compactMap(\.string) ?? []
        guard names.count == config["tasks"]?.array?.count, names.count <= Self.mostTasks, Set(names).count == names.count,
            names.allSatisfy(Self.isTaskName)
        else { throw AdapterSettingError(key: "tasks") }
        guard let rank = config["task_r"]?.integer, (1...largestRank).contains(rank) else { throw AdapterSettingError(key: "task_r") }
        return MTLoRA(tasks: names, taskRank: rank == config["r"]?.integer ? nil : rank)
    }

    /// Names as the paper's program has them (scale-lab/MTLoRA, models/lora.py).
    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        func pair(_ a: String, _ b: String, rank: Int) -> [AdapterMatrix] {
            [
                AdapterMatrix(
                    name: a, rows: rank, columns: linear.inFeatures, start: AdapterMatrix.kaiming(columns: linear.inFeatures)),
                AdapterMatrix(name: b, rows: linear.outFeatures, columns: rank, outputs: .rows, start: .constant(0)),
            ]
        }
        return pair("lora_shared_A", "lora_shared_B", rank: spec.rank)
            + taskNames.flatMap { pair("lora_tasks_A.\($0)", "lora_tasks_B.\($0)", rank: taskRank ?? spec.rank) }
    }

    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int {
        spec.rank + (taskNames.isEmpty ? 0 : taskRank ?? spec.rank)
    }

    package func defaultAlpha(rank: Int) -> Double { 32 }

    /// - Parameter stored: what all tasks share, and what one of them has.
    package func derive(_ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], rank: Int, into factors: AdapterFactors) {
        forEachPair(stored) { stored, first in
            factors.a.rows(first..<first + stored.a.rows).copy(from: stored.a)
            for row in 0..<stored.b.rows { (factors.b.row(row) + first).update(from: stored.b.row(row), count: stored.b.columns) }
        }
    }

    package func chain(
        _ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], _ dFactors: AdapterFactors, rank: Int, into gradients: [Tensor?]
    ) {
        forEachPair(gradients.map { $0! }) { gradient, first in
            for row in 0..<gradient.a.rows { add(dFactors.a.row(first + row), to: gradient.a.row(row), gradient.a.columns) }
            for row in 0..<gradient.b.rows { add(dFactors.b.row(row) + first, to: gradient.b.row(row), gradient.b.columns) }
        }
    }

    /// - Parameter body: gets an A and its B, and the first rank that is theirs.
    private func forEachPair(_ matrices: [Tensor], _ body: (AdapterFactors, _ first: Int) -> Void) {
        var first = 0
        for index in stride(from: 0, to: matrices.count, by: 2) {
            body(AdapterFactors(a: matrices[index], b: matrices[index + 1]), first)
            first += matrices[index].rows
        }
    }

    private func add(_ values: UnsafeMutablePointer<Float>, to sums: UnsafeMutablePointer<Float>, _ count: Int) {
        for i in 0..<count { sums[i] += values[i] }
    }
}
