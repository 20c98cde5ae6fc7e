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
        var parser = JSONTextParser(utf8: utf8)
        self = try parser.document()
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

private struct JSONTextParser {
    static let depthLimit = 32
    let utf8: UnsafeRawBufferPointer
    var offset = 0

    init(utf8: UnsafeRawBufferPointer) { self.utf8 = utf8 }

    mutating func document() throws(JSONTextError) -> JSONText {
        let value = try value(depth: 0)
        skipSpace()
        guard offset == utf8.count else { throw .unexpected(expected: "the end", offset: offset) }
        return value
    }

    private var next: UInt8? { offset < utf8.count ? utf8[offset] : nil }

    private mutating func skipSpace() {
        while let byte = next, [0x20, 0x0A, 0x0D, 0x09].contains(byte) { offset += 1 }
    }

    private mutating func value(depth: Int) throws(JSONTextError) -> JSONText {
        guard depth < Self.depthLimit else { throw .tooDeep(limit: Self.depthLimit) }
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): return try object(depth: depth)
        case UInt8(ascii: "["): return try array(depth: depth)
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try literal("true", .bool(true))
        case UInt8(ascii: "f"): return try literal("false", .bool(false))
        case UInt8(ascii: "n"): return try literal("null", .null)
        default: return try number()
        }
    }

    private mutating func object(depth: Int) throws(JSONTextError) -> JSONText {
        offset += 1
        var members: [JSONText.Member] = []
        var seen: Set<String> = []
        skipSpace()
        if take("}") { return .object([]) }
        while true {
            skipSpace()
            guard next == UInt8(ascii: "\"") else { throw .unexpected(expected: "a key", offset: offset) }
            let key = try string()
            guard seen.insert(key).inserted else { throw .duplicateKey(key) }
            skipSpace()
            guard take(":") else { throw .unexpected(expected: "':'", offset: offset) }
            members.append(JSONText.Member(key, try value(depth: depth + 1)))
            skipSpace()
            if take("}") { return .object(members) }
            guard take(",") else { throw .unexpected(expected: "',' or '}'", offset: offset) }
        }
    }

    private mutating func array(depth: Int) throws(JSONTextError) -> JSONText {
        offset += 1
        var elements: [JSONText] = []
        skipSpace()
        if take("]") { return .array([]) }
        while true {
            elements.append(try value(depth: depth + 1))
            skipSpace()
            if take("]") { return .array(elements) }
            guard take(",") else { throw .unexpected(expected: "',' or ']'", offset: offset) }
        }
    }

    private mutating func take(_ character: Unicode.Scalar) -> Bool {
        guard next == UInt8(ascii: character) else { return false }
        offset += 1
        return true
    }

    private mutating func literal(_ text: String, _ value: JSONText) throws(JSONTextError) -> JSONText {
        guard utf8[offset...].starts(with: text.utf8) else { throw .unexpected(expected: text, offset: offset) }
        offset += text.utf8.count
        return value
    }

    private mutating func digits() throws(JSONTextError) {
        let start = offset
        while let byte = next, (0x30...0x39).contains(byte) { offset += 1 }
        guard offset > start else { throw .unexpected(expected: "a value", offset: offset) }
    }

    private mutating func number() throws(JSONTextError) -> JSONText {
        let start = offset
        _ = take("-")
        let firstDigit = offset
        try digits()
        guard utf8[firstDigit] != 0x30 || offset == firstDigit + 1 else {
            throw .unexpected(expected: "a number without leading zeros", offset: firstDigit)
        }
        if take(".") { try digits() }
        if take("e") || take("E") {
            if !take("+") { _ = take("-") }
            try digits()
        }
        return .number(String(decoding: utf8[start..<offset], as: UTF8.self))
    }

    private mutating func string() throws(JSONTextError) -> String {
        let start = offset
        offset += 1
        var units: [UInt8] = []
        while let byte = next {
            offset += 1
            switch byte {
            case UInt8(ascii: "\""):
                guard let string = String(validating: units, as: UTF8.self) else {
                    throw .unexpected(expected: "UTF-8", offset: start)
                }
                return string
            case UInt8(ascii: "\\"): units.append(contentsOf: try escaped())
            case 0..<0x20: throw .unexpected(expected: "no control character", offset: offset - 1)
            default: units.append(byte)
            }
        }
        throw .unexpected(expected: "'\"'", offset: offset)
    }

    /// The UTF-8 of one escape, whose backslash has been read.
    private mutating func escaped() throws(JSONTextError) -> [UInt8] {
        let start = offset
        guard let byte = next else { throw .unexpected(expected: "an escape", offset: start) }
        offset += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return [byte]
        case UInt8(ascii: "b"): return [0x08]
        case UInt8(ascii: "f"): return [0x0C]
        case UInt8(ascii: "n"): return [0x0A]
        case UInt8(ascii: "r"): return [0x0D]
        case UInt8(ascii: "t"): return [0x09]
        case UInt8(ascii: "u"): break
        default: throw .unexpected(expected: "an escape", offset: start)
        }
        var units = [try hexUnit()]
        if UTF16.isLeadSurrogate(units[0]) {
            guard take("\\"), take("u") else { throw .unexpected(expected: "a low surrogate", offset: offset) }
            units.append(try hexUnit())
        }
        guard let text = String(validating: units, as: UTF16.self) else {
            throw .unexpected(expected: "a Unicode scalar", offset: start)
        }
        return Array(text.utf8)
    }

    private mutating func hexUnit() throws(JSONTextError) -> UInt16 {
        var unit: UInt16 = 0
        for _ in 0..<4 {
            guard let byte = next, let digit = Character(Unicode.Scalar(byte)).hexDigitValue else {
                throw .unexpected(expected: "a hexadecimal digit", offset: offset)
            }
            unit = unit << 4 | UInt16(digit)
            offset += 1
        }
        return unit
    }
}
