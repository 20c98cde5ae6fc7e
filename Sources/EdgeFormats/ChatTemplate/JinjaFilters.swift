// The filters. One literal table; a filter is a function of its operand and its evaluated arguments.

struct JinjaFilter: Sendable {
    typealias Body = @Sendable (inout JinjaEvaluator, JinjaValue, CallArguments) throws(ChatTemplateError) -> JinjaValue
    let body: Body

    init(_ body: @escaping Body) { self.body = body }

    static let all: [String: JinjaFilter] = [
        "abs": JinjaFilter(absolute), "capitalize": text(JinjaText.capitalized), "count": JinjaFilter(length),
        "d": JinjaFilter(standard), "default": JinjaFilter(standard), "dictsort": JinjaFilter(dictsort),
        "first": JinjaFilter(first), "float": JinjaFilter(float), "indent": JinjaFilter(indent),
        "int": JinjaFilter(int), "items": JinjaFilter(pairs), "join": JinjaFilter(join), "last": JinjaFilter(last),
        "length": JinjaFilter(length), "list": JinjaFilter(list), "lower": text { $0.lowercased() },
        "map": JinjaFilter(map), "max": JinjaFilter(maximum), "min": JinjaFilter(minimum),
        "reject": JinjaFilter(reject), "rejectattr": JinjaFilter(rejectattr), "replace": JinjaFilter(replace),
        "reverse": JinjaFilter(reverse), "round": JinjaFilter(round), "safe": text { $0 },
        "select": JinjaFilter(select), "selectattr": JinjaFilter(selectattr), "sort": JinjaFilter(sort),
        "string": text { $0 }, "sum": JinjaFilter(sum), "title": text(JinjaText.filterTitled),
        "tojson": JinjaFilter(tojson), "trim": JinjaFilter(trim), "unique": JinjaFilter(unique),
        "upper": text { $0.uppercased() },
    ]

    private static func text(_ transform: @escaping @Sendable (String) -> String) -> JinjaFilter {
        JinjaFilter { (evaluator, value, _) throws(ChatTemplateError) in
            let text = try evaluator.text(of: value)
            try evaluator.charge(bytes: text.utf8.count)
            return .string(transform(text))
        }
    }
}

extension JinjaEvaluator {
    mutating func apply(
        filter name: String, to value: JinjaValue, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        guard let filter = JinjaFilter.all[name] else { throw failure("there is no filter \"\(name)\"") }
        return try filter.body(&self, value, arguments)
    }
}

@Sendable private func trim(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let text = try evaluator.text(of: value)
    try evaluator.charge(bytes: text.utf8.count)
    return .string(JinjaText.stripped(text, .both, characters: arguments[0, "chars"]?.stringValue))
}

@Sendable private func length(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    switch value {
    case .undefined: return .int(0)
    case .string(let text): return .int(text.unicodeScalars.count)
    case .list(let list): return .int(list.items.count)
    case .object(let object): return .int(object.count)
    default: throw evaluator.failure("\(value.typeName) has no length")
    }
}

@Sendable private func standard(_: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let replacesFalsy = arguments[1, "boolean"]?.isTruthy ?? false
    let replaces = if case .undefined = value { true } else { replacesFalsy && !value.isTruthy }
    return replaces ? arguments[0, "default_value"] ?? .string("") : value
}

@Sendable private func join(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    var value = value
    if let attribute = arguments[1, "attribute"] {
        var named = CallArguments()
        named.named = [("attribute", attribute)]
        value = try map(&evaluator, value, named)
    }
    return try evaluator.joined(value, separator: try evaluator.text(of: arguments[0, "d"] ?? .string("")))
}

@Sendable private func first(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    try evaluator.items(of: value).first ?? .undefined
}

@Sendable private func last(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    try evaluator.items(of: value).last ?? .undefined
}

@Sendable private func list(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    try evaluator.charged(try evaluator.items(of: value))
}

@Sendable private func reverse(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    guard case .string(let text) = value else {
        return try evaluator.charged(try evaluator.items(of: value).reversed())
    }
    return try evaluator.charged(String(String.UnicodeScalarView(text.unicodeScalars.reversed())))
}

@Sendable private func pairs(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    if case .undefined = value { return try .list([]) }
    guard case .object = value, let pairs = try evaluator.method("items", of: value, CallArguments()) else {
        throw evaluator.failure("\(value.typeName) has no items")
    }
    return pairs
}

@Sendable private func dictsort(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    var key = CallArguments()
    key.named = [("attribute", .int(arguments[1, "by"]?.stringValue == "value" ? 1 : 0))]
    return try sort(&evaluator, try pairs(&evaluator, value, CallArguments()), key)
}

