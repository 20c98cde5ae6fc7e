// Calls: of macros, of the functions that templates find (`range`, `namespace`, …), and of methods that were read first.

/// A macro and the frames it was made in, the template's own left out: that one is shared.
struct MacroValue {
    let macro: Macro
    let innerFrames: [[String: JinjaValue]]
}

/// Evaluated arguments of a call.
struct CallArguments {
    var positional: [JinjaValue] = []
    var named: [(String, JinjaValue)] = []

    /// The argument at `position`, or the one called `name`.
    subscript(_ position: Int, _ name: String) -> JinjaValue? {
        position < positional.count ? positional[position] : named.first { JinjaText.equal($0.0, name) }?.1
    }
}

extension JinjaEvaluator {
    mutating func evaluated(_ arguments: Arguments) throws(ChatTemplateError) -> CallArguments {
        var evaluated = CallArguments()
        for argument in arguments.positional { evaluated.positional.append(try value(argument)) }
        for (name, argument) in arguments.named { evaluated.named.append((name, try value(argument))) }
        if let spread = arguments.spread { evaluated.positional += try items(of: try value(spread)) }
        if let spread = arguments.namedSpread {
            guard case .object(let object) = try value(spread) else { throw failure("\"**\" takes an object") }
            for index in 0..<object.count {
                guard let name = object.key(at: index).stringValue else {
                    throw failure("\"**\" takes strings as keys")
                }
                evaluated.named.append((name, object.values[index]))
            }
        }
        try charge(values: evaluated.positional.count + evaluated.named.count)
        for index in evaluated.named.indices.dropFirst() {
            let name = evaluated.named[index].0
            guard !evaluated.named[..<index].contains(where: { JinjaText.equal($0.0, name) }) else {
                throw failure("\"\(name)\" is given twice")
            }
        }
        return evaluated
    }

    /// `{% call %}`.
    mutating func call(_ callee: Expression, caller: Macro) throws(ChatTemplateError) -> JinjaValue {
        guard case .call(let function, let arguments) = callee.kind else { throw failure("call needs a macro call") }
        try charge(values: 4)
        macros.append(MacroValue(macro: caller, innerFrames: Array(frames.dropFirst())))
        let callerNumber = macros.count - 1
        var evaluated = try evaluated(arguments)
        let handle = JinjaValue.handle(JinjaHandle(referent: .macro(callerNumber)))
        // Before what "**" gives.
        evaluated.named.insert(("caller", handle), at: arguments.named.count)
        return try call(function, evaluated)
    }

    mutating func call(_ callee: Expression, _ arguments: CallArguments) throws(ChatTemplateError) -> JinjaValue {
        if case .attribute(let object, let name) = callee.kind {
            let receiver = try value(object)
            if let result = try method(name, of: receiver, arguments) { return result }
            return try call(try attribute(name, of: receiver), named: name, arguments)
        }
        let name = if case .name(let name) = callee.kind { name } else { "value" }
        return try call(try value(callee), named: name, arguments)
    }

    private mutating func call(
        _ function: JinjaValue, named name: String, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        guard case .handle(let handle) = function else {
            throw failure("\"\(name)\" is \(function.typeName), not a function")
        }
        switch handle.referent {
        case .macro(let index): return try call(macros[index], arguments)
        case .function(let name): return try callGlobal(name, arguments)
        case .method(let index):
            let (receiver, name) = methods[index]
            if let result = try method(name, of: receiver, arguments) { return result }
        case .namespace, .loop, .iterator: break
        }
        throw failure("\"\(name)\" is not a function")
    }

