// Methods that add something to what a linear gives (RLRR, SHiRA, BitFit) against torch and peft: forward, every gradient, ten losses,
// and files. Tests/Goldens/make_linear_goldens.py made the references.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

/// A case of the goldens, and the job that it is.
struct LinearCase: CustomTestStringConvertible, Sendable {
    static let qwen2Path = ReferenceModel.root + "/qwen2/model.gguf"

    let name: String
    let modelPath: String
    let adapter: AdapterSpec
    var testDescription: String { name }

    static let all = [
        make("rlrr", "rlrr", TinyRun.modelPath), make("rlrr-bias", "rlrr", qwen2Path), make("shira", "shira", TinyRun.modelPath),
        make("bitfit", "bitfit", qwen2Path),
    ]

    private static func make(_ name: String, _ method: String, _ path: String) -> LinearCase {
        LinearCase(
            name: name, modelPath: path,
            adapter: AdapterSpec(method: AdapterMethods.named(method)!, rank: 2, alpha: 1, dropout: 0, targets: .allLinear, layers: nil))
    }

    func model() throws -> BaseModel { try BaseModel.open(path: modelPath) }
    func trainee(keptLayers: Int = 0, threads: Int = 2, kernels: KernelSet = .strongest) throws -> Trainee {
        try Trainee(modelPath, lora: adapter, tokens: 20, longest: 13, keptLayers: keptLayers, kernels: kernels, threads: threads)
    }
}

@Suite(.serialized)
struct LinearMethodTests {
    static let golden = Result { try Golden("linear-goldens.safetensors") }

    static func tensors(_ one: LinearCase, _ kind: String) throws -> [AdapterTensor] {
        let prefix = "\(one.name)/\(kind)."
        return try golden.get().file.tensors.filter { $0.name.hasPrefix(prefix) }.map { tensor in
            let whole = tensor.wholeNumbers()
            return AdapterTensor(
                name: String(tensor.name.dropFirst(prefix.count)), shape: tensor.shape, values: try #require(whole ?? tensor.floats()),
                isInteger: whole != nil)
        }
    }

    /// The gradients under the names and in the order of files.
    static func gradients(_ trainee: Trainee) throws -> [String: [Float]] {
        let own = trainee.adapters
        let arena = try Arena(capacity: .floats(own.parameterCount))
        let values = arena.floats(own.parameterCount)
        values.update(from: own.parameters, count: own.parameterCount)
        values.update(from: own.gradients, count: own.trainedCount)
        let copy = AdapterSet(own.layout, of: trainee.model.spec, parameters: values, gradients: nil, factorSpace: nil)
        return Dictionary(uniqueKeysWithValues: copy.tensors(trainee.model.spec).map { ($0.name, $0.values) })
    }

