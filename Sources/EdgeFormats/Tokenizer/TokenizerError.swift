// Why a tokenizer cannot be made or used. Texts are made here, once.

package enum TokenizerError: Error, Equatable {
    /// More tokens than a vocabulary may have, or none at all.
    case vocabularySize(Int)
    /// Of a GGUF's array that has an entry per token.
    case entryCount(key: String, tokens: Int, entries: Int)
    case unknownTokenType(token: Int, type: Int32)
    /// `<0x0A>`-style tokens belong to SentencePiece vocabularies, not to a byte-level one.
    case byteTokenInByteLevelVocabulary(token: Int)
    case unknownPreTokenizer(String, supported: [String])
    /// GGUF's `tokenizer.ggml.model`, or the type of a tokenizer.json's model.
    case unsupportedModel(String, supported: [String])
    /// `rank` counts merges from zero. `missing` is the part that is no token.
    case mergeNotInVocabulary(rank: Int, merge: String, missing: String)
    case malformedMerge(rank: Int, merge: String)
    case specialTokenOutOfRange(role: String, id: Int, vocabularySize: Int)
    /// A token named in tokenizer_config.json that tokenizer.json does not hold.
    case specialTokenNotInVocabulary(role: String, token: String)
    case tokenOutOfRange(id: TokenID, vocabularySize: Int)
    case tokenTooLong(id: Int, bytes: Int, limit: Int)
    case duplicateToken(String, ids: [Int])
    /// A unigram model can meet text that no token covers.
    case missingUnknownToken
    case scoreNotFinite(token: Int)
    case malformedCharacterMap(bytes: Int, trieBytes: Int)
    /// A value of a tokenizer.json that is missing or of the wrong kind.
    case malformed(String, expected: String)
    /// A part of a tokenizer.json: `stage` is "normalizer", "pre_tokenizer"…; `what` names it with what matters of it.
    case unsupported(stage: String, what: String, nearest: String)
}

extension TokenizerError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .vocabularySize(let count):
            "the vocabulary has \(count) tokens; between 1 and \(TokenizerSpec.mostTokens) are possible"
        case .entryCount(let key, let tokens, let entries):
            "the vocabulary has \(tokens) tokens but \(key) \(entries) entries"
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
        case .specialTokenNotInVocabulary(let role, let token):
            "the \(role) token is \"\(token)\", which tokenizer.json does not hold"
        case .tokenOutOfRange(let id, let vocabularySize):
            "token \(id) is outside the vocabulary of \(vocabularySize) tokens"
        case .tokenTooLong(let id, let bytes, let limit):
            "token \(id) has \(bytes) bytes; a token that is looked for in text has at most \(limit)"
        case .duplicateToken(let token, let ids):
            "\"\(token)\" is token \(ids.map(String.init).joined(separator: " and "))"
        case .missingUnknownToken:
            "the unigram model has no unknown token (unk_id)"
        case .scoreNotFinite(let token):
            "token \(token) has a score that is no finite number"
        case .malformedCharacterMap(let bytes, let trieBytes):
            "the compiled normalizer's trie of \(trieBytes) bytes does not fit its \(bytes) bytes"
        case .malformed(let path, let expected):
            "tokenizer.json: \(path) is not \(expected)"
        case .unsupported(let stage, let what, let nearest):
            "tokenizer.json: the \(stage) \(what) is not supported; the nearest that is: \(nearest)"
        }
    }
}
