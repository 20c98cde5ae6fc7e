// Adapters that training begins from: read from each form to the same values, refused where they do not belong.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

struct LoadedAdapterTests {
    static let ggufPath = TestModel.repositoryRoot + "/Tests/Goldens/tiny-adapter.gguf"
    static let lora = AdapterSpec(rank: 4, alpha: 8, dropout: 0, targets: .allLinear, layers: nil)

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

    static func opened(_ directory: String) throws -> LoadedAdapter {
        try LoadedAdapter(
            tensors: directory + "/adapter_model.safetensors", config: directory + "/adapter_config.json", spec: spec(),
            limitBytes: 1 << 20)
    }

    static func values(_ adapter: LoadedAdapter) throws -> [UInt32] {
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let modules = try lora.modules(of: model.spec)
        let layout = AdapterLayout(lora, modules: modules, of: model.spec)
        let count = layout.parameterCount
        let arena = try Arena(capacity: .floats(count))
        let set = AdapterSet(layout, of: model.spec, parameters: arena.floats(count), gradients: nil, factorSpace: nil)
        try adapter.check(lora, modules: modules, spec: model.spec)
        try adapter.load(into: set, model.spec)
        return (0..<count).map { set.parameters[$0].bitPattern }
    }

    @Test("PEFT's files, llama.cpp's adapter and a published artifact of either give the same values")
    func formsAgree() throws {
        let scratch = try TemporaryDirectory()
        try Self.peftDirectory(scratch.path)
        let fromPEFT = try Self.opened(scratch.path)
        let fromGGUF = try LoadedAdapter(tensors: Self.ggufPath, config: nil, spec: Self.spec(), limitBytes: 1 << 20)
        let expected = try Self.values(fromPEFT)
        #expect(try Self.values(fromGGUF) == expected)
        #expect(fromGGUF.rank == 4 && fromGGUF.scaling == 2)
        try fromGGUF.publish(to: scratch.path + "/artifact", baseModel: "tiny", spec: Self.spec(), note: "From elsewhere")
        #expect(try Self.values(LoadedAdapter(directory: scratch.path + "/artifact", of: Self.spec())) == expected)
    }

    /// Files have layer 10 before layer 2, and down_proj before q_proj.
    @Test("an adapter of twelve layers is read, each module's values into its place")
    func manyLayers() throws {
        var spec = try Self.spec()
        spec.layerCount = 12
        spec.layerKinds = (0..<12).map { spec.layerKinds[$0 % spec.layerKinds.count] }
        let scratch = try TemporaryDirectory(), modules = try Self.lora.modules(of: spec)
        var tensors: [(name: String, shape: [Int], values: [Float])] = []
        for (index, id) in modules.enumerated() {
            let path = "base_model.model.\(id.path(spec))", shape = spec.shape(id.module)
            func add(_ name: String, _ rows: Int, _ columns: Int, _ value: Float) {
                tensors.append(("\(path).\(name).weight", [rows, columns], [Float](repeating: value, count: rows * columns)))
            }
            add("lora_A", 4, shape.inFeatures, Float(index + 1))
            add("lora_B", shape.outFeatures, 4, Float(-index - 1))
        }
        var file = SafetensorsWriter(metadata: ["format": "pt"])
        for one in tensors.sorted(by: { $0.name < $1.name }) {
            try file.add(one.name, dtype: .f32, shape: one.shape, body: .floats(one.values))
        }
        let path = scratch.path + "/adapter_model.safetensors", config = scratch.path + "/adapter_config.json"
        try Data(try file.encoded()).write(to: URL(fileURLWithPath: path))
        try Data(AdapterConfig(Self.lora, modules: modules, of: spec, baseModelNameOrPath: nil).json).write(to: URL(fileURLWithPath: config))

        let adapter = try LoadedAdapter(tensors: path, config: config, spec: spec, limitBytes: 1 << 24)
        #expect(try adapter.modules(of: spec) == modules)
        let layout = AdapterLayout(adapter.spec, modules: try adapter.modules(of: spec), of: spec)
        let arena = try Arena(capacity: .floats(layout.parameterCount))
        let set = AdapterSet(layout, of: spec, parameters: arena.floats(layout.parameterCount), gradients: nil, factorSpace: nil)
        try adapter.load(into: set, spec)
        for (index, slot) in layout.slots.enumerated() {
            #expect(slot.id == modules[index])
            #expect(slot.places.map { set.parameters[$0.offset] } == [Float(index + 1), Float(-index - 1)], "\(slot.id)")
        }
        // What is published, and composed with others, is in that order, too.
        try adapter.publish(to: scratch.path + "/artifact", baseModel: "tiny", spec: spec, note: "From elsewhere")
        #expect(try LoadedAdapter(directory: scratch.path + "/artifact", of: spec).modules(of: spec) == modules)
        let composition = try AdapterComposition(1, of: spec, reserve: { _ in }, read: { _ in adapter })
        #expect(composition.modules == modules)
    }

