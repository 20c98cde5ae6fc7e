// Python's methods of strings.

extension JinjaEvaluator {
    private static let none = MethodSignature(counts: 0...0)
    private static let part = MethodSignature(counts: 1...3)
    private static let padding = MethodSignature(counts: 1...2)

    static let stringMethods: [String: MethodSignature] = [
        "strip": MethodSignature(counts: 0...1), "lstrip": MethodSignature(counts: 0...1),
        "rstrip": MethodSignature(counts: 0...1), "upper": none, "lower": none, "title": none, "capitalize": none,
        "swapcase": none, "casefold": none, "startswith": part, "endswith": part,
        "split": MethodSignature(counts: 0...2, names: ["sep", "maxsplit"]),
        "rsplit": MethodSignature(counts: 0...2, names: ["sep", "maxsplit"]),
        "splitlines": MethodSignature(counts: 0...1, names: ["keepends"]), "replace": MethodSignature(counts: 2...3),
        "join": MethodSignature(counts: 1...1), "find": part, "rfind": part, "index": part, "rindex": part,
        "count": part, "removeprefix": MethodSignature(counts: 1...1), "removesuffix": MethodSignature(counts: 1...1),
        "partition": MethodSignature(counts: 1...1), "rpartition": MethodSignature(counts: 1...1), "center": padding,
        "ljust": padding, "rjust": padding, "zfill": MethodSignature(counts: 1...1),
        "format": MethodSignature(counts: 0...Int.max, names: nil), "isdigit": none, "isdecimal": none, "isnumeric": none,
        "isalpha": none, "isalnum": none, "isspace": none, "isupper": none, "islower": none, "isascii": none,
    ]

    /// `arguments` fit the method's signature.
    mutating func stringMethod(
        _ name: String, of text: String, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        try charge(bytes: text.utf8.count)
        let scalars = text.unicodeScalars
        func all(_ test: (Unicode.Scalar) -> Bool) -> JinjaValue { .bool(!text.utf8.isEmpty && scalars.allSatisfy(test)) }
        switch name {
        case "strip": return .string(JinjaText.stripped(text, .both, characters: try characters(arguments[0, ""])))
        case "lstrip": return .string(JinjaText.stripped(text, .start, characters: try characters(arguments[0, ""])))
        case "rstrip": return .string(JinjaText.stripped(text, .end, characters: try characters(arguments[0, ""])))
        case "upper": return .string(text.uppercased())
        case "lower": return .string(JinjaText.lowered(text))
        case "title": return .string(JinjaText.titled(text))
        case "capitalize": return .string(JinjaText.capitalized(text))
        case "swapcase": return .string(JinjaText.swappedCase(text))
        case "split", "rsplit": return try split(text, isFromEnd: name == "rsplit", arguments)
        case "splitlines":
            try charge(values: JinjaText.lineCount(text))
            let lines = JinjaText.lines(text, keepingEnds: arguments[0, "keepends"]?.isTruthy ?? false)
            return try .list(lines.map { .string($0) })
        case "replace":
            let limit = try integer(arguments[2, ""], or: -1)
            return try replaced(
                text, try string(arguments.positional[0]), with: try string(arguments.positional[1]), limit: limit)
        case "join": return try joined(arguments.positional[0], separator: text)
        case "startswith", "endswith": return try affixed(name, text, arguments)
        case "find", "rfind", "index", "rindex", "count": return try search(name, in: text, arguments)
        case "removeprefix", "removesuffix":
            let part = try string(arguments.positional[0])
            let isPrefix = name == "removeprefix"
            guard isPrefix ? JinjaText.hasPrefix(text, part) : JinjaText.hasSuffix(text, part) else {
                return .string(text)
            }
            let rest = isPrefix ? text.utf8.dropFirst(part.utf8.count) : text.utf8.dropLast(part.utf8.count)
            return .string(String(decoding: Array(rest), as: UTF8.self))
        case "partition", "rpartition": return try partition(text, isFromEnd: name == "rpartition", arguments)
        case "center", "ljust", "rjust", "zfill": return try padded(name, text, arguments)
        case "format": return .string(try formatted(text, arguments))
        case "isdigit": return all { $0.properties.numericType == .decimal || $0.properties.numericType == .digit }
        case "isdecimal": return all { $0.properties.numericType == .decimal }
        case "isnumeric": return all { $0.properties.numericType != nil }
        case "isalpha": return all(JinjaText.isLetter)
        case "isalnum": return all(JinjaText.isAlphanumeric)
        case "isspace": return all(JinjaText.isSpace)
        case "isupper": return .bool(JinjaText.isUpper(text))
        case "islower": return .bool(JinjaText.isLower(text))
        case "isascii": return .bool(scalars.allSatisfy(\.isASCII))
        default: throw failure("the method \"\(name)\" is not supported")
        }
    }

