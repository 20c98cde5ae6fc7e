// Reads Hugging Face's tokenizer.json and, of tokenizer_config.json, which tokens are BOS, EOS, padding and unknown.
// What is read means here what it means to huggingface/tokenizers; what has no equal here is refused by its name. The
// stages are in TokenizerJSONStages.swift, the model and its vocabulary here, straight from the text: a vocabulary of
// Gemma's size as a JSON tree would take ten times the memory of the tokenizer.

extension TokenizerSpec {
    /// - Parameters:
    ///   - tokenizerJSON: the bytes of tokenizer.json.
    ///   - config: the bytes of tokenizer_config.json; nil without one.
    /// - Throws: `TokenizerError`, or `JSONTextError` for what is no JSON.
    package init(tokenizerJSON: [UInt8], config: [UInt8]?) throws {
        self = try tokenizerJSON.withUnsafeBytes { try TokenizerJSON($0).spec() }
        if let config { try apply(config.withUnsafeBytes { try JSONText(parsing: $0) }) }
    }

    private mutating func apply(_ config: JSONText) throws(TokenizerError) {
        bosTokenID = try named("bos_token", in: config, .isKnown) ?? bosTokenID
        eosTokenID = try named("eos_token", in: config, .isKnown)
        paddingTokenID = try named("pad_token", in: config, .mayBeUnknown)
        unknownTokenID = try named("unk_token", in: config, .mayBeUnknown) ?? unknownTokenID
        if let addsBOS = config["add_bos_token"]?.bool { addBOS = addsBOS }
        guard !addBOS || bosTokenID != nil else {
            throw .malformed("add_bos_token", expected: "false where there is no bos_token")
        }
    }

    private enum Presence {
        case isKnown
        /// Transformers would append it to the vocabulary, whose rows the model does not have; it is never used here.
        case mayBeUnknown
    }

    private func named(
        _ role: String, in config: JSONText, _ presence: Presence
    ) throws(TokenizerError) -> Int? {
        // A string, or an AddedToken as an object.
        guard let value = config[role], let name = value.string ?? value["content"]?.string else { return nil }
        let content = Array(name.utf8)
        if let added = addedTokens.first(where: { $0.content == content }) { return Int(added.id) }
        guard let id = tokens.firstIndex(of: content) else {
            guard presence == .mayBeUnknown else {
                throw .specialTokenNotInVocabulary(role: role, token: name)
            }
            return nil
        }
        return id
    }
}

/// A tokenizer.json whose vocabulary and merges have not been read yet.
private struct TokenizerJSON {
    private let text: JSONTextReader
    /// Members beside the model.
    private var stages: [String: JSONText] = [:]
    /// Members of the model beside `vocab` and `merges`, and where those two begin.
    private var model: [String: JSONText] = [:]
    private var vocabularyOffset: Int?
    private var mergesOffset: Int?
    /// Of an id: a token takes more than a byte of the file, so no vocabulary without great gaps has more. A gap costs memory too.
    private let idLimit: Int

    init(_ utf8: UnsafeRawBufferPointer) throws {
        text = JSONTextReader(utf8)
        idLimit = min(utf8.count, TokenizerSpec.mostTokens)
        var reader = text
        var stages: [String: JSONText] = [:]
        var model: [String: JSONText] = [:]
        var offsets: [String: Int] = [:]
        try reader.forEachMember { key, reader in
            let key = String(decoding: key, as: UTF8.self)
            guard key == "model" else {
                stages[key] = try reader.nextValue()
                return
            }
            try reader.forEachMember { key, reader in
                let key = String(decoding: key, as: UTF8.self)
                if key == "vocab" || key == "merges" {
                    offsets[key] = reader.offset
                    try reader.skip()
                } else {
                    model[key] = try reader.nextValue()
                }
            }
        }
        try reader.finish()
        self.stages = stages
        self.model = model
        vocabularyOffset = offsets["vocab"]
        mergesOffset = offsets["merges"]
    }

    func spec() throws -> TokenizerSpec {
        guard let vocabularyOffset else {
            throw TokenizerError.malformed("model.vocab", expected: "an object or an array")
        }
        var reader = text.moved(to: vocabularyOffset)
        let pipeline = try TokenizerJSONStages(stages)
        var spec =
            try reader.kind() == .array
            ? unigram(&reader, pipeline) : pairMerges(&reader, pipeline)
        spec.normalizers = pipeline.normalizers
        spec.preparations = pipeline.preparations
        spec.splits = pipeline.splits
        spec.decoders = pipeline.decoders
        spec.bosTokenID = pipeline.bosTokenID
        spec.addBOS = pipeline.bosTokenID != nil
        return spec
    }

