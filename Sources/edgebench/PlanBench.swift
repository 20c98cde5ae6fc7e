// The memory plan of a shape on a model, without running it.
import ArgumentParser
import EdgeModel
import EdgeTensor
import EdgeTrain

struct PlanBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "plan", abstract: "The memory plan for a model, a sequence length and a budget.")

    @Option(help: "A GGUF model.") var model: String
    @Option(help: "Longest sample, in tokens.") var tokens = 512
    @Option(help: "Samples in a micro-batch.") var microBatch = 1
    @Option(help: "Rank of the adapters, on all linears.") var rank = 16
    @Option(help: "Worker threads.") var threads = 2
    @Option(help: "Budget in MiB.") var budget = 1024
    @Flag(help: "One JSON line.") var json = false

    struct Line: Encodable {
        let plannedPeakBytes: Int, budgetBytes: Int, pools: [String: Int], choices: [String], seconds: Double
    }

    func run() throws {
        let start = ContinuousClock.now
        let base = try BaseModel.open(path: model)
        let lora = LoRASpec(rank: rank, alpha: Float(2 * rank), dropout: 0, targets: .allLinear, layers: nil)
        let memory = MemoryModel(
            spec: base.spec, lora: lora, modules: try lora.modules(of: base.spec), weightBytes: base.weightBytes)
        let tokens = tokens
        let plan = try TrainingPlan.make(
            memory,
            batches: BatchSizes(
                longestSample: tokens, microBatchSize: microBatch, gradientAccumulation: 1,
                largestMicroBatch: { size, _ in size * tokens }),
            threads: threads, keepsBest: true, compute: .f32, budget: ByteCount(budget << 20))
        let seconds = (ContinuousClock.now - start) / .seconds(1)
        if json {
            try Measurement.printLine(
                Line(
                    plannedPeakBytes: plan.peak.bytes, budgetBytes: plan.budget.bytes,
                    pools: Dictionary(uniqueKeysWithValues: plan.pools.map { ($0.name, $0.size.bytes) }),
                    choices: plan.choices, seconds: seconds))
            return
        }
        for pool in plan.pools { print("\(pool.name): \(pool.size.mebibytes) MiB") }
        print("peak \(plan.peak.mebibytes) MiB of \(plan.budget.mebibytes) MiB; \(plan.choices.joined(separator: ", "))")
    }
}
