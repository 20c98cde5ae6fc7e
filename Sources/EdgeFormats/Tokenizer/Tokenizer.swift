// Byte-level BPE: text to token ids and back. Text is cut at special tokens, then into pieces (`PreTokenizer`), and each
// piece's bytes are merged (`BytePairMerges`). Ids equal those of huggingface/tokenizers for the same vocabulary, also
// where that vocabulary is incomplete: a byte that is no token is left out of the ids. SmolLM2's lacks eight bytes of
// valid UTF-8 (six C0 controls and the lead bytes F1 and F2, which start only private and unassigned planes).

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
    /// Bytes that no token stands for, ascending. `encode` leaves them out.
    package let unencodableBytes: [UInt8]

    private let preTokenizer: PreTokenizer
    private let addSpacePrefix: Bool
    private let merges: BytePairMerges
    private let specialTokens: SpecialTokenMatcher
    private let kinds: [TokenKind]
    /// The token of each byte alone.
    private let byteTokens: [TokenID?]
    /// All tokens' bytes end to end; token i is `tokenBytes[tokenEnds[i - 1] ..< tokenEnds[i]]`.
    private let tokenBytes: [UInt8]
    private let tokenEnds: [Int]

    package init(_ spec: TokenizerSpec) throws(TokenizerError) {
        let count = spec.tokens.count
        guard count > 0, count <= Int(Int32.max) else { throw .vocabularySize(count) }
        vocabularySize = count
        preTokenizer = try PreTokenizer.named(spec.preTokenizer)
        kinds = try Self.kinds(spec)
        addBOS = spec.addBOS
        addSpacePrefix = spec.addSpacePrefix
        bosTokenID = try Self.checked(spec.bosTokenID, role: "BOS", vocabularySize: count)
        eosTokenID = try Self.checked(spec.eosTokenID, role: "EOS", vocabularySize: count)
        paddingTokenID = try Self.checked(spec.paddingTokenID, role: "padding", vocabularySize: count)
        _ = try Self.checked(spec.unknownTokenID, role: "unknown", vocabularySize: count)

        var ids: [[UInt8]: TokenID] = [:]
        ids.reserveCapacity(count)
        var specialTokens = SpecialTokenMatcher()
        var bytes: [UInt8] = []
        var ends: [Int] = []
        ends.reserveCapacity(count)
        for (index, stored) in spec.tokens.enumerated() {
            let id = TokenID(index)
            switch kinds[index] {
            case .control, .userDefined:
                specialTokens.insert(stored, token: id)
                bytes.append(contentsOf: stored)
            case .normal, .unused, .unknown, .byte:
                // A token with characters outside the alphabet stands for its own text.
                bytes.append(contentsOf: ByteAlphabet.decoded(stored) ?? stored)
            }
            ids[stored] = id
            ends.append(bytes.count)
        }
        self.specialTokens = specialTokens
        tokenBytes = bytes
        tokenEnds = ends
        let byteTokens = (UInt8.min...UInt8.max).map { ids[ByteAlphabet.encoded($0)] }
        unencodableBytes = byteTokens.indices.filter { byteTokens[$0] == nil }.map { UInt8($0) }
        self.byteTokens = byteTokens
        merges = try Self.mergeTable(spec.merges, ids: ids)
    }

    private static func kinds(_ spec: TokenizerSpec) throws(TokenizerError) -> [TokenKind] {
        guard spec.tokenTypes.count == spec.tokens.count else {
            throw .tokenTypeCount(tokens: spec.tokens.count, tokenTypes: spec.tokenTypes.count)
        }
        var kinds: [TokenKind] = []
        kinds.reserveCapacity(spec.tokenTypes.count)
        for (index, type) in spec.tokenTypes.enumerated() {
            guard let kind = TokenKind(rawValue: type) else { throw .unknownTokenType(token: index, type: type) }
            guard kind != .byte else { throw .byteTokenInByteLevelVocabulary(token: index) }
            kinds.append(kind)
        }
        return kinds
    }

    private static func checked(
        _ id: Int?, role: String, vocabularySize: Int
    ) throws(TokenizerError) -> TokenID? {
        guard let id else { return nil }
        guard (0..<vocabularySize).contains(id) else {
            throw .specialTokenOutOfRange(role: role, id: id, vocabularySize: vocabularySize)
        }
        return TokenID(id)
    }

    private static func mergeTable(
        _ merges: [String], ids: [[UInt8]: TokenID]
    ) throws(TokenizerError) -> BytePairMerges {
        var table = BytePairMerges(capacity: merges.count)
        for (rank, merge) in merges.enumerated() {
            let parts = merge.utf8.split(separator: UInt8(ascii: " "), omittingEmptySubsequences: false)
            guard parts.count == 2, !parts[0].isEmpty, !parts[1].isEmpty else {
                throw .malformedMerge(rank: rank, merge: merge)
            }
            let left = try id(of: Array(parts[0]), in: ids, rank: rank, merge: merge)
            let right = try id(of: Array(parts[1]), in: ids, rank: rank, merge: merge)
            let merged = try id(of: Array(parts[0]) + Array(parts[1]), in: ids, rank: rank, merge: merge)
            table.insert(left: left, right: right, merge: .init(rank: UInt32(rank), merged: merged))
        }
        return table
    }

    private static func id(
        of stored: [UInt8], in ids: [[UInt8]: TokenID], rank: Int, merge: String
    ) throws(TokenizerError) -> TokenID {
        guard let id = ids[stored] else {
            throw .mergeNotInVocabulary(
                rank: rank, merge: merge, missing: String(decoding: stored, as: UTF8.self))
        }
        return id
    }
}

