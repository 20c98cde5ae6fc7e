// Prefix and prompt tuning against real torch + transformers + peft: forward, gradients, ten losses, the start, and PEFT's own files.
// Tests/Goldens/make_virtual_token_goldens.py made the references. What all methods owe is in MethodTests.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

@Suite(.serialized)
struct VirtualTokenTests {
    static let golden = Result { try Golden("virtual-token-goldens.safetensors") }
    static let methods = ["prefix-tuning", "prompt-tuning"]
    static let count = 5

    static func spec(_ name: String) throws -> AdapterSpec {
        AdapterSpec(method: try #require(AdapterMethods.named(name)), rank: count, alpha: 1, dropout: 0, targets: .allLinear, layers: nil)
    }

    static func trainee(_ name: String, keptLayers: Int = 0, threads: Int = 2) throws -> Trainee {
        try Trainee(TinyRun.modelPath, lora: spec(name), tokens: 30, longest: 18, keptLayers: keptLayers, threads: threads)
    }

    /// The samples as the method has them.
    static func samples(_ name: String) throws -> [TokenizedSample] {
        let spec = try spec(name)
        return try golden.get().samples().map { $0.behindVirtualTokens(spec.method.promptTokens(spec)) }
    }

    static func tensor(_ name: String, _ kind: String) throws -> AdapterTensor {
        let key = "prompt_embeddings"
        let tensor = try #require(try golden.get().file.tensors.first { $0.name == "\(name)/\(kind).\(key)" })
        return AdapterTensor(name: key, shape: tensor.shape, values: try #require(tensor.floats()))
    }

    @Test("forward, gradients and ten losses are those of peft", arguments: methods, [0, 2])
    func parity(_ name: String, keptLayers: Int) throws {
        let golden = try Self.golden.get(), own = try golden.samples(), samples = try Self.samples(name)
        let trainee = try Self.trainee(name, keptLayers: keptLayers)
        try trainee.adapters.load([Self.tensor(name, "initial")], trainee.model.spec)
        let expectedLogits = try golden.floats("\(name)/logits")
        var (worst, first) = (Float(0), 0)
        for (sample, tokens) in zip(samples, own.map(\.tokens.count)) {
            let virtual = sample.tokens.count - tokens
            try trainee.step.logits(of: MicroBatch([sample])) { row, logits in
                for i in 0..<logits.rows where row + i >= virtual {
                    for j in 0..<logits.columns {
                        worst = max(worst, abs(logits.row(i)[j] - expectedLogits[(first + row + i - virtual) * logits.columns + j]))
                    }
                }
            }
            first += tokens
        }
        #expect(worst < 5e-5)

        let batch = MicroBatch(samples), count = batch.lossRows.count
        let loss = try trainee.accumulate(batch, lossScale: 1 / Float(count)) / Double(count)
        #expect(abs(loss / Double(try golden.floats("\(name)/loss")[0]) - 1) < 2e-6)
        let gradient = relativeError(MethodTests.gradients(trainee)[0].values, try Self.tensor(name, "gradient").values)
        #expect(gradient < 2e-5)
        let (losses, _) = try trainee.train(batch, steps: 10, learningRate: 2e-3)
        let worstLoss = zip(losses, try golden.floats("\(name)/training_losses")).map { abs($0 / Double($1) - 1) }.max()!
        #expect(worstLoss < 1e-3)
        print("parity \(name), \(keptLayers) layers kept: logits \(worst), gradients \(gradient), ten losses \(worstLoss)")
    }

    @Test("gradients have the same bits however samples are packed, layers kept and threads counted", arguments: methods)
    func bits(_ name: String) throws {
        let samples = try Self.samples(name)
        func bits(_ batches: [[TokenizedSample]], keptLayers: Int = 0, threads: Int = 2) throws -> [UInt32] {
            let trainee = try Self.trainee(name, keptLayers: keptLayers, threads: threads)
            try trainee.adapters.load([Self.tensor(name, "initial")], trainee.model.spec)
            for batch in batches { _ = try trainee.accumulate(MicroBatch(batch), lossScale: 0.1) }
            return (0..<trainee.adapters.trainedCount).map { trainee.adapters.gradients[$0].bitPattern }
        }
        let expected = try bits([samples])
        #expect(try bits(samples.map { [$0] }) == expected)
        #expect(try bits([samples], keptLayers: 1) == expected)
        #expect(try bits([samples], threads: 3) == expected)
    }

    @Test("virtual tokens begin as what the model makes of real ones")
    func start() throws {
        let golden = try Self.golden.get()
        let tokens = Array(try golden.samples()[0].tokens.prefix(Self.count))
        for (name, key) in zip(Self.methods, ["start/prefix", "start/prompt"]) {
            let trainee = try Self.trainee(name)
            trainee.adapters.initialize(seed: 1)
            try trainee.step.startVirtualTokens(tokens)
            let found = trainee.adapters.tensors(trainee.model.spec)[0]
            #expect(relativeError(found.values, try golden.floats(key)) < 1e-5)
        }
    }

    @Test("a random start is normal, of deviation 1", arguments: methods)
    func randomStart(_ name: String) throws {
        var spec = try Self.spec(name)
        spec.method = name == "prefix-tuning" ? PrefixTuning(.random) : PromptTuning(.random)
        spec.rank = 64
        let trainee = try Trainee(TinyRun.modelPath, lora: spec, tokens: 90, longest: 80)
        trainee.adapters.initialize(seed: 5)
        let values = trainee.adapters.tensors(trainee.model.spec)[0].values
        let mean = values.reduce(0, +) / Float(values.count)
        let deviation = (values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Float(values.count)).squareRoot()
        #expect(abs(mean) < 0.05 && abs(deviation - 1) < 0.05)
    }

    // MARK: files

    @Test("PEFT's own directory gives the same loss; what is published has PEFT's keys, shapes, values and configuration", arguments: methods)
    func files(_ name: String) throws {
        let scratch = try TemporaryDirectory()
        let golden = try Self.golden.get(), initial = try Self.tensor(name, "initial")
        let theirs = try #require(golden.file.metadata[name])
        try FileManager.default.createDirectory(atPath: scratch.path + "/peft", withIntermediateDirectories: false)
        var file = SafetensorsWriter(metadata: ["format": "pt"])
        try file.add(initial.name, dtype: .f32, shape: initial.shape, body: .floats(initial.values))
        try Data(try file.encoded()).write(to: URL(fileURLWithPath: scratch.path + "/peft/adapter_model.safetensors"))
        try Data(theirs.utf8).write(to: URL(fileURLWithPath: scratch.path + "/peft/adapter_config.json"))

        let trainee = try Self.trainee(name)
        try trainee.adapters.load([initial], trainee.model.spec)
        try AdapterArtifact.publish(
            to: scratch.path + "/own", tensors: trainee.adapters.tensors(trainee.model.spec),
            config: AdapterConfig(try Self.spec(name), modules: [], of: trainee.model.spec, baseModelNameOrPath: nil), provenance: [:],
            trainingJSON: [], modelCard: "")
        #expect(try AdapterArtifact.open(directory: scratch.path + "/own").stored == [initial])
        func members(_ text: [UInt8]) throws -> [String: JSONText] {
            guard case .object(let members) = try text.withUnsafeBytes({ try JSONText(parsing: $0) }) else { return [:] }
            return Dictionary(uniqueKeysWithValues: members.map { ($0.key, $0.value) })
        }
        let expected = try members(Array(theirs.utf8))
        for (key, value) in try members(AdapterArtifact.open(directory: scratch.path + "/own").config.json)
        where !["inference_mode", "base_model_name_or_path", "encoder_hidden_size"].contains(key) {
            #expect(expected[key] ?? .null == value, "\(key): \(value)")
        }
        let loss = Double(try golden.floats("\(name)/loss")[0])
        for directory in ["/peft", "/own"] {
            let adapter = try LoadedAdapter(directory: scratch.path + directory, of: trainee.model.spec)
            #expect(abs(try MergedModelTests.loss(trainee.model, adapter, Self.samples(name), in: scratch.path) / loss - 1) < 2e-6)
            #expect(throws: AdapterError.notOfWeights(method: name)) { try MergedModel(trainee.model, adapter, format: .f16) }
            #expect(throws: AdapterError.notOfWeights(method: name)) {
                try AdapterArtifact.exportGGUF(scratch.path + directory, architecture: "llama", to: scratch.path + "/adapter.gguf") { _ in nil }
            }
        }
    }

    @Test("files of another shape, with something else, or without it are refused", arguments: methods)
    func badFiles(_ name: String) throws {
        let initial = try Self.tensor(name, "initial")
        func open(_ tensors: [AdapterTensor], _ change: (String) -> String = { $0 }) throws {
            let scratch = try TemporaryDirectory()
            var file = SafetensorsWriter(metadata: ["format": "pt"])
            for one in tensors { try file.add(one.name, dtype: .f32, shape: one.shape, body: .floats(one.values)) }
            try Data(try file.encoded()).write(to: URL(fileURLWithPath: scratch.path + "/adapter_model.safetensors"))
            let config = change(try #require(try Self.golden.get().file.metadata[name]))
            try Data(config.utf8).write(to: URL(fileURLWithPath: scratch.path + "/adapter_config.json"))
            _ = try LoadedAdapter(directory: scratch.path, of: try BaseModel.open(path: TinyRun.modelPath).spec)
        }
        let shape = initial.shape
        #expect(throws: AdapterError.unexpectedShape(tensor: initial.name, shape: [shape[0] - 1, shape[1]], expected: shape)) {
            try open([AdapterTensor(name: initial.name, shape: [shape[0] - 1, shape[1]], values: Array(initial.values.dropLast(shape[1])))])
        }
        let other = AdapterTensor(name: "prompt_encoder", shape: [1, 1], values: [1])
        #expect(throws: AdapterError.unknownTensor("prompt_encoder")) { try open([initial, other]) }
        #expect(throws: AdapterError.badConfig(key: "token_dim", value: "\"64\"")) {
            try open([initial]) { $0.replacing(/"token_dim": \d+/, with: "\"token_dim\": \"64\"") }
        }
    }

    // MARK: generation

    @Test("generation continues with the argmax of the training path's logits, token by token", arguments: methods)
    func generation(_ name: String) throws {
        let spec = try Self.spec(name), tensor = try Self.tensor(name, "initial")
        let trainee = try Trainee(TinyRun.modelPath, lora: spec, tokens: 64, longest: 64)
        try trainee.adapters.load([tensor], trainee.model.spec)
        let prompt = TinyRun.samples(1)[0].tokens
        try trainee.expectGreedyGeneration(from: prompt, [tensor], context: 60)
    }
}
