// Which parts of a rendered conversation are the assistant's, under templates of every manner that models have.
import EdgeFormats
import EdgeTestSupport
import Testing

@Suite struct AssistantSpansTests {
    let tokenizer: Tokenizer

    init() throws { tokenizer = try TestModel.tokenizer() }

    static let twoTurns: [Message] = [
        Message(role: "user", content: "One?"), Message(role: "assistant", content: "<think>a</think>1"),
        Message(role: "user", content: "Two?"), Message(role: "assistant", content: "<think>b</think>2"),
    ]

    /// The whole text, and what of it is learned.
    private func learned(
        _ source: String, _ messages: [Message] = twoTurns, tools: JinjaValue? = nil
    ) throws -> (text: String, learned: [String]) {
        let template = try ChatTemplate.compile(source)
        let text = try TrainingText(.messages(messages, tools: tools), chatTemplate: template, tokenizer: tokenizer)
        let whole = try template.render(
            messages: messages, tools: tools, bosToken: tokenizer.bosToken, eosToken: tokenizer.eosToken)
        #expect(text.text == whole)
        return (text.text, text.segments.filter(\.carriesLoss).map(\.text))
    }

    /// `template_masks.json` is described in make_template_goldens.py.
    @Test func spansEqualThoseOfTransformersWithAndWithoutMarkers() throws {
        guard case .list(let goldens) = try JinjaValue(json: try TestModel.goldens("template_masks.json")) else {
            throw GoldenError.malformed
        }
        #expect(goldens.items.count >= 12)
        for (index, item) in goldens.items.enumerated() {
            guard case .object(let golden) = item, case .list(let assistant) = golden.value("assistant"),
                let messages = golden.value("messages"), let text = golden.value("text")?.stringValue
            else { throw GoldenError.malformed }
            let writer = try ChatTemplate.compile("{{ {'messages': messages} | tojson }}")
            let line = try writer.render(variables: [("messages", messages)])
            guard case .messages(let conversation, _) = try DatasetLine.sample(Array(line.utf8)) else {
                throw GoldenError.malformed
            }
            let expected = assistant.items.compactMap(\.stringValue).filter { !$0.isEmpty }
            for key in ["marked", "plain"] {
                let found = try learned(golden.value(key)?.stringValue ?? "", conversation)
                #expect(Array(found.text.utf8) == Array(text.utf8), "\(key), case \(index)")
                #expect(found.learned == expected, "\(key), case \(index)")
            }
        }
    }

    private static let prompt = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

    @Test func markersAreBelieved() throws {
        let source =
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!{% endgeneration %}<|im_end|>{% endif %}{% endfor %}"
        #expect(try learned(source).learned == ["<think>a</think>1!", "<think>b</think>2!"])
    }

