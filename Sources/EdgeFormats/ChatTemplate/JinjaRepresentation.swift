// Values as text: Python's `str` and `repr`, and `json.dumps` as transformers calls it. Generators and functions print as an
// address in Python; here they are an error.

extension JinjaEvaluator {
    /// Python's `str`.
    mutating func text(of value: JinjaValue) throws(ChatTemplateError) -> String {
        switch value {
        case .undefined: return ""
        case .string(let text), .markup(let text): return text
        default:
            var text = ""
            try appendRepresentation(of: value, to: &text)
            return text
        }
    }

    /// Python's `repr`.
    mutating func appendRepresentation(
        of value: JinjaValue, to text: inout String
    ) throws(ChatTemplateError) {
        // A namespace may hold itself.
        try enter()
        defer { depth -= 1 }
        switch value {
        case .undefined: text += "Undefined"
        case .none: text += "None"
        case .bool(let value): text += value ? "True" : "False"
        case .int(let value): text += String(value)
        case .double(let value): text += JinjaText.number(value)
        case .string(let value):
            // An escape is longer than what it stands for.
            try charge(bytes: value.utf8.count)
            text += JinjaText.quoted(value)
        case .markup(let value):
            try charge(bytes: value.utf8.count)
            text += "Markup(" + JinjaText.quoted(value) + ")"
        case .list(let list): try appendRepresentation(of: list, to: &text)
        case .object(let object):
            text += "{"
            for index in 0..<object.count {
                if index > 0 { text += ", " }
                try appendRepresentation(of: object.key(at: index), to: &text)
                text += ": "
                try appendRepresentation(of: object.values[index], to: &text)
            }
            text += "}"
        case .handle(let handle):
            switch handle.referent {
            case .macro(let index):
                text += "<Macro " + (macros[index].macro.name.map(JinjaText.quoted) ?? "anonymous") + ">"
            case .loop(let id):
                let index = try self.text(of: try loopAttribute("index", ofLoop: id))
                let count = try self.text(of: try loopAttribute("length", ofLoop: id))
                text += "<LoopContext \(index)/\(count)>"
            case .namespace(let index):
                text += "<Namespace "
                try appendRepresentation(of: .object(namespaces[index]), to: &text)
                text += ">"
            default: throw failure("a \(value.typeName) has no text")
            }
        }
        guard text.utf8.count <= limits.outputBytes else { throw .outputTooLong(limit: limits.outputBytes) }
    }

    private mutating func appendRepresentation(
        of list: JinjaList, to text: inout String
    ) throws(ChatTemplateError) {
        if case .range(let start, let stop, let step) = list.kind {
            text += "range(\(start), \(stop)" + (step == 1 ? ")" : ", \(step))")
            return
        }
        switch list.kind {
        case .tuple, .group: text += "("
        case .view(let name): text += name + "(["
        default: text += "["
        }
        for (index, item) in list.items.enumerated() {
            if index > 0 { text += ", " }
            try appendRepresentation(of: item, to: &text)
        }
        switch list.kind {
        case .tuple, .group: text += list.items.count == 1 ? ",)" : ")"
        case .view: text += "])"
        default: text += "]"
        }
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
            text +=
                value.isNaN ? "NaN" : value.isInfinite ? (value < 0 ? "-Infinity" : "Infinity") : JinjaText.number(value)
        case .string(let value), .markup(let value):
            try charge(bytes: value.utf8.count)
            Self.appendJSONString(value, to: &text, layout: layout)
        case .list(let list) where !list.isRange && !list.isView:
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
            if layout.sortsKeys {
                try spend(object.count)
                order = try sorted(order) { (evaluator, left, right) throws(ChatTemplateError) in
                    try evaluator.isLess(object.key(at: left), object.key(at: right))
                }
            }
            for (index, position) in order.enumerated() {
                Self.appendJSONBreak(isFirst: index == 0, to: &text, layout: layout, level: level + 1)
                try charge(bytes: object.keys[position].utf8.count)
                Self.appendJSONString(Self.jsonKey(object.key(at: position)), to: &text, layout: layout)
                text += layout.keySeparator
                try appendJSON(of: object.values[position], to: &text, layout: layout, level: level + 1)
            }
            if object.count > 0 { Self.appendJSONIndent(to: &text, layout: layout, level: level) }
            text += "}"
        case .undefined, .handle, .list: throw failure("\(value.typeName) has no JSON")
        }
        guard text.utf8.count <= limits.outputBytes else { throw .outputTooLong(limit: limits.outputBytes) }
    }

    private static func appendJSONBreak(isFirst: Bool, to text: inout String, layout: JSONLayout, level: Int) {
        if !isFirst { text += layout.itemSeparator }
        appendJSONIndent(to: &text, layout: layout, level: level)
    }

    private static func appendJSONIndent(to text: inout String, layout: JSONLayout, level: Int) {
        guard let indent = layout.indent else { return }
        text += "\n"
        for _ in 0..<level { text += indent }
    }

    /// What `json.dumps` makes of a key that is no string.
    private static func jsonKey(_ key: JinjaValue) -> String {
        switch key {
        case .none: "null"
        case .bool(let value): value ? "true" : "false"
        case .int(let value): String(value)
        case .double(let value): JinjaText.number(value)
        default: key.stringValue ?? ""
        }
    }

    private static func appendJSONString(_ value: String, to text: inout String, layout: JSONLayout) {
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
            case _ where layout.isASCII && scalar.value > 0x7E:
                for unit in String(scalar).utf16 {
                    let hex = String(unit, radix: 16)
                    text += "\\u" + String(repeating: "0", count: 4 - hex.utf8.count) + hex
                }
            default: text.unicodeScalars.append(scalar)
            }
        }
        text += "\""
    }
}

/// How `json.dumps` lays out its text.
struct JSONLayout {
    var itemSeparator = ", "
    var keySeparator = ": "
    /// What stands before an item, once a level; nil keeps everything on one line.
    var indent: String?
    var sortsKeys = false
    var isASCII = false
}
