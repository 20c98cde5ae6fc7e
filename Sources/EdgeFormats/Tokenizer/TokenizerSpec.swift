// What a tokenizer is made from, as plain values: the vocabulary, the merges and the model's special tokens.
// Nothing here knows where the values come from; `TokenizerSpec+GGUF.swift` reads them from a model's header.
// `Tokenizer.init` is what checks them.

/// A position in the model's vocabulary: the row of its embedding matrix.
package typealias TokenID = Int32

package struct TokenizerSpec: Sendable {
    /// Per token id, the token as it is stored: ordinary tokens in GPT-2's byte alphabet as UTF-8 ("Ġthe"), control
    /// and user-defined tokens as their own text.
    package var tokens: [[UInt8]]
    /// "left right" in the byte alphabet, best merge first.
    package var merges: [String]
    /// Per token id, a `TokenKind.rawValue`.
    package var tokenTypes: [Int32]
    /// The name in `PreTokenizer.all`: GGUF's `tokenizer.ggml.pre`.
    package var preTokenizer: String
    package var bosTokenID: Int?
    package var eosTokenID: Int?
    package var paddingTokenID: Int?
    package var unknownTokenID: Int?
    /// Plain text starts with the BOS token. Chat templates write their own.
    package var addBOS: Bool
    /// Every stretch of text between special tokens starts with a space, as `ByteLevel(add_prefix_space)` does.
    package var addSpacePrefix: Bool

    package init(
        tokens: [[UInt8]], merges: [String], tokenTypes: [Int32], preTokenizer: String,
        bosTokenID: Int? = nil, eosTokenID: Int? = nil, paddingTokenID: Int? = nil, unknownTokenID: Int? = nil,
        addBOS: Bool = false, addSpacePrefix: Bool = false
    ) {
        self.tokens = tokens
        self.merges = merges
        self.tokenTypes = tokenTypes
        self.preTokenizer = preTokenizer
        self.bosTokenID = bosTokenID
        self.eosTokenID = eosTokenID
        self.paddingTokenID = paddingTokenID
        self.unknownTokenID = unknownTokenID
        self.addBOS = addBOS
        self.addSpacePrefix = addSpacePrefix
    }
}

/// `tokenizer.ggml.token_type` (llama.cpp, `enum llama_token_type`).
package enum TokenKind: Int32, Sendable {
    case normal = 1
    case unknown = 2
    case control = 3
    case userDefined = 4
    case unused = 5
    case byte = 6
}

package enum TokenizerError: Error, Equatable {
    /// More tokens than a `TokenID` names, or none at all.
    case vocabularySize(Int)
    case tokenTypeCount(tokens: Int, tokenTypes: Int)
    case unknownTokenType(token: Int, type: Int32)
    /// `<0x0A>`-style tokens belong to SentencePiece vocabularies, not to a byte-level one.
    case byteTokenInByteLevelVocabulary(token: Int)
    case unknownPreTokenizer(String, supported: [String])
    /// GGUF's `tokenizer.ggml.model`; "gpt2" is byte-level BPE.
    case unsupportedModel(String, supported: [String])
    /// `rank` counts merges from zero. `missing` is the part that is no token.
    case mergeNotInVocabulary(rank: Int, merge: String, missing: String)
    case malformedMerge(rank: Int, merge: String)
    case specialTokenOutOfRange(role: String, id: Int, vocabularySize: Int)
    case tokenOutOfRange(id: TokenID, vocabularySize: Int)
}

extension TokenizerError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .vocabularySize(let count):
            "the vocabulary has \(count) tokens; between 1 and \(Int32.max) are possible"
        case .tokenTypeCount(let tokens, let tokenTypes):
            "the vocabulary has \(tokens) tokens but \(tokenTypes) token types"
        case .unknownTokenType(let token, let type):
            "token \(token) has type \(type); known types are 1 to 6"
        case .byteTokenInByteLevelVocabulary(let token):
            "token \(token) is a SentencePiece byte token, in a byte-level vocabulary"
        case .unknownPreTokenizer(let name, let supported):
            "pre-tokenizer \"\(name)\" is not supported; supported: \(supported.joined(separator: ", "))"
        case .unsupportedModel(let name, let supported):
            "tokenizer model \"\(name)\" is not supported; supported: \(supported.joined(separator: ", "))"
        case .mergeNotInVocabulary(let rank, let merge, let missing):
            "merge \(rank) (\"\(merge)\") needs \"\(missing)\", which is no token"
        case .malformedMerge(let rank, let merge):
            "merge \(rank) (\"\(merge)\") is not two tokens separated by one space"
        case .specialTokenOutOfRange(let role, let id, let vocabularySize):
            "the \(role) token is \(id), but the vocabulary has \(vocabularySize) tokens"
        case .tokenOutOfRange(let id, let vocabularySize):
            "token \(id) is outside the vocabulary of \(vocabularySize) tokens"
        }
    }
}
