// Llama and its near relatives: SmolLM, TinyLlama, Falcon 3 and Mistral are stored as it, SmolLM 3 and Granite change a little.
import EdgeTensor

extension Architecture {
    package static let llama = Architecture(
        ggufName: "llama", huggingFaceNames: ["LlamaForCausalLM"], ggufInterleavesPairs: true
    ) { try $0.llama(FamilyDefaults(contextLength: 2048)) }

    /// Converters write Mistral as "llama", and without its window.
    package static let mistral = Architecture(
        ggufName: "llama", huggingFaceNames: ["MistralForCausalLM"], ggufInterleavesPairs: true
    ) { values in
        var spec = try values.llama(FamilyDefaults(intermediateSize: 14_336, keyValueHeads: 8, contextLength: 131_072))
        // Without the key there is one; null is none.
        let window = values.has("sliding_window") ? try values.window() : 4096
        try values.windows(&spec, window) { _ in window != nil }
        return spec
    }

    /// Some layers have no position embedding (NoPE).
    package static let smollm3 = Architecture(
        ggufName: "smollm3", huggingFaceNames: ["SmolLM3ForCausalLM"], ggufInterleavesPairs: true
    ) { values in
        var spec = try values.llama(
            FamilyDefaults(
                hiddenSize: 2048, layerCount: 36, heads: 16, keyValueHeads: 4, theta: 2_000_000, contextLength: 32_768,
                tiesEmbeddings: true))
        let isRotated = Hyperparameters.Key(nil, "no_rope_layers")
        let interval = try values.count(Hyperparameters.Key(nil, "no_rope_layer_interval"), in: 1...1024, default: 4)
        let flags = try values.flags(isRotated) ?? (0..<spec.layerCount).map { ($0 + 1) % interval != 0 }
        try values.requireOnePerLayer(isRotated, flags.count, spec)
        for (layer, flag) in flags.enumerated() where !flag { spec.layerKinds[layer].rotary = nil }
        let slides = Hyperparameters.Key(nil, "use_sliding_window")
        try values.windows(&spec, try values.flag(slides, default: false) ? try values.window() : nil) { _ in false }
        return spec
    }

    package static let granite = Architecture(
        ggufName: "granite", huggingFaceNames: ["GraniteForCausalLM"], ggufInterleavesPairs: true
    ) { values in
        var spec = try values.llama(FamilyDefaults(contextLength: 2048))
        let scale = Hyperparameters.Key("attention.scale", "attention_multiplier")
        if let given = try values.optionalNumber(scale) ?? (values.isHuggingFace ? 1 : nil) { spec.attentionScale = Float(given) }
        spec.embeddingScale = Float(
            try values.number(Hyperparameters.Key("embedding_scale", "embedding_multiplier"), default: 1))
        spec.residualScale = Float(try values.number(Hyperparameters.Key("residual_scale", "residual_multiplier"), default: 1))
        spec.logitScale = 1 / Float(try values.number(Hyperparameters.Key("logit_scale", "logits_scaling"), default: 1))
        return spec
    }
}

extension Hyperparameters {
    func llama(_ defaults: FamilyDefaults) throws -> DecoderSpec {
        var spec = try decoder(defaults)
        if !isHuggingFace {
            // Rows are permuted over whole heads.
            guard spec.rotaries[0].rotated == spec.headDim else {
                throw bad(
                    Key("rope.dimension_count", nil), "\(spec.rotaries[0].rotated)", expected: "\(spec.headDim), the whole head")
            }
            spec.rotaryPairing = .interleaved
        }
        return spec
    }
}
