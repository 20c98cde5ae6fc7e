// The planner's ladder, the data order and the learning-rate schedules: pure values.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Testing

struct PlanTests {
    static func memory(_ lora: LoRASpec = GoldenTests.tinyLoRA) throws -> MemoryModel {
        let model = try BaseModel.open(path: TestModel.path)
        return MemoryModel(
            spec: model.spec, lora: lora, modules: try lora.modules(of: model.spec), weightBytes: model.weightBytes)
    }

    static func plan(_ memory: MemoryModel, budgetMiB: Int, longest: Int = 512, microBatch: Int = 4) throws -> TrainingPlan {
        try TrainingPlan.make(
            memory,
            batches: BatchSizes(
                longestSample: longest, microBatchSize: microBatch, gradientAccumulation: 1,
                largestMicroBatch: { size, _ in size * longest }),
            threads: 2, keepsBest: true, compute: .f32, budget: ByteCount(budgetMiB << 20))
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
                #expect(plan.microBatchSize * plan.gradientAccumulation >= 4)
                #expect(refused == nil, "\(budget) MiB fits, a larger budget was refused")
                if let last { #expect(plan.peak <= last.peak && plan.choices.count >= last.choices.count) }
                last = plan
            } catch let error as PlanError {
                refused = refused ?? error
            }
        }
        #expect(last?.shape.policy == .everyLayer && last?.microBatchSize == 1)
        #expect(refused != nil)
    }

    @Test("a refusal's longest sequence does fit, and eight tokens more do not")
    func refusalIsExact() throws {
        let memory = try Self.memory()
        for budget in [200, 230, 260] {
            do {
                _ = try Self.plan(memory, budgetMiB: budget, longest: 8192, microBatch: 1)
                Issue.record("8192 tokens fit \(budget) MiB")
            } catch PlanError.doesNotFit(let needed, let allowed, _, let longest) {
                #expect(needed > allowed)
                let fits = try #require(longest)
                _ = try Self.plan(memory, budgetMiB: budget, longest: fits, microBatch: 1)
                #expect(throws: PlanError.self) {
                    try Self.plan(memory, budgetMiB: budget, longest: fits + 8, microBatch: 1)
                }
            }
        }
    }

    @Test("an epoch visits every sample once, in another order than the next")
    func epochsAreComplete() throws {
        var run = TinyRun()
        run.spec.epochs = 3
        let order = DataOrder(sampleCount: 14, microBatchSize: 2, gradientAccumulation: 2, spec: run.spec)
        #expect(order.totalSteps == 12 && order.stepsPerEpoch == 4)
        var orders: [[Int]] = []
        for epoch in 0..<3 {
            let permutation = order.permutation(epoch: epoch)
            let visited = (0..<4).flatMap { order.microBatches(step: epoch * 4 + $0, permutation: permutation).flatMap { $0 } }
            #expect(visited.sorted() == Array(0..<14))
            orders.append(visited)
        }
        #expect(Set(orders).count == 3)
    }

    @Test("the largest micro-batch of the run is exact")
    func largestMicroBatch() {
        let samples = TinyRun.samples(23)
        let spec = TinyRun().spec
        let order = DataOrder(sampleCount: 23, microBatchSize: 3, gradientAccumulation: 2, spec: spec)
        var largest = 0
        for step in 0..<order.totalSteps {
            for batch in order.microBatches(step: step, permutation: order.permutation(epoch: order.epoch(step))) {
                largest = max(largest, batch.reduce(0) { $0 + samples[$1].tokens.count })
            }
        }
        #expect(order.largestMicroBatch(samples) == largest)
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
        keyValueHeadCount: 2, headDim: 16, vocabularySize: 100, contextLength: 64, rmsNormEpsilon: 1e-5,
        ropeTheta: 10_000, rotaryPairing: .interleaved)

    static func modules(_ targets: LoRASpec.Targets, layers: [Int]? = nil) throws -> [String] {
        try LoRASpec(rank: 4, alpha: 8, dropout: 0, targets: targets, layers: layers).modules(of: spec).map(\.path)
    }

    @Test("names match the end of a path at a dot, as in PEFT")
    func names() throws {
        #expect(try Self.modules(.names(["q_proj", "down_proj"])).count == 6)
        #expect(try Self.modules(.names(["self_attn.q_proj"])).count == 3)
        #expect(try Self.modules(.names(["model.layers.1.mlp.up_proj"])) == ["model.layers.1.mlp.up_proj"])
        #expect(throws: LoRATargetError.self) { try Self.modules(.names(["proj"])) }
        #expect(throws: LoRATargetError.self) { try Self.modules(.names(["q_proj", "qproj"])) }
    }

    @Test("a pattern must match the whole path")
    func patterns() throws {
        #expect(try Self.modules(.pattern(#".*\.(q|v)_proj"#)).count == 6)
        #expect(try Self.modules(.pattern(#"model\.layers\.[02]\..*"#)).count == 14)
        #expect(throws: LoRATargetError.self) { try Self.modules(.pattern("q_proj")) }
        #expect(throws: LoRATargetError.self) { try Self.modules(.pattern("(")) }
    }

    @Test("layers_to_transform restricts, and a layer that is not there is an error")
    func layers() throws {
        #expect(try Self.modules(.allLinear, layers: [1]).count == 7)
        #expect(throws: LoRATargetError.self) { try Self.modules(.allLinear, layers: [3]) }
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
