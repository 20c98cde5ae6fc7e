// Ladder side-tuning (arXiv:2206.06522) of a decoder: a small network beside the frozen layers, and no backward through those. Of the base's
// hidden states, h_0 the embeddings and h_i what layer i gives,
//
//   s_0 = h_0·D_0ᵀ     x_i = μ_i·s_(i-1) + (1 - μ_i)·h_i·D_iᵀ     s_i = block_i(x_i)     μ_i = σ(a_i / T)
//
// and the model's last norm reads h_L + s_L·Uᵀ. U begins as zero, so a job begins as its base. A block is alike for every family:
//
//   m = x + attention(norm(x)·Wqkvᵀ)·Woᵀ     n = norm(m)     block(x) = m + (silu(n·Wgᵀ) ⊙ n·Wuᵀ)·Wdᵀ
//
// SideNetwork.swift computes with it. The paper's blocks are a pruned copy of the base's: here they begin as random, since the base has its weights
// in 4 bits.
import EdgeFormats
import EdgeTensor

package struct LadderSideTuning: AdapterMethod {
    package let name = "lst"
    package let peftType = "LST"
    package let configKeys = AdapterConfigKeys(rank: nil, alpha: nil, dropout: nil)
    package let adaptsLinears = false
    package let changesWeightsOnly = false
    package let isPEFTs = false
    /// The hidden size over the side network's.
    package let reductionFactor: Int

    /// The paper's.
    package static let defaultReductionFactor = 8
    package static let reductionFactors = 1...65536
    /// T of the gates (§3.2 there).
    static let temperature: Float = 0.1

    package init(reductionFactor: Int = defaultReductionFactor) {
        precondition(Self.reductionFactors.contains(reductionFactor))
        self.reductionFactor = reductionFactor
    }

    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] { [] }
    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { 0 }

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        [.init("gate_temperature", .number("\(Self.temperature)")), .init("reduction_factor", .number("\(reductionFactor)"))]
    }

    package func configured(by config: JSONText) throws -> any AdapterMethod {
        guard config["gate_temperature"]?.double.map({ Float($0) == Self.temperature }) ?? true else {
            throw AdapterSettingError(key: "gate_temperature")
        }
        guard let factor = config["reduction_factor"]?.integer, Self.reductionFactors.contains(factor) else {
            throw AdapterSettingError(key: "reduction_factor")
        }
        return LadderSideTuning(reductionFactor: factor)
    }

    package func checkTargets(_ model: DecoderSpec, _ spec: AdapterSpec) throws {
        let hidden = model.hiddenSize
        guard hidden % reductionFactor != 0 else { return }
        throw AdapterTargetError.badReductionFactor(
            reductionFactor, hiddenSize: hidden, allowed: (1...hidden).filter { hidden % $0 == 0 })
    }

    package func side(_ model: DecoderSpec) -> SideShape? {
        SideShape(
            width: max(1, model.hiddenSize / reductionFactor), headCount: max(1, model.attentionHeadCount / reductionFactor),
            headDim: model.headDim, intermediateSize: max(1, model.intermediateSize / reductionFactor))
    }

    /// Of a layer: a, D, and the block in its order; of the model D_0 and U.
    package func parts(_ model: DecoderSpec, _ spec: AdapterSpec) -> [AdapterPart] {
        guard let side = side(model) else { return [] }
        func matrix(_ name: String, _ rows: Int, _ columns: Int, _ start: AdapterMatrix.Start? = nil) -> AdapterPart.Stored {
            .init(AdapterMatrix(name: "lst.\(name).weight", rows: rows, columns: columns, start: start ?? AdapterMatrix.kaiming(columns: columns)))
        }
        func vector(_ name: String, _ count: Int, _ start: Float) -> AdapterPart.Stored {
            .init(AdapterMatrix(name: "lst.\(name)", rows: 1, columns: count, isVector: true, start: .constant(start)))
        }
        let (hidden, width, heads, intermediate) = (model.hiddenSize, side.width, side.queryWidth, side.intermediateSize)
        let ofLayers = (0..<model.layerCount).map { layer in
            let path = "layers.\(layer)"
            return AdapterPart(
                .side, layer: layer,
                [
                    vector(path + ".gate", 1, 0), matrix(path + ".downsample", width, hidden),
                    vector(path + ".input_layernorm.weight", width, 1), matrix(path + ".self_attn.q_proj", heads, width),
                    matrix(path + ".self_attn.k_proj", heads, width), matrix(path + ".self_attn.v_proj", heads, width),
                    matrix(path + ".self_attn.o_proj", width, heads), vector(path + ".post_attention_layernorm.weight", width, 1),
                    matrix(path + ".mlp.gate_proj", intermediate, width), matrix(path + ".mlp.up_proj", intermediate, width),
                    matrix(path + ".mlp.down_proj", width, intermediate),
                ])
        }
        return ofLayers + [
            AdapterPart(.side, layer: nil, [matrix("downsample", width, hidden), matrix("upsample", hidden, width, .constant(0))])
        ]
    }
}

/// Sizes of a side network. Its heads have the base's size and are fewer: so the base's tables of rotations serve, whatever the factor is, and
/// products of heads stay as long as kernels want them; of a head of a few elements a rotation would have next to no frequencies.
package struct SideShape: Equatable, Sendable {
    package let width: Int
    package let headCount: Int
    package let headDim: Int
    package let intermediateSize: Int
    package var queryWidth: Int { headCount * headDim }
}
