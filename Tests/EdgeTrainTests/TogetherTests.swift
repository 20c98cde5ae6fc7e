// Jobs that train together: each must end with the bits that it has alone, whatever the others are and whenever they end.
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Testing

/// Runs that share a step.
struct TinyGroup {
    var runs: [TinyRun]
    var budget = ByteCount(1 << 30)
    var calibration: Calibration?
    /// What the test wants otherwise than the planner.
    var replan: @Sendable (inout StepShape) -> Void = { _ in }

    func plan(_ model: BaseModel) throws -> (memory: MemoryModel, plan: TrainingPlan)? {
        let alone = try runs.map { run in
            let memory = try run.memory(of: model)
            return (memory: memory, optimizer: try run.plan(memory).shape.optimizer)
        }
        let memory = MemoryModel(together: alone, process: .typical)
        var limits = try runs[0].limits
        limits.budget = budget
        limits.calibration = calibration
        limits.appliesLayerByLayer = runs.allSatisfy { $0.spec.maxGradNorm == nil }
        guard var plan = TrainingPlan.together(memory, lengths: runs.map { SampleLengths($0.dataset, spec: $0.spec) }, limits) else {
            return nil
        }
        replan(&plan.shape)
        return (memory, plan)
    }

    /// Each in a directory of its number.
    ///
    /// - Returns: of each run: how it ended, and its adapter.
    func run(
        in path: String, _ conversations: [TinyRun.Conversation]
    ) throws -> [(outcome: Result<RunOutcome, any Error>, adapter: [UInt32])] {
        let model = try BaseModel.open(path: runs[0].modelPath)
        let (memory, plan) = try #require(try plan(model))
        let jobs = try runs.indices.map {
            try runs[$0].job(in: "\(path)/\($0)", tokenBudget: plan.tokenBudgets[$0], conversations[$0])
        }
        let group = try TrainingGroup(
            jobs, model: model, memory: memory, shape: plan.shape, kernels: .strongest,
            smoothingSamples: TinyRun.smoothing, spillDirectory: path)
        var ends: [Int: (Result<RunOutcome, any Error>, [UInt32])] = [:]
        // Taken when it ends: others train on.
        try group.run { job, outcome in ends[job] = (outcome, group.runs[job].adapters.bits) }
        return try runs.indices.map { try #require(ends[$0]) }
    }
}

@Suite(.serialized)
struct TogetherTests {
    /// Jobs that are different in everything that jobs may be different in.
    static func runs(_ methods: [String], _ precision: ComputeType = .f32) -> [TinyRun] {
        methods.enumerated().map { index, name in
            let method = AdapterMethods.tested(name)!
            var run = TinyRun()
            run.spec.adapter = AdapterSpec(
                method: method, rank: 2 + index, alpha: 8, dropout: method.hasDropout && index % 2 == 0 ? 0.1 : 0,
                targets: index == 1 && method.adaptsLinears ? .names(["k_proj", "o_proj", "down_proj"]) : .allLinear, layers: index == 2 ? [1] : nil)
            run.spec.precision = precision
            run.spec.seed = UInt64(index + 1)
            run.spec.epochs = [2, 1, 3, 2][index % 4]
            run.spec.microBatchSize = 1 + index % 3
            run.spec.learningRate = 3e-3 * Double(index + 1)
            let samples = TinyRun.samples(30).dropFirst(3 * index).prefix(14 + index)
            run.dataset = Dataset(samples.map { $0.behindVirtualTokens(method.promptTokens(run.spec.adapter)) }, heldOut: index == 3 ? 0 : 3, seed: 5)
            return run
        }
    }

    struct Case: CustomTestStringConvertible, Sendable {
        let methods: [String]
        var precision = ComputeType.f32
        var replan: @Sendable (inout StepShape) -> Void = { _ in }
        var clips = true
        let testDescription: String

        private static let leastMemory: @Sendable (inout StepShape) -> Void = {
            $0.keptLayers = 0
            $0.weights = .streamed
            $0.checkpoints = .file
            $0.lossChunk = 5
        }

