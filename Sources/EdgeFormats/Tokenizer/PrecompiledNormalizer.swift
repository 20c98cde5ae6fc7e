// SentencePiece's compiled normalization rules: a double-array trie from byte strings to their replacements
// (google/sentencepiece, normalizer.cc; s-yata/darts-clone, darts.h). Read as huggingface/tokenizers reads them
// (crate spm_precompiled): per grapheme, and of the rules that match the shortest.
//
//     u32 trieBytes | trieBytes/4 x u32 unit | replacements, each ended by NUL
//     unit: bits 0-7 label · 8 has a leaf · 9 offset is 256 times as large · 10-30 offset · 31 is a leaf

package struct PrecompiledNormalizer: Sendable, Equatable {
    private let units: [UInt32]
    private let replacements: [UInt8]

    /// - Throws: `TokenizerError.malformedCharacterMap` with the sizes when the trie does not fit.
    package init(_ bytes: [UInt8]) throws(TokenizerError) {
        func word(_ offset: Int) -> UInt32 {
            (0..<4).reduce(0) { $0 | UInt32(bytes[offset + $1]) << UInt32(8 * $1) }
        }
        guard bytes.count >= 4 else { throw .malformedCharacterMap(bytes: bytes.count, trieBytes: 0) }
        let trieBytes = Int(word(0))
        guard trieBytes >= 4, trieBytes.isMultiple(of: 4), trieBytes <= bytes.count - 4 else {
            throw .malformedCharacterMap(bytes: bytes.count, trieBytes: trieBytes)
        }
        units = (0..<trieBytes / 4).map { word(4 + 4 * $0) }
        replacements = Array(bytes[(4 + trieBytes)...])
    }

    /// What the shortest rule that `text` starts with says; nil without one, or when the trie points outside itself.
    private func replacement(of text: ArraySlice<UInt8>) -> ArraySlice<UInt8>? {
        func offset(_ unit: UInt32) -> Int { Int((unit >> 10) << ((unit & (1 << 9)) >> 6)) }
        var node = offset(units[0])
        for byte in text {
            node ^= Int(byte)
            guard byte != 0, node < units.count, units[node] & (1 << 31 | 0xFF) == UInt32(byte) else { return nil }
            let unit = units[node]
            node ^= offset(unit)
            guard unit & (1 << 8) != 0 else { continue }
            guard node < units.count else { return nil }
            let start = Int(units[node] & (1 << 31 - 1))
            guard start < replacements.count else { return nil }
            let end = replacements[start...].firstIndex(of: 0) ?? replacements.count
            return replacements[start..<end]
        }
        return nil
    }

    func normalized(_ text: AlignedText) -> AlignedText {
        var ranges: [Range<Int>] = []
        var offset = 0
        for grapheme in String(decoding: text.utf8, as: UTF8.self) {
            let length = grapheme.utf8.count
            // Longer graphemes are not looked up whole, by upstream's choice.
            if length < 6, replacement(of: text.utf8[offset..<offset + length]) != nil {
                ranges.append(offset..<offset + length)
                offset += length
                continue
            }
            for scalar in grapheme.unicodeScalars {
                ranges.append(offset..<offset + scalar.utf8.count)
                offset += scalar.utf8.count
            }
        }
        return text.replacing(ranges) { replacement(of: text.utf8[$0]) }
    }
}
