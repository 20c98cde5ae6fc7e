// Norm tuning, trainable tokens and LoRA with both beside its factors, against real torch + transformers + peft: forward, gradients, ten losses, PEFT's own files, and what a
// merge makes of them. Tests/Goldens/make_selective_goldens.py made the references. What all methods owe is in MethodTests.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

/// A case of the goldens, and the job that it is.
struct SelectiveCase: CustomTestStringConvertible, Sendable {
    let name: String
    let adapter: AdapterSpec
    /// Of `Tests/Goldens/architectures`; nil: the tiny model.
    var family: String?
    var testDescription: String { name }

    static let golden = Result { try Golden("selective-goldens.safetensors") }

    static let norms: [SelectiveCase] =
        [
            SelectiveCase(name: "ln-tuning", adapter: spec(NormTuning())),
            SelectiveCase(
                name: "ln-tuning-some", adapter: spec(NormTuning(), .names(["model.layers.1.post_attention_layernorm", "norm"]))),
        ] + ["gemma2", "gemma3", "olmo2", "qwen3", "stablelm2"].map { (family: String) in
            SelectiveCase(name: "ln-tuning-\(family)", adapter: spec(NormTuning()), family: family)
        }
    static let tokens: [SelectiveCase] =
        [SelectiveCase(name: "trainable-tokens", adapter: spec(trained("trainable-tokens")))]
        + ["llama", "gemma2", "granite"].map { (family: String) in
            SelectiveCase(name: "trainable-tokens-\(family)", adapter: spec(trained("trainable-tokens-\(family)")), family: family)
        }
    /// LoRA and DoRA that train them beside the linears.
    static let saved: [SelectiveCase] = [
        SelectiveCase(
            name: "lora-saved",
            adapter: lora("lora-saved", ["q_proj", "v_proj", "down_proj"]) { $0.saved.names = ["post_attention_layernorm", "model.norm"] }),
        SelectiveCase(
            name: "lora-saved-norms",
            adapter: lora("lora-saved-norms", ["down_proj"]) {
                ($0.saved.names, $0.layers, $0.usesRankStabilizedScaling) = (["norm"], [1], true)
            }),
        SelectiveCase(
            name: "lora-saved-llama",
            adapter: lora("lora-saved-llama", ["q_proj", "up_proj"]) {
                ($0.saved.names, $0.method) = (["input_layernorm"], AdapterMethods.dora)
            }, family: "llama"),
    ]
    static let all = norms + tokens + saved

    private static func spec(_ method: any AdapterMethod, _ targets: AdapterSpec.Targets = .allLinear) -> AdapterSpec {
        AdapterSpec(method: method, rank: 1, alpha: 1, dropout: 0, targets: targets, layers: nil)
    }

    private static func lora(_ name: String, _ targets: [String], _ change: (inout AdapterSpec) -> Void) -> AdapterSpec {
        var spec = AdapterSpec(rank: 4, alpha: 8, dropout: 0, targets: .names(targets), layers: nil)
        spec.saved.tokens = tokens(name, "trainable_token_indices")
        change(&spec)
        return spec
    }

    private static func trained(_ name: String) -> TrainableTokens { TrainableTokens(tokens(name, "token_indices")) }

    /// As the golden's configuration has them.
    private static func tokens(_ name: String, _ key: String) -> [TokenID] {
        let config = try! golden.get().file.metadata[name]!
        let json = try! Array(config.utf8).withUnsafeBytes { try JSONText(parsing: $0) }
        let listed = json[key]?["embed_tokens"] ?? json[key]
        return (listed?.array ?? []).map { TokenID($0.integer!) }
    }

    private var reference: ReferenceModel? { family.map(ReferenceModel.init) }

    func samples() throws -> [TokenizedSample] { try (reference?.golden() ?? Self.golden.get()).samples() }

    /// The model's files that say all of it.
    func paths(in scratch: String) throws -> [String] {
        guard let reference else { return [TinyRun.modelPath] }
        let golden = try reference.golden()
        return try [ReferenceModel.Source.gguf, .huggingFace].filter { !ArchitectureTests.saysLess(reference, golden, $0) }.map {
            try reference.path($0, in: scratch)
        }
    }

