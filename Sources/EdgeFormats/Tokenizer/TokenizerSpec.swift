// What a tokenizer is made from, as plain values: the vocabulary, the model over it, and what happens to text before
// and to tokens after. Nothing here knows where the values come from; `TokenizerSpec+GGUF.swift` reads them from a
// model's header, `TokenizerSpec+JSON.swift` from a tokenizer.json. The stages are those of huggingface/tokenizers:
//
//     text -> added tokens -> normalizers -> added tokens that match normalized text -> splits -> model -> decoders

/// A position in the model's vocabulary: the row of its embedding matrix.
package typealias TokenID = Int32

package struct TokenizerSpec: Sendable {
    /// Per id the token as it is stored; empty where no token has the id.
    package var tokens: [[UInt8]]
    package var model: Model
    /// Ids that text becomes only as an added token: the model's own vocabulary lacks them.
    package var idsOutsideModel: Set<TokenID> = []
    package var addedTokens: [AddedToken] = []
    package var normalizers: [TextTransform] = []
    /// What a pre-tokenizer changes in the text before it cuts.
    package var preparations: [TextTransform] = []
    package var splits: [PieceSplit] = []
    package var decoders: [TokenDecoder] = []
    package var bosTokenID: Int?
    package var eosTokenID: Int?
    package var paddingTokenID: Int?
    package var unknownTokenID: Int?
    /// Plain text starts with the BOS token. Chat templates write their own.
    package var addBOS = false

    package enum Model: Sendable {
        case pairMerges(PairMergeModel)
        case unigram(UnigramModel)
    }

    package init(tokens: [[UInt8]], model: Model) {
        self.tokens = tokens
        self.model = model
    }

    /// More ids than any vocabulary has (Gemma's, the largest, has 262,144); a bound on what a file may ask for.
    package static let mostTokens = 1 << 22
    /// Bytes of the longest token that is looked for inside text; looking costs that much at a position. The longest
    /// of a real vocabulary is 512 (DeepSeek's runs of one character have 256).
    package static let longestToken = 4096
}

/// Byte-pair encoding: the pieces' symbols, merged best merge first.
package struct PairMergeModel: Sendable {
    package enum Symbols: Sendable {
        /// Bytes, stored in GPT-2's byte alphabet.
        case bytes
        /// Scalars. One that is no token becomes `<0x0A>`-style byte tokens where all of them exist and
        /// `.bytesForUnknown` says so.
        case scalars(Fallback)
    }

    package enum Fallback: Sendable {
        case none
        case bytesForUnknown
    }

    package var symbols: Symbols
    /// Best first; of two merges of the same pair the last counts.
    package var merges: [TokenMerge]
    /// Stands for a symbol that is no token; nil leaves it out.
    package var unknown: TokenID?
    /// Consecutive unknown symbols are one token.
    package var fusesUnknown = false
    /// A piece that is a token is that token, whatever its merges give (Llama 3).
    package var ignoresMerges = false

    package init(symbols: Symbols, merges: [TokenMerge]) {
        self.symbols = symbols
        self.merges = merges
    }
}

package struct TokenMerge: Sendable, Equatable {
    package let left: TokenID
    package let right: TokenID
    package let merged: TokenID
}

/// The most likely tokens of a piece (Kudo 2018, arXiv:1804.10959).
package struct UnigramModel: Sendable {
    /// Per id the logarithm of a probability.
    package var scores: [Double]
    package var unknown: TokenID?
    package var fallback: PairMergeModel.Fallback

    package init(scores: [Double], unknown: TokenID?, fallback: PairMergeModel.Fallback) {
        self.scores = scores
        self.unknown = unknown
        self.fallback = fallback
    }
}

/// A token that is found in text before any model sees it.
package struct AddedToken: Sendable, Equatable {
    package var id: TokenID
    package var content: [UInt8]
    /// Text that is to be plain text does not hold it (`SpecialTokens.asText`).
    package var isSpecial: Bool
    /// Found in normalized text, by its own normalized content.
    package var isNormalized = false
    /// Takes the white space before it.
    package var stripsLeft = false
    /// Takes the white space after it.
    package var stripsRight = false
    /// Not next to a letter, digit or underscore.
    package var isSingleWord = false

    package init(id: TokenID, content: [UInt8], isSpecial: Bool) {
        self.id = id
        self.content = content
        self.isSpecial = isSpecial
    }
}
