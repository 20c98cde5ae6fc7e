// Which bytes of a rendered conversation the assistant wrote. A template that marks them (`{% generation %}`) is believed.
// Of any other the engine knows what each iteration of its loop over the turns wrote; of an assistant's turn, what the
// model is given before it writes (the generation prompt) comes off the front, and what follows the end-of-turn token
// off the end. So a template may rewrite history (drop old thoughts, move tools to the last question) without an effect
// on what is learned of it. For a template that has no loop over the turns, prefixes of the conversation are compared,
// and the conversation is refused when they are not its beginning.

/// A conversation and what renders it.
struct Conversation {
    let messages: [Message]
    let tools: JinjaValue?
    let template: ChatTemplate
    let tokenizer: Tokenizer

    typealias Rendering = (utf8: [UInt8], trace: RenderingTrace)

    /// - Returns: the whole text, and the assistant's parts of it in order, none of them empty.
    func assistantSpans() throws(TrainingTextError) -> (text: [UInt8], spans: [Range<Int>]) {
        let whole = try rendered()
        if template.hasGenerationMarkers {
            let spans = Self.merged(whole.trace.generations)
            guard !spans.isEmpty else { throw .nothingMarked(turns: messages.count) }
            return (whole.utf8, spans)
        }
        let assistantTurns = messages.indices.filter { messages[$0].role == "assistant" }
        guard !assistantTurns.isEmpty else { throw .noAssistantTurn(turns: messages.count) }
        let spans =
            whole.trace.turns.contains { assistantTurns.contains($0.turn) }
            ? try spansOfIterations(assistantTurns, whole) : try spansOfPrefixes(assistantTurns, whole)
        return (whole.utf8, spans.filter { !$0.isEmpty })
    }

    func rendered(
        _ messages: [Message]? = nil, _ prompt: GenerationPrompt = .omitted
    ) throws(TrainingTextError) -> Rendering {
        do {
            let (text, trace) = try template.traced(
                messages: messages ?? self.messages, tools: tools, addGenerationPrompt: prompt,
                bosToken: tokenizer.bosToken, eosToken: tokenizer.eosToken)
            return (Array(text.utf8), trace)
        } catch { throw .chatTemplate(error) }
    }

    /// Markers inside markers count once.
    private static func merged(_ ranges: [Range<Int>]) -> [Range<Int>] {
        var merged: [Range<Int>] = []
        for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) where !range.isEmpty {
            if let last = merged.last, range.lowerBound < last.upperBound {
                merged[merged.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
            } else {
                merged.append(range)
            }
        }
        return merged
    }
}

// By what the iterations over the turns wrote.
extension Conversation {
    private func spansOfIterations(
        _ turns: [Int], _ whole: Rendering
    ) throws(TrainingTextError) -> [Range<Int>] {
        var spans: [Range<Int>] = []
        var start = TurnStart()
        for turn in turns {
            let written = whole.trace.turns.filter { $0.turn == turn }
            guard written.count == 1, let range = written.first?.utf8Range else {
                guard written.isEmpty, !messages[turn].hasText else { throw .turnNotFound(turn: turn) }
                continue
            }
            guard try isWritten(turn, as: whole.utf8[range]) else { throw .turnNotFound(turn: turn) }
            let length = try startLength(of: turn, written: whole.utf8[range], whole, &start)
            let rest = range.lowerBound + length..<range.upperBound
            let span = rest.lowerBound..<(try end(of: turn, rest, in: whole.utf8))
            guard spans.allSatisfy({ !$0.overlaps(span) }) else { throw .turnNotFound(turn: turn) }
            spans.append(span)
        }
        return spans.sorted { $0.lowerBound < $1.lowerBound }
    }

    /// What earlier turns began with; it is the same for every turn of most templates.
    private struct TurnStart {
        /// All of the generation prompt.
        var prompt: [UInt8]?
        /// As much of the prompt as history has.
        var beginning: [UInt8]?
        /// Nothing that is given begins a turn.
        var isAbsent = false
    }

