// The filters: one literal table, and those that make of one value another. Filters of sequences are in
// JinjaFilters+Sequences. Upstream: pallets/jinja, filters.py.

struct JinjaFilter: Sendable {
    typealias Body = @Sendable (inout JinjaEvaluator, JinjaValue, CallArguments) throws(ChatTemplateError) -> JinjaValue
    /// Names of the arguments after the operand; nil for a filter that takes any.
    let parameters: [String]?
    let required: Int
    let body: Body

    init(taking parameters: [String]? = [], required: Int = 0, _ body: @escaping Body) {
        self.parameters = parameters
        self.required = required
        self.body = body
    }

    static let all: [String: JinjaFilter] = [
        "abs": JinjaFilter(absolute), "attr": JinjaFilter(taking: ["name"], required: 1, attr),
        "batch": JinjaFilter(taking: ["linecount", "fill_with"], required: 1, SequenceFilters.batch),
        "capitalize": text(JinjaText.capitalized), "center": JinjaFilter(taking: ["width"], center),
        "count": JinjaFilter(SequenceFilters.length),
        "d": JinjaFilter(taking: ["default_value", "boolean"], standard),
        "default": JinjaFilter(taking: ["default_value", "boolean"], standard),
        "dictsort": JinjaFilter(taking: ["case_sensitive", "by", "reverse"], SequenceFilters.dictsort),
        "e": JinjaFilter(escape), "escape": JinjaFilter(escape), "first": JinjaFilter(SequenceFilters.first),
        "float": JinjaFilter(taking: ["default"], float), "forceescape": JinjaFilter(forceEscape),
        "format": JinjaFilter(taking: nil, format),
        "groupby": JinjaFilter(taking: ["attribute", "default", "case_sensitive"], required: 1, SequenceFilters.groupby),
        "indent": JinjaFilter(taking: ["width", "first", "blank"], indent),
        "int": JinjaFilter(taking: ["default", "base"], int), "items": JinjaFilter(SequenceFilters.pairs),
        "join": JinjaFilter(taking: ["d", "attribute"], SequenceFilters.join),
        "last": JinjaFilter(SequenceFilters.last), "length": JinjaFilter(SequenceFilters.length),
        "list": JinjaFilter(SequenceFilters.list), "lower": text(JinjaText.lowered),
        "map": JinjaFilter(taking: nil, SequenceFilters.map),
        "max": JinjaFilter(taking: ["case_sensitive", "attribute"], SequenceFilters.maximum),
        "min": JinjaFilter(taking: ["case_sensitive", "attribute"], SequenceFilters.minimum),
        "reject": JinjaFilter(taking: nil, SequenceFilters.reject),
        "rejectattr": JinjaFilter(taking: nil, SequenceFilters.rejectattr),
        "replace": JinjaFilter(taking: ["old", "new", "count"], required: 2, replace),
        "reverse": JinjaFilter(SequenceFilters.reverse), "round": JinjaFilter(taking: ["precision", "method"], round),
        "safe": JinjaFilter(safe), "select": JinjaFilter(taking: nil, SequenceFilters.select),
        "selectattr": JinjaFilter(taking: nil, SequenceFilters.selectattr),
        "slice": JinjaFilter(taking: ["slices", "fill_with"], required: 1, SequenceFilters.slice),
        "sort": JinjaFilter(taking: ["reverse", "case_sensitive", "attribute"], SequenceFilters.sort),
        "string": text { $0 }, "sum": JinjaFilter(taking: ["attribute", "start"], SequenceFilters.sum),
        "title": text(JinjaText.filterTitled),
        "tojson": JinjaFilter(taking: ["ensure_ascii", "indent", "separators", "sort_keys"], tojson),
        "trim": JinjaFilter(taking: ["chars"], trim),
        "truncate": JinjaFilter(taking: ["length", "killwords", "end", "leeway"], truncate),
        "unique": JinjaFilter(taking: ["case_sensitive", "attribute"], SequenceFilters.unique),
        "upper": text { $0.uppercased() }, "urlencode": JinjaFilter(urlencode), "wordcount": JinjaFilter(wordcount),
    ]

