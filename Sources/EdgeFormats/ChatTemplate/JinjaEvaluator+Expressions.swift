// What an expression is worth: names, items, slices, comparisons. Operators are in JinjaOperators. A receiver is evaluated
// before a non-mutating method is called on the evaluator: the call would copy the evaluator first.

extension JinjaEvaluator {
    mutating func value(_ expression: Expression) throws(ChatTemplateError) -> JinjaValue {
        try enter()
        defer { depth -= 1 }
        switch expression.kind {
        case .literal(let value): return value
        case .name(let name): return lookup(name)
        case .list(let items):
            var values: [JinjaValue] = []
            for item in items { values.append(try value(item)) }
            return try .list(values)
        case .object(let entries):
            var object = JinjaObject()
            for entry in entries { try object.set(try key(try value(entry.key)), try value(entry.value)) }
            return .object(object)
        case .attribute(let object, let name):
            let object = try value(object)
            return try attribute(name, of: object)
        case .item(let object, let index): return try item(try value(index), of: try value(object))
        case .slice(let object, let start, let stop, let step):
            return try slice(try value(object), start: bound(start), stop: bound(stop), step: bound(step))
        case .call(let callee, let arguments): return try call(callee, try evaluated(arguments))
        case .filter(let operand, let name, let arguments):
            return try apply(filter: name, to: try value(operand), try evaluated(arguments))
        case .test(let operand, let name, let arguments, let isNegated):
            return .bool(try holds(test: name, of: try value(operand), try evaluated(arguments)) != isNegated)
        case .not(let operand): return .bool(!(try value(operand).isTruthy))
        case .negated(let operand): return try arithmetic(.subtract, .int(0), try value(operand))
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

    /// The key of an object literal. Numbers become text: JSON's objects have no other keys.
    private mutating func key(_ value: JinjaValue) throws(ChatTemplateError) -> String {
        switch value {
        case .string(let text): return text
        case .int, .double, .bool, .none: return try text(of: value)
        default: throw failure("\(value.typeName) cannot be a key")
        }
    }

    private mutating func bound(_ expression: Expression?) throws(ChatTemplateError) -> Int? {
        guard let expression else { return nil }
        let value = try value(expression)
        if case .none = value { return nil }
        guard let bound = value.intValue else { throw failure("a slice needs integers, not \(value.typeName)") }
        return bound
    }

    /// `object.name`: a missing attribute of anything but undefined is undefined.
    func attribute(_ name: String, of value: JinjaValue) throws(ChatTemplateError) -> JinjaValue {
        switch value {
        case .undefined: throw failure("\"\(name)\" of an undefined value")
        case .object(let object): return object.value(name) ?? .undefined
        case .handle(let handle):
            switch handle.referent {
            case .namespace(let index): return namespaces[index].value(name) ?? .undefined
            case .loop(let index): return loopAttribute(name, ofLoop: index)
            case .macro(let index): return name == "name" ? .string(macros[index].macro.name) : .undefined
            case .function: return .undefined
            }
        default: return .undefined
        }
    }

    private func loopAttribute(_ name: String, ofLoop number: Int) -> JinjaValue {
        // A loop kept in a namespace may have ended.
        guard number < loops.count else { return .undefined }
        let loop = loops[number]
        switch name {
        case "index": return .int(loop.index + 1)
        case "index0": return .int(loop.index)
        case "revindex": return .int(loop.items.count - loop.index)
        case "revindex0": return .int(loop.items.count - loop.index - 1)
        case "first": return .bool(loop.index == 0)
        case "last": return .bool(loop.index == loop.items.count - 1)
        case "length": return .int(loop.items.count)
        case "depth": return .int(loop.depth + 1)
        case "depth0": return .int(loop.depth)
        case "previtem": return loop.index > 0 ? loop.items[loop.index - 1] : .undefined
        case "nextitem": return loop.index + 1 < loop.items.count ? loop.items[loop.index + 1] : .undefined
        default: return .undefined
        }
    }

    mutating func item(_ index: JinjaValue, of value: JinjaValue) throws(ChatTemplateError) -> JinjaValue {
        switch (value, index) {
        case (.undefined, _): throw failure("an item of an undefined value")
        case (.object(let object), .undefined), (.object(let object), .none): return object.value("None") ?? .undefined
        case (.object(let object), _): return object.value(try key(index)) ?? .undefined
        case (.list(let list), _):
            guard let offset = index.intValue else { return .undefined }
            return Self.position(offset, count: list.items.count).map { list.items[$0] } ?? .undefined
        case (.string(let text), _):
            guard let offset = index.intValue else { return .undefined }
            try spend(text.utf8.count / 64)
            let scalars = text.unicodeScalars
            guard let position = Self.position(offset, count: scalars.count) else { return .undefined }
            return .string(String(scalars[scalars.index(scalars.startIndex, offsetBy: position)]))
        case (.handle, .string(let name)): return try attribute(name, of: value)
        default: return .undefined
        }
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
        case .string(let text):
            try charge(bytes: text.utf8.count)
            let scalars = Array(text.unicodeScalars)
            var result = String.UnicodeScalarView()
            for position in Self.positions(count: scalars.count, start: start, stop: stop, step: step) {
                result.append(scalars[position])
            }
            return .string(String(result))
        case .list(let list):
            try spend(list.items.count)
            let positions = Self.positions(count: list.items.count, start: start, stop: stop, step: step)
            return try .list(positions.map { list.items[$0] })
        case .undefined: return try .list([])
        default: throw failure("\(value.typeName) cannot be sliced")
        }
    }

    /// Python's `slice.indices`.
    private static func positions(count: Int, start: Int?, stop: Int?, step: Int) -> StrideTo<Int> {
        let lowest = step > 0 ? 0 : -1
        let highest = step > 0 ? count : count - 1
        func clamped(_ bound: Int) -> Int { min(max(bound < 0 ? bound + count : bound, lowest), highest) }
        return stride(
            from: start.map(clamped) ?? (step > 0 ? lowest : highest),
            to: stop.map(clamped) ?? (step > 0 ? highest : lowest), by: step)
    }

    /// What iterating over the value gives: of an object its keys, of a string its scalars.
    mutating func items(of value: JinjaValue) throws(ChatTemplateError) -> [JinjaValue] {
        switch value {
        case .undefined: return []
        case .list(let list): return list.items
        case .object(let object): return object.keys.map { .string($0) }
        case .string(let text):
            try spend(text.utf8.count)
            return text.unicodeScalars.map { .string(String($0)) }
        default: throw failure("\(value.typeName) cannot be iterated over")
        }
    }
}
