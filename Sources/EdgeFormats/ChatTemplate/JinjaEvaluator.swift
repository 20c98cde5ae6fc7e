// Runs a syntax tree. A scope is a frame of variables: the template's own, one per loop iteration, macro call and captured
// block. Every statement, expression and item costs a step, every text its length, so time is bounded by
// `TemplateLimits.steps`; every text, item and variable is counted as made when it is made and never returned, so memory
// is bounded by `TemplateLimits.madeBytes`. Values are immutable but for namespaces and iterators, as in Jinja's
// ImmutableSandboxedEnvironment.

struct JinjaEvaluator {
    let limits: TemplateLimits
    let now: TemplateDate?
    private(set) var line = 1
    private(set) var output = ""
    /// Blocks whose text goes to a variable, a filter or a caller instead of the rendering.
    private var captures = 0
    private var steps = 0
    private var made = 0
    var depth = 0
    var frames: [[String: JinjaValue]]
    var namespaces: [JinjaObject] = []
    var macros: [MacroValue] = []
    var loops: [LoopState] = []
    var loopsBegun = 0
    var methods: [(receiver: JinjaValue, name: String)] = []
    var iterators: [IteratorState] = []
    var trace = RenderingTrace()

    enum Flow { case next, breakLoop, continueLoop }

    init(variables: [(String, JinjaValue)], limits: TemplateLimits, now: TemplateDate?) {
        self.limits = limits
        self.now = now
        frames = [Dictionary(variables, uniquingKeysWith: { $1 })]
    }

    mutating func render(_ statements: [Statement]) throws(ChatTemplateError) -> String {
        _ = try run(statements)
        return output
    }

    func failure(_ message: String) -> ChatTemplateError { .evaluation(line: line, message) }

    var isCapturing: Bool { captures > 0 }

    mutating func run(_ statements: [Statement]) throws(ChatTemplateError) -> Flow {
        for statement in statements {
            let flow = try run(statement)
            if flow != .next { return flow }
        }
        return .next
    }

    private mutating func run(_ statement: Statement) throws(ChatTemplateError) -> Flow {
        try enter()
        defer { depth -= 1 }
        line = statement.line
        switch statement.kind {
        case .text(let text): try emit(text)
        case .output(let expression): try emit(try text(of: try value(expression)))
        case .branch(let branches, let otherwise):
            for branch in branches where try value(branch.condition).isTruthy { return try run(branch.body) }
            return try run(otherwise)
        case .loop(let loop): return try run(loop)
        case .set(let target, let expression): try assign(try value(expression), to: target)
        case .setBlock(let target, let filters, let body):
            let (text, flow) = try captured(body)
            guard flow == .next else { return flow }
            try assign(try filtered(.string(text), by: filters), to: target)
        case .macro(let macro):
            try charge(values: 4)
            macros.append(MacroValue(macro: macro, innerFrames: Array(frames.dropFirst())))
            bind(macro.name ?? "", to: .handle(JinjaHandle(referent: .macro(macros.count - 1))))
        case .call(let callee, let caller): try emit(try text(of: try call(callee, caller: caller)))
        case .filterBlock(let filters, let body):
            let (text, flow) = try captured(body)
            guard flow == .next else { return flow }
            try emit(try self.text(of: try filtered(.string(text), by: filters)))
        case .with(let assignments, let body):
            var values: [JinjaValue] = []
            for assignment in assignments { values.append(try value(assignment.value)) }
            frames.append([:])
            defer { frames.removeLast() }
            for (assignment, value) in zip(assignments, values) { try bind(assignment.names, to: value) }
            return try run(body)
        case .generation(let body):
            let start = output.utf8.count
            frames.append([:])
            defer { frames.removeLast() }
            _ = try run(body)
            if !isCapturing { trace.generations.append(start..<output.utf8.count) }
        case .breakLoop: return .breakLoop
        case .continueLoop: return .continueLoop
        }
        return .next
    }

    /// The text of a block in a scope of its own, and whether a loop around it is to end with it.
    mutating func captured(_ body: [Statement]) throws(ChatTemplateError) -> (text: String, flow: Flow) {
        let outer = output
        output = ""
        captures += 1
        frames.append([:])
        defer {
            output = outer
            captures -= 1
            frames.removeLast()
        }
        let flow = try run(body)
        return (output, flow)
    }

