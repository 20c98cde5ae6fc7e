// The methods of the adapters library against the library itself: forward, gradients, ten losses, and its own files.
// Tests/Goldens/make_additive_goldens.py made the references. What all methods owe is in MethodTests and TogetherTests.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

struct HubCase: CustomTestStringConvertible, Sendable {
    let name: String
    let method: HubAdapter
    /// Of a method that has a LoRA.
    var rank = 1
    var testDescription: String { name }

    var spec: AdapterSpec { AdapterSpec(method: method, rank: rank, alpha: 1, dropout: 0, targets: .allLinear, layers: nil) }

    static let mam = HubCase(name: "mam", method: HubAdapter.mam.with { $0.reductionFactor = 8 }.with(prefixTokens: 5, .samples))
    static let unipelt = HubCase(
        name: "unipelt", method: HubAdapter.unipelt.with { ($0.reductionFactor, $0.scaling) = (8, 1.5) }.with(prefixTokens: 5, .samples), rank: 4)

    static let all = [
        HubCase(name: "seq_bn", method: .seqBn),
        make("seq_bn-tanh", .seqBn, 9, .tanh) { ($0.followsAttention, $0.scaling) = (true, 0.5) },
        HubCase(name: "double_seq_bn", method: .doubleSeqBn),
        make("double_seq_bn-gelu", .doubleSeqBn, 8, .gelu) { $0.followsMLP = false },
        make("par_bn", .parBn, 8, .relu),
        make("par_bn-both", .parBn, 16, .geluNew) { ($0.followsAttention, $0.scaling) = (true, 2.5) },
        mam, unipelt,
    ]

    private static func make(
        _ name: String, _ method: HubAdapter, _ reductionFactor: Double, _ f: NonLinearity, _ change: (inout Bottleneck) -> Void = { _ in }
    ) -> HubCase {
        HubCase(
            name: name,
            method: method.with {
                ($0.reductionFactor, $0.nonLinearity) = (reductionFactor, f)
                change(&$0)
            })
    }
}

@Suite(.serialized)
struct HubAdapterTests {
    static let golden = Result { try Golden("additive-goldens.safetensors") }

    static func trainee(_ one: HubCase, keptLayers: Int = 0, threads: Int = 2) throws -> Trainee {
        try Trainee(TinyRun.modelPath, lora: one.spec, tokens: 20, longest: 13, keptLayers: keptLayers, threads: threads)
    }

