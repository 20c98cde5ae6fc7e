// A bottleneck adapter: two matrices with biases and a non-linearity between them, beside a layer's attention or its MLP,
//
//   h' = r + o + scaling · (f(z · Dᵀ + d) · Uᵀ + u)
//
// where r is the residual, o what attention or MLP gives to it (after its norm and the model's scale), and z one of r, o and r + o. A gate
// (SampleGate.swift) reads z, too, and multiplies what is added.
// As the adapters library has it in its decoder layers (methods/modeling.py, `pre_forward`; models/llama/modeling_llama.py).
import EdgeTensor

package struct Bottleneck: Equatable, Sendable {
    /// What it reads.
    package enum Input: Equatable, Sendable {
        /// r + o: after Pfeiffer et al. (arXiv:2005.00247).
        case sum
        /// o: after Houlsby et al. (arXiv:1902.00751).
        case output
        /// r: beside the half, after He et al. (arXiv:2110.04366).
        case residual
    }

    package var input: Input
    package var followsAttention: Bool
    package var followsMLP: Bool
    package var nonLinearity: NonLinearity
    package var scaling: Double
    /// The model's hidden size over the bottleneck's.
    package var reductionFactor: Double

    /// The library's smallest is 1, too.
    package func width(_ model: DecoderSpec) -> Int { max(1, Int((Double(model.hiddenSize) / reductionFactor).rounded(.down))) }

    package var sites: [AdapterSite] { (followsAttention ? [.afterAttention] : []) + (followsMLP ? [.afterMLP] : []) }

    /// Of a layer: D `[width, hiddenSize]`, d, U `[hiddenSize, width]` and u, in this order, and a gate's w and b. U and u are zero: it
    /// begins as the base.
    ///
    /// - Parameter path: of the module at a site, on file.
    func parts(_ model: DecoderSpec, layer: Int, isGated: Bool, path: (AdapterSite) -> String) -> [AdapterPart] {
        let hidden = model.hiddenSize, width = width(model)
        return sites.map { site in
            let name = path(site) + "."
            return AdapterPart(
                site, layer: layer,
                [
                    .init(
                        AdapterMatrix(
                            name: name + "adapter_down.0.weight", rows: width, columns: hidden, start: AdapterMatrix.kaiming(columns: hidden))),
                    .init(AdapterMatrix(name: name + "adapter_down.0.bias", rows: 1, columns: width, isVector: true, start: .constant(0))),
                    .init(AdapterMatrix(name: name + "adapter_up.weight", rows: hidden, columns: width, start: .constant(0))),
                    .init(AdapterMatrix(name: name + "adapter_up.bias", rows: 1, columns: hidden, isVector: true, start: .constant(0))),
                ] + (isGated ? AdapterMatrix.gate(name + "gate", features: hidden).map { .init($0) } : []))
        }
    }
}

/// What bottlenecks and gates need of a layer's memory: of one adapter, or of several that train together.
package struct PartMemory: Equatable, Sendable {
    /// Of the widest bottleneck, and of the widest that has a gate.
    package private(set) var width = 0
    package private(set) var gatedWidth = 0
    /// Keys of the longest prefix that has a gate.
    package private(set) var gatedPrefixTokens = 0
    /// Whether what one reads is kept for its backward: that of attention, and of the MLP.
    package private(set) var keepsAfterAttention = false
    package private(set) var keepsAfterMLP = false

    package static let none = PartMemory()
    private init() {}

    package init(_ adapters: [AdapterSpec], of model: DecoderSpec) {
        let bottlenecks = adapters.compactMap(\.method.bottleneck), gated = adapters.filter(\.method.isGated)
        width = bottlenecks.map { $0.width(model) }.max() ?? 0
        gatedWidth = gated.compactMap { $0.method.bottleneck?.width(model) }.max() ?? 0
        gatedPrefixTokens = gated.map(\.prefixTokens).max() ?? 0
        // The residual is there in any case.
        let kept = bottlenecks.filter { $0.input != .residual }
        keepsAfterAttention = kept.contains(where: \.followsAttention)
        keepsAfterMLP = kept.contains(where: \.followsMLP)
    }

    /// Without a backward.
    package var forwardOnly: PartMemory {
        var own = self
        (own.keepsAfterAttention, own.keepsAfterMLP, own.gatedWidth) = (false, false, 0)
        return own
    }
}

extension LinearModule {
    /// What comes after this product, which is the last of attention or MLP.
    var site: AdapterSite? {
        switch self {
        case .output: .afterAttention
        case .down: .afterMLP
        case .query, .key, .value, .gate, .up: nil
        }
    }
}
