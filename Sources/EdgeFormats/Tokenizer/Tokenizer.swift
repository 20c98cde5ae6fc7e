// Text to token ids and back, by the stages that TokenizerSpec.swift names. Ids and texts equal those of
// huggingface/tokenizers for the same files. Texts are valid UTF-8: who has other bytes repairs them first, with
// U+FFFD, as `String(decoding:as:)` and Python's `errors="replace"` do alike.

/// Whether special-token text inside a text is that token, or merely characters.
package enum SpecialTokens: Sendable {
    case parse
    case asText
}

package struct Tokenizer: Sendable {
    package let vocabularySize: Int
    package let bosTokenID: TokenID?
    package let eosTokenID: TokenID?
    package let paddingTokenID: TokenID?
    package let addBOS: Bool
    /// Bytes that no token stands for, ascending. `encode` leaves them out. SmolLM2's vocabulary lacks eight of valid
    /// UTF-8: six C0 controls and the lead bytes F1 and F2, which start only private and unassigned planes.
    package let unencodableBytes: [UInt8]

    private enum Encoder: Sendable {
        case pairMerges(PairMergeEncoder)
        case unigram(UnigramEncoder)
    }

    private let encoder: Encoder
    private let normalizers: [TextTransform]
    private let preparations: [TextTransform]
    private let splits: [PieceSplit]
    private let decoders: [TokenDecoder]
    /// Found in text as it is given.
    private let rawTokens: AddedTokenMatcher
    /// Found in normalized text; nil without any.
    private let normalizedTokens: AddedTokenMatcher?
    /// All of them by their content, for those who look where a text's turns end.
    private let allTokens: AddedTokenMatcher
    /// Every token as decoders see it.
    private let texts: Vocabulary

    package init(_ spec: TokenizerSpec) throws(TokenizerError) {
        let count = spec.tokens.count
        guard count > 0, count <= TokenizerSpec.mostTokens else { throw .vocabularySize(count) }
        vocabularySize = count
        addBOS = spec.addBOS
        normalizers = spec.normalizers
        preparations = spec.preparations
        splits = spec.splits
        decoders = spec.decoders
        func checked(_ id: Int?, _ role: String) throws(TokenizerError) -> TokenID? {
            try TokenizerSpec.checked(id, role: role, vocabularySize: count)
        }
        bosTokenID = try checked(spec.bosTokenID, "BOS")
        eosTokenID = try checked(spec.eosTokenID, "EOS")
        paddingTokenID = try checked(spec.paddingTokenID, "padding")
        _ = try checked(spec.unknownTokenID, "unknown")

        var raw = AddedTokenMatcher()
        var normalized = AddedTokenMatcher()
        var all = AddedTokenMatcher()
        var texts = spec.tokens
        for token in spec.addedTokens {
            _ = try checked(Int(token.id), "added")
            guard token.content.count <= TokenizerSpec.longestToken else {
                throw .tokenTooLong(
                    id: Int(token.id), bytes: token.content.count, limit: TokenizerSpec.longestToken)
            }
            all.insert(token, as: token.content)
            if token.isNormalized {
                var content = AlignedText(token.content, token.content.indices)
                content.apply(spec.normalizers)
                normalized.insert(token, as: content.utf8)
                texts[Int(token.id)] = content.utf8
            } else {
                raw.insert(token, as: token.content)
                texts[Int(token.id)] = token.content
            }
        }
        rawTokens = raw
        normalizedTokens = spec.addedTokens.contains(where: \.isNormalized) ? normalized : nil
        allTokens = all
        self.texts = Vocabulary(texts)

        let vocabulary = Vocabulary(spec.tokens, outsideModel: spec.idsOutsideModel)
        switch spec.model {
        case .pairMerges(let model):
            let encoder = PairMergeEncoder(model, vocabulary)
            self.encoder = .pairMerges(encoder)
            unencodableBytes = encoder.unencodableBytes
        case .unigram(let model):
            let ids = spec.tokens.indices.map { TokenID($0) }.filter {
                !vocabulary[$0].isEmpty && !spec.idsOutsideModel.contains($0)
            }
            encoder = .unigram(try UnigramEncoder(model, vocabulary, ids: ids))
            unencodableBytes = []
        }
    }
}

extension Tokenizer {
    package func encode(_ text: String, specialTokens: SpecialTokens) -> [TokenID] {
        spans(of: text, specialTokens: specialTokens).map(\.id)
    }