    static func tensors(_ one: HubCase, _ kind: String) throws -> [AdapterTensor] {
        let prefix = "\(one.name)/\(kind)."
        return try golden.get().file.tensors.filter { $0.name.hasPrefix(prefix) }.map {
            AdapterTensor(name: String($0.name.dropFirst(prefix.count)), shape: $0.shape, values: try #require($0.floats()))
        }.sorted { $0.name < $1.name }
    }

    @Test("forward, gradients and ten losses are those of the adapters library", arguments: HubCase.all, [0, 2])
    func parity(_ one: HubCase, keptLayers: Int) throws {
        let golden = try Self.golden.get(), trainee = try Self.trainee(one, keptLayers: keptLayers)
        try trainee.adapters.load(Self.tensors(one, "initial"), trainee.model.spec)
        let batch = MicroBatch(try golden.samples()), expectedLogits = try golden.floats("\(one.name)/logits")
        let worst = try trainee.largestLogitDifference(batch, from: expectedLogits)
        #expect(worst < 5e-5)

        let count = batch.lossRows.count
        let loss = try trainee.accumulate(batch, lossScale: 1 / Float(count)) / Double(count)
        #expect(abs(loss / Double(try golden.floats("\(one.name)/loss")[0]) - 1) < 2e-6)
        let expected = try Self.tensors(one, "gradient")
        let found = Dictionary(uniqueKeysWithValues: MethodTests.gradients(trainee).map { ($0.name, $0.values) })
        var worstGradient = 0.0
        for gradient in expected {
            let error = relativeError(try #require(found[gradient.name], "\(gradient.name)"), gradient.values)
            worstGradient = max(worstGradient, error)
            // A gate's is one number per sample, in which what its tokens and features have nearly cancels.
            #expect(error < (gradient.name.contains("gate") ? 1e-4 : 2e-5), "\(gradient.name)")
        }
        #expect(expected.reduce(0) { $0 + $1.values.count } == trainee.adapters.layout.trainableCount)

        let (losses, _) = try trainee.train(batch, steps: 10, learningRate: 2e-3)
        let worstLoss = zip(losses, try golden.floats("\(one.name)/training_losses")).map { abs($0 / Double($1) - 1) }.max()!
        #expect(worstLoss < 1e-3)
        print("parity \(one.name), \(keptLayers) layers kept: logits \(worst), gradients \(worstGradient), ten losses \(worstLoss)")
    }

    @Test("gradients have the same bits however samples are packed, layers kept and threads counted", arguments: HubCase.all)
    func bits(_ one: HubCase) throws {
        let samples = try Self.golden.get().samples()
        func bits(_ batches: [[TokenizedSample]], keptLayers: Int = 0, threads: Int = 2) throws -> [UInt32] {
            let trainee = try Self.trainee(one, keptLayers: keptLayers, threads: threads)
            try trainee.adapters.load(Self.tensors(one, "initial"), trainee.model.spec)
            for batch in batches { _ = try trainee.accumulate(MicroBatch(batch), lossScale: 0.1) }
            return (0..<trainee.adapters.trainedCount).map { trainee.adapters.gradients[$0].bitPattern }
        }
        let expected = try bits([samples])
        #expect(try bits(samples.map { [$0] }) == expected)
        #expect(try bits([samples], keptLayers: 1) == expected)
        #expect(try bits([samples], threads: 3) == expected)
    }

    @Test("an MLP that is done in parts has the same gradients", arguments: HubCase.all.filter { !$0.method.isGated })
    func parts(_ one: HubCase) throws {
        let samples = [300, 280].map { length in
            let tokens: [TokenID] = (0..<length).map { TokenID(3 + $0 * 7 % 90) }
            return TokenizedSample(tokens: tokens, carriesLoss: (0..<length).map { $0 % 3 == 0 })
        }
        func bits(_ mlpTokens: Int) throws -> [UInt32] {
            let trainee = try Trainee(TinyRun.modelPath, lora: one.spec, tokens: 580, longest: 300, mlpTokens: mlpTokens)
            try trainee.adapters.load(Self.tensors(one, "initial"), trainee.model.spec)
            _ = try trainee.accumulate(MicroBatch(samples), lossScale: 0.01)
            return (0..<trainee.adapters.trainedCount).map { trainee.adapters.gradients[$0].bitPattern }
        }
        #expect(try bits(256) == bits(580))
    }

    // MARK: files

    /// What the library's `save_adapter(…, use_safetensors=True)` leaves, of an adapter called `name`.
    static func hubDirectory(_ one: HubCase, _ directory: String, called name: String = "edgetune", _ change: (String) -> String = { $0 }) throws {
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        var file = SafetensorsWriter(metadata: ["format": "pt"])
        for tensor in try tensors(one, "initial") {
            try file.add(
                tensor.name.replacingOccurrences(of: ".edgetune.", with: ".\(name)."), dtype: .f32, shape: tensor.shape,
                body: .floats(tensor.values))
        }
        try Data(try file.encoded()).write(to: URL(fileURLWithPath: directory + "/adapter.safetensors"))
        let config = try #require(golden.get().file.metadata[one.name]).replacingOccurrences(of: "\"name\": \"edgetune\"", with: "\"name\": \"\(name)\"")
        try Data(change(config).utf8).write(to: URL(fileURLWithPath: directory + "/adapter_config.json"))
    }

    static func loss(_ model: BaseModel, _ directory: String, in scratch: String) throws -> Double {
        try MergedModelTests.loss(model, LoadedAdapter(directory: directory, of: model.spec), golden.get().samples(), in: scratch)
    }

    @Test("the library's own directory gives the same loss; what is published has its keys, shapes, values and configuration", arguments: HubCase.all)
    func files(_ one: HubCase) throws {
        let scratch = try TemporaryDirectory(), trainee = try Self.trainee(one)
        let initial = try Self.tensors(one, "initial"), expectedLoss = Double(try Self.golden.get().floats("\(one.name)/loss")[0])
        try Self.hubDirectory(one, scratch.path + "/hub", called: "sst-2")
        try trainee.adapters.load(initial, trainee.model.spec)
        try AdapterArtifact.publish(
            to: scratch.path + "/own", tensors: trainee.adapters.tensors(trainee.model.spec),
            config: AdapterConfig(
                one.spec, modules: one.spec.modules(of: trainee.model.spec), of: trainee.model.spec, baseModelNameOrPath: "tiny"), provenance: [:],
            trainingJSON: [], modelCard: "")
        #expect(try AdapterArtifact.open(directory: scratch.path + "/own").stored.sorted { $0.name < $1.name } == initial)
        try AdapterArtifact.exportPEFT(scratch.path + "/own", to: scratch.path + "/export")
        #expect(try FileManager.default.contentsOfDirectory(atPath: scratch.path + "/export").sorted() == ["adapter.safetensors", "adapter_config.json"])
        let theirs = try Array(try #require(Self.golden.get().file.metadata[one.name]).utf8).withUnsafeBytes { try JSONText(parsing: $0) }
        let ours = try AdapterConfig(json: ByteRegion.map(path: scratch.path + "/export/adapter_config.json")).json.withUnsafeBytes {
            try JSONText(parsing: $0)
        }
        /// A union's, one after the other.
        func parts(_ document: JSONText) throws -> [JSONText] {
            let config = try #require(document["config"])
            return config["configs"]?.array ?? [config]
        }
        #expect(try parts(ours).count == parts(theirs).count)
        for (own, expected) in zip(try parts(ours), try parts(theirs)) {
            guard case .object(let members) = own else { Issue.record("no config"); return }
            for member in members where !["init_weights", "bottleneck_size"].contains(member.key) {
                let value = expected[member.key]
                #expect(value == member.value || value?.double == member.value.double && value?.double != nil, "\(member.key): \(member.value)")
            }
        }
        for directory in ["/hub", "/own", "/export"] {
            #expect(abs(try Self.loss(trainee.model, scratch.path + directory, in: scratch.path) / expectedLoss - 1) < 2e-6)
        }
        let adapter = try LoadedAdapter(directory: scratch.path + "/own", of: trainee.model.spec)
        #expect(throws: AdapterError.notOfWeights(method: one.method.name)) { try MergedModel(trainee.model, adapter, format: .f16) }
        #expect(throws: AdapterError.notOfWeights(method: one.method.name)) {
            try AdapterArtifact.exportGGUF(scratch.path + "/own", architecture: "llama", to: scratch.path + "/adapter.gguf") { _ in nil }
        }
    }

    @Test("settings of the library's that are none here are refused by name", arguments: [
        ("\"ln_before\": false", "\"ln_before\": true", "ln_before", "true"),
        ("\"scaling\": 1.0", "\"scaling\": \"learned\"", "scaling", "\"learned\""),
        ("\"reduction_factor\": 16", "\"reduction_factor\": {\"1\": 16}", "reduction_factor", "{\n  \"1\": 16\n}"),
        ("\"non_linearity\": \"relu\"", "\"non_linearity\": \"leakyrelu\"", "non_linearity", "\"leakyrelu\""),
        ("\"leave_out\": []", "\"leave_out\": [0]", "leave_out", "[\n  0\n]"),
        ("\"inv_adapter\": null", "\"inv_adapter\": \"nice\"", "inv_adapter", "\"nice\""),
    ])
    func refused(_ from: String, _ to: String, key: String, value: String) throws {
        let scratch = try TemporaryDirectory(), model = try BaseModel.open(path: TinyRun.modelPath)
        try Self.hubDirectory(HubCase.all[0], scratch.path + "/hub") { $0.replacingOccurrences(of: from, with: to) }
        #expect(throws: AdapterError.unsupported(key: "config: " + key, value: value)) {
            try LoadedAdapter(directory: scratch.path + "/hub", of: model.spec)
        }
    }

    @Test("of a mix, a prefix that a network makes, and other gates and LoRAs, are refused by name", arguments: [
        (HubCase.mam, "\"flat\": true", "\"flat\": false", "flat", "false"),
        (.mam, "\"use_gating\": false", "\"use_gating\": true", "use_gating", "true"),
        (.unipelt, "\"use_gating\": true", "\"use_gating\": false", "use_gating", "false"),
        (.unipelt, "\"shared_gating\": true", "\"shared_gating\": false", "shared_gating", "false"),
        (.unipelt, "\"original_ln_before\": true", "\"original_ln_before\": false", "original_ln_before", "false"),
        (.unipelt, "\"intermediate_lora\": false", "\"intermediate_lora\": true", "intermediate_lora", "true"),
        (.unipelt, "\"r\": 4", "\"r\": 0", "r", "0"),
    ])
    func refusedMixes(_ one: HubCase, _ from: String, _ to: String, key: String, value: String) throws {
        let scratch = try TemporaryDirectory(), model = try BaseModel.open(path: TinyRun.modelPath)
        try Self.hubDirectory(one, scratch.path + "/hub") { $0.replacingOccurrences(of: from, with: to) }
        #expect(throws: AdapterError.unsupported(key: "config: " + key, value: value)) {
            try LoadedAdapter(directory: scratch.path + "/hub", of: model.spec)
        }
    }

