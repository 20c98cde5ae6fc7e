// Reads RFC 8259 text a value at a time. `JSONText` makes a tree of it; a file with half a million strings is read
// straight into what it is for, value by value, without one. Nesting is bounded, and every offset is inside the text.

struct JSONTextReader {
    static let depthLimit = 32
    private let utf8: UnsafeRawBufferPointer
    /// Of the next byte. A value's offset, kept, is where `moved(to:)` reads it again.
    private(set) var offset = 0

    init(_ utf8: UnsafeRawBufferPointer) { self.utf8 = utf8 }

    mutating func document() throws(JSONTextError) -> JSONText {
        let value = try value(depth: 0)
        skipSpace()
        guard offset == utf8.count else { throw .unexpected(expected: "the end", offset: offset) }
        return value
    }

    private var next: UInt8? { offset < utf8.count ? utf8[offset] : nil }

    private mutating func skipSpace() {
        while let byte = next, byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 { offset += 1 }
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
        guard let string = String(validating: try stringBytes(), as: UTF8.self) else {
            throw .unexpected(expected: "UTF-8", offset: start)
        }
        return string
    }

    /// What stands between the quotes, unescaped; not yet known to be UTF-8.
    private mutating func stringBytes() throws(JSONTextError) -> [UInt8] {
        offset += 1
        var units: [UInt8] = []
        while true {
            let start = offset
            while let byte = next, byte >= 0x20, byte != UInt8(ascii: "\""), byte != UInt8(ascii: "\\") { offset += 1 }
            units.append(contentsOf: utf8[start..<offset])
            guard let byte = next else { throw .unexpected(expected: "'\"'", offset: offset) }
            guard byte >= 0x20 else { throw .unexpected(expected: "no control character", offset: offset) }
            offset += 1
            if byte == UInt8(ascii: "\"") { return units }
            units.append(contentsOf: try escaped())
        }
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

// For large documents: the caller names what it expects, in the order of the text.
extension JSONTextReader {
    /// The same document at the offset of a value that was skipped.
    func moved(to offset: Int) -> JSONTextReader {
        var reader = self
        reader.offset = offset
        return reader
    }

    enum ValueKind { case object, array, string, other }

    /// What the next value is.
    mutating func kind() -> ValueKind {
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): return .object
        case UInt8(ascii: "["): return .array
        case UInt8(ascii: "\""): return .string
        default: return .other
        }
    }

    /// Calls back before every member's value, which `body` has to read or skip. Keys may repeat.
    mutating func forEachMember(_ body: ([UInt8], inout JSONTextReader) throws -> Void) throws {
        skipSpace()
        guard take("{") else { throw JSONTextError.unexpected(expected: "an object", offset: offset) }
        skipSpace()
        if take("}") { return }
        while true {
            let key = try nextString()
            skipSpace()
            guard take(":") else { throw JSONTextError.unexpected(expected: "':'", offset: offset) }
            try body(key, &self)
            skipSpace()
            if take("}") { return }
            guard take(",") else { throw JSONTextError.unexpected(expected: "',' or '}'", offset: offset) }
        }
    }

    /// Calls back before every element, which `body` has to read or skip.
    mutating func forEachElement(_ body: (inout JSONTextReader) throws -> Void) throws {
        skipSpace()
        guard take("[") else { throw JSONTextError.unexpected(expected: "an array", offset: offset) }
        skipSpace()
        if take("]") { return }
        while true {
            try body(&self)
            skipSpace()
            if take("]") { return }
            guard take(",") else { throw JSONTextError.unexpected(expected: "',' or ']'", offset: offset) }
        }
    }

    /// The next value, a string, as UTF-8.
    mutating func nextString() throws(JSONTextError) -> [UInt8] {
        skipSpace()
        let start = offset
        guard next == UInt8(ascii: "\"") else { throw .unexpected(expected: "a string", offset: offset) }
        let bytes = try stringBytes()
        guard bytes.allSatisfy({ $0 < 0x80 }) || String(validating: bytes, as: UTF8.self) != nil else {
            throw .unexpected(expected: "UTF-8", offset: start)
        }
        return bytes
    }

    mutating func nextValue() throws(JSONTextError) -> JSONText { try value(depth: 0) }

    /// Moves past the next value. Its strings are not looked into.
    mutating func skip() throws(JSONTextError) { try skip(depth: 0) }

    private mutating func skip(depth: Int) throws(JSONTextError) {
        guard depth < Self.depthLimit else { throw .tooDeep(limit: Self.depthLimit) }
        switch kind() {
        case .string: try skipString()
        case .other: _ = try value(depth: depth)
        case .object, .array:
            let isObject = take("{") || !take("[")
            skipSpace()
            if isObject ? take("}") : take("]") { return }
            repeat {
                if isObject {
                    guard kind() == .string else { throw .unexpected(expected: "a key", offset: offset) }
                    try skipString()
                    skipSpace()
                    guard take(":") else { throw .unexpected(expected: "':'", offset: offset) }
                }
                try skip(depth: depth + 1)
                skipSpace()
            } while take(",")
            guard isObject ? take("}") : take("]") else {
                throw .unexpected(expected: isObject ? "',' or '}'" : "',' or ']'", offset: offset)
            }
        }
    }

    private mutating func skipString() throws(JSONTextError) {
        offset += 1
        while let byte = next {
            offset += byte == UInt8(ascii: "\\") ? 2 : 1
            if byte == UInt8(ascii: "\"") { return }
        }
        throw .unexpected(expected: "'\"'", offset: utf8.count)
    }

    /// Only white space is left.
    mutating func finish() throws(JSONTextError) {
        skipSpace()
        guard offset == utf8.count else { throw .unexpected(expected: "the end", offset: offset) }
    }
}
