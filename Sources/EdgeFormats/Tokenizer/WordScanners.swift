// The families' expressions as scanners. Each comment holds the expression as it stands in the family's tokenizer.json;
// alternatives are tried in its order, and each takes what a backtracking engine would. A scalar is looked at a bounded
// number of times. Input is valid UTF-8.

/// What the expressions that descend from OpenAI's cl100k and o200k differ in.
package struct WordPattern: Sendable, Equatable {
    package enum Letters: Sendable, Equatable {
        /// `[^\r\n\p{L}\p{N}]?\p{L}+`
        case run
        /// `[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+`
        case runWithMarks
        /// `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+` and then the same with
        /// the first class required and the second not.
        case cased
    }

    /// Where `(?i:'s|'t|'re|'ve|'m|'ll|'d)` stands.
    package enum Contractions: Sendable, Equatable {
        case first
        case afterLetters
        case none
    }

    package var letters: Letters
    package var contractions: Contractions
    /// The n of `\p{N}{1,n}`.
    package var longestNumber: Int
    /// Whether a slash may follow punctuation as a line break may: `[\r\n/]*`.
    package var trailing: Trailing

    package enum Trailing: Sendable, Equatable {
        case lineBreaks
        case lineBreaksAndSlashes
    }

    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    package static let llama3 = WordPattern(
        letters: .run, contractions: .first, longestNumber: 3, trailing: .lineBreaks)
    /// Llama 3's with `\p{N}`.
    package static let qwen2 = WordPattern(
        letters: .run, contractions: .first, longestNumber: 1, trailing: .lineBreaks)
    /// Qwen 2's with `\p{M}` among the letters.
    package static let qwen35 = WordPattern(
        letters: .runWithMarks, contractions: .first, longestNumber: 1, trailing: .lineBreaks)
    package static let gpt4o = WordPattern(
        letters: .cased, contractions: .afterLetters, longestNumber: 3, trailing: .lineBreaksAndSlashes)
    package static let tekken = WordPattern(
        letters: .cased, contractions: .none, longestNumber: 1, trailing: .lineBreaksAndSlashes)
}

private let lineBreaks = [UInt8(ascii: "\r"), UInt8(ascii: "\n")]
private let lineBreaksAndSlash = lineBreaks + [UInt8(ascii: "/")]

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` (openai/gpt-2, encoder.py).
func forEachGPT2Word(_ utf8: [UInt8], _ range: Range<Int>, _ body: (Range<Int>) -> Void) {
    var cursor = ScalarCursor(utf8, range)
    while !cursor.isAtEnd {
        let start = cursor.offset
        let contraction = contractionLength(at: cursor, .asWritten)
        if contraction > 0 {
            cursor.offset += contraction
        } else {
            skipGPT2Run(&cursor)
        }
        body(start..<cursor.offset)
    }
}

/// Moves past one run of a class, with the space before it, or past white space.
private func skipGPT2Run(_ cursor: inout ScalarCursor) {
    let space = cursor.byte(at: 0) == UInt8(ascii: " ") ? 1 : 0
    guard let next = cursor.peek(at: space), next.classes != .whitespace else {
        skipWhitespace(&cursor)
        return
    }
    cursor.offset += space
    if ScalarClasses.letter.contains(next.classes) {
        cursor.skip(.letter)
    } else if next.classes == .number {
        cursor.skip(.number)
    } else {
        cursor.skip([.mark, .punctuation, .symbol, .other])
    }
}

/// `\s+(?!\S)|\s+`: white space that precedes anything else leaves its last scalar to what follows, unless it has
/// only that.
private func skipWhitespace(_ cursor: inout ScalarCursor) {
    let start = cursor.offset
    let lastLength = cursor.skip(.whitespace)
    if !cursor.isAtEnd, cursor.offset - lastLength > start { cursor.offset -= lastLength }
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+`: up to the last line break of the white space, if it has one.
private func skipLinesOrWhitespace(_ cursor: inout ScalarCursor) {
    var ahead = cursor
    var afterLineBreak: Int?
    while let next = ahead.peek(), next.classes == .whitespace {
        let isLineBreak = ahead.byte(at: 0).map(lineBreaks.contains) ?? false
        ahead.offset += next.length
        if isLineBreak { afterLineBreak = ahead.offset }
    }
    if let afterLineBreak {
        cursor.offset = afterLineBreak
    } else {
        skipWhitespace(&cursor)
    }
}

