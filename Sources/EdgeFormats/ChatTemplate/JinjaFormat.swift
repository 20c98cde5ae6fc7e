// Python's two ways to format: `"%s" % value` and `"{}".format(value)`. What they accept of widths and precisions is charged
// before it is made. Not here: nested replacement fields, `#` and `,` of floats in `%`, and `n`.

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// How one value is laid out.
private struct FormatSpec {
    var filling: Unicode.Scalar = " "
    /// "<", ">", "^" or "="; nil for what the type has.
    var alignment: Unicode.Scalar?
    /// "+", " " or nil.
    var sign: Unicode.Scalar?
    var isAlternate = false
    var grouping: Unicode.Scalar?
    var width = 0
    var precision: Int?
    var type: Unicode.Scalar?
}

private struct ScalarReader {
    private let scalars: [Unicode.Scalar]
    private var position = 0

    init(_ text: String) { scalars = Array(text.unicodeScalars) }

    var next: Unicode.Scalar? { position < scalars.count ? scalars[position] : nil }
    var second: Unicode.Scalar? { position + 1 < scalars.count ? scalars[position + 1] : nil }

    mutating func take() -> Unicode.Scalar? {
        defer { position += 1 }
        return next
    }

    mutating func take(_ wanted: Unicode.Scalar) -> Bool {
        guard next == wanted else { return false }
        position += 1
        return true
    }

    /// A decimal number of at most nine digits; nil without a digit.
    mutating func number() -> Int? {
        var number: Int?
        while let scalar = next, ("0"..."9").contains(scalar), (number ?? 0) < 100_000_000 {
            number = (number ?? 0) * 10 + Int(scalar.value - 48)
            position += 1
        }
        return number
    }

    /// Up to `end`, which is consumed; nil when it does not come.
    mutating func text(until end: Unicode.Scalar) -> String? {
        guard position < scalars.count, let index = scalars[position...].firstIndex(of: end) else { return nil }
        defer { position = index + 1 }
        return String(String.UnicodeScalarView(scalars[position..<index]))
    }
}

extension JinjaEvaluator {
    /// `format % value`: a tuple gives several values, an object named ones.
    mutating func formatted(_ format: String, with value: JinjaValue) throws(ChatTemplateError) -> String {
        try charge(bytes: format.utf8.count)
        var values = [value]
        if case .list(let list) = value, list.kind == .tuple { values = list.items }
        var used = 0
        func nextValue() throws(ChatTemplateError) -> JinjaValue {
            guard used < values.count else { throw failure("not enough values for the format") }
            used += 1
            return values[used - 1]
        }
        var reader = ScalarReader(format)
        var result = ""
        while let scalar = reader.take() {
            guard scalar == "%" else {
                result.unicodeScalars.append(scalar)
                continue
            }
            var named: JinjaValue?
            if reader.take("(") {
                guard let name = reader.text(until: ")"), case .object(let object) = value,
                    let found = object.value(name)
                else { throw failure("the format names a value that is not there") }
                named = found
                used = 1
            }
            var spec = FormatSpec()
            spec.alignment = ">"
            while let flag = reader.next, "#0- +".unicodeScalars.contains(flag) {
                _ = reader.take()
                switch flag {
                case "#": spec.isAlternate = true
                case "-": spec.alignment = "<"
                case "0": spec.filling = "0"
                default: if spec.sign != "+" { spec.sign = flag }
                }
            }
            if reader.take("*") {
                spec.width = try integer(try nextValue(), or: 0)
                if spec.width < 0 {
                    spec.width = spec.width == Int.min ? Int.max : -spec.width
                    spec.alignment = "<"
                }
            } else {
                spec.width = reader.number() ?? 0
            }
            if reader.take(".") {
                spec.precision = reader.take("*") ? max(0, try integer(try nextValue(), or: 0)) : reader.number() ?? 0
            }
            while let length = reader.next, "hlL".unicodeScalars.contains(length) { _ = reader.take() }
            guard let type = reader.take() else { throw failure("the format ends within a conversion") }
            if type == "%" {
                result += "%"
                continue
            }
            let converted = if let named { named } else { try nextValue() }
            let text = try percentConverted(converted, type, &spec)
            try charge(bytes: text.utf8.count)
            result += text
            guard result.utf8.count <= limits.outputBytes else { throw .outputTooLong(limit: limits.outputBytes) }
        }
        if case .object = value { return result }
        guard used == values.count || (used == 0 && isUncountedValue(value)) else {
            throw failure("more values than the format has conversions")
        }
        return result
    }

