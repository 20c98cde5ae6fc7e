// StableLM 2: layer normalisation with biases, and a quarter of each head rotated.
import EdgeTensor

extension Architecture {
    package static let stablelm = Architecture(
        ggufName: "stablelm", huggingFaceNames: ["StableLmForCausalLM"]
    ) { values in
        var spec = try values.decoder(FamilyDefaults(
            hiddenSize: 2560, intermediateSize: 6912, keyValueHeads: 32, epsilon: 1e-5, partialRotary: 0.25, contextLength: 4096,
            epsilonKey: Hyperparameters.Key("attention.layer_norm_epsilon", "layer_norm_eps")))
        // Both are StableLM 2 12B's.
        let parallel = Hyperparameters.Key("use_parallel_residual", "use_parallel_residual")
        try values.refuse(parallel, try values.flag(parallel, default: false))
        let headNorms = Hyperparameters.Key(nil, "qk_layernorm")
        try values.refuse(headNorms, try values.flag(headNorms, default: false))
        spec.normKind = .layer
        return spec
    }
}