    private static func text(_ transform: @escaping @Sendable (String) -> String) -> JinjaFilter {
        JinjaFilter { (evaluator, value, _) throws(ChatTemplateError) in
            let text = try evaluator.text(of: value)
            // "ŉ" in capitals has two scalars, "ΐ" three.
            try evaluator.charge(bytes: text.utf8.count)
            return value.withText(transform(text))
        }
    }

    /// What Python's binding of arguments refuses.
    fileprivate func check(
        _ arguments: CallArguments, of name: String, in evaluator: JinjaEvaluator
    ) throws(ChatTemplateError) {
        guard let parameters else { return }
        guard arguments.positional.count <= parameters.count else {
            throw evaluator.failure("\(name) takes \(parameters.count) arguments, not \(arguments.positional.count)")
        }
        for (argument, _) in arguments.named where !parameters.dropFirst(arguments.positional.count).contains(argument) {
            throw evaluator.failure("\(name) has no parameter \"\(argument)\" left")
        }
        for (index, parameter) in parameters.prefix(required).enumerated() where arguments[index, parameter] == nil {
            throw evaluator.failure("\(name) needs \"\(parameter)\"")
        }
    }
}

extension JinjaValue {
    /// A text made of this one: markup stays markup.
    func withText(_ text: String) -> JinjaValue {
        if case .markup = self { .markup(text) } else { .string(text) }
    }
}

extension JinjaEvaluator {
    mutating func apply(
        filter name: String, to value: JinjaValue, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        guard let filter = JinjaFilter.all[name] else { throw failure("there is no filter \"\(name)\"") }
        try filter.check(arguments, of: name, in: self)
        return try filter.body(&self, value, arguments)
    }

    mutating func escaped(_ value: JinjaValue) throws(ChatTemplateError) -> String {
        let text = try text(of: value)
        if case .markup = value { return text }
        try charge(bytes: text.utf8.count)
        return JinjaText.escapedHTML(text)
    }

    func integer(_ value: JinjaValue?, or standard: Int) throws(ChatTemplateError) -> Int {
        guard let value else { return standard }
        guard let number = value.intValue else { throw failure("an integer is needed, not \(value.typeName)") }
        return number
    }
}

@Sendable private func safe(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    .markup(try evaluator.text(of: value))
}

@Sendable private func escape(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    .markup(try evaluator.escaped(value))
}

@Sendable private func forceEscape(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    .markup(try evaluator.escaped(.string(try evaluator.text(of: value))))
}

@Sendable private func attr(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    guard case .object = value else {
        return try evaluator.attribute(try evaluator.text(of: arguments[0, "name"] ?? .undefined), of: value)
    }
    return .undefined
}

@Sendable private func trim(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let text = try evaluator.text(of: value)
    try evaluator.charge(bytes: text.utf8.count)
    return value.withText(JinjaText.stripped(text, .both, characters: try evaluator.characters(arguments[0, "chars"])))
}

@Sendable private func center(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    var width = CallArguments()
    width.positional = [arguments[0, "width"] ?? .int(80)]
    let centred = try evaluator.method("center", of: .string(try evaluator.text(of: value)), width)
    return centred ?? .undefined
}

@Sendable private func format(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let format = try evaluator.text(of: value)
    guard arguments.named.isEmpty else {
        guard arguments.positional.isEmpty else { throw evaluator.failure("format takes values or named values") }
        return .string(try evaluator.formatted(format, with: try .object(arguments.named)))
    }
    return .string(try evaluator.formatted(format, with: try .tuple(arguments.positional)))
}

@Sendable private func standard(_: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let replacesFalsy = arguments[1, "boolean"]?.isTruthy ?? false
    let replaces = if case .undefined = value { true } else { replacesFalsy && !value.isTruthy }
    return replaces ? arguments[0, "default_value"] ?? .string("") : value
}

@Sendable private func replace(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let old = try evaluator.text(of: arguments[0, "old"] ?? .undefined)
    let new = try evaluator.text(of: arguments[1, "new"] ?? .undefined)
    let count = arguments[2, "count"]?.unlessNone
    let limit = try evaluator.integer(count, or: -1)
    return try evaluator.replaced(try evaluator.text(of: value), old, with: new, limit: limit)
}

