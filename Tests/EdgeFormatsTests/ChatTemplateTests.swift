import EdgeFormats
import EdgeTestSupport
import Testing

@Suite struct ChatTemplateTests {
    /// What make_template_goldens.py sets its clock to.
    private static let goldenDate = TemplateDate(year: 2024, month: 7, day: 6, hour: 15, minute: 4, second: 9)

    /// `chat_templates.json` is described in make_template_goldens.py.
    @Test func renderingsEqualThoseOfTransformers() throws {
        guard case .object(let document) = try JinjaValue(json: try TestModel.goldens("chat_templates.json")),
            case .list(let templates) = document.value("templates")
        else { throw GoldenError.malformed }
        #expect(templates.items.count >= 7)
        let now = Self.goldenDate
        var renderings = 0
        for item in templates.items {
            guard case .object(let golden) = item, let source = golden.value("template")?.stringValue,
                let name = golden.value("name")?.stringValue, case .list(let cases) = golden.value("cases")
            else { throw GoldenError.malformed }
            let template = try ChatTemplate.compile(source)
            for (index, item) in cases.items.enumerated() {
                guard case .object(let golden) = item, case .object(let variables) = golden.value("variables")
                else { throw GoldenError.malformed }
                let rendered = Result { () throws(ChatTemplateError) in
                    try template.render(variables: Array(zip(variables.keys, variables.values)), now: now)
                }
                switch (rendered, golden.value("output")?.stringValue) {
                case (.success(let text), let expected?):
                    renderings += 1
                    #expect(JinjaValue.string(text) == .string(expected), "\(name), case \(index)")
                case (.success(let text), nil):
                    Issue.record("\(name), case \(index) should fail, not render \(text.debugDescription)")
                case (.failure(let error), let expected):
                    #expect(expected == nil, "\(name), case \(index): \(error)")
                    if case .raised(_, let message) = error { #expect(message == golden.value("error")?.stringValue) }
                }
            }
        }
        #expect(renderings >= 80)
    }

    /// `template_snippets.json` is described in make_template_goldens.py.
    @Test func snippetsEqualThoseOfJinja() throws {
        guard case .object(let document) = try JinjaValue(json: try TestModel.goldens("template_snippets.json")),
            case .object(let variables) = document.value("variables"),
            case .list(let snippets) = document.value("snippets")
        else { throw GoldenError.malformed }
        var texts = 0
        var beyondOurs = 0
        for item in snippets.items {
            guard case .object(let golden) = item, let source = golden.value("source")?.stringValue else {
                throw GoldenError.malformed
            }
            let rendered = Result { () throws(ChatTemplateError) in
                try ChatTemplate.compile(source).render(
                    variables: Array(zip(variables.keys, variables.values)), now: Self.goldenDate)
            }
            switch (rendered, golden.value("output")?.stringValue) {
            case (.success(let text), let expected?):
                texts += 1
                #expect(JinjaValue.string(text) == .string(expected), "\(source)")
            case (.success(let text), nil): Issue.record("\(source) should fail, not render \(text.debugDescription)")
            // Python's integers grow, and its generators print as an address.
            case (.failure(let error), _?)
            where error.description.contains("64 bits") || error.description.contains("has no text"):
                beyondOurs += 1
            case (.failure(let error), let expected): #expect(expected == nil, "\(source): \(error)")
            }
        }
        #expect(texts > 150)
        #expect(beyondOurs < 8)
    }

    @Test func theModelsOwnTemplateAddsItsSystemTurn() throws {
        let text = try TestModel.chatTemplate().render(
            messages: [Message(role: "user", content: "Hi")], addGenerationPrompt: .appended)
        #expect(
            text == """
                <|im_start|>system
                You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
                <|im_start|>user
                Hi<|im_end|>
                <|im_start|>assistant

                """)
    }

    private static let sixtyBrackets: String =
        "{{ \(String(repeating: "(", count: 60))1\(String(repeating: ")", count: 60)) }}"
    private static let fiveHundredSums: String = "{{ 1\(String(repeating: "+1", count: 500)) }}"

    @Test(arguments: [
        ("{% for x in y %}", ChatTemplateError.syntax(line: 1, "expected {% else %} or {% endfor %}")),
        ("\n{{ 'a }}", .syntax(line: 2, "a string has no end")),
        ("{% include 'x' %}", .unsupported(line: 1, feature: "statement \"include\"")),
        ("{{ x | pprint }}", .unsupported(line: 1, feature: "filter \"pprint\"")),
        ("{{ x is odious }}", .unsupported(line: 1, feature: "test \"odious\"")),
        (sixtyBrackets, .nestedTooDeep(line: 1, limit: 48)),
        (fiveHundredSums, .nestedTooDeep(line: 1, limit: 160)),
    ])
    func aBadTemplateIsRefusedWhenItIsCompiled(_ source: String, _ expected: ChatTemplateError) {
        #expect(throws: expected) { try ChatTemplate.compile(source) }
    }

    @Test func aVariableSetInALoopStaysThere() throws {
        let template = try ChatTemplate.compile(
            "{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 7 %}{% endif %}{{ x }}"
        )
        #expect(try template.render(messages: []) == "151517")
    }

    @Test func jsonSurvivesARoundTrip() throws {
        let json = #"{"b": [1, -2.5, 1e+16, true, null, "é\"\\\n\u0001𝄞"], "a": {}, "c": []}"#
        let template = try ChatTemplate.compile("{{ value | tojson }}")
        #expect(try template.render(variables: [("value", JinjaValue(json: Array(json.utf8)))]) == json)
    }

    @Test(arguments: [
        "", "{", "[1,]", "{\"a\" 1}", "01", "1.", "-", "\"\u{1}\"", "\"\\x\"", "\"\\ud800\"", "nul", "1 2", "{1: 2}",
        "'a'",
    ])
    func jsonIsStrict(_ json: String) {
        #expect(throws: JSONSyntaxError.self) { try JinjaValue(json: Array(json.utf8)) }
    }

    @Test func deepJSONIsRefusedWithoutRecursingAsDeep() {
        #expect(throws: JSONSyntaxError.tooDeep(limit: 64)) {
            try JinjaValue(json: Array(repeating: UInt8(ascii: "["), count: 1_000_000))
        }
    }
}
