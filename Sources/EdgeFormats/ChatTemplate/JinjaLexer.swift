// Template source to tokens, with Jinja's white-space rules as transformers sets them: trim_blocks and lstrip_blocks on,
// one final newline dropped, every newline "\n". Upstream: pallets/jinja, lexer.py.

struct JinjaToken: Sendable {
    enum Kind: Sendable, Equatable {
        case text(String)
        case blockBegin, blockEnd, variableBegin, variableEnd
        case name(String)
        case string(String)
        case int(Int)
        case double(Double)
        /// Punctuation, longest match first.
        case symbol(String)
    }
    let kind: Kind
    let line: Int
}

struct JinjaLexer {
    private let source: [UInt8]
    private var offset = 0
    private var line = 1
    private var tokens: [JinjaToken] = []
    /// What the last tag did to the text after it.
    private var trim = TrimAfterTag.nothing

    private enum TrimAfterTag { case nothing, oneNewline, allSpace }

    static func tokens(_ source: String) throws(ChatTemplateError) -> [JinjaToken] {
        var lexer = JinjaLexer(source: normalized(source))
        try lexer.run()
        return lexer.tokens
    }

    private init(source: [UInt8]) { self.source = source }

    private static func normalized(_ source: String) -> [UInt8] {
        var normalized: [UInt8] = []
        normalized.reserveCapacity(source.utf8.count)
        var previous: UInt8 = 0
        for byte in source.utf8 {
            if byte == UInt8(ascii: "\r") {
                normalized.append(UInt8(ascii: "\n"))
            } else if !(byte == UInt8(ascii: "\n") && previous == UInt8(ascii: "\r")) {
                normalized.append(byte)
            }
            previous = byte
        }
        if normalized.last == UInt8(ascii: "\n") { normalized.removeLast() }
        return normalized
    }

    private func byte(at distance: Int) -> Unicode.Scalar? {
        offset + distance < source.count ? Unicode.Scalar(source[offset + distance]) : nil
    }

    private mutating func advance(_ count: Int) {
        for _ in 0..<count {
            if source[offset] == UInt8(ascii: "\n") { line += 1 }
            offset += 1
        }
    }

    private mutating func emit(_ kind: JinjaToken.Kind) { tokens.append(JinjaToken(kind: kind, line: line)) }

    private func startsTag(at position: Int) -> Bool {
        guard position + 1 < source.count, source[position] == UInt8(ascii: "{") else { return false }
        let second = Unicode.Scalar(source[position + 1])
        return second == "%" || second == "{" || second == "#"
    }

    private static func isSpace(_ byte: UInt8) -> Bool { byte == 0x20 || (0x09...0x0D).contains(byte) }

    private mutating func run() throws(ChatTemplateError) {
        while offset < source.count {
            let textStart = offset
            while offset < source.count, !startsTag(at: offset) { advance(1) }
            let kind = byte(at: 1)
            let sign = byte(at: 2)
            emitText(textStart..<offset, nextKind: offset < source.count ? kind : nil, nextSign: sign)
            guard offset < source.count else { return }
            let startLine = line
            advance(sign == "-" || sign == "+" ? 3 : 2)
            switch kind {
            case "#": try skipComment(startLine: startLine)
            case "%":
                if try !raw(startLine: startLine) {
                    emit(.blockBegin)
                    try tag(closing: "%", startLine: startLine)
                    emit(.blockEnd)
                }
            default:
                emit(.variableBegin)
                try tag(closing: "}", startLine: startLine)
                emit(.variableEnd)
            }
        }
    }

    /// `nextKind` is the second character of the tag that ends the text, nil at the end of the source.
    private mutating func emitText(_ range: Range<Int>, nextKind: Unicode.Scalar?, nextSign: Unicode.Scalar?) {
        var start = range.lowerBound
        var end = range.upperBound
        switch trim {
        case .nothing: break
        case .oneNewline: if start < end, source[start] == UInt8(ascii: "\n") { start += 1 }
        case .allSpace: while start < end, Self.isSpace(source[start]) { start += 1 }
        }
        trim = .nothing
        if nextKind != nil, nextSign == "-" {
            while end > start, Self.isSpace(source[end - 1]) { end -= 1 }
        } else if nextKind == "%" || nextKind == "#", nextSign != "+" {
            // lstrip_blocks: white space between the start of the line and the tag goes.
            var lineStart = end
            while lineStart > start, source[lineStart - 1] != UInt8(ascii: "\n"), Self.isSpace(source[lineStart - 1]) {
                lineStart -= 1
            }
            let isLineStart = lineStart == 0 || source[lineStart - 1] == UInt8(ascii: "\n")
            if isLineStart { end = lineStart }
        }
        guard start < end else { return }
        tokens.append(JinjaToken(kind: .text(String(decoding: source[start..<end], as: UTF8.self)), line: line))
    }