@Sendable private func indent(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    guard let text = value.stringValue else { throw evaluator.failure("indent takes a string, not \(value.typeName)") }
    let margin: String
    if let given = arguments[0, "width"]?.stringValue {
        margin = given
    } else {
        let width = max(0, try evaluator.integer(arguments[0, "width"], or: 4))
        try evaluator.charge(bytes: width)
        margin = String(repeating: " ", count: width)
    }
    let indentsFirst = arguments[1, "first"]?.isTruthy ?? false
    let indentsBlank = arguments[2, "blank"]?.isTruthy ?? false
    try evaluator.charge(values: JinjaText.lineCount(text) + 1)
    let lines = JinjaText.lines(text + "\n", keepingEnds: false)
    let (added, overflow) = lines.count.multipliedReportingOverflow(by: margin.utf8.count)
    try evaluator.charge(bytes: overflow ? Int.max : text.utf8.count &+ added)
    var result = indentsFirst ? margin : ""
    for (index, line) in lines.enumerated() {
        if index > 0 { result += "\n" + (indentsBlank || !line.utf8.isEmpty ? margin : "") }
        result += line
    }
    return value.withText(result)
}

@Sendable private func truncate(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let length = try evaluator.integer(arguments[0, "length"], or: 255)
    let leeway = try evaluator.integer(arguments[3, "leeway"], or: 5)
    guard let end = (arguments[2, "end"] ?? .string("...")).stringValue else {
        throw evaluator.failure("truncate ends with a string")
    }
    let kept = length - end.unicodeScalars.count
    guard kept >= 0, leeway >= 0 else { throw evaluator.failure("truncate to \(length) with a leeway of \(leeway)") }
    let count = try SequenceFilters.length(&evaluator, value, CallArguments()).intValue ?? 0
    if count - leeway <= length { return value }
    guard let text = value.stringValue else { throw evaluator.failure("truncate cuts strings") }
    try evaluator.charge(bytes: text.utf8.count + end.utf8.count)
    let scalars = Array(text.unicodeScalars)
    var head = scalars.prefix(kept)
    if !(arguments[1, "killwords"]?.isTruthy ?? false), let space = head.lastIndex(of: " ") { head = head[..<space] }
    return .string(String(String.UnicodeScalarView(head)) + end)
}

@Sendable private func wordcount(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let text = try evaluator.text(of: value)
    try evaluator.read(text)
    var count = 0
    var isInWord = false
    for scalar in text.unicodeScalars {
        let isWord = scalar == "_" || JinjaText.isAlphanumeric(scalar)
        if isWord, !isInWord { count += 1 }
        isInWord = isWord
    }
    return .int(count)
}

@Sendable private func urlencode(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let pairs: [JinjaValue]
    switch value {
    case .object(let object): pairs = try evaluator.pairs(of: object)
    case .list, .handle: pairs = try evaluator.items(of: value)
    default: return .string(try evaluator.percentEncoded(value, keeping: "_.-~/"))
    }
    var query = ""
    for pair in pairs {
        let entry = try evaluator.items(of: pair)
        guard entry.count == 2 else { throw evaluator.failure("urlencode takes pairs, not \(entry.count) values") }
        query += query.isEmpty ? "" : "&"
        query += try evaluator.percentEncoded(entry[0], keeping: "_.-~ ") + "="
        query += try evaluator.percentEncoded(entry[1], keeping: "_.-~ ")
    }
    try evaluator.charge(bytes: query.utf8.count)
    return .string(String(decoding: query.utf8.map { $0 == UInt8(ascii: " ") ? UInt8(ascii: "+") : $0 }, as: UTF8.self))
}

extension JinjaEvaluator {
    fileprivate mutating func percentEncoded(
        _ value: JinjaValue, keeping kept: String
    ) throws(ChatTemplateError) -> String {
        let text = try text(of: value)
        try charge(bytes: text.utf8.count * 3)
        var result = ""
        for byte in text.utf8 {
            let scalar = Unicode.Scalar(byte)
            let isWord = byte < 0x80 && (scalar.properties.isAlphabetic || ("0"..."9").contains(scalar))
            if isWord || kept.utf8.contains(byte) {
                result.unicodeScalars.append(scalar)
            } else {
                result += (byte < 16 ? "%0" : "%") + String(byte, radix: 16, uppercase: true)
            }
        }
        return result
    }
}

