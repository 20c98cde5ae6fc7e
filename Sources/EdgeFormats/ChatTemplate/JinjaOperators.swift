// Operators. Integers do not overflow silently: Python's would grow, these fail.

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

extension JinjaEvaluator {
    mutating func arithmetic(
        _ operation: BinaryOperator, _ left: JinjaValue, _ right: JinjaValue
    ) throws(ChatTemplateError) -> JinjaValue {
        if operation == .concatenate {
            let left = try text(of: left)
            let right = try text(of: right)
            try charge(bytes: left.utf8.count + right.utf8.count)
            return .string(left + right)
        }
        switch (operation, left, right) {
        case (.add, .string(let left), .string(let right)):
            try charge(bytes: left.utf8.count + right.utf8.count)
            return .string(left + right)
        case (.add, .markup, _), (.add, _, .markup):
            guard left.stringValue != nil, right.stringValue != nil else { break }
            let left = try escaped(left)
            let right = try escaped(right)
            try charge(bytes: left.utf8.count + right.utf8.count)
            return .markup(left + right)
        case (.add, .list(let left), .list(let right)) where left.kind == right.kind && !left.isRange && !left.isView:
            return try charged(left.items + right.items, kind: left.kind)
        case (.multiply, .string(let text), _), (.multiply, _, .string(let text)):
            return .string(try repeated(text, left.intValue ?? right.intValue))
        case (.multiply, .markup(let text), _), (.multiply, _, .markup(let text)):
            return .markup(try repeated(text, left.intValue ?? right.intValue))
        case (.multiply, .list(let list), _) where !list.isRange && !list.isView:
            return try repeated(list, right.intValue)
        case (.multiply, _, .list(let list)) where !list.isRange && !list.isView:
            return try repeated(list, left.intValue)
        case (.remainder, .string(let format), _): return .string(try formatted(format, with: right))
        default: break
        }
        if let left = left.intValue, let right = right.intValue {
            return try integerArithmetic(operation, left, right)
        }
        guard let leftNumber = left.doubleValue, let rightNumber = right.doubleValue else {
            throw failure("\"\(operation.rawValue)\" does not work on \(left.typeName) and \(right.typeName)")
        }
        return try floatArithmetic(operation, leftNumber, rightNumber)
    }

    private mutating func repeated(_ text: String, _ count: Int?) throws(ChatTemplateError) -> String {
        guard let count else { throw failure("a string is repeated by an integer") }
        let (bytes, overflow) = text.utf8.count.multipliedReportingOverflow(by: max(0, count))
        try charge(bytes: overflow ? Int.max : bytes)
        return bytes == 0 ? "" : String(repeating: text, count: count)
    }

    private mutating func repeated(_ list: JinjaList, _ count: Int?) throws(ChatTemplateError) -> JinjaValue {
        guard let count else { throw failure("a list is repeated by an integer") }
        let (total, overflow) = list.items.count.multipliedReportingOverflow(by: max(0, count))
        try charge(values: overflow ? Int.max : total)
        var items: [JinjaValue] = []
        if total > 0 { for _ in 0..<count { items += list.items } }
        return .list(try JinjaList(items, kind: list.kind))
    }

    private func integerArithmetic(
        _ operation: BinaryOperator, _ left: Int, _ right: Int
    ) throws(ChatTemplateError) -> JinjaValue {
        let result: (partialValue: Int, overflow: Bool)
        switch operation {
        case .add: result = left.addingReportingOverflow(right)
        case .subtract: result = left.subtractingReportingOverflow(right)
        case .multiply: result = left.multipliedReportingOverflow(by: right)
        case .floorDivide:
            result = left.dividedReportingOverflow(by: right)
            if !result.overflow, left % right != 0, (left < 0) != (right < 0) {
                return .int(result.partialValue - 1)
            }
        case .remainder:
            if right == -1 { return .int(0) }
            result = left.remainderReportingOverflow(dividingBy: right)
            if !result.overflow, result.partialValue != 0, (left < 0) != (right < 0) {
                return .int(result.partialValue + right)
            }
        case .divide:
            guard right != 0 else { throw failure("division by zero") }
            return .double(Double(left) / Double(right))
        case .power:
            guard right >= 0 else { return try floatArithmetic(.power, Double(left), Double(right)) }
            if left == 0 || left == 1 { return .int(right == 0 ? 1 : left) }
            if left == -1 { return .int(right % 2 == 0 ? 1 : -1) }
            guard right < 64 else { throw failure("an exponent of \(right)") }
            var power = (partialValue: 1, overflow: false)
            for _ in 0..<right where !power.overflow {
                power = power.partialValue.multipliedReportingOverflow(by: left)
            }
            result = power
        case .concatenate: throw failure("\"~\" of numbers")
        }
        guard !result.overflow else {
            throw failure("\(left) \(operation.rawValue) \(right) has no value in 64 bits")
        }
        return .int(result.partialValue)
    }