    private func checkType(_ type: String) throws(TokenizerError) {
        let stored = model["type"]?.string ?? type
        guard stored == type else { throw .unsupportedModel(stored, supported: ["BPE", "Unigram"]) }
    }

    private func flag(_ name: String) -> Bool { model[name]?.bool ?? false }

    private func pairMerges(
        _ reader: inout JSONTextReader, _ pipeline: TokenizerJSONStages
    ) throws -> TokenizerSpec {
        try checkType("BPE")
        if let dropout = model["dropout"]?.double, dropout != 0 {
            throw TokenizerError.unsupported(stage: "model", what: "BPE with dropout \(dropout)", nearest: "none")
        }
        for name in ["continuing_subword_prefix", "end_of_word_suffix"] {
            guard let affix = model[name]?.string, !affix.isEmpty else { continue }
            throw TokenizerError.unsupported(
                stage: "model", what: "BPE with \(name) \"\(affix)\"", nearest: "ByteLevel or Metaspace")
        }
        var tokens: [[UInt8]] = []
        try reader.forEachMember { token, reader in
            let value = try reader.nextValue()
            try insert(token, at: value.integer, into: &tokens, path: "model.vocab")
        }
        let (base, vocabulary) = try withAddedTokens(tokens)
        var spec = base
        var bpe = PairMergeModel(
            symbols: pipeline.isByteLevel
                ? .bytes : .scalars(flag("byte_fallback") ? .bytesForUnknown : .none),
            merges: try merges(vocabulary))
        bpe.fusesUnknown = flag("fuse_unk")
        bpe.ignoresMerges = flag("ignore_merges")
        if let unknown = model["unk_token"]?.string {
            guard let id = vocabulary.id(of: Array(unknown.utf8)[...]) else {
                throw TokenizerError.specialTokenNotInVocabulary(role: "unk_token", token: unknown)
            }
            bpe.unknown = id
            spec.unknownTokenID = Int(id)
        }
        if pipeline.isByteLevel, flag("byte_fallback") {
            guard PairMergeEncoder(bpe, vocabulary).byteTokens.allSatisfy({ $0 != nil }) else {
                throw TokenizerError.unsupported(
                    stage: "model", what: "BPE with byte_fallback and ByteLevel", nearest: "one of the two")
            }
        }
        spec.model = .pairMerges(bpe)
        return spec
    }

    private func merges(_ vocabulary: Vocabulary) throws -> [TokenMerge] {
        guard let mergesOffset else {
            throw TokenizerError.malformed("model.merges", expected: "an array")
        }
        var reader = text.moved(to: mergesOffset)
        var merges: [TokenMerge] = []
        try reader.forEachElement { reader in
            var parts: [[UInt8]] = []
            if reader.kind() == .array {
                try reader.forEachElement { parts.append(try $0.nextString()) }
            } else {
                parts = try reader.nextString().split(
                    separator: UInt8(ascii: " "), omittingEmptySubsequences: false
                ).map { Array($0) }
            }
            guard parts.count == 2, !parts[0].isEmpty, !parts[1].isEmpty else {
                throw TokenizerError.malformedMerge(
                    rank: merges.count, merge: String(decoding: Array(parts.joined(separator: " ".utf8)), as: UTF8.self))
            }
            merges.append(try vocabulary.merge(rank: merges.count, parts[0][...], parts[1][...]))
        }
        return merges
    }

    private func unigram(
        _ reader: inout JSONTextReader, _ pipeline: TokenizerJSONStages
    ) throws -> TokenizerSpec {
        try checkType("Unigram")
        guard !pipeline.isByteLevel else {
            throw TokenizerError.unsupported(stage: "pre_tokenizer", what: "ByteLevel for Unigram", nearest: "Metaspace")
        }
        var tokens: [[UInt8]] = []
        var scores: [Double] = []
        try reader.forEachElement { reader in
            var index = 0
            try reader.forEachElement { reader in
                switch index {
                case 0: try insert(try reader.nextString(), at: scores.count, into: &tokens, path: "model.vocab")
                case 1: scores.append(serdeDouble(try reader.nextValue()))
                default: throw TokenizerError.malformed("model.vocab[\(tokens.count - 1)]", expected: "[token, score]")
                }
                index += 1
            }
            guard index == 2 else {
                throw TokenizerError.malformed("model.vocab[\(scores.count)]", expected: "[token, score]")
            }
        }
        let unknown = try TokenizerSpec.checked(
            model["unk_id"]?.integer, role: "unknown", vocabularySize: tokens.count)
        var spec = try withAddedTokens(tokens).spec
        spec.unknownTokenID = unknown.map(Int.init)
        spec.model = .unigram(
            UnigramModel(
                scores: scores, unknown: unknown, fallback: flag("byte_fallback") ? .bytesForUnknown : .none))
        return spec
    }