    /// How many of the bytes written for a turn are given to the model instead of written by it.
    private func startLength(
        of turn: Int, written: ArraySlice<UInt8>, _ whole: Rendering, _ known: inout TurnStart
    ) throws(TrainingTextError) -> Int {
        for start in [known.prompt, known.beginning] {
            if let start, written.starts(with: start) { return start.count }
        }
        let (without, with) = try promptPair(of: turn, whole)
        guard with != without else {
            // No prompt, or one that is always written.
            if known.isAbsent { return 0 }
            let frame = try commonFrame(of: turn)
            let length = Self.overlap(ofEnd: with, andBeginning: frame)
            guard frame[..<length].contains(where: { $0 > 0x20 }) else {
                known.isAbsent = true
                return 0
            }
            known.beginning = Array(frame.prefix(length))
            return length
        }
        let prompt = with.starts(with: without) ? with[without.count...] : []
        if !prompt.isEmpty {
            known.prompt = Array(prompt)
            if written.starts(with: prompt) { return prompt.count }
        }
        // The turn's frame begins as the rendering for the prompt ends. (The other rendering may end with a token that
        // ends conversations, so it says nothing of where the prompt begins.)
        let frame = try commonFrame(of: turn)
        var length = Self.overlap(ofEnd: with, andBeginning: frame)
        // A prompt that goes on where history does not ("<think>"): as far as both go, to the end of a line or a token.
        if length == 0 { length = boundary(before: Self.commonPrefixLength(frame, prompt), in: frame) }
        guard length > 0 else { throw .promptNotFound(turn: turn) }
        known.beginning = Array(frame.prefix(length))
        return length
    }

    /// The longest end of the one that is a beginning of the other.
    private static func overlap(ofEnd left: [UInt8], andBeginning right: [UInt8]) -> Int {
        stride(from: min(left.count, right.count), to: 0, by: -1)
            .first { left.suffix($0).elementsEqual(right.prefix($0)) } ?? 0
    }

    /// Whether what was written for a turn depends on what the turn says; a template may rewrite that, and drop parts.
    private func isWritten(_ turn: Int, as written: ArraySlice<UInt8>) throws(TrainingTextError) -> Bool {
        guard let text = messages[turn].content.stringValue else { return true }
        let content = JinjaText.stripped(text, .both)
        if content.isEmpty || JinjaText.contains(String(decoding: written, as: UTF8.self), content) { return true }
        let (first, second) = try frames(of: turn)
        return first != second
    }

    /// The last position up to `limit` that white space or a special token ends at.
    private func boundary(before limit: Int, in utf8: [UInt8]) -> Int {
        let space = utf8[..<limit].lastIndex { $0 == 0x20 || $0 == 0x0A }.map { $0 + 1 } ?? 0
        return max(space, tokenizer.endOfLastSpecialToken(in: utf8[..<limit]) ?? 0)
    }

    /// The conversation before a turn, without and with the prompt for the turn. A template may refuse to render that
    /// much alone; then the same of the whole conversation.
    private func promptPair(
        of turn: Int, _ whole: Rendering
    ) throws(TrainingTextError) -> (without: [UInt8], with: [UInt8]) {
        let before = Array(messages[..<turn])
        do throws(TrainingTextError) {
            let with = try rendered(before, .appended).utf8
            return (try rendered(before).utf8, with)
        } catch {
            guard case .chatTemplate(let reason) = error, reason.isOfTheConversation else { throw error }
            return (whole.utf8, try rendered(messages, .appended).utf8)
        }
    }

    /// What stands before a turn's content whatever the content is.
    private func commonFrame(of turn: Int) throws(TrainingTextError) -> [UInt8] {
        let (first, second) = try frames(of: turn)
        return Array(first.prefix(Self.commonPrefixLength(first, second)))
    }

