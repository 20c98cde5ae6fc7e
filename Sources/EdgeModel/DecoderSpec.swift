// A decoder-only transformer as data: sizes and constants. What differs between families is a value here, never a
// branch on a family's name.
import EdgeTensor

package struct DecoderSpec: Equatable, Sendable {
    /// `general.architecture` of the file: "llama".
    package var architecture: String
    package var layerCount: Int
    package var hiddenSize: Int
    package var intermediateSize: Int
    package var attentionHeadCount: Int
    package var keyValueHeadCount: Int
    package var headDim: Int
    package var vocabularySize: Int
    /// Longest sequence that the model was made for, in tokens.
    package var contextLength: Int
    package var rmsNormEpsilon: Float
    package var ropeTheta: Double
    package var rotaryPairing: RotaryPairing

    package var queryWidth: Int { attentionHeadCount * headDim }
    package var keyValueWidth: Int { keyValueHeadCount * headDim }

    package init(
        architecture: String, layerCount: Int, hiddenSize: Int, intermediateSize: Int, attentionHeadCount: Int,
        keyValueHeadCount: Int, headDim: Int, vocabularySize: Int, contextLength: Int, rmsNormEpsilon: Float,
        ropeTheta: Double, rotaryPairing: RotaryPairing
    ) {
        self.architecture = architecture
        self.layerCount = layerCount
        self.hiddenSize = hiddenSize
        self.intermediateSize = intermediateSize
        self.attentionHeadCount = attentionHeadCount
        self.keyValueHeadCount = keyValueHeadCount
        self.headDim = headDim
        self.vocabularySize = vocabularySize
        self.contextLength = contextLength
        self.rmsNormEpsilon = rmsNormEpsilon
        self.ropeTheta = ropeTheta
        self.rotaryPairing = rotaryPairing
    }
}

/// The linear modules of a decoder layer, in the order in which a layer uses them.
package enum LinearModule: Int, CaseIterable, Hashable, Sendable {
    case query, key, value, output, gate, up, down

    /// Hugging Face's name within the layer.
    package var path: String {
        switch self {
        case .query: "self_attn.q_proj"
        case .key: "self_attn.k_proj"
        case .value: "self_attn.v_proj"
        case .output: "self_attn.o_proj"
        case .gate: "mlp.gate_proj"
        case .up: "mlp.up_proj"
        case .down: "mlp.down_proj"
        }
    }

    /// The last part of `path`: what `lora_target_modules` usually lists.
    package var name: String { String(path.split(separator: ".").last!) }

    /// GGUF's name within `blk.N`.
    package var ggufName: String {
        switch self {
        case .query: "attn_q"
        case .key: "attn_k"
        case .value: "attn_v"
        case .output: "attn_output"
        case .gate: "ffn_gate"
        case .up: "ffn_up"
        case .down: "ffn_down"
        }
    }

    /// The others are the attention's, and come before.
    package var isOfMLP: Bool { self == .gate || self == .up || self == .down }

    package func inFeatures(_ spec: DecoderSpec) -> Int {
        switch self {
        case .query, .key, .value, .gate, .up: spec.hiddenSize
        case .output: spec.queryWidth
        case .down: spec.intermediateSize
        }
    }

    package func outFeatures(_ spec: DecoderSpec) -> Int {
        switch self {
        case .query: spec.queryWidth
        case .key, .value: spec.keyValueWidth
        case .output, .down: spec.hiddenSize
        case .gate, .up: spec.intermediateSize
        }
    }
}

/// One linear of one layer.
package struct ModuleID: Hashable, Sendable {
    package let layer: Int
    package let module: LinearModule
    package init(layer: Int, module: LinearModule) {
        self.layer = layer
        self.module = module
    }

    /// `model.layers.3.self_attn.q_proj`, as in Hugging Face's model and so in PEFT's files.
    package var path: String { "model.layers.\(layer).\(module.path)" }
    /// `blk.3.attn_q.weight`.
    package var ggufName: String { "blk.\(layer).\(module.ggufName).weight" }
}