    private func floatArithmetic(
        _ operation: BinaryOperator, _ left: Double, _ right: Double
    ) throws(ChatTemplateError) -> JinjaValue {
        switch operation {
        case .add: return .double(left + right)
        case .subtract: return .double(left - right)
        case .multiply: return .double(left * right)
        case .divide:
            guard right != 0 else { throw failure("division by zero") }
            return .double(left / right)
        case .floorDivide, .remainder:
            guard right != 0 else { throw failure("division by zero") }
            // CPython's `_float_div_mod`.
            var remainder = fmod(left, right)
            var quotient = (left - remainder) / right
            if remainder != 0 {
                if (right < 0) != (remainder < 0) {
                    remainder += right
                    quotient -= 1
                }
            } else {
                remainder = Double(signOf: right, magnitudeOf: 0)
            }
            if operation == .remainder { return .double(remainder) }
            guard quotient != 0 else { return .double(Double(signOf: left / right, magnitudeOf: 0)) }
            let floor = quotient.rounded(.down)
            return .double(quotient - floor > 0.5 ? floor + 1 : floor)
        case .power:
            if left == 0, right < 0 { throw failure("0 to a negative power") }
            let power = pow(left, right)
            if power.isNaN, !left.isNaN, !right.isNaN { throw failure("a complex power") }
            if power.isInfinite, left.isFinite, right.isFinite { throw failure("a power beyond all floats") }
            return .double(power)
        case .concatenate: throw failure("\"~\" of floats")
        }
    }

    mutating func compare(
        _ left: JinjaValue, _ comparison: Comparison, _ right: JinjaValue
    ) throws(ChatTemplateError) -> Bool {
        switch comparison {
        case .equal: return try equal(left, right)
        case .notEqual: return !(try equal(left, right))
        case .less, .greater, .lessOrEqual, .greaterOrEqual: return try ordered(left, comparison, right)
        case .contained: return try contains(right, left)
        case .notContained: return !(try contains(right, left))
        }
    }

    /// Compares values that may share parts many times over, so the size of what is compared is charged first.
    mutating func equal(_ left: JinjaValue, _ right: JinjaValue) throws(ChatTemplateError) -> Bool {
        try spendSize(of: left)
        return left == right
    }

    private mutating func spendSize(of value: JinjaValue) throws(ChatTemplateError) {
        switch value {
        case .list(let list):
            try spend(list.items.count)
            for item in list.items { try spendSize(of: item) }
        case .object(let object):
            try spend(object.count)
            for item in object.values { try spendSize(of: item) }
        case .string(let text), .markup(let text): try spend(1 + text.utf8.count / 64)
        default: try spend()
        }
    }

    mutating func isLess(_ left: JinjaValue, _ right: JinjaValue) throws(ChatTemplateError) -> Bool {
        try ordered(left, .less, right)
    }

    private mutating func ordered(
        _ left: JinjaValue, _ comparison: Comparison, _ right: JinjaValue
    ) throws(ChatTemplateError) -> Bool {
        func holds<Value: Comparable>(_ left: Value, _ right: Value) -> Bool {
            switch comparison {
            case .less: left < right
            case .lessOrEqual: left <= right
            case .greater: left > right
            default: left >= right
            }
        }
        if let left = left.stringValue, let right = right.stringValue {
            try spend(1 + min(left.utf8.count, right.utf8.count) / 64)
            return holds(JinjaText.isLess(left, right) ? 0 : JinjaText.equal(left, right) ? 1 : 2, 1)
        }
        if let left = left.intValue, let right = right.intValue { return holds(left, right) }
        if let left = left.doubleValue, let right = right.doubleValue { return holds(left, right) }
        guard case .list(let leftList) = left, case .list(let rightList) = right, leftList.kind == rightList.kind,
            !leftList.isRange, !leftList.isView
        else { throw failure("\(left.typeName) and \(right.typeName) have no order") }
        for (left, right) in zip(leftList.items, rightList.items) where !(try equal(left, right)) {
            return try ordered(left, comparison, right)
        }
        return holds(leftList.items.count, rightList.items.count)
    }

    mutating func contains(_ container: JinjaValue, _ value: JinjaValue) throws(ChatTemplateError) -> Bool {
        switch container {
        case .string(let text), .markup(let text):
            guard let part = value.stringValue else { throw failure("\(value.typeName) in a string") }
            try read(text)
            try read(part)
            return JinjaText.contains(text, part)
        case .object(let object):
            if let name = value.stringValue { try read(name) }
            switch value {
            case .list(let list) where list.kind == .list: throw failure("a list is no key")
            case .object: throw failure("an object is no key")
            default: return object.value(value) != nil
            }
        default:
            for item in try items(of: container) where try equal(item, value) { return true }
            return false
        }
    }
}
