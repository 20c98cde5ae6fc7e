// Strict JSON (RFC 8259) for files where a repeated key is an attack or a mistake, as in a safetensors header. Keys
// keep their order, numbers their text; nesting is bounded.

package enum JSONTextError: Error, Equatable, Sendable, CustomStringConvertible {
    case unexpected(expected: String, offset: Int)
    case duplicateKey(String)
    case tooDeep(limit: Int)

    package var description: String {
        switch self {
        case .unexpected(let expected, let offset): "expected \(expected) at byte \(offset) of the JSON text"
        case .duplicateKey(let key): "the key \(key) occurs twice in the JSON text"
        case .tooDeep(let limit): "the JSON text nests deeper than \(limit)"
        }
    }
}

package enum JSONText: Equatable, Sendable {
    case null
    case bool(Bool)
    /// As written.
    case number(String)
    case string(String)
    case array([JSONText])
    case object([Member])

    package struct Member: Equatable, Sendable {
        package let key: String
        package let value: JSONText

        package init(_ key: String, _ value: JSONText) {
            self.key = key
            self.value = value
        }
    }

    package init(parsing utf8: UnsafeRawBufferPointer) throws(JSONTextError) {
        var reader = JSONTextReader(utf8)
        self = try reader.document()
    }

    package subscript(key: String) -> JSONText? {
        guard case .object(let members) = self else { return nil }
        return members.first { $0.key == key }?.value
    }

    package var string: String? { if case .string(let string) = self { string } else { nil } }
    package var bool: Bool? { if case .bool(let bool) = self { bool } else { nil } }
    package var integer: Int? { if case .number(let text) = self { Int(text) } else { nil } }
    package var double: Double? { if case .number(let text) = self { Double(text) } else { nil } }
    package var array: [JSONText]? { if case .array(let elements) = self { elements } else { nil } }

    /// Python's `json.dumps(value, indent=2)`, keys in the order given, and a final newline.
    package func indented() -> [UInt8] {
        var text = ""
        write(into: &text, depth: 0)
        return Array((text + "\n").utf8)
    }

    private func write(into text: inout String, depth: Int) {
        func list<T>(_ elements: [T], _ open: String, _ close: String, _ element: (T, inout String) -> Void) {
            guard !elements.isEmpty else { return text += open + close }
            let indent = String(repeating: "  ", count: depth)
            text += open
            for (i, each) in elements.enumerated() {
                text += (i == 0 ? "\n" : ",\n") + indent + "  "
                element(each, &text)
            }
            text += "\n" + indent + close
        }
        switch self {
        case .null: text += "null"
        case .bool(let bool): text += bool ? "true" : "false"
        case .number(let number): text += number
        case .string(let string): text += Self.quoted(string, .asciiOnly)
        case .array(let elements):
            list(elements, "[", "]") { $0.write(into: &$1, depth: depth + 1) }
        case .object(let members):
            list(members, "{", "}") { member, text in
                text += Self.quoted(member.key, .asciiOnly) + ": "
                member.value.write(into: &text, depth: depth + 1)
            }
        }
    }

    enum Escapes {
        /// Python's `ensure_ascii=True`.
        case asciiOnly
        /// serde_json's: quotes, backslashes and control characters only.
        case required
    }

    static func quoted(_ string: String, _ escapes: Escapes) -> String {
        var text = "\""
        for scalar in string.unicodeScalars {
            switch scalar {
            case "\"": text += "\\\""
            case "\\": text += "\\\\"
            case "\u{8}": text += "\\b"
            case "\u{C}": text += "\\f"
            case "\n": text += "\\n"
            case "\r": text += "\\r"
            case "\t": text += "\\t"
            case _ where scalar.value < 0x20: text += escape(UInt16(scalar.value))
            case _ where scalar.value > 0x7E && escapes == .asciiOnly && scalar != "\u{7F}":
                for unit in String(scalar).utf16 { text += escape(unit) }
            default: text.unicodeScalars.append(scalar)
            }
        }
        return text + "\""
    }

    private static func escape(_ unit: UInt16) -> String {
        let hex = String(unit, radix: 16)
        return "\\u" + String(repeating: "0", count: 4 - hex.count) + hex
    }
}
