// Adapters that training begins from: read from each form to the same values, refused where they do not belong.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

struct InitialAdapterTests {
    static let ggufPath = TestModel.repositoryRoot + "/Tests/Goldens/tiny-adapter.gguf"
    static let lora = LoRASpec(rank: 4, alpha: 8, dropout: 0, targets: .allLinear, layers: nil)

    static func spec() throws -> DecoderSpec { try BaseModel.open(path: TinyRun.modelPath).spec }

    /// The golden's initial adapter as PEFT would have saved it.
    static func peftDirectory(_ directory: String, config changed: (String) -> String = { $0 }) throws {
        let golden = try Golden("tiny-goldens.safetensors")
        var file = SafetensorsWriter(metadata: ["format": "pt"])
        for tensor in golden.file.tensors where tensor.name.hasPrefix("initial.") {
            let values = try #require(tensor.floats())
            try file.add(
                String(tensor.name.dropFirst("initial.".count)), dtype: .f32, shape: tensor.shape, body: .floats(values))
        }
        try Data(try file.encoded()).write(to: URL(fileURLWithPath: directory + "/adapter_model.safetensors"))
        let config = AdapterConfig(
            rank: 4, loraAlpha: 8, loraDropout: 0.05, targetModules: ["q_proj"], layersToTransform: nil,
            baseModelNameOrPath: nil)
        let text = changed(String(decoding: config.json, as: UTF8.self))
        try Data(text.utf8).write(to: URL(fileURLWithPath: directory + "/adapter_config.json"))
    }

    static func opened(_ directory: String) throws -> InitialAdapter {
        try InitialAdapter(
            tensors: directory + "/adapter_model.safetensors", config: directory + "/adapter_config.json", spec: spec())
    }

    static func values(_ adapter: InitialAdapter) throws -> [UInt32] {
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let modules = try lora.modules(of: model.spec)
        let count = AdapterSet.layout(modules, rank: 4, of: model.spec).count
        let arena = try Arena(capacity: .floats(count))
        let set = AdapterSet(lora, modules: modules, of: model.spec, parameters: arena.floats(count), gradients: nil)
        try adapter.check(lora, modules: modules, spec: model.spec)
        try adapter.load(into: set, model.spec)
        return (0..<count).map { set.parameters[$0].bitPattern }
    }

    @Test("PEFT's files, llama.cpp's adapter and a published artifact of either give the same values")
    func formsAgree() throws {
        let scratch = try TemporaryDirectory()
        try Self.peftDirectory(scratch.path)
        let fromPEFT = try Self.opened(scratch.path)
        let fromGGUF = try InitialAdapter(tensors: Self.ggufPath, config: nil, spec: Self.spec())
        let expected = try Self.values(fromPEFT)
        #expect(try Self.values(fromGGUF) == expected)
        #expect(fromGGUF.rank == 4 && fromGGUF.scaling == 2)
        try fromGGUF.publish(to: scratch.path + "/artifact", baseModel: "tiny", spec: Self.spec())
        #expect(try Self.values(InitialAdapter(directory: scratch.path + "/artifact")) == expected)
    }

    @Test("a job that asks for something else is told the lines that would do")
    func differences() throws {
        let scratch = try TemporaryDirectory()
        try Self.peftDirectory(scratch.path)
        let spec = try Self.spec(), adapter = try Self.opened(scratch.path)
        func lines(_ change: (inout LoRASpec) -> Void) throws -> [String] {
            var lora = Self.lora
            change(&lora)
            do {
                try adapter.check(lora, modules: try lora.modules(of: spec), spec: spec)
                return []
            } catch InitialAdapterError.differs(let lines) {
                return lines
            }
        }
        #expect(try lines { _ in } == [])
        #expect(try lines { $0.alpha = 16 } == ["lora_alpha: 8"])
        #expect(try lines { $0.rank = 8; $0.alpha = 16 } == ["lora_r: 4", "lora_alpha: 8"])
        #expect(try lines { $0.targets = .names(["q_proj"]) } == [
            "lora_target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]", "layers_to_transform: null",
        ])
    }

    @Test("rank-stabilised scaling is read as the alpha that gives it")
    func rankStabilised() throws {
        let scratch = try TemporaryDirectory()
        try Self.peftDirectory(scratch.path) { $0.replacingOccurrences(of: "\"use_rslora\": false", with: "\"use_rslora\": true") }
        let adapter = try Self.opened(scratch.path)
        #expect(adapter.scaling == 4)  // 8 / √4
    }

    @Test("an adapter of another model is refused by the module that does not fit")
    func otherModel() throws {
        let other = try BaseModel.open(path: ReferenceModel(family: "qwen3").directory + "/model.gguf").spec
        #expect(throws: AdapterError.badMetadata(key: "general.architecture", found: "llama", expected: "qwen3")) {
            try InitialAdapter(tensors: Self.ggufPath, config: nil, spec: other)
        }
        let scratch = try TemporaryDirectory()
        try Self.peftDirectory(scratch.path)
        let adapter = try InitialAdapter(
            tensors: scratch.path + "/adapter_model.safetensors", config: scratch.path + "/adapter_config.json", spec: other)
        #expect(throws: AdapterMismatch.self) { try adapter.publish(to: scratch.path + "/a", baseModel: "x", spec: other) }
        #expect(throws: InitialAdapterError.noConfig) {
            try InitialAdapter(tensors: scratch.path + "/adapter_model.safetensors", config: nil, spec: other)
        }
    }

    @Test("a run begins with the adapter's values, and a resumed one with its own checkpoint's")
    func runBeginsFromIt() throws {
        var run = TinyRun()
        run.spec.maxSteps = 4
        run.initial = { try InitialAdapter(tensors: Self.ggufPath, config: nil, spec: Self.spec()) }
        let whole = try TemporaryDirectory(), parted = try TemporaryDirectory(), plain = try TemporaryDirectory()
        let untouched = try TemporaryDirectory()
        let result = try run.run(in: whole.path)
        _ = try run.run(in: parted.path, stopAfter: 3)
        run.initial = { throw InitialAdapterError.irregular }  // is not asked for again
        #expect(try run.run(in: parted.path).adapter == result.adapter)
        run.initial = nil
        #expect(try run.run(in: plain.path).adapter != result.adapter)
        func firstEvaluation(_ events: [TrainingEvent]) -> Double? {
            events.lazy.compactMap { if case .evaluation(let one, _) = $0, one.step == 0 { one.loss } else { nil } }.first
        }
        let events = try run.run(in: untouched.path).events
        let untrained = try #require(firstEvaluation(events))
        #expect(try #require(firstEvaluation(result.events)) != untrained)
    }
}
