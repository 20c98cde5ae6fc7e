// Steps without a backward: MeZO's numbers by torch, every method's slope by its own gradient, the bits of runs, and what is planned.
// Tests/Goldens/make_zeroth_order_goldens.py made the references.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Testing

/// A model with an adapter and the memory of a forward.
struct Prober {
    let model: BaseModel
    let step: TrainStep
    var adapters: AdapterSet { step.adapters[0] }

    init(
        _ path: String, lora: AdapterSpec, tokens: Int, longest: Int, weights: WeightResidence = .resident, lossChunk: Int = 16,
        compute: ComputeType = .f32, kernels: KernelSet = .strongest, threads: Int = 2
    ) throws {
        model = try BaseModel.open(path: path)
        let memory = try MemoryModel(model, adapter: lora)
        let shape = StepShape(
            tokens: tokens, longestSample: longest, lossChunk: lossChunk, keptLayers: 0, weights: weights, gradients: .forwardOnly,
            threads: threads, compute: compute)
        let arena = try Arena(capacity: memory.arena(shape))
        step = try TrainStep(model: model, memory: memory, shape: shape, kernels: kernels, arena: arena, spillDirectory: "/tmp")
        precondition(arena.used == arena.capacity, "\(arena.used.bytes) of \(arena.capacity.bytes) bytes")
    }

    /// Mean nll at θ + distance · z.
    func loss(_ batch: MicroBatch, _ direction: RandomSource, distance: Float, masks: DropoutMasks? = nil) throws -> Double {
        var work = [JobMicroBatch(batch, lossScale: 0, masks: masks, perturbation: Perturbation(direction, distance: distance))]
        try step.accumulate(&work)
        return work[0].loss / Double(batch.lossRows.count)
    }

    func losses(_ batch: MicroBatch, _ direction: RandomSource, epsilon: Float) throws -> ZerothOrder.Losses {
        ZerothOrder.Losses(
            ahead: try loss(batch, direction, distance: epsilon), behind: try loss(batch, direction, distance: -epsilon))
    }

    var bits: [UInt32] { adapters.bits }
}

extension MethodCase {
    /// But DoRA, whose backward takes the rows' lengths as constants: its slope is another than its gradient's.
    static let forwardOnly = all.filter { ZerothOrder.isPossible(with: $0.adapter.method) && !($0.adapter.method is DoRA) }
}

extension TinyRun {
    /// In a directory that is gone afterwards.
    fileprivate func ended() throws -> Result {
        let directory = try TemporaryDirectory()
        return try run(in: directory.path)
    }
}

@Suite(.serialized)
struct ZerothOrderTests {
    static let methods = AdapterMethods.ofAnyModel.filter(ZerothOrder.isPossible).map(\.name)

    // MARK: numbers

