// JSON to values and back. The parser is strict (RFC 8259), keeps the order of keys, which templates print, and bounds
// the nesting. The writer is Python's `json.dumps(ensure_ascii=False)`, which is what `tojson` means to chat templates.

package enum JSONSyntaxError: Error, Equatable {
    /// `offset` counts bytes from the start of the text.
    case unexpected(offset: Int, expected: String)
    case invalidUTF8(offset: Int)
    case tooDeep(limit: Int)
}

extension JSONSyntaxError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .unexpected(let offset, let expected): "not JSON: expected \(expected) at byte \(offset)"
        case .invalidUTF8(let offset): "not UTF-8 at byte \(offset)"
        case .tooDeep(let limit): "JSON nests deeper than \(limit) levels"
        }
    }
}

extension JinjaValue {
    package init(json utf8: [UInt8]) throws(JSONSyntaxError) {
        if let offset = Self.firstInvalidUTF8(utf8) { throw .invalidUTF8(offset: offset) }
        var parser = JSONParser(utf8: utf8)
        self = try parser.document()
    }

    private static func firstInvalidUTF8(_ utf8: [UInt8]) -> Int? {
        guard String(validating: utf8, as: UTF8.self) == nil else { return nil }
        var decoder = UTF8()
        var iterator = utf8.makeIterator()
        var offset = 0
        while case .scalarValue(let scalar) = decoder.decode(&iterator) { offset += UTF8.width(scalar) }
        return offset
    }
}

private struct JSONParser {
    let utf8: [UInt8]
    var offset = 0

    init(utf8: [UInt8]) { self.utf8 = utf8 }

    mutating func document() throws(JSONSyntaxError) -> JinjaValue {
        let value = try value(depth: 0)
        skipSpace()
        guard offset == utf8.count else { throw .unexpected(offset: offset, expected: "the end") }
        return value
    }

    private var next: UInt8? { offset < utf8.count ? utf8[offset] : nil }

    private mutating func skipSpace() {
        while let byte = next, byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 { offset += 1 }
    }

    private mutating func take(_ character: Unicode.Scalar) -> Bool {
        skipSpace()
        guard next == UInt8(ascii: character) else { return false }
        offset += 1
        return true
    }

