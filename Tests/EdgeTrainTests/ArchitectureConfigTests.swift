// What a config.json means: patterns of layers, defaults that it leaves out, and what is refused, with the reason.
import EdgeModel
import EdgeTensor
import Testing

struct ArchitectureConfigTests {
    static func spec(_ architecture: String, _ rest: String = "") throws -> DecoderSpec {
        try Architectures.spec(config: Array("{\"architectures\":[\"\(architecture)\"]\(rest.isEmpty ? "" : ",")\(rest)}".utf8))
    }

    static func error(_ architecture: String, _ rest: String = "") -> ModelError? {
        do {
            _ = try spec(architecture, rest)
            return nil
        } catch { return error as? ModelError }
    }

    @Test("Gemma 3: every sixth layer is global, with its own base; local layers have theirs, never scaled")
    func gemma3Layers() throws {
        let spec = try Self.spec(
            "Gemma3ForCausalLM",
            "\"num_hidden_layers\":13,\"sliding_window\":512,\"rope_theta\":1000000,\"rope_local_base_freq\":10000,\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8}")
        #expect(spec.layerKinds.map { $0.window == nil } == (0..<13).map { $0 % 6 == 5 })
        #expect(spec.layerKinds.map(\.rotary) == (0..<13).map { $0 % 6 == 5 ? 0 : 1 })
        #expect(spec.rotaries[0].theta == 1_000_000 && spec.rotaries[0].factors == .fixed([Float](repeating: 8, count: 128)))
        #expect(spec.rotaries[1] == RotarySpec(theta: 10_000, rotated: 256))
    }

    @Test("Gemma 2: what is left out is capped, null is not; even layers are local")
    func gemma2Caps() throws {
        let spec = try Self.spec("Gemma2ForCausalLM", "\"num_hidden_layers\":4")
        #expect(spec.attentionCap == 50 && spec.logitCap == 30)
        #expect(spec.layerKinds.map(\.window) == [4096, nil, 4096, nil])
        let free = try Self.spec("Gemma2ForCausalLM", "\"attn_logit_softcapping\":null,\"final_logit_softcapping\":null")
        #expect(free.attentionCap == nil && free.logitCap == nil)
    }

    @Test("SmolLM3: every fourth layer has no position embedding")
    func smolLM3Layers() throws {
        let spec = try Self.spec("SmolLM3ForCausalLM", "\"num_hidden_layers\":9")
        #expect(spec.layerKinds.map { $0.rotary == nil } == (0..<9).map { $0 % 4 == 3 })
        #expect(spec.rotaries[0].theta == 2_000_000)
    }

    @Test("windows: Mistral's is there unless it is null, Qwen 2's only when it is switched on")
    func windows() throws {
        #expect(try Self.spec("MistralForCausalLM").layerKinds.allSatisfy { $0.window == 4096 })
        #expect(try Self.spec("MistralForCausalLM", "\"sliding_window\":null").layerKinds.allSatisfy { $0.window == nil })
        #expect(try Self.spec("Qwen2ForCausalLM", "\"sliding_window\":8").layerKinds.allSatisfy { $0.window == nil })
        let some = try Self.spec("Qwen2ForCausalLM", "\"use_sliding_window\":true,\"sliding_window\":8,\"max_window_layers\":30")
        #expect(some.layerKinds.map { $0.window != nil } == (0..<32).map { $0 >= 30 })
    }

    @Test("what would be another model is refused by name", arguments: [
        ("Qwen2MoeForCausalLM", "", "Qwen2ForCausalLM"),
        ("LlamaForCausalLM", "\"hidden_act\":\"gelu\"", "hidden_act"),
        ("LlamaForCausalLM", "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}", "rope_type"),
        ("LlamaForCausalLM", "\"num_key_value_heads\":5", "num_key_value_heads"),
        ("LlamaForCausalLM", "\"num_attention_heads\":\"many\"", "num_attention_heads"),
        ("LlamaForCausalLM", "\"num_hidden_layers\":100000", "num_hidden_layers"),
        // Beyond any integer, and infinite when multiplied.
        ("StableLmForCausalLM", "\"partial_rotary_factor\":1e30", "partial_rotary_factor"),
        ("StableLmForCausalLM", "\"partial_rotary_factor\":1e308", "partial_rotary_factor"),
        ("LlamaForCausalLM", "\"rms_norm_eps\":-1", "rms_norm_eps"),
        ("StableLmForCausalLM", "\"use_parallel_residual\":true", "use_parallel_residual"),
        ("StableLmForCausalLM", "\"qk_layernorm\":true", "qk_layernorm"),
        ("Gemma3ForCausalLM", "\"use_bidirectional_attention\":true", "use_bidirectional_attention"),
        ("Gemma3ForCausalLM", "\"layer_types\":[\"full_attention\"]", "layer_types"),
        ("Phi3ForCausalLM", "\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1],\"long_factor\":[2]}", "short_factor"),
    ])
    func refused(_ architecture: String, _ rest: String, _ named: String) {
        let found = Self.error(architecture, rest)
        #expect(found.map { "\($0)".contains(named) } == true, "\(found.map { "\($0)" } ?? "nothing was wrong")")
    }

    @Test("what is no configuration is an error, whatever it is", arguments: [
        "", "[]", "{", "null", "{\"architectures\":[]}", "{\"architectures\":\"Llama\"}", "{\"architectures\":[1]}",
    ])
    func noConfiguration(_ text: String) {
        #expect(throws: ModelError.self) { try Architectures.spec(config: Array(text.utf8)) }
    }
}