    @Test("a job that asks for something else is told the lines that would do")
    func differences() throws {
        let scratch = try TemporaryDirectory()
        try Self.peftDirectory(scratch.path)
        let spec = try Self.spec(), adapter = try Self.opened(scratch.path)
        func lines(_ change: (inout AdapterSpec) -> Void) throws -> [String] {
            var lora = Self.lora
            change(&lora)
            do {
                try adapter.check(lora, modules: try lora.modules(of: spec), spec: spec)
                return []
            } catch LoadedAdapterError.differs(let lines) {
                return lines
            }
        }
        #expect(try lines { _ in } == [])
        #expect(try lines { $0.alpha = 16 } == ["lora_alpha: 8"])
        #expect(try lines { $0.rank = 8; $0.alpha = 16 } == ["lora_r: 4", "lora_alpha: 8"])
        #expect(try lines { $0.saved = SavedModules(names: ["norm"], tokens: [1]) } == ["modules_to_save: null", "token_indices: null"])
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

    /// A module of q_proj and one of v_proj in each of two layers, with the rank that each is given.
    static func mixedDirectory(_ directory: String, alphaPattern: String, useRSLoRA: Bool, ranks: (q: Int, v: Int)) throws {
        let spec = try spec()
        var file = SafetensorsWriter(metadata: ["format": "pt"])
        for layer in 0..<2 {
            for (name, rank, rows) in [("q", ranks.q, spec.queryWidth), ("v", ranks.v, spec.keyValueWidth)] {
                let path = "base_model.model.model.layers.\(layer).self_attn.\(name)_proj"
                try file.add(
                    path + ".lora_A.weight", dtype: .f32, shape: [rank, spec.hiddenSize],
                    body: .floats((0..<rank * spec.hiddenSize).map { Float($0 % 7 - 3) * 0.125 }))
                try file.add(
                    path + ".lora_B.weight", dtype: .f32, shape: [rows, rank],
                    body: .floats((0..<rows * rank).map { Float($0 % 5 - 2) * 0.25 }))
            }
        }
        try Data(try file.encoded()).write(to: URL(fileURLWithPath: directory + "/adapter_model.safetensors"))
        let config = """
            {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_rslora": \(useRSLoRA),
             "rank_pattern": {"v_proj": \(ranks.v)}, "alpha_pattern": \(alphaPattern)}
            """
        try Data(config.utf8).write(to: URL(fileURLWithPath: directory + "/adapter_config.json"))
    }

    /// scaling · B · A of every module, by its path.
    static func changes(_ adapter: LoadedAdapter) throws -> [String: [Float]] {
        var changes: [String: [Float]] = [:]
        for one in try adapter.tensors(of: spec()).values {
            changes[one.modulePath] = (0..<one.outFeatures * one.inFeatures).map { index in
                let (row, column) = index.quotientAndRemainder(dividingBy: one.inFeatures)
                return (0..<one.rank).reduce(0) {
                    $0 + Float(adapter.scaling) * one.loraB[row * one.rank + $1] * one.loraA[$1 * one.inFeatures + column]
                }
            }
        }
        return changes
    }

    @Test("modules of several ranks and alphas become ones of the largest rank that change the base alike")
    func patterns() throws {
        // PEFT: alpha_pattern's first key that matches the end of the path, rank_pattern as the shapes say; 8 otherwise.
        let cases: [(pattern: String, rslora: Bool, expected: (q: Float, v: Float))] = [
            ("{}", false, (4, 2)), ("{\"q_proj\": 6}", false, (3, 2)), ("{\"layers.0.self_attn.v_proj\": 16}", false, (4, 4)),
            ("{\"^model.layers.0.*\": 12}", false, (6, 3)), ("{\"v_pro.\": 2, \"v_proj\": 64}", true, (5.656854, 1)),
        ]
        for (pattern, rslora, expected) in cases {
            let scratch = try TemporaryDirectory()
            try Self.mixedDirectory(scratch.path, alphaPattern: pattern, useRSLoRA: rslora, ranks: (2, 4))
            let adapter = try Self.opened(scratch.path)
            #expect(adapter.rank == 4)
            let found = try Self.changes(adapter)
            let raw = try AdapterArtifact.open(directory: scratch.path).lora { _ in nil }
            for one in raw where one.modulePath.hasPrefix("model.layers.0.") {
                let scaling = one.modulePath.hasSuffix("q_proj") ? expected.q : expected.v
                let change = try #require(found[one.modulePath])
                for index in change.indices {
                    let (row, column) = index.quotientAndRemainder(dividingBy: one.inFeatures)
                    let value = (0..<one.rank).reduce(Float(0)) {
                        $0 + scaling * one.loraB[row * one.rank + $1] * one.loraA[$1 * one.inFeatures + column]
                    }
                    #expect(abs(change[index] - value) <= 1e-5 * max(1, abs(value)), "\(pattern) \(one.modulePath)")
                }
            }
            // And so it is published, for whoever reads one rank only.
            try adapter.publish(to: scratch.path + "/artifact", baseModel: "tiny", spec: Self.spec(), note: "From elsewhere")
            #expect(try Self.changes(LoadedAdapter(directory: scratch.path + "/artifact", of: Self.spec())).keys == found.keys)
        }
    }

    @Test("a pattern that is none, and more bytes than there is memory for, are errors with their figures")
    func badPatternsAndSizes() throws {
        let scratch = try TemporaryDirectory()
        try Self.mixedDirectory(scratch.path, alphaPattern: "{\"(\": 2}", useRSLoRA: false, ranks: (2, 2))
        #expect(throws: AdapterError.badConfig(key: "alpha_pattern", value: "(")) { try Self.opened(scratch.path) }
        let path = scratch.path + "/adapter_model.safetensors"
        let bytes = try #require(FileManager.default.contents(atPath: path)).count
        #expect(throws: LoadedAdapterError.tooLarge(bytes: bytes, limitBytes: 1000)) {
            try LoadedAdapter(tensors: path, config: scratch.path + "/adapter_config.json", spec: Self.spec(), limitBytes: 1000)
        }
    }