    private mutating func call(
        _ callee: MacroValue, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        try enter()
        defer { depth -= 1 }
        let macro = callee.macro
        let name = macro.name ?? "caller"
        let count = macro.parameters.count
        guard arguments.positional.count <= count || macro.mentions.contains(.varargs) else {
            throw failure("\(name) takes \(count) arguments, not \(arguments.positional.count)")
        }
        let outerFrames = frames
        frames = [frames[0]] + callee.innerFrames + [[:]]
        defer { frames = outerFrames }
        var rest = arguments.named
        func taken(_ name: String) -> JinjaValue? {
            guard let index = rest.firstIndex(where: { JinjaText.equal($0.0, name) }) else { return nil }
            return rest.remove(at: index).1
        }
        try charge(values: count + 1)
        for (index, parameter) in macro.parameters.enumerated() {
            let value: JinjaValue
            if index < arguments.positional.count {
                value = arguments.positional[index]
            } else if let named = taken(parameter.name) {
                value = named
            } else if let standard = parameter.standard {
                value = try self.value(standard)
            } else {
                value = .undefined
            }
            frames[frames.count - 1][parameter.name] = value
        }
        if macro.mentions.contains(.caller), !macro.parameters.contains(where: { $0.name == "caller" }) {
            frames[frames.count - 1]["caller"] = taken("caller") ?? .undefined
        }
        if macro.mentions.contains(.varargs) {
            frames[frames.count - 1]["varargs"] = try .tuple(Array(arguments.positional.dropFirst(count)))
        }
        if macro.mentions.contains(.kwargs) {
            frames[frames.count - 1]["kwargs"] = try .object(rest)
        } else if let (argument, _) = rest.first {
            throw failure("\(name) has no parameter \"\(argument)\"")
        }
        return .string(try captured(macro.body).text)
    }

    static let globals: Set<String> = ["raise_exception", "namespace", "dict", "range", "strftime_now"]

    private mutating func callGlobal(_ name: String, _ arguments: CallArguments) throws(ChatTemplateError) -> JinjaValue
    {
        switch name {
        case "raise_exception":
            guard arguments.positional.count + arguments.named.count == 1, let message = arguments[0, "message"] else {
                throw failure("raise_exception takes one message")
            }
            throw .raised(line: line, try text(of: message))
        case "namespace":
            let object = try dictionary(arguments)
            for key in object.keys { try checkNamespaceKey(key) }
            try charge(values: 4)
            namespaces.append(object)
            return .handle(JinjaHandle(referent: .namespace(namespaces.count - 1)))
        case "dict": return .object(try dictionary(arguments))
        case "range": return try range(arguments)
        case "strftime_now":
            guard let now else { throw failure("the template asks for the date, and none is given") }
            guard let format = arguments[0, "format"]?.stringValue else { throw failure("strftime_now needs a format") }
            try charge(bytes: format.utf8.count * 16)
            guard let text = now.formatted(format) else { throw failure("strftime_now cannot format \"\(format)\"") }
            return .string(text)
        default: throw failure("\"\(name)\" is undefined")
        }
    }

    /// `dict(object or pairs, name=value, …)`.
    private mutating func dictionary(_ arguments: CallArguments) throws(ChatTemplateError) -> JinjaObject {
        guard arguments.positional.count <= 1 else { throw failure("dict takes one object or list of pairs") }
        var object = JinjaObject()
        switch arguments.positional.first {
        case .object(let initial):
            try charge(values: initial.count)
            object = initial
        case let pairs?:
            for pair in try items(of: pairs) {
                let entry = try items(of: pair)
                guard entry.count == 2 else { throw failure("dict takes pairs, not \(entry.count) values") }
                try set(entry[0], entry[1], in: &object)
            }
        case nil: break
        }
        for (name, value) in arguments.named { try set(.string(name), value, in: &object) }
        return object
    }

    mutating func set(
        _ key: JinjaValue, _ value: JinjaValue, in object: inout JinjaObject
    ) throws(ChatTemplateError) {
        try charge(values: 1)
        let text = try text(of: key)
        try charge(bytes: text.utf8.count)
        guard try object.set(key, text: text, value) else { throw failure("\(key.typeName) cannot be a key") }
    }

    /// Longest range that a template may make: Jinja's own `MAX_RANGE`.
    private static let maximumRangeLength = 100_000

    private mutating func range(_ arguments: CallArguments) throws(ChatTemplateError) -> JinjaValue {
        let numbers = arguments.positional.compactMap(\.intValue)
        guard (1...3).contains(numbers.count), numbers.count == arguments.positional.count, arguments.named.isEmpty
        else { throw failure("range takes one to three integers") }
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
        return try charged(items, kind: .range(start: start, stop: stop, step: step))
    }
}