    @Test func markersThatMarkNothingAreRefused() {
        #expect(throws: TrainingTextError.nothingMarked(turns: 4)) {
            try learned("{% if false %}{% generation %}x{% endgeneration %}{% endif %}{{ messages | length }}")
        }
    }

    /// As Qwen3's: thoughts only of the last turn, so no prefix of the conversation is how the whole begins.
    @Test func historyMayBeRewritten() throws {
        let source =
            "{{ messages | length }}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
            + Self.prompt
        let (text, learned) = try learned(source)
        #expect(text.hasPrefix("4<|im_start|>user\nOne?"))
        #expect(learned == ["1<|im_end|>", "<think>b</think>2<|im_end|>"])
    }

    /// As QwQ's: the prompt opens a thought that history does not have, and a content that begins like the thought's
    /// marker is not cut.
    @Test func aPromptMayGoOnWhereHistoryDoesNot() throws {
        let source =
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<thoughts>\n{% endif %}"
        #expect(try learned(source).learned == ["<think>a</think>1<|im_end|>", "<think>b</think>2<|im_end|>"])
    }

    /// As Llama 2's and Mistral's: what the model writes begins where the question ends.
    @Test func aTemplateMayHaveNoPrompt() throws {
        let source =
            "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
        #expect(try learned(source).learned == [" <think>a</think>1 <|im_end|>", " <think>b</think>2 <|im_end|>"])
    }

    @Test func aTokenAfterTheLastTurnEndsItWhenItHasNone() throws {
        let source =
            "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\n' if not loop.last }}{% endfor %}{% if add_generation_prompt %}assistant:{% else %}{{ eos_token }}{% endif %}"
        #expect(try learned(source).learned == [" <think>a</think>1\n", " <think>b</think>2<|im_end|>"])
    }

    /// As Jamba's: the token that ends a turn is written with the next turn, or at the end.
    @Test func aTurnMayBeEndedByTheNext() throws {
        let source =
            "{% for m in messages %}{% if not loop.first %}<|im_end|>{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}<|im_end|>{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        #expect(try learned(source).learned == ["<think>a</think>1<|im_end|>", "<think>b</think>2<|im_end|>"])
    }

    /// As Qwen3's with thoughts on: of the last turn the thought's beginning is given, of others nothing of it.
    @Test func aPromptMayFitTheLastTurnAlone() throws {
        let source =
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
        #expect(try learned(source).learned == ["1<|im_end|>", "\n</think>\n\n2<|im_end|>"])
    }

    @Test func aPromptThatIsNotTheTurnsIsRefused() {
        let source =
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
        #expect(throws: TrainingTextError.promptNotFound(turn: 1)) { try learned(source) }
    }

    /// Llama 3.2, SmolLM3 and Granite ask for it.
    @Test func theDateIsAssumed() throws {
        let source = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"
        #expect(try learned(source).text.hasPrefix("26 Jul 2024user"))
    }

    @Test func aConversationMayBeginWithTheAssistant() throws {
        let source =
            "{{ messages[0].role }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            + Self.prompt
        let messages = [Message(role: "assistant", content: "I start"), Message(role: "user", content: "Go on")]
        #expect(try learned(source, messages).learned == ["I start<|im_end|>"])
    }

    @Test func callsAreLearnedAndTheirResultsAreNot() throws {
        let source =
            "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
            + Self.prompt
        let line =
            #"{"tools": [{"name": "f"}], "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}, {"role": "tool", "content": "7"}, {"role": "assistant", "content": "It is 7."}]}"#
        guard case .messages(let messages, let tools) = try DatasetLine.sample(Array(line.utf8)) else {
            throw GoldenError.malformed
        }
        let (text, learned) = try learned(source, messages, tools: tools)
        #expect(text.hasPrefix(#"[{"name": "f"}]"#))
        #expect(learned == [#"<call>{"name": "f", "arguments": {"a": 1}}</call><|im_end|>"#, "It is 7.<|im_end|>"])
    }

    /// A loop over positions says nothing of turns; prefixes do.
    @Test func aLoopOverPositionsIsComparedByPrefixes() throws {
        let source =
            "{% for i in range(messages | length) %}<|im_start|>{{ messages[i].role }}\n{{ messages[i].content }}<|im_end|>\n{% endfor %}"
            + Self.prompt
        #expect(try learned(source).learned == ["<think>a</think>1<|im_end|>", "<think>b</think>2<|im_end|>"])
    }

    @Test func aRewritingLoopOverPositionsIsRefused() {
        let source =
            "{{ messages | length }}{% for i in range(messages | length) %}<|im_start|>{{ messages[i].content }}<|im_end|>{% endfor %}"
        #expect(throws: TrainingTextError.templateRewritesHistory(turn: 1, promptBytes: 27, commonBytes: 0)) {
            try learned(source, [Message(role: "user", content: "One?"), Message(role: "assistant", content: "1")])
        }
    }

    @Test func aTurnThatIsWrittenNowhereIsRefused() {
        let source = "{% for m in messages if m.content != '<think>b</think>2' %}{{ m.role }}{{ m.content }}{% endfor %}"
        #expect(throws: TrainingTextError.turnNotFound(turn: 3)) { try learned(source) }
    }

    /// As Command R7B's: the prompt is written whether or not it is asked for.
    @Test func aTemplateMayAlwaysWriteItsPrompt() throws {
        let source =
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}{{ '<|im_start|>assistant\n' }}"
        #expect(try learned(source).learned == ["<think>a</think>1<|im_end|>", "<think>b</think>2<|im_end|>"])
    }

    @Test func aTurnOfWhichOnlyTheFrameIsWrittenIsRefused() {
        let source =
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if m.role == 'user' }}<|im_end|>{% endfor %}"
        #expect(throws: TrainingTextError.turnNotFound(turn: 1)) { try learned(source) }
    }

    @Test func aTurnThatIsWrittenTwiceIsRefused() {
        let loop = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"
        #expect(throws: TrainingTextError.turnNotFound(turn: 1)) { try learned(loop + loop) }
    }

    /// Claim: whatever the turns say, their contents are learned whole, and nothing of the others is.
    @Test(arguments: [UInt64(61), 62]) func contentsAreLearnedWhole(_ seed: UInt64) throws {
        let sources = [
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + Self.prompt,
            "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}",
        ]
        let pieces = [
            "<|im_end|>", "<|im_start|>", "assistant\n", "<|im_start|>assistant\n", "[/INST]", "]", "\n", " ", "a", "é", "<",
            "<|endoftext|>",
        ]
        var random = SeededText(seed: seed)
        for round in 0..<300 {
            let contents = (0..<4).map { _ in random.mixture(of: pieces, limit: 6) }
            let messages = contents.enumerated().map {
                Message(role: $0.offset.isMultiple(of: 2) ? "user" : "assistant", content: $0.element)
            }
            let learned = try learned(sources[round % sources.count], messages).learned
            #expect(learned == [contents[1] + "<|im_end|>", contents[3] + "<|im_end|>"], "seed \(seed), round \(round)")
        }
    }
}
