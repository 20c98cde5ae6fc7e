// What must hold for a run as a whole, on the tiny golden model.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Glibc
import Testing

/// A run on the tiny model with made-up samples.
struct TinyRun {
    static let modelPath = TestModel.repositoryRoot + "/Tests/Goldens/tiny-llama.gguf"

    var modelPath = TinyRun.modelPath
    var spec = TrainingSpec(
        adapter: AdapterSpec(rank: 4, alpha: 8, dropout: 0.1, targets: .allLinear, layers: nil), sequenceLength: 64,
        microBatchSize: 2, gradientAccumulation: 2, epochs: 2, maxSteps: nil, learningRate: 5e-3, schedule: .cosine,
        warmUp: .steps(1), weightDecay: 0.01, beta1: 0.9, beta2: 0.999, adamEpsilon: 1e-8, maxGradNorm: 1, seed: 3,
        precision: nil, evalSteps: 3, saveSteps: 2, earlyStoppingPatience: nil)
    var dataset = Dataset(TinyRun.samples(17), heldOut: 3, seed: 3)
    var budget = ByteCount(1 << 30)
    var threads = 2
    /// Bytes of disk for cached activations.
    var cacheLimit = ByteCount(1 << 40)
    /// The adapter that the run begins from.
    var initial: (@Sendable () throws -> LoadedAdapter)?
    /// Of what the base was quantised from.
    var originalPath: String?
    /// Shorter than the longest sample of any run.
    static let smoothing = (0..<6).map { sample in
        TokenizedSample(tokens: (0..<5).map { TokenID((17 * sample + 5 * $0) % 128) }, carriesLoss: [Bool](repeating: false, count: 5))
    }
    /// What the test wants otherwise than the planner.
    var replan: @Sendable (inout TrainingPlan) -> Void = { _ in }

    static func samples(_ count: Int) -> [TokenizedSample] {
        (0..<count).map { sample in
            let random = RandomSource(seed: 99, .sampling, UInt64(sample))
            let length = 4 + random.integer(0, below: 20)
            return TokenizedSample(
                tokens: (0..<length).map { TokenID(random.integer(1 + $0, below: 128)) },
                carriesLoss: (0..<length).map { $0 > length / 3 })
        }
    }

    struct Result {
        let outcome: RunOutcome
        let adapter: [UInt32]
        let events: [TrainingEvent]
    }

    func memory(of model: BaseModel) throws -> MemoryModel {
        let original = try originalPath.map { try BaseModel.open(path: $0) }
        return try MemoryModel(
            model, adapter: spec.adapter, loadsAdapter: initial != nil, original: original,
            cache: spec.activationCache.map { MemoryModel.CachedActivations($0, SampleLengths(dataset, spec: spec)) })
    }

    func plan(_ memory: MemoryModel) throws -> TrainingPlan {
        var plan = try TrainingPlan.make(memory, lengths: SampleLengths(dataset, spec: spec), limits)
        replan(&plan)
        return plan
    }

    var limits: PlanLimits {
        get throws {
            PlanLimits(
                budget: budget, threads: threads, compute: try spec.computeType(on: .strongest),
                optimizer: spec.optimizer, spill: ByteCount(1 << 40), appliesLayerByLayer: spec.maxGradNorm == nil, calibration: nil,
                weightsAreCached: true, zerothOrder: spec.zerothOrder)
        }
    }

    /// What a run is asked, and what it says.
    final class Conversation {
        var events: [TrainingEvent] = []
        private var asked = 0
        private let stopAfter: Int
        private let counted: Set<MicroBatchPurpose>
        private let last: RunDirection

        /// - Parameters:
        ///   - stopAfter: micro-batches of training after which the run is asked to stop.
        ///   - counted: of other purposes, too.
        ///   - thenTo: what it is asked then.
        init(stopAfter: Int = .max, counted: Set<MicroBatchPurpose> = [.training], thenTo last: RunDirection = .stop) {
            self.stopAfter = stopAfter
            self.counted = counted
            self.last = last
        }

        fileprivate func direction(_ purpose: MicroBatchPurpose) -> RunDirection {
            guard counted.contains(purpose) else { return .goOn }
            asked += 1
            return asked > stopAfter ? last : .goOn
        }
    }