    /// Python lets a mapping, and a list, go unused.
    private func isUncountedValue(_ value: JinjaValue) -> Bool {
        switch value {
        case .object: true
        case .list(let list): list.kind == .list || list.isRange
        default: false
        }
    }

    private mutating func percentConverted(
        _ value: JinjaValue, _ type: Unicode.Scalar, _ spec: inout FormatSpec
    ) throws(ChatTemplateError) -> String {
        switch type {
        case "s", "r", "a":
            spec.filling = " "
            spec.type = "s"
            return try laidOut(.string(type == "s" ? try text(of: value) : try representation(of: value)), spec)
        case "d", "i", "u":
            guard let number = value.doubleValue else { throw failure("%\(type) of a \(value.typeName)") }
            spec.type = "d"
            if spec.filling == "0", spec.alignment == ">" { spec.alignment = "=" } else { spec.filling = " " }
            guard let integer = value.intValue ?? Int(exactly: number.rounded(.towardZero)) else {
                throw failure("\(number) has no integer in 64 bits")
            }
            // The precision of an integer is its least number of digits.
            if let digits = spec.precision {
                try charge(bytes: digits)
                let text = String(integer.magnitude)
                let sign = integer < 0 ? "-" : spec.sign.map { String($0) } ?? ""
                let padded = sign + String(repeating: "0", count: max(0, digits - text.utf8.count)) + text
                spec.precision = nil
                spec.type = "s"
                if spec.alignment == "=" { spec.alignment = ">" }
                return try laidOut(.string(padded), spec)
            }
            return try laidOut(.int(integer), spec)
        case "x", "X", "o":
            guard value.intValue != nil else { throw failure("%\(type) of a \(value.typeName)") }
            spec.type = type
            if spec.filling == "0", spec.alignment == ">" { spec.alignment = "=" } else { spec.filling = " " }
            return try laidOut(value, spec)
        case "e", "E", "f", "F", "g", "G":
            guard let number = value.doubleValue else { throw failure("%\(type) of a \(value.typeName)") }
            spec.type = type
            if spec.filling == "0", spec.alignment == ">" { spec.alignment = "=" } else { spec.filling = " " }
            return try laidOut(.double(number), spec)
        case "c":
            if let text = value.stringValue, text.unicodeScalars.count == 1 { return try laidOut(.string(text), spec) }
            guard let scalar = value.intValue.flatMap({ UInt32(exactly: $0) }).flatMap(Unicode.Scalar.init) else {
                throw failure("%c of a \(value.typeName)")
            }
            return try laidOut(.string(String(scalar)), spec)
        default: throw failure("the conversion %\(type) is not supported")
        }
    }