@Sendable private func int(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let base = try evaluator.integer(arguments[1, "base"], or: 10)
    let fallback = arguments[0, "default"] ?? .int(0)
    switch value {
    case .undefined: throw evaluator.failure("int of an undefined value")
    case .bool, .int: return .int(value.intValue ?? 0)
    case .double(let number):
        if number.isNaN { return fallback }
        guard let integer = Int(exactly: number.rounded(.towardZero)) else {
            throw evaluator.failure("\(number) has no integer in 64 bits")
        }
        return .int(integer)
    case .string(let text), .markup(let text):
        try evaluator.read(text)
        guard base == 0 || (2...36).contains(base) else { return fallback }
        if let integer = try evaluator.parsedInteger(text, base: base) { return .int(integer) }
        guard let number = JinjaText.parsedNumber(text), number.isFinite else { return fallback }
        guard let integer = Int(exactly: number.rounded(.towardZero)) else {
            throw evaluator.failure("\(number) has no integer in 64 bits")
        }
        return .int(integer)
    default: return fallback
    }
}

@Sendable private func float(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    if case .undefined = value { throw evaluator.failure("float of an undefined value") }
    if let text = value.stringValue { try evaluator.read(text) }
    let number = value.stringValue.map(JinjaText.parsedNumber) ?? value.doubleValue
    return number.map { .double($0) } ?? arguments[0, "default"] ?? .double(0)
}

@Sendable private func absolute(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    if let number = value.intValue {
        return number < 0 ? try evaluator.arithmetic(.subtract, .int(0), value) : .int(number)
    }
    guard let number = value.doubleValue else { throw evaluator.failure("\(value.typeName) is no number") }
    return .double(number.magnitude)
}

@Sendable private func round(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let digits = try evaluator.integer(arguments[0, "precision"], or: 0)
    let method = (arguments[1, "method"] ?? .string("common")).stringValue ?? ""
    guard let number = value.doubleValue, (-15...15).contains(digits) else {
        throw evaluator.failure("round takes a number and -15 to 15 digits")
    }
    var scale = 1.0
    for _ in 0..<digits.magnitude { scale *= 10 }
    switch method {
    case "common":
        if let integer = value.intValue { return .int(digits >= 0 ? integer : Int(roundedHalfEven(integer, to: -digits))) }
        guard number.isFinite else { throw evaluator.failure("\(number) cannot be rounded") }
        guard digits >= 0 else { return .double((number / scale).rounded(.toNearestOrEven) * scale) }
        return .double(Double(JinjaText.fixed(number, digits: digits)) ?? number)
    case "ceil", "floor":
        let rule: FloatingPointRoundingRule = method == "ceil" ? .up : .down
        guard number.isFinite else { throw evaluator.failure("\(number) cannot be rounded") }
        return .double(digits < 0 ? (number / scale).rounded(rule) * scale : (number * scale).rounded(rule) / scale)
    default: throw evaluator.failure("round goes common, ceil or floor, not \"\(method)\"")
    }
}

private func roundedHalfEven(_ number: Int, to digits: Int) -> Int {
    var scale = 1
    for _ in 0..<digits { scale *= 10 }
    let (quotient, remainder) = number.quotientAndRemainder(dividingBy: scale)
    let twice = remainder.magnitude * 2
    let isUp = twice > scale.magnitude || (twice == scale.magnitude && quotient % 2 != 0)
    return (quotient + (isUp ? number.signum() : 0)) &* scale
}

@Sendable private func tojson(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    var layout = JSONLayout()
    layout.isASCII = arguments[0, "ensure_ascii"]?.isTruthy ?? false
    if let given = arguments[1, "indent"]?.unlessNone {
        if let text = given.stringValue {
            layout.indent = text
        } else {
            let width = try evaluator.integer(given, or: 0)
            guard width <= 1000 else { throw evaluator.failure("tojson takes an indent of at most 1000") }
            layout.indent = String(repeating: " ", count: max(0, width))
        }
        layout.itemSeparator = ","
    }
    if let given = arguments[2, "separators"]?.unlessNone {
        guard case .list(let list) = given, list.items.count == 2, let item = list.items[0].stringValue,
            let key = list.items[1].stringValue
        else { throw evaluator.failure("tojson takes two separators") }
        layout.itemSeparator = item
        layout.keySeparator = key
    }
    layout.sortsKeys = arguments[3, "sort_keys"]?.isTruthy ?? false
    var text = ""
    try evaluator.appendJSON(of: value, to: &text, layout: layout)
    return try evaluator.charged(text)
}
