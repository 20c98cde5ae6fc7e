// One stage of a pre-tokenizer: how a stretch of text is cut into pieces that no merge crosses. A pre-tokenizer is a
// list of them, each cutting the pieces of the one before. Upstream they are regular expressions; here each is a
// scanner over scalars, so the time is linear whatever the text. The scanners of whole expressions are in
// WordScanners.swift.

/// What becomes of delimiters (huggingface/tokenizers, `SplitDelimiterBehavior`).
package enum DelimiterBehavior: String, Sendable, Equatable, CaseIterable {
    case removed = "Removed"
    case isolated = "Isolated"
    case mergedWithPrevious = "MergedWithPrevious"
    case mergedWithNext = "MergedWithNext"
    case contiguous = "Contiguous"
}

package enum PieceSplit: Sendable, Equatable {
    /// GPT-2's expression, which is `ByteLevel(use_regex)`.
    case gpt2Words
    case words(WordPattern)
    /// The last of DeepSeek V3's three expressions.
    case deepSeekWords
    /// `\p{N}{1,atMost}`, isolated.
    case numbers(atMost: Int)
    /// `[一-龥぀-ゟ゠-ヿ]+`, isolated: Han, Hiragana and Katakana.
    case eastAsianRuns
    /// `[0-9][0-9][0-9]`, isolated.
    case digitTriples
    /// `\p{N}`.
    case numericScalars(DelimiterBehavior)
    /// `\p{N}` of the stand-ins of GPT-2's byte alphabet: what `Digits` finds after `ByteLevel`. Beside the digits
    /// these are the bytes that stand for themselves as ², ³, ¹, ¼, ½ and ¾, so a piece may end within a character.
    case numericBytes(DelimiterBehavior)
    /// `\p{P}` and ASCII's symbols. Upstream's tables of punctuation are Unicode 8's (crate unicode_categories).
    case punctuation(DelimiterBehavior)
    case scalar(Unicode.Scalar, DelimiterBehavior)
    case whitespace(DelimiterBehavior)

    /// Calls back with non-empty byte ranges of valid UTF-8, ascending. They cover the range unless delimiters are
    /// removed.
    func forEachPiece(_ utf8: [UInt8], _ range: Range<Int>, _ body: (Range<Int>) -> Void) {
        switch self {
        case .gpt2Words: forEachGPT2Word(utf8, range, body)
        case .words(let pattern): forEachWord(pattern, utf8, range, body)
        case .deepSeekWords: forEachDeepSeekWord(utf8, range, body)
        case .numbers(let limit):
            forEachRun(utf8, range, body) { $0.skip(.number, atMost: limit) }
        case .eastAsianRuns:
            forEachRun(utf8, range, body) { cursor in
                while let next = cursor.scalar(), Self.isEastAsian(next.scalar) { cursor.offset += next.length }
            }
        case .digitTriples:
            forEachRun(utf8, range, body) { cursor in
                let digits = UInt8(ascii: "0")...UInt8(ascii: "9")
                if (0..<3).allSatisfy({ cursor.byte(at: $0).map(digits.contains) ?? false }) { cursor.offset += 3 }
            }
        case .numericScalars(let behavior):
            forEachDelimited(utf8, range, behavior, body) { ScalarClasses($0) == .number }
        case .numericBytes(let behavior):
            forEachDelimitedByte(utf8, range, behavior, body) {
                ScalarClasses(ByteAlphabet.scalars[Int($0)]) == .number
            }
        case .punctuation(let behavior):
            forEachDelimited(utf8, range, behavior, body) {
                let classes = ScalarClasses($0)
                guard !$0.isASCII else { return classes == .punctuation || classes == .symbol }
                // U+166D was punctuation then.
                return classes == .punctuation && ($0.properties.age?.major ?? .max) <= 8 || $0 == "\u{166D}"
            }
        case .scalar(let scalar, let behavior):
            forEachDelimited(utf8, range, behavior, body) { $0 == scalar }
        case .whitespace(let behavior):
            forEachDelimited(utf8, range, behavior, body) { ScalarClasses($0) == .whitespace }
        }
    }

    private static func isEastAsian(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        case 0x4E00...0x9FA5, 0x3040...0x30FF: true
        default: false
        }
    }
}

