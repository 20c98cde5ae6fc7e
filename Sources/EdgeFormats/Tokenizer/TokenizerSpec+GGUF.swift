// Reads a tokenizer and the chat template out of a GGUF header. The keys are llama.cpp's (gguf-py/gguf/constants.py,
// `Keys.Tokenizer`) and, in a container of an imported Hugging Face model, two of our own that hold its files verbatim;
// those are preferred. What the files of a family leave unsaid is as llama.cpp and transformers
// (integrations/gguf/gguf_tokenizer_mapping.py) fill it in.

/// `tokenizer.ggml.token_type` (llama.cpp, `enum llama_token_type`).
package enum TokenKind: Int32, Sendable {
    case normal = 1
    case unknown = 2
    case control = 3
    case userDefined = 4
    case unused = 5
    case byte = 6
}

/// The values of a GGUF's tokenizer keys.
package struct GGUFTokenizerMetadata: Sendable {
    /// `general.architecture`: Gemma's vocabularies are read their own way.
    package var architecture: String?
    /// "gpt2" is byte-level BPE, "llama" SentencePiece's BPE, "t5" its unigram model.
    package var model: String
    package var preTokenizer: String?
    package var tokens: [[UInt8]]
    /// "left right", best merge first.
    package var merges: [String]
    package var scores: [Double]
    /// A `TokenKind.rawValue` per token.
    package var tokenTypes: [Int32]
    package var characterMap: [UInt8]?
    package var bosTokenID: Int?
    package var eosTokenID: Int?
    package var paddingTokenID: Int?
    package var unknownTokenID: Int?
    package var addBOS: Bool?
    package var addSpacePrefix: Bool?
    package var removeExtraWhitespace: Bool?

    package init(model: String, preTokenizer: String?, tokens: [[UInt8]], tokenTypes: [Int32]) {
        self.model = model
        self.preTokenizer = preTokenizer
        self.tokens = tokens
        self.tokenTypes = tokenTypes
        merges = []
        scores = []
    }

    package init(_ file: GGUFFile) throws {
        func optional<Value>(_ key: String, _ read: (String) throws -> Value) throws -> Value? {
            file.metadata["tokenizer.ggml." + key] == nil ? nil : try read("tokenizer.ggml." + key)
        }
        architecture = file.metadata["general.architecture"] == nil ? nil : try file.string("general.architecture")
        model = try file.string("tokenizer.ggml.model")
        preTokenizer = try optional("pre", file.string)
        tokens = try file.stringBytesArray("tokenizer.ggml.tokens")
        merges = try optional("merges", file.stringArray) ?? []
        scores = try optional("scores", file.floatArray)?.map { Double($0) } ?? []
        // A type outside Int32 is refused with the unknown ones.
        tokenTypes = try file.integerArray("tokenizer.ggml.token_type").map { Int32(clamping: $0) }
        characterMap = try optional("precompiled_charsmap", file.integerArray)?.map { UInt8(truncatingIfNeeded: $0) }
        bosTokenID = try optional("bos_token_id", file.integer)
        eosTokenID = try optional("eos_token_id", file.integer)
        paddingTokenID = try optional("padding_token_id", file.integer)
        unknownTokenID = try optional("unknown_token_id", file.integer)
        addBOS = try optional("add_bos_token", file.bool)
        addSpacePrefix = try optional("add_space_prefix", file.bool)
        removeExtraWhitespace = try optional("remove_extra_whitespaces", file.bool)
    }
}

extension TokenizerSpec {
    /// `edgetune.tokenizer.json`, `edgetune.tokenizer_config.json`: an imported model's own files, byte for byte.
    package static let tokenizerJSONKey = "edgetune.tokenizer.json"
    package static let tokenizerConfigKey = "edgetune.tokenizer_config.json"

