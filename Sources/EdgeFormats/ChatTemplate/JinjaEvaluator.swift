// Runs a syntax tree. A scope is a frame of variables: the template's own, one per loop iteration and one per macro call.
// Every statement, expression and item costs a step, every text its length, so time and memory are bounded by
// `TemplateLimits`. Values are immutable but for namespaces, as in Jinja's ImmutableSandboxedEnvironment.

struct JinjaEvaluator {
    let limits: TemplateLimits
    let now: TemplateDate?
    private(set) var line = 1
    private var output = ""
    private var steps = 0
    var depth = 0
    private var frames: [[String: JinjaValue]]
    private(set) var namespaces: [JinjaObject] = []
    private(set) var macros: [MacroValue] = []
    private(set) var loops: [LoopState] = []

    /// A macro and the frames it was made in: of the body of a call tag all of them, of others the template's own.
    struct MacroValue {
        let macro: Macro
        let innerFrames: [[String: JinjaValue]]
    }

    struct LoopState {
        let items: [JinjaValue]
        var index = 0
        /// Loops around this one.
        let depth: Int
    }

    private enum Flow { case next, breakLoop, continueLoop }

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

    mutating func spend(_ count: Int = 1) throws(ChatTemplateError) {
        steps += count
        guard steps <= limits.steps else { throw .tooManySteps(limit: limits.steps) }
    }

    /// Passes `text` on, having charged for it.
    mutating func charged(_ text: String) throws(ChatTemplateError) -> JinjaValue {
        try charge(bytes: text.utf8.count)
        return .string(text)
    }

    /// To be called before a text of that length is made.
    mutating func charge(bytes: Int) throws(ChatTemplateError) {
        guard bytes <= limits.outputBytes else { throw .outputTooLong(limit: limits.outputBytes) }
        try spend(bytes / 64)
    }

    mutating func charged(_ items: [JinjaValue]) throws(ChatTemplateError) -> JinjaValue {
        try spend(items.count)
        return try .list(items)
    }

    mutating func enter() throws(ChatTemplateError) {
        try spend()
        guard depth < limits.depth else { throw .recursedTooDeep(line: line, limit: limits.depth) }
        depth += 1
    }

    private mutating func emit(_ text: String) throws(ChatTemplateError) {
        try charge(bytes: text.utf8.count)
        guard output.utf8.count + text.utf8.count <= limits.outputBytes else {
            throw .outputTooLong(limit: limits.outputBytes)
        }
        output += text
    }