private enum ContractionCase {
    case asWritten
    case ignored
}

/// Bytes of the English contraction at the cursor, 0 when there is none. Without regard to case, the long s (U+017F) is
/// an s.
private func contractionLength(at cursor: ScalarCursor, _ contractionCase: ContractionCase) -> Int {
    guard cursor.byte(at: 0) == UInt8(ascii: "'"), let first = cursor.byte(at: 1) else { return 0 }
    func letter(_ byte: UInt8?) -> UInt8? {
        guard contractionCase == .ignored, let byte, (0x41...0x5A).contains(byte) else { return byte }
        return byte | 0x20
    }
    switch letter(first) {
    case UInt8(ascii: "s"), UInt8(ascii: "t"), UInt8(ascii: "m"), UInt8(ascii: "d"): return 2
    case UInt8(ascii: "r"), UInt8(ascii: "v"): return letter(cursor.byte(at: 2)) == UInt8(ascii: "e") ? 3 : 0
    case UInt8(ascii: "l"): return letter(cursor.byte(at: 2)) == UInt8(ascii: "l") ? 3 : 0
    case 0xC5: return contractionCase == .ignored && cursor.byte(at: 2) == 0xBF ? 3 : 0
    default: return 0
    }
}

func forEachWord(_ pattern: WordPattern, _ utf8: [UInt8], _ range: Range<Int>, _ body: (Range<Int>) -> Void) {
    let letters: ScalarClasses = pattern.letters == .run ? .letter : [.letter, .mark]
    // o200k's classes of punctuation hold the marks that its letters hold too; letters come first.
    let punctuation: ScalarClasses =
        pattern.letters == .runWithMarks
        ? [.punctuation, .symbol, .other] : [.mark, .punctuation, .symbol, .other]
    let trailing = pattern.trailing == .lineBreaks ? lineBreaks : lineBreaksAndSlash
    var cursor = ScalarCursor(utf8, range)
    while let next = cursor.peek() {
        let start = cursor.offset
        if pattern.contractions == .first { cursor.offset += contractionLength(at: cursor, .ignored) }
        if cursor.offset == start {
            if pattern.letters == .cased {
                skipCasedWord(&cursor)
                if cursor.offset > start, pattern.contractions == .afterLetters {
                    cursor.offset += contractionLength(at: cursor, .ignored)
                }
            } else {
                skipWord(&cursor, letters, next)
            }
        }
        if cursor.offset == start { cursor.skip(.number, atMost: pattern.longestNumber) }
        if cursor.offset == start {
            let space = cursor.byte(at: 0) == UInt8(ascii: " ") ? 1 : 0
            if cursor.isAt(punctuation, distance: space) {
                cursor.offset += space
                cursor.skip(punctuation)
                cursor.skip(bytes: trailing)
            }
        }
        if cursor.offset == start { skipLinesOrWhitespace(&cursor) }
        body(start..<cursor.offset)
    }
}

/// Whether the scalar at the cursor is one of `[^\r\n\p{L}\p{N}]`.
private func isWordPrefix(_ cursor: ScalarCursor, _ classes: ScalarClasses) -> Bool {
    !ScalarClasses.letter.contains(classes) && classes != .number
        && !(cursor.byte(at: 0).map(lineBreaks.contains) ?? false)
}

