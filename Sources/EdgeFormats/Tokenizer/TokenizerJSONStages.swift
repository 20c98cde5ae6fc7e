// The stages of a tokenizer.json around its model: normalizer, pre_tokenizer, post_processor and decoder. Each type
// that the supported families use is one case here; anything else is refused by name, with the nearest type that is
// supported.

struct TokenizerJSONStages {
    private(set) var normalizers: [TextTransform] = []
    private(set) var preparations: [TextTransform] = []
    private(set) var splits: [PieceSplit] = []
    private(set) var decoders: [TokenDecoder] = []
    /// Text becomes GPT-2's byte alphabet.
    private(set) var isByteLevel = false
    /// What the post-processor puts first; nil without.
    private(set) var bosTokenID: Int?
    /// `WhitespaceSplit` has been read and `Metaspace` has to follow.
    private var splitsAtWhitespace = false

    /// - Parameter members: of the file, by key.
    init(_ members: [String: JSONText]) throws(TokenizerError) {
        func stage(_ key: String) -> JSONText? { members[key] == .null ? nil : members[key] }
        if let normalizer = stage("normalizer") { try appendNormalizer(normalizer) }
        if let preTokenizer = stage("pre_tokenizer") { try appendPreTokenizer(preTokenizer) }
        if splitsAtWhitespace { splits.append(.whitespace(.removed)) }
        if let postProcessor = stage("post_processor") { try appendPostProcessor(postProcessor) }
        guard let decoder = stage("decoder") else {
            throw .unsupported(stage: "decoder", what: "null", nearest: "ByteLevel, Metaspace")
        }
        try appendDecoder(decoder)
    }

    private func kind(_ stage: JSONText) -> String { stage["type"]?.string ?? "without a type" }

    private mutating func appendNormalizer(_ stage: JSONText) throws(TokenizerError) {
        func refuse(_ what: String, nearest: String) -> TokenizerError {
            .unsupported(stage: "normalizer", what: what, nearest: nearest)
        }
        switch kind(stage) {
        case "Sequence":
            for element in stage["normalizers"]?.array ?? [] { try appendNormalizer(element) }
        case "NFC": normalizers.append(.nfc)
        case "Prepend":
            guard let prefix = stage["prepend"]?.string else {
                throw .malformed("normalizer.prepend", expected: "a string")
            }
            if !prefix.isEmpty { normalizers.append(.prepend(Array(prefix.utf8))) }
        case "Replace":
            guard let content = stage["content"]?.string else {
                throw .malformed("normalizer.content", expected: "a string")
            }
            if let pattern = stage["pattern"]?["String"]?.string, !pattern.isEmpty {
                normalizers.append(.replace(Array(pattern.utf8), with: Array(content.utf8)))
            } else if stage["pattern"]?["Regex"]?.string == " {2,}" {
                normalizers.append(.replaceRuns(UInt8(ascii: " "), with: Array(content.utf8)))
            } else {
                throw refuse(
                    "Replace of \(stage["pattern"]?["Regex"]?.string ?? "nothing")", nearest: "Replace of a string")
            }
        case "Strip":
            normalizers.append(
                .strip(left: stage["strip_left"]?.bool ?? true, right: stage["strip_right"]?.bool ?? true))
        case "Precompiled":
            guard let text = stage["precompiled_charsmap"]?.string, let map = decodedBase64(text) else {
                throw .malformed("normalizer.precompiled_charsmap", expected: "base64")
            }
            normalizers.append(.precompiled(try PrecompiledNormalizer(map)))
        case let name where ["NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt"].contains(name):
            throw refuse(name, nearest: "NFC")
        case let name: throw refuse(name, nearest: "Sequence, NFC, Prepend, Replace, Strip, Precompiled")
        }
    }
}

// Pre-tokenizers.
extension TokenizerJSONStages {
    private func refuse(_ what: String, nearest: String) -> TokenizerError {
        .unsupported(stage: "pre_tokenizer", what: what, nearest: nearest)
    }

