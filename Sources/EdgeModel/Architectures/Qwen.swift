// Qwen 2, 2.5 and 3.
import EdgeTensor

extension Architecture {
    package static let qwen2 = Architecture(ggufName: "qwen2", huggingFaceNames: ["Qwen2ForCausalLM"]) { values in
        var spec = try values.qwen(FamilyDefaults(intermediateSize: 22_016, keyValueHeads: 32, contextLength: 32_768))
        spec.biases = [.query, .key, .value]
        return spec
    }

    package static let qwen3 = Architecture(ggufName: "qwen3", huggingFaceNames: ["Qwen3ForCausalLM"]) { values in
        var spec = try values.qwen(FamilyDefaults(
            intermediateSize: 22_016, headDim: 128, keyValueHeads: 32, contextLength: 32_768))
        spec.headNorm = .perHead
        return spec
    }
}

extension Hyperparameters {
    fileprivate func qwen(_ defaults: FamilyDefaults) throws -> DecoderSpec {
        var spec = try decoder(defaults)
        guard isHuggingFace, try flag(Key(nil, "use_sliding_window"), default: false) else { return spec }
        let first = try count(Key(nil, "max_window_layers"), in: 0...1024, default: 28)
        let window = try window() ?? 4096
        try windows(&spec, window) { $0 >= first }
        return spec
    }
}
