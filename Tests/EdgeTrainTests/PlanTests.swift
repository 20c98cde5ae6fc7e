// The planner's ladder, the data order and the learning-rate schedules: pure values.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Testing

struct PlanTests {
    static func memory(_ lora: AdapterSpec = GoldenTests.tinyLoRA) throws -> MemoryModel {
        try MemoryModel(BaseModel.open(path: TestModel.path), adapter: lora)
    }

    static func plan(
        _ memory: MemoryModel, budgetMiB: Int, longest: Int = 512, samples: Int = 4, appliesLayerByLayer: Bool = false,
        optimizer: OptimizerState? = .f32
    ) throws -> TrainingPlan {
        try plan(
            memory, budgetBytes: budgetMiB << 20, longest: longest, samples: samples, appliesLayerByLayer: appliesLayerByLayer,
            optimizer: optimizer)
    }

    static func plan(
        _ memory: MemoryModel, budgetBytes: Int, longest: Int = 512, samples: Int = 4, appliesLayerByLayer: Bool = false,
        optimizer: OptimizerState? = .f32
    ) throws -> TrainingPlan {
        let spec = TrainingSpec(adapter: memory.adapter, samplesPerStep: samples, maxSteps: 1)
        let lengths = [SampleLengths.Length](repeating: .init(tokens: longest, lossTokens: longest - 1), count: samples)
        return try TrainingPlan.make(
            memory, lengths: SampleLengths(training: lengths, heldOut: [], spec: spec),
            PlanLimits(
                budget: ByteCount(budgetBytes), threads: 2, compute: .f32, optimizer: optimizer, spill: ByteCount(1 << 40),
                appliesLayerByLayer: appliesLayerByLayer, calibration: .nominal, weightsAreCached: true))
    }

