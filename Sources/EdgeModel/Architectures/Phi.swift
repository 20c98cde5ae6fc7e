// Phi-3, 3.5 and 4: one matrix for q, k and v, one for gate and up; long contexts by LongRoPE (arXiv:2402.13753).
import EdgeTensor

extension Architecture {
    package static let phi3 = Architecture(ggufName: "phi3", huggingFaceNames: ["Phi3ForCausalLM"]) { values in
        var spec = try values.decoder(FamilyDefaults(hiddenSize: 3072, intermediateSize: 8192, epsilon: 1e-5, contextLength: 4096))
        spec.fusion = .queryKeyValueAndGateUp
        let window = try values.window()
        try values.windows(&spec, window) { _ in window != nil }
        return spec
    }
}
