// One micro-batch, forward and backward, of a real model: tokens per second, memory, and the share of the peak.
import ArgumentParser
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTrain

extension RecomputePolicy: ExpressibleByArgument {}
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
    @Option(help: "f32, bf16 or int8; what the kernel set prefers when absent.") var precision: ComputeType?
    @Option(help: "keepAll or everyLayer.") var recompute = RecomputePolicy.everyLayer
    @Option(help: "Loss tokens whose logits exist at once.") var lossChunk = 128
    @Option(help: "Counted runs.") var runs = 5
    @Flag(help: "One JSON line.") var json = false

    struct Line: Encodable {
        let kernelSet: String, shape: [Int], rank: Int, recompute: String, threads: Int
        let seconds: Double, tokensPerSecond: Double, gflops: Double, peakGflops: Double, shareOfPeak: Double
        let peakRssBytes: Int, plannedPeakBytes: Int
    }

    func run() throws {
        useCallingThreadForDenseProducts()
        let kernels = try KernelSet.choose(set)
        let compute = precision ?? kernels.preferredComputeType
        let base = try BaseModel.open(path: model)
        let lora = LoRASpec(rank: rank, alpha: Float(2 * rank), dropout: 0, targets: .allLinear, layers: nil)
        let memory = MemoryModel(
            spec: base.spec, lora: lora, modules: try lora.modules(of: base.spec), weightBytes: base.weightBytes)
        let shape = StepShape(
            tokens: samples * tokens, longestSample: tokens, policy: recompute,
            lossChunk: min(lossChunk, samples * tokens), threads: threads, keepsBest: false,
            compute: compute)
        let arena = try Arena(capacity: memory.arena(shape))
        let step = TrainStep(model: base, memory: memory, shape: shape, kernels: kernels, arena: arena)
        step.adapters.initialize(seed: 1)
        let random = RandomSource(seed: 2, .sampling)
        let batch = MicroBatch(
            (0..<samples).map { sample in
                TokenizedSample(
                    tokens: (0..<tokens).map { TokenID(random.integer(sample * tokens + $0, below: base.spec.vocabularySize)) },
                    carriesLoss: (0..<tokens).map { $0 > 0 })
            })
        let seconds = Measurement.median(runs: runs) {
            step.clearGradients()
            _ = step.accumulate(batch, lossScale: 1 / Float(batch.lossRows.count), dropoutKey: nil)
        }
        let resident = Measurement.peakResidentBytes
        let peakArena = try Arena(capacity: ByteCount(64 << 20))
        let peak = Measurement.peak(
            kernels, .f32, pool: WorkerPool(kernels: kernels, threadCount: threads, scratchFloats: 0, arena: peakArena))
        let flop = Self.flop(base.spec, rank: rank, samples: samples, tokens: tokens, recompute: recompute)
        let line = Line(
            kernelSet: kernels.name, shape: [samples, tokens], rank: rank, recompute: recompute.rawValue,
            threads: threads, seconds: seconds, tokensPerSecond: Double(samples * tokens) / seconds,
            gflops: flop / seconds / 1e9, peakGflops: peak / 1e9, shareOfPeak: flop / seconds / peak,
            peakRssBytes: resident, plannedPeakBytes: memory.peak(shape).bytes)
        if json {
            try Measurement.printLine(line)
        } else {
            print(
                """
                \(line.kernelSet), \(samples) x \(tokens) tokens, rank \(rank), \(recompute.rawValue), \(threads) threads
                  \(Int(line.tokensPerSecond)) tokens/s   \(Int(line.gflops)) GFLOP/s   \
                \((line.shareOfPeak * 1000).rounded() / 10) % of the measured peak of \(Int(line.peakGflops))
                  resident peak \(resident >> 20) MiB, planned \(memory.peak(shape).mebibytes) MiB
                """)
        }
    }

    /// 2 FLOP per weight and token for each of forward, dx and, with recomputation, forward again (all but the last
    /// product of a layer); the head twice; the adapters' products; attention over half of the square.
    static func flop(_ spec: DecoderSpec, rank: Int, samples: Int, tokens: Int, recompute: RecomputePolicy) -> Double {
        let total = Double(samples * tokens)
        var linears = 0.0, down = 0.0, adapters = 0.0
        for module in LinearModule.allCases {
            let (inFeatures, outFeatures) = (Double(module.inFeatures(spec)), Double(module.outFeatures(spec)))
            linears += inFeatures * outFeatures
            if module == .down { down = inFeatures * outFeatures }
            adapters += Double(rank) * (inFeatures + outFeatures)
        }
        let layers = Double(spec.layerCount)
        let again = recompute == .everyLayer ? 1.0 : 0.0
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