    package init(gguf file: GGUFFile) throws {
        guard file.metadata[Self.tokenizerJSONKey] != nil else {
            self = try Self(GGUFTokenizerMetadata(file))
            return
        }
        func text(_ key: String) throws(GGUFError) -> [UInt8]? {
            guard let value = file.metadata[key] else { return nil }
            guard let bytes = value.stringBytes else {
                throw .wrongType(key: key, expected: "a string", found: value.typeName)
            }
            return bytes
        }
        self = try Self(
            tokenizerJSON: try text(Self.tokenizerJSONKey) ?? [], config: try text(Self.tokenizerConfigKey))
        func id(_ role: String) throws -> Int? {
            let key = "tokenizer.ggml.\(role)_token_id"
            return file.metadata[key] == nil ? nil : try file.integer(key)
        }
        bosTokenID = try bosTokenID ?? id("bos")
        eosTokenID = try eosTokenID ?? id("eos")
        paddingTokenID = try paddingTokenID ?? id("padding")
        unknownTokenID = try unknownTokenID ?? id("unknown")
    }

    private static let ggufModels = ["gpt2", "llama", "t5"]

    package init(_ metadata: GGUFTokenizerMetadata) throws(TokenizerError) {
        guard metadata.tokenTypes.count == metadata.tokens.count else {
            throw .entryCount(
                key: "token_type", tokens: metadata.tokens.count, entries: metadata.tokenTypes.count)
        }
        switch metadata.model {
        case "gpt2": self = try Self.byteLevel(metadata)
        case "llama": self = try Self.sentencePiece(metadata)
        case "t5": self = try Self.unigram(metadata)
        default: throw .unsupportedModel(metadata.model, supported: Self.ggufModels)
        }
        bosTokenID = metadata.bosTokenID
        eosTokenID = metadata.eosTokenID
        paddingTokenID = metadata.paddingTokenID
        unknownTokenID = metadata.unknownTokenID
        addBOS = metadata.addBOS ?? addBOS
        addedTokens = try Self.addedTokens(metadata)
    }

    private static func byteLevel(_ metadata: GGUFTokenizerMetadata) throws(TokenizerError) -> TokenizerSpec {
        let family = try PreTokenizer.named(metadata.preTokenizer ?? "default")
        var model = PairMergeModel(
            symbols: .bytes, merges: try Vocabulary(metadata.tokens).merges(metadata.merges))
        model.ignoresMerges = family.ignoresMerges
        var spec = TokenizerSpec(tokens: metadata.tokens, model: .pairMerges(model))
        spec.splits = family.splits
        spec.addBOS = family.addsBOSUnlessTold
        spec.decoders = [.byteLevel]
        if metadata.addSpacePrefix == true {
            spec.preparations = [.prependUnlessThere([UInt8(ascii: " ")], at: .everyStretch)]
        }
        return spec
    }

    /// "▁", which SentencePiece writes for a space.
    static let spaceMark = Array("\u{2581}".utf8)

    private static func sentencePiece(_ metadata: GGUFTokenizerMetadata) throws(TokenizerError) -> TokenizerSpec {
        let isGemma = metadata.architecture?.hasPrefix("gemma") ?? false
        let vocabulary = Vocabulary(isGemma ? metadata.tokens.map(respelled) : metadata.tokens)
        var merges: [TokenMerge]
        if metadata.merges.isEmpty {
            guard metadata.scores.count == metadata.tokens.count else {
                throw .entryCount(key: "scores", tokens: metadata.tokens.count, entries: metadata.scores.count)
            }
            // Gemma's scores do not follow the order of its merges; the order of its tokens does.
            merges = vocabulary.impliedMerges(
                scores: isGemma ? metadata.tokens.indices.map { -Double($0) } : metadata.scores)
        } else {
            merges = try vocabulary.merges(metadata.merges)
        }
        var model = PairMergeModel(symbols: .scalars(.bytesForUnknown), merges: merges)
        model.fusesUnknown = true
        model.unknown = try checked(metadata.unknownTokenID, role: "unknown", vocabularySize: metadata.tokens.count)
        var spec = TokenizerSpec(tokens: vocabulary.tokens, model: .pairMerges(model))
        spec.normalizers = [.replace([UInt8(ascii: " ")], with: spaceMark)]
        spec.decoders = [.replace(spaceMark, with: [UInt8(ascii: " ")]), .byteFallback, .fuse]
        if metadata.addSpacePrefix ?? true {
            spec.normalizers.insert(.prepend(spaceMark), at: 0)
            spec.decoders.append(.strip(" ", start: 1))
        }
        spec.addBOS = true
        return spec
    }