extension [PieceSplit] {
    /// The pieces of all stages. Depth is the number of stages.
    func forEachPiece(_ utf8: [UInt8], _ range: Range<Int>, _ body: (Range<Int>) -> Void) {
        self[...].forEachPiece(utf8, range, body)
    }
}

extension ArraySlice<PieceSplit> {
    fileprivate func forEachPiece(_ utf8: [UInt8], _ range: Range<Int>, _ body: (Range<Int>) -> Void) {
        guard let first else {
            body(range)
            return
        }
        let rest = dropFirst()
        guard !rest.isEmpty else {
            first.forEachPiece(utf8, range, body)
            return
        }
        first.forEachPiece(utf8, range) { rest.forEachPiece(utf8, $0, body) }
    }
}

/// Isolates what `skipMatch` moves past; what lies between two matches is a piece.
private func forEachRun(
    _ utf8: [UInt8], _ range: Range<Int>, _ body: (Range<Int>) -> Void, skipMatch: (inout ScalarCursor) -> Void
) {
    var cursor = ScalarCursor(utf8, range)
    var gapStart = cursor.offset
    while !cursor.isAtEnd {
        let start = cursor.offset
        skipMatch(&cursor)
        guard cursor.offset > start else {
            cursor.offset += cursor.peek()?.length ?? 1
            continue
        }
        if gapStart < start { body(gapStart..<start) }
        body(start..<cursor.offset)
        gapStart = cursor.offset
    }
    if gapStart < cursor.end { body(gapStart..<cursor.end) }
}

private func forEachDelimited(
    _ utf8: [UInt8], _ range: Range<Int>, _ behavior: DelimiterBehavior, _ body: (Range<Int>) -> Void,
    isDelimiter: (Unicode.Scalar) -> Bool
) {
    var pieces = DelimitedPieces(behavior: behavior, start: range.lowerBound)
    var cursor = ScalarCursor(utf8, range)
    while let next = cursor.scalar() {
        let start = cursor.offset
        cursor.offset += next.length
        pieces.append(isDelimiter(next.scalar) ? .delimiter : .text, start..<cursor.offset, body)
    }
    pieces.finish(body)
}

private func forEachDelimitedByte(
    _ utf8: [UInt8], _ range: Range<Int>, _ behavior: DelimiterBehavior, _ body: (Range<Int>) -> Void,
    isDelimiter: (UInt8) -> Bool
) {
    var pieces = DelimitedPieces(behavior: behavior, start: range.lowerBound)
    for offset in range {
        pieces.append(isDelimiter(utf8[offset]) ? .delimiter : .text, offset..<offset + 1, body)
    }
    pieces.finish(body)
}

/// Groups delimiters, each of them one symbol, with the text around them.
private struct DelimitedPieces {
    enum Symbol { case delimiter, text }

    let behavior: DelimiterBehavior
    private var start: Int
    private var end: Int
    /// The last symbol of the piece being gathered; nil before the first.
    private var last: Symbol?

    init(behavior: DelimiterBehavior, start: Int) {
        self.behavior = behavior
        self.start = start
        end = start
    }

    mutating func append(_ symbol: Symbol, _ range: Range<Int>, _ body: (Range<Int>) -> Void) {
        guard let last else {
            begin(symbol, range)
            return
        }
        let continues =
            switch (last, symbol) {
            case (.text, .text): true
            case (.delimiter, .delimiter): behavior == .contiguous || behavior == .removed
            case (.text, .delimiter): behavior == .mergedWithPrevious
            case (.delimiter, .text): behavior == .mergedWithNext
            }
        if continues {
            end = range.upperBound
            self.last = symbol
        } else {
            finish(body)
            begin(symbol, range)
        }
    }

    private mutating func begin(_ symbol: Symbol, _ range: Range<Int>) {
        (start, end, last) = (range.lowerBound, range.upperBound, symbol)
    }

    mutating func finish(_ body: (Range<Int>) -> Void) {
        if start < end, behavior != .removed || last == .text { body(start..<end) }
        start = end
        last = nil
    }
}
