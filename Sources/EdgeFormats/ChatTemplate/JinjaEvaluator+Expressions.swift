// What an expression is worth: names, items, slices, comparisons. Operators are in JinjaOperators. A receiver is evaluated
// before a non-mutating method is called on the evaluator: the call would copy the evaluator first.

extension JinjaEvaluator {
    mutating func value(_ expression: Expression) throws(ChatTemplateError) -> JinjaValue {
        try enter()
        defer { depth -= 1 }
        switch expression.kind {
        case .literal(let value): return value
        case .name(let name): return try lookup(name)
        case .list(let items): return try list(items, kind: .list)
        case .tuple(let items): return try list(items, kind: .tuple)
        case .object(let entries):
            var object = JinjaObject()
            for entry in entries { try set(try value(entry.key), try value(entry.value), in: &object) }
            return .object(object)
        case .attribute(let object, let name):
            let object = try value(object)
            return try attribute(name, of: object)
        case .item(let object, let index):
            let object = try value(object)
            return try item(try value(index), of: object)
        case .slice(let object, let start, let stop, let step):
            return try slice(try value(object), start: bound(start), stop: bound(stop), step: bound(step))
        case .call(let callee, let arguments): return try call(callee, try evaluated(arguments))
        case .filter(let operand, let name, let arguments):
            return try apply(filter: name, to: try value(operand), try evaluated(arguments))
        case .test(let operand, let name, let arguments, let isNegated):
            return .bool(try holds(test: name, of: try value(operand), try evaluated(arguments)) != isNegated)
        case .not(let operand): return .bool(!(try value(operand).isTruthy))
        case .negated(let operand):
            let operand = try value(operand)
            if case .double(let number) = operand { return .double(-number) }
            guard operand.intValue != nil else { throw failure("\(operand.typeName) has no negative") }
            return try arithmetic(.subtract, .int(0), operand)
        case .positive(let operand):
            let operand = try value(operand)
            if case .double = operand { return operand }
            guard let number = operand.intValue else { throw failure("\(operand.typeName) has no sign") }
            return .int(number)
        case .and(let left, let right):
            let left = try value(left)
            return left.isTruthy ? try value(right) : left
        case .or(let left, let right):
            let left = try value(left)
            return left.isTruthy ? left : try value(right)
        case .binary(let operation, let left, let right):
            return try arithmetic(operation, try value(left), try value(right))
        case .comparison(let first, let rest): return try comparison(first, rest)
        case .conditional(let condition, let then, let otherwise):
            if try value(condition).isTruthy { return try value(then) }
            guard let otherwise else { return .undefined }
            return try value(otherwise)
        }
    }

    private mutating func list(
        _ items: [Expression], kind: JinjaList.Kind
    ) throws(ChatTemplateError) -> JinjaValue {
        var values: [JinjaValue] = []
        for item in items { values.append(try value(item)) }
        return try charged(values, kind: kind)
    }

    private mutating func comparison(
        _ first: Expression, _ rest: [(Comparison, Expression)]
    ) throws(ChatTemplateError) -> JinjaValue {
        var left = try value(first)
        for (comparison, expression) in rest {
            let right = try value(expression)
            guard try compare(left, comparison, right) else { return .bool(false) }
            left = right
        }
        return .bool(true)
    }

    private mutating func bound(_ expression: Expression?) throws(ChatTemplateError) -> Int? {
        guard let expression else { return nil }
        let value = try value(expression)
        if case .none = value { return nil }
        guard let bound = value.intValue else { throw failure("a slice needs integers, not \(value.typeName)") }
        return bound
    }

    /// `object.name`: a method before a key, as Python has it; a missing attribute of anything but undefined is undefined.
    mutating func attribute(_ name: String, of value: JinjaValue) throws(ChatTemplateError) -> JinjaValue {
        switch value {
        case .undefined: throw failure("\"\(name)\" of an undefined value")
        case .object(let object):
            if let method = try boundMethod(name, of: value) { return method }
            return object.value(name) ?? .undefined
        case .list(let list) where list.kind == .group && (name == "grouper" || name == "list"):
            return list.items[name == "grouper" ? 0 : 1]
        case .handle(let handle):
            switch handle.referent {
            case .namespace(let index): return namespaces[index].value(name) ?? .undefined
            case .loop(let id): return try loopAttribute(name, ofLoop: id)
            case .macro(let index): return name == "name" ? macros[index].macro.name.map { .string($0) } ?? .none : .undefined
            case .function, .method, .iterator: return .undefined
            }
        default: return try boundMethod(name, of: value) ?? .undefined
        }
    }