    private mutating func appendPreTokenizer(_ stage: JSONText) throws(TokenizerError) {
        let name = kind(stage)
        guard !isByteLevel || ["Sequence", "Digits", "Split"].contains(name) else {
            throw refuse("\(name) after ByteLevel", nearest: "\(name) before ByteLevel")
        }
        switch name {
        case "Sequence":
            for element in stage["pretokenizers"]?.array ?? [] { try appendPreTokenizer(element) }
        case "ByteLevel":
            if stage["add_prefix_space"]?.bool ?? true {
                guard splits.isEmpty, !splitsAtWhitespace else {
                    throw refuse("ByteLevel(add_prefix_space) after a split", nearest: "ByteLevel(add_prefix_space) alone")
                }
                preparations.append(.prependUnlessThere([UInt8(ascii: " ")], at: .everyStretch))
            }
            if stage["use_regex"]?.bool ?? true { splits.append(.gpt2Words) }
            isByteLevel = true
        case "Digits":
            let behavior: DelimiterBehavior = stage["individual_digits"]?.bool ?? false ? .isolated : .contiguous
            splits.append(isByteLevel ? .numericBytes(behavior) : .numericScalars(behavior))
        case "Punctuation": splits.append(.punctuation(try behavior(stage, unlessSaid: .isolated)))
        case "Split": splits.append(try split(stage))
        case "WhitespaceSplit":
            guard splits.isEmpty, preparations.isEmpty else {
                throw refuse("WhitespaceSplit after a split", nearest: "WhitespaceSplit first")
            }
            splitsAtWhitespace = true
        case "Metaspace": try appendMetaspace(stage)
        case let name where ["Whitespace", "BertPreTokenizer", "CharDelimiterSplit"].contains(name):
            throw refuse(name, nearest: "WhitespaceSplit, Punctuation")
        default:
            throw refuse(name, nearest: "Sequence, ByteLevel, Split, Digits, Punctuation, Metaspace, WhitespaceSplit")
        }
    }

    private func behavior(
        _ stage: JSONText, unlessSaid behavior: DelimiterBehavior? = nil
    ) throws(TokenizerError) -> DelimiterBehavior {
        guard let name = stage["behavior"]?.string else {
            if let behavior { return behavior }
            throw .malformed("pre_tokenizer.behavior", expected: "a string")
        }
        guard let behavior = DelimiterBehavior(rawValue: name) else {
            throw refuse(
                "behavior \(name)", nearest: DelimiterBehavior.allCases.map(\.rawValue).joined(separator: ", "))
        }
        return behavior
    }

    private static let llama3 =
        #"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    private static let qwen2 =
        #"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    private static let qwen35 =
        #"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    private static let contraction = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    private static let contractionShared = "'(?i:[sdmt]|ll|ve|re)"
    private static let casedFirst =
        #"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"#
    private static let casedSecond =
        #"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"#
    private static let casedRest = #"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    private static let gpt2Rest = #"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#

    /// Expressions that match all of any text: what lies between matches does not arise.
    private static let wholeExpressions: [String: PieceSplit] = [
        "\(contraction)|\(llama3)": .words(.llama3),
        "\(contractionShared)|\(llama3)": .words(.llama3),
        "\(contraction)|\(qwen2)": .words(.qwen2),
        "\(contractionShared)|\(qwen2)": .words(.qwen2),
        "\(contraction)|\(qwen35)": .words(.qwen35),
        "\(casedFirst)\(contraction)?|\(casedSecond)\(contraction)?|\\p{N}{1,3}\(casedRest)": .words(.gpt4o),
        "\(casedFirst)|\(casedSecond)|\\p{N}\(casedRest)": .words(.tekken),
        "'s|'t|'re|'ve|'m|'ll|'d\(gpt2Rest)": .gpt2Words,
        "'(?:[sdmt]|ll|ve|re)\(gpt2Rest)": .gpt2Words,
    ]