    @Test("forward, gradients and ten losses are those of torch and peft", arguments: LinearCase.all, [0, 2])
    func parity(_ one: LinearCase, keptLayers: Int) throws {
        let golden = try Self.golden.get()
        let batch = MicroBatch(try golden.samples())
        for kernels in KernelSet.supported {
            let trainee = try one.trainee(keptLayers: keptLayers, kernels: kernels)
            try trainee.adapters.load(Self.tensors(one, "initial"), trainee.model.spec)
            let expectedLogits = try golden.floats("\(one.name)/logits")
            let worst = try trainee.largestLogitDifference(batch, from: expectedLogits)
            #expect(worst < 5e-5)

            let count = batch.lossRows.count
            let loss = try trainee.accumulate(batch, lossScale: 1 / Float(count)) / Double(count)
            let expectedLoss = Double(try golden.floats("\(one.name)/loss")[0])
            #expect(abs(loss / expectedLoss - 1) < 2e-6)
            let expected = try Self.tensors(one, "gradient"), found = try Self.gradients(trainee)
            var worstGradient = 0.0
            for gradient in expected {
                let error = relativeError(try #require(found[gradient.name]), gradient.values)
                worstGradient = max(worstGradient, error)
                #expect(error < 2e-5, "\(gradient.name)")
            }
            #expect(expected.reduce(0) { $0 + $1.values.count } == trainee.adapters.layout.trainableCount)

            let (losses, _) = try trainee.train(batch, steps: 10, learningRate: 2e-3)
            let expectedLosses = try golden.floats("\(one.name)/training_losses")
            let worstLoss = zip(losses, expectedLosses).map { abs($0 / Double($1) - 1) }.max()!
            #expect(worstLoss < 1e-3)
            print("parity \(one.name), \(kernels.name), \(keptLayers) layers kept: logits \(worst), gradients \(worstGradient), ten losses \(worstLoss)")
        }
    }

    // MARK: files

    /// What PEFT's `save_pretrained` would have left.
    static func directory(_ one: LinearCase, _ path: String, _ change: (AdapterTensor) -> AdapterTensor? = { $0 }) throws {
        var file = SafetensorsWriter(metadata: ["format": "pt"])
        for tensor in try tensors(one, "initial").compactMap(change) {
            let body = tensor.isInteger
                ? TensorBody.bytes(tensor.values.flatMap { value in withUnsafeBytes(of: Int32(value).littleEndian) { Array($0) } })
                : .floats(tensor.values)
            try file.add(tensor.name, dtype: tensor.isInteger ? .i32 : .f32, shape: tensor.shape, body: body)
        }
        try Data(try file.encoded()).write(to: URL(fileURLWithPath: path + "/adapter_model.safetensors"))
        let config = try #require(golden.get().file.metadata[one.name])
        try Data(config.utf8).write(to: URL(fileURLWithPath: path + "/adapter_config.json"))
    }

    static func expectedLoss(_ one: LinearCase) throws -> Double { Double(try golden.get().floats("\(one.name)/loss")[0]) }

    static func loss(_ model: BaseModel, _ adapter: LoadedAdapter?, in scratch: String) throws -> Double {
        try MergedModelTests.loss(model, adapter, try golden.get().samples(), in: scratch)
    }

    @Test("a directory gives the same loss as it is, after a merge, and brought in", arguments: LinearCase.all)
    func directories(_ one: LinearCase) throws {
        let scratch = try TemporaryDirectory()
        try Self.directory(one, scratch.path)
        let model = try one.model()
        let expected = try Self.expectedLoss(one)
        let adapter = try LoadedAdapter(directory: scratch.path, of: model.spec)
        #expect(abs(try Self.loss(model, adapter, in: scratch.path) / expected - 1) < 2e-6)
        for format in [QuantFormat.f16, .bf16] {
            let merged = try MergedModel(model, adapter, format: format)
            try MergedModelTests.write(merged, to: scratch.path + "/merged")
            let made = try MergedModel.open(scratch.path + "/merged", madeFrom: model)
            #expect(abs(try Self.loss(made, nil, in: scratch.path) / expected - 1) < (format == .f16 ? 5e-4 : 5e-3))
        }
        try adapter.publish(to: scratch.path + "/published", baseModel: "base", spec: model.spec, note: "Brought in")
        let published = try LoadedAdapter(directory: scratch.path + "/published", of: model.spec)
        #expect(try Self.loss(model, published, in: scratch.path) == Self.loss(model, adapter, in: scratch.path))
    }

    @Test("an imported model in Hugging Face's form is merged to the same loss", arguments: LinearCase.all.filter { $0.modelPath != TinyRun.modelPath })
    func importedModel(_ one: LinearCase) throws {
        let scratch = try TemporaryDirectory()
        let reference = try #require(ReferenceModel.all.first { $0.family == "qwen2" })
        let model = try BaseModel.open(path: try reference.path(.huggingFace, in: scratch.path))
        try Self.directory(one, scratch.path)
        let adapter = try LoadedAdapter(directory: scratch.path, of: model.spec)
        let expected = try Self.expectedLoss(one)
        #expect(abs(try Self.loss(model, adapter, in: scratch.path) / expected - 1) < 2e-6)
        let merged = try MergedModel(model, adapter, format: .bf16)
        try MergedModelTests.write(merged, to: scratch.path + "/merged")
        let made = try MergedModel.open(scratch.path + "/merged", madeFrom: model)
        #expect(abs(try Self.loss(made, nil, in: scratch.path) / expected - 1) < 5e-3)
    }

    @Test("what is published has PEFT's keys, shapes, types and values, and a configuration that says the same", arguments: LinearCase.all)
    func published(_ one: LinearCase) throws {
        let scratch = try TemporaryDirectory()
        let trainee = try one.trainee()
        let expected = try Self.tensors(one, "initial").sorted { $0.name < $1.name }
        try trainee.adapters.load(expected, trainee.model.spec)
        try AdapterArtifact.publish(
            to: scratch.path + "/a", tensors: trainee.adapters.tensors(trainee.model.spec),
            config: AdapterConfig(
                one.adapter, modules: trainee.memory.modules, of: trainee.model.spec, baseModelNameOrPath: nil),
            provenance: [:], trainingJSON: [], modelCard: "")
        let artifact = try AdapterArtifact.open(directory: scratch.path + "/a")
        #expect(artifact.stored.sorted { $0.name < $1.name } == expected)
        func members(_ text: String) throws -> [String: JSONText] {
            guard case .object(let members) = try Array(text.utf8).withUnsafeBytes({ try JSONText(parsing: $0) }) else { return [:] }
            return Dictionary(uniqueKeysWithValues: members.map { ($0.key, $0.value) })
        }
        let theirs = try members(try #require(try Self.golden.get().file.metadata[one.name]))
        let ours = try members(String(decoding: artifact.config.json, as: UTF8.self))
        for (key, value) in theirs where ours[key] != nil && !["inference_mode", "base_model_name_or_path"].contains(key) {
            #expect(ours[key] == value, "\(key): \(value)")
        }
        if one.adapter.method.isPEFTs {
            #expect(Set(ours.keys).isSubset(of: theirs.keys))
            try AdapterArtifact.exportPEFT(scratch.path + "/a", to: scratch.path + "/peft")
        } else {
            let refusal = AdapterError.notForPEFT(method: one.adapter.method.name)
            #expect(throws: refusal) { try AdapterArtifact.exportPEFT(scratch.path + "/a", to: scratch.path + "/peft") }
            #expect(throws: refusal) { try AdapterArtifact.exportSafetensors(scratch.path + "/a", to: scratch.path + "/peft") }
        }
        #expect(throws: AdapterError.notForGGUF(method: one.adapter.method.name)) {
            try AdapterArtifact.exportGGUF(scratch.path + "/a", architecture: "llama", to: scratch.path + "/gguf") { _ in nil }
        }
        let adapter = try LoadedAdapter(directory: scratch.path + "/a", of: trainee.model.spec)
        #expect(abs(try Self.loss(trainee.model, adapter, in: scratch.path) / Self.expectedLoss(one) - 1) < 2e-6)
    }

    @Test("places outside of the linear, or between its rows, are refused", arguments: [-1, 64, 0.5] as [Float])
    func badPlaces(_ value: Float) throws {
        let scratch = try TemporaryDirectory()
        let one = try #require(LinearCase.all.first { $0.name == "shira" })
        let name = "base_model.model.model.layers.0.self_attn.q_proj.shira_indices"
        try Self.directory(one, scratch.path) { tensor in
            guard tensor.name == name else { return tensor }
            // As PEFT writes them on Windows.
            return AdapterTensor(name: name, shape: tensor.shape, values: [value] + tensor.values.dropFirst())
        }
        let spec = try one.model().spec
        #expect(throws: AdapterError.badPlace(tensor: name, index: 0)) { try LoadedAdapter(directory: scratch.path, of: spec) }
    }

    @Test("a bias for a linear that has none computes, and is not merged")
    func foreignBias() throws {
        let scratch = try TemporaryDirectory()
        let one = try #require(LinearCase.all.first { $0.name == "bitfit" })
        try Self.directory(one, scratch.path) { tensor in
            var tensor = tensor
            tensor = AdapterTensor(name: tensor.name, shape: tensor.shape, values: tensor.values)
            return tensor.name.contains("v_proj") ? tensor : nil
        }
        // As wide as Qwen2's.
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let adapter = try LoadedAdapter(directory: scratch.path, of: model.spec)
        #expect(try Self.loss(model, adapter, in: scratch.path) != Self.loss(model, nil, in: scratch.path))
        #expect(throws: MergeError.noBias(module: "model.layers.0.self_attn.v_proj")) { try MergedModel(model, adapter, format: .f16) }
    }

    @Test("a token that is generated is the likeliest of the whole sequence", arguments: LinearCase.all)
    func generation(_ one: LinearCase) throws {
        let scratch = try TemporaryDirectory()
        try Self.directory(one, scratch.path)
        let model = try one.model()
        let adapter = try LoadedAdapter(directory: scratch.path, of: model.spec)
        let sample = try Self.golden.get().samples()[0]
        let logits = try Self.golden.get().floats("\(one.name)/logits"), vocabulary = model.spec.vocabularySize
        let layout = AdapterLayout(adapter.spec, modules: try adapter.modules(of: model.spec), of: model.spec)
        let generator = try Generator(
            model: model, adapter: (layout, { try adapter.load(into: $0, model.spec) }), context: sample.tokens.count, kernels: .strongest, threads: 2)
        for length in [1, 5, sample.tokens.count - 1] {
            var next: [TokenID] = []
            _ = try generator.generate(
                prompt: Array(sample.tokens.prefix(length)), GenerationSettings(maxTokens: 1, temperature: 0, seed: 1), endTokens: []
            ) {
                next.append($0)
                return .goOn
            }
            let expected = logits[(length - 1) * vocabulary..<length * vocabulary]
            #expect(next == [TokenID(try #require(expected.indices.max { expected[$0] < expected[$1] }) - expected.startIndex)], "after \(length)")
        }
    }

    // MARK: what a job asks for

    @Test("biases are trained where there are some, and elsewhere it is said what to do")
    func biases() throws {
        func modules(_ path: String, _ targets: AdapterSpec.Targets) throws -> [ModuleID] {
            let spec = AdapterSpec(method: BitFit(), rank: 1, alpha: 1, dropout: 0, targets: targets, layers: nil)
            return try spec.modules(of: try BaseModel.open(path: path).spec)
        }
        #expect(Set(try modules(LinearCase.qwen2Path, .allLinear).map(\.module)) == [.query, .key, .value])
        #expect(Set(try modules(LinearCase.qwen2Path, .names(["v_proj"])).map(\.module)) == [.value])
        #expect(throws: AdapterTargetError.noBias(method: "bitfit", targets: "v_proj, o_proj", available: ["q_proj", "k_proj", "v_proj"])) {
            try modules(LinearCase.qwen2Path, .names(["v_proj", "o_proj"]))
        }
        #expect(throws: AdapterTargetError.noBias(method: "bitfit", targets: nil, available: [])) { try modules(TinyRun.modelPath, .allLinear) }
    }

