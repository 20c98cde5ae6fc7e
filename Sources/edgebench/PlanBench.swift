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
        let memory = try MemoryModel(base, lora: lora)
        var spec = TrainingSpec(lora: lora, samplesPerStep: microBatch, maxSteps: 1)
        spec.sequenceLength = tokens
        let samples = [SampleLengths.Length](repeating: .init(tokens: tokens, lossTokens: tokens - 1), count: microBatch)
        let plan = try TrainingPlan.make(
            memory, lengths: SampleLengths(training: samples, heldOut: [], spec: spec),
            PlanLimits(
                budget: ByteCount(budget << 20), threads: threads, compute: .f32, keepsBest: true,
                appliesLayerByLayer: false, calibration: nil, weightsAreCached: true))
        let seconds = (ContinuousClock.now - start) / .seconds(1)
        if json {
            try Measurement.printLine(
                Line(
                    plannedPeakBytes: plan.peak.bytes, budgetBytes: plan.budget.bytes,
                    pools: Dictionary(uniqueKeysWithValues: plan.pools.map { ($0.name, $0.size.bytes) }),
                    choices: plan.trades.map(\.text), seconds: seconds))
            return
        }
        for pool in plan.pools { print("\(pool.name): \(pool.size.mebibytes) MiB") }
        print("peak \(plan.peak.mebibytes) MiB of \(plan.budget.mebibytes) MiB; \(plan.trades.map(\.text).joined(separator: ", "))")
    }
}
