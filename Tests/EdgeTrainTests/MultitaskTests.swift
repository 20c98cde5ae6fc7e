// LoRA of several tasks: what the tasks share and what each has for itself, against two of peft's LoRAs that are active together; and the
// plain LoRA that it is of each task. Tests/Goldens/make_multitask_goldens.py made the references.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

@Suite(.serialized)
struct MultitaskTests {
    static let golden = Result { try Golden("multitask-goldens.safetensors") }
    static let tasks = ["chat", "code"]
    static let adapter = AdapterSpec(
        method: MTLoRA(tasks: tasks, taskRank: 2), rank: 3, alpha: 6, dropout: 0, targets: .allLinear, layers: nil)

    static func samples() throws -> [TokenizedSample] {
        zip(try golden.get().samples(), try golden.get().integers("tasks")).map { sample, task in
            var sample = sample
            sample.task = task
            return sample
        }
    }

    static func tensors(_ kind: String) throws -> [AdapterTensor] {
        try golden.get().file.tensors.filter { $0.name.hasPrefix(kind + ".") }.map {
            AdapterTensor(name: String($0.name.dropFirst(kind.count + 1)), shape: $0.shape, values: try #require($0.floats()))
        }
    }

    static func trainee(keptLayers: Int = 0, mlpTokens: Int? = nil, threads: Int = 2) throws -> Trainee {
        let trainee = try Trainee(
            TinyRun.modelPath, lora: adapter, tokens: 24, longest: 9, keptLayers: keptLayers, mlpTokens: mlpTokens, threads: threads)
        try trainee.adapters.load(tensors("initial"), trainee.model.spec)
        return trainee
    }

    @Test("forward, gradients and ten losses are those of peft's two LoRAs of each sample", arguments: [0, 2])
    func parity(keptLayers: Int) throws {
        let golden = try Self.golden.get(), trainee = try Self.trainee(keptLayers: keptLayers)
        let batch = MicroBatch(try Self.samples()), expectedLogits = try golden.floats("logits")
        let worst = try trainee.largestLogitDifference(batch, from: expectedLogits)
        #expect(worst < 5e-5)

        let count = batch.lossRows.count
        let loss = try trainee.accumulate(batch, lossScale: 1 / Float(count)) / Double(count)
        let lossError = abs(loss / Double(try golden.floats("loss")[0]) - 1)
        #expect(lossError < 2e-6)
        let expected = try Self.tensors("gradient")
        let found = Dictionary(uniqueKeysWithValues: MethodTests.gradients(trainee).map { ($0.name, $0.values) })
        var worstGradient = 0.0
        for gradient in expected {
            let error = relativeError(try #require(found[gradient.name]), gradient.values)
            worstGradient = max(worstGradient, error)
            #expect(error < 2e-5, "\(gradient.name)")
        }
        #expect(expected.reduce(0) { $0 + $1.values.count } == trainee.adapters.layout.trainableCount)

        let (losses, _) = try trainee.train(batch, steps: 10, learningRate: 2e-3)
        let worstLoss = zip(losses, try golden.floats("training_losses")).map { abs($0 / Double($1) - 1) }.max()!
        #expect(worstLoss < 1e-3)
        print("parity mtlora, \(keptLayers) layers kept: logits \(worst), loss \(lossError), gradients \(worstGradient), ten losses \(worstLoss)")
    }

    // MARK: the same bits

    static func gradientBits(_ batches: [[TokenizedSample]], keptLayers: Int = 0, threads: Int = 2) throws -> [UInt32] {
        let trainee = try trainee(keptLayers: keptLayers, threads: threads)
        for batch in batches { _ = try trainee.accumulate(MicroBatch(batch), lossScale: 0.1) }
        return (0..<trainee.adapters.trainedCount).map { trainee.adapters.gradients[$0].bitPattern }
    }

    @Test("gradients have the same bits however the tasks' samples are packed, layers kept and threads counted")
    func bits() throws {
        let samples = try Self.samples()
        let expected = try Self.gradientBits([samples])
        #expect(try Self.gradientBits(samples.map { [$0] }) == expected)
        #expect(try Self.gradientBits([Array(samples.prefix(2)), Array(samples.suffix(1))]) == expected)
        #expect(try Self.gradientBits([samples], keptLayers: 1) == expected)
        #expect(try Self.gradientBits([samples], threads: 3) == expected)
    }

    @Test("a sample trains what the tasks share and what its own task has, and nothing of another task")
    func ownMatrices() throws {
        let samples = try Self.samples()
        let trainee = try Self.trainee()
        _ = try trainee.accumulate(MicroBatch([samples[1]]), lossScale: 0.1)
        for gradient in MethodTests.gradients(trainee) {
            #expect(gradient.values.allSatisfy { $0 == 0 } == gradient.name.hasSuffix(".chat"), "\(gradient.name)")
        }
    }

    static func run(dropout: Float = 0.1) -> TinyRun {
        var run = TinyRun()
        run.spec.adapter = adapter
        run.spec.adapter.dropout = dropout
        run.spec.precision = .f32
        var samples = TinyRun.samples(17)
        for index in samples.indices { samples[index].task = index * index % 3 % 2 }
        run.dataset = Dataset(samples, heldOut: 3, seed: 3)
        return run
    }

    @Test("a run stopped and resumed, on other threads, ends with the same bits, and so does one that trades time for memory")
    func runs() throws {
        let expected = try MethodTests.adapter(of: Self.run())
        var piecemeal = Self.run()
        piecemeal.replan = { $0.tokenBudget = 1 }
        for stopAfter in [0, 1, 7, 14, 27] {
            let directory = try TemporaryDirectory()
            guard case .stopped = try piecemeal.run(in: directory.path, stopAfter: stopAfter).outcome else {
                Issue.record("stop \(stopAfter) ignored")
                continue
            }
            var rest = Self.run()
            rest.threads = 3
            #expect(try rest.run(in: directory.path).adapter == expected, "stopped after \(stopAfter)")
        }
        var tight = Self.run()
        tight.replan = {
            $0.shape.keptLayers = 0
            $0.shape.weights = .streamed
            $0.shape.checkpoints = .file
            $0.shape.lossChunk = 3
        }
        #expect(try MethodTests.adapter(of: tight) == expected)
        var whole = Self.run(), layered = Self.run()
        (whole.spec.maxGradNorm, layered.spec.maxGradNorm) = (nil, nil)
        whole.replan = { $0.shape.gradients = .allLayers }
        layered.replan = { $0.shape.gradients = .oneLayer }
        #expect(try MethodTests.adapter(of: layered) == MethodTests.adapter(of: whole))
    }

    @Test("beside other jobs it ends with the bits that it has alone, and so do they")
    func together() throws {
        var group = TinyGroup(runs: TogetherTests.runs(["lora", "dylora", "ia3"]))
        group.runs[0] = Self.run()
        group.runs.append(Self.run(dropout: 0))
        let own = try group.runs.map { run in
            let directory = try TemporaryDirectory()
            return try run.run(in: directory.path)
        }
        let place = try TemporaryDirectory()
        let together = try group.run(in: place.path, group.runs.map { _ in TinyRun.Conversation() })
        for index in own.indices {
            #expect(try together[index].outcome.get() == own[index].outcome)
            let isSame = together[index].adapter == own[index].adapter
            #expect(isSame, "\(index)")
        }
    }

    // MARK: files

    /// The published artifact of the golden's adapter.
    static func publish(to directory: String) throws -> BaseModel {
        let trainee = try trainee()
        try AdapterArtifact.publish(
            to: directory, tensors: trainee.adapters.tensors(trainee.model.spec),
            config: AdapterConfig(adapter, modules: trainee.memory.modules, of: trainee.model.spec, baseModelNameOrPath: nil), provenance: [:],
            trainingJSON: [], modelCard: "")
        return trainee.model
    }

    /// Mean nll of a task's samples, by the golden's logits.
    static func loss(ofTask task: Int) throws -> Double {
        let samples = try samples(), batch = MicroBatch(samples), logits = try golden.get().floats("logits")
        let columns = logits.count / batch.tokens.count
        let rows = Set(zip(batch.spans, samples).filter { $1.task == task }.flatMap { span, _ in span.firstQuery..<span.firstQuery + span.queryCount })
        let losses = zip(batch.lossRows, batch.targets).filter { rows.contains(Int($0.0)) }.map { row, target in
            let values = logits[Int(row) * columns..<(Int(row) + 1) * columns].map(Double.init)
            return log(values.reduce(0) { $0 + exp($1) }) - values[values.startIndex + Int(target)]
        }
        return losses.reduce(0, +) / Double(losses.count)
    }

    /// Of a task's samples, with a plain adapter.
    static func loss(_ model: BaseModel, _ adapter: LoadedAdapter?, task: Int, in scratch: String) throws -> Double {
        let samples = try samples().filter { $0.task == task }.map { TokenizedSample(tokens: $0.tokens, carriesLoss: $0.carriesLoss) }
        return try MergedModelTests.loss(model, adapter, samples, in: scratch)
    }

    @Test("of each task it is a plain LoRA: loaded, exported for PEFT and for llama.cpp, merged", arguments: [0, 1])
    func oneTask(_ task: Int) throws {
        let scratch = try TemporaryDirectory(), artifact = scratch.path + "/artifact", name = Self.tasks[task]
        let model = try Self.publish(to: artifact)
        let expected = try Self.loss(ofTask: task)
        func differs(_ adapter: LoadedAdapter?, from model: BaseModel) throws -> Double {
            abs(try Self.loss(model, adapter, task: task, in: scratch.path) / expected - 1)
        }
        let loaded = try LoadedAdapter(directory: artifact, task: name, of: model.spec)
        #expect(loaded.rank == 5 && loaded.isLoRA)
        #expect(try differs(loaded, from: model) < 2e-6)

        let peft = scratch.path + "/peft"
        try FileManager.default.createDirectory(atPath: peft, withIntermediateDirectories: false)
        try AdapterArtifact.exportConfig(artifact, task: name, to: peft + "/adapter_config.json")
        try AdapterArtifact.exportSafetensors(artifact, task: name, to: peft + "/adapter_model.safetensors")
        let plain = try AdapterArtifact.open(directory: peft)
        #expect(plain.config.method.peftType == "LORA" && plain.config.rank == 5 && plain.config.loraAlpha == 10)
        #expect(plain.provenance["task"] == name)
        #expect(try differs(LoadedAdapter(directory: peft, of: model.spec), from: model) < 2e-6)

        let gguf = scratch.path + "/adapter.gguf"
        try AdapterArtifact.exportGGUF(artifact, task: name, architecture: "llama", to: gguf) { module in
            guard let id = try? ModuleID(path: module, in: model.spec) else { return nil }
            return AdapterArtifact.GGUFTarget(
                name: id.ggufName(model.spec), rowOrder: model.spec.ggufRowOrder(id.module), inFeatures: id.inFeatures(model.spec),
                outFeatures: id.outFeatures(model.spec))
        }
        #expect(try differs(LoadedAdapter(tensors: gguf, config: nil, spec: model.spec, limitBytes: 1 << 24), from: model) < 2e-6)

        try MergedModelTests.write(try MergedModel(model, loaded, format: .f16), to: scratch.path + "/merged")
        #expect(try differs(nil, from: MergedModel.open(scratch.path + "/merged", madeFrom: model)) < 5e-4)
    }

    @Test("without a task, or with one that it has not, it is no LoRA, and says which tasks there are")
    func whichTask() throws {
        let scratch = try TemporaryDirectory(), artifact = scratch.path + "/artifact"
        let model = try Self.publish(to: artifact)
        #expect(try AdapterArtifact.verify(directory: artifact) == .asPublished)
        #expect(throws: AdapterError.needsTask(Self.tasks)) { try LoadedAdapter(directory: artifact, of: model.spec) }
        #expect(throws: AdapterError.needsTask(Self.tasks)) { try AdapterArtifact.exportSafetensors(artifact, to: scratch.path + "/x") }
        #expect(throws: AdapterError.unknownTask("poems", tasks: Self.tasks)) {
            try LoadedAdapter(directory: artifact, task: "poems", of: model.spec)
        }
        let opened = try AdapterArtifact.open(directory: artifact)
        #expect(opened.config.method.equals(Self.adapter.method) && opened.stored.count == 14 * 6)
        let plain = try opened.task("code")
        #expect(throws: AdapterError.unknownTask("code", tasks: [])) { try plain.task("code") }
        #expect(try plain.task(nil) == plain)
    }

    @Test("a configuration with tasks that cannot be is refused", arguments: [
        (#""tasks": ["a", "a"], "task_r": 2"#, "tasks"), (#""tasks": ["a.b"], "task_r": 2"#, "tasks"), (#""tasks": [1], "task_r": 2"#, "tasks"),
        (#""tasks": ["a"], "task_r": 0"#, "task_r"), (#""tasks": ["a"]"#, "task_r"), (#""task_r": 2"#, "tasks"),
    ])
    func badConfigurations(_ members: String, _ key: String) throws {
        let text = #"{"peft_type": "MTLORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj"], \#(members)}"#
        do {
            _ = try AdapterConfig(json: ByteRegion.copy(of: Array(text.utf8)))
            Issue.record("read")
        } catch let error as AdapterError {
            guard case .badConfig(key, _) = error else { Issue.record("\(error)"); return }
        }
    }
}
