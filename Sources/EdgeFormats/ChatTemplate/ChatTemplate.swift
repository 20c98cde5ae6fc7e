// A model's chat template: Jinja as transformers runs it (immutable sandbox, trim_blocks, lstrip_blocks, loop controls),
// compiled once and rendered as a pure function of its arguments. A template is somebody else's program: it reaches
// nothing of the host, and its output, its steps and its nesting are bounded. There is no clock; a template that asks
// for the date gets the one it is given.

package struct ChatTemplate: Sendable {
    private let statements: [Statement]
    private let limits: TemplateLimits

    package static func compile(
        _ source: String, limits: TemplateLimits = .standard
    ) throws(ChatTemplateError) -> ChatTemplate {
        guard source.utf8.count <= limits.sourceBytes else {
            throw .sourceTooLong(bytes: source.utf8.count, limit: limits.sourceBytes)
        }
        return ChatTemplate(statements: try JinjaParser.statements(source), limits: limits)
    }

    /// - Parameters:
    ///   - tools: none becomes Python's `None`, which is defined.
    ///   - extra: further variables, as `apply_chat_template(**kwargs)`; they replace those of the same name.
    ///   - now: what `strftime_now` formats.
    package func render(
        messages: [Message], tools: JinjaValue? = nil, addGenerationPrompt: GenerationPrompt = .omitted,
        bosToken: String? = nil, eosToken: String? = nil, extra: [(String, JinjaValue)] = [],
        now: TemplateDate? = nil
    ) throws(ChatTemplateError) -> String {
        var values: [JinjaValue] = []
        for message in messages { values.append(try message.value) }
        var variables: [(String, JinjaValue)] = [
            ("messages", try .list(values)), ("tools", tools ?? .none), ("documents", .none),
            ("add_generation_prompt", .bool(addGenerationPrompt == .appended)),
        ]
        if let bosToken { variables.append(("bos_token", .string(bosToken))) }
        if let eosToken { variables.append(("eos_token", .string(eosToken))) }
        return try render(variables: variables + extra, now: now)
    }

    /// The template with these variables and no others.
    package func render(
        variables: [(String, JinjaValue)], now: TemplateDate? = nil
    ) throws(ChatTemplateError) -> String {
        var evaluator = JinjaEvaluator(variables: variables, limits: limits, now: now)
        return try evaluator.render(statements)
    }
}

/// Whether a rendered conversation ends with the start of an assistant turn.
package enum GenerationPrompt: Sendable {
    case appended
    case omitted
}

/// One turn of a conversation.
package struct Message: Sendable, Equatable {
    package var role: String
    package var content: String
    /// What else the turn's JSON object held; the template sees it.
    package var extra: JinjaObject

    package init(role: String, content: String, extra: JinjaObject = JinjaObject()) {
        self.role = role
        self.content = content
        self.extra = extra
    }

    var value: JinjaValue {
        get throws(ChatTemplateError) {
            var object = try JinjaObject([("role", .string(role)), ("content", .string(content))])
            for (key, value) in zip(extra.keys, extra.values) { try object.set(key, value) }
            return .object(object)
        }
    }

    package static func == (left: Message, right: Message) -> Bool {
        JinjaText.equal(left.role, right.role) && JinjaText.equal(left.content, right.content)
            && JinjaValue.object(left.extra) == JinjaValue.object(right.extra)
    }
}

/// A local date and time as a value, for `strftime_now`.
package struct TemplateDate: Sendable {
    package var year: Int
    /// 1 to 12.
    package var month: Int
    package var day: Int
    package var hour: Int
    package var minute: Int
    package var second: Int

    package init(year: Int, month: Int, day: Int, hour: Int = 0, minute: Int = 0, second: Int = 0) {
        self.year = year
        self.month = month
        self.day = day
        self.hour = hour
        self.minute = minute
        self.second = second
    }
}

package struct TemplateLimits: Sendable {
    package var sourceBytes: Int
    /// Of the rendered text, and of any string on the way to it.
    package var outputBytes: Int
    /// Statements, expressions, items and blocks of 64 bytes that a rendering may touch.
    package var steps: Int
    /// Statements, expressions and macro calls inside each other while rendering.
    package var depth: Int

    package init(sourceBytes: Int, outputBytes: Int, steps: Int, depth: Int) {
        self.sourceBytes = sourceBytes
        self.outputBytes = outputBytes
        self.steps = steps
        self.depth = depth
    }

    /// The longest templates in use are about 20 kB; a conversation is bounded by a dataset line.
    package static let standard = TemplateLimits(
        sourceBytes: 1 << 20, outputBytes: 32 << 20, steps: 20_000_000, depth: 256)
}

package enum ChatTemplateError: Error, Equatable {
    /// The model's file has no chat template. None is assumed.
    case missing
    case syntax(line: Int, String)
    /// Valid Jinja that this engine does not have.
    case unsupported(line: Int, feature: String)
    case nestedTooDeep(line: Int, limit: Int)
    case sourceTooLong(bytes: Int, limit: Int)
    case valueTooDeep(limit: Int)
    /// The template called `raise_exception`.
    case raised(line: Int, String)
    case evaluation(line: Int, String)
    case outputTooLong(limit: Int)
    case tooManySteps(limit: Int)
    case recursedTooDeep(line: Int, limit: Int)
}

extension ChatTemplateError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .missing: "the model has no chat template"
        case .syntax(let line, let message): "chat template, line \(line): \(message)"
        case .unsupported(let line, let feature): "chat template, line \(line): \(feature) is not supported"
        case .nestedTooDeep(let line, let limit): "chat template, line \(line): nested deeper than \(limit)"
        case .sourceTooLong(let bytes, let limit): "the chat template has \(bytes) bytes; at most \(limit) are read"
        case .valueTooDeep(let limit): "a value of the chat template nests deeper than \(limit) levels"
        case .raised(let line, let message): "the chat template refuses, line \(line): \(message)"
        case .evaluation(let line, let message): "chat template, line \(line): \(message)"
        case .outputTooLong(let limit): "the chat template makes a text of more than \(limit) bytes"
        case .tooManySteps(let limit): "the chat template takes more than \(limit) steps"
        case .recursedTooDeep(let line, let limit): "chat template, line \(line): recursion deeper than \(limit)"
        }
    }
}