    private mutating func run(_ statements: [Statement]) throws(ChatTemplateError) -> Flow {
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
        case .loop(let loop): try run(loop)
        case .set(let target, let expression): try assign(try value(expression), to: target)
        case .setBlock(let target, let filters, let body):
            let text = try captured(body)
            try assign(try filtered(.string(text), by: filters), to: target)
        case .macro(let macro):
            macros.append(MacroValue(macro: macro, innerFrames: []))
            frames[frames.count - 1][macro.name] = .handle(JinjaHandle(referent: .macro(macros.count - 1)))
        case .call(let callee, let caller): try emit(try text(of: try call(callee, caller: caller)))
        case .filterBlock(let filters, let body):
            let text = try captured(body)
            try emit(try self.text(of: try filtered(.string(text), by: filters)))
        case .generation(let body): return try run(body)
        case .breakLoop: return .breakLoop
        case .continueLoop: return .continueLoop
        }
        return .next
    }

    private mutating func captured(_ body: [Statement]) throws(ChatTemplateError) -> String {
        let outer = output
        output = ""
        _ = try run(body)
        defer { output = outer }
        return output
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
            guard case .handle(let handle) = lookup(name), case .namespace(let index) = handle.referent else {
                throw failure("\"\(name)\" is not a namespace, so its \"\(attribute)\" cannot be set")
            }
            try namespaces[index].set(attribute, value)
        }
    }

    private mutating func bind(_ names: [String], to value: JinjaValue) throws(ChatTemplateError) {
        guard names.count > 1 else {
            for name in names { frames[frames.count - 1][name] = value }
            return
        }
        let items = try self.items(of: value)
        guard items.count == names.count else {
            throw failure("\(items.count) values cannot be unpacked into \(names.count) names")
        }
        for (name, item) in zip(names, items) { frames[frames.count - 1][name] = item }
    }

    private mutating func run(_ loop: Loop) throws(ChatTemplateError) {
        var items = try self.items(of: try value(loop.items))
        try spend(items.count)
        if let condition = loop.condition {
            var kept: [JinjaValue] = []
            for item in items {
                frames.append([:])
                defer { frames.removeLast() }
                try bind(loop.targets, to: item)
                if try value(condition).isTruthy { kept.append(item) }
            }
            items = kept
        }
        guard !items.isEmpty else {
            _ = try run(loop.otherwise)
            return
        }
        loops.append(LoopState(items: items, depth: loops.count))
        defer { loops.removeLast() }
        let handle = JinjaValue.handle(JinjaHandle(referent: .loop(loops.count - 1)))
        for index in items.indices {
            loops[loops.count - 1].index = index
            frames.append(["loop": handle])
            defer { frames.removeLast() }
            try bind(loop.targets, to: items[index])
            if try run(loop.body) == .breakLoop { break }
        }
    }

    private mutating func call(_ callee: Expression, caller: Macro) throws(ChatTemplateError) -> JinjaValue {
        guard case .call(let function, let arguments) = callee.kind else { throw failure("call needs a macro call") }
        macros.append(MacroValue(macro: caller, innerFrames: Array(frames.dropFirst())))
        let handle = JinjaValue.handle(JinjaHandle(referent: .macro(macros.count - 1)))
        return try call(function, try evaluated(arguments), caller: handle)
    }

    mutating func evaluated(_ arguments: Arguments) throws(ChatTemplateError) -> CallArguments {
        var evaluated = CallArguments()
        for argument in arguments.positional { evaluated.positional.append(try value(argument)) }
        for (name, argument) in arguments.named { evaluated.named.append((name, try value(argument))) }
        return evaluated
    }

    mutating func call(
        _ callee: Expression, _ arguments: CallArguments, caller: JinjaValue? = nil
    ) throws(ChatTemplateError) -> JinjaValue {
        if case .attribute(let object, let name) = callee.kind {
            let receiver = try value(object)
            if let result = try method(name, of: receiver, arguments) { return result }
            return try call(try attribute(name, of: receiver), named: name, arguments, caller: caller)
        }
        let name = if case .name(let name) = callee.kind { name } else { "value" }
        return try call(try value(callee), named: name, arguments, caller: caller)
    }

    private mutating func call(
        _ function: JinjaValue, named name: String, _ arguments: CallArguments, caller: JinjaValue?
    ) throws(ChatTemplateError) -> JinjaValue {
        guard case .handle(let handle) = function else {
            throw failure("\"\(name)\" is \(function.typeName), not a function")
        }
        switch handle.referent {
        case .macro(let index): return try call(macros[index], arguments, caller: caller)
        case .function(let name): return try callGlobal(name, arguments)
        case .namespace, .loop: throw failure("\"\(name)\" is not a function")
        }
    }

    private mutating func call(
        _ callee: MacroValue, _ arguments: CallArguments, caller: JinjaValue?
    ) throws(ChatTemplateError) -> JinjaValue {
        try enter()
        defer { depth -= 1 }
        let macro = callee.macro
        guard arguments.positional.count <= macro.parameters.count else {
            throw failure("\(macro.name) takes \(macro.parameters.count) arguments, not \(arguments.positional.count)")
        }
        var frame: [String: JinjaValue] = [:]
        let outerFrames = frames
        frames = [frames[0]] + callee.innerFrames + [[:]]
        defer {
            let global = frames[0]
            frames = outerFrames
            frames[0] = global
        }
        for (index, parameter) in macro.parameters.enumerated() {
            if index < arguments.positional.count {
                frame[parameter.name] = arguments.positional[index]
            } else if let named = arguments.named.first(where: { $0.0 == parameter.name }) {
                frame[parameter.name] = named.1
            } else {
                frames[frames.count - 1] = frame
                frame[parameter.name] =
                    try parameter.standard.map { (standard) throws(ChatTemplateError) in try value(standard) }
                    ?? .undefined
            }
        }
        for (name, _) in arguments.named where !macro.parameters.contains(where: { $0.name == name }) {
            throw failure("\(macro.name) has no parameter \"\(name)\"")
        }
        frame["caller"] = caller
        frames[frames.count - 1] = frame
        return .string(try captured(macro.body))
    }

    private mutating func callGlobal(_ name: String, _ arguments: CallArguments) throws(ChatTemplateError) -> JinjaValue
    {
        switch name {
        case "raise_exception":
            throw .raised(line: line, try text(of: arguments[0, "message"] ?? .undefined))
        case "namespace":
            var object = JinjaObject()
            if case .object(let initial) = arguments[0, ""] { object = initial }
            for (name, value) in arguments.named { try object.set(name, value) }
            namespaces.append(object)
            return .handle(JinjaHandle(referent: .namespace(namespaces.count - 1)))
        case "dict":
            var object = JinjaObject()
            if case .object(let initial) = arguments[0, ""] { object = initial }
            for (name, value) in arguments.named { try object.set(name, value) }
            return .object(object)
        case "range": return try range(arguments)
        case "strftime_now":
            guard let now else { throw failure("the template asks for the date, and none is given") }
            guard let format = arguments[0, "format"]?.stringValue else { throw failure("strftime_now needs a format") }
            guard let text = now.formatted(format) else { throw failure("strftime_now cannot format \"\(format)\"") }
            return .string(text)
        default: throw failure("\"\(name)\" is undefined")
        }
    }

    /// Longest range that a template may make: Jinja's own `MAX_RANGE`.
    private static let maximumRangeLength = 100_000

    private mutating func range(_ arguments: CallArguments) throws(ChatTemplateError) -> JinjaValue {
        let numbers = arguments.positional.compactMap(\.intValue)
        guard (1...3).contains(numbers.count), numbers.count == arguments.positional.count else {
            throw failure("range takes one to three integers")
        }
        let start = numbers.count == 1 ? 0 : numbers[0]
        let stop = numbers.count == 1 ? numbers[0] : numbers[1]
        let step = numbers.count == 3 ? numbers[2] : 1
        guard step != 0 else { throw failure("range needs a step other than 0") }
        var items: [JinjaValue] = []
        for number in stride(from: start, to: stop, by: step) {
            guard items.count < Self.maximumRangeLength else {
                throw failure("a range holds at most \(Self.maximumRangeLength) numbers")
            }
            items.append(.int(number))
        }
        return try charged(items)
    }

    func lookup(_ name: String) -> JinjaValue {
        for frame in frames.reversed() {
            if let value = frame[name] { return value }
        }
        return Self.globals.contains(name) ? .handle(JinjaHandle(referent: .function(name))) : .undefined
    }

    private static let globals = ["raise_exception", "namespace", "dict", "range", "strftime_now"]
}

/// Evaluated arguments of a call.
struct CallArguments {
    var positional: [JinjaValue] = []
    var named: [(String, JinjaValue)] = []

    /// The argument at `position`, or the one called `name`.
    subscript(_ position: Int, _ name: String) -> JinjaValue? {
        position < positional.count ? positional[position] : named.first { $0.0 == name }?.1
    }
}
