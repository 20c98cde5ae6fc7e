// Gemma 2 and 3 (text): norms before and after, local and global layers, GeGLU, scaled embeddings; 2 caps attention scores, 3
// normalises queries and keys instead.
import EdgeFormats
import EdgeTensor

extension Architecture {
    package static let gemma2 = Architecture(ggufName: "gemma2", huggingFaceNames: ["Gemma2ForCausalLM"]) { values in
        var spec = try values.gemma(FamilyDefaults(
            hiddenSize: 2304, intermediateSize: 9216, layerCount: 26, heads: 8, headDim: 256, keyValueHeads: 4,
            contextLength: 8192, tiesEmbeddings: true), largestLayerCount: 46, logitCap: 30)
        spec.attentionCap = try values.optionalNumber(
            Hyperparameters.Key("attn_logit_softcapping", "attn_logit_softcapping"), unlessGiven: 50).map { Float($0) }
        try values.gemmaWindows(&spec, pattern: 2) { $0 % 2 == 0 }
        return spec
    }

    package static let gemma3 = Architecture(
        ggufName: "gemma3", huggingFaceNames: ["Gemma3ForCausalLM"]
    ) { values in
        let defaults = FamilyDefaults(
            hiddenSize: 2304, intermediateSize: 9216, layerCount: 26, heads: 8, headDim: 256, keyValueHeads: 4, theta: 1_000_000,
            contextLength: 131_072, tiesEmbeddings: true, ggufTheta: 1_000_000)
        var spec = try values.gemma(defaults, largestLayerCount: 62, logitCap: nil)
        spec.headNorm = .perHead
        let bidirectional = Hyperparameters.Key(nil, "use_bidirectional_attention")
        try values.refuse(bidirectional, try values.flag(bidirectional, default: false))
        let pattern = try values.count(Hyperparameters.Key(nil, "sliding_window_pattern"), in: 1...1024, default: 6)
        try values.gemmaWindows(&spec, pattern: pattern) { ($0 + 1) % pattern != 0 }
        // Layers with a window have a base of their own, which is never scaled.
        let perKind = values.object("rope_parameters")?["sliding_attention"]
        if let global = values.object("rope_parameters")?["full_attention"] {
            spec.rotaries[0] = try values.rotary(headDim: spec.headDim, global, defaults)
        }
        let local = Hyperparameters.Key("rope.freq_base_swa", "rope_local_base_freq")
        let theta = try perKind.flatMap {
            try Hyperparameters(config: $0).optionalNumber(Hyperparameters.Key(nil, "rope_theta"))
        } ?? values.number(local, default: 10_000)
        spec.rotaries.append(RotarySpec(theta: theta, rotated: spec.headDim))
        for layer in 0..<spec.layerCount where spec.layerKinds[layer].window != nil { spec.layerKinds[layer].rotary = 1 }
        return spec
    }
}

extension Hyperparameters {
    /// - Parameter largestLayerCount: of the 27B model, whose GGUF files do not say that its attention is scaled otherwise.
    fileprivate func gemma(_ defaults: FamilyDefaults, largestLayerCount: Int, logitCap: Double?) throws -> DecoderSpec {
        var defaults = defaults
        defaults.activationKey = "hidden_activation"
        defaults.activation = "gelu_pytorch_tanh"
        var spec = try decoder(defaults)
        spec.activation = .geglu
        spec.hasOutputNorms = true
        // llama.cpp's converter has added the 1.
        spec.normKind = .rootMeanSquare(weightOffset: isHuggingFace ? 1 : 0)
        spec.hubNormOffset = 1
        spec.embeddingScale = Float(spec.hiddenSize).squareRoot()
        let ggufScalar = spec.layerCount == largestLayerCount ? spec.hiddenSize / spec.attentionHeadCount : spec.headDim
        let scalar = try number(Key(nil, "query_pre_attn_scalar"), default: isHuggingFace ? 256 : Double(ggufScalar))
        spec.attentionScale = Float(1 / scalar.squareRoot())
        spec.logitCap = try optionalNumber(
            Key("final_logit_softcapping", "final_logit_softcapping"), unlessGiven: logitCap).map { Float($0) }
        return spec
    }

    /// GGUF files may say which layers are local; most leave it to the reader.
    fileprivate func gemmaWindows(_ spec: inout DecoderSpec, pattern: Int, isLocal: (Int) -> Bool) throws {
        let key = Key("attention.sliding_window_pattern", nil)
        let window = try window() ?? (isHuggingFace ? 4096 : nil)
        if !isHuggingFace, window == nil { return }
        if let flags = try isList(key) ? flags(key) : nil {
            try requireOnePerLayer(key, flags.count, spec)
            try windows(&spec, window) { flags[$0] }
        } else if let every = try optionalCount(key, in: 1...1024), every != pattern {
            try windows(&spec, window) { ($0 + 1) % every != 0 }
        } else {
            try windows(&spec, window, isLocal: isLocal)
        }
    }
}
