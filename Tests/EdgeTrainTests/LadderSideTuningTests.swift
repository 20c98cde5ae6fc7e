// A network beside the layers, against its formula in torch: Tests/Goldens/make_lst_goldens.py made the references. What holds for every method
// (its start, resuming, the plan's trades, jobs together) is in MethodTests and TogetherTests.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

@Suite(.serialized)
struct LadderSideTuningTests {
    static let golden = Result { try Golden("lst-goldens.safetensors") }
    /// Cases of the goldens, by the name there.
    static let factors = ["narrow": 8, "wide": 2]
    static let cases = ["narrow", "wide"]

    static func spec(_ name: String = "narrow") -> AdapterSpec {
        AdapterSpec(
            method: LadderSideTuning(reductionFactor: factors[name]!), rank: 1, alpha: 1, dropout: 0, targets: .allLinear, layers: nil)
    }

    static func tensors(_ name: String, _ kind: String) throws -> [AdapterTensor] {
        let prefix = "\(name)/\(kind)."
        return try golden.get().file.tensors.filter { $0.name.hasPrefix(prefix) }.map {
            AdapterTensor(name: String($0.name.dropFirst(prefix.count)), shape: $0.shape, values: try #require($0.floats()))
        }
    }

    static func trainee(
        _ name: String = "narrow", threads: Int = 2, kernels: KernelSet = .strongest, tokens: Int = 20, longest: Int = 13,
        checkpoints: CheckpointStorage = .memory
    ) throws -> Trainee {
        let trainee = try Trainee(
            TinyRun.modelPath, lora: spec(name), tokens: tokens, longest: longest, checkpoints: checkpoints, kernels: kernels, threads: threads)
        try trainee.adapters.load(tensors(name, "initial"), trainee.model.spec)
        return trainee
    }

    @Test("forward, gradients and ten losses are those of torch, in every kernel set", arguments: cases)
    func parity(_ name: String) throws {
        for kernels in KernelSet.supported {
            let golden = try Self.golden.get(), trainee = try Self.trainee(name, kernels: kernels)
            let batch = MicroBatch(try golden.samples()), expectedLogits = try golden.floats("\(name)/logits")
            let worst = try trainee.largestLogitDifference(batch, from: expectedLogits)
            #expect(worst < 5e-5)

            let count = batch.lossRows.count
            let loss = try trainee.accumulate(batch, lossScale: 1 / Float(count)) / Double(count)
            let lossError = abs(loss / Double(try golden.floats("\(name)/loss")[0]) - 1)
            #expect(lossError < 2e-6)
            let expected = try Self.tensors(name, "gradient")
            let found = Dictionary(uniqueKeysWithValues: MethodTests.gradients(trainee).map { ($0.name, $0.values) })
            var worstGradient = 0.0
            for gradient in expected {
                let own = try #require(found[gradient.name])
                // One number, whose terms may cancel.
                let error = gradient.name.hasSuffix(".gate")
                    ? Double(abs(own[0] - gradient.values[0]) / (try golden.floats("\(name)/terms.\(gradient.name)")[0]))
                    : relativeError(own, gradient.values)
                worstGradient = max(worstGradient, error)
                #expect(error < 2e-5, "\(gradient.name)")
            }
            #expect(expected.reduce(0) { $0 + $1.values.count } == trainee.adapters.layout.trainableCount)

            let (losses, _) = try trainee.train(batch, steps: 10, learningRate: 2e-3)
            let worstLoss = zip(losses, try golden.floats("\(name)/training_losses")).map { abs($0 / Double($1) - 1) }.max()!
            #expect(worstLoss < 1e-3)
            print("parity lst \(name), \(kernels.name): logits \(worst), loss \(lossError), gradients \(worstGradient), ten losses \(worstLoss)")
        }
    }

    static func gradientBits(
        _ batches: [[TokenizedSample]], threads: Int = 2, tokens: Int = 20, longest: Int = 13, checkpoints: CheckpointStorage = .memory
    ) throws -> [UInt32] {
        let trainee = try trainee(threads: threads, tokens: tokens, longest: longest, checkpoints: checkpoints)
        for batch in batches { _ = try trainee.accumulate(MicroBatch(batch), lossScale: 0.1) }
        return (0..<trainee.adapters.trainedCount).map { trainee.adapters.gradients[$0].bitPattern }
    }

    @Test("gradients have the same bits however samples are packed, layer inputs stored and threads counted")
    func bits() throws {
        let samples = try Self.golden.get().samples()
        let expected = try Self.gradientBits([samples])
        #expect(try Self.gradientBits(samples.map { [$0] }) == expected)
        #expect(try Self.gradientBits([samples], threads: 3) == expected)
        #expect(try Self.gradientBits([samples], checkpoints: .file) == expected)
    }

    @Test("samples longer than one sum of an outer product have the same bits, too")
    func longSamples() throws {
        // The tiny model's context is 64 tokens; positions beyond are as good for this.
        let samples = [300, 270, 40].enumerated().map { index, length in
            TokenizedSample(tokens: (0..<length).map { TokenID((7 * $0 + 13 * index) % 128) }, carriesLoss: (0..<length).map { $0 > 2 })
        }
        let expected = try Self.gradientBits([samples], tokens: 610, longest: 300)
        #expect(try Self.gradientBits(samples.map { [$0] }, tokens: 610, longest: 300) == expected)
        #expect(try Self.gradientBits([samples], threads: 3, tokens: 610, longest: 300, checkpoints: .file) == expected)
    }

    @Test("layer inputs in bf16: the loss is exact, gradients point where they did")
    func roundedLayerInputs() throws {
        let exact = try Self.trainee(), rounded = try Self.trainee(checkpoints: .bf16)
        let batch = MicroBatch(try Self.golden.get().samples())
        #expect(try exact.accumulate(batch, lossScale: 0.1) == rounded.accumulate(batch, lossScale: 0.1))
        func gradients(_ trainee: Trainee) -> [Float] { (0..<trainee.adapters.trainedCount).map { trainee.adapters.gradients[$0] } }
        let error = relativeError(gradients(rounded), gradients(exact))
        #expect(error > 0 && error < 2e-2, "\(error)")
    }

    @Test("no layer of the base has a backward, or is computed again: that memory is not planned, and none is traded")
    func plan() throws {
        let lst = try PlanTests.memory(Self.spec()), lora = try PlanTests.memory()
        let free = try PlanTests.plan(lst, budgetMiB: 4000), ofLoRA = try PlanTests.plan(lora, budgetMiB: 4000)
        #expect(lst.trainedLayers == 0 && free.shape.keptLayers == 0 && free.trades.isEmpty)
        #expect(free.peak < ofLoRA.peak && free.seconds! < ofLoRA.seconds!)
        #expect(free.pools.reduce(ByteCount.zero) { $0 + $1.size } == free.peak)
        guard case .doesNotFit(let needed, _, let changes)? = #expect(throws: PlanError.self, performing: { try PlanTests.plan(lst, budgetMiB: 20) })
        else { return }
        let least = try PlanTests.plan(lst, budgetBytes: needed.bytes)
        #expect(least.shape.checkpoints == .file && !least.trades.contains { $0.what.hasPrefix("recompute") })
        #expect(!changes.contains { $0.line.hasPrefix("lora_r") || $0.line.hasPrefix("layers_to_transform") }, "\(changes)")
        print(
            "lst beside lora rank \(GoldenTests.tinyLoRA.rank) on SmolLM2: \(free.peak.mebibytes) of \(ofLoRA.peak.mebibytes) MiB, least \(needed.mebibytes) MiB, "
                + "\(lst.layout.trainableCount) parameters")
    }

    @Test("a factor that does not divide the hidden size is refused with those that do")
    func factors() throws {
        let model = try BaseModel.open(path: TinyRun.modelPath).spec
        var spec = Self.spec()
        spec.method = LadderSideTuning(reductionFactor: 12)
        let refused = #expect(throws: AdapterTargetError.self) { try spec.modules(of: model) }
        #expect(refused?.description.hasSuffix("hidden size of 64: use one of 1, 2, 4, 8, 16, 32, 64") == true)
        // More than there are heads: one is left.
        spec.method = LadderSideTuning(reductionFactor: 64)
        #expect(try spec.modules(of: model).isEmpty)
        #expect(spec.method.side(model) == LadderSideTuning(reductionFactor: 64).side(model) && spec.method.side(model)?.headCount == 1)
        let trainee = try Trainee(TinyRun.modelPath, lora: spec, tokens: 20, longest: 13)
        try trainee.step.initialize(seed: 1)
        let (losses, _) = try trainee.train(MicroBatch(try Self.golden.get().samples()), steps: 3, learningRate: 1e-3)
        #expect(losses.allSatisfy { $0.isFinite })
    }

    @Test("what is published is loaded to the same loss; no other program's export, and no merge", arguments: cases)
    func files(_ name: String) throws {
        let scratch = try TemporaryDirectory(), path = scratch.path + "/artifact"
        let trainee = try Self.trainee(name), model = trainee.model
        try AdapterArtifact.publish(
            to: path, tensors: trainee.adapters.tensors(model.spec),
            config: AdapterConfig(Self.spec(name), modules: [], of: model.spec, baseModelNameOrPath: "tiny"), provenance: [:], trainingJSON: [],
            modelCard: "")
        let artifact = try AdapterArtifact.open(directory: path)
        #expect(artifact.stored.sorted { $0.name < $1.name } == (try Self.tensors(name, "initial").sorted { $0.name < $1.name }))
        #expect(artifact.config.method.equals(Self.spec(name).method))
        let config = String(decoding: artifact.config.json, as: UTF8.self)
        for text in [#""peft_type": "LST""#, #""reduction_factor": \#(Self.factors[name]!)"#, #""gate_temperature": 0.1"#] {
            #expect(config.contains(text), "\(config)")
        }
        let golden = try Self.golden.get(), loaded = try LoadedAdapter(directory: path, of: model.spec)
        let loss = try MergedModelTests.loss(model, loaded, golden.samples(), in: scratch.path)
        #expect(abs(loss / Double(try golden.floats("\(name)/loss")[0]) - 1) < 2e-6)
        #expect(throws: AdapterError.notOfWeights(method: "lst")) { try MergedModel(model, loaded, format: .f16) }
        #expect(throws: AdapterError.notForPEFT(method: "lst")) { try AdapterArtifact.exportSafetensors(path, to: scratch.path + "/x") }
        #expect(throws: AdapterError.notOfWeights(method: "lst")) {
            try AdapterArtifact.exportGGUF(path, architecture: "llama", to: scratch.path + "/x") { _ in nil }
        }
        #expect("\(AdapterError.notForPEFT(method: "lst"))".contains("PEFT has no class"))
        #expect("\(AdapterError.notOfWeights(method: "lst"))".contains("type lora only"))
    }