    // MARK: generation

    /// Gates that read nothing are the same for a sample and for each of its beginnings.
    @Test("generation continues with the argmax of the training path's logits, token by token", arguments: HubCase.all)
    func generation(_ one: HubCase) throws {
        let tensors = try Self.tensors(one, "initial").map { tensor in
            guard tensor.name.hasSuffix("gate.weight") || tensor.name.contains("prefix_gates"), tensor.shape.count == 2 else { return tensor }
            var own = tensor
            own.values = tensor.values.map { _ in 0 }
            return own
        }
        let trainee = try Trainee(TinyRun.modelPath, lora: one.spec, tokens: 64, longest: 64)
        try trainee.adapters.load(tensors, trainee.model.spec)
        let prompt = TinyRun.samples(1)[0].tokens
        try trainee.expectGreedyGeneration(from: prompt, tensors, context: 60)
    }

    @Test("with gates generation begins with the library's most likely token, and again so")
    func generationWithGates() throws {
        let one = HubCase.unipelt, golden = try Self.golden.get(), model = try BaseModel.open(path: TinyRun.modelPath)
        let layout = AdapterLayout(one.spec, modules: try one.spec.modules(of: model.spec), of: model.spec), tensors = try Self.tensors(one, "initial")
        let generator = try Generator(
            model: model, adapter: (layout, { try $0.load(tensors, model.spec) }), context: 60, kernels: .strongest, threads: 2)
        func generated(_ prompt: [TokenID]) throws -> [TokenID] {
            var generated: [TokenID] = []
            _ = try generator.generate(prompt: prompt, GenerationSettings(maxTokens: 8, temperature: 0, seed: 1), endTokens: []) {
                generated.append($0)
                return .goOn
            }
            return generated
        }
        let logits = try golden.floats("unipelt/logits"), samples = try golden.samples(), width = model.spec.vocabularySize
        var row = -1
        for sample in samples {
            row += sample.tokens.count
            let likely = TokenID((0..<width).max { logits[row * width + $0] < logits[row * width + $1] }!)
            let first = try generated(sample.tokens)
            #expect(first.first == likely)
            #expect(try generated(sample.tokens) == first)
        }
    }

    @Test("with gates no plan does an MLP in parts, and a prompt goes through the layers whole")
    func whole() throws {
        let model = try BaseModel.open(path: TinyRun.modelPath)
        func memory(_ one: HubCase) throws -> MemoryModel { try MemoryModel(model, adapter: one.spec) }
        #expect(try memory(.mam).partsMLP)
        #expect(try !memory(.unipelt).partsMLP)
        func bytes(_ one: HubCase) throws -> Int {
            let layout = AdapterLayout(one.spec, modules: try one.spec.modules(of: model.spec), of: model.spec)
            return Generator.bytes(model.spec, layout, context: 2048, threads: 1).bytes
        }
        #expect(try bytes(.unipelt) > bytes(.mam) + 4 * 2048 * model.spec.intermediateSize)
    }
}
