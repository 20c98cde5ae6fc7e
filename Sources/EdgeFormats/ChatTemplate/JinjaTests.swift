// The tests of `is`. One literal table.

struct JinjaTest: Sendable {
    typealias Body = @Sendable (inout JinjaEvaluator, JinjaValue, CallArguments) throws(ChatTemplateError) -> Bool
    /// How many arguments it takes.
    let arity: Int
    let body: Body

    private init(arity: Int = 0, _ body: @escaping Body) {
        self.arity = arity
        self.body = body
    }

    static let all: [String: JinjaTest] = [
        "boolean": plain { if case .bool = $0 { true } else { false } },
        "callable": plain { isCallable($0) },
        "defined": plain { if case .undefined = $0 { false } else { true } },
        "divisibleby": JinjaTest(arity: 1) { (evaluator, value, arguments) throws(ChatTemplateError) in
            try evaluator.hasRemainder(0, value, by: arguments.positional[0])
        },
        "eq": comparing(.equal), "==": comparing(.equal), "equalto": comparing(.equal),
        "escaped": plain { if case .markup = $0 { true } else { false } },
        "even": JinjaTest { (evaluator, value, _) throws(ChatTemplateError) in
            try evaluator.hasRemainder(0, value, by: .int(2))
        },
        "false": plain { if case .bool(false) = $0 { true } else { false } },
        "filter": naming { JinjaFilter.all[$0] != nil },
        "float": plain { if case .double = $0 { true } else { false } },
        "ge": comparing(.greaterOrEqual), ">=": comparing(.greaterOrEqual), "gt": comparing(.greater),
        ">": comparing(.greater), "greaterthan": comparing(.greater), "in": comparing(.contained),
        "integer": plain { if case .int = $0 { true } else { false } },
        "iterable": plain { isIterable($0) },
        "le": comparing(.lessOrEqual), "<=": comparing(.lessOrEqual), "lt": comparing(.less), "<": comparing(.less),
        "lessthan": comparing(.less),
        "lower": JinjaTest { (evaluator, value, _) throws(ChatTemplateError) in
            JinjaText.isLower(try evaluator.text(of: value))
        },
        "mapping": plain { if case .object = $0 { true } else { false } },
        "ne": comparing(.notEqual), "!=": comparing(.notEqual),
        "none": plain { if case .none = $0 { true } else { false } },
        "number": plain { $0.doubleValue != nil },
        "odd": JinjaTest { (evaluator, value, _) throws(ChatTemplateError) in
            try evaluator.hasRemainder(1, value, by: .int(2))
        },
        "sameas": JinjaTest(arity: 1) { (evaluator, value, arguments) throws(ChatTemplateError) in
            let other = arguments.positional[0]
            guard value.typeName == other.typeName else { return false }
            return try evaluator.equal(value, other)
        },
        "sequence": plain { isSequence($0) },
        "string": plain { $0.stringValue != nil },
        "test": naming { JinjaTest.all[$0] != nil },
        "true": plain { if case .bool(true) = $0 { true } else { false } },
        "undefined": plain { if case .undefined = $0 { true } else { false } },
        "upper": JinjaTest { (evaluator, value, _) throws(ChatTemplateError) in
            JinjaText.isUpper(try evaluator.text(of: value))
        },
    ]

    private static func plain(_ body: @escaping @Sendable (JinjaValue) -> Bool) -> JinjaTest {
        JinjaTest { (_, value, _) in body(value) }
    }

    private static func naming(_ exists: @escaping @Sendable (String) -> Bool) -> JinjaTest {
        JinjaTest { (evaluator, value, _) throws(ChatTemplateError) in
            if case .object = value { throw evaluator.failure("an object has no hash") }
            if case .list(let list) = value, list.kind == .list { throw evaluator.failure("a list has no hash") }
            return value.stringValue.map(exists) ?? false
        }
    }

    private static func comparing(_ comparison: Comparison) -> JinjaTest {
        JinjaTest(arity: 1) { (evaluator, value, arguments) throws(ChatTemplateError) in
            try evaluator.compare(value, comparison, arguments.positional[0])
        }
    }

    private static func isIterable(_ value: JinjaValue) -> Bool {
        switch value {
        case .undefined, .string, .markup, .list, .object: true
        case .handle(let handle): if case .iterator = handle.referent { true } else { false }
        default: false
        }
    }

    /// Has a length and an item by index.
    private static func isSequence(_ value: JinjaValue) -> Bool {
        switch value {
        case .undefined, .string, .markup, .object: true
        case .list(let list): !list.isView
        default: false
        }
    }

    private static func isCallable(_ value: JinjaValue) -> Bool {
        switch value {
        // What is undefined can be called, and says so then.
        case .undefined: true
        case .handle(let handle):
            switch handle.referent {
            case .macro, .function, .method, .loop: true
            case .namespace, .iterator: false
            }
        default: false
        }
    }
}

extension JinjaEvaluator {
    mutating func holds(
        test name: String, of value: JinjaValue, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> Bool {
        guard let test = JinjaTest.all[name] else { throw failure("there is no test \"\(name)\"") }
        guard arguments.positional.count == test.arity, arguments.named.isEmpty else {
            throw failure("the test \"\(name)\" takes \(test.arity) arguments, not \(arguments.positional.count)")
        }
        return try test.body(&self, value, arguments)
    }

    fileprivate mutating func hasRemainder(
        _ remainder: Int, _ value: JinjaValue, by divisor: JinjaValue
    ) throws(ChatTemplateError) -> Bool {
        try equal(try arithmetic(.remainder, value, divisor), .int(remainder))
    }
}
