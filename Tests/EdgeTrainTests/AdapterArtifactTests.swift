import EdgeFormats
import EdgeTrain
import Testing

struct AdapterArtifactTests {
    private static let config = AdapterConfig(
        rank: 2, loraAlpha: 4, loraDropout: 0.05, targetModules: ["v_proj", "q_proj"], layersToTransform: [0],
        baseModelNameOrPath: "acme/tiny")

    private static func module(_ name: String, rows: Int, b: Float = 0.5) -> LoRATensors {
        LoRATensors(
            modulePath: "model.layers.0.self_attn.\(name)_proj", rank: 2, inFeatures: 3, outFeatures: rows,
            loraA: (0..<6).map { Float($0) - 0.1 }, loraB: (0..<2 * rows).map { Float($0) * b })
    }

    private static let tensors = [module("q", rows: 4), module("v", rows: 2)]

    private static func publish(_ tensors: [LoRATensors], _ directory: String) throws {
        try AdapterArtifact.publish(
            to: directory, tensors: tensors.flatMap(\.stored), config: config, provenance: ["base": "sha256:00"],
            trainingJSON: Array("{}".utf8), modelCard: "# Card\n")
    }

    @Test func whatIsPublishedOpens() throws {
        let scratch = try ScratchDirectory()
        try Self.publish(Self.tensors, scratch.path + "/a")
        #expect(
            try scratch.names("a")
                == ["README.md", "SHA256SUMS", "adapter_config.json", "adapter_model.safetensors.lz4", "training.json"])
        let artifact = try AdapterArtifact.open(directory: scratch.path + "/a")
        #expect(artifact.config == Self.config)
        #expect(artifact.provenance == ["base": "sha256:00"])
        #expect(try artifact.lora { _ in nil } == Self.tensors)
    }

    @Test func equalValuesGiveEqualBytesInAnyOrder() throws {
        let scratch = try ScratchDirectory()
        try Self.publish(Self.tensors, scratch.path + "/a")
        try Self.publish(Self.tensors.reversed(), scratch.path + "/b")
        for name in try scratch.names("a") { #expect(try scratch.read("a/" + name) == scratch.read("b/" + name)) }
    }

    @Test func badTensorsAreRefusedAndLeaveNothing() throws {
        let scratch = try ScratchDirectory()
        var nan = Self.tensors
        nan[1].loraA[3] = .nan
        var short = Self.tensors
        short[0].loraB.removeLast()
        let key = "base_model.model.model.layers.0.self_attn."
        let cases: [([LoRATensors], AdapterError)] = [
            ([], .noTensors),
            (nan, .nonFinite(tensor: key + "v_proj.lora_A.weight", index: 3)),
            (short, .wrongSize(tensor: key + "q_proj.lora_B.weight", expected: 8, found: 7)),
            ([Self.module("q", rows: 4, b: 0), Self.module("v", rows: 2, b: 0)], .nothingLearned(tensors: 2)),
            (Self.tensors + Self.tensors, .duplicateTensor(key + "q_proj.lora_A.weight")),
        ]
        for (tensors, error) in cases {
            #expect(throws: error) { try Self.publish(tensors, scratch.path + "/a") }
            #expect(try scratch.names() == [])
        }
    }

    @Test func plainDirectoriesOpenAndTheirBytesAreTheFramedOnes() throws {
        let scratch = try ScratchDirectory()
        try Self.publish(Self.tensors, scratch.path + "/a")
        try AdapterArtifact.exportPEFT(scratch.path + "/a", to: scratch.path + "/peft")
        try AdapterArtifact.exportSafetensors(scratch.path + "/a", to: scratch.path + "/plain")
        #expect(try scratch.names("peft") == ["adapter_config.json", "adapter_model.safetensors"])
        #expect(try scratch.read("plain") == scratch.read("peft/adapter_model.safetensors"))
        let plain = try AdapterArtifact.open(directory: scratch.path + "/peft")
        #expect(try plain == AdapterArtifact.open(directory: scratch.path + "/a"))
    }

    @Test func unknownTensorsAreNamed() throws {
        let scratch = try ScratchDirectory()
        var file = SafetensorsWriter(metadata: ["format": "pt"])
        let name = "base_model.model.x.lora_magnitude_vector"
        try file.add(name, dtype: .f32, shape: [1], body: .floats([1]))
        try DirectoryPublish.publish(to: scratch.path + "/a") { staging in
            try staging.write("adapter_config.json", Self.config.json)
            try staging.write("adapter_model.safetensors", file.encoded())
        }
        let artifact = try AdapterArtifact.open(directory: scratch.path + "/a")
        #expect(throws: AdapterError.unknownTensor(name)) { try artifact.lora { _ in nil } }
    }

    @Test func halfPrecisionOpensAsFloats() throws {
        let scratch = try ScratchDirectory()
        var file = SafetensorsWriter(metadata: [:])
        let key = "base_model.model.x.lora_"
        try file.add(key + "A.weight", dtype: .bf16, shape: [1, 2], body: .bytes([0x80, 0x3F, 0x00, 0xC0]))
        try file.add(key + "B.weight", dtype: .f16, shape: [2, 1], body: .bytes([0x00, 0x3C, 0x00, 0x38]))
        try DirectoryPublish.publish(to: scratch.path + "/a") { staging in
            try staging.write("adapter_config.json", Array(#"{"peft_type":"LORA","r":1,"target_modules":"x"}"#.utf8))
            try staging.write("adapter_model.safetensors", file.encoded())
        }
        let artifact = try AdapterArtifact.open(directory: scratch.path + "/a")
        let tensors = try artifact.lora { _ in nil }
        #expect(tensors[0].loraA == [1, -2] && tensors[0].loraB == [1, 0.5])
        #expect(artifact.config.loraAlpha == 8 && artifact.config.targetModules == [])
    }

    @Test(arguments: [
        (#"{"peft_type":"XLORA"}"#, AdapterError.unsupported(key: "peft_type", value: "\"XLORA\"")),
        (#"{"peft_type":"LORA","use_qalora":true}"#, .unsupported(key: "use_qalora", value: "true")),
        (#"{"peft_type":"LORA","bias":"all"}"#, .unsupported(key: "bias", value: "\"all\"")),
        (#"{"peft_type":"LORA","r":0}"#, .badConfig(key: "r", value: "0")),
        (#"{"peft_type":"LOKR","decompose_factor":0}"#, .badConfig(key: "decompose_factor", value: "0")),
        (#"{"peft_type":"LOKR","decompose_both":1}"#, .badConfig(key: "decompose_both", value: "1")),
        (#"{"peft_type":"OFT","oft_block_size":0}"#, .badConfig(key: "oft_block_size", value: "0")),
        (#"{"peft_type":"OFT","oft_block_size":8}"#, .badConfig(key: "peft_version", value: "missing")),
        (#"{"peft_type":"OFT","oft_block_size":8,"peft_version":"0.17.1"}"#, .badConfig(key: "peft_version", value: "\"0.17.1\"")),
        (#"{"peft_type":"OFT","r":4,"peft_version":"0.18.0","coft":true}"#, .unsupported(key: "coft", value: "true")),
        (#"{"peft_type":"OFT","r":4,"use_cayley_neumann":false,"block_share":true}"#, .unsupported(key: "block_share", value: "true")),
        (#"{"peft_type":"ADALORA","deltaT":0}"#, .badConfig(key: "deltaT", value: "0")),
        (#"{"peft_type":"ADALORA","lora_alpha":0}"#, .badConfig(key: "lora_alpha", value: "0")),
    ])
    func configurationsItCannotHoldAreRefused(json: String, error: AdapterError) {
        #expect(throws: error) { try AdapterConfig(json: ByteRegion.copy(of: Array(json.utf8))) }
    }

    private static func target(_ name: String, _ order: [Int]?) -> AdapterArtifact.GGUFTarget {
        AdapterArtifact.GGUFTarget(name: "blk.0.attn_\(name).weight", rowOrder: order, inFeatures: 3, outFeatures: 4)
    }

    @Test func theGGUFAdapterHasTheBasesRowOrder() throws {
        let scratch = try ScratchDirectory()
        try Self.publish(Self.tensors, scratch.path + "/a")
        let path = scratch.path + "/a.gguf"
        try AdapterArtifact.exportGGUF(scratch.path + "/a", architecture: "llama", to: path) { module in
            module.hasSuffix("q_proj") ? Self.target("q", [0, 2, 1, 3]) : Self.target("v", nil)
        }
        let file = try GGUFFile.open(path: path)
        #expect(try file.string("general.type") == "adapter" && file.string("adapter.type") == "lora")
        #expect(try file.string("general.architecture") == "llama" && file.float("adapter.lora.alpha") == 4)
        let b = try #require(file.tensor(named: "blk.0.attn_q.weight.lora_b"))
        #expect(b.shape == [4, 2])
        #expect(b.withBytes { Array($0.bindMemory(to: Float.self)) } == [0, 0.5, 2, 2.5, 1, 1.5, 3, 3.5])
        #expect(file.tensor(named: "blk.0.attn_v.weight.lora_a")?.shape == [2, 3])
    }

    @Test func aModuleWithoutGGUFNameAndABadRowOrderAreRefused() throws {
        let scratch = try ScratchDirectory()
        try Self.publish(Self.tensors, scratch.path + "/a")
        let module = "model.layers.0.self_attn.q_proj"
        #expect(throws: AdapterError.noGGUFName(module: module)) {
            try AdapterArtifact.exportGGUF(scratch.path + "/a", architecture: "llama", to: scratch.path + "/g") { _ in nil }
        }
        #expect(throws: AdapterError.badRowOrder(module: module)) {
            try AdapterArtifact.exportGGUF(scratch.path + "/a", architecture: "llama", to: scratch.path + "/g") {
                _ in Self.target("q", [0, 0, 1, 2])
            }
        }
        #expect(try scratch.names() == ["a"])
    }
}