extension Tokenizer {
    package func encode(_ text: String, specialTokens: SpecialTokens) -> [TokenID] {
        spans(of: text, specialTokens: specialTokens).map(\.id)
    }

    /// The tokens with the bytes of `text` they stand for: ascending, and without gaps but for unencodable bytes.
    package func spans(of text: String, specialTokens mode: SpecialTokens) -> [TokenSpan] {
        let utf8 = Array(text.utf8)
        var spans: [TokenSpan] = []
        // English averages about four bytes a token.
        spans.reserveCapacity(utf8.count / 4)
        var symbols = PieceSymbols()
        var textStart = 0
        if mode == .parse {
            var offset = 0
            while offset < utf8.count {
                guard let special = specialTokens.match(in: utf8, at: offset) else {
                    offset += 1
                    continue
                }
                encodeText(utf8, textStart..<offset, &symbols, into: &spans)
                spans.append(special)
                offset = special.utf8Range.upperBound
                textStart = offset
            }
        }
        encodeText(utf8, textStart..<utf8.count, &symbols, into: &spans)
        return spans
    }

    private func encodeText(
        _ utf8: [UInt8], _ range: Range<Int>, _ symbols: inout PieceSymbols, into spans: inout [TokenSpan]
    ) {
        guard !range.isEmpty else { return }
        guard addSpacePrefix, utf8[range.lowerBound] != UInt8(ascii: " ") else {
            encodePieces(utf8, range, offsetBy: 0, &symbols, into: &spans)
            return
        }
        // The added space belongs to no byte of the text: its token starts where the text does.
        let prefixed = [UInt8(ascii: " ")] + utf8[range]
        let first = spans.count
        encodePieces(prefixed, 0..<prefixed.count, offsetBy: range.lowerBound - 1, &symbols, into: &spans)
        if first < spans.count {
            let span = spans[first]
            spans[first] = TokenSpan(id: span.id, utf8Range: range.lowerBound..<span.utf8Range.upperBound)
        }
    }

    private func encodePieces(
        _ utf8: [UInt8], _ range: Range<Int>, offsetBy shift: Int,
        _ symbols: inout PieceSymbols, into spans: inout [TokenSpan]
    ) {
        preTokenizer.forEachPiece(utf8, range) { piece in
            symbols.removeAll()
            for offset in piece {
                guard let token = byteTokens[Int(utf8[offset])] else { continue }
                symbols.append(token, utf8Range: offset + shift..<offset + shift + 1)
            }
            symbols.merge(by: merges, into: &spans)
        }
    }
}

extension Tokenizer {
    package func kind(of id: TokenID) throws(TokenizerError) -> TokenKind {
        try check(id)
        return kinds[Int(id)]
    }

    /// The bytes that the token stands for: of a control token, its text.
    package func bytes(of id: TokenID) throws(TokenizerError) -> ArraySlice<UInt8> {
        try check(id)
        let index = Int(id)
        return tokenBytes[(index == 0 ? 0 : tokenEnds[index - 1])..<tokenEnds[index]]
    }

    package func decode(_ ids: [TokenID]) throws(TokenizerError) -> [UInt8] {
        var decoded: [UInt8] = []
        for id in ids { decoded.append(contentsOf: try bytes(of: id)) }
        return decoded
    }

    /// Bytes that are no UTF-8 become U+FFFD.
    package func decodedText(_ ids: [TokenID]) throws(TokenizerError) -> String {
        String(decoding: try decode(ids), as: UTF8.self)
    }

    private func check(_ id: TokenID) throws(TokenizerError) {
        guard id >= 0, Int(id) < vocabularySize else {
            throw .tokenOutOfRange(id: id, vocabularySize: vocabularySize)
        }
    }
}

extension Tokenizer {
    package var bosToken: String? { bosTokenID.flatMap(text) }
    package var eosToken: String? { eosTokenID.flatMap(text) }

    private func text(_ id: TokenID) -> String? {
        // Both ids were checked by `init`.
        (try? bytes(of: id)).map { String(decoding: $0, as: UTF8.self) }
    }

    /// Where the last control or user-defined token in the bytes ends, as an index of the slice; nil without one.
    package func endOfLastSpecialToken(in utf8: ArraySlice<UInt8>) -> Int? {
        let text = Array(utf8)
        var last: Int?
        var offset = 0
        while offset < text.count {
            guard let special = specialTokens.match(in: text, at: offset) else {
                offset += 1
                continue
            }
            offset = special.utf8Range.upperBound
            last = utf8.startIndex + offset
        }
        return last
    }
}
