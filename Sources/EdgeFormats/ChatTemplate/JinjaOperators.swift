// Operators, and values as text. Integers do not overflow silently: Python's would grow, these fail.

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
        case (.add, .list(let left), .list(let right)):
            try spend(left.items.count + right.items.count)
            return try .list(left.items + right.items)
        case (.multiply, .string(let text), .int(let count)), (.multiply, .int(let count), .string(let text)):
            let (bytes, overflow) = text.utf8.count.multipliedReportingOverflow(by: max(0, count))
            try charge(bytes: overflow ? Int.max : bytes)
            return .string(bytes == 0 ? "" : String(repeating: text, count: count))
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
            result = left.remainderReportingOverflow(dividingBy: right)
            if !result.overflow, result.partialValue != 0, (left < 0) != (right < 0) {
                return .int(result.partialValue + right)
            }
        case .divide:
            guard right != 0 else { throw failure("division by zero") }
            return .double(Double(left) / Double(right))
        case .power:
            guard right >= 0, right < 64 else { throw failure("an exponent of \(right)") }
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
        case .divide, .floorDivide:
            guard right != 0 else { throw failure("division by zero") }
            return .double(operation == .divide ? left / right : (left / right).rounded(.down))
        case .remainder:
            guard right != 0 else { throw failure("division by zero") }
            return .double(left - right * (left / right).rounded(.down))
        case .power, .concatenate: throw failure("\"\(operation.rawValue)\" of floats")
        }
    }

    mutating func compare(
        _ left: JinjaValue, _ comparison: Comparison, _ right: JinjaValue
    ) throws(ChatTemplateError) -> Bool {
        switch comparison {
        case .equal: return try equal(left, right)
        case .notEqual: return !(try equal(left, right))
        case .less: return try isLess(left, right)
        case .greater: return try isLess(right, left)
        case .lessOrEqual: return !(try isLess(right, left))
        case .greaterOrEqual: return !(try isLess(left, right))
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
        case .string(let text): try spend(1 + text.utf8.count / 64)
        default: try spend()
        }
    }

    func isLess(_ left: JinjaValue, _ right: JinjaValue) throws(ChatTemplateError) -> Bool {
        if case .string(let left) = left, case .string(let right) = right { return JinjaText.isLess(left, right) }
        if let left = left.intValue, let right = right.intValue { return left < right }
        guard let leftNumber = left.doubleValue, let rightNumber = right.doubleValue else {
            throw failure("\(left.typeName) and \(right.typeName) have no order")
        }
        return leftNumber < rightNumber
    }

    mutating func contains(_ container: JinjaValue, _ value: JinjaValue) throws(ChatTemplateError) -> Bool {
        switch container {
        case .string(let text):
            guard case .string(let part) = value else { throw failure("\(value.typeName) in a string") }
            try spend(text.utf8.count / 64)
            if part.utf8.isEmpty { return true }
            return !JinjaText.occurrences(of: Array(part.utf8), in: Array(text.utf8), limit: 1).isEmpty
        case .list(let list):
            for item in list.items where try equal(item, value) { return true }
            return false
        case .object(let object): return value.stringValue.map { object.value($0) != nil } ?? false
        case .undefined: return false
        default: throw failure("\(container.typeName) contains nothing")
        }
    }
}

extension JinjaEvaluator {
    /// Python's `str`.
    mutating func text(of value: JinjaValue) throws(ChatTemplateError) -> String {
        switch value {
        case .undefined: return ""
        case .string(let text): return text
        default:
            var text = ""
            try appendRepresentation(of: value, to: &text)
            return text
        }
    }

