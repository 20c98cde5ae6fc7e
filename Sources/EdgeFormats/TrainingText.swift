// What of a sample is text, and which of that text is learned: of a conversation what the assistant wrote
// (AssistantSpans). The text is tokenised in one go, so the ids are those of the whole text, and a token carries loss
// when it begins in a stretch that does.

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
    /// Number of its task among the job's; nil: the job has none.
    package var task: Int?

    package init(tokens: [TokenID], carriesLoss: [Bool]) {
        self.tokens = tokens
        self.carriesLoss = carriesLoss
    }
}

package enum TrainingTextError: Error, Equatable {
    /// `messages` need the model's chat template.
    case missingChatTemplate
    case noAssistantTurn(turns: Int)
    /// The template marks what the assistant writes, and marked nothing of this conversation.
    case nothingMarked(turns: Int)
    /// The template writes this assistant's turn nowhere, or in more than one place. It counts from zero.
    case turnNotFound(turn: Int)
    /// What the model is given before it writes is not how the template writes the turn. It counts from zero.
    case promptNotFound(turn: Int)
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
        case .nothingMarked(let turns):
            "the chat template marks what the assistant writes, and marks nothing in the \(turns) messages"
        case .turnNotFound(let turn):
            "the chat template writes messages[\(turn)] nowhere, or in more than one place, so what to learn is unknown"
        case .promptNotFound(let turn):
            "the chat template writes messages[\(turn)] without its own prompt for it, so what to learn is unknown"
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
        case (.messages(let messages, let tools), let template?):
            let conversation = Conversation(messages: messages, tools: tools, template: template, tokenizer: tokenizer)
            self = try Self.conversation(conversation, lossScope)
        case (.promptCompletion(let prompt, let completion), let template?):
            self = try Self.conversation(Self.exchange(prompt, completion, template, tokenizer), lossScope)
        case (.instruction(let instruction, let input, let output), let template?):
            let prompt = Self.prompt(instruction, input: input)
            self = try Self.conversation(Self.exchange(prompt, output, template, tokenizer), lossScope)
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

    private static func exchange(
        _ user: String, _ assistant: String, _ template: ChatTemplate, _ tokenizer: Tokenizer
    ) -> Conversation {
        let messages = [Message(role: "user", content: user), Message(role: "assistant", content: assistant)]
        return Conversation(messages: messages, tools: nil, template: template, tokenizer: tokenizer)
    }

    private static func conversation(
        _ conversation: Conversation, _ lossScope: LossScope
    ) throws(TrainingTextError) -> TrainingText {
        guard lossScope == .completions else {
            let whole = try conversation.rendered()
            return TrainingText(segments: [segment(whole.utf8[...], carriesLoss: true)], boundaries: .inText)
        }
        let (whole, spans) = try conversation.assistantSpans()
        var segments: [Segment] = []
        var segmented = 0
        for span in spans {
            segments.append(segment(whole[segmented..<span.lowerBound], carriesLoss: false))
            segments.append(segment(whole[span], carriesLoss: true))
            segmented = span.upperBound
        }
        segments.append(segment(whole[segmented...], carriesLoss: false))
        return TrainingText(segments: segments.filter { !$0.text.isEmpty }, boundaries: .inText)
    }

    private static func segment(_ utf8: ArraySlice<UInt8>, carriesLoss: Bool) -> Segment {
        Segment(text: String(decoding: utf8, as: UTF8.self), carriesLoss: carriesLoss)
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