    @Test("one module of a high rank does not make an adapter larger than its limit; a scaling beyond f32 is an error")
    func hostileRanksAndScalings() throws {
        let scratch = try TemporaryDirectory()
        try Self.mixedDirectory(scratch.path, alphaPattern: "{}", useRSLoRA: false, ranks: (1, 200))
        let path = scratch.path + "/adapter_model.safetensors", config = scratch.path + "/adapter_config.json"
        let fileBytes = try #require(FileManager.default.contents(atPath: path)).count
        #expect(throws: LoadedAdapterError.self) {
            try LoadedAdapter(tensors: path, config: config, spec: Self.spec(), limitBytes: fileBytes)
        }
        #expect(try LoadedAdapter(tensors: path, config: config, spec: Self.spec(), limitBytes: 4 * fileBytes).rank == 200)
        try Self.mixedDirectory(scratch.path, alphaPattern: "{\"q_proj\": 1e300}", useRSLoRA: false, ranks: (2, 2))
        #expect(throws: AdapterError.self) { try Self.opened(scratch.path) }
    }

    @Test("an adapter of another model is refused by the module that does not fit")
    func otherModel() throws {
        let other = try BaseModel.open(path: ReferenceModel(family: "qwen3").directory + "/model.gguf").spec
        #expect(throws: AdapterError.badMetadata(key: "general.architecture", found: "llama", expected: "qwen3")) {
            try LoadedAdapter(tensors: Self.ggufPath, config: nil, spec: other, limitBytes: 1 << 20)
        }
        let scratch = try TemporaryDirectory()
        try Self.peftDirectory(scratch.path)
        let adapter = try LoadedAdapter(
            tensors: scratch.path + "/adapter_model.safetensors", config: scratch.path + "/adapter_config.json", spec: other,
            limitBytes: 1 << 20)
        #expect(throws: AdapterMismatch.self) { try adapter.publish(to: scratch.path + "/a", baseModel: "x", spec: other, note: "") }
        #expect(throws: LoadedAdapterError.noConfig) {
            try LoadedAdapter(tensors: scratch.path + "/adapter_model.safetensors", config: nil, spec: other, limitBytes: 1 << 20)
        }
    }

    @Test("a run begins with the adapter's values, and a resumed one with its own checkpoint's")
    func runBeginsFromIt() throws {
        var run = TinyRun()
        run.spec.maxSteps = 4
        run.initial = { try LoadedAdapter(tensors: Self.ggufPath, config: nil, spec: Self.spec(), limitBytes: 1 << 20) }
        let whole = try TemporaryDirectory(), parted = try TemporaryDirectory(), plain = try TemporaryDirectory()
        let untouched = try TemporaryDirectory()
        let result = try run.run(in: whole.path)
        _ = try run.run(in: parted.path, stopAfter: 3)
        run.initial = { throw LoadedAdapterError.irregular }  // is not asked for again
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
