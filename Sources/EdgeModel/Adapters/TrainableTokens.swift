// Trainable tokens (peft `TrainableTokensConfig`): the embeddings of some tokens are trained themselves, all others stay the base's. Where
// the head is the embedding, a token's row is trained in both, as PEFT does (TokenRows.swift computes with them).
import EdgeFormats

package struct TrainableTokens: AdapterMethod {
    package let name = "trainable-tokens"
    package let peftType = "TRAINABLE_TOKENS"
    package let configKeys = AdapterConfigKeys(rank: nil, alpha: nil, dropout: nil)
    /// In the order of the rows on file.
    package let trainedTokens: [TokenID]

    package init(_ tokens: [TokenID] = []) { trainedTokens = tokens }

    /// What a job can have.
    package static let counts = 1...4096
    package static let tensorName = "trainable_tokens_delta"
    package static let embeddingPath = "model.embed_tokens", headPath = "lm_head"

    package var adaptsLinears: Bool { false }
    package var hasLayers: Bool { false }
    package var changesWeightsOnly: Bool { false }
    package var canBeWeights: Bool { true }
    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] { [] }
    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { 0 }

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        [
            .init("init_weights", .bool(true)), .init("target_modules", .string(Self.embeddingPath)),
            .init("token_indices", .array(trainedTokens.map { .number("\($0)") })),
        ]
    }

    package func configured(by config: JSONText) throws -> any AdapterMethod {
        guard let tokens = Self.tokens(config["token_indices"] ?? .null) else { throw AdapterSettingError(key: "token_indices") }
        return TrainableTokens(tokens)
    }

    /// Different ones; nil: it is no list of these.
    package static func tokens(_ value: JSONText) -> [TokenID]? {
        let listed = value.array ?? []
        let tokens = listed.compactMap { value -> TokenID? in
            guard let number = value.integer, number >= 0 else { return nil }
            return TokenID(exactly: number)
        }
        return counts.contains(listed.count) && Set(tokens).count == listed.count ? tokens : nil
    }

    package func parts(_ model: DecoderSpec, _ spec: AdapterSpec) -> [AdapterPart] {
        [Self.part(trainedTokens, model, name: Self.tensorName)]
    }

    static func part(_ tokens: [TokenID], _ model: DecoderSpec, name: String) -> AdapterPart {
        let matrix = AdapterMatrix(name: name, rows: tokens.count, columns: model.hiddenSize, start: .measured)
        return AdapterPart(.tokens, layer: nil, [.init(matrix, path: embeddingPath)])
    }

    package func checkTargets(_ model: DecoderSpec, _ spec: AdapterSpec) throws { try Self.check(trainedTokens, model) }

    /// - Throws: `AdapterTargetError`.
    static func check(_ tokens: [TokenID], _ model: DecoderSpec) throws {
        guard let token = tokens.first(where: { !(0..<model.vocabularySize).contains(Int($0)) }) else { return }
        throw AdapterTargetError.tokenOutOfRange(Int(token), vocabularySize: model.vocabularySize)
    }
}
