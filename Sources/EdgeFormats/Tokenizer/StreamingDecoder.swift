// Turns tokens into text while they are being generated. A character may need several tokens, so bytes that could still
// become a character are held back: of a byte-level vocabulary an incomplete character, of one with byte tokens the
// whole run of them, for a bad byte spoils the run. What is returned never has to be taken back. Concatenated, the
// returned texts equal `Tokenizer.decodedText` of all the tokens.

package struct StreamingDecoder: Sendable {
    private let tokenizer: Tokenizer
    private var decoding: TokenDecoding

    package init(_ tokenizer: Tokenizer) {
        self.tokenizer = tokenizer
        decoding = tokenizer.decoding(.replaced)
    }

    /// The text that `id` completes; empty while a character is incomplete.
    package mutating func append(_ id: TokenID) throws(TokenizerError) -> String {
        var text: [UInt8] = []
        try tokenizer.append(id, to: &decoding, &text)
        return String(decoding: text, as: UTF8.self)
    }

    /// What is left at the end of the stream.
    package mutating func finish() -> String {
        var text: [UInt8] = []
        decoding.finish(&text)
        decoding = tokenizer.decoding(.replaced)
        return String(decoding: text, as: UTF8.self)
    }
}