    private mutating func emit(_ text: String) throws(ChatTemplateError) {
        try charge(bytes: text.utf8.count)
        guard output.utf8.count + text.utf8.count <= limits.outputBytes else {
            throw .outputTooLong(limit: limits.outputBytes)
        }
        output += text
    }

    private mutating func filtered(
        _ value: JinjaValue, by filters: [FilterCall]
    ) throws(ChatTemplateError) -> JinjaValue {
        var value = value
        for filter in filters {
            value = try apply(filter: filter.name, to: value, try evaluated(filter.arguments))
        }
        return value
    }

    private mutating func assign(_ value: JinjaValue, to target: AssignmentTarget) throws(ChatTemplateError) {
        switch target {
        case .names(let names):
            try bind(names, to: value)
        case .namespaceAttribute(let name, let attribute):
            guard case .handle(let handle) = try lookup(name), case .namespace(let index) = handle.referent else {
                throw failure("\"\(name)\" is not a namespace, so its \"\(attribute)\" cannot be set")
            }
            try charge(values: 1)
            try checkNamespaceKey(attribute)
            try namespaces[index].set(attribute, value)
        }
    }

    /// transformers keeps names with an underscore in front to itself.
    func checkNamespaceKey(_ key: String) throws(ChatTemplateError) {
        guard !key.utf8.starts(with: "_".utf8) else {
            throw failure("a namespace stores no \"\(key)\": it begins with an underscore")
        }
    }

    mutating func bind(_ names: [String], to value: JinjaValue) throws(ChatTemplateError) {
        guard names.count > 1 else {
            for name in names { bind(name, to: value) }
            return
        }
        let items = try self.items(of: value)
        guard items.count == names.count else {
            throw failure("\(items.count) values cannot be unpacked into \(names.count) names")
        }
        for (name, item) in zip(names, items) { bind(name, to: item) }
    }

    private mutating func bind(_ name: String, to value: JinjaValue) {
        frames[frames.count - 1][name] = value
    }

    mutating func lookup(_ name: String) throws(ChatTemplateError) -> JinjaValue {
        try spend(frames.count / 8)
        for frame in frames.reversed() {
            if let value = frame[name] { return value }
        }
        return Self.globals.contains(name) ? .handle(JinjaHandle(referent: .function(name))) : .undefined
    }
}

// What things cost.
extension JinjaEvaluator {
    mutating func spend(_ count: Int = 1) throws(ChatTemplateError) {
        steps += count
        guard steps <= limits.steps else { throw .tooManySteps(limit: limits.steps) }
    }

    /// To be called before a text is read from end to end.
    mutating func read(_ text: String) throws(ChatTemplateError) { try spend(text.utf8.count / 64) }

    /// To be called before a text of that length is made.
    mutating func charge(bytes: Int) throws(ChatTemplateError) {
        guard bytes <= limits.outputBytes else { throw .outputTooLong(limit: limits.outputBytes) }
        made += bytes
        guard made <= limits.madeBytes else { throw .madeTooMuch(limit: limits.madeBytes) }
        try spend(bytes / 64)
    }

    /// To be called before that many values are put into a list, an object or a table.
    mutating func charge(values: Int) throws(ChatTemplateError) {
        let (bytes, overflow) = values.multipliedReportingOverflow(by: JinjaValue.bytes)
        guard !overflow, bytes <= limits.madeBytes - made else { throw .madeTooMuch(limit: limits.madeBytes) }
        made += bytes
        try spend(values)
    }

    /// Passes `text` on, having charged for it.
    mutating func charged(_ text: String) throws(ChatTemplateError) -> JinjaValue {
        try charge(bytes: text.utf8.count)
        return .string(text)
    }

    /// A list of `items`, of which there are no more than of a list that was charged for before.
    mutating func charged(
        _ items: [JinjaValue], kind: JinjaList.Kind = .list
    ) throws(ChatTemplateError) -> JinjaValue {
        try charge(values: items.count)
        return .list(try JinjaList(items, kind: kind))
    }

    mutating func enter() throws(ChatTemplateError) {
        try spend()
        guard depth < limits.depth else { throw .recursedTooDeep(line: line, limit: limits.depth) }
        depth += 1
    }
}

/// Where in the rendered text things are, in bytes of UTF-8.
struct RenderingTrace: Sendable {
    /// What `{% generation %}` enclosed.
    var generations: [Range<Int>] = []
    /// What iterations of loops over turns wrote, those that wrote nothing left out. In the order of the text.
    var turns: [(turn: Int, utf8Range: Range<Int>)] = []
}