    /// Expressions that match some of a text.
    private static let partialExpressions: [String: PieceSplit] = [
        #"\p{N}"#: .numericScalars(.isolated),
        #"\p{N}{1,3}"#: .numbers(atMost: 3),
        "[0-9][0-9][0-9]": .digitTriples,
        "[一-龥\u{3040}-ゟ゠-ヿ]+": .eastAsianRuns,
        ##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"## + "\r\n"
            + #"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["# + "\r\n" + #"]*|\s*["# + "\r\n"
            + #"]+|\s+(?!\S)|\s+"#: .deepSeekWords,
    ]

    private func split(_ stage: JSONText) throws(TokenizerError) -> PieceSplit {
        let behavior = try behavior(stage)
        let inverts = stage["invert"]?.bool ?? false
        if let text = stage["pattern"]?["String"]?.string {
            guard text.unicodeScalars.count == 1, let scalar = text.unicodeScalars.first, !inverts, !isByteLevel else {
                throw refuse("Split of \"\(text)\"", nearest: "Split of one character, before ByteLevel")
            }
            return .scalar(scalar, behavior)
        }
        guard let expression = stage["pattern"]?["Regex"]?.string else {
            throw .malformed("pre_tokenizer.pattern", expected: "{\"String\": …} or {\"Regex\": …}")
        }
        if isByteLevel {
            guard Self.partialExpressions[expression] == .digitTriples, behavior == .isolated, !inverts else {
                throw refuse("Split of \(expression) after ByteLevel", nearest: "Split of [0-9][0-9][0-9]")
            }
            return .digitTriples
        }
        if let split = Self.wholeExpressions[expression] {
            guard inverts ? behavior == .removed || behavior == .isolated : behavior == .isolated else {
                throw refuse("Split of a family's expression, \(behavior.rawValue)", nearest: "Isolated")
            }
            return split
        }
        guard let split = Self.partialExpressions[expression] else {
            throw refuse("Split of \(expression)", nearest: "the expressions of GPT-2, Llama 3, Qwen 2 and GPT-4o")
        }
        guard behavior == .isolated, !inverts else {
            throw refuse("Split of \(expression), \(behavior.rawValue)", nearest: "Isolated")
        }
        return split
    }

    private mutating func appendMetaspace(_ stage: JSONText) throws(TokenizerError) {
        guard splits.isEmpty else { throw refuse("Metaspace after a split", nearest: "Metaspace first") }
        let mark = try metaspaceMark(stage)
        let bytes = Array(String(mark).utf8)
        let splitsWords = stage["split"]?.bool ?? true
        let scheme = try prependScheme(stage)
        if splitsAtWhitespace {
            guard splitsWords, scheme == "always" else {
                throw refuse("WhitespaceSplit and Metaspace(\(scheme))", nearest: "Metaspace(always, split)")
            }
            preparations.append(.markWords(bytes))
            splitsAtWhitespace = false
        } else {
            preparations.append(.replace([UInt8(ascii: " ")], with: bytes))
            if scheme != "never" {
                preparations.append(.prependUnlessThere(bytes, at: scheme == "first" ? .startOfText : .everyStretch))
            }
        }
        if splitsWords { splits.append(.scalar(mark, .mergedWithNext)) }
    }

    private func metaspaceMark(_ stage: JSONText) throws(TokenizerError) -> Unicode.Scalar {
        let text = stage["replacement"]?.string ?? ""
        guard text.unicodeScalars.count == 1, let mark = text.unicodeScalars.first else {
            throw .malformed("Metaspace.replacement", expected: "one character")
        }
        return mark
    }

    /// "first", "always" or "never".
    private func prependScheme(_ stage: JSONText) throws(TokenizerError) -> String {
        if stage["add_prefix_space"]?.bool == false { return "never" }
        let scheme = stage["prepend_scheme"]?.string ?? "always"
        guard ["first", "always", "never"].contains(scheme) else {
            throw refuse("Metaspace(\(scheme))", nearest: "first, always, never")
        }
        return scheme
    }
}

