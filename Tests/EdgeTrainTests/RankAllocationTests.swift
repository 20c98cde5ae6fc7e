// AdaLoRA's regulariser, importance and allocations against real peft (Tests/Goldens/make_method_goldens.py), and in runs.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Testing

@Suite(.serialized)
struct RankAllocationTests {
    static let method = MethodCase.all.first { $0.name == "adalora" }!
    static let pruned = MethodCase(name: "adalora-pruned", adapter: method.adapter)

    @Test("the regulariser's gradient is peft's")
    func orthogonality() throws {
        let trainee = try MethodTests.trainee(Self.method)
        try trainee.adapters.load(MethodTests.tensors(Self.method, "initial"), trainee.model.spec)
        trainee.step.clearGradients()
        let allocator = try #require(trainee.allocator)
        allocator.addOrthogonality(0..<trainee.adapters.trainedCount, to: trainee.adapters.gradients, on: trainee.step.pool)
        let found = Dictionary(uniqueKeysWithValues: MethodTests.gradients(trainee).map { ($0.name, $0.values) })
        let expected = try MethodTests.tensors(Self.method, "orthogonality")
        #expect(expected.count == 2 * trainee.adapters.slots.count)
        var worst = 0.0
        for tensor in expected { worst = max(worst, relativeError(try #require(found[tensor.name]), tensor.values)) }
        #expect(worst < 5e-6)
        print("orthogonality: gradients \(worst)")
    }

    @Test("ten steps take the ranks away that peft's take, and leave its parameters")
    func tenSteps() throws {
        let trainee = try MethodTests.trainee(Self.method)
        try trainee.adapters.load(MethodTests.tensors(Self.method, "initial"), trainee.model.spec)
        _ = try trainee.train(MicroBatch(try MethodTests.golden.get().samples()), steps: 10, learningRate: 2e-3)
        let found = Dictionary(uniqueKeysWithValues: trainee.adapters.tensors(trainee.model.spec).map { ($0.name, $0.values) })
        var (worst, zeros) = (0.0, 0)
        for tensor in try MethodTests.tensors(Self.method, "trained") {
            let values = try #require(found[tensor.name])
            worst = max(worst, relativeError(values, tensor.values))
            guard tensor.name.hasSuffix("lora_E") else { continue }
            #expect(values.map { $0 == 0 } == tensor.values.map { $0 == 0 }, "\(tensor.name)")
            zeros += values.count { $0 == 0 }
        }
        #expect(zeros == 2 * trainee.adapters.slots.count)
        #expect(worst < 2e-3)
        print("ten steps of AdaLoRA: parameters \(worst)")
    }

    @Test("the budget of every step is peft's")
    func budgets() throws {
        let allocator = try #require(try MethodTests.trainee(Self.method).allocator)
        let expected = try MethodTests.golden.get().integers("adalora/budgets")
        #expect((0..<10).map { allocator.budget(step: $0) ?? -1 } == expected && expected.contains { $0 > 0 })
    }

    @Test("what peft saves without the ranks that it took away gives its loss, as it is, merged and as llama.cpp's adapter")
    func prunedDirectories() throws {
        try MethodTests().peftDirectories(Self.pruned)
        try MethodTests().ggufAdapters(Self.pruned)
    }

    @Test("a run ends with the ranks that were asked for, and has layer by layer the bits of all layers at once")
    func runs() throws {
        var run = TinyRun()
        run.spec.adapter = AdapterSpec(method: AdaLoRA(Self.allocation), rank: 4, alpha: 8, dropout: 0.1, targets: .allLinear, layers: nil)
        run.dataset = Dataset(TinyRun.samples(17), heldOut: 0, seed: 3)
        run.spec.microBatchSize = 4
        run.spec.gradientAccumulation = 1
        run.spec.maxGradNorm = nil
        var results: Set<[UInt32]> = []
        for extent in [AdapterSet.GradientExtent.allLayers, .oneLayer] {
            run.replan = { $0.shape.gradients = extent }
            results.insert(try MethodTests.adapter(of: run))
        }
        #expect(results.count == 1)
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let layout = try MemoryModel(model, adapter: run.spec.adapter).layout
        let values = try #require(results.first)
        let left = layout.slots.flatMap { values[$0.places[1].elements] }.count { Float(bitPattern: $0) != 0 }
        #expect(left == Self.allocation.target(of: 4) * layout.slots.count)
    }

    private static let allocation: RankAllocation = {
        var allocation = RankAllocation()
        (allocation.targetRank, allocation.initialSteps, allocation.finalSteps) = (1, 1, 3)
        return allocation
    }()

    @Test("a run without a step for allocations is refused, with its numbers")
    func noSteps() throws {
        var run = TinyRun()
        var allocation = Self.allocation
        allocation.initialSteps = 5
        run.spec.adapter.method = AdaLoRA(allocation)
        let directory = try TemporaryDirectory()
        #expect(throws: RankAllocationError.noStepsBetween(initial: 5, final: 3, total: 8)) { try run.run(in: directory.path) }
    }

    @Test("the value of every place is the sorted values', equal ones included")
    func selection() {
        for count in [1, 2, 3, 17, 200] {
            let random = RandomSource(seed: 5, .sampling, UInt64(count))
            let values = (0..<count).map { Float(random.integer($0, below: count)) }
            for place in 1...count {
                var turned = values
                let found = turned.withUnsafeMutableBufferPointer { RankAllocator.smallest(place, of: $0.baseAddress!, count: count) }
                #expect(found == values.sorted()[place - 1])
            }
        }
    }

    @Test("of adapters whose ranks are all gone in a linear, the rest is read")
    func emptyLinears() throws {
        let scratch = try TemporaryDirectory()
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let gone = "base_model.model.model.layers.0.self_attn.q_proj"
        func rows(_ tensor: AdapterTensor) -> AdapterTensor {
            guard tensor.name.hasPrefix(gone) else { return tensor }
            let isP = tensor.name.hasSuffix("lora_B")
            return AdapterTensor(name: tensor.name, shape: isP ? [tensor.shape[0], 0] : [0, tensor.shape[1]], values: [])
        }
        try MethodTests.peftDirectory(Self.method, scratch.path, rows)
        let without = try MethodTests.loss(model, LoadedAdapter(directory: scratch.path, of: model.spec), in: scratch.path)
        let zeroed = try TemporaryDirectory()
        try MethodTests.peftDirectory(Self.method, zeroed.path) { tensor in
            guard tensor.name == gone + ".lora_E" else { return tensor }
            return AdapterTensor(name: tensor.name, shape: tensor.shape, values: tensor.values.map { _ in 0 })
        }
        #expect(try MethodTests.loss(model, LoadedAdapter(directory: zeroed.path, of: model.spec), in: zeroed.path) == without)
        #expect(try abs(without / MethodTests.wholeLoss(Self.method) - 1) > 1e-4)
    }
}