    private mutating func value(depth: Int) throws(JSONSyntaxError) -> JinjaValue {
        guard depth <= JinjaValue.maximumDepth else { throw .tooDeep(limit: JinjaValue.maximumDepth) }
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): return try object(depth: depth + 1)
        case UInt8(ascii: "["): return try list(depth: depth + 1)
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .none)
        default: return try number()
        }
    }

    private mutating func word(_ word: String, _ value: JinjaValue) throws(JSONSyntaxError) -> JinjaValue {
        guard utf8[offset...].starts(with: word.utf8) else { throw .unexpected(offset: offset, expected: word) }
        offset += word.utf8.count
        return value
    }

    private mutating func object(depth: Int) throws(JSONSyntaxError) -> JinjaValue {
        offset += 1
        var entries: [(String, JinjaValue)] = []
        if !take("}") {
            repeat {
                skipSpace()
                let key = try string()
                guard take(":") else { throw .unexpected(offset: offset, expected: "\":\"") }
                entries.append((key, try value(depth: depth)))
            } while take(",")
            guard take("}") else { throw .unexpected(offset: offset, expected: "\",\" or \"}\"") }
        }
        do { return try .object(entries) } catch { throw .tooDeep(limit: JinjaValue.maximumDepth) }
    }

    private mutating func list(depth: Int) throws(JSONSyntaxError) -> JinjaValue {
        offset += 1
        var items: [JinjaValue] = []
        if !take("]") {
            repeat { items.append(try value(depth: depth)) } while take(",")
            guard take("]") else { throw .unexpected(offset: offset, expected: "\",\" or \"]\"") }
        }
        do { return try .list(items) } catch { throw .tooDeep(limit: JinjaValue.maximumDepth) }
    }

    private mutating func number() throws(JSONSyntaxError) -> JinjaValue {
        let start = offset
        if next == UInt8(ascii: "-") { offset += 1 }
        let integerStart = offset
        let integerDigits = skipDigits()
        let hasLeadingZero = integerDigits > 1 && utf8[integerStart] == UInt8(ascii: "0")
        guard integerDigits > 0, !hasLeadingZero else { throw .unexpected(offset: start, expected: "a value") }
        var isInteger = true
        if next == UInt8(ascii: ".") {
            isInteger = false
            offset += 1
            guard skipDigits() > 0 else { throw .unexpected(offset: offset, expected: "a digit") }
        }
        if next == UInt8(ascii: "e") || next == UInt8(ascii: "E") {
            isInteger = false
            offset += 1
            if next == UInt8(ascii: "+") || next == UInt8(ascii: "-") { offset += 1 }
            guard skipDigits() > 0 else { throw .unexpected(offset: offset, expected: "a digit") }
        }
        let text = String(decoding: utf8[start..<offset], as: UTF8.self)
        if isInteger, let value = Int(text) { return .int(value) }
        guard let value = Double(text) else { throw .unexpected(offset: start, expected: "a number") }
        return .double(value)
    }

    private mutating func skipDigits() -> Int {
        let start = offset
        while let byte = next, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { offset += 1 }
        return offset - start
    }

    private mutating func string() throws(JSONSyntaxError) -> String {
        guard next == UInt8(ascii: "\"") else { throw .unexpected(offset: offset, expected: "a string") }
        offset += 1
        var bytes: [UInt8] = []
        while let byte = next {
            switch byte {
            case UInt8(ascii: "\""):
                offset += 1
                return String(decoding: bytes, as: UTF8.self)
            case UInt8(ascii: "\\"):
                offset += 1
                try escape(into: &bytes)
            case 0..<0x20:
                throw .unexpected(offset: offset, expected: "an escape instead of a control character")
            default:
                bytes.append(byte)
                offset += 1
            }
        }
        throw .unexpected(offset: offset, expected: "the end of a string")
    }

    private mutating func escape(into bytes: inout [UInt8]) throws(JSONSyntaxError) {
        let start = offset
        guard let letter = next else { throw .unexpected(offset: offset, expected: "an escape") }
        offset += 1
        switch Unicode.Scalar(letter) {
        case "\"", "\\", "/": bytes.append(letter)
        case "b": bytes.append(0x08)
        case "f": bytes.append(0x0C)
        case "n": bytes.append(0x0A)
        case "r": bytes.append(0x0D)
        case "t": bytes.append(0x09)
        case "u":
            var value = UInt32(try codeUnit())
            if (0xD800..<0xDC00).contains(value), utf8[offset...].starts(with: [UInt8(ascii: "\\"), UInt8(ascii: "u")])
            {
                offset += 2
                let low = UInt32(try codeUnit())
                guard (0xDC00..<0xE000).contains(low) else {
                    throw .unexpected(offset: start, expected: "a low surrogate after a high one")
                }
                value = 0x10000 + (value - 0xD800) << 10 + (low - 0xDC00)
            }
            guard let scalar = Unicode.Scalar(value) else {
                throw .unexpected(offset: start, expected: "no lone surrogate")
            }
            bytes.append(contentsOf: String(scalar).utf8)
        default: throw .unexpected(offset: start, expected: "an escape")
        }
    }

    private mutating func codeUnit() throws(JSONSyntaxError) -> UInt16 {
        guard offset + 4 <= utf8.count,
            utf8[offset..<offset + 4].allSatisfy({ Unicode.Scalar($0).properties.isASCIIHexDigit }),
            let value = UInt16(String(decoding: utf8[offset..<offset + 4], as: UTF8.self), radix: 16)
        else { throw .unexpected(offset: offset, expected: "four hexadecimal digits") }
        offset += 4
        return value
    }
}
