// The tests of `is`. One literal table.

struct JinjaTest: Sendable {
    typealias Body = @Sendable (inout JinjaEvaluator, JinjaValue, CallArguments) throws(ChatTemplateError) -> Bool
    let body: Body

    static let all: [String: JinjaTest] = [
        "boolean": plain { if case .bool = $0 { true } else { false } },
        "callable": plain { if case .handle(let handle) = $0 { isCallable(handle) } else { false } },
        "defined": plain { if case .undefined = $0 { false } else { true } },
        "divisibleby": JinjaTest { (evaluator, value, arguments) throws(ChatTemplateError) in
            try evaluator.arithmetic(.remainder, value, arguments[0, "num"] ?? .undefined).intValue == 0
        },
        "eq": comparing(.equal), "==": comparing(.equal), "equalto": comparing(.equal),
        "even": plain { $0.intValue.map { $0 % 2 == 0 } ?? false },
        "false": plain { if case .bool(false) = $0 { true } else { false } },
        "float": plain { if case .double = $0 { true } else { false } },
        "ge": comparing(.greaterOrEqual), "gt": comparing(.greater), "greaterthan": comparing(.greater),
        "in": comparing(.contained),
        "integer": plain { if case .int = $0 { true } else { false } },
        "iterable": plain { isIterable($0) },
        "le": comparing(.lessOrEqual), "lt": comparing(.less), "lessthan": comparing(.less),
        "lower": plain { $0.stringValue.map { $0.lowercased() == $0 && $0.uppercased() != $0 } ?? false },
        "mapping": plain { if case .object = $0 { true } else { false } },
        "ne": comparing(.notEqual),
        "none": plain { if case .none = $0 { true } else { false } },
        "number": plain { $0.doubleValue != nil },
        "odd": plain { $0.intValue.map { $0 % 2 != 0 } ?? false },
        "sameas": JinjaTest { (evaluator, value, arguments) throws(ChatTemplateError) in
            let other = arguments[0, "other"] ?? .undefined
            guard value.typeName == other.typeName else { return false }
            return try evaluator.equal(value, other)
        },
        "sequence": plain { isIterable($0) },
        "string": plain { $0.stringValue != nil },
        "true": plain { if case .bool(true) = $0 { true } else { false } },
        "undefined": plain { if case .undefined = $0 { true } else { false } },
        "upper": plain { $0.stringValue.map { $0.uppercased() == $0 && $0.lowercased() != $0 } ?? false },
    ]

    private static func plain(_ body: @escaping @Sendable (JinjaValue) -> Bool) -> JinjaTest {
        JinjaTest { (_, value, _) in body(value) }
    }

    private static func comparing(_ comparison: Comparison) -> JinjaTest {
        JinjaTest { (evaluator, value, arguments) throws(ChatTemplateError) in
            try evaluator.compare(value, comparison, arguments[0, "other"] ?? .undefined)
        }
    }

    private static func isIterable(_ value: JinjaValue) -> Bool {
        switch value {
        case .undefined, .string, .list, .object: true
        default: false
        }
    }

    private static func isCallable(_ handle: JinjaHandle) -> Bool {
        switch handle.referent {
        case .macro, .function: true
        case .namespace, .loop: false
        }
    }
}

extension JinjaEvaluator {
    mutating func holds(
        test name: String, of value: JinjaValue, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> Bool {
        guard let test = JinjaTest.all[name] else { throw failure("there is no test \"\(name)\"") }
        return try test.body(&self, value, arguments)
    }
}
