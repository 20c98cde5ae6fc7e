// What of a sample is text, and which of that text is learned. A conversation is rendered whole; the loss of an assistant
// turn begins where the prompt for it ends and stops after the turn's last special token (its end-of-turn token). The
// text is tokenised in one go, so the ids are those of the whole text, and a token carries loss when it begins in a
// stretch that does.

/// Which tokens count.
package enum LossScope: Sendable {
    /// What the model is to write: assistant turns, completions, outputs; plain text entirely.
    case completions
    /// Prompts as well (`train_on_inputs`).
    case everything
}

package struct TrainingText: Sendable, Equatable {
    package struct Segment: Sendable, Equatable {
        package let text: String
        package let carriesLoss: Bool
    }

    /// In the order of the text.
    package let segments: [Segment]
    /// Whether the tokens get the model's BOS (if it wants one) and EOS. A chat template writes its own.
    package let boundaries: Boundaries

    package enum Boundaries: Sendable {
        case fromModel
        case inText
    }

    package var text: String { segments.map(\.text).joined() }
}

package struct TokenizedSample: Sendable, Equatable {
    package var tokens: [TokenID]
    /// Whether predicting `tokens[i]` from `tokens[..<i]` counts. The first is false: nothing predicts it.
    package var carriesLoss: [Bool]

    package init(tokens: [TokenID], carriesLoss: [Bool]) {
        self.tokens = tokens
        self.carriesLoss = carriesLoss
    }
}

package enum TrainingTextError: Error, Equatable {
    /// `messages` need the model's chat template.
    case missingChatTemplate
    case noAssistantTurn(turns: Int)
    /// The prompt for the turn is not how the whole conversation begins, so the turn's part of it is unknown.
    /// `turn` counts from zero; `commonBytes` is how far the two agree.
    case templateRewritesHistory(turn: Int, promptBytes: Int, commonBytes: Int)
    case chatTemplate(ChatTemplateError)
}

extension TrainingTextError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .missingChatTemplate: "messages need a chat template, and the model has none"
        case .noAssistantTurn(let turns):
            "none of the \(turns) messages is an assistant's, so there is nothing to learn"
        case .templateRewritesHistory(let turn, let promptBytes, let commonBytes):
            "the chat template does not render messages[..<\(turn)] as the beginning of the conversation: "
                + "they agree for \(commonBytes) of \(promptBytes) bytes"
        case .chatTemplate(let error): error.description
        }
    }
}

extension TrainingText {
    package init(
        _ sample: DatasetSample, chatTemplate: ChatTemplate?, tokenizer: Tokenizer,
        lossScope: LossScope = .completions
    ) throws(TrainingTextError) {
        switch (sample, chatTemplate) {
        case (.messages, nil):
            throw .missingChatTemplate
        case (.messages(let messages), let template?):
            self = try Self.conversation(messages, template, tokenizer, lossScope)
        case (.promptCompletion(let prompt, let completion), let template?):
            self = try Self.conversation(Self.exchange(prompt, completion), template, tokenizer, lossScope)
        case (.instruction(let instruction, let input, let output), let template?):
            let prompt = Self.prompt(instruction, input: input)
            self = try Self.conversation(Self.exchange(prompt, output), template, tokenizer, lossScope)
        case (.promptCompletion(let prompt, let completion), nil):
            self.init(prompt: prompt, completion: completion, lossScope)
        case (.instruction(let instruction, let input, let output), nil):
            self.init(prompt: Self.prompt(instruction, input: input) + "\n\n", completion: output, lossScope)
        case (.text(let text), _):
            self.init(prompt: "", completion: text, lossScope)
        }
    }

    private init(prompt: String, completion: String, _ lossScope: LossScope) {
        segments = [
            Segment(text: prompt, carriesLoss: lossScope == .everything),
            Segment(text: completion, carriesLoss: true),
        ]
        boundaries = .fromModel
    }

    private static func prompt(_ instruction: String, input: String?) -> String {
        input.map { instruction + "\n\n" + $0 } ?? instruction
    }

    private static func exchange(_ user: String, _ assistant: String) -> [Message] {
        [Message(role: "user", content: user), Message(role: "assistant", content: assistant)]
    }