    private mutating func skipComment(startLine: Int) throws(ChatTemplateError) {
        while offset < source.count {
            if byte(at: 0) == "#", byte(at: 1) == "}" {
                // The sign before the end belongs to it, unless the comment is only that sign.
                let previous = Unicode.Scalar(source[offset - 1])
                trim = previous == "-" ? .allSpace : previous == "+" ? .nothing : .oneNewline
                advance(2)
                return
            }
            advance(1)
        }
        throw .syntax(line: startLine, "a comment has no end")
    }

    /// `{% raw %}…{% endraw %}`, whose inside is text. False when the tag is another one.
    private mutating func raw(startLine: Int) throws(ChatTemplateError) -> Bool {
        guard let bodyStart = endOfTag(word: "raw", from: offset), bodyStart.sign != "+" else { return false }
        advance(bodyStart.end - offset)
        // Unlike after every other tag, a newline stays.
        trim = bodyStart.sign == "-" ? .allSpace : .nothing
        let textStart = offset
        while offset < source.count {
            if byte(at: 0) == "{", byte(at: 1) == "%" {
                let sign = byte(at: 2)
                let wordStart = offset + (sign == "-" || sign == "+" ? 3 : 2)
                if let end = endOfTag(word: "endraw", from: wordStart) {
                    emitText(textStart..<offset, nextKind: "%", nextSign: sign)
                    advance(end.end - offset)
                    trim = end.sign == "-" ? .allSpace : end.sign == "+" ? .nothing : .oneNewline
                    return true
                }
            }
            advance(1)
        }
        throw .syntax(line: startLine, "raw has no endraw")
    }

    /// The end of a block tag that consists of one word, and the sign before its end.
    private func endOfTag(word: String, from start: Int) -> (end: Int, sign: Unicode.Scalar?)? {
        var position = start
        while position < source.count, Self.isSpace(source[position]) { position += 1 }
        guard source[min(position, source.count)...].starts(with: word.utf8) else { return nil }
        position += word.utf8.count
        while position < source.count, Self.isSpace(source[position]) { position += 1 }
        var sign: Unicode.Scalar?
        if position < source.count, source[position] == UInt8(ascii: "-") || source[position] == UInt8(ascii: "+") {
            sign = Unicode.Scalar(source[position])
            position += 1
        }
        guard source[min(position, source.count)...].starts(with: "%}".utf8) else { return nil }
        return (position + 2, sign)
    }

    /// The inside of `{% %}` or `{{ }}`, to its end. Inside brackets an end is punctuation: `{{ {'a': {}} }}`.
    private mutating func tag(closing: Unicode.Scalar, startLine: Int) throws(ChatTemplateError) {
        var brackets: [Unicode.Scalar] = []
        while let current = byte(at: 0) {
            if brackets.isEmpty {
                let sign = current == "-" || (current == "+" && closing == "%") ? current : nil
                let at = sign == nil ? 0 : 1
                if byte(at: at) == closing, byte(at: at + 1) == "}" {
                    advance(at + 2)
                    trim = sign == "-" ? .allSpace : sign == nil && closing == "%" ? .oneNewline : .nothing
                    return
                }
            }
            switch current {
            case " ", "\t", "\n", "\u{0B}", "\u{0C}": advance(1)
            case "a"..."z", "A"..."Z", "_": name()
            case "0"..."9": try number()
            case "'", "\"": try string()
            default: try symbol(&brackets)
            }
        }
        throw .syntax(line: startLine, "a tag has no end")
    }

    private mutating func name() {
        let start = offset
        while let scalar = byte(at: 0),
            scalar == "_" || (scalar.isASCII && scalar.properties.isAlphabetic) || ("0"..."9").contains(scalar)
        {
            advance(1)
        }
        emit(.name(String(decoding: source[start..<offset], as: UTF8.self)))
    }

