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

    /// Offsets of the non-overlapping occurrences of `needle`, which is not empty, from the left, `limit` at most.
    static func occurrences(of needle: [UInt8], in haystack: [UInt8], limit: Int) -> [Int] {
        var found: [Int] = []
        search(for: needle, in: haystack, limit: limit) { found.append($0) }
        return found
    }

    static func count(of needle: [UInt8], in haystack: [UInt8], limit: Int) -> Int {
        var count = 0
        search(for: needle, in: haystack, limit: limit) { _ in count += 1 }
        return count
    }

    /// Knuth, Morris and Pratt's search: linear whatever the two hold.
    private static func search(for needle: [UInt8], in haystack: [UInt8], limit: Int, _ found: (Int) -> Void) {
        guard needle.count <= haystack.count, limit > 0 else { return }
        // How long a beginning of the needle its first i + 1 bytes end with.
        var borders = [Int32](repeating: 0, count: needle.count)
        var border = 0
        for index in needle.indices.dropFirst() {
            while border > 0, needle[index] != needle[border] { border = Int(borders[border - 1]) }
            if needle[index] == needle[border] { border += 1 }
            borders[index] = Int32(border)
        }
        var matched = 0
        var count = 0
        for offset in haystack.indices {
            while matched > 0, haystack[offset] != needle[matched] { matched = Int(borders[matched - 1]) }
            guard haystack[offset] == needle[matched] else { continue }
            matched += 1
            guard matched == needle.count else { continue }
            found(offset + 1 - needle.count)
            count += 1
            if count == limit { return }
            matched = 0
        }
    }

    static func contains(_ text: String, _ part: String) -> Bool {
        part.utf8.isEmpty || !occurrences(of: Array(part.utf8), in: Array(text.utf8), limit: 1).isEmpty
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

    /// `str.rsplit(None, limit)`: the rightmost words; what precedes the last cut keeps its leading space.
    static func splitOnSpaceFromEnd(_ text: String, limit: Int) -> [String] {
        func reversed(_ text: String) -> String { String(String.UnicodeScalarView(text.unicodeScalars.reversed())) }
        return splitOnSpace(reversed(text), limit: limit).reversed().map(reversed)
    }

    static func wordCount(_ text: String) -> Int {
        var count = 0
        var isInWord = false
        for scalar in text.unicodeScalars {
            let isWord = !isSpace(scalar)
            if isWord, !isInWord { count += 1 }
            isInWord = isWord
        }
        return count
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
        let utf8 = Array(text.utf8)
        let old = Array(old.utf8)
        var result: [UInt8] = []
        var start = 0
        search(for: old, in: utf8, limit: limit) { offset in
            result += utf8[start..<offset]
            result += new.utf8
            start = offset + old.count
        }
        result += utf8[start...]
        return String(decoding: result, as: UTF8.self)
    }

    static func capitalized(_ text: String) -> String {
        guard let first = text.unicodeScalars.first else { return "" }
        return first.properties.titlecaseMapping + lowered(Array(text.unicodeScalars), from: 1)
    }

    static func lowered(_ text: String) -> String { lowered(Array(text.unicodeScalars), from: 0) }

    private static func lowered(_ scalars: [Unicode.Scalar], from start: Int) -> String {
        var result = ""
        for index in scalars.indices[start...] { result += lowered(scalars, at: index) }
        return result
    }

    /// A capital sigma that ends a word has a small form of its own (Unicode's Final_Sigma).
    private static func lowered(_ scalars: [Unicode.Scalar], at index: Int) -> String {
        guard scalars[index] == "\u{3A3}" else { return scalars[index].properties.lowercaseMapping }
        func isIgnored(_ scalar: Unicode.Scalar) -> Bool { scalar.properties.isCaseIgnorable }
        let before = scalars[..<index].last { !isIgnored($0) }
        let after = scalars[(index + 1)...].first { !isIgnored($0) }
        let isFinal = before?.properties.isCased ?? false && !(after?.properties.isCased ?? false)
        return isFinal ? "\u{3C2}" : "\u{3C3}"
    }

    /// Title case after anything that is not cased, lower case after what is: Python's `str.title`.
    static func titled(_ text: String) -> String {
        let scalars = Array(text.unicodeScalars)
        var result = ""
        var startsWord = true
        for index in scalars.indices {
            result += startsWord ? scalars[index].properties.titlecaseMapping : lowered(scalars, at: index)
            startsWord = !scalars[index].properties.isCased
        }
        return result
    }

    /// Jinja's `title` filter: a word starts after white space, "-" or an opening bracket.
    static func filterTitled(_ text: String) -> String {
        func separates(_ scalar: Unicode.Scalar) -> Bool {
            isSpace(scalar) || "-({[<".unicodeScalars.contains(scalar)
        }
        let scalars = text.unicodeScalars
        var result = ""
        for piece in scalars.split(omittingEmptySubsequences: false, whereSeparator: separates) {
            if let first = piece.first {
                // Jinja lowers the rest as a text of its own: a sigma there follows nothing.
                result += first.properties.uppercaseMapping + lowered(Array(piece.dropFirst()), from: 0)
            }
            if piece.endIndex < scalars.endIndex { result.unicodeScalars.append(scalars[piece.endIndex]) }
        }
        return result
    }

    static func swappedCase(_ text: String) -> String {
        let scalars = Array(text.unicodeScalars)
        return scalars.indices.map { index in
            let properties = scalars[index].properties
            return properties.isUppercase
                ? lowered(scalars, at: index) : properties.isLowercase ? properties.uppercaseMapping : String(scalars[index])
        }.joined()
    }

    static func isUpper(_ text: String) -> Bool {
        let scalars = text.unicodeScalars
        return scalars.contains { $0.properties.isUppercase }
            && !scalars.contains { $0.properties.isLowercase || $0.properties.generalCategory == .titlecaseLetter }
    }

    static func isLower(_ text: String) -> Bool {
        let scalars = text.unicodeScalars
        return scalars.contains { $0.properties.isLowercase }
            && !scalars.contains { $0.properties.isUppercase || $0.properties.generalCategory == .titlecaseLetter }
    }

    /// `str.splitlines`.
    static func lines(_ text: String, keepingEnds: Bool) -> [String] {
        let scalars = text.unicodeScalars
        var lines: [String] = []
        var start = scalars.startIndex
        while start < scalars.endIndex {
            guard let end = scalars[start...].firstIndex(where: isLineEnd) else {
                lines.append(String(scalars[start...]))
                break
            }
            var next = scalars.index(after: end)
            if scalars[end] == "\r", next < scalars.endIndex, scalars[next] == "\n" { next = scalars.index(after: next) }
            lines.append(String(scalars[start..<(keepingEnds ? next : end)]))
            start = next
        }
        return lines
    }

    /// At most one more than there are.
    static func lineCount(_ text: String) -> Int { text.unicodeScalars.count(where: isLineEnd) + 1 }

    private static func isLineEnd(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        case 0x0A...0x0D, 0x1C...0x1E, 0x85, 0x2028, 0x2029: true
        default: false
        }
    }

    /// Python's `repr` of a float: the shortest digits that give it back, with an exponent below 1e-4 and from 1e16.
    static func number(_ value: Double) -> String {
        guard value.isFinite else { return value.isNaN ? "nan" : value < 0 ? "-inf" : "inf" }
        let sign = value.sign == .minus ? "-" : ""
        let parts = value.magnitude.description.split(separator: "e")
        let mantissa = parts[0].split(separator: ".")
        let fraction = mantissa.count > 1 ? mantissa[1] : ""
        var digits = Array((mantissa[0] + fraction).utf8)
        // 0.digits times ten to the point.
        var point = mantissa[0].utf8.count + (parts.count > 1 ? Int(parts[1]) ?? 0 : 0)
        while digits.count > 1, digits[0] == UInt8(ascii: "0") {
            digits.removeFirst()
            point -= 1
        }
        while digits.count > 1, digits.last == UInt8(ascii: "0") { digits.removeLast() }
        guard digits != [UInt8(ascii: "0")] else { return sign + "0.0" }
        func text(_ digits: some Sequence<UInt8>) -> String { String(decoding: Array(digits), as: UTF8.self) }
        let exponent = point - 1
        if exponent < -4 || exponent >= 16 {
            let rest = digits.count > 1 ? "." + text(digits.dropFirst()) : ""
            let size = exponent.magnitude
            return sign + text(digits.prefix(1)) + rest + "e" + (exponent < 0 ? "-" : "+") + (size < 10 ? "0" : "")
                + String(size)
        }
        if point <= 0 { return sign + "0." + String(repeating: "0", count: -point) + text(digits) }
        if point >= digits.count {
            return sign + text(digits) + String(repeating: "0", count: point - digits.count) + ".0"
        }
        return sign + text(digits.prefix(point)) + "." + text(digits.dropFirst(point))
    }

    /// `str.isalpha` of one scalar.
    static func isLetter(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: true
        default: false
        }
    }

    static func isAlphanumeric(_ scalar: Unicode.Scalar) -> Bool {
        isLetter(scalar) || scalar.properties.numericType != nil
    }

    /// `str.isprintable` of one scalar.
    private static func isPrintable(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.properties.generalCategory {
        case .control, .format, .surrogate, .privateUse, .unassigned, .lineSeparator, .paragraphSeparator: false
        case .spaceSeparator: scalar == " "
        default: true
        }
    }

    /// markupsafe's `escape`.
    static func escapedHTML(_ text: String) -> String {
        var result = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "&": result += "&amp;"
            case "<": result += "&lt;"
            case ">": result += "&gt;"
            case "\"": result += "&#34;"
            case "'": result += "&#39;"
            default: result.unicodeScalars.append(scalar)
            }
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
            case _ where !isPrintable(scalar):
                let hex = String(scalar.value, radix: 16)
                let (letter, width) = scalar.value < 0x100 ? ("x", 2) : scalar.value < 0x10000 ? ("u", 4) : ("U", 8)
                result += "\\" + letter + String(repeating: "0", count: width - hex.utf8.count) + hex
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result + quote
    }
}