    private static func conversation(
        _ messages: [Message], _ template: ChatTemplate, _ tokenizer: Tokenizer, _ lossScope: LossScope
    ) throws(TrainingTextError) -> TrainingText {
        let whole = try rendered(messages[...], .omitted, template, tokenizer)
        guard lossScope == .completions else {
            return TrainingText(segments: [segment(whole[...], carriesLoss: true)], boundaries: .inText)
        }
        guard messages.contains(where: { $0.role == "assistant" }) else {
            throw .noAssistantTurn(turns: messages.count)
        }
        var segments: [Segment] = []
        var segmented = 0
        for turn in messages.indices where messages[turn].role == "assistant" {
            let prompt = try rendered(messages[..<turn], .appended, template, tokenizer)
            let prefix =
                turn == messages.indices.last
                ? whole : try rendered(messages[...turn], .omitted, template, tokenizer)
            // What follows the turn may differ: some templates end a conversation with a token of its own.
            let common = commonPrefixLength(prefix, whole)
            let promptCommon = min(common, commonPrefixLength(prompt, prefix))
            guard promptCommon == prompt.count, prompt.count >= segmented else {
                throw .templateRewritesHistory(turn: turn, promptBytes: prompt.count, commonBytes: promptCommon)
            }
            let start = prompt.count
            let end = tokenizer.endOfLastSpecialToken(in: whole[start..<common]) ?? common
            segments.append(segment(whole[segmented..<start], carriesLoss: false))
            segments.append(segment(whole[start..<end], carriesLoss: true))
            segmented = end
        }
        segments.append(segment(whole[segmented...], carriesLoss: false))
        return TrainingText(segments: segments.filter { !$0.text.isEmpty }, boundaries: .inText)
    }

    private static func segment(_ utf8: ArraySlice<UInt8>, carriesLoss: Bool) -> Segment {
        Segment(text: String(decoding: utf8, as: UTF8.self), carriesLoss: carriesLoss)
    }

    private static func rendered(
        _ messages: ArraySlice<Message>, _ prompt: GenerationPrompt, _ template: ChatTemplate, _ tokenizer: Tokenizer
    ) throws(TrainingTextError) -> [UInt8] {
        do {
            return Array(
                try template.render(
                    messages: Array(messages), addGenerationPrompt: prompt, bosToken: tokenizer.bosToken,
                    eosToken: tokenizer.eosToken
                ).utf8)
        } catch { throw .chatTemplate(error) }
    }

    /// In bytes, to the start of a scalar.
    private static func commonPrefixLength(_ left: [UInt8], _ right: [UInt8]) -> Int {
        var length = 0
        while length < min(left.count, right.count), left[length] == right[length] { length += 1 }
        while length > 0, length < left.count, left[length] & 0xC0 == 0x80 { length -= 1 }
        return length
    }
}

extension TrainingText {
    /// The ids of the whole text, and which of them carry loss.
    package func tokenized(by tokenizer: Tokenizer) -> TokenizedSample {
        var sample = TokenizedSample(tokens: [], carriesLoss: [])
        var segment = 0
        var segmentEnd = segments.first?.text.utf8.count ?? 0
        for span in tokenizer.spans(of: text, specialTokens: .parse) {
            while span.utf8Range.lowerBound >= segmentEnd, segment + 1 < segments.count {
                segment += 1
                segmentEnd += segments[segment].text.utf8.count
            }
            sample.tokens.append(span.id)
            sample.carriesLoss.append(segments[segment].carriesLoss)
        }
        if boundaries == .fromModel { addBoundaries(of: tokenizer, to: &sample) }
        if !sample.carriesLoss.isEmpty { sample.carriesLoss[0] = false }
        return sample
    }

    /// A text that already has the token keeps just the one.
    private func addBoundaries(of tokenizer: Tokenizer, to sample: inout TokenizedSample) {
        if tokenizer.addBOS, let bos = tokenizer.bosTokenID, sample.tokens.first != bos {
            sample.tokens.insert(bos, at: 0)
            sample.carriesLoss.insert(false, at: 0)
        }
        if let eos = tokenizer.eosTokenID, sample.tokens.last != eos {
            sample.tokens.append(eos)
            sample.carriesLoss.append(true)
        }
    }
}