    @Test("a configuration of another network is refused by the key", arguments: [
        (#""reduction_factor": 0"#, "reduction_factor"), (#""reduction_factor": 2.5"#, "reduction_factor"),
        (#""gate_temperature": 0.1"#, "reduction_factor"), (#""reduction_factor": 8, "gate_temperature": 1"#, "gate_temperature"),
    ])
    func badConfigurations(_ members: String, _ key: String) throws {
        do {
            _ = try AdapterConfig(json: ByteRegion.copy(of: Array(#"{"peft_type": "LST", \#(members)}"#.utf8)))
            Issue.record("read")
        } catch let error as AdapterError {
            guard case .badConfig(key, _) = error else { Issue.record("\(error)"); return }
        }
    }

    @Test("generation continues with the argmax of the training path's logits, token by token, prompts of several chunks included", arguments: cases)
    func generation(_ name: String) throws {
        let tensors = try Self.tensors(name, "initial")
        let trainee = try Self.trainee(name, tokens: 192, longest: 192)
        for prompt in [TinyRun.samples(1)[0].tokens, (0..<150).map { TokenID((11 * $0 + 5) % 128) }] {
            try trainee.expectGreedyGeneration(from: prompt, tensors, context: 192)
        }
    }

    @Test("without a backward the slope is the gradient along the direction")
    func slopes() throws {
        let batch = MicroBatch(try Self.golden.get().samples()), trainee = try Self.trainee()
        let prober = try Prober(TinyRun.modelPath, lora: Self.spec(), tokens: 20, longest: 13)
        try prober.adapters.load(Self.tensors("narrow", "initial"), trainee.model.spec)
        _ = try trainee.accumulate(batch, lossScale: 1 / Float(batch.lossRows.count))
        for step in 0..<3 {
            let direction = ZerothOrder.direction(seed: 5, step: step)
            var expected = 0.0
            for element in trainee.adapters.layout.trained.flatMap(\.elements) {
                let (first, second) = direction.normals(pair: element / 2)
                expected += Double(trainee.adapters.gradients[element]) * Double(element % 2 == 0 ? first : second)
            }
            let slope = try prober.losses(batch, direction, epsilon: 3e-4).slope(epsilon: 3e-4)
            #expect(abs(slope - expected) < 2e-2 * max(1, abs(expected)), "\(slope), \(expected)")
        }
    }
}
