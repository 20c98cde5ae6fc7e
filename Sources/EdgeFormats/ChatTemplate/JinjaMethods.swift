// Python's methods of strings, lists, objects and loops, as far as chat templates call them. Nothing that mutates.

extension JinjaEvaluator {
    /// nil when the value has no such method; an object's key may hold a macro of that name.
    mutating func method(
        _ name: String, of value: JinjaValue, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue? {
        switch value {
        case .string(let text): return try stringMethod(name, of: text, arguments)
        case .object(let object):
            switch name {
            case "items":
                var pairs: [JinjaValue] = []
                for (key, value) in zip(object.keys, object.values) { pairs.append(try .list([.string(key), value])) }
                return try charged(pairs)
            case "keys": return try charged(object.keys.map { .string($0) })
            case "values": return try charged(object.values)
            case "get":
                guard let key = arguments[0, "key"]?.stringValue else {
                    return arguments[1, "default"] ?? JinjaValue.none
                }
                return object.value(key) ?? arguments[1, "default"] ?? JinjaValue.none
            case "copy": return value
            default: return nil
            }
        case .list(let list):
            guard let wanted = arguments[0, "value"] else { return nil }
            switch name {
            case "count":
                var count = 0
                for item in list.items where try equal(item, wanted) { count += 1 }
                return .int(count)
            case "index":
                for (index, item) in list.items.enumerated() where try equal(item, wanted) { return .int(index) }
                throw failure("the value is not in the list")
            default: return nil
            }
        case .handle(let handle):
            guard case .loop = handle.referent, name == "cycle", !arguments.positional.isEmpty,
                let index = try attribute("index0", of: value).intValue
            else { return nil }
            return arguments.positional[index % arguments.positional.count]
        default: return nil
        }
    }

    private mutating func stringMethod(
        _ name: String, of text: String, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        try charge(bytes: text.utf8.count)
        let first = arguments[0, ""]?.stringValue
        switch name {
        case "strip": return .string(JinjaText.stripped(text, .both, characters: first))
        case "lstrip": return .string(JinjaText.stripped(text, .start, characters: first))
        case "rstrip": return .string(JinjaText.stripped(text, .end, characters: first))
        case "upper": return .string(text.uppercased())
        case "lower": return .string(text.lowercased())
        case "title": return .string(JinjaText.titled(text))
        case "capitalize": return .string(JinjaText.capitalized(text))
        case "startswith", "endswith":
            return .bool(
                try affixes(arguments, of: name).contains {
                    name == "startswith" ? JinjaText.hasPrefix(text, $0) : JinjaText.hasSuffix(text, $0)
                })
        case "split", "rsplit": return try split(text, isFromEnd: name == "rsplit", arguments)
        case "splitlines":
            var lines = JinjaText.split(
                JinjaText.replaced(text, "\r\n", with: "\n", limit: Int.max), separator: "\n", limit: Int.max)
            if lines.last == "" { lines.removeLast() }
            return try charged(lines.map { .string($0) })
        case "replace":
            guard let old = first, let new = arguments[1, "new"]?.stringValue else {
                throw failure("replace takes two strings")
            }
            return try replaced(text, old, with: new, limit: arguments[2, "count"]?.intValue)
        case "join": return try joined(arguments[0, "iterable"] ?? .undefined, separator: text)
        case "find", "count", "removeprefix", "removesuffix":
            guard let part = first else { throw failure("\(name) takes a string") }
            return try search(name, part, in: text)
        case "isdigit":
            return .bool(!text.utf8.isEmpty && text.unicodeScalars.allSatisfy { $0.properties.numericType == .decimal })
        case "isspace": return .bool(!text.utf8.isEmpty && text.unicodeScalars.allSatisfy(JinjaText.isSpace))
        case "isupper": return .bool(text.uppercased() == text && text.lowercased() != text)
        case "islower": return .bool(text.lowercased() == text && text.uppercased() != text)
        default: throw failure("strings have no method \"\(name)\"")
        }
    }

    private func affixes(_ arguments: CallArguments, of name: String) throws(ChatTemplateError) -> [String] {
        switch arguments[0, "prefix"] {
        case .string(let affix): return [affix]
        case .list(let list): return list.items.compactMap(\.stringValue)
        default: throw failure("\(name) takes a string or a tuple of strings")
        }
    }

    private mutating func split(
        _ text: String, isFromEnd: Bool, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        let given = arguments[1, "maxsplit"]?.intValue ?? -1
        let limit = given < 0 ? Int.max : given
        guard let separator = arguments[0, "sep"]?.stringValue else {
            guard !isFromEnd || limit == Int.max else { throw failure("rsplit with a limit needs a separator") }
            return try charged(JinjaText.splitOnSpace(text, limit: limit).map { .string($0) })
        }
        guard !separator.utf8.isEmpty else { throw failure("an empty separator") }
        let parts =
            isFromEnd
            ? JinjaText.splitFromEnd(text, separator: separator, limit: limit)
            : JinjaText.split(text, separator: separator, limit: limit)
        return try charged(parts.map { .string($0) })
    }

    mutating func replaced(
        _ text: String, _ old: String, with new: String, limit: Int?
    ) throws(ChatTemplateError) -> JinjaValue {
        let limit = limit.map { $0 < 0 ? Int.max : $0 } ?? Int.max
        try charge(bytes: text.utf8.count)
        let count =
            old.utf8.isEmpty
            ? min(limit, text.unicodeScalars.count + 1)
            : JinjaText.occurrences(of: Array(old.utf8), in: Array(text.utf8), limit: limit).count
        let (added, overflow) = count.multipliedReportingOverflow(by: new.utf8.count)
        try charge(bytes: overflow ? Int.max : text.utf8.count &+ added)
        return .string(JinjaText.replaced(text, old, with: new, limit: limit))
    }

    mutating func joined(_ value: JinjaValue, separator: String) throws(ChatTemplateError) -> JinjaValue {
        var result = ""
        for (index, item) in try items(of: value).enumerated() {
            if index > 0 { result += separator }
            result += try text(of: item)
            try charge(bytes: result.utf8.count - result.utf8.count / 2)
            guard result.utf8.count <= limits.outputBytes else { throw .outputTooLong(limit: limits.outputBytes) }
        }
        return .string(result)
    }

    private mutating func search(_ name: String, _ part: String, in text: String) throws(ChatTemplateError)
        -> JinjaValue
    {
        switch name {
        case "removeprefix":
            return .string(
                JinjaText.hasPrefix(text, part)
                    ? String(decoding: text.utf8.dropFirst(part.utf8.count), as: UTF8.self) : text)
        case "removesuffix":
            return .string(
                JinjaText.hasSuffix(text, part)
                    ? String(decoding: text.utf8.dropLast(part.utf8.count), as: UTF8.self) : text)
        default: break
        }
        let utf8 = Array(text.utf8)
        guard !part.utf8.isEmpty else { return .int(name == "find" ? 0 : text.unicodeScalars.count + 1) }
        let found = JinjaText.occurrences(of: Array(part.utf8), in: utf8, limit: name == "find" ? 1 : Int.max)
        guard name == "find" else { return .int(found.count) }
        // Python counts scalars, not bytes.
        return .int(found.first.map { String(decoding: utf8[..<$0], as: UTF8.self).unicodeScalars.count } ?? -1)
    }
}

extension TemplateDate {
    private static let months = [
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
        "November", "December",
    ]
    private static let weekdays = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]