    func trainee(_ path: String, keptLayers: Int = 0, threads: Int = 2, lossChunk: Int = 16) throws -> Trainee {
        try Trainee(path, lora: adapter, tokens: 33, longest: 20, keptLayers: keptLayers, threads: threads, lossChunk: lossChunk)
    }

    /// What PEFT saved of the case.
    func tensors(_ kind: String) throws -> [AdapterTensor] {
        let prefix = "\(name)/\(kind)."
        return try Self.golden.get().file.tensors.filter { $0.name.hasPrefix(prefix) }.map {
            AdapterTensor(name: String($0.name.dropFirst(prefix.count)), shape: $0.shape, values: try #require($0.floats()))
        }.sorted { $0.name < $1.name }
    }

    func floats(_ name: String) throws -> [Float] { try Self.golden.get().floats("\(self.name)/\(name)") }

    /// What PEFT's `save_pretrained` would have left.
    func peftDirectory(
        _ directory: String, config change: (String) -> String = { $0 }, _ more: [AdapterTensor] = [], without left: String? = nil
    ) throws {
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        var file = SafetensorsWriter(metadata: ["format": "pt"])
        for tensor in try tensors("initial") + more where tensor.name != left {
            try file.add(tensor.name, dtype: .f32, shape: tensor.shape, body: .floats(tensor.values))
        }
        try Data(try file.encoded()).write(to: URL(fileURLWithPath: directory + "/adapter_model.safetensors"))
        let config = change(try #require(Self.golden.get().file.metadata[name]))
        try Data(config.utf8).write(to: URL(fileURLWithPath: directory + "/adapter_config.json"))
    }
}

extension AdapterMethods {
    /// With what a method cannot do without.
    static func tested(_ name: String) -> (any AdapterMethod)? {
        named(name).map { $0 is TrainableTokens ? TrainableTokens((3..<64).map { TokenID($0) }) : $0 }
    }
}

@Suite(.serialized)
struct SelectiveTests {
    @Test("forward, gradients and ten losses are those of peft, from GGUF and from Hugging Face's files", arguments: SelectiveCase.all, [0, 2])
    func parity(_ one: SelectiveCase, keptLayers: Int) throws {
        let scratch = try TemporaryDirectory()
        for path in try one.paths(in: scratch.path) {
            let trainee = try one.trainee(path, keptLayers: keptLayers)
            try trainee.adapters.load(one.tensors("initial"), trainee.model.spec)
            let batch = MicroBatch(try one.samples())
            let expectedLogits = try one.floats("logits")
            let worst = try trainee.largestLogitDifference(batch, from: expectedLogits)
            #expect(worst < 1e-4)

            let count = batch.lossRows.count
            let loss = try trainee.accumulate(batch, lossScale: 1 / Float(count)) / Double(count)
            #expect(abs(loss / Double(try one.floats("loss")[0]) - 1) < 2e-6)
            let expected = try one.tensors("gradient")
            let found = Dictionary(uniqueKeysWithValues: MethodTests.gradients(trainee).map { ($0.name, $0.values) })
            var worstGradient = 0.0
            for gradient in expected {
                let error = relativeError(try #require(found[gradient.name]), gradient.values)
                worstGradient = max(worstGradient, error)
                #expect(error < 5e-5, "\(gradient.name)")
            }
            #expect(expected.reduce(0) { $0 + $1.values.count } == trainee.adapters.layout.trainableCount)

            let (losses, _) = try trainee.train(batch, steps: 10, learningRate: 2e-3)
            let worstLoss = zip(losses, try one.floats("training_losses")).map { abs($0 / Double($1) - 1) }.max()!
            #expect(worstLoss < 1e-3)
            print("parity \(one.name), \(keptLayers) layers kept: logits \(worst), gradients \(worstGradient), ten losses \(worstLoss)")
        }
    }

    @Test(
        "gradients have the same bits however samples are packed, layers kept, threads counted and loss tokens parted", arguments: SelectiveCase.all)
    func bits(_ one: SelectiveCase) throws {
        let scratch = try TemporaryDirectory()
        let path = try one.paths(in: scratch.path)[0], samples = try one.samples()
        func bits(_ batches: [[TokenizedSample]], keptLayers: Int = 0, threads: Int = 2, lossChunk: Int = 16) throws -> [UInt32] {
            let trainee = try one.trainee(path, keptLayers: keptLayers, threads: threads, lossChunk: lossChunk)
            try trainee.adapters.load(one.tensors("initial"), trainee.model.spec)
            for batch in batches { _ = try trainee.accumulate(MicroBatch(batch), lossScale: 0.1) }
            return (0..<trainee.adapters.trainedCount).map { trainee.adapters.gradients[$0].bitPattern }
        }
        let expected = try bits([samples])
        #expect(try bits(samples.map { [$0] }) == expected)
        #expect(try bits([samples], keptLayers: 1) == expected)
        #expect(try bits([samples], threads: 3) == expected)
        #expect(try bits([samples], lossChunk: 3) == expected)
    }

    @Test("what is trained begins as the base's, whatever the file has added", arguments: SelectiveCase.all)
    func start(_ one: SelectiveCase) throws {
        let scratch = try TemporaryDirectory()
        for path in try one.paths(in: scratch.path) {
            let trainee = try one.trainee(path)
            try trainee.step.initialize(seed: 1)
            let loss = try trainee.step.heldOutLoss(one.samples(), tokenBudget: 20).mean
            let base = try MergedModelTests.loss(trainee.model, nil, one.samples(), in: scratch.path)
            #expect(abs(loss / base - 1) < 1e-6)
        }
    }

    // MARK: files

    @Test("PEFT's own directory gives the same loss, as it is, and after a merge; llama.cpp's adapters have no place for it", arguments: SelectiveCase.all)
    func peftDirectories(_ one: SelectiveCase) throws {
        let scratch = try TemporaryDirectory()
        try one.peftDirectory(scratch.path + "/peft")
        let expected = Double(try one.floats("loss")[0]), samples = try one.samples()
        for path in try one.paths(in: scratch.path) {
            let model = try BaseModel.open(path: path)
            let adapter = try LoadedAdapter(directory: scratch.path + "/peft", of: model.spec)
            #expect(abs(try MergedModelTests.loss(model, adapter, samples, in: scratch.path) / expected - 1) < 2e-6)
            let merged = try MergedModel(model, adapter, format: MergedModel.formats(of: model)[0])
            try MergedModelTests.write(merged, to: scratch.path + "/merged")
            let made = try MergedModel.open(scratch.path + "/merged", madeFrom: model)
            // Norms stay f32; embeddings are rounded to 11 bits, or, of Hugging Face's files, to 8.
            let loss = try MergedModelTests.loss(made, nil, samples, in: scratch.path)
            #expect(abs(loss / expected - 1) < (one.adapter.method is NormTuning ? 2e-6 : model.isImported ? 5e-3 : 5e-4), "\(loss), \(expected)")
        }
        #expect(throws: one.adapter.saved.isEmpty ? AdapterError.notForGGUF(method: one.adapter.method.name) : .savedForGGUF) {
            try AdapterArtifact.exportGGUF(scratch.path + "/peft", architecture: "llama", to: scratch.path + "/adapter.gguf") { _ in nil }
        }
    }

    @Test("what is published has PEFT's keys, shapes and values, and a configuration that says the same", arguments: SelectiveCase.all)
    func published(_ one: SelectiveCase) throws {
        let scratch = try TemporaryDirectory()
        let trainee = try one.trainee(one.paths(in: scratch.path)[0])
        let expected = try one.tensors("initial")
        try trainee.adapters.load(expected, trainee.model.spec)
        try AdapterArtifact.publish(
            to: scratch.path + "/a", tensors: trainee.adapters.tensors(trainee.model.spec),
            config: AdapterConfig(
                one.adapter, modules: one.adapter.modules(of: trainee.model.spec), of: trainee.model.spec, baseModelNameOrPath: nil), provenance: [:],
            trainingJSON: [], modelCard: "")
        let artifact = try AdapterArtifact.open(directory: scratch.path + "/a")
        #expect(artifact.stored.sorted { $0.name < $1.name } == expected)
        func members(_ text: [UInt8]) throws -> [String: JSONText] {
            guard case .object(let members) = try text.withUnsafeBytes({ try JSONText(parsing: $0) }) else { return [:] }
            return Dictionary(uniqueKeysWithValues: members.map { ($0.key, $0.value) })
        }
        let theirs = try members(Array(try #require(SelectiveCase.golden.get().file.metadata[one.name]).utf8))
        let ours = try members(artifact.config.json)
        // PEFT's class for LoRA has settings of much that is not here.
        if one.adapter.saved.isEmpty { #expect(Set(theirs.keys).subtracting(["auto_mapping", "peft_version"]).isSubset(of: ours.keys)) }
        for (key, value) in ours where key != "inference_mode" {
            let their = theirs[key]?["embed_tokens"] ?? theirs[key]
            #expect(their == value || their?.double == value.double && value.double != nil, "\(key): \(value)")
        }
        // Brought in, it is published again as it was.
        let adapter = try LoadedAdapter(directory: scratch.path + "/a", of: trainee.model.spec)
        try adapter.publish(to: scratch.path + "/b", baseModel: "b", spec: trainee.model.spec, note: "imported")
        #expect(try AdapterArtifact.open(directory: scratch.path + "/b").stored == artifact.stored)
        let loss = try MergedModelTests.loss(trainee.model, adapter, one.samples(), in: scratch.path)
        #expect(abs(loss / Double(try one.floats("loss")[0]) - 1) < 2e-6)
    }

    @Test("a norm without tensors stays the base's, as in PEFT; a norm that there is not is refused")
    func otherNorms() throws {
        let one = SelectiveCase.norms[0], scratch = try TemporaryDirectory()
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let name = "base_model.model.model.layers.0.input_layernorm.ln_tuning_layers.weight"
        try one.peftDirectory(scratch.path + "/less", without: name)
        let less = try LoadedAdapter(directory: scratch.path + "/less", of: model.spec)
        let layout = AdapterLayout(less.spec, modules: try less.modules(of: model.spec), of: model.spec)
        #expect(layout.parts.count == 4 && !layout.parts.contains { $0.part.layer == 0 && $0.part.site == .norm(.attentionInput) })
        // A file that names them by an expression.
        try one.peftDirectory(scratch.path + "/pattern", config: { $0.replacing(#/"target_modules": \[[^\]]*\]/#, with: "\"target_modules\": \".*norm\"") })
        let byPattern = try LoadedAdapter(directory: scratch.path + "/pattern", of: model.spec)
        let samples = try one.samples(), expected = Double(try one.floats("loss")[0])
        #expect(abs(try MergedModelTests.loss(model, byPattern, samples, in: scratch.path) / expected - 1) < 2e-6)
        let other = AdapterTensor(name: name.replacing("layers.0", with: "layers.7"), shape: [64], values: [Float](repeating: 1, count: 64))
        try one.peftDirectory(scratch.path + "/more", [other])
        #expect(throws: AdapterMismatch.noSuchModule("model.layers.7.input_layernorm")) {
            try LoadedAdapter(directory: scratch.path + "/more", of: model.spec)
        }
    }

    @Test("PEFT's second copy of a tied head's tokens is the first's; another is refused")
    func tiedCopies() throws {
        let one = SelectiveCase.tokens[0], scratch = try TemporaryDirectory()
        let model = try BaseModel.open(path: TinyRun.modelPath), rows = try one.tensors("initial")[0]
        let name = "base_model.model.lm_head.trainable_tokens_delta"
        try one.peftDirectory(scratch.path + "/a", [AdapterTensor(name: name, shape: rows.shape, values: rows.values)])
        let adapter = try LoadedAdapter(directory: scratch.path + "/a", of: model.spec)
        let loss = try MergedModelTests.loss(model, adapter, one.samples(), in: scratch.path)
        #expect(abs(loss / Double(try one.floats("loss")[0]) - 1) < 2e-6)
        try one.peftDirectory(scratch.path + "/b", [AdapterTensor(name: name, shape: rows.shape, values: rows.values.map { $0 + 1 })])
        #expect(throws: AdapterError.unknownTensor(name)) { try LoadedAdapter(directory: scratch.path + "/b", of: model.spec) }
        for tokens in ["[]", "[1, 1, 2, 3]", "[1, -2, 3, 4]", "\"all\""] {
            try one.peftDirectory(scratch.path + "/c", config: { $0.replacing(#/"token_indices": \[[^\]]*\]/#, with: "\"token_indices\": \(tokens)") })
            #expect(throws: AdapterError.self) { try LoadedAdapter(directory: scratch.path + "/c", of: model.spec) }
        }
        try one.peftDirectory(scratch.path + "/d", config: { $0.replacing(#/"token_indices": \[[^\]]*\]/#, with: "\"token_indices\": [1, 2, 3, 128]") })
        #expect(throws: AdapterTargetError.tokenOutOfRange(128, vocabularySize: 128)) {
            try LoadedAdapter(directory: scratch.path + "/d", of: model.spec)
        }
    }

    // MARK: targets

    @Test("targets and layers choose norms; adapter_config.json names whole paths where PEFT's short names would choose others")
    func targets() throws {
        let model = try BaseModel.open(path: TinyRun.modelPath).spec
        func spec(_ targets: AdapterSpec.Targets, layers: [Int]? = nil) -> AdapterSpec {
            AdapterSpec(method: NormTuning(), rank: 1, alpha: 1, dropout: 0, targets: targets, layers: layers)
        }
        func names(_ spec: AdapterSpec) -> [String] { AdapterConfig(spec, modules: [], of: model, baseModelNameOrPath: nil).targetModules }
        #expect(names(spec(.allLinear)) == ["input_layernorm", "norm", "post_attention_layernorm"])
        #expect(names(spec(.names(["norm"]))) == ["norm"])
        #expect(names(spec(.allLinear, layers: [1])) == ["model.layers.1.input_layernorm", "model.layers.1.post_attention_layernorm"])
        #expect(names(spec(.pattern(".*layers\\.0\\.input_layernorm"))) == ["model.layers.0.input_layernorm"])
        #expect(names(spec(.pattern(".*input_layernorm"))) == ["input_layernorm"])
        let available = ["input_layernorm", "norm", "post_attention_layernorm"]
        #expect(throws: AdapterTargetError.noModule(targets: "q_proj", available: available)) { try spec(.names(["q_proj"])).modules(of: model) }
        #expect(throws: AdapterTargetError.noModule(targets: "norm", available: available)) {
            try spec(.names(["norm"]), layers: [0]).modules(of: model)
        }
        #expect(throws: AdapterTargetError.layerOutOfRange(2, layerCount: 2)) { try spec(.allLinear, layers: [2]).modules(of: model) }
        // The backward goes no further down than it must.
        func lowest(_ spec: AdapterSpec) -> Int { AdapterLayout(spec, modules: [], of: model).lowestLayer }
        #expect(lowest(spec(.allLinear)) == 0 && lowest(spec(.allLinear, layers: [1])) == 1 && lowest(spec(.names(["norm"]))) == 1)
        #expect(throws: AdapterTargetError.tokenOutOfRange(128, vocabularySize: 128)) {
            var spec = spec(.allLinear)
            spec.method = TrainableTokens([128])
            _ = try spec.modules(of: model)
        }
    }

    // MARK: generation

    @Test("generation continues with the argmax of the training path's logits, token by token", arguments: [SelectiveCase.norms[0], SelectiveCase.tokens[0], SelectiveCase.saved[0]])
    func generation(_ one: SelectiveCase) throws {
        let trainee = try Trainee(TinyRun.modelPath, lora: one.adapter, tokens: 64, longest: 64)
        let tensors = try one.tensors("initial")
        try trainee.adapters.load(tensors, trainee.model.spec)
        let prompt = try one.samples()[0].tokens
        try trainee.expectGreedyGeneration(from: prompt, tensors, context: 60)
    }
}
