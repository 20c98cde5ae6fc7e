// An MLP that is a mixture of experts, against the paper's formula in torch: Tests/Goldens/make_mixlora_goldens.py made the references.
// What holds for every method (its start, resuming, the plan's trades, jobs together) is in MethodTests and TogetherTests.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

@Suite(.serialized)
struct MixLoRATests {
    static let golden = Result { try Golden("mixlora-goldens.safetensors") }
    static let adapter = AdapterSpec(
        method: MixLoRA(experts: 4, chosen: 2, balance: 0.5), rank: 2, alpha: 4, dropout: 0, targets: .allLinear, layers: nil)

    static func tensors(_ kind: String) throws -> [AdapterTensor] {
        try golden.get().file.tensors.filter { $0.name.hasPrefix(kind + ".") }.map {
            AdapterTensor(name: String($0.name.dropFirst(kind.count + 1)), shape: $0.shape, values: try #require($0.floats()))
        }
    }

    static func trainee(
        keptLayers: Int = 0, mlpTokens: Int? = nil, threads: Int = 2, kernels: KernelSet = .strongest, tokens: Int = 20, longest: Int = 13
    ) throws -> Trainee {
        let trainee = try Trainee(
            TinyRun.modelPath, lora: adapter, tokens: tokens, longest: longest, keptLayers: keptLayers, mlpTokens: mlpTokens, kernels: kernels,
            threads: threads)
        try trainee.adapters.load(tensors("initial"), trainee.model.spec)
        return trainee
    }

    @Test("forward, gradients and ten losses are those of torch, in every kernel set", arguments: [0, 2])
    func parity(keptLayers: Int) throws {
        for kernels in KernelSet.supported {
            let golden = try Self.golden.get(), trainee = try Self.trainee(keptLayers: keptLayers, kernels: kernels)
            let batch = MicroBatch(try golden.samples()), expectedLogits = try golden.floats("logits")
            let worst = try trainee.largestLogitDifference(batch, from: expectedLogits)
            #expect(worst < 5e-5)

            let count = batch.lossRows.count
            let loss = try trainee.accumulate(batch, lossScale: 1 / Float(count), sampleShare: 0.5) / Double(count)
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
            print(
                "parity mixlora, \(kernels.name), \(keptLayers) layers kept: logits \(worst), loss \(lossError), gradients \(worstGradient), "
                    + "ten losses \(worstLoss)")
        }
    }

    static func gradientBits(
        _ batches: [[TokenizedSample]], keptLayers: Int = 0, mlpTokens: Int? = nil, threads: Int = 2, tokens: Int = 20, longest: Int = 13
    ) throws -> [UInt32] {
        let trainee = try trainee(keptLayers: keptLayers, mlpTokens: mlpTokens, threads: threads, tokens: tokens, longest: longest)
        for batch in batches { _ = try trainee.accumulate(MicroBatch(batch), lossScale: 0.1, sampleShare: 0.5) }
        return (0..<trainee.adapters.trainedCount).map { trainee.adapters.gradients[$0].bitPattern }
    }

    @Test("gradients have the same bits however samples are packed, layers kept and threads counted")
    func bits() throws {
        let samples = try Self.golden.get().samples()
        let expected = try Self.gradientBits([samples])
        #expect(try Self.gradientBits(samples.map { [$0] }) == expected)
        #expect(try Self.gradientBits([samples], keptLayers: 1) == expected)
        #expect(try Self.gradientBits([samples], threads: 3) == expected)
    }

    @Test("samples longer than an expert works on at a time have the same bits, too, in an MLP that is done in parts")
    func longSamples() throws {
        // The tiny model's context is 64 tokens; positions beyond are as good for this.
        let samples = [300, 270, 40].enumerated().map { index, length in
            TokenizedSample(tokens: (0..<length).map { TokenID((7 * $0 + 13 * index) % 128) }, carriesLoss: (0..<length).map { $0 > 2 })
        }
        let expected = try Self.gradientBits([samples], tokens: 610, longest: 300)
        #expect(try Self.gradientBits(samples.map { [$0] }, tokens: 610, longest: 300) == expected)
        #expect(try Self.gradientBits([samples], mlpTokens: 300, tokens: 610, longest: 300) == expected)
        #expect(try Self.gradientBits([samples], keptLayers: 1, mlpTokens: 256, threads: 3, tokens: 610, longest: 300) == expected)
    }

    @Test("the balance has a part in the router's gradient, and in nothing of the layer that is the last")
    func balance() throws {
        let samples = try Self.golden.get().samples()
        func gradients(_ share: Float) throws -> [String: [Float]] {
            let trainee = try Self.trainee()
            _ = try trainee.accumulate(MicroBatch(samples), lossScale: 0.1, sampleShare: share)
            return Dictionary(uniqueKeysWithValues: MethodTests.gradients(trainee).map { ($0.name, $0.values) })
        }
        let with = try gradients(0.5), without = try gradients(0)
        for (name, values) in with where name.contains("layers.1.mlp") {
            #expect((values == without[name]) == !name.contains("moe_gate"), "\(name)")
        }
    }

    @Test("what is published has the program's keys and says all, and is loaded to the same loss; no other program's export, and no merge")
    func files() throws {
        let scratch = try TemporaryDirectory(), path = scratch.path + "/artifact"
        let trainee = try Self.trainee(), model = trainee.model
        try AdapterArtifact.publish(
            to: path, tensors: trainee.adapters.tensors(model.spec),
            config: AdapterConfig(Self.adapter, modules: trainee.memory.modules, of: model.spec, baseModelNameOrPath: "tiny"), provenance: [:],
            trainingJSON: [], modelCard: "")
        let artifact = try AdapterArtifact.open(directory: path)
        let expected = try Self.tensors("initial").sorted { $0.name < $1.name }
        #expect(artifact.stored.sorted { $0.name < $1.name } == expected)
        #expect(artifact.config.method.equals(Self.adapter.method))
        let config = String(decoding: artifact.config.json, as: UTF8.self)
        for text in [
            #""peft_type": "MIXLORA""#, #""routing_strategy": "mixlora""#, #""num_experts": 4"#, #""top_k": 2"#, #""r": 2"#, #""lora_alpha": 4"#,
            #""gate_proj""#, #""q_proj""#,
        ] { #expect(config.contains(text), "\(config)") }
        let loaded = try LoadedAdapter(directory: path, of: model.spec)
        let golden = try Self.golden.get()
        let loss = try MergedModelTests.loss(model, loaded, golden.samples(), in: scratch.path)
        #expect(abs(loss / Double(try golden.floats("loss")[0]) - 1) < 2e-6)
        #expect(throws: AdapterError.notOfWeights(method: "mixlora")) { try MergedModel(model, loaded, format: .f16) }
        #expect(throws: AdapterError.notForPEFT(method: "mixlora")) { try AdapterArtifact.exportSafetensors(path, to: scratch.path + "/x") }
        #expect(throws: AdapterError.notOfWeights(method: "mixlora")) {
            try AdapterArtifact.exportGGUF(path, architecture: "llama", to: scratch.path + "/x") { _ in nil }
        }
    }

    @Test("a configuration of another mixture is refused by the key", arguments: [
        (#""routing_strategy": "switch", "num_experts": 4"#, "routing_strategy"),
        (#""routing_strategy": "mixlora", "num_experts": 0"#, "num_experts"),
        (#""routing_strategy": "mixlora", "num_experts": 2, "top_k": 3"#, "top_k"),
        (#""routing_strategy": "mixlora", "num_experts": 4, "expert_lora": {"r": 2}"#, "expert_lora"),
        (#""routing_strategy": "mixlora", "num_experts": 4, "use_dora": true"#, "use_dora"),
    ])
    func badConfigurations(_ members: String, _ key: String) throws {
        let text = #"{"peft_type": "MIXLORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], \#(members)}"#
        do {
            _ = try AdapterConfig(json: ByteRegion.copy(of: Array(text.utf8)))
            Issue.record("read")
        } catch let error as AdapterError {
            guard case .badConfig(key, _) = error else { Issue.record("\(error)"); return }
        }
    }
}