    func job(in directory: String, tokenBudget: Int, fingerprint: UInt8 = 1, _ conversation: Conversation) throws -> TrainingRun.Job {
        TrainingRun.Job(
            spec: spec, dataset: dataset, tokenBudget: tokenBudget, cache: (limit: cacheLimit, directory: directory),
            checkpoints: CheckpointStore(
                directory: directory, runFingerprint: [UInt8](repeating: fingerprint, count: 32)),
            initial: initial, original: try originalPath.map { try BaseModel.open(path: $0) }, emit: { conversation.events.append($0) }, direction: conversation.direction)
    }

    /// See `Conversation`.
    func run(
        in directory: String, stopAfter: Int = .max, counted: Set<MicroBatchPurpose> = [.training],
        thenTo last: RunDirection = .stop, fingerprint: UInt8 = 1
    ) throws -> Result {
        let model = try BaseModel.open(path: modelPath)
        let memory = try memory(of: model)
        let plan = try plan(memory)
        let conversation = Conversation(stopAfter: stopAfter, counted: counted, thenTo: last)
        let group = try TrainingGroup(
            [try job(in: directory, tokenBudget: plan.tokenBudget, fingerprint: fingerprint, conversation)], model: model, memory: memory,
            shape: plan.shape, kernels: .strongest,
            smoothingSamples: TinyRun.smoothing, spillDirectory: directory)
        var outcome: Swift.Result<RunOutcome, any Error>?
        try group.run { _, ended in outcome = ended }
        return Result(outcome: try outcome!.get(), adapter: group.runs[0].adapters.bits, events: conversation.events)
    }
}

extension AdapterSet {
    var bits: [UInt32] { (0..<parameterCount).map { parameters[$0].bitPattern } }
}

@Suite(.serialized)
struct TrainingRunTests {
    @Test("a run stopped anywhere and resumed ends with the bits of one that was never stopped")
    func resumeEqualsUninterrupted() throws {
        let whole = try TemporaryDirectory()
        let expected = try TinyRun().run(in: whole.path)
        guard case .finished(let finished) = expected.outcome else { Issue.record("did not finish"); return }
        #expect(finished.steps == 8)
        // One sample a micro-batch: 14 samples, 4 a step, 2 epochs, so 28 of them.
        var piecemeal = TinyRun()
        piecemeal.replan = { $0.tokenBudget = 1 }
        for stopAfter in 0..<28 {
            let directory = try TemporaryDirectory()
            let first = try piecemeal.run(in: directory.path, stopAfter: stopAfter)
            guard case .stopped = first.outcome else { Issue.record("stop \(stopAfter) ignored"); continue }
            let resumed = try TinyRun().run(in: directory.path)
            #expect(resumed.outcome == expected.outcome, "stopped after \(stopAfter)")
            #expect(resumed.adapter == expected.adapter, "stopped after \(stopAfter)")
        }
        // In evaluations, too: four of them, of three samples.
        for stopAfter in 0..<40 {
            let directory = try TemporaryDirectory()
            let first = try piecemeal.run(in: directory.path, stopAfter: stopAfter, counted: [.training, .evaluation])
            guard case .stopped = first.outcome else { Issue.record("stop \(stopAfter) ignored"); continue }
            let resumed = try TinyRun().run(in: directory.path)
            #expect(resumed.outcome == expected.outcome, "stopped after \(stopAfter) of both")
            #expect(resumed.adapter == expected.adapter, "stopped after \(stopAfter) of both")
        }
        // Stopped again and again, with another number of threads each time.
        let directory = try TemporaryDirectory()
        var last: TinyRun.Result?
        for attempt in 0..<40 {
            var run = TinyRun()
            run.threads = 1 + attempt % 3
            last = try run.run(in: directory.path, stopAfter: 2)
            if case .finished = last!.outcome { break }
        }
        #expect(last?.adapter == expected.adapter)
    }

    /// Rank 32, so that some matrices of the tiny model have 8-bit moments and some are too small.
    static func run(_ optimizer: OptimizerState) -> TinyRun {
        var run = TinyRun()
        run.spec.adapter.rank = 32
        run.spec.optimizer = optimizer
        return run
    }