    /// Python's `repr`.
    private mutating func appendRepresentation(
        of value: JinjaValue, to text: inout String
    ) throws(ChatTemplateError) {
        try spend()
        switch value {
        case .undefined: text += "Undefined"
        case .none: text += "None"
        case .bool(let value): text += value ? "True" : "False"
        case .int(let value): text += String(value)
        case .double(let value): text += value.description
        case .string(let value):
            try charge(bytes: text.utf8.count + value.utf8.count)
            text += JinjaText.quoted(value)
        case .list(let list):
            text += "["
            for (index, item) in list.items.enumerated() {
                if index > 0 { text += ", " }
                try appendRepresentation(of: item, to: &text)
            }
            text += "]"
        case .object(let object):
            text += "{"
            for (index, key) in object.keys.enumerated() {
                if index > 0 { text += ", " }
                text += JinjaText.quoted(key) + ": "
                try appendRepresentation(of: object.values[index], to: &text)
            }
            text += "}"
        case .handle(let handle): text += "<\(handle.referent)>"
        }
        guard text.utf8.count <= limits.outputBytes else { throw .outputTooLong(limit: limits.outputBytes) }
    }

    /// `json.dumps(ensure_ascii=False)`.
    mutating func appendJSON(
        of value: JinjaValue, to text: inout String, layout: JSONLayout, level: Int = 0
    ) throws(ChatTemplateError) {
        try spend()
        switch value {
        case .none: text += "null"
        case .bool(let value): text += value ? "true" : "false"
        case .int(let value): text += String(value)
        case .double(let value):
            text += value.isNaN ? "NaN" : value.isInfinite ? (value < 0 ? "-Infinity" : "Infinity") : value.description
        case .string(let value):
            try charge(bytes: text.utf8.count + value.utf8.count)
            Self.appendJSONString(value, to: &text)
        case .list(let list):
            text += "["
            for (index, item) in list.items.enumerated() {
                Self.appendJSONBreak(isFirst: index == 0, to: &text, layout: layout, level: level + 1)
                try appendJSON(of: item, to: &text, layout: layout, level: level + 1)
            }
            if !list.items.isEmpty { Self.appendJSONIndent(to: &text, layout: layout, level: level) }
            text += "]"
        case .object(let object):
            text += "{"
            var order = Array(object.keys.indices)
            if layout.sortsKeys { order.sort { JinjaText.isLess(object.keys[$0], object.keys[$1]) } }
            for (index, position) in order.enumerated() {
                Self.appendJSONBreak(isFirst: index == 0, to: &text, layout: layout, level: level + 1)
                Self.appendJSONString(object.keys[position], to: &text)
                text += layout.keySeparator
                try appendJSON(of: object.values[position], to: &text, layout: layout, level: level + 1)
            }
            if object.count > 0 { Self.appendJSONIndent(to: &text, layout: layout, level: level) }
            text += "}"
        case .undefined, .handle: throw failure("\(value.typeName) has no JSON")
        }
        guard text.utf8.count <= limits.outputBytes else { throw .outputTooLong(limit: limits.outputBytes) }
    }

    private static func appendJSONBreak(isFirst: Bool, to text: inout String, layout: JSONLayout, level: Int) {
        if !isFirst { text += layout.itemSeparator }
        appendJSONIndent(to: &text, layout: layout, level: level)
    }

    private static func appendJSONIndent(to text: inout String, layout: JSONLayout, level: Int) {
        guard let indent = layout.indent else { return }
        text += "\n" + String(repeating: " ", count: indent * level)
    }

    private static func appendJSONString(_ value: String, to text: inout String) {
        text += "\""
        for scalar in value.unicodeScalars {
            switch scalar {
            case "\"": text += "\\\""
            case "\\": text += "\\\\"
            case "\n": text += "\\n"
            case "\r": text += "\\r"
            case "\t": text += "\\t"
            case "\u{08}": text += "\\b"
            case "\u{0C}": text += "\\f"
            case _ where scalar.value < 0x20:
                let hex = String(scalar.value, radix: 16)
                text += "\\u" + String(repeating: "0", count: 4 - hex.utf8.count) + hex
            default: text.unicodeScalars.append(scalar)
            }
        }
        text += "\""
    }
}
