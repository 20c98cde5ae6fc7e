// A decoder-only transformer as data: sizes, constants, and which of the field's variations it has. What differs between
// families is a value here, never a branch on a family's name.
import EdgeTensor

package struct DecoderSpec: Equatable, Sendable {
    /// What the model calls itself: `general.architecture` of a GGUF file ("llama"), or `model_type` of a config.json.
    package var architecture: String
    /// `general.architecture` of its GGUF files.
    package var ggufArchitecture: String
    /// llama.cpp's converter permutes the rows of q and k.
    package var ggufInterleavesPairs = false
    package var layerCount: Int
    package var hiddenSize: Int
    package var intermediateSize: Int
    package var attentionHeadCount: Int
    package var keyValueHeadCount: Int
    package var headDim: Int
    package var vocabularySize: Int
    /// Longest sequence that the model was made for, in tokens.
    package var contextLength: Int

    package var normKind = NormKind.rootMeanSquare(weightOffset: 0)
    package var normEpsilon: Float
    /// What is added to the weights of norms as Hugging Face's files have them, and so PEFT's.
    package var hubNormOffset: Float = 0
    /// Attention and MLP read the layer's input through a norm.
    package var hasInputNorms = true
    /// What attention and MLP add to the residual goes through a norm first.
    package var hasOutputNorms = false
    package var headNorm = HeadNorm.none
    package var activation = Activation.swiglu
    /// Linears that add a bias.
    package var biases: Set<LinearModule> = []
    /// Linears that are one matrix in the model's files, and so one to an adapter.
    package var fusion = Fusion.none

    package var rotaryPairing = RotaryPairing.halves
    /// The kinds of position embedding that layers have.
    package var rotaries: [RotarySpec]
    /// `[layerCount]`.
    package var layerKinds: [LayerKind]
    /// What attention scores are multiplied by.
    package var attentionScale: Float
    /// Soft cap of attention scores, and of logits; nil: none.
    package var attentionCap: Float?
    package var logitCap: Float?
    package var embeddingScale: Float = 1
    /// What attention and MLP add to the residual is multiplied by.
    package var residualScale: Float = 1
    package var logitScale: Float = 1
    /// The head is the embedding; nil, until the file is opened: where that has no head of its own.
    package var tiesEmbeddings: Bool?

    package var queryWidth: Int { attentionHeadCount * headDim }
    package var keyValueWidth: Int { keyValueHeadCount * headDim }
    /// What attention and MLP add is changed before it is added, so it exists by itself.
    package var hasOwnOutputs: Bool { hasOutputNorms || residualScale != 1 }

    /// Llama's variations; set others afterwards. Every layer sees all tokens and is rotated alike.
    package init(
        architecture: String, layerCount: Int, hiddenSize: Int, intermediateSize: Int, attentionHeadCount: Int,
        keyValueHeadCount: Int, headDim: Int, vocabularySize: Int, contextLength: Int, normEpsilon: Float, rotary: RotarySpec
    ) {
        self.architecture = architecture
        ggufArchitecture = architecture
        self.layerCount = layerCount
        self.hiddenSize = hiddenSize
        self.intermediateSize = intermediateSize
        self.attentionHeadCount = attentionHeadCount
        self.keyValueHeadCount = keyValueHeadCount
        self.headDim = headDim
        self.vocabularySize = vocabularySize
        self.contextLength = contextLength
        self.normEpsilon = normEpsilon
        rotaries = [rotary]
        layerKinds = [LayerKind](repeating: LayerKind(rotary: 0, window: nil), count: layerCount)
        attentionScale = 1 / Float(headDim).squareRoot()
    }
}

/// What layers of one model differ in.
package struct LayerKind: Equatable, Sendable {
    /// Index in `rotaries`; nil: queries and keys are not rotated.
    package var rotary: Int?
    /// Keys that a query sees, its own included; nil: all before it.
    package var window: Int?
}

/// Root-mean-square norms of queries and keys, before they are rotated.
package enum HeadNorm: Equatable, Sendable {
    case none
    /// One of `headDim` weights, used by every head.
    case perHead
    /// Over all heads together.
    case fullWidth
}