    /// The tokens with the bytes of `text` they stand for, ascending; only where a vocabulary lacks some byte tokens an
    /// unknown symbol waits for the bytes after it, as upstream. White space that a token strips or a normalizer drops,
    /// and bytes that no token stands for, are in no span; a token that a normalizer adds has an empty one.
    package func spans(of text: String, specialTokens mode: SpecialTokens) -> [TokenSpan] {
        let utf8 = Array(text.utf8)
        var spans: [TokenSpan] = []
        // English averages about four bytes a token.
        spans.reserveCapacity(utf8.count / 4)
        var symbols = PieceSymbols()
        rawTokens.forEachStretch(utf8, utf8.indices, mode) { token, range in
            if let token {
                spans.append(TokenSpan(id: token, utf8Range: range))
            } else if normalizers.isEmpty, normalizedTokens == nil, preparations.isEmpty {
                encodePieces(utf8, range, &symbols, into: &spans)
            } else {
                var stretch = AlignedText(utf8, range)
                stretch.apply(normalizers)
                encodeNormalized(stretch, mode, &symbols, into: &spans)
            }
        }
        return spans
    }

    private func encodeNormalized(
        _ text: AlignedText, _ mode: SpecialTokens, _ symbols: inout PieceSymbols, into spans: inout [TokenSpan]
    ) {
        guard let normalizedTokens else {
            encodePrepared(text, &symbols, into: &spans)
            return
        }
        normalizedTokens.forEachStretch(text.utf8, text.utf8.indices, mode) { token, range in
            if let token {
                spans.append(TokenSpan(id: token, utf8Range: text.origin(of: range)))
            } else {
                encodePrepared(text.slice(range), &symbols, into: &spans)
            }
        }
    }

    private func encodePrepared(
        _ text: AlignedText, _ symbols: inout PieceSymbols, into spans: inout [TokenSpan]
    ) {
        var text = text
        text.apply(preparations)
        let first = spans.count
        encodePieces(text.utf8, text.utf8.indices, &symbols, into: &spans)
        for index in first..<spans.count {
            spans[index] = TokenSpan(id: spans[index].id, utf8Range: text.origin(of: spans[index].utf8Range))
        }
    }

    private func encodePieces(
        _ utf8: [UInt8], _ range: Range<Int>, _ symbols: inout PieceSymbols, into spans: inout [TokenSpan]
    ) {
        guard !range.isEmpty else { return }
        switch encoder {
        case .pairMerges(let encoder):
            splits.forEachPiece(utf8, range) { encoder.encode(utf8, $0, &symbols, into: &spans) }
        case .unigram(let encoder):
            splits.forEachPiece(utf8, range) { encoder.encode(utf8, $0, into: &spans) }
        }
    }
}

extension Tokenizer {
    /// The text's bytes. What is no UTF-8 stays as it is: a vocabulary of bytes can spell anything.
    package func decode(_ ids: [TokenID]) throws(TokenizerError) -> [UInt8] {
        try decoded(ids, .kept)
    }

    /// Bytes that are no UTF-8 become U+FFFD.
    package func decodedText(_ ids: [TokenID]) throws(TokenizerError) -> String {
        String(decoding: try decoded(ids, .replaced), as: UTF8.self)
    }

    private func decoded(_ ids: [TokenID], _ invalidUTF8: InvalidUTF8) throws(TokenizerError) -> [UInt8] {
        var decoding = decoding(invalidUTF8)
        var text: [UInt8] = []
        for id in ids { try append(id, to: &decoding, &text) }
        decoding.finish(&text)
        return text
    }

    func decoding(_ invalidUTF8: InvalidUTF8) -> TokenDecoding { TokenDecoding(decoders, invalidUTF8) }

    /// An id inside the vocabulary that no token has decodes to nothing.
    func append(_ id: TokenID, to decoding: inout TokenDecoding, _ text: inout [UInt8]) throws(TokenizerError) {
        guard id >= 0, Int(id) < vocabularySize else {
            throw .tokenOutOfRange(id: id, vocabularySize: vocabularySize)
        }
        if !texts[id].isEmpty { decoding.append(texts[id], to: &text) }
    }
}

extension Tokenizer {
    package var bosToken: String? { bosTokenID.map(text) }
    package var eosToken: String? { eosTokenID.map(text) }

    /// The token as it is written.
    private func text(_ id: TokenID) -> String { String(decoding: texts[id], as: UTF8.self) }

    /// Where the last added token in the bytes ends, as an index of the slice; nil without one. Of tokens that are not
    /// special those of nothing but white space do not count: they are in text as letters are.
    package func endOfLastSpecialToken(in utf8: ArraySlice<UInt8>) -> Int? {
        let text = Array(utf8)
        var last: Int?
        var offset = 0
        while offset < text.count {
            guard let (token, end) = allTokens.match(in: text, at: offset, end: text.count) else {
                offset += 1
                continue
            }
            offset = end
            let isText = !token.isSpecial && token.content.allSatisfy { [0x20, 0x09, 0x0A, 0x0D].contains($0) }
            if !isText { last = utf8.startIndex + end }
        }
        return last
    }
}
