// Cuts text into the pieces that byte-pair merges never cross. One entry of `PreTokenizer.all` per family; the name is
// GGUF's `tokenizer.ggml.pre`. The families are regular expressions upstream; here each is a hand-written scanner
// over scalars, so its time is linear whatever the text. Input is valid UTF-8; the pieces cover it without gaps.

package struct PreTokenizer: Sendable {
    package let name: String
    /// Calls back with consecutive, non-empty byte ranges that cover the given range of valid UTF-8.
    let forEachPiece: @Sendable (_ utf8: [UInt8], _ range: Range<Int>, _ body: (Range<Int>) -> Void) -> Void

    package static let all: [PreTokenizer] = [
        PreTokenizer(name: "gpt-2", forEachPiece: forEachGPT2Piece),
        PreTokenizer(name: "smollm", forEachPiece: forEachSmolLMPiece),
    ]

    package static func named(_ name: String) throws(TokenizerError) -> PreTokenizer {
        guard let preTokenizer = all.first(where: { $0.name == name }) else {
            throw .unknownPreTokenizer(name, supported: all.map(\.name))
        }
        return preTokenizer
    }

    package func pieces(of text: String) -> [String] {
        let utf8 = Array(text.utf8)
        var pieces: [String] = []
        forEachPiece(utf8, 0..<utf8.count) { pieces.append(String(decoding: utf8[$0], as: UTF8.self)) }
        return pieces
    }
}

/// What the families' expressions tell apart: `\p{L}`, `\p{N}`, `\s` and the rest.
private enum ScalarClass {
    case letter, number, whitespace, other

    init(_ scalar: Unicode.Scalar) {
        if scalar.isASCII {
            switch UInt8(truncatingIfNeeded: scalar.value) {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"): self = .letter
            case UInt8(ascii: "0")...UInt8(ascii: "9"): self = .number
            case 0x09...0x0D, 0x20: self = .whitespace
            default: self = .other
            }
            return
        }
        switch scalar.properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: self = .letter
        case .decimalNumber, .letterNumber, .otherNumber: self = .number
        default: self = scalar.properties.isWhitespace ? .whitespace : .other
        }
    }
}

/// A position in valid UTF-8 that yields scalars and their classes.
private struct ScalarCursor {
    let utf8: [UInt8]
    let end: Int
    var offset: Int

    init(_ utf8: [UInt8], _ range: Range<Int>) {
        self.utf8 = utf8
        offset = range.lowerBound
        end = range.upperBound
    }

    var isAtEnd: Bool { offset >= end }

    func byte(at distance: Int) -> UInt8? {
        offset + distance < end ? utf8[offset + distance] : nil
    }

    /// The class of the scalar at `offset` and its length in bytes; nil at the end.
    func peek() -> (scalarClass: ScalarClass, length: Int)? {
        guard let first = byte(at: 0) else { return nil }
        let length = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4
        guard length > 1 else { return (ScalarClass(Unicode.Scalar(first)), 1) }
        var value = UInt32(first) & (0xFF >> UInt32(length + 1))
        for distance in 1..<length { value = value << 6 | UInt32((byte(at: distance) ?? 0x80) & 0x3F) }
        return (Unicode.Scalar(value).map(ScalarClass.init) ?? .other, length)
    }

    /// Moves past scalars of `scalarClass` and says how long the last one was, 0 when there was none.
    mutating func skip(_ scalarClass: ScalarClass) -> Int {
        var lastLength = 0
        while let next = peek(), next.scalarClass == scalarClass {
            offset += next.length
            lastLength = next.length
        }
        return lastLength
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` (openai/gpt-2, encoder.py).
@Sendable private func forEachGPT2Piece(_ utf8: [UInt8], _ range: Range<Int>, _ body: (Range<Int>) -> Void) {
    var cursor = ScalarCursor(utf8, range)
    while !cursor.isAtEnd {
        let start = cursor.offset
        let contraction = contractionLength(at: cursor)
        if contraction > 0 {
            cursor.offset += contraction
        } else {
            skipRun(&cursor)
        }
        body(start..<cursor.offset)
    }
}

/// Bytes of the English contraction at the cursor, 0 when there is none.
private func contractionLength(at cursor: ScalarCursor) -> Int {
    guard cursor.byte(at: 0) == UInt8(ascii: "'"), let first = cursor.byte(at: 1) else { return 0 }
    switch first {
    case UInt8(ascii: "s"), UInt8(ascii: "t"), UInt8(ascii: "m"), UInt8(ascii: "d"): return 2
    case UInt8(ascii: "r"), UInt8(ascii: "v"): return cursor.byte(at: 2) == UInt8(ascii: "e") ? 3 : 0
    case UInt8(ascii: "l"): return cursor.byte(at: 2) == UInt8(ascii: "l") ? 3 : 0
    default: return 0
    }
}

/// Moves past one run of a class, with the space before it, or past white space. White space that precedes a word
/// leaves its last scalar to the word: what `\s+(?!\S)` means.
private func skipRun(_ cursor: inout ScalarCursor) {
    let start = cursor.offset
    if cursor.byte(at: 0) == UInt8(ascii: " ") { cursor.offset += 1 }
    if let next = cursor.peek(), next.scalarClass != .whitespace {
        _ = cursor.skip(next.scalarClass)
        return
    }
    cursor.offset = start
    let lastLength = cursor.skip(.whitespace)
    if !cursor.isAtEnd, cursor.offset - lastLength > start { cursor.offset -= lastLength }
}

/// `Digits(individual_digits: true)` and then GPT-2's expression: every number scalar alone, and white space before a
/// number kept whole, since the expression only ever sees the text between numbers.
@Sendable private func forEachSmolLMPiece(_ utf8: [UInt8], _ range: Range<Int>, _ body: (Range<Int>) -> Void) {
    var cursor = ScalarCursor(utf8, range)
    var textStart = cursor.offset
    while let next = cursor.peek() {
        let start = cursor.offset
        cursor.offset += next.length
        guard next.scalarClass == .number else { continue }
        if textStart < start { forEachGPT2Piece(utf8, textStart..<start, body) }
        body(start..<cursor.offset)
        textStart = cursor.offset
    }
    if textStart < cursor.end { forEachGPT2Piece(utf8, textStart..<cursor.end, body) }
}
