// Byte-pair encoding of one piece: its first symbols, and what merging makes of them. Ids equal those of
// huggingface/tokenizers (models/bpe/model.rs), also where the vocabulary is incomplete.

struct PairMergeEncoder: Sendable {
    private let vocabulary: Vocabulary
    private let model: PairMergeModel
    private let merges: BytePairMerges
    /// The token of each byte alone: in the byte alphabet, or `<0x0A>`-style.
    let byteTokens: [TokenID?]

    init(_ model: PairMergeModel, _ vocabulary: Vocabulary) {
        self.model = model
        self.vocabulary = vocabulary
        merges = BytePairMerges(model.merges)
        byteTokens = (UInt8.min...UInt8.max).map { byte in
            switch model.symbols {
            case .bytes: vocabulary.id(of: ByteAlphabet.encoded(byte)[...])
            case .scalars: vocabulary.id(of: byteToken(byte)[...])
            }
        }
    }

    /// Bytes that no token stands for, ascending: text with them loses them. None where symbols are scalars.
    var unencodableBytes: [UInt8] {
        guard case .bytes = model.symbols, model.unknown == nil else { return [] }
        return byteTokens.indices.filter { byteTokens[$0] == nil }.map { UInt8($0) }
    }

    /// Appends the piece's tokens with where they lie in `utf8`.
    func encode(_ utf8: [UInt8], _ piece: Range<Int>, _ symbols: inout PieceSymbols, into spans: inout [TokenSpan]) {
        if model.ignoresMerges, let token = wholeToken(utf8[piece]) {
            spans.append(TokenSpan(id: token, utf8Range: piece))
            return
        }
        symbols.removeAll()
        switch model.symbols {
        case .bytes: appendBytes(utf8, piece, to: &symbols)
        case .scalars(let fallback): appendScalars(utf8, piece, fallback, to: &symbols)
        }
        symbols.merge(by: merges, into: &spans)
    }

    private func wholeToken(_ piece: ArraySlice<UInt8>) -> TokenID? {
        switch model.symbols {
        case .scalars: return vocabulary.id(of: piece)
        case .bytes:
            // Longer than any token: not worth spelling.
            guard piece.count <= TokenizerSpec.longestToken else { return nil }
            var spelled: [UInt8] = []
            spelled.reserveCapacity(2 * piece.count)
            for byte in piece { ByteAlphabet.append(byte, to: &spelled) }
            return vocabulary.id(of: spelled[...])
        }
    }

    private func appendBytes(_ utf8: [UInt8], _ piece: Range<Int>, to symbols: inout PieceSymbols) {
        var unknown: Range<Int>?
        for offset in piece {
            if let token = byteTokens[Int(utf8[offset])] {
                flush(&unknown, to: &symbols)
                symbols.append(token, utf8Range: offset..<offset + 1)
            } else {
                extend(&unknown, by: offset..<offset + 1, &symbols)
            }
        }
        flush(&unknown, to: &symbols)
    }

    private func appendScalars(
        _ utf8: [UInt8], _ piece: Range<Int>, _ fallback: PairMergeModel.Fallback, to symbols: inout PieceSymbols
    ) {
        var unknown: Range<Int>?
        var start = piece.lowerBound
        while start < piece.upperBound {
            var end = start + 1
            while end < piece.upperBound, utf8[end] & 0xC0 == 0x80 { end += 1 }
            if let token = vocabulary.id(of: utf8[start..<end]) {
                flush(&unknown, to: &symbols)
                symbols.append(token, utf8Range: start..<end)
            } else if fallback == .bytesForUnknown,
                (start..<end).allSatisfy({ byteTokens[Int(utf8[$0])] != nil })
            {
                // An unknown symbol that is still waiting comes after these bytes, upstream as here.
                for offset in start..<end {
                    if let token = byteTokens[Int(utf8[offset])] {
                        symbols.append(token, utf8Range: offset..<offset + 1)
                    }
                }
            } else {
                extend(&unknown, by: start..<end, &symbols)
            }
            start = end
        }
        flush(&unknown, to: &symbols)
    }

    private func extend(_ unknown: inout Range<Int>?, by range: Range<Int>, _ symbols: inout PieceSymbols) {
        if let waiting = unknown, model.fusesUnknown {
            unknown = waiting.lowerBound..<range.upperBound
        } else {
            flush(&unknown, to: &symbols)
            unknown = range
        }
    }

    private func flush(_ unknown: inout Range<Int>?, to symbols: inout PieceSymbols) {
        if let range = unknown, let token = model.unknown { symbols.append(token, utf8Range: range) }
        unknown = nil
    }
}

/// `<0x0A>`
func byteToken(_ byte: UInt8) -> [UInt8] {
    let digits = Array("0123456789ABCDEF".utf8)
    return Array("<0x".utf8) + [digits[Int(byte >> 4)], digits[Int(byte & 15)], UInt8(ascii: ">")]
}