    @Test("from rich to poor the plan gets slower, never larger than its budget, and then is refused")
    func ladder() throws {
        let memory = try Self.memory()
        var last = TrainingPlan?.none
        var refused: PlanError?
        for budget in stride(from: 4000, through: 60, by: -20) {
            do {
                let plan = try Self.plan(memory, budgetMiB: budget)
                #expect(plan.peak <= plan.budget)
                #expect(plan.pools.reduce(ByteCount.zero) { $0 + $1.size } == plan.peak)
                #expect(refused == nil, "\(budget) MiB fits, a larger budget was refused")
                // Plans within half a percent count as equally fast, and a file has to be worth a twentieth.
                if let last { #expect(plan.seconds! > 0.94 * last.seconds!, "\(budget) MiB") }
                last = plan
            } catch let error as PlanError {
                refused = refused ?? error
            }
        }
        guard case .doesNotFit(let needed, _, _) = try #require(refused) else { return }
        let smallest = try Self.plan(memory, budgetBytes: needed.bytes)
        #expect(smallest.shape.keptLayers == 0 && smallest.shape.weights == .streamed && smallest.shape.checkpoints == .file)
        #expect(smallest.shape.tokens == 512 && smallest.peak == needed)
        #expect(throws: PlanError.self) { try Self.plan(memory, budgetBytes: needed.bytes - 1) }
        #expect(try Self.plan(memory, budgetMiB: 100_000).trades.isEmpty)
    }

    @Test("every trade is named, with what it saves")
    func tradesAreNamed() throws {
        let memory = try Self.memory()
        let plan = try Self.plan(memory, budgetMiB: 150)
        #expect(!plan.trades.isEmpty)
        for trade in plan.trades { #expect(trade.saves > .zero && trade.costs! >= 0, "\(trade.text)") }
        #expect(plan.trades.contains { $0.what.hasPrefix("recompute") })
    }

    @Test("layers are kept as memory allows, not all or none")
    func selectiveRecomputation() throws {
        let memory = try Self.memory()
        let kept = try Set(stride(from: 250, through: 650, by: 25).map { try Self.plan(memory, budgetMiB: $0, samples: 1).shape.keptLayers })
        #expect(kept.count > 3, "\(kept)")
    }

    @Test("without clipping, gradients of one micro-batch are applied layer by layer")
    func gradientsOfOneLayer() throws {
        let memory = try Self.memory()
        let clipped = try Self.plan(memory, budgetMiB: 4000, samples: 1)
        let plan = try Self.plan(memory, budgetMiB: 4000, samples: 1, appliesLayerByLayer: true)
        #expect(clipped.shape.gradients == .allLayers && plan.shape.gradients == .oneLayer)
        #expect(memory.gradients(plan.shape).bytes * 29 < memory.gradients(clipped.shape).bytes)
        // Two micro-batches have a sum to keep.
        let two = try Self.plan(memory, budgetMiB: 150, samples: 4, appliesLayerByLayer: true)
        #expect(two.microBatchesPerStep > 1 && two.shape.gradients == .allLayers)
    }

    @Test("8-bit state is taken where nothing exact fits, and not before; asked for f32, it is not")
    func optimizerStateIsTheLastRung() throws {
        let memory = try Self.memory(AdapterSpec(rank: 16, alpha: 16, dropout: 0, targets: .allLinear, layers: nil))
        guard case .doesNotFit(let exact, _, _)? = #expect(throws: PlanError.self, performing: { try Self.plan(memory, budgetMiB: 1) }) else { return }
        guard case .doesNotFit(let least, _, _)? = #expect(throws: PlanError.self, performing: { try Self.plan(memory, budgetMiB: 1, optimizer: nil) }) else { return }
        #expect(exact.bytes - least.bytes > 20 << 20)
        #expect(try Self.plan(memory, budgetBytes: exact.bytes, optimizer: nil).shape.optimizer == .f32)
        let rounded = try Self.plan(memory, budgetBytes: exact.bytes - 1, optimizer: nil)
        #expect(rounded.shape.optimizer == .eightBit && rounded.trades.contains { $0.what.contains("8 bits") })
        #expect(throws: PlanError.self) { try Self.plan(memory, budgetBytes: exact.bytes - 1) }
    }

    @Test("a refusal's changes fit as they are written, and the longest sequence is exact")
    func refusalIsExact() throws {
        let lora = AdapterSpec(rank: 64, alpha: 64, dropout: 0, targets: .allLinear, layers: nil)
        let memory = try Self.memory(lora)
        guard case .doesNotFit(let least, _, _)? = #expect(throws: PlanError.self, performing: {
            try Self.plan(memory, budgetMiB: 1, longest: 8192, samples: 1)
        }) else { return }
        for budget in [least.mebibytes * 7 / 10, least.mebibytes - 1] {
            do {
                _ = try Self.plan(memory, budgetMiB: budget, longest: 8192, samples: 1)
                Issue.record("8192 tokens fit \(budget) MiB")
            } catch PlanError.doesNotFit(let needed, let allowed, let changes) {
                #expect(needed > allowed)
                func value(_ key: String) -> Int? {
                    changes.first { $0.line.hasPrefix(key + ": ") }.flatMap { Int($0.line.drop { !$0.isNumber }.prefix { $0.isNumber }) }
                }
                let longest = try #require(value("sequence_len"))
                _ = try Self.plan(memory, budgetMiB: budget, longest: longest, samples: 1)
                #expect(throws: PlanError.self) { try Self.plan(memory, budgetMiB: budget, longest: longest + 8, samples: 1) }
                _ = try Self.plan(memory, budgetMiB: try #require(value("memory_budget")), longest: 8192, samples: 1)
                if let rank = value("lora_r") {
                    var lower = lora
                    lower.rank = rank
                    _ = try Self.plan(try Self.memory(lower), budgetMiB: budget, longest: 8192, samples: 1)
                }
            }
        }
    }

    @Test("a refusal takes milliseconds")
    func refusalIsFast() throws {
        let memory = try Self.memory()
        let seconds = processorSeconds { #expect(throws: PlanError.self) { try Self.plan(memory, budgetMiB: 10, longest: 4096) } }
        #expect(seconds < 0.1, "\(seconds)")
    }

    @Test("an epoch visits every sample once, in another order than the next")
    func epochsAreComplete() throws {
        var run = TinyRun()
        run.spec.epochs = 3
        let order = DataOrder(sampleCount: 14, spec: run.spec)
        #expect(order.totalSteps == 12 && order.stepsPerEpoch == 4)
        var orders: [[Int]] = []
        for epoch in 0..<3 {
            let permutation = order.permutation(epoch: epoch)
            let visited = (0..<4).flatMap { order.samples(step: epoch * 4 + $0, permutation: permutation) }
            #expect(visited.sorted() == Array(0..<14))
            orders.append(visited)
        }
        #expect(Set(orders).count == 3)
    }

    @Test("the largest micro-batch of the run is exact, and packing keeps the order and the budget")
    func largestMicroBatch() {
        let dataset = Dataset(training: TinyRun.samples(23), heldOut: TinyRun.samples(3))
        let spec = TinyRun().spec
        let order = DataOrder(sampleCount: 23, spec: spec)
        for budget in [20, 30, 45, 1000] {
            var largest = MicroBatchSize(tokens: 0, lossTokens: 0, perStep: 0)
            func take(_ batch: [TokenizedSample]) {
                largest.tokens = max(largest.tokens, batch.reduce(0) { $0 + $1.tokens.count })
                largest.lossTokens = max(largest.lossTokens, Dataset.lossTokens(batch))
                #expect(batch.count == 1 || batch.reduce(0) { $0 + $1.tokens.count } <= budget)
            }
            for batch in packed(dataset.heldOut, tokenBudget: budget, tokens: \.tokens.count) { take(batch) }
            for step in 0..<order.totalSteps {
                let indices = order.samples(step: step, permutation: order.permutation(epoch: order.epoch(step)))
                let batches = packed(indices, tokenBudget: budget, tokens: { dataset.training[$0].tokens.count })
                #expect(batches.flatMap { $0 } == Array(indices))
                for batch in batches { take(batch.map { dataset.training[$0] }) }
                largest.perStep = max(largest.perStep, batches.count)
            }
            #expect(SampleLengths(dataset, spec: spec).largestMicroBatch(tokenBudget: budget) == largest)
        }
    }

    @Test("schedules warm up from zero and end as transformers' do")
    func schedules() {
        var spec = TinyRun().spec
        spec.learningRate = 1
        spec.warmUp = .steps(10)
        for schedule in [TrainingSpec.Schedule.linear, .cosine, .constant] {
            spec.schedule = schedule
            #expect(spec.learningRate(step: 0, of: 110) == 0)
            #expect(abs(spec.learningRate(step: 5, of: 110) - 0.5) < 1e-12)
            #expect(abs(spec.learningRate(step: 10, of: 110) - 1) < 1e-12)
        }
        spec.schedule = .linear
        #expect(abs(spec.learningRate(step: 60, of: 110) - 0.5) < 1e-12)
        spec.schedule = .cosine
        #expect(abs(spec.learningRate(step: 60, of: 110) - 0.5) < 1e-12)
        #expect(abs(spec.learningRate(step: 35, of: 110) - 0.8535533905932737) < 1e-12)
        spec.warmUp = .share(0.1)
        #expect(abs(spec.learningRate(step: 11, of: 110) - 1) < 1e-12)
    }

    @Test("the held-out part is apart, seeded, and leaves something to train on")
    func heldOut() {
        let samples = TinyRun.samples(20)
        let split = Dataset(samples, heldOut: 0.25, seed: 1)
        #expect(split.heldOut.count == 5 && split.training.count == 15)
        #expect(split.heldOut.allSatisfy { sample in !split.training.contains(sample) })
        #expect(Dataset(samples, heldOut: 0.25, seed: 1).heldOut == split.heldOut)
        #expect(Dataset(samples, heldOut: 0.25, seed: 2).heldOut != split.heldOut)
        #expect(Dataset(samples, heldOut: 0, seed: 1).heldOut.isEmpty)
        #expect(Dataset(Array(samples.prefix(1)), heldOut: 10, seed: 1).training.count == 1)
    }
}

struct LoRATargetTests {
    static let spec = DecoderSpec(
        architecture: "llama", layerCount: 3, hiddenSize: 64, intermediateSize: 128, attentionHeadCount: 4,
        keyValueHeadCount: 2, headDim: 16, vocabularySize: 100, contextLength: 64, normEpsilon: 1e-5,
        rotary: RotarySpec(theta: 10_000, rotated: 16))

    static func modules(_ targets: AdapterSpec.Targets, layers: [Int]? = nil) throws -> [String] {
        try AdapterSpec(rank: 4, alpha: 8, dropout: 0, targets: targets, layers: layers).modules(of: spec).map { $0.path(spec) }
    }

    @Test("names match the end of a path at a dot, as in PEFT")
    func names() throws {
        #expect(try Self.modules(.names(["q_proj", "down_proj"])).count == 6)
        #expect(try Self.modules(.names(["self_attn.q_proj"])).count == 3)
        #expect(try Self.modules(.names(["model.layers.1.mlp.up_proj"])) == ["model.layers.1.mlp.up_proj"])
        #expect(throws: AdapterTargetError.self) { try Self.modules(.names(["proj"])) }
        #expect(throws: AdapterTargetError.self) { try Self.modules(.names(["q_proj", "qproj"])) }
    }

    @Test("a pattern must match the whole path")
    func patterns() throws {
        #expect(try Self.modules(.pattern(#".*\.(q|v)_proj"#)).count == 6)
        #expect(try Self.modules(.pattern(#"model\.layers\.[02]\..*"#)).count == 14)
        #expect(throws: AdapterTargetError.self) { try Self.modules(.pattern("q_proj")) }
        #expect(throws: AdapterTargetError.self) { try Self.modules(.pattern("(")) }
    }

    @Test("layers_to_transform restricts, and a layer that is not there is an error")
    func layers() throws {
        #expect(try Self.modules(.allLinear, layers: [1]).count == 7)
        #expect(throws: AdapterTargetError.self) { try Self.modules(.allLinear, layers: [3]) }
    }

    @Test("precision: the set's own choice by default, and a type without instructions is refused with those that have them")
    func precision() throws {
        var spec = Trainee.spec(learningRate: 1)
        for set in KernelSet.supported {
            spec.precision = nil
            #expect(try spec.computeType(on: set) == set.preferredComputeType)
            #expect(set.computeTypes.contains(set.preferredComputeType))
            for type in ComputeType.allCases {
                spec.precision = type
                if set.computeTypes.contains(type) {
                    #expect(try spec.computeType(on: set) == type)
                } else {
                    #expect(throws: PrecisionError(asked: type, kernelSet: set.name, available: set.computeTypes)) {
                        try spec.computeType(on: set)
                    }
                }
            }
        }
        #expect(try KernelSet.choose("portable").computeTypes == [.f32])
    }
}