    @Test("a sparse change has no more values than the linear")
    func ranks() throws {
        let spec = try BaseModel.open(path: TinyRun.modelPath).spec
        func modules(rank: Int, _ name: String) throws -> [ModuleID] {
            try AdapterSpec(method: SHiRA(), rank: rank, alpha: 1, dropout: 0, targets: .names([name]), layers: nil).modules(of: spec)
        }
        #expect(try modules(rank: 32, "q_proj").count == spec.layerCount)
        #expect(throws: AdapterTargetError.rankTooLarge(method: "shira", rank: 33, module: "model.layers.0.self_attn.q_proj", largest: 32)) {
            try modules(rank: 33, "q_proj")
        }
    }

    @Test("the places of a sparse change are different ones, in order, in every stretch of the weight")
    func places() throws {
        for rank in [1, 5, 16] {
            var spec = try #require(LinearCase.all.first { $0.name == "shira" }).adapter
            (spec.rank, spec.targets) = (rank, .names(["q_proj", "down_proj"]))
            let trainee = try Trainee(TinyRun.modelPath, lora: spec, tokens: 20, longest: 13)
            trainee.adapters.initialize(seed: 5)
            for slot in trainee.adapters.slots {
                let places = trainee.adapters.stored(slot)[1]
                let all = (0..<places.columns).map { Int(places.row(0)[$0]) * slot.inFeatures + Int(places.row(1)[$0]) }
                #expect(zip(all, all.dropFirst()).allSatisfy { $0 < $1 })
                #expect(all.last! < slot.inFeatures * slot.outFeatures)
                #expect(all.count == rank * (slot.inFeatures + slot.outFeatures))
            }
        }
    }

    // MARK: the same bits

    @Test("gradients have the same bits however samples are packed, layers kept and threads counted", arguments: LinearCase.all)
    func bits(_ one: LinearCase) throws {
        let samples = try Self.golden.get().samples()
        func bits(_ batches: [[TokenizedSample]], keptLayers: Int = 0, threads: Int = 2, kernels: KernelSet = .strongest) throws -> [UInt32] {
            let trainee = try one.trainee(keptLayers: keptLayers, threads: threads, kernels: kernels)
            try trainee.adapters.load(Self.tensors(one, "initial"), trainee.model.spec)
            for batch in batches { _ = try trainee.accumulate(MicroBatch(batch), lossScale: 0.1) }
            return (0..<trainee.adapters.trainedCount).map { trainee.adapters.gradients[$0].bitPattern }
        }
        let expected = try bits([samples])
        #expect(try bits(samples.map { [$0] }) == expected)
        #expect(try bits([samples], keptLayers: 1) == expected)
        #expect(try bits([samples], threads: 3) == expected)
    }

    // MARK: runs

    /// Of a method that a model without biases cannot have; others are in MethodTests.
    static func run(_ method: any AdapterMethod = BitFit()) -> TinyRun {
        var run = TinyRun(modelPath: LinearCase.qwen2Path)
        run.spec.adapter = AdapterSpec(method: method, rank: 2, alpha: 8, dropout: 0, targets: .allLinear, layers: nil)
        run.spec.precision = .f32
        let samples = TinyRun.samples(17).map { TokenizedSample(tokens: $0.tokens.map { $0 % 48 }, carriesLoss: $0.carriesLoss) }
        run.dataset = Dataset(samples, heldOut: 3, seed: 3)
        return run
    }

    static func adapter(of run: TinyRun) throws -> [UInt32] {
        let directory = try TemporaryDirectory()
        let result = try run.run(in: directory.path)
        guard case .finished = result.outcome else { throw CancellationError() }
        return result.adapter
    }

    @Test("biases begin as the base's, and learn")
    func biasesLearn() throws {
        let one = try #require(LinearCase.all.first { $0.name == "bitfit" })
        let trainee = try one.trainee()
        trainee.adapters.initialize(seed: 7)
        let scratch = try TemporaryDirectory()
        let base = try Self.loss(trainee.model, nil, in: scratch.path)
        let (losses, _) = try trainee.train(MicroBatch(try Self.golden.get().samples()), steps: 30, learningRate: 1e-2)
        #expect(abs(losses[0] / base - 1) < 1e-6)
        #expect(losses.last! < 0.9 * losses[0], "\(losses)")
    }

    @Test("a run of biases, stopped and resumed, and one with less memory end with the same bits")
    func biasesResume() throws {
        let expected = try Self.adapter(of: Self.run())
        for stopAfter in [0, 1, 7, 14] {
            let directory = try TemporaryDirectory()
            var piecemeal = Self.run()
            piecemeal.replan = { $0.tokenBudget = 1 }
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
        #expect(try Self.adapter(of: tight) == expected)
    }

    @Test("jobs of biases and of others end with the bits that they have alone")
    func together() throws {
        let methods: [any AdapterMethod] = [BitFit(), RLRR(), AdapterMethods.lora, SHiRA()]
        var group = TinyGroup(runs: methods.map { Self.run($0) })
        for index in group.runs.indices { group.runs[index].spec.seed = UInt64(index) }
        let own = try group.runs.map { try Self.adapter(of: $0) }
        let place = try TemporaryDirectory()
        let ends = try group.run(in: place.path, group.runs.map { _ in .init() })
        for index in own.indices { #expect(ends[index].adapter == own[index], "\(index)") }
    }
}