    /// 0 is Sunday. Sakamoto's method, for the Gregorian calendar.
    private var weekday: Int {
        let offsets = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4]
        let year = month < 3 ? year - 1 : year
        let sum = year + year / 4 - year / 100 + year / 400 + offsets[month - 1] + day
        return ((sum % 7) + 7) % 7
    }

    /// C's `strftime` in the C locale; nil for a conversion that is not one of `aAbBdeHImMpSyY%`.
    func formatted(_ format: String) -> String? {
        guard (1...12).contains(month) else { return nil }
        func two(_ number: Int) -> String { (number < 10 ? "0" : "") + String(number) }
        var result = ""
        var isConversion = false
        for scalar in format.unicodeScalars {
            guard isConversion else {
                if scalar == "%" { isConversion = true } else { result.unicodeScalars.append(scalar) }
                continue
            }
            isConversion = false
            switch scalar {
            case "Y": result += String(year)
            case "y": result += two(year % 100)
            case "m": result += two(month)
            case "d": result += two(day)
            case "e": result += (day < 10 ? " " : "") + String(day)
            case "H": result += two(hour)
            case "I": result += two(hour % 12 == 0 ? 12 : hour % 12)
            case "M": result += two(minute)
            case "S": result += two(second)
            case "p": result += hour < 12 ? "AM" : "PM"
            case "B": result += Self.months[month - 1]
            case "b": result += String(Self.months[month - 1].prefix(3))
            case "A": result += Self.weekdays[weekday]
            case "a": result += String(Self.weekdays[weekday].prefix(3))
            case "%": result += "%"
            default: return nil
            }
        }
        return isConversion ? nil : result
    }
}