@Sendable private func replace(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    guard let old = arguments[0, "old"]?.stringValue, let new = arguments[1, "new"]?.stringValue else {
        throw evaluator.failure("replace takes two strings")
    }
    return try evaluator.replaced(try evaluator.text(of: value), old, with: new, limit: arguments[2, "count"]?.intValue)
}

@Sendable private func int(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    if let number = value.intValue { return .int(number) }
    let number: Double? =
        if case .string(let text) = value {
            Double(JinjaText.stripped(text, .both))
        } else { value.doubleValue }
    if case .string(let text) = value, let exact = Int(JinjaText.stripped(text, .both)) { return .int(exact) }
    return number.flatMap { Int(exactly: $0.rounded(.towardZero)) }.map { .int($0) } ?? arguments[0, "default"]
        ?? .int(0)
}

@Sendable private func float(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let number: Double? =
        if case .string(let text) = value {
            Double(JinjaText.stripped(text, .both))
        } else { value.doubleValue }
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
    guard let number = value.doubleValue, arguments[1, "method"] == nil,
        let digits = (arguments[0, "precision"] ?? .int(0)).intValue, (0...15).contains(digits)
    else { throw evaluator.failure("round takes a number and 0 to 15 digits") }
    var scale = 1.0
    for _ in 0..<digits { scale *= 10 }
    return .double((number * scale).rounded(.toNearestOrEven) / scale)
}

@Sendable private func sum(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    var total = arguments[1, "start"] ?? .int(0)
    for item in try evaluator.items(of: value) {
        total = try evaluator.arithmetic(.add, total, try evaluator.key(arguments[0, "attribute"], of: item))
    }
    return total
}

@Sendable private func minimum(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    var items = try evaluator.items(of: value)[...]
    guard var least = items.popFirst() else { return .undefined }
    for item in items where try evaluator.isLess(item, least) { least = item }
    return least
}

@Sendable private func maximum(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    var items = try evaluator.items(of: value)[...]
    guard var greatest = items.popFirst() else { return .undefined }
    for item in items where try evaluator.isLess(greatest, item) { greatest = item }
    return greatest
}

/// Stable merge sort; strings without case unless `case_sensitive`.
@Sendable private func sort(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let isReversed = arguments[0, "reverse"]?.isTruthy ?? false
    let isCaseSensitive = arguments[1, "case_sensitive"]?.isTruthy ?? false
    var keyed: [(key: JinjaValue, item: JinjaValue)] = []
    for item in try evaluator.items(of: value) {
        keyed.append(
            (try evaluator.sortKey(arguments[2, "attribute"], of: item, isCaseSensitive: isCaseSensitive), item))
    }
    var width = 1
    while width < keyed.count {
        var merged: [(key: JinjaValue, item: JinjaValue)] = []
        for start in stride(from: 0, to: keyed.count, by: 2 * width) {
            var left = keyed[start..<min(start + width, keyed.count)]
            var right = keyed[left.endIndex..<min(start + 2 * width, keyed.count)]
            while let a = left.first, let b = right.first {
                try evaluator.spend()
                let takesRight = try isReversed ? evaluator.isLess(a.key, b.key) : evaluator.isLess(b.key, a.key)
                if takesRight {
                    merged.append(b)
                    right.removeFirst()
                } else {
                    merged.append(a)
                    left.removeFirst()
                }
            }
            merged += left + right
        }
        keyed = merged
        width *= 2
    }
    return try evaluator.charged(keyed.map(\.item))
}

@Sendable private func unique(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let isCaseSensitive = arguments[0, "case_sensitive"]?.isTruthy ?? false
    var seen: [JinjaValue] = []
    var kept: [JinjaValue] = []
    for item in try evaluator.items(of: value) {
        let key = try evaluator.sortKey(arguments[1, "attribute"], of: item, isCaseSensitive: isCaseSensitive)
        try evaluator.spend(seen.count)
        var isNew = true
        for other in seen where try evaluator.equal(key, other) {
            isNew = false
            break
        }
        if isNew {
            seen.append(key)
            kept.append(item)
        }
    }
    return try evaluator.charged(kept)
}

@Sendable private func map(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    var mapped: [JinjaValue] = []
    let attribute = arguments.named.first { $0.0 == "attribute" }?.1
    var rest = arguments
    if attribute == nil, !rest.positional.isEmpty { rest.positional.removeFirst() }
    for item in try evaluator.items(of: value) {
        if let attribute {
            let result = try evaluator.key(attribute, of: item)
            if case .undefined = result {
                mapped.append(arguments[Int.max, "default"] ?? .undefined)
            } else {
                mapped.append(result)
            }
        } else {
            guard let filter = arguments[0, ""]?.stringValue else {
                throw evaluator.failure("map takes a filter's name or an attribute")
            }
            mapped.append(try evaluator.apply(filter: filter, to: item, rest))
        }
    }
    return try evaluator.charged(mapped)
}