    /// `str.format`.
    mutating func formatted(_ format: String, _ arguments: CallArguments) throws(ChatTemplateError) -> String {
        var reader = ScalarReader(format)
        var result = ""
        var automatic = 0
        var isAutomatic: Bool?
        while let scalar = reader.take() {
            if scalar == "}" {
                guard reader.take("}") else { throw failure("a single } in a format") }
                result += "}"
                continue
            }
            guard scalar == "{" else {
                result.unicodeScalars.append(scalar)
                continue
            }
            if reader.take("{") {
                result += "{"
                continue
            }
            guard let field = reader.text(until: "}"), !field.unicodeScalars.contains("{") else {
                throw failure("a format's field has no end, or fields inside it")
            }
            let colon = JinjaText.split(field, separator: ":", limit: 1)
            let parts = JinjaText.split(colon[0], separator: "!", limit: 1)
            var value: JinjaValue
            (value, isAutomatic) = try fieldValue(parts[0], arguments, &automatic, isAutomatic)
            if parts.count > 1 {
                switch parts[1] {
                case "s": value = .string(try text(of: value))
                case "r": value = .string(try representation(of: value))
                default: throw failure("the conversion !\(parts[1]) is not supported")
                }
            }
            let text = try laidOut(value, try spec(colon.count > 1 ? colon[1] : ""))
            try charge(bytes: text.utf8.count)
            result += text
            guard result.utf8.count <= limits.outputBytes else { throw .outputTooLong(limit: limits.outputBytes) }
        }
        return result
    }

    private mutating func fieldValue(
        _ field: String, _ arguments: CallArguments, _ automatic: inout Int, _ isAutomatic: Bool?
    ) throws(ChatTemplateError) -> (JinjaValue, isAutomatic: Bool?) {
        let name = String(field.unicodeScalars.prefix { $0 != "." && $0 != "[" })
        var mode = isAutomatic
        var value: JinjaValue
        if name.isEmpty, !field.isEmpty { throw failure("a format's field \"\(field)\" has no name") }
        if name.isEmpty || Int(name) != nil {
            guard mode == nil || mode == name.isEmpty else { throw failure("a format mixes {} with {0}") }
            mode = name.isEmpty
            let index = Int(name) ?? automatic
            if name.isEmpty { automatic += 1 }
            guard arguments.positional.indices.contains(index) else { throw failure("a format has no value \(index)") }
            value = arguments.positional[index]
        } else {
            guard let named = arguments.named.first(where: { JinjaText.equal($0.0, name) }) else {
                throw failure("a format has no value \"\(name)\"")
            }
            value = named.1
        }
        var reader = ScalarReader(String(field.unicodeScalars.dropFirst(name.unicodeScalars.count)))
        while let scalar = reader.take() {
            if scalar == "[" {
                guard let key = reader.text(until: "]") else { throw failure("a format's index has no end") }
                value = try item(Int(key).map { .int($0) } ?? .string(key), of: value)
            } else {
                var key = String.UnicodeScalarView()
                while let next = reader.next, next != ".", next != "[" {
                    key.append(next)
                    _ = reader.take()
                }
                value = try attribute(String(key), of: value)
            }
        }
        return (value, mode)
    }

    private func spec(_ text: String) throws(ChatTemplateError) -> FormatSpec {
        var spec = FormatSpec()
        var reader = ScalarReader(text)
        func isAlignment(_ scalar: Unicode.Scalar?) -> Bool {
            scalar.map { "<>^=".unicodeScalars.contains($0) } ?? false
        }
        if isAlignment(reader.second) {
            spec.filling = reader.take() ?? " "
            spec.alignment = reader.take()
        } else if isAlignment(reader.next) {
            spec.alignment = reader.take()
        }
        if let sign = reader.next, "+- ".unicodeScalars.contains(sign) {
            _ = reader.take()
            spec.sign = sign == "-" ? nil : sign
        }
        spec.isAlternate = reader.take("#")
        if reader.take("0"), spec.alignment == nil {
            spec.filling = "0"
            spec.alignment = "="
        }
        spec.width = reader.number() ?? 0
        if reader.next == "," || reader.next == "_" { spec.grouping = reader.take() }
        if reader.take(".") {
            guard let precision = reader.number() else { throw failure("a format's precision is missing") }
            spec.precision = precision
        }
        spec.type = reader.take()
        guard reader.next == nil else { throw failure("the format \"\(text)\" is not supported") }
        return spec
    }

