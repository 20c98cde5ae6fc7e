// Turns tokens into text while they are being generated. A character may need several tokens, so bytes that could
// still become a character are held back; what is returned never has to be taken back. Concatenated, the returned texts
// equal `Tokenizer.decodedText` of all the tokens.

package struct StreamingDecoder: Sendable {
    private let tokenizer: Tokenizer
    /// At most three bytes: a valid but incomplete UTF-8 sequence.
    private var heldBack: [UInt8] = []

    package init(_ tokenizer: Tokenizer) {
        self.tokenizer = tokenizer
    }

    /// The text that `id` completes; empty while a character is incomplete.
    package mutating func append(_ id: TokenID) throws(TokenizerError) -> String {
        heldBack.append(contentsOf: try tokenizer.bytes(of: id))
        let complete = heldBack.count - Self.incompleteSuffixLength(heldBack)
        defer { heldBack.removeFirst(complete) }
        return String(decoding: heldBack[..<complete], as: UTF8.self)
    }

    /// What is left at the end of the stream: an incomplete character becomes U+FFFD.
    package mutating func finish() -> String {
        defer { heldBack.removeAll() }
        return String(decoding: heldBack, as: UTF8.self)
    }

    /// Length of the longest suffix that more bytes could turn into a character (Unicode 16, table 3-7).
    private static func incompleteSuffixLength(_ bytes: [UInt8]) -> Int {
        for length in stride(from: min(3, bytes.count), to: 0, by: -1) {
            let suffix = bytes.suffix(length)
            guard let lead = suffix.first else { continue }
            let needed = lead >= 0xF0 && lead <= 0xF4 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC2 ? 2 : 1
            guard lead <= 0xF4, length < needed else { continue }
            if suffix.dropFirst().enumerated().allSatisfy({ isContinuation($1, at: $0, after: lead) }) {
                return length
            }
        }
        return 0
    }

    private static func isContinuation(_ byte: UInt8, at position: Int, after lead: UInt8) -> Bool {
        guard position == 0 else { return (0x80...0xBF).contains(byte) }
        switch lead {
        case 0xE0: return (0xA0...0xBF).contains(byte)
        case 0xED: return (0x80...0x9F).contains(byte)
        case 0xF0: return (0x90...0xBF).contains(byte)
        case 0xF4: return (0x80...0x8F).contains(byte)
        default: return (0x80...0xBF).contains(byte)
        }
    }
}
