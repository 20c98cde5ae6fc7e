// What a model's files call its tensors: llama.cpp's names, or Hugging Face's.

/// The norms of a layer, and the model's last.
package enum NormPlace: Hashable, CaseIterable, Sendable { case attentionInput, attentionOutput, mlpInput, mlpOutput, query, key, final }

enum TensorNames {
    case gguf
    case huggingFace

    typealias Norm = NormPlace

    var embedding: String { self == .gguf ? "token_embd" : "model.embed_tokens" }
    var outputNorm: String { self == .gguf ? "output_norm" : "model.norm" }
    var head: String { self == .gguf ? "output" : "lm_head" }

    func linear(_ linear: LinearGroup, layer: Int) -> String {
        self == .gguf ? "blk.\(layer).\(linear.ggufName)" : "model.layers.\(layer).\(linear.path)"
    }

    /// - Parameter layer: nil: the model's last.
    func norm(_ norm: Norm, layer: Int?, _ spec: DecoderSpec) -> String {
        guard let layer else { return outputNorm }
        return self == .gguf ? "blk.\(layer).\(Self.ggufName(norm))" : "model.layers.\(layer).\(Self.path(norm, spec))"
    }

    private static func ggufName(_ norm: Norm) -> String {
        switch norm {
        case .attentionInput: "attn_norm"
        case .attentionOutput: "post_attention_norm"
        case .mlpInput: "ffn_norm"
        case .mlpOutput: "post_ffw_norm"
        case .query: "attn_q_norm"
        case .key: "attn_k_norm"
        case .final: TensorNames.gguf.outputNorm
        }
    }

    /// "post_attention" names the place: before the MLP, or, where there are norms after both, behind the attention.
    private static func path(_ norm: Norm, _ spec: DecoderSpec) -> String {
        switch norm {
        case .attentionInput: "input_layernorm"
        case .attentionOutput: "post_attention_layernorm"
        case .mlpInput: spec.hasOutputNorms ? "pre_feedforward_layernorm" : "post_attention_layernorm"
        case .mlpOutput: "post_feedforward_layernorm"
        case .query: "self_attn.q_norm"
        case .key: "self_attn.k_norm"
        case .final: TensorNames.huggingFace.outputNorm
        }
    }
}