        static let all = [
            Case(methods: ["lora", "lora"], testDescription: "two of a method"),
            Case(methods: ["lora", "lora-fa", "vera", "lora"], testDescription: "four, products alone"),
            Case(methods: ["ia3", "dora", "lora", "ia3"], testDescription: "scales beside none"),
            Case(methods: ["loha", "miss", "dylora", "dora"], testDescription: "derived factors"),
            Case(methods: ["lora", "oft", "ia3", "oft"], testDescription: "inputs that are turned, scaled, and as they are"),
            Case(methods: ["prefix-tuning", "lora", "prompt-tuning", "prefix-tuning"], testDescription: "tokens that there are not"),
            Case(methods: ["rlrr", "shira", "lora", "rlrr"], testDescription: "terms beside the product"),
            Case(methods: ["shira", "rlrr", "ia3"], precision: .bf16, testDescription: "bf16, terms beside the product"),
            Case(methods: ["rlrr", "lora", "shira"], precision: .int8, testDescription: "int8, terms beside the product"),
            Case(methods: ["ln-tuning", "lora", "ln-tuning", "prompt-tuning"], testDescription: "norms of their own"),
            Case(methods: ["trainable-tokens", "ln-tuning", "trainable-tokens", "lora"], testDescription: "tokens of their own"),
            Case(
                methods: ["trainable-tokens", "lora", "ln-tuning"], precision: .bf16, replan: leastMemory,
                testDescription: "norms and tokens, streamed, nothing kept"),
            Case(methods: ["seq_bn", "lora", "double_seq_bn", "par_bn"], testDescription: "bottlenecks"),
            Case(methods: ["mam", "prefix-tuning", "mam"], testDescription: "a mix beside prefixes"),
            Case(methods: ["unipelt", "mam", "unipelt", "lora"], testDescription: "gates beside none"),
            Case(methods: ["unipelt", "seq_bn"], precision: .bf16, testDescription: "bf16, gates"),
            Case(methods: ["lora", "unipelt"], replan: leastMemory, testDescription: "gates, streamed, nothing kept"),
            Case(methods: ["double_seq_bn", "ia3", "seq_bn"], precision: .bf16, testDescription: "bf16, bottlenecks"),
            Case(methods: ["lora", "dora", "ia3"], precision: .bf16, testDescription: "bf16"),
            Case(methods: ["oft", "ia3", "lora"], precision: .bf16, testDescription: "bf16, transformed inputs"),
            Case(methods: ["lora", "lora", "dora"], precision: .int8, testDescription: "int8, with one smoothing"),
            Case(methods: ["lora", "ia3", "miss"], replan: leastMemory, testDescription: "streamed, nothing kept"),
            Case(methods: ["mixlora", "lora", "mixlora", "ia3"], testDescription: "experts beside none"),
            Case(methods: ["mixlora", "dora"], precision: .bf16, testDescription: "bf16, experts"),
            Case(methods: ["lst", "lora", "lst", "mixlora"], testDescription: "side networks beside none"),
            Case(methods: ["lst", "lst"], precision: .bf16, testDescription: "bf16, side networks alone"),
            Case(methods: ["lst", "dora", "lst"], replan: leastMemory, testDescription: "side networks, streamed, nothing kept"),
            Case(methods: ["lora", "lst"], clips: false, testDescription: "a side network without clipping"),
            Case(methods: ["lora", "vera", "loha"], clips: false, testDescription: "without clipping"),
        ]
    }

    @Test("each job ends with the bits that it has alone", arguments: Case.all)
    func sameBits(_ one: Case) throws {
        guard KernelSet.strongest.computeTypes.contains(one.precision) else { return }
        var group = TinyGroup(runs: Self.runs(one.methods, one.precision), replan: one.replan)
        if !one.clips { for index in group.runs.indices { group.runs[index].spec.maxGradNorm = nil } }
        let own = try group.runs.map { run in
            let directory = try TemporaryDirectory()
            return try run.run(in: directory.path)
        }
        let place = try TemporaryDirectory()
        let conversations = group.runs.map { _ in TinyRun.Conversation() }
        let together = try group.run(in: place.path, conversations)
        for index in own.indices {
            #expect(try together[index].outcome.get() == own[index].outcome, "\(one.methods[index])")
            #expect(together[index].adapter == own[index].adapter, "\(one.methods[index])")
            #expect("\(conversations[index].events)" == "\(own[index].events)", "\(one.methods[index])")
        }
    }

    @Test("a job that is stopped or fails leaves the others as they are, and goes on alone")
    func apart() throws {
        var group = TinyGroup(runs: Self.runs(["lora", "dora", "lora"]))
        group.runs[1].spec.learningRate = 1e30
        group.runs[1].spec.schedule = .constant
        group.runs[1].spec.maxGradNorm = nil
        let own = try [0, 2].map { index in
            let directory = try TemporaryDirectory()
            return try group.runs[index].run(in: directory.path)
        }
        let place = try TemporaryDirectory()
        let ends = try group.run(in: place.path, [.init(), .init(), .init(stopAfter: 5)])
        #expect(ends[0].adapter == own[0].adapter)
        #expect(throws: TrainingError.self) { try ends[1].outcome.get() }
        guard case .stopped(let step) = try ends[2].outcome.get() else { Issue.record("not stopped"); return }
        #expect(step > 0)
        #expect(try group.runs[2].run(in: place.path + "/2").adapter == own[1].adapter)
    }

    @Test("what is planned for a group is taken, by any of its shapes, and a budget that holds one job need not hold two")
    func plans() throws {
        let model = try BaseModel.open(path: TinyRun.modelPath)
        var group = TinyGroup(runs: Self.runs(["lora", "dora"]), calibration: .nominal)
        let free = try #require(try group.plan(model)).plan
        let alone = try group.runs.map { run in
            var limits = try run.limits
            limits.calibration = .nominal
            return try TrainingPlan.make(run.memory(of: model), lengths: SampleLengths(run.dataset, spec: run.spec), limits)
        }
        #expect(alone.allSatisfy { $0.peak < free.peak })
        #expect(free.peak < alone[0].peak + alone[1].peak)
        #expect(free.seconds! < alone[0].seconds! + alone[1].seconds!)
        #expect(abs(free.tokens - alone[0].tokens - alone[1].tokens) < 1e-6 * free.tokens)
        group.budget = alone.map(\.peak).max()! + ByteCount(1)
        var smallest: ByteCount?
        while let planned = try group.plan(model) {
            #expect(planned.plan.peak <= group.budget)
            // A step that takes another amount ends the process.
            let place = try TemporaryDirectory()
            _ = try group.run(in: place.path, [.init(), .init()])
            smallest = planned.plan.peak
            group.budget = ByteCount(planned.plan.peak.bytes - 1 - planned.plan.peak.bytes / 50)
        }
        #expect(smallest != nil)
    }
}