/// `[^\r\n\p{L}\p{N}]?[letters]+`. A mark is a prefix and may be a letter too: what is taken is the same.
private func skipWord(
    _ cursor: inout ScalarCursor, _ letters: ScalarClasses, _ next: (classes: ScalarClasses, length: Int)
) {
    if letters.contains(next.classes) {
        cursor.skip(letters)
    } else if isWordPrefix(cursor, next.classes), cursor.isAt(letters, distance: next.length) {
        cursor.offset += next.length
        cursor.skip(letters)
    }
}

/// With A = `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]` and B = `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`: `prefix?A*B+|prefix?A+B*`. Where the
/// run of A is not followed by B, the first alternative gives back scalars until it ends with one that is in B too.
private func skipCasedWord(_ cursor: inout ScalarCursor) {
    guard let next = cursor.peek() else { return }
    let prefix = isWordPrefix(cursor, next.classes) ? next.length : 0
    if let end = casedWordEnd(cursor, from: prefix) {
        cursor.offset = end
    } else if next.classes == .mark {
        // Without the prefix the mark is itself a letter of both classes.
        cursor.offset += next.length
    } else {
        var ahead = cursor
        ahead.offset += prefix
        if ahead.skip([.upperLetter, .uncasedLetter, .mark]) > 0 { cursor.offset = ahead.offset }
    }
}

/// Where `A*B+` ends that starts `distance` bytes on; nil when it does not match.
private func casedWordEnd(_ cursor: ScalarCursor, from distance: Int) -> Int? {
    var ahead = cursor
    ahead.offset += distance
    var afterLastUncased: Int?
    while let next = ahead.peek(), [.upperLetter, .uncasedLetter, .mark].contains(next.classes) {
        ahead.offset += next.length
        if next.classes != .upperLetter { afterLastUncased = ahead.offset }
    }
    if ahead.skip([.lowerLetter, .uncasedLetter, .mark]) > 0 { return ahead.offset }
    return afterLastUncased
}

/// `[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
/// Numbers and control characters match nothing: a run of them is a piece.
func forEachDeepSeekWord(_ utf8: [UInt8], _ range: Range<Int>, _ body: (Range<Int>) -> Void) {
    var cursor = ScalarCursor(utf8, range)
    var gapStart = cursor.offset
    while let next = cursor.peek() {
        let start = cursor.offset
        skipDeepSeekWord(&cursor, next)
        guard cursor.offset > start else {
            cursor.offset += next.length
            continue
        }
        if gapStart < start { body(gapStart..<start) }
        body(start..<cursor.offset)
        gapStart = cursor.offset
    }
    if gapStart < cursor.end { body(gapStart..<cursor.end) }
}

private func skipDeepSeekWord(_ cursor: inout ScalarCursor, _ next: (classes: ScalarClasses, length: Int)) {
    let isMarkOrLetter: ScalarClasses = [.letter, .mark]
    let isPunctuation: ScalarClasses = [.punctuation, .symbol]
    if next.length == 1, isPunctuation.contains(next.classes), cursor.byte(at: 1).map(isASCIILetter) ?? false {
        cursor.offset += 1
        while let byte = cursor.byte(at: 0), isASCIILetter(byte) { cursor.offset += 1 }
        return
    }
    if isMarkOrLetter.contains(next.classes) {
        cursor.skip(isMarkOrLetter)
        return
    }
    let isPrefix = !isPunctuation.contains(next.classes) && !(cursor.byte(at: 0).map(lineBreaks.contains) ?? false)
    if isPrefix, cursor.isAt(isMarkOrLetter, distance: next.length) {
        cursor.offset += next.length
        cursor.skip(isMarkOrLetter)
        return
    }
    let space = cursor.byte(at: 0) == UInt8(ascii: " ") ? 1 : 0
    if cursor.isAt(isPunctuation, distance: space) {
        cursor.offset += space
        cursor.skip(isPunctuation)
        cursor.skip(bytes: lineBreaks)
    } else if next.classes == .whitespace {
        skipLinesOrWhitespace(&cursor)
    }
}

private func isASCIILetter(_ byte: UInt8) -> Bool {
    (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte)
}
