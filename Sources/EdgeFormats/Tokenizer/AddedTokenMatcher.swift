// Finds added tokens in text: leftmost, and of those that start together the longest, as huggingface/tokenizers does
// (tokenizer/added_vocabulary.rs). A trie over bytes; a position costs at most the longest token's length.

struct AddedTokenMatcher: Sendable {
    private struct Node {
        var children: [UInt8: Int] = [:]
        var token: Int?
    }

    private var nodes = [Node()]
    private var tokens: [AddedToken] = []
    /// Whether any token starts with the byte: nearly every position of ordinary text is dismissed here.
    private var startsToken = [Bool](repeating: false, count: 256)

    /// The last of two tokens of the same content is found.
    mutating func insert(_ token: AddedToken, as content: [UInt8]) {
        guard let first = content.first else { return }
        startsToken[Int(first)] = true
        var node = 0
        for byte in content {
            if let child = nodes[node].children[byte] {
                node = child
            } else {
                nodes.append(Node())
                nodes[node].children[byte] = nodes.count - 1
                node = nodes.count - 1
            }
        }
        nodes[node].token = tokens.count
        tokens.append(token)
    }

    /// The longest token that starts at `offset`, whatever stands around it.
    func match(in utf8: [UInt8], at offset: Int, end limit: Int) -> (token: AddedToken, end: Int)? {
        guard startsToken[Int(utf8[offset])] else { return nil }
        var longest: (token: Int, end: Int)?
        var node = 0
        var end = offset
        while end < limit, let child = nodes[node].children[utf8[end]] {
            node = child
            end += 1
            if let token = nodes[node].token { longest = (token, end) }
        }
        return longest.map { (tokens[$0.token], $0.end) }
    }

    /// Calls back with the stretches of the range in order: a token's with its id, text without. A token that does not
    /// count, because special tokens are to be text or it is not a word of its own, hides what starts inside it.
    func forEachStretch(
        _ utf8: [UInt8], _ range: Range<Int>, _ mode: SpecialTokens, _ body: (TokenID?, Range<Int>) -> Void
    ) {
        var textStart = range.lowerBound
        var offset = range.lowerBound
        /// Where the white space that was looked at last ends, so that a run is walked once.
        var whitespaceEnd = range.lowerBound
        while offset < range.upperBound {
            guard let (token, matchEnd) = match(in: utf8, at: offset, end: range.upperBound) else {
                offset += 1
                continue
            }
            let matchStart = offset
            offset = matchEnd
            if token.isSpecial, mode == .asText { continue }
            if token.isSingleWord, touchesWord(utf8, range, matchStart..<matchEnd) { continue }
            var start = matchStart
            var end = matchEnd
            if token.stripsLeft { start = startOfWhitespace(utf8, before: start, from: min(textStart, start)) }
            if token.stripsRight {
                if whitespaceEnd < end { whitespaceEnd = endOfWhitespace(utf8, end..<range.upperBound) }
                end = whitespaceEnd
            }
            if textStart < start { body(nil, textStart..<start) }
            body(token.id, start..<end)
            textStart = end
        }
        if textStart < range.upperBound { body(nil, textStart..<range.upperBound) }
    }

    private func touchesWord(_ utf8: [UInt8], _ text: Range<Int>, _ token: Range<Int>) -> Bool {
        var before = token.lowerBound
        while before > text.lowerBound {
            before -= 1
            if utf8[before] & 0xC0 != 0x80 { break }
        }
        let left = ScalarCursor(utf8, before..<token.lowerBound).scalar()
        let right = ScalarCursor(utf8, token.upperBound..<text.upperBound).scalar()
        return [left, right].contains { $0.map { Self.isWord($0.scalar) } ?? false }
    }

    /// `\w` of the Rust crate `regex` (UTS #18, annex C).
    private static func isWord(_ scalar: Unicode.Scalar) -> Bool {
        if scalar.properties.isAlphabetic || scalar.properties.isJoinControl { return true }
        switch scalar.properties.generalCategory {
        case .nonspacingMark, .spacingMark, .enclosingMark, .decimalNumber, .connectorPunctuation: return true
        default: return false
        }
    }

    private func startOfWhitespace(_ utf8: [UInt8], before end: Int, from textStart: Int) -> Int {
        var start = end
        while start > textStart {
            var previous = start - 1
            while previous > textStart, utf8[previous] & 0xC0 == 0x80 { previous -= 1 }
            guard ScalarCursor(utf8, previous..<start).isAt(.whitespace) else { break }
            start = previous
        }
        return start
    }

    private func endOfWhitespace(_ utf8: [UInt8], _ range: Range<Int>) -> Int {
        var cursor = ScalarCursor(utf8, range)
        cursor.skip(.whitespace)
        return cursor.offset
    }
}
