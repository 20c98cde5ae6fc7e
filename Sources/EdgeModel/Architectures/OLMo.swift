// OLMo 2: no norm before attention and MLP, one after each, and queries and keys normalised over all heads.
import EdgeTensor

extension Architecture {
    package static let olmo2 = Architecture(ggufName: "olmo2", huggingFaceNames: ["Olmo2ForCausalLM"]) { values in
        var spec = try values.decoder(FamilyDefaults(epsilon: 1e-5, contextLength: 2048))
        // OLMo 3 has the same name in GGUF files.
        let window = Hyperparameters.Key("attention.sliding_window", nil)
        if let count = try values.optionalCount(window, in: 1...16_777_216) {
            throw values.bad(window, "\(count)", expected: "none: OLMo 3 is not supported")
        }
        spec.hasInputNorms = false
        spec.hasOutputNorms = true
        spec.headNorm = .fullWidth
        return spec
    }
}
