// MixLoRA (arXiv:2404.15159): the MLP becomes a sparse mixture of experts, each of which is the frozen MLP with a LoRA of its own on gate,
// up and down; a router chooses a few for each token. The attention has plain LoRA. Files are TUDB-Labs/MixLoRA's, whose keys these are.
//
//   p = softmax(x·W_rᵀ)     w_e = p_e / Σ of the chosen     y = Σ over the chosen w_e · MLP_e(x)
//
// To the loss comes a balance, as in Switch (arXiv:2101.03961 §2.2) and over all chosen experts as in its program: of each layer and sample
// N · Σ F_e · P_e, with F_e the expert's share of the tokens and P_e its mean probability, times a coefficient; the mean over layers and
// the step's samples, so that it does not depend on how samples are packed.
import EdgeFormats
import EdgeTensor

package struct MixLoRA: AdapterMethod {
    package let name = "mixlora"
    package let peftType = "MIXLORA"
    package let configKeys = AdapterConfigKeys(rank: "r", alpha: "lora_alpha", dropout: nil)
    /// Its files have no layers.
    package let hasLayers = false
    package let changesWeightsOnly = false
    package let isPEFTs = false
    package let defaultRank = 8
    package func defaultAlpha(rank: Int) -> Double { 2 * Double(rank) }

    package let experts: Int
    /// Of a token.
    package let chosen: Int
    /// What the balance weighs in the loss.
    package let balance: Double

    package static let defaultExperts = 8, defaultChosen = 2, defaultBalance = 0.01
    package static let mostExperts = 64
    /// Of the router's start.
    private static let routerDeviation: Float = 0.02

    package init(experts: Int = defaultExperts, chosen: Int = defaultChosen, balance: Double = defaultBalance) {
        precondition((1...experts).contains(chosen))
        self.experts = experts
        self.chosen = chosen
        self.balance = balance
    }

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        [
            .init("bias", .string("none")),
            // The program that has the format wants one above 0, and uses it in training only.
            .init("lora_dropout", .number("0.05")),
            .init("num_experts", .number("\(experts)")), .init("router_aux_loss_coef", .number("\(balance)")),
            .init("router_init_range", .number("\(Self.routerDeviation)")), .init("routing_strategy", .string("mixlora")),
            .init("top_k", .number("\(chosen)")),
        ]
    }

    package func configured(by config: JSONText) throws -> any AdapterMethod {
        guard config["routing_strategy"]?.string == "mixlora" else { throw AdapterSettingError(key: "routing_strategy") }
        guard let experts = config["num_experts"]?.integer, (1...Self.mostExperts).contains(experts) else {
            throw AdapterSettingError(key: "num_experts")
        }
        let chosen = config["top_k"]?.integer ?? Self.defaultChosen
        guard (1...experts).contains(chosen) else { throw AdapterSettingError(key: "top_k") }
        let balance = config["router_aux_loss_coef"]?.double ?? Self.defaultBalance
        guard balance >= 0, balance.isFinite else { throw AdapterSettingError(key: "router_aux_loss_coef") }
        // Experts of other ranks than the attention's, or of another kind.
        for key in ["expert_lora", "act_fn", "jitter_noise", "use_dora", "use_rslora"] {
            guard config[key].map({ $0 == .null || $0 == .bool(false) || $0.double == 0 }) ?? true else { throw AdapterSettingError(key: key) }
        }
        return MixLoRA(experts: experts, chosen: chosen, balance: balance)
    }

    /// Of the attention's linears.
    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] { AdapterMethods.lora.matrices(linear, spec) }
    package var storedFactors: (a: Int, b: Int)? { (0, 1) }
    package func adapts(_ module: LinearModule) -> Bool { !module.isOfMLP }
    package func fileKey(_ modulePath: String, _ matrix: AdapterMatrix) -> String? {
        "mixlora.\(modulePath.dropFirst("model.".utf8.count)).\(matrix.name)"
    }

    package var mixture: ExpertMixture? { ExpertMixture(experts: experts, chosen: chosen, balance: Float(balance)) }

    /// Of each adapted layer: the router, and then of every expert A and B of each linear of the MLP.
    package func parts(_ model: DecoderSpec, _ spec: AdapterSpec) -> [AdapterPart] {
        let linears = model.linears.filter(\.leader.isOfMLP)
        return (0..<model.layerCount).filter { spec.layers?.contains($0) ?? true }.map { layer in
            let prefix = "mixlora.layers.\(layer).mlp."
            let router = AdapterMatrix(
                name: prefix + "moe_gate.weight", rows: experts, columns: model.hiddenSize, start: .normal(deviation: Self.routerDeviation))
            let ofExperts = (0..<experts).flatMap { expert in
                linears.flatMap { linear in
                    let name = prefix + "\(linear.name).experts.\(expert).", inFeatures = linear.leader.inFeatures(model)
                    return [
                        AdapterMatrix(
                            name: name + "lora_A.weight", rows: spec.rank, columns: inFeatures, start: AdapterMatrix.kaiming(columns: inFeatures)),
                        AdapterMatrix(
                            name: name + "lora_B.weight", rows: linear.outFeatures(model), columns: spec.rank, start: .constant(0)),
                    ]
                }
            }
            return AdapterPart(.experts, layer: layer, ([router] + ofExperts).map { AdapterPart.Stored($0) })
        }
    }
}

/// How the MLP's tokens are parted among experts.
package struct ExpertMixture: Equatable, Sendable {
    package let experts: Int
    package let chosen: Int
    package let balance: Float
}