    private func string(_ value: JinjaValue) throws(ChatTemplateError) -> String {
        guard let text = value.stringValue else { throw failure("a string is needed, not \(value.typeName)") }
        return text
    }

    /// What to strip; nil for white space.
    func characters(_ value: JinjaValue?) throws(ChatTemplateError) -> String? {
        guard let value else { return nil }
        if case .none = value { return nil }
        return try string(value)
    }

    /// The part of `text` that `start` and `end` among the arguments leave, and how many scalars stand before it; nil
    /// when it begins after the end.
    private mutating func window(
        _ text: String, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> (text: String, offset: Int)? {
        guard arguments.positional.count > 1 else { return (text, 0) }
        let scalars = Array(text.unicodeScalars)
        func bound(_ position: Int, or standard: Int) throws(ChatTemplateError) -> Int {
            guard position < arguments.positional.count else { return standard }
            if case .none = arguments.positional[position] { return standard }
            let given = try integer(arguments.positional[position], or: standard)
            return max(0, given < 0 ? given + scalars.count : given)
        }
        let start = try bound(1, or: 0)
        let end = min(try bound(2, or: scalars.count), scalars.count)
        guard start <= end else { return nil }
        return (String(String.UnicodeScalarView(scalars[start..<end])), start)
    }

    private mutating func affixed(
        _ name: String, _ text: String, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        let affixes: [JinjaValue]
        switch arguments.positional[0] {
        case .list(let list) where list.kind == .tuple: affixes = list.items
        case let affix: affixes = [affix]
        }
        guard let window = try window(text, arguments) else { return .bool(false) }
        try spend(affixes.count)
        for affix in affixes {
            let affix = try string(affix)
            try read(affix)
            let holds =
                name == "startswith" ? JinjaText.hasPrefix(window.text, affix) : JinjaText.hasSuffix(window.text, affix)
            if holds { return .bool(true) }
        }
        return .bool(false)
    }

    private mutating func search(
        _ name: String, in text: String, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        let part = try string(arguments.positional[0])
        guard let window = try window(text, arguments) else {
            guard name == "find" || name == "rfind" || name == "count" else { throw failure("the part is not there") }
            return .int(name == "count" ? 0 : -1)
        }
        var found: Int?
        if name == "count" {
            guard !part.utf8.isEmpty else { return .int(window.text.unicodeScalars.count + 1) }
            try charge(bytes: window.text.utf8.count + part.utf8.count)
            return .int(JinjaText.count(of: Array(part.utf8), in: Array(window.text.utf8), limit: Int.max))
        }
        try charge(bytes: window.text.utf8.count + part.utf8.count)
        if name == "find" || name == "index" {
            let utf8 = Array(window.text.utf8)
            found =
                part.utf8.isEmpty
                ? 0
                : JinjaText.occurrences(of: Array(part.utf8), in: utf8, limit: 1).first
                    // Python counts scalars, not bytes.
                    .map { String(decoding: utf8[..<$0], as: UTF8.self).unicodeScalars.count }
        } else {
            let utf8 = Array(window.text.utf8)
            found =
                part.utf8.isEmpty
                ? window.text.unicodeScalars.count
                : JinjaText.occurrences(of: part.utf8.reversed(), in: utf8.reversed(), limit: 1).first
                    .map {
                        String(decoding: utf8[..<(utf8.count - $0 - part.utf8.count)], as: UTF8.self).unicodeScalars.count
                    }
        }
        if let found { return .int(found + window.offset) }
        guard name == "find" || name == "rfind" else { throw failure("the part is not there") }
        return .int(-1)
    }

    private mutating func partition(
        _ text: String, isFromEnd: Bool, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        let separator = try string(arguments.positional[0])
        guard !separator.utf8.isEmpty else { throw failure("an empty separator") }
        try charge(values: 3)
        let parts =
            isFromEnd
            ? JinjaText.splitFromEnd(text, separator: separator, limit: 1)
            : JinjaText.split(text, separator: separator, limit: 1)
        guard parts.count == 2 else {
            return try .tuple(
                isFromEnd ? [.string(""), .string(""), .string(text)] : [.string(text), .string(""), .string("")])
        }
        return try .tuple([.string(parts[0]), .string(separator), .string(parts[1])])
    }

    private mutating func padded(
        _ name: String, _ text: String, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        let width = try integer(arguments.positional[0], or: 0)
        let filling = arguments.positional.count > 1 ? try string(arguments.positional[1]) : name == "zfill" ? "0" : " "
        guard filling.unicodeScalars.count == 1 else { throw failure("one character fills, not \"\(filling)\"") }
        let missing = max(0, width - text.unicodeScalars.count)
        try charge(bytes: min(missing, Int.max / 8) * filling.utf8.count)
        func fill(_ count: Int) -> String { String(repeating: filling, count: count) }
        switch name {
        case "ljust": return .string(text + fill(missing))
        case "rjust": return .string(fill(missing) + text)
        case "zfill":
            let sign = text.utf8.first.map { $0 == UInt8(ascii: "-") || $0 == UInt8(ascii: "+") } ?? false
            return .string(
                sign ? String(text.unicodeScalars.prefix(1)) + fill(missing) + String(text.unicodeScalars.dropFirst())
                    : fill(missing) + text)
        default:
            // CPython puts the odd one on the left when the width is odd.
            let left = missing / 2 + (missing & width & 1)
            return .string(fill(left) + text + fill(missing - left))
        }
    }

    private mutating func split(
        _ text: String, isFromEnd: Bool, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        let given = try integer(arguments[1, "maxsplit"], or: -1)
        let limit = given < 0 ? Int.max : given
        guard let separator = try characters(arguments[0, "sep"]) else {
            try charge(values: JinjaText.wordCount(text))
            let parts =
                isFromEnd
                ? JinjaText.splitOnSpaceFromEnd(text, limit: limit) : JinjaText.splitOnSpace(text, limit: limit)
            return try .list(parts.map { .string($0) })
        }
        guard !separator.utf8.isEmpty else { throw failure("an empty separator") }
        try read(separator)
        try charge(values: 1 + JinjaText.count(of: Array(separator.utf8), in: Array(text.utf8), limit: limit))
        let parts =
            isFromEnd
            ? JinjaText.splitFromEnd(text, separator: separator, limit: limit)
            : JinjaText.split(text, separator: separator, limit: limit)
        return try .list(parts.map { .string($0) })
    }

    /// `limit` is negative for none.
    mutating func replaced(
        _ text: String, _ old: String, with new: String, limit: Int
    ) throws(ChatTemplateError) -> JinjaValue {
        let limit = limit < 0 ? Int.max : limit
        try charge(bytes: text.utf8.count)
        try read(old)
        let count =
            old.utf8.isEmpty
            ? min(limit, text.unicodeScalars.count + 1)
            : JinjaText.count(of: Array(old.utf8), in: Array(text.utf8), limit: limit)
        let (added, overflow) = count.multipliedReportingOverflow(by: new.utf8.count)
        try charge(bytes: overflow ? Int.max : text.utf8.count &+ added)
        try spend(count)
        return .string(JinjaText.replaced(text, old, with: new, limit: limit))
    }

    /// `str.join`: of strings only.
    private mutating func joined(_ value: JinjaValue, separator: String) throws(ChatTemplateError) -> JinjaValue {
        if case .undefined = value { return .string("") }
        var result = ""
        for (index, item) in try items(of: value).enumerated() {
            let text = try string(item)
            try charge(bytes: text.utf8.count + separator.utf8.count)
            if index > 0 { result += separator }
            result += text
            guard result.utf8.count <= limits.outputBytes else { throw .outputTooLong(limit: limits.outputBytes) }
        }
        return .string(result)
    }
}