package enum Fusion: Equatable, Sendable {
    case none
    /// q, k and v are rows of one matrix, gate and up of another.
    case queryKeyValueAndGateUp
}

/// The linear products of a decoder layer, in the order in which a layer does them.
package enum LinearModule: Int, CaseIterable, Hashable, Sendable {
    case query, key, value, output, gate, up, down

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

/// A linear as the model's files, and so PEFT's, have it: mostly one product, in fused models several.
package struct LinearGroup: Equatable, Sendable {
    /// Hugging Face's name within the layer: "self_attn.q_proj".
    package let path: String
    /// GGUF's within `blk.N`: "attn_q".
    package let ggufName: String
    /// Its rows, one after the other.
    package let parts: [LinearModule]

    /// The last part of `path`: what `lora_target_modules` usually lists.
    package var name: String { String(path.split(separator: ".").last!) }
    /// The first part stands for the group.
    package var leader: LinearModule { parts[0] }

    package func inFeatures(_ spec: DecoderSpec) -> Int { leader.inFeatures(spec) }
    package func outFeatures(_ spec: DecoderSpec) -> Int { parts.reduce(0) { $0 + $1.outFeatures(spec) } }

    /// Rows of `part` in the group's matrix.
    package func rows(of part: LinearModule, _ spec: DecoderSpec) -> Range<Int> {
        let first = parts.prefix { $0 != part }.reduce(0) { $0 + $1.outFeatures(spec) }
        return first..<first + part.outFeatures(spec)
    }
}

extension DecoderSpec {
    /// The linears of a layer, in its order.
    package var linears: [LinearGroup] {
        func single(_ module: LinearModule, _ path: String, _ ggufName: String) -> LinearGroup {
            LinearGroup(path: path, ggufName: ggufName, parts: [module])
        }
        let output = single(.output, "self_attn.o_proj", "attn_output"), down = single(.down, "mlp.down_proj", "ffn_down")
        return switch fusion {
        case .none:
            [
                single(.query, "self_attn.q_proj", "attn_q"), single(.key, "self_attn.k_proj", "attn_k"),
                single(.value, "self_attn.v_proj", "attn_v"), output, single(.gate, "mlp.gate_proj", "ffn_gate"),
                single(.up, "mlp.up_proj", "ffn_up"), down,
            ]
        case .queryKeyValueAndGateUp:
            [
                LinearGroup(path: "self_attn.qkv_proj", ggufName: "attn_qkv", parts: [.query, .key, .value]), output,
                LinearGroup(path: "mlp.gate_up_proj", ggufName: "ffn_up", parts: [.gate, .up]), down,
            ]
        }
    }

    /// The linear that does `module`.
    package func linear(doing module: LinearModule) -> LinearGroup { linears.first { $0.parts.contains(module) }! }
}

/// One linear of one layer.
package struct ModuleID: Hashable, Comparable, Sendable {
    package let layer: Int
    /// The leader of its group.
    package let module: LinearModule
    package init(layer: Int, module: LinearModule) {
        self.layer = layer
        self.module = module
    }

    /// `model.layers.3.self_attn.q_proj`, as in Hugging Face's model and so in PEFT's files.
    package func path(_ spec: DecoderSpec) -> String { "model.layers.\(layer).\(spec.linear(doing: module).path)" }
    /// `blk.3.attn_q.weight`.
    package func ggufName(_ spec: DecoderSpec) -> String { "blk.\(layer).\(spec.linear(doing: module).ggufName).weight" }
    package func inFeatures(_ spec: DecoderSpec) -> Int { module.inFeatures(spec) }
    package func outFeatures(_ spec: DecoderSpec) -> Int { spec.linear(doing: module).outFeatures(spec) }

    /// By layer, and then in the layer's order.
    package static func < (a: ModuleID, b: ModuleID) -> Bool { (a.layer, a.module.rawValue) < (b.layer, b.module.rawValue) }
}