    /// One value by a format.
    private mutating func laidOut(_ value: JinjaValue, _ spec: FormatSpec) throws(ChatTemplateError) -> String {
        if spec == FormatSpec() { return try self.text(of: value) }
        var sign = ""
        let body: String
        let isNumber: Bool
        if let text = value.stringValue {
            guard spec.type == nil || spec.type == "s", spec.sign == nil, spec.grouping == nil, spec.alignment != "="
            else { throw failure("a string has no such format") }
            body = spec.precision.map { String(text.unicodeScalars.prefix($0)) } ?? text
            isNumber = false
        } else if let number = value.doubleValue {
            (sign, body) = try numberText(value, number, spec)
            isNumber = true
        } else {
            throw failure("a \(value.typeName) has no such format")
        }
        let missing = max(0, spec.width - sign.unicodeScalars.count - body.unicodeScalars.count)
        try charge(bytes: body.utf8.count + min(missing, Int.max / 8) * 4)
        let alignment = spec.alignment ?? (isNumber ? ">" : "<")
        func fill(_ count: Int) -> String { String(repeating: String(spec.filling), count: count) }
        switch alignment {
        case "<": return sign + body + fill(missing)
        case "^": return fill(missing / 2) + sign + body + fill(missing - missing / 2)
        case "=": return sign + fill(missing) + body
        default: return fill(missing) + sign + body
        }
    }

    private mutating func numberText(
        _ value: JinjaValue, _ number: Double, _ spec: FormatSpec
    ) throws(ChatTemplateError) -> (sign: String, body: String) {
        let isNegative: Bool
        var body: String
        var precision = spec.precision
        switch (spec.type, value.intValue) {
        case (nil, let integer?), ("d", let integer?), ("x", let integer?), ("X", let integer?), ("o", let integer?),
            ("b", let integer?):
            guard precision == nil else { throw failure("an integer has no precision") }
            isNegative = integer < 0
            let radix = switch spec.type {
            case "x", "X": 16
            case "o": 8
            case "b": 2
            default: 10
            }
            body = String(integer.magnitude, radix: radix, uppercase: spec.type == "X")
            if spec.isAlternate, let type = spec.type, type != "d" { body = "0" + String(type) + body }
        case (nil, nil) where precision == nil:
            isNegative = number.sign == .minus && !number.isNaN
            body = JinjaText.number(number.magnitude)
        case ("e", _), ("E", _), ("f", _), ("F", _), ("g", _), ("G", _), ("%", _):
            isNegative = number.sign == .minus && !number.isNaN
            precision = precision ?? 6
            guard let digits = precision, digits <= 1000 else { throw failure("a precision above 1000") }
            let isPercent = spec.type == "%"
            let type = isPercent ? "f" : String(spec.type ?? "g")
            body = JinjaText.printed(isPercent ? number.magnitude * 100 : number.magnitude, type, digits: digits)
            if isPercent { body += "%" }
        default: throw failure("the format's type does not fit a \(value.typeName)")
        }
        if let separator = spec.grouping { body = JinjaText.grouped(body, by: separator) }
        return (isNegative ? "-" : spec.sign.map { String($0) } ?? "", body)
    }

    private mutating func representation(of value: JinjaValue) throws(ChatTemplateError) -> String {
        var text = ""
        try appendRepresentation(of: value, to: &text)
        return text
    }
}

extension FormatSpec: Equatable {}