    /// An id without a token is an empty entry.
    private func insert(
        _ token: [UInt8], at id: Int?, into tokens: inout [[UInt8]], path: String
    ) throws(TokenizerError) {
        guard let id, (0..<idLimit).contains(id) else {
            throw .malformed("\(path)[\"\(String(decoding: token, as: UTF8.self))\"]", expected: "an id below \(idLimit)")
        }
        while tokens.count <= id { tokens.append([]) }
        guard tokens[id].isEmpty else {
            throw .malformed("\(path)[\"\(String(decoding: token, as: UTF8.self))\"]", expected: "an id of its own")
        }
        tokens[id] = token
    }

    /// The model's tokens and the added ones.
    private func withAddedTokens(
        _ modelTokens: [[UInt8]]
    ) throws(TokenizerError) -> (spec: TokenizerSpec, vocabulary: Vocabulary) {
        let vocabulary = Vocabulary(modelTokens)
        for (id, token) in modelTokens.enumerated() where !token.isEmpty {
            guard let found = vocabulary.id(of: token[...]), Int(found) != id else { continue }
            throw .duplicateToken(String(decoding: token, as: UTF8.self), ids: [id, Int(found)])
        }
        var spec = TokenizerSpec(
            tokens: modelTokens, model: .pairMerges(PairMergeModel(symbols: .bytes, merges: [])))
        for (index, value) in (stages["added_tokens"]?.array ?? []).enumerated() {
            let token = try addedToken(value, path: "added_tokens[\(index)]")
            if let id = vocabulary.id(of: token.content[...]) {
                guard id == token.id else {
                    throw .duplicateToken(
                        String(decoding: token.content, as: UTF8.self), ids: [Int(id), Int(token.id)])
                }
            } else {
                try insert(token.content, at: Int(token.id), into: &spec.tokens, path: "added_tokens")
                spec.idsOutsideModel.insert(token.id)
            }
            spec.addedTokens.append(token)
        }
        return (spec, vocabulary)
    }

    private func addedToken(_ value: JSONText, path: String) throws(TokenizerError) -> AddedToken {
        guard let content = value["content"]?.string, !content.isEmpty else {
            throw .malformed(path + ".content", expected: "a string that is not empty")
        }
        guard let id = value["id"]?.integer, (0..<idLimit).contains(id) else {
            throw .malformed(path + ".id", expected: "an id below \(idLimit)")
        }
        func flag(_ name: String) -> Bool { value[name]?.bool ?? false }
        var token = AddedToken(id: TokenID(id), content: Array(content.utf8), isSpecial: flag("special"))
        token.isNormalized = flag("normalized")
        token.stripsLeft = flag("lstrip")
        token.stripsRight = flag("rstrip")
        token.isSingleWord = flag("single_word")
        return token
    }
}

/// A number as serde_json reads it without its feature `float_roundtrip`: its digits as an integer, divided by a power
/// of ten, so the last bit may be wrong. Scores that differ in it break ties between equally likely cuts differently.
/// Not a number for anything else.
private func serdeDouble(_ value: JSONText) -> Double {
    guard case .number(let text) = value else { return .nan }
    var significand: UInt64 = 0
    var exponent = 0
    var isFraction = false
    var isFull = false
    let mantissa = text.utf8.prefix { $0 != UInt8(ascii: "e") && $0 != UInt8(ascii: "E") }
    for byte in mantissa {
        if byte == UInt8(ascii: ".") { isFraction = true }
        guard (0x30...0x39).contains(byte) else { continue }
        let (product, overflowed) = significand.multipliedReportingOverflow(by: 10)
        let (sum, carried) = product.addingReportingOverflow(UInt64(byte - 0x30))
        isFull = isFull || overflowed || carried
        // Digits that no longer fit are dropped: of a fraction they change nothing.
        if isFull {
            exponent += isFraction ? 0 : 1
        } else {
            significand = sum
            exponent -= isFraction ? 1 : 0
        }
    }
    let written = text.utf8.dropFirst(mantissa.count + 1)
    exponent += written.isEmpty ? 0 : max(-9999, min(9999, Int(String(decoding: written, as: UTF8.self)) ?? 9999))
    var result = Double(significand)
    while exponent < -308, result != 0 {
        result /= 1e308
        exponent += 308
    }
    guard result != 0, exponent <= 308 else { return result == 0 ? 0 : .infinity }
    // "1e-5" is read correctly rounded, as Rust's constants are.
    let power = Double("1e\(abs(exponent))") ?? .infinity
    result = exponent < 0 ? result / power : result * power
    return text.utf8.first == UInt8(ascii: "-") ? -result : result
}