    /// What is written for a turn with two contents that begin differently.
    private func frames(of turn: Int) throws(TrainingTextError) -> ([UInt8], [UInt8]) {
        var frames: [[UInt8]] = []
        for content in ["Q", "Z"] {
            var messages = messages
            messages[turn].content = .string(content)
            let rendering = try rendered(messages)
            guard let range = rendering.trace.turns.first(where: { $0.turn == turn })?.utf8Range else {
                throw .turnNotFound(turn: turn)
            }
            frames.append(Array(rendering.utf8[range]))
        }
        return (frames[0], frames[1])
    }

    /// After the end-of-turn token, which is the last special token unless more than white space follows. Of a turn that
    /// has none, it is the one that the template writes next even when the conversation ends there.
    private func end(of turn: Int, _ range: Range<Int>, in utf8: [UInt8]) throws(TrainingTextError) -> Int {
        if let end = tokenizer.endOfLastSpecialToken(in: utf8[range]) {
            let isLast = utf8[end..<range.upperBound].allSatisfy { $0 == 0x20 || (0x09...0x0D).contains($0) }
            return isLast ? end : range.upperBound
        }
        let rest = utf8[range.upperBound...]
        let longest = rest.prefix(Self.longestSpecialToken)
        let token = (1...Self.longestSpecialToken).lazy.map { longest.prefix($0) }
            .first { tokenizer.endOfLastSpecialToken(in: $0) == $0.endIndex }
        // A token that begins later is none that follows the turn.
        guard let token, !token.isEmpty, tokenizer.endOfLastSpecialToken(in: token.dropFirst()) != token.endIndex
        else { return range.upperBound }
        let alone = try rendered(Array(messages[...turn]))
        guard let last = alone.trace.turns.last(where: { $0.turn == turn }),
            alone.utf8[last.utf8Range.upperBound...].starts(with: token)
        else { return range.upperBound }
        return token.endIndex
    }

    /// In bytes; longer ones are not looked for after a turn.
    private static let longestSpecialToken = 64
}

// By prefixes of the conversation.
extension Conversation {
    private func spansOfPrefixes(
        _ turns: [Int], _ whole: Rendering
    ) throws(TrainingTextError) -> [Range<Int>] {
        var spans: [Range<Int>] = []
        for turn in turns {
            let prompt = try rendered(Array(messages[..<turn]), .appended).utf8
            let prefix = turn == messages.indices.last ? whole.utf8 : try rendered(Array(messages[...turn])).utf8
            // What follows the turn may differ: some templates end a conversation with a token of its own.
            let common = Self.commonPrefixLength(prefix, whole.utf8)
            let promptCommon = min(common, Self.commonPrefixLength(prompt, prefix))
            guard promptCommon == prompt.count, prompt.count >= spans.last?.upperBound ?? 0,
                whole.utf8.suffix(prefix.count - common).elementsEqual(prefix[common...]),
                !messages[turn].hasText || common > prompt.count
            else { throw .templateRewritesHistory(turn: turn, promptBytes: prompt.count, commonBytes: promptCommon) }
            let end = tokenizer.endOfLastSpecialToken(in: whole.utf8[prompt.count..<common]) ?? common
            spans.append(prompt.count..<end)
        }
        return spans
    }

    /// In bytes, to the start of a scalar.
    private static func commonPrefixLength(_ left: [UInt8], _ right: some Sequence<UInt8>) -> Int {
        var length = 0
        for (mine, other) in zip(left, right) {
            guard mine == other else { break }
            length += 1
        }
        while length > 0, length < left.count, left[length] & 0xC0 == 0x80 { length -= 1 }
        return length
    }
}

extension Message {
    /// Whether there is something to write of this turn.
    fileprivate var hasText: Bool {
        content.isTruthy || ["tool_calls", "reasoning_content", "thinking", "reasoning"].contains {
            extra.value($0)?.isTruthy ?? false
        }
    }
}

extension ChatTemplateError {
    /// The template took offence at what it was given; with another conversation it may not.
    fileprivate var isOfTheConversation: Bool {
        switch self {
        case .raised, .evaluation: true
        default: false
        }
    }
}