    @Test("so does a run with moments in fewer bytes", arguments: OptimizerState.allCases)
    func resumeEqualsUninterrupted(_ optimizer: OptimizerState) throws {
        let whole = try TemporaryDirectory()
        let expected = try Self.run(optimizer).run(in: whole.path)
        #expect(try optimizer == .f32 || Self.run(.f32).run(in: TemporaryDirectory().path).adapter != expected.adapter)
        for stopAfter in stride(from: 1, to: 14, by: 3) {
            let directory = try TemporaryDirectory()
            _ = try Self.run(optimizer).run(in: directory.path, stopAfter: stopAfter)
            let resumed = try Self.run(optimizer).run(in: directory.path)
            #expect(resumed.outcome == expected.outcome && resumed.adapter == expected.adapter, "stopped after \(stopAfter)")
        }
    }

    @Test("a checkpoint with another optimizer's moments is refused")
    func otherOptimizerIsRefused() throws {
        let directory = try TemporaryDirectory()
        _ = try Self.run(.f32).run(in: directory.path, stopAfter: 5)
        #expect(throws: CheckpointError.self) { try Self.run(.eightBit).run(in: directory.path) }
    }

    /// Every step is evaluated, checkpointed and better than the one before: held out is what is trained on.
    static let improving: TinyRun = {
        var run = TinyRun()
        run.dataset = Dataset([TokenizedSample](repeating: TinyRun.samples(1)[0], count: 17), heldOut: 3, seed: 3)
        run.spec.evalSteps = 1
        run.spec.saveSteps = 1
        return run
    }()

    /// The best is long past when the run ends.
    static let diverging: TinyRun = {
        var run = improving
        run.dataset = TinyRun().dataset
        run.spec.epochs = 4
        run.spec.learningRate = 0.5
        run.spec.schedule = .constant
        return run
    }()

    @Test("the best adapter outlives the checkpoints after it, and is all that is left beside the last two")
    func bestOutlivesCheckpoints() throws {
        let whole = try TemporaryDirectory()
        let expected = try Self.diverging.run(in: whole.path)
        guard case .finished(let finished) = expected.outcome else { Issue.record("did not finish"); return }
        #expect(finished.keptStep > 1 && finished.keptStep < finished.steps - CheckpointStore.keptFiles)
        #expect(names(in: whole.path, ending: ".f32") == ["best-" + String("00000000\(finished.keptStep)".suffix(9)) + ".f32"])
        #expect(names(in: whole.path).count == CheckpointStore.keptFiles)
        // The adapter that is left to publish is the one of that step.
        let stopped = try TemporaryDirectory()
        var upToBest = Self.diverging
        upToBest.spec.saveSteps = 1000
        let atBest = try upToBest.run(in: stopped.path, stopAfter: finished.keptStep)
        #expect(atBest.outcome == .stopped(step: finished.keptStep) && atBest.adapter == expected.adapter)
    }