extension JinjaText {
    /// C's `printf` of one float.
    static func printed(_ number: Double, _ type: String, digits: Int) -> String {
        // The largest float has 309 digits before the point.
        let size = digits + 400
        var buffer = [CChar](repeating: 0, count: size)
        let count = withVaList([number]) { vsnprintf(&buffer, size, "%.\(digits)\(type)", $0) }
        return String(decoding: buffer.prefix(Int(max(0, count))).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// Rounded as Python's `round` does: exactly, half to even.
    static func fixed(_ number: Double, digits: Int) -> String { printed(number, "f", digits: digits) }

    /// Thousands apart.
    static func grouped(_ text: String, by separator: Unicode.Scalar) -> String {
        let scalars = Array(text.unicodeScalars)
        let count = scalars.prefix { ("0"..."9").contains($0) }.count
        var result = ""
        for (index, scalar) in scalars.enumerated() {
            if index > 0, index < count, (count - index) % 3 == 0 { result.unicodeScalars.append(separator) }
            result.unicodeScalars.append(scalar)
        }
        return result
    }

    /// `float(text)`; nil where Python throws.
    static func parsedNumber(_ text: String) -> Double? {
        guard let plain = withoutDigitSeparators(stripped(text, .both)) else { return nil }
        let unsigned = plain.utf8.first.map { $0 == UInt8(ascii: "-") || $0 == UInt8(ascii: "+") } ?? false
            ? String(plain.unicodeScalars.dropFirst()) : plain
        switch unsigned.lowercased() {
        case "inf", "infinity", "nan": break
        default:
            // Swift also reads hexadecimal floats and NaN payloads.
            guard unsigned.utf8.allSatisfy({ "0123456789.eE+-".utf8.contains($0) }) else { return nil }
        }
        // Nor does Swift read "1." or ".5e1", which C does.
        return plain.withCString { start in
            var end: UnsafeMutablePointer<CChar>?
            let number = strtod(start, &end)
            guard let end, end.pointee == 0, UnsafePointer(end) != start else { return nil }
            return number
        }
    }

    /// Python's numbers may have an underscore between two digits. nil where one stands elsewhere.
    static func withoutDigitSeparators(_ text: String) -> String? {
        let utf8 = Array(text.utf8)
        func isDigit(_ index: Int) -> Bool {
            utf8.indices.contains(index) && Unicode.Scalar(utf8[index]).properties.isASCIIHexDigit
        }
        for index in utf8.indices where utf8[index] == UInt8(ascii: "_") {
            guard isDigit(index - 1), isDigit(index + 1) else { return nil }
        }
        return String(decoding: utf8.filter { $0 != UInt8(ascii: "_") }, as: UTF8.self)
    }
}

extension JinjaEvaluator {
    /// `int(text, base)`; nil where Python throws.
    func parsedInteger(_ text: String, base: Int) throws(ChatTemplateError) -> Int? {
        guard var digits = JinjaText.withoutDigitSeparators(JinjaText.stripped(text, .both)) else { return nil }
        var isNegative = false
        if let first = digits.utf8.first, first == UInt8(ascii: "-") || first == UInt8(ascii: "+") {
            isNegative = first == UInt8(ascii: "-")
            digits = String(digits.unicodeScalars.dropFirst())
        }
        let prefix = String(digits.unicodeScalars.prefix(2)).lowercased()
        let prefixBase = ["0x": 16, "0o": 8, "0b": 2][prefix]
        var base = base
        if let prefixBase, base == 0 || base == prefixBase {
            digits = String(digits.unicodeScalars.dropFirst(2))
            base = prefixBase
        } else if base == 0 {
            guard !digits.utf8.starts(with: "0".utf8) || digits.utf8.allSatisfy({ $0 == UInt8(ascii: "0") }) else {
                return nil
            }
            base = 10
        }
        let isWellFormed = !digits.isEmpty && digits.utf8.allSatisfy { byte in
            Unicode.Scalar(byte).properties.numericType == .decimal || Unicode.Scalar(byte).properties.isAlphabetic
        }
        guard isWellFormed, digits.utf8.allSatisfy({ Int(String(Unicode.Scalar($0)), radix: base) != nil }) else {
            return nil
        }
        guard let integer = Int((isNegative ? "-" : "") + digits, radix: base) else {
            throw failure("\(text) has no value in 64 bits")
        }
        return integer
    }
}