// Post-processors and decoders.
extension TokenizerJSONStages {
    private mutating func appendPostProcessor(_ stage: JSONText) throws(TokenizerError) {
        func refuse(_ what: String, nearest: String) -> TokenizerError {
            .unsupported(stage: "post_processor", what: what, nearest: nearest)
        }
        switch kind(stage) {
        case "Sequence":
            for element in stage["processors"]?.array ?? [] { try appendPostProcessor(element) }
        case "ByteLevel": break
        case "TemplateProcessing":
            // What comes after the text is an end token, which training puts there itself.
            let first = (stage["single"]?.array ?? []).prefix { $0["Sequence"] == nil }
            guard first.count < (stage["single"]?.array ?? []).count else {
                throw .malformed("post_processor.single", expected: "a template with a sequence")
            }
            guard first.count <= 1 else {
                throw refuse("TemplateProcessing with \(first.count) tokens first", nearest: "one token first")
            }
            guard let name = first.first?["SpecialToken"]?["id"]?.string else { return }
            let ids = stage["special_tokens"]?[name]?["ids"]?.array ?? []
            guard ids.count == 1, let id = ids[0].integer else {
                throw .malformed("post_processor.special_tokens[\"\(name)\"].ids", expected: "one id")
            }
            bosTokenID = id
        case let name: throw refuse(name, nearest: "TemplateProcessing")
        }
    }

    private mutating func appendDecoder(_ stage: JSONText) throws(TokenizerError) {
        func refuse(_ what: String, nearest: String) -> TokenizerError {
            .unsupported(stage: "decoder", what: what, nearest: nearest)
        }
        func scalar(_ text: String?) throws(TokenizerError) -> Unicode.Scalar {
            guard let text, text.unicodeScalars.count == 1, let scalar = text.unicodeScalars.first else {
                throw .malformed("decoder.content", expected: "one character")
            }
            return scalar
        }
        switch kind(stage) {
        case "Sequence":
            for element in stage["decoders"]?.array ?? [] { try appendDecoder(element) }
        case "ByteLevel": decoders.append(.byteLevel)
        case "ByteFallback": decoders.append(.byteFallback)
        case "Fuse": decoders.append(.fuse)
        case "Replace":
            guard let pattern = stage["pattern"]?["String"]?.string, pattern.unicodeScalars.count == 1,
                let content = stage["content"]?.string
            else {
                throw refuse("Replace of more than one character", nearest: "Replace of one character")
            }
            decoders.append(.replace(Array(pattern.utf8), with: Array(content.utf8)))
        case "Strip":
            guard let start = stage["start"]?.integer, start >= 0, stage["stop"]?.integer == 0 else {
                throw refuse("Strip at the end", nearest: "Strip at the start")
            }
            decoders.append(.strip(try scalar(stage["content"]?.string), start: start))
        case "Metaspace":
            decoders.append(
                .metaspace(
                    try metaspaceMark(stage),
                    try prependScheme(stage) == "never" ? .kept : .droppedInFirstToken))
        case let name: throw refuse(name, nearest: "ByteLevel, Metaspace, ByteFallback, Fuse, Strip, Replace")
        }
    }
}

/// RFC 4648 §4; nil for anything else.
private func decodedBase64(_ text: String) -> [UInt8]? {
    var decoded: [UInt8] = []
    var bits: UInt32 = 0
    var bitCount = 0
    var digits = 0
    var padding = 0
    for byte in text.utf8 {
        let value: UInt8
        switch byte {
        case UInt8(ascii: "A")...UInt8(ascii: "Z"): value = byte - UInt8(ascii: "A")
        case UInt8(ascii: "a")...UInt8(ascii: "z"): value = byte - UInt8(ascii: "a") + 26
        case UInt8(ascii: "0")...UInt8(ascii: "9"): value = byte - UInt8(ascii: "0") + 52
        case UInt8(ascii: "+"): value = 62
        case UInt8(ascii: "/"): value = 63
        case UInt8(ascii: "="):
            padding += 1
            continue
        default: return nil
        }
        guard padding == 0 else { return nil }
        digits += 1
        bits = bits << 6 | UInt32(value)
        bitCount += 6
        if bitCount >= 8 {
            bitCount -= 8
            decoded.append(UInt8(truncatingIfNeeded: bits >> UInt32(bitCount)))
        }
    }
    guard (digits + padding).isMultiple(of: 4), padding <= 2 else { return nil }
    return decoded
}
