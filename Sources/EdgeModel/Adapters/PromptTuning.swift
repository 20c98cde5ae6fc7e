// Prompt tuning (arXiv:2104.08691): embeddings of tokens that there are not, before each sample's own.
import EdgeFormats

package struct PromptTuning: VirtualTokenMethod {
    package let name = "prompt-tuning"
    package let peftType = "PROMPT_TUNING"
    package let start: VirtualTokenStart

    package init(_ start: VirtualTokenStart = .samples) { self.start = start }

    package func promptTokens(_ spec: AdapterSpec) -> Int { spec.rank }

    package var ownMembers: [JSONText.Member] {
        [
            .init("prompt_tuning_init", .string("RANDOM")), .init("prompt_tuning_init_text", .null), .init("tokenizer_kwargs", .null),
            .init("tokenizer_name_or_path", .null),
        ]
    }

    package func virtualTokenSizes(_ model: DecoderSpec) -> VirtualTokenSizes? {
        VirtualTokenSizes(tokenDim: model.hiddenSize, heads: model.attentionHeadCount, layers: model.layerCount)
    }

    package func parts(_ model: DecoderSpec, _ spec: AdapterSpec) -> [AdapterPart] {
        [AdapterPart(.prompt, layer: nil, [.init(rows(spec, columns: model.hiddenSize))])]
    }
}
