// One micro-batch, forward and backward, of a real model: tokens per second, memory, and the share of the peak.
import ArgumentParser
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTrain

extension WeightResidence: ExpressibleByArgument {}
extension CheckpointStorage: ExpressibleByArgument {}
extension ComputeType: ExpressibleByArgument {}

struct StepBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "step", abstract: "Forward and backward of one micro-batch on a GGUF model.")

    @Option(help: "A GGUF model.") var model: String
    @Option(help: "Samples in the micro-batch.") var samples = 1
    @Option(help: "Tokens in each sample.") var tokens = 512
    @Option(help: "Rank of the adapters, on all linears.") var rank = 16
    @Option(help: "Worker threads.") var threads = 2
    @Option(help: "Kernel set; the strongest when absent.") var set: String?
    @Option(help: "f32, bf16, f16 or int8; what the kernel set prefers when absent.") var precision: ComputeType?
    @Option(help: "Layers that keep their activations, or all; the others compute them again.") var keep = "0"
    @Option(help: "resident or streamed.") var weights = WeightResidence.resident
    @Option(help: "Layer inputs: memory, bf16 or file.") var checkpoints = CheckpointStorage.memory
    @Option(help: "Loss tokens whose logits exist at once.") var lossChunk = 128
    @Option(help: "Counted runs.") var runs = 5
    @Flag(help: "One JSON line.") var json = false

    struct Line: Encodable {
        struct Operation: Encodable {
            let name: String
            /// Of one step, all threads together in wall time.
            let seconds: Double
            let share: Double
            /// The peak is that of the type which the operation is computed in.
            let gflops: Double, shareOfPeak: Double
            let gigabytesPerSecond: Double
        }

        let kernelSet: String, precision: String, shape: [Int], rank: Int, keptLayers: Int, weights: String, checkpoints: String, threads: Int
        let seconds: Double, tokensPerSecond: Double
        /// Against the peak in f32, whatever the precision.
        let gflops: Double, peakGflops: Double, shareOfPeak: Double
        let peakRssBytes: Int, plannedPeakBytes: Int
        let operations: [Operation]

        var table: String {
            func percent(_ share: Double) -> String { "\((share * 1000).rounded() / 10) %" }
            let rows = operations.map { one in
                "  " + Measurement.padded(one.name, 20) + Measurement.padded("\((one.seconds * 1e4).rounded() / 10) ms", 12)
                    + Measurement.padded(percent(one.share), 10) + Measurement.padded("\(Int(one.gflops)) GFLOP/s", 15)
                    + Measurement.padded(percent(one.shareOfPeak), 10) + "\(Int(one.gigabytesPerSecond)) GB/s"
            }
            return """
                \(kernelSet) \(precision), \(shape[0]) x \(shape[1]) tokens, rank \(rank), \(keptLayers) layers kept, weights \(weights), layer inputs in \(checkpoints), \(threads) threads
                  \(Int(tokensPerSecond)) tokens/s   \(Int(gflops)) GFLOP/s   \(percent(shareOfPeak)) of the f32 peak of \(Int(peakGflops))
                  resident peak \(peakRssBytes >> 20) MiB, planned \(plannedPeakBytes >> 20) MiB
                  operation           time        of step   speed          of peak   if all from memory

                """ + rows.joined(separator: "\n")
        }
    }

    func run() throws {
        let kernels = try KernelSet.choose(set)
        let compute = precision ?? kernels.preferredComputeType
        let base = try BaseModel.open(path: model)
        let lora = AdapterSpec(rank: rank, alpha: Float(2 * rank), dropout: 0, targets: .allLinear, layers: nil)
        let memory = try MemoryModel(base, adapter: lora)
        guard let kept = keep == "all" ? memory.trainedLayers : Int(keep), (0...memory.trainedLayers).contains(kept) else {
            throw ValidationError("--keep: 0 to \(memory.trainedLayers), or all")
        }
        let shape = StepShape(
            tokens: samples * tokens, longestSample: tokens, lossChunk: min(lossChunk, samples * tokens),
            keptLayers: kept, weights: weights, checkpoints: checkpoints, threads: threads,
            compute: compute)
        let arena = try Arena(capacity: memory.arena(shape))
        let step = try TrainStep(
            model: base, memory: memory, shape: shape, kernels: kernels, arena: arena, spillDirectory: "/tmp")
        step.adapters[0].initialize(seed: 1)
        let random = RandomSource(seed: 2, .sampling)
        let made =
            (0..<samples).map { sample in
                TokenizedSample(
                    tokens: (0..<tokens).map { TokenID(random.integer(sample * tokens + $0, below: base.spec.vocabularySize)) },
                    carriesLoss: (0..<tokens).map { $0 > 0 })
            }
        let batch = MicroBatch(made)
        try step.measureSmoothing(made)
        let seconds = try Measurement.median(runs: runs) { try Self.run(step, batch) }
        let resident = Measurement.peakResidentBytes
        let peakArena = try Arena(capacity: ByteCount(64 << 20))
        let peakPool = WorkerPool(kernels: kernels, threadCount: threads, scratchFloats: 0, arena: peakArena)
        let peak = Measurement.peak(kernels, .f32, pool: peakPool)
        let productPeak = Measurement.peak(kernels, compute, pool: peakPool)
        let flop = Self.flop(base.spec, rank: rank, samples: samples, tokens: tokens, keptLayers: kept)
        let breakdown = try measureOperations(step, batch)
        let line = Line(
            kernelSet: kernels.name, precision: compute.rawValue, shape: [samples, tokens], rank: rank,
            keptLayers: kept, weights: weights.rawValue, checkpoints: checkpoints.rawValue, threads: threads, seconds: seconds,
            tokensPerSecond: Double(samples * tokens) / seconds, gflops: flop / seconds / 1e9, peakGflops: peak / 1e9,
            shareOfPeak: flop / seconds / peak, peakRssBytes: resident, plannedPeakBytes: memory.peak(shape).bytes,
            operations: breakdown.map { operation, total in
                Line.Operation(
                    name: operation.rawValue, seconds: total.seconds, share: total.seconds / seconds,
                    gflops: total.cost.flop / total.seconds / 1e9,
                    shareOfPeak: total.cost.flop / total.seconds / (Self.usesPrecision(operation) ? productPeak : peak),
                    gigabytesPerSecond: total.cost.bytes / total.seconds / 1e9)
            }.sorted { $0.seconds > $1.seconds })
        if json { try Measurement.printLine(line) } else { print(line.table) }
    }

    /// Seconds and cost of each kind of operation in one step, with the observer's own two clock readings per operation.
    private func measureOperations(_ step: TrainStep, _ batch: MicroBatch) throws -> [EdgeTensor.Operation: Total] {
        var totals: [EdgeTensor.Operation: Total] = [:]
        step.observer = { operation, cost, run in
            let start = ContinuousClock.now
            run()
            totals[operation, default: Total()].add(cost, (ContinuousClock.now - start) / .seconds(1))
        }
        defer { step.observer = nil }
        try Self.run(step, batch)
        return totals
    }

    private static func run(_ step: TrainStep, _ batch: MicroBatch) throws {
        var loss = 0.0
        step.clearGradients()
        try step.accumulate(batch, lossScale: 1 / Float(batch.lossRows.count), masks: nil, loss: &loss)
    }

    private struct Total {
        var seconds = 0.0
        var cost = OperationCost(flop: 0, bytes: 0)
        mutating func add(_ other: OperationCost, _ time: Double) {
            seconds += time
            cost.flop += other.flop
            cost.bytes += other.bytes
        }
    }

    /// Whether the operation is computed in the step's precision, and so measured against that type's peak.
    private static func usesPrecision(_ operation: EdgeTensor.Operation) -> Bool {
        operation == .frozenProduct || operation == .headProduct
    }

    /// 2 FLOP per weight and token for each of forward, dx and, with recomputation, forward again (all but the last
    /// product of a layer); the head twice; the adapters' products; attention over half of the square.
    static func flop(_ spec: DecoderSpec, rank: Int, samples: Int, tokens: Int, keptLayers: Int) -> Double {
        let total = Double(samples * tokens)
        var linears = 0.0, down = 0.0, adapters = 0.0
        for module in LinearModule.allCases {
            let (inFeatures, outFeatures) = (Double(module.inFeatures(spec)), Double(module.outFeatures(spec)))
            linears += inFeatures * outFeatures
            if module == .down { down = inFeatures * outFeatures }
            adapters += Double(rank) * (inFeatures + outFeatures)
        }
        let layers = Double(spec.layerCount)
        let again = 1 - Double(keptLayers) / layers
        let products = layers * 2 * total * (linears * (2 + again) - down * again)
        let lowRank = layers * 2 * total * adapters * (3 + again)
        let head = 2 * 2 * total * Double(spec.vocabularySize * spec.hiddenSize)
        // Forward two products, backward five, recomputation two more, over T²/2 scores a head.
        let attention =
            layers * (7 + 2 * again) * Double(samples) * Double(tokens) * Double(tokens) / 2 * 2
            * Double(spec.queryWidth)
        return products + lowRank + head + attention
    }
}
