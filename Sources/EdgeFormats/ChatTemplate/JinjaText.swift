// Python's string operations, on scalars. Swift's own would go by grapheme clusters and canonical equivalence, where
// "\r\n" is one character and "é" equals "e" + U+0301.

enum JinjaText {
    enum Side { case start, end, both }

    static func equal(_ left: String, _ right: String) -> Bool {
        left.utf8.elementsEqual(right.utf8)
    }

    /// Order by scalars, which UTF-8 keeps.
    static func isLess(_ left: String, _ right: String) -> Bool {
        left.utf8.lexicographicallyPrecedes(right.utf8)
    }

    static func hasPrefix(_ text: String, _ prefix: String) -> Bool {
        text.utf8.starts(with: prefix.utf8)
    }

    static func hasSuffix(_ text: String, _ suffix: String) -> Bool {
        text.utf8.count >= suffix.utf8.count && text.utf8.suffix(suffix.utf8.count).elementsEqual(suffix.utf8)
    }

    static func isSpace(_ scalar: Unicode.Scalar) -> Bool {
        // `str.isspace` also counts the four separators of ASCII.
        scalar.properties.isWhitespace || (0x1C...0x1F).contains(scalar.value)
    }

    /// White space, or any of `characters`.
    static func stripped(_ text: String, _ side: Side, characters: String? = nil) -> String {
        let unwanted = characters.map { Set($0.unicodeScalars) }
        func isUnwanted(_ scalar: Unicode.Scalar) -> Bool { unwanted?.contains(scalar) ?? isSpace(scalar) }
        var scalars = text.unicodeScalars[...]
        if side != .end { scalars = scalars.drop(while: isUnwanted) }
        if side != .start {
            while let last = scalars.last, isUnwanted(last) { scalars.removeLast() }
        }
        return String(scalars)
    }

    /// Offsets of the non-overlapping occurrences of `needle`, which is not empty, from the left.
    static func occurrences(of needle: [UInt8], in haystack: [UInt8], limit: Int) -> [Int] {
        var found: [Int] = []
        var offset = 0
        while found.count < limit, offset + needle.count <= haystack.count {
            if haystack[offset] == needle[0], haystack[offset..<offset + needle.count].elementsEqual(needle) {
                found.append(offset)
                offset += needle.count
            } else {
                offset += 1
            }
        }
        return found
    }

    /// `str.split(separator, limit)`; `separator` is not empty.
    static func split(_ text: String, separator: String, limit: Int) -> [String] {
        let utf8 = Array(text.utf8)
        let separator = Array(separator.utf8)
        var parts: [String] = []
        var start = 0
        for offset in occurrences(of: separator, in: utf8, limit: limit) {
            parts.append(String(decoding: utf8[start..<offset], as: UTF8.self))
            start = offset + separator.count
        }
        parts.append(String(decoding: utf8[start...], as: UTF8.self))
        return parts
    }

    /// `str.rsplit(separator, limit)`: the rightmost `limit` occurrences cut.
    static func splitFromEnd(_ text: String, separator: String, limit: Int) -> [String] {
        let reversed = String(String.UnicodeScalarView(text.unicodeScalars.reversed()))
        let reversedSeparator = String(String.UnicodeScalarView(separator.unicodeScalars.reversed()))
        return split(reversed, separator: reversedSeparator, limit: limit)
            .reversed().map { String(String.UnicodeScalarView($0.unicodeScalars.reversed())) }
    }

    /// `str.split()`: on runs of white space, without empty parts. What follows the last cut keeps its trailing space.
    static func splitOnSpace(_ text: String, limit: Int) -> [String] {
        var parts: [String] = []
        var rest = text.unicodeScalars[...].drop(while: isSpace)
        while !rest.isEmpty {
            guard parts.count < limit, let end = rest.firstIndex(where: isSpace) else { break }
            parts.append(String(rest[..<end]))
            rest = rest[end...].drop(while: isSpace)
        }
        if !rest.isEmpty { parts.append(String(rest)) }
        return parts
    }

    static func replaced(_ text: String, _ old: String, with new: String, limit: Int) -> String {
        guard !old.isEmpty else {
            // Python puts `new` around every scalar.
            var result = ""
            var count = 0
            for scalar in text.unicodeScalars {
                if count < limit { result += new }
                count += 1
                result.unicodeScalars.append(scalar)
            }
            return count < limit ? result + new : result
        }
        let parts = split(text, separator: old, limit: limit)
        return parts.joined(separator: new)
    }

    static func capitalized(_ text: String) -> String {
        guard let first = text.unicodeScalars.first else { return "" }
        return first.properties.titlecaseMapping + String(text.unicodeScalars.dropFirst()).lowercased()
    }

    /// Upper case after anything that is not cased, lower case after what is: Python's `str.title`.
    static func titled(_ text: String) -> String {
        titled(text) { !$0.properties.isCased }
    }

    /// `word_start` of Jinja's `title` filter: after white space, "-" or an opening bracket.
    static func filterTitled(_ text: String) -> String {
        titled(text) { isSpace($0) || "-({[<".unicodeScalars.contains($0) }
    }

    private static func titled(_ text: String, startsWordAfter: (Unicode.Scalar) -> Bool) -> String {
        var result = ""
        var startsWord = true
        for scalar in text.unicodeScalars {
            result += startsWord ? scalar.properties.titlecaseMapping : scalar.properties.lowercaseMapping
            startsWord = startsWordAfter(scalar)
        }
        return result
    }

    /// Python's `repr` of a string.
    static func quoted(_ text: String) -> String {
        let quote = text.utf8.contains(UInt8(ascii: "'")) && !text.utf8.contains(UInt8(ascii: "\"")) ? "\"" : "'"
        var result = quote
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\\": result += "\\\\"
            case "\n": result += "\\n"
            case "\r": result += "\\r"
            case "\t": result += "\\t"
            case "'" where quote == "'": result += "\\'"
            case _ where scalar.value < 0x20 || scalar.value == 0x7F:
                let hex = String(scalar.value, radix: 16)
                result += "\\x" + (hex.utf8.count < 2 ? "0" : "") + hex
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result + quote
    }
}
