// Prompt tuning (arXiv:2104.08691): embeddings of tokens that there are not, before each sample's own.
import EdgeFormats

/// What virtual tokens begin as.
package enum VirtualTokenStart: String, Equatable, Sendable, CaseIterable {
    /// What the model makes of the first tokens of the training samples: near what it knows.
    case samples
    /// Normal, of deviation 1: PEFT's.
    case random

    var matrixStart: AdapterMatrix.Start { self == .samples ? .measured : .normal(deviation: 1) }
}

package struct PromptTuning: AdapterMethod {
    package let name = "prompt-tuning"
    package let peftType = "PROMPT_TUNING"
    package let configKeys = AdapterConfigKeys(rank: "num_virtual_tokens", alpha: nil, dropout: nil)
    let start: VirtualTokenStart

    package init(_ start: VirtualTokenStart = .samples) { self.start = start }

    package var defaultRank: Int { 20 }
    package let rankWord = "virtual tokens"
    package var asOnFile: any AdapterMethod { PromptTuning() }
    package var adaptsLinears: Bool { false }
    package var hasLayers: Bool { false }
    package var changesWeightsOnly: Bool { false }
    package var beginsAsBase: Bool { false }
    package var virtualTokenStart: VirtualTokenStart? { start }
    package func promptTokens(_ spec: AdapterSpec) -> Int { spec.rank }
    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] { [] }
    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { 0 }

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        (values.virtualTokens?.configMembers ?? []) + [
            .init("prompt_tuning_init", .string("RANDOM")), .init("prompt_tuning_init_text", .null), .init("tokenizer_kwargs", .null),
            .init("tokenizer_name_or_path", .null),
        ]
    }

    package func virtualTokenSizes(_ model: DecoderSpec) -> VirtualTokenSizes? {
        VirtualTokenSizes(tokenDim: model.hiddenSize, heads: model.attentionHeadCount, layers: model.layerCount)
    }

    package func configured(by config: JSONText) throws -> any AdapterMethod {
        guard config["num_transformer_submodules"]?.integer ?? 1 == 1 else { throw AdapterSettingError(key: "num_transformer_submodules") }
        return self
    }

    package func parts(_ model: DecoderSpec, _ spec: AdapterSpec) -> [AdapterPart] {
        let matrix = AdapterMatrix(name: "prompt_embeddings", rows: spec.rank, columns: model.hiddenSize, start: start.matrixStart)
        return [AdapterPart(.prompt, layer: nil, [.init(matrix)])]
    }
}
