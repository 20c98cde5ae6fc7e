import EdgeFormats
import EdgeTestSupport
import Testing

@Suite struct TrainingTextTests {
    let tokenizer: Tokenizer
    let template: ChatTemplate

    init() throws {
        tokenizer = try TestModel.tokenizer()
        template = try TestModel.chatTemplate()
    }

    static let twoTurns: [Message] = [
        Message(role: "user", content: "One?"), Message(role: "assistant", content: "1"),
        Message(role: "user", content: "Two?"), Message(role: "assistant", content: "\n2 <|im_end|> é"),
    ]

    @Test func onlyAssistantTurnsAndTheirEndCarryLoss() throws {
        let text = try TrainingText(.messages(Self.twoTurns), chatTemplate: template, tokenizer: tokenizer)
        #expect(text.segments.filter(\.carriesLoss).map(\.text) == ["1<|im_end|>", "\n2 <|im_end|> é<|im_end|>"])
        #expect(text.text == (try template.render(messages: Self.twoTurns)))
        let sample = text.tokenized(by: tokenizer)
        #expect(sample.tokens == tokenizer.encode(text.text, specialTokens: .parse))
        #expect(sample.tokens.count == sample.carriesLoss.count)
        let learned = zip(sample.tokens, sample.carriesLoss).filter(\.1).map(\.0)
        #expect(try tokenizer.decodedText(learned) == "1<|im_end|>2 <|im_end|> é<|im_end|>")
    }

    /// The ids of the whole text, and per segment the ids of the segment alone where special tokens bound it.
    @Test func idsAreThoseOfTheWholeText() throws {
        var random = SeededText(seed: 51)
        for _ in 0..<300 {
            var messages: [Message] = []
            for turn in 0..<(2 * Int.random(in: 1...3, using: &random)) {
                messages.append(
                    Message(role: turn.isMultiple(of: 2) ? "user" : "assistant", content: random.text(scalars: 40)))
            }
            let text = try TrainingText(.messages(messages), chatTemplate: template, tokenizer: tokenizer)
            let sample = text.tokenized(by: tokenizer)
            #expect(sample.tokens == tokenizer.encode(text.text, specialTokens: .parse))
            #expect(Array(text.text.utf8) == Array(try template.render(messages: messages).utf8))
            let ends = zip(sample.tokens, sample.carriesLoss).filter { $0 == tokenizer.eosTokenID && $1 }.count
            #expect(ends == messages.count / 2)
        }
    }

    @Test func promptsAndInstructionsBecomeConversations() throws {
        let conversation = DatasetSample.messages([
            Message(role: "user", content: "a\n\nb"), Message(role: "assistant", content: "c"),
        ])
        let expected = try TrainingText(conversation, chatTemplate: template, tokenizer: tokenizer)
        for sample in [
            DatasetSample.promptCompletion(prompt: "a\n\nb", completion: "c"),
            .instruction(instruction: "a", input: "b", output: "c"),
        ] {
            #expect(try TrainingText(sample, chatTemplate: template, tokenizer: tokenizer) == expected)
        }
    }

    @Test func withoutATemplateThePromptPrecedesTheCompletion() throws {
        let text = try TrainingText(
            .promptCompletion(prompt: "Hello ", completion: "world"), chatTemplate: nil, tokenizer: tokenizer)
        let sample = text.tokenized(by: tokenizer)
        #expect(sample.tokens == tokenizer.encode("Hello world<|im_end|>", specialTokens: .parse))
        #expect(sample.carriesLoss.last == true)
        #expect(throws: TrainingTextError.missingChatTemplate) {
            try TrainingText(.messages(Self.twoTurns), chatTemplate: nil, tokenizer: tokenizer)
        }
    }

    @Test func plainTextCarriesLossButForItsFirstToken() throws {
        var spec = try TestModel.tokenizerSpec()
        spec.addBOS = true
        let tokenizer = try Tokenizer(spec)
        let text = try TrainingText(.text("once upon"), chatTemplate: template, tokenizer: tokenizer)
        let sample = text.tokenized(by: tokenizer)
        #expect(sample.tokens == tokenizer.encode("<|im_start|>once upon<|im_end|>", specialTokens: .parse))
        #expect(sample.carriesLoss == [false] + Array(repeating: true, count: sample.tokens.count - 1))
        let bounded = try TrainingText(
            .text("<|im_start|>once upon<|im_end|>"), chatTemplate: nil, tokenizer: tokenizer)
        #expect(bounded.tokenized(by: tokenizer) == sample)
    }

    @Test func trainingOnInputsLearnsEverything() throws {
        let text = try TrainingText(
            .messages(Self.twoTurns), chatTemplate: template, tokenizer: tokenizer, lossScope: .everything)
        let sample = text.tokenized(by: tokenizer)
        #expect(sample.tokens == tokenizer.encode(try template.render(messages: Self.twoTurns), specialTokens: .parse))
        #expect(sample.carriesLoss.dropFirst().allSatisfy { $0 })
    }

    @Test func aConversationMayEndWithATokenOfItsOwn() throws {
        let ending = try ChatTemplate.compile(
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}"
        )
        let text = try TrainingText(.messages(Self.twoTurns), chatTemplate: ending, tokenizer: tokenizer)
        #expect(text.segments.filter(\.carriesLoss).count == 2)
        #expect(text.segments.first(where: \.carriesLoss)?.text.hasPrefix("1") == true)
        #expect(text.segments.first(where: \.carriesLoss)?.text.contains("<|im_end|>") == true)
        #expect(text.segments.last?.text.hasSuffix("<|endoftext|>") == true)
    }

    @Test func aConversationWithoutAnAssistantIsRefused() {
        #expect(throws: TrainingTextError.noAssistantTurn(turns: 1)) {
            try TrainingText(
                .messages([Message(role: "user", content: "a")]), chatTemplate: template, tokenizer: tokenizer)
        }
    }

    @Test func aTemplatesRefusalIsPassedOn() throws {
        let refusing = try ChatTemplate.compile("{{ raise_exception('no') }}")
        #expect(throws: TrainingTextError.chatTemplate(.raised(line: 1, "no"))) {
            try TrainingText(.messages(Self.twoTurns), chatTemplate: refusing, tokenizer: tokenizer)
        }
    }
}