    /// A method that is read, not called. One that would change its object is undefined.
    private mutating func boundMethod(
        _ name: String, of value: JinjaValue
    ) throws(ChatTemplateError) -> JinjaValue? {
        if Self.mutatingMethods(of: value).contains(name) { return .undefined }
        guard Self.methodNames(of: value).contains(name) else { return nil }
        try charge(values: 2)
        methods.append((value, name))
        return .handle(JinjaHandle(referent: .method(methods.count - 1)))
    }

    /// `object[index]`: a key before a method.
    mutating func item(_ index: JinjaValue, of value: JinjaValue) throws(ChatTemplateError) -> JinjaValue {
        if let name = index.stringValue { try read(name) }
        switch (value, index) {
        case (.undefined, _): throw failure("an item of an undefined value")
        case (.object(let object), _):
            if let found = object.value(index) { return found }
        case (.list(let list), _):
            guard !list.isView, let offset = index.intValue else { break }
            return Self.position(offset, count: list.items.count).map { list.items[$0] } ?? .undefined
        case (.string(let text), _), (.markup(let text), _):
            guard let offset = index.intValue else { break }
            try read(text)
            let scalars = text.unicodeScalars
            guard let position = Self.position(offset, count: scalars.count) else { return .undefined }
            return .string(String(scalars[scalars.index(scalars.startIndex, offsetBy: position)]))
        case (.handle, .string(let name)): return try attribute(name, of: value)
        default: return .undefined
        }
        guard let name = index.stringValue else { return .undefined }
        return try boundMethod(name, of: value) ?? .undefined
    }

    /// A negative offset counts from the end.
    private static func position(_ offset: Int, count: Int) -> Int? {
        let position = offset < 0 ? offset + count : offset
        return (0..<count).contains(position) ? position : nil
    }

    private mutating func slice(
        _ value: JinjaValue, start: Int?, stop: Int?, step: Int?
    ) throws(ChatTemplateError) -> JinjaValue {
        let step = step ?? 1
        guard step != 0, step != Int.min else { throw failure("a slice needs a step other than \(step)") }
        switch value {
        case .string(let text), .markup(let text):
            try charge(bytes: text.utf8.count)
            let scalars = text.unicodeScalars
            if step == 1 {
                let (from, to) = Self.bounds(count: scalars.count, start: start, stop: stop, step: 1)
                guard from < to else { return .string("") }
                let first = scalars.index(scalars.startIndex, offsetBy: from)
                return .string(String(scalars[first..<scalars.index(first, offsetBy: to - from)]))
            }
            let array = Array(scalars)
            var result = String.UnicodeScalarView()
            let (from, to) = Self.bounds(count: array.count, start: start, stop: stop, step: step)
            for position in stride(from: from, to: to, by: step) { result.append(array[position]) }
            return .string(String(result))
        case .list(let list) where !list.isView:
            let (from, to) = Self.bounds(count: list.items.count, start: start, stop: stop, step: step)
            let items = stride(from: from, to: to, by: step).map { list.items[$0] }
            var kind = list.kind
            if case .range(let rangeStart, _, let rangeStep) = kind {
                let (first, overflow) = from.multipliedReportingOverflow(by: rangeStep)
                let (last, lastOverflow) = to.multipliedReportingOverflow(by: rangeStep)
                guard !overflow, !lastOverflow else { throw failure("a slice of a range beyond 64 bits") }
                kind = .range(start: rangeStart &+ first, stop: rangeStart &+ last, step: rangeStep &* step)
            }
            return try charged(items, kind: kind)
        default: throw failure("\(value.typeName) cannot be sliced")
        }
    }

    /// Python's `slice.indices`.
    private static func bounds(count: Int, start: Int?, stop: Int?, step: Int) -> (from: Int, to: Int) {
        let lowest = step > 0 ? 0 : -1
        let highest = step > 0 ? count : count - 1
        func clamped(_ bound: Int) -> Int { min(max(bound < 0 ? bound + count : bound, lowest), highest) }
        return (
            start.map(clamped) ?? (step > 0 ? lowest : highest), stop.map(clamped) ?? (step > 0 ? highest : lowest)
        )
    }
}
