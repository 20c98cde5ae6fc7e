// Chat templates: somebody else's program, compiled and rendered within its bounds, and the loss mask that is made of what it
// wrote.
//
// Claims: no template traps, overflows the stack or runs past its bounds, whatever the conversation; refusals are
// ChatTemplateError, TrainingTextError or DatasetError.Reason; the segments of a text are its rendering; the heap holds at most
// 256 bytes for each byte of the input and four times the bounds for made and written bytes.
import EdgeFormats

extension FuzzTarget {
    /// A template and a line of a data set, with a zero byte between them.
    static let chatTemplate = FuzzTarget(
        name: "chat-template", longestInput: 4096,
        heap: HeapClaim(bytesPerByte: 256, fixedBytes: 4 * (bounds.madeBytes + bounds.outputBytes)),
        errors: [ChatTemplateError.self, TrainingTextError.self, DatasetError.Reason.self]
    ) { bytes in
        let parts = Parts.ofText(bytes, most: 2)
        let template = try ChatTemplate.compile(String(decoding: parts[0], as: UTF8.self), limits: bounds)
        let line = parts.count > 1 ? parts[1] : Array(conversation.utf8)
        let sample = try DatasetLine.sample(line)
        let text = try TrainingText(sample, chatTemplate: template, tokenizer: try tokenizer.get())
        if case .messages(let messages, let tools) = sample {
            let tokenizer = try tokenizer.get()
            let rendered = try template.render(
                messages: messages, tools: tools, bosToken: tokenizer.bosToken, eosToken: tokenizer.eosToken)
            try BrokenClaim.unless(
                rendered.utf8.elementsEqual(text.text.utf8), "what is learned of is what the template writes")
        }
        let tokenized = text.tokenized(by: try tokenizer.get())
        try BrokenClaim.unless(tokenized.tokens.count == tokenized.carriesLoss.count, "each token carries loss or not")
    }

    /// Steps for a hundredth of a second; the depth is the standard's, for the stack is what it guards.
    private static let bounds = TemplateLimits(
        sourceBytes: 1 << 20, outputBytes: 64 << 10, steps: 20_000, madeBytes: 1 << 20,
        depth: TemplateLimits.standard.depth)

    private static let conversation = """
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "1 + 1?"}, \
        {"role": "assistant", "content": "2", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}, \
        {"role": "tool", "content": "é"}, {"role": "assistant", "content": "<think>x</think>y"}], \
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}
        """

    private static let tokenizer = Result { () throws -> Tokenizer in
        var spec = TokenizerSpec(
            tokens: (["<s>", "</s>", "<|im_end|>"] + (0x20..<0x7F).map { String(UnicodeScalar($0)) }).map { Array($0.utf8) },
            model: .pairMerges(PairMergeModel(symbols: .bytes, merges: [])))
        spec.addedTokens = (0..<3).map { AddedToken(id: $0, content: spec.tokens[Int($0)], isSpecial: true) }
        spec.idsOutsideModel = [0, 1, 2]
        (spec.bosTokenID, spec.eosTokenID) = (0, 1)
        return try Tokenizer(spec)
    }
}