    @Test("ten steps have torch's slopes and losses, and end at torch's adapter; between them the adapter is as it was")
    func parity() throws {
        let golden = try Golden("zeroth-order-goldens.safetensors"), start = try Golden("tiny-goldens.safetensors")
        let written = try #require(golden.file.metadata["seed"])
        let seed = try #require(UInt64(written))
        let settings = try golden.floats("settings")
        let (epsilon, learningRate, weightDecay) = (settings[0], Double(settings[1]), settings[2])
        func exact(_ name: String) throws -> [Double] {
            zip(try golden.floats(name), try golden.floats(name + ".rest")).map { Double($0) + Double($1) }
        }
        for kernels in KernelSet.supported {
            let prober = try Prober(TinyRun.modelPath, lora: GoldenTests.tinyLoRA, tokens: 20, longest: 13, kernels: kernels)
            try prober.adapters.load(
                start.file.tensors.filter { $0.name.hasPrefix("initial.") }.map {
                    AdapterTensor(name: String($0.name.dropFirst(8)), shape: $0.shape, values: try #require($0.floats()))
                }, prober.model.spec)
            let batch = MicroBatch(try golden.samples())
            let (ahead, behind, slopes) = (try exact("ahead"), try exact("behind"), try exact("slope"))
            let size = (slopes.reduce(0) { $0 + $1 * $1 } / Double(slopes.count)).squareRoot()
            var (worstSlope, worstLoss) = (0.0, 0.0)
            for step in slopes.indices {
                let direction = ZerothOrder.direction(seed: seed, step: step), before = prober.bits
                let losses = try prober.losses(batch, direction, epsilon: epsilon)
                #expect(prober.bits == before)
                let slope = losses.slope(epsilon: epsilon)
                worstSlope = max(worstSlope, abs(slope - slopes[step]) / size)
                worstLoss = max(worstLoss, abs(losses.ahead / ahead[step] - 1), abs(losses.behind / behind[step] - 1))
                prober.adapters.descend(
                    along: direction, slope: slope, learningRate: learningRate, weightDecay: weightDecay, on: prober.step.pool)
            }
            // f32 in torch is 1.8e-5 from f64 in slopes, and 1.5e-7 in losses.
            #expect(worstSlope < 1e-3 && worstLoss < 2e-6)
            var worstValue = 0.0
            for tensor in prober.adapters.tensors(prober.model.spec) {
                worstValue = max(worstValue, relativeError(tensor.values, try golden.floats("trained." + tensor.name)))
            }
            #expect(worstValue < 1e-5)
            print("parity of ten steps, \(kernels.name): slopes \(worstSlope), losses \(worstLoss), adapter \(worstValue)")
        }
    }

    @Test("the slope is every method's gradient along the direction", arguments: MethodCase.forwardOnly)
    func slopes(_ method: MethodCase) throws {
        let golden = try MethodTests.golden.get(), batch = MicroBatch(try golden.samples())
        let trainee = try MethodTests.trainee(method)
        let prober = try Prober(TinyRun.modelPath, lora: method.adapter, tokens: 20, longest: 13)
        for adapters in [trainee.adapters, prober.adapters] {
            try adapters.load(MethodTests.tensors(method, "initial"), trainee.model.spec)
        }
        _ = try trainee.accumulate(batch, lossScale: 1 / Float(batch.lossRows.count))
        let layout = trainee.adapters.layout
        var (worst, size) = (0.0, 0.0)
        for step in 0..<5 {
            let direction = ZerothOrder.direction(seed: 5, step: step)
            var expected = 0.0
            for element in layout.trained.flatMap(\.elements) {
                let (first, second) = direction.normals(pair: element / 2)
                expected += Double(trainee.adapters.gradients[element]) * Double(element % 2 == 0 ? first : second)
            }
            let epsilon: Float = 3e-4
            let slope = try prober.losses(batch, direction, epsilon: epsilon).slope(epsilon: epsilon)
            worst = max(worst, abs(slope - expected))
            size = max(size, abs(expected))
        }
        // Half of it is the curvature's, and goes with ε²; the other is what f32 has left of two losses' difference, and goes with 1/ε.
        #expect(worst < 5e-3 * size)
        print("slopes of \(method.name): \(worst / size) of the largest, \(size)")
    }

    @Test("of an adapter that is not moved, the loss has the bits that it has with a backward", arguments: ReferenceModel.all)
    func forward(_ reference: ReferenceModel) throws {
        let scratch = try TemporaryDirectory()
        let (trainee, golden) = try ArchitectureTests.trainee(reference, .gguf, in: scratch.path)
        let samples = try golden.samples(), batch = MicroBatch(samples)
        let expected = try trainee.accumulate(batch, lossScale: 1) / Double(batch.lossRows.count)
        let direction = ZerothOrder.direction(seed: 1, step: 0)
        for (weights, lossChunk) in [(WeightResidence.resident, 8), (.streamed, 3)] {
            let prober = try Prober(
                try reference.path(.gguf, in: scratch.path), lora: trainee.adapters.spec, tokens: 33, longest: 20, weights: weights,
                lossChunk: lossChunk)
            prober.adapters.parameters.update(from: trainee.adapters.parameters, count: trainee.adapters.parameterCount)
            #expect(try prober.loss(batch, direction, distance: 0) == expected)
            // Anywhere else, however samples are packed.
            let whole = try prober.loss(batch, direction, distance: 0.01)
            #expect(whole != expected)
            var sum = 0.0
            for sample in samples {
                var work = [
                    JobMicroBatch(
                        MicroBatch([sample]), lossScale: 0, perturbation: Perturbation(direction, distance: 0.01), addingTo: sum)
                ]
                try prober.step.accumulate(&work)
                sum = work[0].loss
            }
            #expect(sum / Double(batch.lossRows.count) == whole)
        }
    }

    @Test("directions are normal, and of two steps independent")
    func directions() {
        let count = 200_000
        func drawn(_ step: Int) -> [Double] {
            let direction = ZerothOrder.direction(seed: 3, step: step)
            return (0..<count / 2).flatMap { pair in
                let (first, second) = direction.normals(pair: pair)
                return [Double(first), Double(second)]
            }
        }
        let (a, b) = (drawn(0), drawn(1))
        func mean(_ value: (Int) -> Double) -> Double { (0..<count).reduce(0) { $0 + value($1) } / Double(count) }
        // Five standard deviations of each mean.
        let bound = 5 / Double(count).squareRoot()
        #expect(abs(mean { a[$0] }) < bound && abs(mean { a[$0] * b[$0] }) < bound)
        #expect(abs(mean { a[$0] * a[$0] } - 1) < bound * 2.0.squareRoot())
        #expect(abs(mean { a[$0] * a[$0] * a[$0] * a[$0] } - 3) < bound * 96.0.squareRoot())
        #expect(abs(mean { $0 % 2 == 0 ? a[$0] * a[$0 + 1] : 0 }) < bound)
    }

    // MARK: runs

    static func run(_ name: String, precision: ComputeType? = nil) throws -> TinyRun {
        var run = try MethodTests.run(name)
        run.spec.zerothOrder = .always
        run.spec.precision = precision
        run.spec.learningRate = 2e-3
        return run
    }

    @Test("a run of every method, stopped and resumed, ends with the same bits; and so in every plan", arguments: methods)
    func resume(_ name: String) throws {
        let whole = try TemporaryDirectory()
        let expected = try Self.run(name).run(in: whole.path)
        guard case .finished(let finished) = expected.outcome else { Issue.record("did not finish"); return }
        var piecemeal = try Self.run(name)
        piecemeal.replan = { $0.tokenBudget = 1 }
        // One sample a micro-batch, each at both ends: 56 of them.
        for stopAfter in [0, 1, 3, 4, 5, 8, 27, 55] {
            let directory = try TemporaryDirectory()
            guard case .stopped = try piecemeal.run(in: directory.path, stopAfter: stopAfter).outcome else {
                Issue.record("stop \(stopAfter) ignored")
                continue
            }
            var rest = try Self.run(name)
            rest.threads = 3
            let resumed = try rest.run(in: directory.path)
            #expect(resumed.adapter == expected.adapter && resumed.outcome == .finished(finished), "stopped after \(stopAfter)")
        }
        var tight = try Self.run(name)
        tight.replan = {
            $0.shape.weights = .streamed
            $0.shape.lossChunk = 3
            $0.tokenBudget = 30
        }
        #expect(try tight.ended().adapter == expected.adapter)
    }

    @Test("what is planned is what is taken, and a stop loses nothing, in every type of products", arguments: ComputeType.allCases)
    func precisions(_ type: ComputeType) throws {
        guard KernelSet.strongest.computeTypes.contains(type) else { return }
        let expected = try MethodTests.adapter(of: Self.run("lora", precision: type))
        let directory = try TemporaryDirectory()
        _ = try Self.run("lora", precision: type).run(in: directory.path, stopAfter: 5)
        #expect(try Self.run("lora", precision: type).run(in: directory.path).adapter == expected)
    }

    @Test("jobs of such steps together end with the bits that each has alone")
    func together() throws {
        var group = TinyGroup(runs: TogetherTests.runs(["lora", "dora", "oft", "vera"]))
        for index in group.runs.indices {
            group.runs[index].spec.zerothOrder = .always
            group.runs[index].spec.learningRate = 1e-3
        }
        let own = try group.runs.map { try $0.ended() }
        let place = try TemporaryDirectory()
        let conversations = group.runs.map { _ in TinyRun.Conversation() }
        let together = try group.run(in: place.path, conversations)
        for index in own.indices {
            #expect(try together[index].outcome.get() == own[index].outcome)
            #expect(together[index].adapter == own[index].adapter)
            #expect("\(conversations[index].events)" == "\(own[index].events)")
        }
    }

    @Test("with a cache of activations the bits do not depend on what of it is on disk")
    func cached() throws {
        func adapter(_ limit: Int, stopAfter: Int = .max) throws -> [UInt32] {
            var run = ActivationCacheTests.run(.bf16)
            run.spec.zerothOrder = .always
            run.cacheLimit = ByteCount(limit)
            return try run.ended().adapter
        }
        #expect(try adapter(1 << 40) == adapter(0))
    }

    @Test("it learns")
    func learns() throws {
        var run = TinyRun()
        run.spec.adapter.dropout = 0
        run.spec.zerothOrder = .always
        run.spec.epochs = 600
        run.spec.evalSteps = 300
        run.spec.learningRate = 1e-3
        // Held out is what is trained on.
        run.dataset = Dataset(training: TinyRun.samples(4), heldOut: TinyRun.samples(4))
        guard case .finished(let finished) = try run.ended().outcome else {
            Issue.record("did not finish")
            return
        }
        let (first, last) = (finished.evaluations[0].loss, finished.evaluations.last!.loss)
        print("without a backward, \(finished.steps) steps: \(first) to \(last)")
        #expect(last < 0.97 * first)
    }

    // MARK: plans

    static func plan(_ memory: MemoryModel, _ budget: Int, _ use: ZerothOrderUse, longest: Int = 512) throws -> TrainingPlan {
        let spec = TrainingSpec(adapter: memory.adapter, samplesPerStep: 1, maxSteps: 1)
        let lengths = [SampleLengths.Length(tokens: longest, lossTokens: longest - 1)]
        return try TrainingPlan.make(
            memory, lengths: SampleLengths(training: lengths, heldOut: [], spec: spec),
            PlanLimits(
                budget: ByteCount(budget), threads: 2, compute: .f32, optimizer: nil, spill: ByteCount(1 << 40), appliesLayerByLayer: false,
                calibration: .nominal, weightsAreCached: true, zerothOrder: use))
    }

    static func least(_ memory: MemoryModel, _ use: ZerothOrderUse, longest: Int = 512) -> (bytes: Int, changes: [FittingChange]) {
        do {
            _ = try plan(memory, 1 << 20, use, longest: longest)
        } catch let error as PlanError {
            guard case .doesNotFit(let needed, _, let changes) = error else { return (0, []) }
            return (needed.bytes, changes)
        } catch {}
        return (0, [])
    }

    @Test("it is the last rung: taken where nothing else fits and the job allows it, and a refusal names it with what it needs", arguments: [512, 2048])
    func lastRung(longest: Int) throws {
        let memory = try PlanTests.memory(AdapterSpec(rank: 16, alpha: 16, dropout: 0, targets: .allLinear, layers: nil))
        let withBackward = Self.least(memory, .never, longest: longest).bytes, without = Self.least(memory, .always, longest: longest).bytes
        #expect(Self.least(memory, .whereNothingElseFits, longest: longest).bytes == without)
        print("least plan of SmolLM2, r 16, \(longest) tokens: \(withBackward) bytes with a backward, \(without) without")
        #expect(withBackward - without > 25 << 20)
        #expect(try Self.plan(memory, withBackward, .whereNothingElseFits, longest: longest).shape.hasBackward)
        #expect(try !Self.plan(memory, withBackward, .always, longest: longest).shape.hasBackward)
        for budget in [withBackward - 1, without] {
            let plan = try Self.plan(memory, budget, .whereNothingElseFits, longest: longest)
            #expect(!plan.shape.hasBackward && plan.peak.bytes <= budget)
            // The least of short samples is what publishing takes.
            #expect(plan.pools.reduce(ByteCount.zero) { $0 + $1.size } <= plan.peak)
            let trade = try #require(plan.trades.first)
            #expect(trade.what.contains("no backward") && trade.costs == nil && trade.saves == ByteCount(withBackward - plan.peak.bytes))
        }
        #expect(throws: PlanError.self) { try Self.plan(memory, without - 1, .whereNothingElseFits, longest: longest) }
        do {
            _ = try Self.plan(memory, without, .never, longest: longest)
            Issue.record("fits")
        } catch PlanError.doesNotFit(_, _, let changes) {
            let change = try #require(changes.first { $0.line == "zeroth_order: auto" })
            #expect(change.note.contains("needs \(ByteCount(without).mebibytes) MiB"))
        }
        // It is not named where it would not do.
        #expect(!Self.least(memory, .never, longest: longest).changes.contains { $0.line.hasPrefix("zeroth_order") })
    }

    @Test("methods that need gradients of their own have no such rung")
    func impossible() throws {
        for name in ["adalora", "dylora"] {
            let memory = try PlanTests.memory(
                AdapterSpec(method: AdapterMethods.named(name)!, rank: 8, alpha: 8, dropout: 0, targets: .allLinear, layers: nil))
            let never = Self.least(memory, .never)
            #expect(Self.least(memory, .whereNothingElseFits).bytes == never.bytes)
            let refused = #expect(throws: PlanError.self) { try Self.plan(memory, never.bytes - 1, .never) }
            guard case .doesNotFit(_, _, let changes)? = refused else { continue }
            #expect(!changes.contains { $0.line.hasPrefix("zeroth_order") })
        }
    }

    @Test("what a checkpoint says of its steps is what the run was")
    func kindOfSteps() throws {
        #expect(try CheckpointStore.newestHasMoments(in: TemporaryDirectory().path + "/none") == nil)
        for use in [ZerothOrderUse.never, .always] {
            let directory = try TemporaryDirectory()
            var run = TinyRun()
            run.spec.zerothOrder = use
            _ = try run.run(in: directory.path, stopAfter: 9)
            #expect(try CheckpointStore.newestHasMoments(in: directory.path) == (use == .never))
            run.spec.zerothOrder = use == .never ? .always : .never
            #expect(throws: CheckpointError.self) { try run.run(in: directory.path) }
        }
    }
}