    @Test("cut off between a new best and its checkpoint, a run resumes from the checkpoint before with that one's best")
    func crashBetweenBestAndCheckpoint() throws {
        let whole = try TemporaryDirectory()
        let expected = try Self.improving.run(in: whole.path)
        for steps in 2...6 {
            // As a crash leaves it: the newest best is there, the checkpoint that names it is not.
            let directory = try TemporaryDirectory()
            _ = try Self.improving.run(in: directory.path, stopAfter: steps)
            unlink(directory.path + "/" + (try #require(names(in: directory.path).last)))
            #expect(names(in: directory.path, ending: ".f32").count == 2)
            let resumed = try Self.improving.run(in: directory.path)
            #expect(resumed.outcome == expected.outcome && resumed.adapter == expected.adapter, "after \(steps) steps")
            #expect(resumed.events.contains { if case .log("resumed after step \(steps - 1)") = $0 { true } else { false } })
        }
    }

    @Test("a checkpoint whose best is gone or spoilt is passed over for the one before, and the run says so")
    func spoiltBestFallsBack() throws {
        let whole = try TemporaryDirectory()
        let expected = try Self.improving.run(in: whole.path)
        for spoil in [{ unlink($0) }, { try flipByte($0, at: 300) }] as [(String) throws -> Void] {
            let directory = try TemporaryDirectory()
            _ = try Self.improving.run(in: directory.path, stopAfter: 4)
            let best = try #require(names(in: directory.path, ending: ".f32").last)
            try spoil(directory.path + "/" + best)
            let resumed = try Self.improving.run(in: directory.path)
            #expect(resumed.adapter == expected.adapter)
            let notes = resumed.events.compactMap { if case .log(let text) = $0 { text } else { nil } }
            #expect(notes.contains { $0.contains(best) } && notes.contains("resumed after step 3"), "\(notes)")
        }
    }

    @Test("a damaged checkpoint is passed over for the one before, and the run says so")
    func damagedCheckpointFallsBack() throws {
        let whole = try TemporaryDirectory(), directory = try TemporaryDirectory()
        let expected = try TinyRun().run(in: whole.path)
        _ = try TinyRun().run(in: directory.path, stopAfter: 6)
        let newest = try #require(names(in: directory.path).last)
        try flipByte(directory.path + "/" + newest, at: 5000)
        let resumed = try TinyRun().run(in: directory.path)
        #expect(resumed.adapter == expected.adapter)
        let notes = resumed.events.compactMap { if case .log(let text) = $0 { text } else { nil } }
        #expect(notes.contains { $0.contains(newest) && $0.contains("checksum") }, "\(notes)")
    }

    @Test("every flipped byte and every cut of a checkpoint is noticed")
    func damageIsNoticed() throws {
        let directory = try TemporaryDirectory()
        _ = try TinyRun().run(in: directory.path, stopAfter: 5)
        let path = directory.path + "/" + (try #require(names(in: directory.path).last))
        let bytes = try ByteRegion.map(path: path).withBytes { Array($0) }
        for name in names(in: directory.path) where !path.hasSuffix(name) { unlink(directory.path + "/" + name) }
        for position in stride(from: 0, to: bytes.count, by: 997) {
            var damaged = bytes
            damaged[position] ^= 0x20
            try AtomicFile.write(to: path, damaged)
            let resumed = try TinyRun().run(in: directory.path, stopAfter: 0)
            #expect(resumed.outcome == .stopped(step: 0), "byte \(position)")
        }
        for length in [0, 1, 8, 60, bytes.count / 2, bytes.count - 1] {
            try AtomicFile.write(to: path, Array(bytes[..<length]))
            let resumed = try TinyRun().run(in: directory.path, stopAfter: 0)
            #expect(resumed.outcome == .stopped(step: 0), "length \(length)")
        }
    }

    @Test("another run's checkpoint is refused, not continued")
    func otherRunIsRefused() throws {
        let directory = try TemporaryDirectory()
        _ = try TinyRun().run(in: directory.path, stopAfter: 5)
        #expect(throws: CheckpointError.self) { try TinyRun().run(in: directory.path, fingerprint: 2) }
    }

    @Test("held-out loss is measured before, during and after, and the best adapter is kept")
    func bestIsKept() throws {
        let directory = try TemporaryDirectory()
        let result = try TinyRun().run(in: directory.path)
        guard case .finished(let finished) = result.outcome else { Issue.record("did not finish"); return }
        #expect(finished.evaluations.map(\.step) == [0, 3, 6, 8])
        let best = finished.evaluations.dropFirst().min { $0.loss < $1.loss }!
        #expect(finished.keptStep == best.step)
        // The kept adapter has the loss that was reported for it.
        let golden = try BaseModel.open(path: TinyRun.modelPath)
        #expect(golden.spec.layerCount == 2 && finished.evaluations.allSatisfy { $0.loss.isFinite && $0.tokens > 0 })
    }

    @Test("early stopping ends the run after so many evaluations without improvement")
    func earlyStopping() throws {
        let directory = try TemporaryDirectory()
        var run = TinyRun()
        run.spec.evalSteps = 1
        run.spec.epochs = 50
        run.spec.learningRate = 0.05
        run.spec.earlyStoppingPatience = 3
        guard case .finished(let finished) = try run.run(in: directory.path).outcome else {
            Issue.record("did not finish")
            return
        }
        #expect(finished.endedEarly && finished.steps < finished.totalSteps)
        #expect(finished.steps - finished.keptStep == 3)
    }

    @Test("asked to finish, a run evaluates, keeps its best and ends as an early-stopped one; also when it is cut off there")
    func finishing() throws {
        for micro in 0...7 {
            let directory = try TemporaryDirectory()
            let result = try TinyRun().run(in: directory.path, stopAfter: micro, thenTo: .finish)
            guard case .finished(let finished) = result.outcome else { Issue.record("did not finish"); return }
            // The first step is done whatever is asked.
            #expect(finished.endedEarly && (1..<8).contains(finished.steps) && finished.totalSteps == 8)
            if micro == 0 { #expect(finished.steps == 1) }
            #expect(finished.evaluations.last?.step == finished.steps)
            #expect(finished.keptStep >= 1)
            // The checkpoint knows of the end: the next run publishes, and trains no more.
            let again = try TinyRun().run(in: directory.path)
            #expect(again.outcome == result.outcome && again.adapter == result.adapter)
            #expect(!again.events.contains { if case .step = $0 { true } else { false } })
        }
    }

    @Test("a smaller budget trades what it must and ends with the same bits")
    func budgetsDoNotChangeBits() throws {
        let rich = try TemporaryDirectory(), poor = try TemporaryDirectory()
        let expected = try TinyRun().run(in: rich.path)
        var run = TinyRun()
        run.budget = ByteCount(1)
        var needed = ByteCount.zero
        do { _ = try run.run(in: poor.path) } catch PlanError.doesNotFit(let found, _, _) { needed = found }
        #expect(needed > ProcessMemory.typical.resident)
        run.budget = needed
        #expect(try run.run(in: poor.path).adapter == expected.adapter)
    }

    @Test("gradients applied layer by layer end with the bits of those that are held together")
    func layerByLayerUpdatesDoNotChangeBits() throws {
        var adapters: Set<[UInt32]> = []
        for extent in [AdapterSet.GradientExtent.allLayers, .oneLayer] {
            let directory = try TemporaryDirectory()
            var run = TinyRun()
            run.spec.maxGradNorm = nil
            run.replan = { $0.shape.gradients = extent }
            adapters.insert(try run.run(in: directory.path).adapter)
        }
        #expect(adapters.count == 1)
    }

    @Test("every exact trade, alone and with the others, ends with the same bits in every precision")
    func exactTradesDoNotChangeBits() throws {
        for precision in KernelSet.strongest.computeTypes {
            var adapters: Set<[UInt32]> = []
            func take(_ replan: @escaping @Sendable (inout TrainingPlan) -> Void) throws {
                let directory = try TemporaryDirectory()
                var run = TinyRun()
                run.spec.precision = precision
                run.replan = replan
                adapters.insert(try run.run(in: directory.path).adapter)
            }
            let trades: [@Sendable (inout TrainingPlan) -> Void] = [
                { $0.shape.keptLayers = 1 }, { $0.shape.weights = .streamed }, { $0.shape.checkpoints = .file },
                { $0.shape.lossChunk = 5 }, { $0.tokenBudget = 30 },
            ]
            try take { $0.shape.keptLayers = 2 }
            for trade in trades { try take(trade) }
            try take { plan in for trade in trades { trade(&plan) } }
            #expect(adapters.count == 1, "\(precision)")
        }
    }

    private func names(in directory: String, ending: String = ".ckpt") -> [String] {
        var names: [String] = []
        guard let stream = opendir(directory) else { return [] }
        defer { closedir(stream) }
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name.hasSuffix(ending) { names.append(name) }
        }
        return names.sorted()
    }

    private func flipByte(_ path: String, at position: Int) throws {
        var bytes = try ByteRegion.map(path: path).withBytes { Array($0) }
        bytes[position] ^= 1
        try AtomicFile.write(to: path, bytes)
    }
}

@Suite(.serialized)
struct StepPropertyTests {
    /// Loss and gradients of samples, in one micro-batch or several.
    static func gradients(_ batches: [[TokenizedSample]], lora: AdapterSpec = GoldenTests.tinyLoRA, masks: DropoutMasks? = nil) throws -> (loss: Double, gradients: [Float]) {
        let trainee = try Trainee(
            TinyRun.modelPath, lora: lora, tokens: 200, longest: 64, lossChunk: 7)
        start(trainee)
        let count = batches.reduce(0) { $0 + Dataset.lossTokens($1) }
        var loss = 0.0
        var first = masks?.firstSample ?? 0
        for batch in batches {
            loss += try trainee.accumulate(
                MicroBatch(batch), lossScale: 1 / Float(count),
                masks: masks.map { DropoutMasks(stepKey: $0.stepKey, firstSample: first) })
            first += batch.count
        }
        return (loss, (0..<trainee.adapters.parameterCount).map { trainee.adapters.gradients[$0] })
    }

    /// A and B both random, so that every gradient is at work.
    static func start(_ trainee: Trainee) {
        let random = RandomSource(seed: 5, .sampling)
        for i in 0..<trainee.adapters.parameterCount { trainee.adapters.parameters[i] = (random.uniform(i) - 0.5) * 0.2 }
    }

    @Test("however samples are parted into micro-batches, gradients have the same bits, with dropout too")
    func packingEqualsNoPacking() throws {
        let samples = TinyRun.samples(4)
        var lora = GoldenTests.tinyLoRA
        lora.dropout = 0.2
        for masks in [nil, DropoutMasks(stepKey: 7, firstSample: 0)] {
            let packed = try Self.gradients([samples], lora: lora, masks: masks)
            let pairs = try Self.gradients([Array(samples[..<3]), Array(samples[3...])], lora: lora, masks: masks)
            let alone = try Self.gradients(samples.map { [$0] }, lora: lora, masks: masks)
            #expect(packed.gradients == alone.gradients && pairs.gradients == alone.gradients)
            #expect(abs(packed.loss - alone.loss) < 1e-12 * abs(alone.loss))
        }
    }

    @Test("an MLP that does its tokens in runs gives the bits of one that does them at once, kept or not, in every precision")
    func mlpInRuns() throws {
        let samples = [700, 130, 300].enumerated().map { index, length in
            let random = RandomSource(seed: 98, .sampling, UInt64(index))
            return TokenizedSample(
                tokens: (0..<length).map { TokenID(random.integer($0, below: 128)) },
                carriesLoss: (0..<length).map { $0 % 3 > 0 })
        }
        var lora = GoldenTests.tinyLoRA
        lora.dropout = 0.1
        for compute in KernelSet.strongest.computeTypes {
            var results: Set<[UInt32]> = []
            for (mlpTokens, keptLayers) in [(nil, 0), (256, 0), (512, 1), (600, 2)] as [(Int?, Int)] {
                let trainee = try Trainee(
                    TinyRun.modelPath, lora: lora, tokens: 1130, longest: 700, keptLayers: keptLayers, mlpTokens: mlpTokens,
                    lossChunk: 100, compute: compute)
                Self.start(trainee)
                try trainee.step.measureSmoothing(samples)
                _ = try trainee.accumulate(
                    MicroBatch(samples), lossScale: 0.01, masks: DropoutMasks(stepKey: 3, firstSample: 0))
                results.insert((0..<trainee.adapters.parameterCount).map { trainee.adapters.gradients[$0].bitPattern })
            }
            #expect(results.count == 1, "\(compute)")
        }
    }

    @Test("a LoRA with B = 0 gives the base's logits bit for bit")
    func zeroAdapterIsTheBase() throws {
        let batch = MicroBatch(TinyRun.samples(3))
        func logits(_ lora: AdapterSpec) throws -> [UInt32] {
            let trainee = try Trainee(TinyRun.modelPath, lora: lora, tokens: 200, longest: 64)
            trainee.adapters.initialize(seed: 1)
            var bits: [UInt32] = []
            try trainee.step.logits(of: batch) { _, logits in bits += (0..<logits.count).map { logits.base[$0].bitPattern } }
            return bits
        }
        let all = try logits(GoldenTests.tinyLoRA)
        // Adapted nowhere but in one value projection: the other modules run as the base does.
        let one = try logits(AdapterSpec(rank: 1, alpha: 1, dropout: 0, targets: .names(["v_proj"]), layers: [1]))
        #expect(all == one)
    }

    @Test("changing token t+1 changes no logits at or before t, and nothing in another sample")
    func theFutureIsUnseen() throws {
        var samples = TinyRun.samples(2)
        func logits() throws -> [UInt32] {
            let trainee = try Trainee(TinyRun.modelPath, lora: GoldenTests.tinyLoRA, tokens: 200, longest: 64)
            Self.start(trainee)
            var bits: [UInt32] = []
            try trainee.step.logits(of: MicroBatch(samples)) { _, logits in
                bits += (0..<logits.count).map { logits.base[$0].bitPattern }
            }
            return bits
        }
        let before = try logits()
        let changed = samples[0].tokens.count - 2
        samples[0].tokens[changed] = (samples[0].tokens[changed] + 1) % 128
        let after = try logits()
        #expect(before[..<(changed * 128)] == after[..<(changed * 128)])
        let secondSample = samples[0].tokens.count * 128
        #expect(before[secondSample...] == after[secondSample...])
        #expect(before[changed * 128..<secondSample] != after[changed * 128..<secondSample])
    }

    @Test("the backward stops at the lowest adapted layer, with the same gradients above it")
    func backwardStops() throws {
        let samples = TinyRun.samples(3)
        let top = AdapterSpec(rank: 4, alpha: 8, dropout: 0, targets: .allLinear, layers: [1])
        let trainee = try Trainee(TinyRun.modelPath, lora: top, tokens: 200, longest: 64)
        #expect(trainee.memory.trainedLayers == 1 && trainee.adapters.lowestLayer == 1)
        let (loss, gradients) = try Self.gradients([samples], lora: top)
        #expect(loss.isFinite && gradients.contains { $0 != 0 })
    }

    @Test("adapter gradients are the loss's derivative, with dropout too")
    func gradientsAreDerivatives() throws {
        for (dropout, masks) in [(Float(0), nil), (0.3, DropoutMasks(stepKey: 12, firstSample: 0))] {
            let lora = AdapterSpec(rank: 2, alpha: 4, dropout: dropout, targets: .allLinear, layers: nil)
            let samples = TinyRun.samples(2)
            let trainee = try Trainee(TinyRun.modelPath, lora: lora, tokens: 200, longest: 64)
            Self.start(trainee)
            let batch = MicroBatch(samples)
            _ = try trainee.accumulate(batch, lossScale: 1, masks: masks)
            let gradients = (0..<trainee.adapters.parameterCount).map { trainee.adapters.gradients[$0] }
            func loss() throws -> Double {
                trainee.step.clearGradients()
                return try trainee.accumulate(batch, lossScale: 0, masks: masks)
            }
            let norm = (gradients.reduce(0.0) { $0 + Double($1) * Double($1) }).squareRoot()
            // Along random directions: a single entry's difference drowns in f32.
            for direction in 0..<6 {
                let random = RandomSource(seed: 7, .sampling, UInt64(direction))
                let d = gradients.indices.map { (random.uniform($0) - 0.5) + gradients[$0] / Float(norm) }
                let expected = zip(d, gradients).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
                let step: Float = 2e-3
                func moved(_ by: Float) throws -> Double {
                    for i in d.indices { trainee.adapters.parameters[i] += by * d[i] }
                    defer { for i in d.indices { trainee.adapters.parameters[i] -= by * d[i] } }
                    return try loss()
                }
                let numeric = (try moved(step) - moved(-step)) / Double(2 * step)
                #expect(abs(numeric - expected) < 0.02 * abs(expected) + 1e-3, "\(numeric), \(expected)")
            }
        }
    }

    @Test("generation continues with the argmax of the training path's logits, token by token")
    func generationFollowsTheLogits() throws {
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let prompt = TinyRun.samples(1)[0].tokens
        let generator = try Generator(model: model, adapter: nil, context: 60, kernels: .strongest, threads: 2)
        var generated: [TokenID] = []
        _ = try generator.generate(
            prompt: prompt, GenerationSettings(maxTokens: 12, temperature: 0, seed: 1), endTokens: []
        ) {
            generated.append($0)
            return .goOn
        }
        let trainee = try Trainee(
            TinyRun.modelPath, lora: AdapterSpec(rank: 1, alpha: 1, dropout: 0, targets: .allLinear, layers: nil),
            tokens: 64, longest: 64)
        trainee.adapters.initialize(seed: 1)
        var sequence = prompt
        for token in generated {
            var best: TokenID = -1
            let sample = TokenizedSample(tokens: sequence, carriesLoss: sequence.map { _ in false })
            try trainee.step.logits(of: MicroBatch([sample])) { first, logits in
                let row = sequence.count - 1 - first
                guard (0..<logits.rows).contains(row) else { return }
                best = TokenID((0..<128).max { logits.row(row)[$0] < logits.row(row)[$1] }!)
            }
            #expect(best == token)
            sequence.append(token)
        }
    }
}
