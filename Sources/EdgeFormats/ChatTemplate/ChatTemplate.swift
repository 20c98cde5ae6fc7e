// A model's chat template: Jinja as transformers runs it (immutable sandbox, trim_blocks, lstrip_blocks, loop controls),
// compiled once and rendered as a pure function of its arguments. A template is somebody else's program: it reaches
// nothing of the host, and its output, its steps and its nesting are bounded. There is no clock; a template that asks
// for the date gets the one it is given.

package struct ChatTemplate: Sendable {
    private let statements: [Statement]
    private let limits: TemplateLimits
    /// Whether the template itself marks what the assistant writes.
    let hasGenerationMarkers: Bool

    package static func compile(
        _ source: String, limits: TemplateLimits = .standard
    ) throws(ChatTemplateError) -> ChatTemplate {
        guard source.utf8.count <= limits.sourceBytes else {
            throw .sourceTooLong(bytes: source.utf8.count, limit: limits.sourceBytes)
        }
        let (statements, hasGenerationMarkers) = try JinjaParser.template(source)
        return ChatTemplate(statements: statements, limits: limits, hasGenerationMarkers: hasGenerationMarkers)
    }

    /// - Parameters:
    ///   - tools: none becomes Python's `None`, which is defined.
    ///   - extra: further variables, as `apply_chat_template(**kwargs)`; they replace those of the same name.
    ///   - now: what `strftime_now` formats. There is no clock: the same conversation gives the same text on any day.
    package func render(
        messages: [Message], tools: JinjaValue? = nil, addGenerationPrompt: GenerationPrompt = .omitted,
        bosToken: String? = nil, eosToken: String? = nil, extra: [(String, JinjaValue)] = [],
        now: TemplateDate? = .assumed
    ) throws(ChatTemplateError) -> String {
        try traced(
            messages: messages, tools: tools, addGenerationPrompt: addGenerationPrompt, bosToken: bosToken,
            eosToken: eosToken, extra: extra, now: now
        ).text
    }

    /// A rendering, and what the template wrote where.
    func traced(
        messages: [Message], tools: JinjaValue? = nil, addGenerationPrompt: GenerationPrompt,
        bosToken: String?, eosToken: String?, extra: [(String, JinjaValue)] = [], now: TemplateDate? = .assumed
    ) throws(ChatTemplateError) -> (text: String, trace: RenderingTrace) {
        var values: [JinjaValue] = []
        for (index, message) in messages.enumerated() { values.append(try message.value(turn: index)) }
        var variables: [(String, JinjaValue)] = [
            ("messages", try .list(values)), ("tools", tools ?? .none), ("documents", .none),
            ("add_generation_prompt", .bool(addGenerationPrompt == .appended)),
        ]
        if let bosToken { variables.append(("bos_token", .string(bosToken))) }
        if let eosToken { variables.append(("eos_token", .string(eosToken))) }
        var evaluator = JinjaEvaluator(variables: variables + extra, limits: limits, now: now)
        let text = try evaluator.render(statements)
        return (text, evaluator.trace)
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
    /// A string, none beside tool calls, or a list of parts; undefined where the turn has no such key.
    package var content: JinjaValue
    /// What else the turn's JSON object held; the template sees it.
    package var extra: JinjaObject

    package init(role: String, content: String, extra: JinjaObject = JinjaObject()) {
        self.init(role: role, content: .string(content), extra: extra)
    }

    package init(role: String, content: JinjaValue, extra: JinjaObject = JinjaObject()) {
        self.role = role
        self.content = content
        self.extra = extra
    }

    /// Names that data sets have for what the model thought, the one that templates read first.
    private static let reasoningKeys = ["reasoning_content", "thinking", "reasoning"]

    /// As transformers hands it to the template: reasoning under both names that templates read.
    func value(turn: Int) throws(ChatTemplateError) -> JinjaValue {
        var object = JinjaObject()
        let reasoning = Self.reasoningKeys.compactMap { extra.value($0)?.unlessNone }.first
        if let reasoning { try object.set("thinking", reasoning) }
        try object.set("role", .string(role))
        if case .undefined = content {} else { try object.set("content", content) }
        for (key, value) in zip(extra.keys, extra.values) { try object.set(key, value) }
        if let reasoning { try object.set("reasoning_content", reasoning) }
        object.turn = turn
        return .object(object)
    }

    package static func == (left: Message, right: Message) -> Bool {
        JinjaText.equal(left.role, right.role) && left.content == right.content
            && JinjaValue.object(left.extra) == JinjaValue.object(right.extra)
    }
}

package struct TemplateLimits: Sendable {
    package var sourceBytes: Int
    /// Of the rendered text, and of any string on the way to it.
    package var outputBytes: Int
    /// Statements, expressions, items and blocks of 64 bytes that a rendering may touch.
    package var steps: Int
    /// Of all texts and values that a rendering makes, counted when they are made and not when they are freed; the
    /// rendering never holds more. A text counts its bytes, an item or a variable `JinjaValue.bytes`.
    package var madeBytes: Int
    /// Statements, expressions and macro calls inside each other while rendering.
    package var depth: Int

    package init(sourceBytes: Int, outputBytes: Int, steps: Int, madeBytes: Int, depth: Int) {
        self.sourceBytes = sourceBytes
        self.outputBytes = outputBytes
        self.steps = steps
        self.madeBytes = madeBytes
        self.depth = depth
    }

    /// The longest templates in use are about 20 kB; a conversation is bounded by a dataset line.
    package static let standard = TemplateLimits(
        sourceBytes: 1 << 20, outputBytes: 32 << 20, steps: 20_000_000, madeBytes: 256 << 20, depth: 256)
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
    /// Bytes of texts and values that the rendering made on its way.
    case madeTooMuch(limit: Int)
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
        case .madeTooMuch(let limit): "the chat template makes more than \(limit) bytes of texts and values on its way"
        case .recursedTooDeep(let line, let limit): "chat template, line \(line): recursion deeper than \(limit)"
        }
    }
}
