// Prefix tuning (arXiv:2101.00190) in P-tuning v2's form (arXiv:2110.07602): keys and values that every sample sees before its own, in
// every layer, trained as they are. What makes them of fewer numbers by an MLP while training is left out, as it is from the files.
import EdgeFormats

package struct PrefixTuning: VirtualTokenMethod {
    package let name = "prefix-tuning"
    package let peftType = "PREFIX_TUNING"
    package let start: VirtualTokenStart

    package init(_ start: VirtualTokenStart = .samples) { self.start = start }

    package func prefixTokens(_ spec: AdapterSpec) -> Int { spec.rank }

    package var ownMembers: [JSONText.Member] {
        [.init("encoder_hidden_size", .null), .init("init_weights", .null), .init("prefix_projection", .bool(false))]
    }

    package func virtualTokenSizes(_ model: DecoderSpec) -> VirtualTokenSizes? {
        VirtualTokenSizes(tokenDim: model.keyValueWidth, heads: model.keyValueHeadCount, layers: model.layerCount)
    }

    package func parts(_ model: DecoderSpec, _ spec: AdapterSpec) -> [AdapterPart] {
        Self.parts(model, rows(spec, columns: model.keyValueWidth))
    }

    /// Of one tensor, whose row is a token's key and value of each layer.
    ///
    /// - Parameter matrix: `[tokens, keyValueWidth]`: as each of the keys' and the values' is.
    static func parts(_ model: DecoderSpec, _ matrix: AdapterMatrix) -> [AdapterPart] {
        let width = model.keyValueWidth
        return (0..<model.layerCount).map { layer in
            AdapterPart(
                .prefix, layer: layer,
                [0, 1].map { value in
                    let first = (2 * layer + value) * width
                    return .init(
                        matrix, columns: first..<first + width, of: 2 * model.layerCount * width,
                        columnOrder: value == 0 ? model.rowOrder(.key) : nil)
                })
        }
    }
}
