// Tokenizers: a tokenizer.json with its tokenizer_config.json, and the tokenizer keys of a GGUF header; each compiled, then
// used on a text.
//
// Claims: nothing traps; refusals are TokenizerError, JSONTextError, GGUFError or ChatTemplateError; the ids of a text lie in
// the vocabulary, their spans in the text; ids decode; the heap holds at most 256 bytes for each byte of the
// input; time is linear in the tokenizer and, for texts of ordinary pieces, in the text.
import EdgeFormats

extension FuzzTarget {
    /// tokenizer.json, tokenizer_config.json and a text, with zero bytes between them.
    static let tokenizerJSON = FuzzTarget(
        name: "tokenizer-json", longestInput: 8192, heap: HeapClaim(bytesPerByte: 256, fixedBytes: 1 << 20),
        errors: [TokenizerError.self, JSONTextError.self]
    ) { bytes in
        let parts = Parts.ofText(bytes, most: 3)
        let spec = try TokenizerSpec(tokenizerJSON: parts[0], config: parts.count > 1 && !parts[1].isEmpty ? parts[1] : nil)
        try use(try Tokenizer(spec), on: parts.count > 2 ? String(decoding: parts[2], as: UTF8.self) : nil)
    }

    /// A GGUF header.
    static let tokenizerGGUF = FuzzTarget(
        name: "tokenizer-gguf", longestInput: 8192, heap: HeapClaim(bytesPerByte: 256, fixedBytes: 1 << 20),
        errors: [TokenizerError.self, JSONTextError.self, GGUFError.self, ChatTemplateError.self]
    ) { bytes in
        let file = try GGUFFile(ByteRegion.copy(of: Array(bytes)))
        try use(try Tokenizer(try TokenizerSpec(gguf: file)), on: nil)
        _ = try ChatTemplate.compile(gguf: file)
    }

    private static let texts = [
        "", "Hello, world!  It's 2026\n\n\tand <s>é\u{301}가</s> <|im_end|>▁x\u{0}", String(repeating: "aab ", count: 50),
    ]

    private static func use(_ tokenizer: Tokenizer, on text: String?) throws {
        for text in texts + (text.map { [$0] } ?? []) {
            var ids: [TokenID] = []
            for mode in [SpecialTokens.parse, .asText] {
                let spans = tokenizer.spans(of: text, specialTokens: mode)
                for span in spans {
                    try BrokenClaim.unless((0..<tokenizer.vocabularySize).contains(Int(span.id)), "id \(span.id)")
                    try BrokenClaim.unless(
                        span.utf8Range.lowerBound >= 0 && span.utf8Range.upperBound <= text.utf8.count,
                        "the span \(span.utf8Range) of a text of \(text.utf8.count)")
                }
                ids = spans.map(\.id)
            }
            _ = try tokenizer.decode(ids)
            _ = try tokenizer.decodedText(ids)
            _ = tokenizer.endOfLastSpecialToken(in: Array(text.utf8)[...])
        }
    }
}
