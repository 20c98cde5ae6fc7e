import EdgeFormats
import EdgeTestSupport
import Testing

@Suite struct ChatTemplateTests {
    /// `chat_templates.json` is described in make_template_goldens.py.
    @Test func renderingsEqualThoseOfTransformers() throws {
        guard case .object(let document) = try JinjaValue(json: try TestModel.goldens("chat_templates.json")),
            case .list(let templates) = document.value("templates")
        else { throw GoldenError.malformed }
        #expect(templates.items.count >= 7)
        // What make_template_goldens.py sets its clock to.
        let now = TemplateDate(year: 2024, month: 7, day: 6, hour: 15, minute: 4, second: 9)
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

    @Test(arguments: [
        ("\n{{ a.b }}", ChatTemplateError.evaluation(line: 2, "\"b\" of an undefined value")),
        ("{{ raise_exception('no') }}", .raised(line: 1, "no")),
        ("{{ 9223372036854775807 + 1 }}", .evaluation(line: 1, "9223372036854775807 + 1 has no value in 64 bits")),
        ("{{ strftime_now('%Y') }}", .evaluation(line: 1, "the template asks for the date, and none is given")),
        ("{{ 'x' * 5000 }}", .outputTooLong(limit: 4096)),
        ("{% for i in range(99) %}{{ 'x' * 99 }}{% endfor %}", .outputTooLong(limit: 4096)),
        ("{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}", .tooManySteps(limit: 50_000)),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", .recursedTooDeep(line: 1, limit: 256)),
        (
            "{% set n = namespace(v=[]) %}{% for i in range(99) %}{% set n.v = [n.v, n.v] %}{% endfor %}",
            .valueTooDeep(limit: 64)
        ),
        (
            "{% set n = namespace(v=[]) %}{% for i in range(50) %}{% set n.v = [n.v, n.v] %}{% endfor %}{{ n.v == n.v }}",
            .tooManySteps(limit: 50_000)
        ),
        (
            "{% set n = namespace(v='x') %}{% for i in range(99) %}{% set n.v = n.v ~ n.v %}{% endfor %}",
            .outputTooLong(limit: 4096)
        ),
    ])
    func aRenderingIsBounded(_ source: String, _ expected: ChatTemplateError) throws {
        let limits = TemplateLimits(sourceBytes: 4096, outputBytes: 4096, steps: 50_000, depth: 256)
        let template = try ChatTemplate.compile(source, limits: limits)
        #expect(throws: expected) { try template.render(messages: []) }
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

    /// Claim: no template source and no data make the engine trap or run without bound.
    @Test(arguments: [UInt64(31), 32, 33]) func hostileTemplatesOnlyThrow(_ seed: UInt64) {
        let pieces = [
            "{{", "}}", "{%", "%}", "{#", "#}", "{%-", "-%}", "{{-", "-}}", " ", "\n", "x", "messages", "loop", "ns",
            "(", ")",
            "[", "]", "{", "}", ":", ",", ".", "|", "~", "+", "-", "*", "/", "//", "%", "**", "=", "==", "<", "'", "\"",
            "\\", "0",
            "9223372036854775807", "-1", "1.5", "'a'", " if ", " else ", " elif ", " for ", " in ", " is ", " not ",
            " and ", " or ",
            " set ", " macro ", " call ", " endfor ", " endif ", " endset ", " endmacro ", " endcall ", " raw ",
            " endraw ",
            "{% if x %}", "{% endif %}", "{% for m in messages %}", "{% endfor %}", "{% set ns = namespace(x=1) %}",
            "{% macro m(a, b=1) %}", "{% endmacro %}", "{{ m(1) }}", "{{ messages[0].content }}", "tojson",
            "map('upper')",
            "range(5)", "sort", "split('a')", ".items()", ".replace('', 'é')", "[::-1]", "[9223372036854775807:]", "é",
            "\u{1F468}",
        ]
        let limits = TemplateLimits(sourceBytes: 1 << 16, outputBytes: 1 << 16, steps: 20_000, depth: 256)
        var random = SeededText(seed: seed)
        var compiled = 0
        for _ in 0..<20_000 {
            let source = random.mixture(of: pieces, limit: 24)
            guard let template = try? ChatTemplate.compile(source, limits: limits) else { continue }
            compiled += 1
            _ = try? template.render(
                messages: [Message(role: "user", content: "aé\r\n b")], addGenerationPrompt: .appended)
        }
        // A canary: a fuzzer whose sources never compile tests the lexer alone.
        #expect(compiled > 500, "seed \(seed)")
    }

    /// Claim: any combination of operands and operators gives a value or an error.
    @Test func hostileExpressionsOnlyThrow() throws {
        let values = [
            "x", "none", "true", "0", "-1", "9223372036854775807", "(-9223372036854775807 - 1)", "1.5", "1e308", "''",
            "'aé'", "[]", "[1, 'b']", "{}", "{'a': 1}", "messages", "range", "namespace(a=1)",
        ]
        let operators = [
            "+", "-", "*", "/", "//", "%", "**", "~", "==", "<", ">=", " in ", " not in ", " and ", " or ",
        ]
        let suffixes =
            [
                "[0]", "[-9223372036854775807]", "[1:]", "[::-2]", "[:-9223372036854775807]", ".a", "()", ".split()",
                ".strip()", ".title()", ".get('a')", ".items()",
            ]
            + [
                "abs", "first", "last", "length", "list", "int", "float", "round", "round(2)", "sum", "min", "max",
                "sort", "unique", "reverse", "join", "tojson", "tojson(indent=2)", "dictsort", "items", "title",
                "indent(3)", "map('upper')", "selectattr('a')", "replace('', 'b')", "string", "trim", "default(1)",
            ].map { "|" + $0 }
            + ["defined", "odd", "divisibleby(0)", "in([1])", "sameas(1)", "lt(1)", "mapping", "sequence"].map {
                " is " + $0
            }
        var outcomes = (values: 0, errors: 0)
        func attempt(_ expression: String) throws {
            let template = try ChatTemplate.compile("{{ (\(expression)) }}")
            do {
                _ = try template.render(messages: [Message(role: "user", content: "x")])
                outcomes.values += 1
            } catch { outcomes.errors += 1 }
        }
        for left in values {
            for suffix in suffixes { try attempt(left + suffix) }
            for operation in operators { for right in values { try attempt(left + operation + right) } }
        }
        #expect(outcomes.values > 1_000)
        #expect(outcomes.errors > 1_000)
    }
}