@Sendable private func select(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    try evaluator.selected(value, arguments, keeping: .passing)
}

@Sendable private func reject(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    try evaluator.selected(value, arguments, keeping: .failing)
}

@Sendable private func selectattr(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    try evaluator.selectedByAttribute(value, arguments, keeping: .passing)
}

@Sendable private func rejectattr(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    try evaluator.selectedByAttribute(value, arguments, keeping: .failing)
}

@Sendable private func indent(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    let margin: String
    switch arguments[0, "width"] {
    case .string(let text): margin = text
    case .int(let width) where (0...1000).contains(width): margin = String(repeating: " ", count: width)
    case nil: margin = "    "
    default: throw evaluator.failure("indent takes a width of 0 to 1000")
    }
    let indentsFirst = arguments[1, "first"]?.isTruthy ?? false
    let indentsBlank = arguments[2, "blank"]?.isTruthy ?? false
    var result = ""
    for (index, line) in JinjaText.split(try evaluator.text(of: value), separator: "\n", limit: Int.max).enumerated() {
        if index > 0 { result += "\n" }
        if index == 0 ? indentsFirst : indentsBlank || !line.utf8.isEmpty { result += margin }
        result += line
        guard result.utf8.count <= evaluator.limits.outputBytes else {
            throw .outputTooLong(limit: evaluator.limits.outputBytes)
        }
    }
    return try evaluator.charged(result)
}

@Sendable private func tojson(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
    throws(ChatTemplateError) -> JinjaValue
{
    var layout = JSONLayout()
    if let indent = arguments[1, "indent"]?.intValue {
        guard (0...64).contains(indent) else { throw evaluator.failure("tojson takes an indent of 0 to 64") }
        layout.indent = indent
        layout.itemSeparator = ","
    }
    if case .list(let separators) = arguments[2, "separators"], separators.items.count == 2,
        let item = separators.items[0].stringValue, let key = separators.items[1].stringValue
    {
        layout.itemSeparator = item
        layout.keySeparator = key
    }
    layout.sortsKeys = arguments[3, "sort_keys"]?.isTruthy ?? false
    var text = ""
    try evaluator.appendJSON(of: value, to: &text, layout: layout)
    return try evaluator.charged(text)
}

/// Which items a selection leaves.
private enum Kept { case passing, failing }

extension JinjaEvaluator {
    /// The value of a dotted attribute path or an index; the item itself when there is none.
    fileprivate mutating func key(_ attribute: JinjaValue?, of item: JinjaValue) throws(ChatTemplateError) -> JinjaValue
    {
        guard let attribute else { return item }
        guard case .string(let path) = attribute else { return try self.item(attribute, of: item) }
        var value = item
        for name in JinjaText.split(path, separator: ".", limit: Int.max) {
            if case .undefined = value { return .undefined }
            value = try self.item(Int(name).map { .int($0) } ?? .string(name), of: value)
        }
        return value
    }

    fileprivate mutating func sortKey(
        _ attribute: JinjaValue?, of item: JinjaValue, isCaseSensitive: Bool
    ) throws(ChatTemplateError) -> JinjaValue {
        let key = try key(attribute, of: item)
        guard !isCaseSensitive, case .string(let text) = key else { return key }
        return .string(text.lowercased())
    }

    fileprivate mutating func selected(
        _ value: JinjaValue, _ arguments: CallArguments, keeping: Kept
    ) throws(ChatTemplateError) -> JinjaValue {
        var kept: [JinjaValue] = []
        for item in try items(of: value) where try passes(item, arguments.positional[...]) == (keeping == .passing) {
            kept.append(item)
        }
        return try charged(kept)
    }

    fileprivate mutating func selectedByAttribute(
        _ value: JinjaValue, _ arguments: CallArguments, keeping: Kept
    ) throws(ChatTemplateError) -> JinjaValue {
        guard let attribute = arguments[0, "attr"] else { throw failure("selectattr takes an attribute's name") }
        var kept: [JinjaValue] = []
        for item in try items(of: value) {
            let attributeValue = try key(attribute, of: item)
            if try passes(attributeValue, arguments.positional.dropFirst()) == (keeping == .passing) {
                kept.append(item)
            }
        }
        return try charged(kept)
    }

    /// `arguments` are a test's name and its arguments; without a name, truth is the test.
    private mutating func passes(_ value: JinjaValue, _ arguments: ArraySlice<JinjaValue>) throws(ChatTemplateError)
        -> Bool
    {
        try spend()
        guard let test = arguments.first else { return value.isTruthy }
        guard let name = test.stringValue else { throw failure("a test is named by a string") }
        return try holds(test: name, of: value, CallArguments(positional: Array(arguments.dropFirst())))
    }
}