    private mutating func number() throws(ChatTemplateError) {
        let start = offset
        func isDigit(_ distance: Int) -> Bool { byte(at: distance).map { ("0"..."9").contains($0) } ?? false }
        if byte(at: 0) == "0", let letter = byte(at: 1), let radix = Self.radixes[letter] {
            return try number(radix: radix)
        }
        while isDigit(0) || (byte(at: 0) == "_" && isDigit(1)) { advance(1) }
        var isInteger = true
        if byte(at: 0) == ".", isDigit(1) {
            isInteger = false
            advance(1)
            while isDigit(0) || (byte(at: 0) == "_" && isDigit(1)) { advance(1) }
        }
        if byte(at: 0) == "e" || byte(at: 0) == "E" {
            let signed = byte(at: 1) == "+" || byte(at: 1) == "-"
            if isDigit(signed ? 2 : 1) {
                isInteger = false
                advance(signed ? 2 : 1)
                while isDigit(0) { advance(1) }
            }
        }
        let text = String(decoding: source[start..<offset].filter { $0 != UInt8(ascii: "_") }, as: UTF8.self)
        if isInteger, let value = Int(text) {
            emit(.int(value))
        } else if !isInteger, let value = Double(text) {
            emit(.double(value))
        } else {
            throw .syntax(line: line, "the number \(text) is out of range")
        }
    }

    private static let radixes: [Unicode.Scalar: Int] = ["x": 16, "X": 16, "o": 8, "O": 8, "b": 2, "B": 2]

    private mutating func number(radix: Int) throws(ChatTemplateError) {
        advance(2)
        let start = offset
        while let scalar = byte(at: 0), scalar == "_" || Int(String(scalar), radix: radix) != nil { advance(1) }
        let text = String(decoding: source[start..<offset].filter { $0 != UInt8(ascii: "_") }, as: UTF8.self)
        guard let value = Int(text, radix: radix) else {
            throw .syntax(line: line, "the number \(text) of base \(radix) is out of range")
        }
        emit(.int(value))
    }

    private static let symbols = [
        "//", "**", "==", "!=", "<=", ">=", "+", "-", "~", "*", "/", "%", "<", ">", "=", ".", ",", ":", "|",
        "(", ")", "[", "]", "{", "}",
    ]

    private mutating func symbol(_ brackets: inout [Unicode.Scalar]) throws(ChatTemplateError) {
        guard let symbol = Self.symbols.first(where: { source[offset...].starts(with: $0.utf8) }) else {
            throw .syntax(line: line, "unexpected character at byte \(offset)")
        }
        switch symbol {
        case "(": brackets.append(")")
        case "[": brackets.append("]")
        case "{": brackets.append("}")
        case ")", "]", "}":
            guard let open = brackets.popLast(), symbol == String(open) else {
                throw .syntax(line: line, "unexpected \"\(symbol)\"")
            }
        default: break
        }
        emit(.symbol(symbol))
        advance(symbol.utf8.count)
    }

    /// Escapes are Python's; an unknown one keeps its backslash.
    private mutating func string() throws(ChatTemplateError) {
        let startLine = line
        let quote = source[offset]
        advance(1)
        var bytes: [UInt8] = []
        while offset < source.count {
            let byte = source[offset]
            advance(1)
            if byte == quote {
                emit(.string(String(decoding: bytes, as: UTF8.self)))
                return
            }
            guard byte == UInt8(ascii: "\\"), offset < source.count else {
                bytes.append(byte)
                continue
            }
            let letter = source[offset]
            advance(1)
            switch Unicode.Scalar(letter) {
            case "\n": break
            case "\\", "'", "\"": bytes.append(letter)
            case "n": bytes.append(0x0A)
            case "t": bytes.append(0x09)
            case "r": bytes.append(0x0D)
            case "a": bytes.append(0x07)
            case "b": bytes.append(0x08)
            case "f": bytes.append(0x0C)
            case "v": bytes.append(0x0B)
            case "0": bytes.append(0x00)
            case "x": bytes.append(contentsOf: try escapedScalar(digits: 2))
            case "u": bytes.append(contentsOf: try escapedScalar(digits: 4))
            case "U": bytes.append(contentsOf: try escapedScalar(digits: 8))
            default: bytes += [byte, letter]
            }
        }
        throw .syntax(line: startLine, "a string has no end")
    }

    private mutating func escapedScalar(digits: Int) throws(ChatTemplateError) -> [UInt8] {
        guard offset + digits <= source.count,
            let value = UInt32(String(decoding: source[offset..<offset + digits], as: UTF8.self), radix: 16),
            let scalar = Unicode.Scalar(value)
        else { throw .syntax(line: line, "an escape needs \(digits) hexadecimal digits of a character") }
        advance(digits)
        return Array(String(scalar).utf8)
    }
}