    /// Gemma's runs of spaces are stored as spaces, and looked up as marks.
    private static func respelled(_ token: [UInt8]) -> [UInt8] {
        guard !token.isEmpty, token.allSatisfy({ $0 == UInt8(ascii: " ") }) else { return token }
        return Array(repeatElement(spaceMark, count: token.count).joined())
    }

    private static func unigram(_ metadata: GGUFTokenizerMetadata) throws(TokenizerError) -> TokenizerSpec {
        let unknown = try checked(metadata.unknownTokenID, role: "unknown", vocabularySize: metadata.tokens.count)
        let hasByteTokens = metadata.tokenTypes.contains(TokenKind.byte.rawValue)
        let model = UnigramModel(
            scores: metadata.scores, unknown: unknown, fallback: hasByteTokens ? .bytesForUnknown : .none)
        var spec = TokenizerSpec(tokens: metadata.tokens, model: .unigram(model))
        if let map = metadata.characterMap { spec.normalizers = [.precompiled(try PrecompiledNormalizer(map))] }
        let space = UInt8(ascii: " ")
        if metadata.removeExtraWhitespace ?? true {
            spec.normalizers += [.strip(left: true, right: true), .replaceRuns(space, with: [space])]
        }
        spec.preparations = [.replace([space], with: spaceMark)]
        if metadata.addSpacePrefix ?? true {
            spec.preparations.append(.prependUnlessThere(spaceMark, at: .everyStretch))
        }
        spec.splits = [.scalar("\u{2581}", .mergedWithNext)]
        spec.decoders = [.metaspace("\u{2581}", metadata.addSpacePrefix ?? true ? .droppedInFirstToken : .kept)]
        return spec
    }

    private static func addedTokens(
        _ metadata: GGUFTokenizerMetadata
    ) throws(TokenizerError) -> [AddedToken] {
        var added: [AddedToken] = []
        for (index, type) in metadata.tokenTypes.enumerated() {
            guard let kind = TokenKind(rawValue: type) else { throw .unknownTokenType(token: index, type: type) }
            let token = metadata.tokens[index]
            switch kind {
            case .control, .unknown:
                if !token.isEmpty { added.append(AddedToken(id: TokenID(index), content: token, isSpecial: true)) }
            case .userDefined:
                if !token.isEmpty { added.append(AddedToken(id: TokenID(index), content: token, isSpecial: false)) }
            case .byte:
                guard metadata.model != "gpt2" else { throw .byteTokenInByteLevelVocabulary(token: index) }
            case .normal, .unused: break
            }
        }
        return added
    }

    static func checked(_ id: Int?, role: String, vocabularySize: Int) throws(TokenizerError) -> TokenID? {
        guard let id else { return nil }
        guard (0..<vocabularySize).contains(id) else {
            throw .specialTokenOutOfRange(role: role, id: id, vocabularySize: vocabularySize)
        }
        return TokenID(id)
    }
}

extension ChatTemplate {
    /// The template the model was trained with; `ChatTemplateError.missing` when its file holds none.
    package static func compile(gguf file: GGUFFile) throws -> ChatTemplate {
        guard file.metadata["tokenizer.chat_template"] != nil else { throw ChatTemplateError.missing }
        return try compile(try file.string("tokenizer.chat_template"))
    }
}
