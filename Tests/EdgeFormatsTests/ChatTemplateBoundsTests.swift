// What a template cannot do: run on, recurse, or hold memory without bound; or make the engine trap.
import EdgeFormats
import EdgeTestSupport
import Testing

@Suite struct ChatTemplateBoundsTests {
    private static let small = TemplateLimits(
        sourceBytes: 4096, outputBytes: 4096, steps: 50_000, madeBytes: 1 << 24, depth: 256)

    private static func loop(_ count: Int, _ body: String) -> String {
        "{% set n = namespace(v='x', l=[]) %}{% for i in range(" + String(count) + ") %}" + body + "{% endfor %}"
    }

    private static let doubledList: String = loop(99, "{% set n.l = [n.l, n.l] %}")
    private static let sharedList: String = loop(50, "{% set n.l = [n.l, n.l] %}") + "{{ n.l == n.l }}"
    private static let doubledText: String = loop(99, "{% set n.v = n.v ~ n.v %}")

    @Test(arguments: [
        ("\n{{ a.b }}", ChatTemplateError.evaluation(line: 2, "\"b\" of an undefined value")),
        ("{{ raise_exception('no') }}", .raised(line: 1, "no")),
        ("{{ 9223372036854775807 + 1 }}", .evaluation(line: 1, "9223372036854775807 + 1 has no value in 64 bits")),
        ("{{ strftime_now('%Y') }}", .evaluation(line: 1, "the template asks for the date, and none is given")),
        ("{{ 'x' * 5000 }}", .outputTooLong(limit: 4096)),
        ("{{ 'x' * 10 ** 12 }}", .outputTooLong(limit: 4096)),
        ("{{ '%999999999d' % 1 }}", .outputTooLong(limit: 4096)),
        ("{{ 'x'.center(10 ** 15) }}", .outputTooLong(limit: 4096)),
        ("{{ ('a' * 4000).replace('a', 'b' * 4000) }}", .outputTooLong(limit: 4096)),
        ("{{ ('a' * 4000) | list | join('b' * 4000) }}", .outputTooLong(limit: 4096)),
        ("{{ ('a\n' * 2000) | indent(4000) }}", .outputTooLong(limit: 4096)),
        ("{% for i in range(99) %}{{ 'x' * 99 }}{% endfor %}", .outputTooLong(limit: 4096)),
        ("{% for i in range(10 ** 12) %}{% endfor %}", .evaluation(line: 1, "a range holds at most 100000 numbers")),
        ("{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}", .tooManySteps(limit: 50_000)),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", .recursedTooDeep(line: 1, limit: 256)),
        ("{% macro m(n) %}{{ caller() }}{% endmacro %}{% macro k() %}{% call m() %}{{ k() }}{% endcall %}{% endmacro %}{{ k() }}",
            .recursedTooDeep(line: 1, limit: 256)),
        (doubledList, .valueTooDeep(limit: 64)),
        (sharedList, .tooManySteps(limit: 50_000)),
        (doubledText, .outputTooLong(limit: 4096)),
        ("{{ [1] * 10 ** 9 }}", .madeTooMuch(limit: 1 << 24)),
        ("{{ [1] | batch(10 ** 9, 'x') | list }}", .madeTooMuch(limit: 1 << 24)),
        ("{{ [1] | slice(10 ** 9) | list }}", .madeTooMuch(limit: 1 << 24)),
    ])
    func aRenderingIsBounded(_ source: String, _ expected: ChatTemplateError) throws {
        let template = try ChatTemplate.compile(source, limits: Self.small)
        #expect(throws: expected) { try template.render(messages: [], now: nil) }
    }

    /// Each of these would hold or touch gigabytes with nothing but a bound on its steps and its output.
    @Test(arguments: [
        loop(100_000, "{% set n.v = n.v ~ 'xxxxxxxxxxxxxxxx' %}"),
        loop(100_000, "{% set n.l = n.l + [i] %}"),
        loop(100_000, "{% set n.l = [n.l, 'x' * 1000000] | last %}"),
        loop(2_000, "{% for c in 'x' * 100000 %}{% endfor %}"),
        loop(100_000, "{% set n.v = ('a,' * 10000).split(',') %}"),
        loop(100_000, "{% call(x) m() %}{% endcall %}").replacing("{% for", with: "{% macro m() %}{{ caller }}{% endmacro %}{% for"),
    ])
    func whatIsMadeOnTheWayIsBounded(_ source: String) throws {
        let limits = TemplateLimits(
            sourceBytes: 4096, outputBytes: 4 << 20, steps: Int.max, madeBytes: 16 << 20, depth: 256)
        let template = try ChatTemplate.compile(source, limits: limits)
        #expect(throws: ChatTemplateError.madeTooMuch(limit: 16 << 20)) { try template.render(messages: []) }
    }

    /// Reading a long text costs steps although it makes nothing.
    @Test(arguments: [
        "{% if s | length == 1 %}{% endif %}", "{% if s == s %}{% endif %}", "{% if s < s %}{% endif %}",
        "{% if 'y' in s %}{% endif %}", "{% if s[5] == 'y' %}{% endif %}", "{% if s in {} %}{% endif %}",
    ])
    func readingALongTextCostsSteps(_ body: String) throws {
        let source = "{% set s = 'x' * 1000000 %}{% for i in range(1000) %}" + body + "{% endfor %}"
        let limits = TemplateLimits(
            sourceBytes: 4096, outputBytes: 4 << 20, steps: 1_000_000, madeBytes: Int.max, depth: 256)
        let template = try ChatTemplate.compile(source, limits: limits)
        #expect(throws: ChatTemplateError.tooManySteps(limit: 1_000_000)) { try template.render(messages: []) }
    }

    /// A search that started over at every byte would take 2.5e11 comparisons.
    @Test func searchingIsLinear() throws {
        let template = try ChatTemplate.compile(
            "{% set s = 'a' * 1000000 %}{% set p = 'a' * 500000 ~ 'b' %}{{ s.find(p) }} {{ s.rfind(p) }} {{ p in s }} {{ s.count(p) }} {{ s.replace(p, '') == s }} {{ s.split(p) | length }}"
        )
        #expect(try template.render(messages: []) == "-1 -1 False 0 True 1")
    }

    @Test func aLongSourceIsRefusedUnread() {
        #expect(throws: ChatTemplateError.sourceTooLong(bytes: (1 << 20) + 1, limit: 1 << 20)) {
            try ChatTemplate.compile(String(repeating: "x", count: (1 << 20) + 1))
        }
    }

    @Test(arguments: ["(", "[", "{% if 1 %}", "{{ -", "not ", "{{ [1][", "{% for x in y %}", "{% macro m() %}", "{% call m() %}"])
    func sourceThatNestsDeepIsRefused(_ opening: String) {
        let source = (opening.hasPrefix("{") ? "" : "{{ ") + String(repeating: opening, count: 20_000)
        #expect(throws: ChatTemplateError.self) { try ChatTemplate.compile(source) }
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
        let limits = TemplateLimits(
            sourceBytes: 1 << 16, outputBytes: 1 << 16, steps: 20_000, madeBytes: 1 << 20, depth: 256)
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
