// Filters of lists, objects and generators. Those that are generators in Jinja are generators here (`JinjaEvaluator.generator`).

enum SequenceFilters {
    @Sendable static func length(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        switch value {
        case .undefined: return .int(0)
        case .string(let text), .markup(let text):
            try evaluator.read(text)
            return .int(text.unicodeScalars.count)
        case .list(let list): return .int(list.items.count)
        case .object(let object): return .int(object.count)
        default: throw evaluator.failure("\(value.typeName) has no length")
        }
    }

    @Sendable static func join(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        var items = try evaluator.items(of: value)
        if let attribute = arguments[1, "attribute"] {
            try evaluator.charge(values: items.count)
            for index in items.indices { items[index] = try evaluator.key(attribute, of: items[index]) }
        }
        let separator = try evaluator.text(of: arguments[0, "d"] ?? .string(""))
        var result = ""
        for (index, item) in items.enumerated() {
            let text = try evaluator.text(of: item)
            try evaluator.charge(bytes: text.utf8.count + separator.utf8.count)
            if index > 0 { result += separator }
            result += text
            guard result.utf8.count <= evaluator.limits.outputBytes else {
                throw .outputTooLong(limit: evaluator.limits.outputBytes)
            }
        }
        return .string(result)
    }

    @Sendable static func first(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        switch value {
        case .handle(let handle):
            guard case .iterator(let number) = handle.referent else { break }
            return try evaluator.next(ofIterator: number) ?? .undefined
        case .string(let text), .markup(let text):
            return text.unicodeScalars.first.map { .string(String($0)) } ?? .undefined
        default: break
        }
        return try evaluator.items(of: value).first ?? .undefined
    }

    @Sendable static func last(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        switch value {
        case .handle: throw evaluator.failure("\(value.typeName) has no last item")
        case .string(let text), .markup(let text):
            return text.unicodeScalars.last.map { .string(String($0)) } ?? .undefined
        default: return try evaluator.items(of: value).last ?? .undefined
        }
    }

    @Sendable static func list(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        try evaluator.charged(try evaluator.items(of: value))
    }

    @Sendable static func reverse(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        if let text = value.stringValue {
            return try evaluator.charged(String(String.UnicodeScalarView(text.unicodeScalars.reversed())))
        }
        let items = try evaluator.items(of: value)
        try evaluator.charge(values: items.count)
        if case .handle = value { return try .list(items.reversed()) }
        return try evaluator.generator(items.reversed())
    }

    @Sendable static func pairs(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        switch value {
        case .undefined: return try evaluator.generator([])
        case .object(let object): return try evaluator.generator(try evaluator.pairs(of: object))
        default: return try evaluator.generator([], failure: evaluator.failure("\(value.typeName) has no items"))
        }
    }

    @Sendable static func dictsort(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        guard case .object(let object) = value else { throw evaluator.failure("\(value.typeName) has no items") }
        let column: Int
        switch (arguments[1, "by"] ?? .string("key")).stringValue {
        case "key": column = 0
        case "value": column = 1
        default: throw evaluator.failure("dictsort sorts by key or by value")
        }
        var settings = CallArguments()
        settings.named = [
            ("attribute", .int(column)), ("case_sensitive", arguments[0, "case_sensitive"] ?? .bool(false)),
            ("reverse", arguments[2, "reverse"] ?? .bool(false)),
        ]
        return try sort(&evaluator, try .list(try evaluator.pairs(of: object)), settings)
    }

    @Sendable static func sum(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        var total = arguments[1, "start"] ?? .int(0)
        if total.stringValue != nil { throw evaluator.failure("strings have no sum") }
        for item in try evaluator.items(of: value) {
            total = try evaluator.arithmetic(.add, total, try evaluator.key(arguments[0, "attribute"], of: item))
        }
        return total
    }

    @Sendable static func minimum(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        try evaluator.extreme(of: value, arguments) { (evaluator, item, best) throws(ChatTemplateError) in
            try evaluator.isLess(item, best)
        }
    }

    @Sendable static func maximum(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        try evaluator.extreme(of: value, arguments) { (evaluator, item, best) throws(ChatTemplateError) in
            try evaluator.isLess(best, item)
        }
    }

    /// Stable; strings without case unless `case_sensitive`.
    @Sendable static func sort(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        let isReversed = arguments[0, "reverse"]?.isTruthy ?? false
        // "a,b" sorts by a, then by b. A key is a list even of one: lists of equal items need no order of the items.
        var attributes = [arguments[2, "attribute"]]
        if let path = attributes[0]?.stringValue {
            try evaluator.charge(values: 1 + JinjaText.count(of: [0x2C], in: Array(path.utf8), limit: Int.max))
            attributes = JinjaText.split(path, separator: ",", limit: Int.max).map { .string($0) }
        }
        let items = try evaluator.items(of: value)
        var keyed: [KeyedItem] = []
        try evaluator.charge(values: 3 * items.count)
        for item in items {
            var keys: [JinjaValue] = []
            for attribute in attributes {
                keys += try evaluator.keyed([item], by: attribute, isCaseSensitive: arguments[1, "case_sensitive"]).map(\.key)
            }
            keyed.append((try .list(keys), item))
        }
        let sorted = try evaluator.sorted(keyed) { (evaluator, left, right) throws(ChatTemplateError) in
            try isReversed ? evaluator.isLess(right.key, left.key) : evaluator.isLess(left.key, right.key)
        }
        return try evaluator.charged(sorted.map(\.item))
    }

    @Sendable static func groupby(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        let keyed = try evaluator.keyed(
            try evaluator.items(of: value), by: arguments[0, "attribute"], standard: arguments[1, "default"],
            isCaseSensitive: arguments[2, "case_sensitive"])
        let sorted = try evaluator.sorted(keyed) { (evaluator, left, right) throws(ChatTemplateError) in
            try evaluator.isLess(left.key, right.key)
        }
        var groups: [JinjaValue] = []
        var group: [JinjaValue] = []
        try evaluator.charge(values: 3 * sorted.count)
        for (index, entry) in sorted.enumerated() {
            group.append(entry.item)
            if index + 1 < sorted.count, try evaluator.equal(entry.key, sorted[index + 1].key) { continue }
            let key = try evaluator.key(arguments[0, "attribute"], of: group[0], standard: arguments[1, "default"])
            groups.append(.list(try JinjaList([key, try .list(group)], kind: .group)))
            group = []
        }
        return try .list(groups)
    }

    @Sendable static func unique(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        let isCaseSensitive = arguments[0, "case_sensitive"]
        var seen: [JinjaValue] = []
        return try evaluator.generator(over: value) { (evaluator, item) throws(ChatTemplateError) in
            let key = try evaluator.keyed([item], by: arguments[1, "attribute"], isCaseSensitive: isCaseSensitive)[0].key
            if case .object = key { throw evaluator.failure("an object has no hash") }
            if case .list(let list) = key, list.kind == .list { throw evaluator.failure("a list has no hash") }
            for other in seen where try evaluator.equal(key, other) { return nil }
            seen.append(key)
            return item
        }
    }

    @Sendable static func batch(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        let count = try evaluator.integer(arguments[0, "linecount"], or: 1)
        let filling = arguments[1, "fill_with"]?.unlessNone
        guard let items = try evaluator.itemsIfIterable(value) else {
            return try evaluator.generator([], failure: evaluator.failure("\(value.typeName) has no batches"))
        }
        guard count > 0 else { throw evaluator.failure("batches of \(count)") }
        try evaluator.charge(values: 3 * items.count)
        var batches: [JinjaValue] = []
        for start in stride(from: 0, to: items.count, by: min(count, max(1, items.count))) {
            var batch = Array(items[start..<min(start + min(count, items.count), items.count)])
            if let filling, batch.count < count {
                try evaluator.charge(values: count - batch.count)
                batch += Array(repeating: filling, count: count - batch.count)
            }
            batches.append(try .list(batch))
        }
        return try evaluator.generator(batches)
    }

    @Sendable static func slice(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        let count = try evaluator.integer(arguments[0, "slices"], or: 1)
        let filling = arguments[1, "fill_with"]?.unlessNone
        guard let items = try evaluator.itemsIfIterable(value) else {
            return try evaluator.generator([], failure: evaluator.failure("\(value.typeName) has no slices"))
        }
        guard count > 0 else {
            return try evaluator.generator([], failure: count == 0 ? evaluator.failure("0 slices") : nil)
        }
        try evaluator.charge(values: items.count)
        try evaluator.charge(values: count)
        let (size, extra) = items.count.quotientAndRemainder(dividingBy: count)
        var slices: [JinjaValue] = []
        var start = 0
        for number in 0..<count {
            let end = start + size + (number < extra ? 1 : 0)
            var slice = Array(items[start..<end])
            if let filling, number >= extra { slice.append(filling) }
            slices.append(try .list(slice))
            start = end
        }
        return try evaluator.generator(slices)
    }

    @Sendable static func map(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        let attribute = arguments.positional.isEmpty ? arguments.named.first { $0.0 == "attribute" }?.1 : nil
        let standard = arguments.named.first { $0.0 == "default" }?.1
        var rest = arguments
        if !rest.positional.isEmpty { rest.positional.removeFirst() }
        // Nothing is asked of none.
        guard value.isTruthy else { return try evaluator.generator([]) }
        return try evaluator.generator(over: value) { (evaluator, item) throws(ChatTemplateError) in
            if let attribute {
                guard arguments.named.allSatisfy({ $0.0 == "attribute" || $0.0 == "default" }) else {
                    throw evaluator.failure("map by attribute takes an attribute and a default")
                }
                return try evaluator.key(attribute, of: item, standard: standard)
            }
            guard let filter = arguments.positional.first?.stringValue else {
                throw evaluator.failure("map takes a filter's name or an attribute")
            }
            return try evaluator.apply(filter: filter, to: item, rest)
        }
    }

    @Sendable static func select(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        try evaluator.selected(value, arguments, by: nil, keeping: .passing)
    }

    @Sendable static func reject(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        try evaluator.selected(value, arguments, by: nil, keeping: .failing)
    }

    @Sendable static func selectattr(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        try evaluator.selectedByAttribute(value, arguments, keeping: .passing)
    }

    @Sendable static func rejectattr(_ evaluator: inout JinjaEvaluator, _ value: JinjaValue, _ arguments: CallArguments)
        throws(ChatTemplateError) -> JinjaValue
    {
        try evaluator.selectedByAttribute(value, arguments, keeping: .failing)
    }
}

/// Which items a selection leaves.
enum SelectionOutcome { case passing, failing }

typealias KeyedItem = (key: JinjaValue, item: JinjaValue)

extension JinjaEvaluator {
    /// nil where iterating would fail.
    fileprivate mutating func itemsIfIterable(_ value: JinjaValue) throws(ChatTemplateError) -> [JinjaValue]? {
        do throws(ChatTemplateError) {
            return try items(of: value)
        } catch {
            guard case .evaluation = error else { throw error }
            return nil
        }
    }

    mutating func pairs(of object: JinjaObject) throws(ChatTemplateError) -> [JinjaValue] {
        try charge(values: 3 * object.count)
        var pairs: [JinjaValue] = []
        for index in 0..<object.count { pairs.append(try .tuple([object.key(at: index), object.values[index]])) }
        return pairs
    }

    /// The value of a dotted attribute path or an index; the item itself when there is none.
    fileprivate mutating func key(
        _ attribute: JinjaValue?, of item: JinjaValue, standard: JinjaValue? = nil
    ) throws(ChatTemplateError) -> JinjaValue {
        guard let attribute else { return item }
        if case .none = attribute { return item }
        func filled(_ value: JinjaValue) -> JinjaValue {
            guard case .undefined = value else { return value }
            return standard?.unlessNone ?? value
        }
        guard let path = attribute.stringValue else { return filled(try self.item(attribute, of: item)) }
        try charge(bytes: path.utf8.count)
        var value = item
        for name in JinjaText.split(path, separator: ".", limit: Int.max) {
            try spend()
            value = filled(try self.item(Int(name).map { .int($0) } ?? .string(name), of: value))
        }
        return value
    }

    fileprivate mutating func keyed(
        _ items: [JinjaValue], by attribute: JinjaValue?, standard: JinjaValue? = nil, isCaseSensitive: JinjaValue?
    ) throws(ChatTemplateError) -> [KeyedItem] {
        try charge(values: 2 * items.count)
        var keyed: [KeyedItem] = []
        for item in items {
            let key = try key(attribute, of: item, standard: standard)
            if let text = key.stringValue, !(isCaseSensitive?.isTruthy ?? false) {
                try charge(bytes: text.utf8.count)
                keyed.append((.string(JinjaText.lowered(text)), item))
            } else {
                keyed.append((key, item))
            }
        }
        return keyed
    }

    /// A merge sort.
    mutating func sorted<Item>(
        _ items: [Item], by isLess: (inout JinjaEvaluator, Item, Item) throws(ChatTemplateError) -> Bool
    ) throws(ChatTemplateError) -> [Item] {
        var items = items
        var width = 1
        while width < items.count {
            var merged: [Item] = []
            merged.reserveCapacity(items.count)
            for start in stride(from: 0, to: items.count, by: 2 * width) {
                let middle = min(start + width, items.count)
                let end = min(start + 2 * width, items.count)
                var left = start
                var right = middle
                while left < middle || right < end {
                    try spend()
                    var takesRight = left == middle
                    if !takesRight, right < end { takesRight = try isLess(&self, items[right], items[left]) }
                    merged.append(items[takesRight ? right : left])
                    if takesRight { right += 1 } else { left += 1 }
                }
            }
            items = merged
            width *= 2
        }
        return items
    }

    fileprivate mutating func extreme(
        of value: JinjaValue, _ arguments: CallArguments,
        _ isBetter: (inout JinjaEvaluator, JinjaValue, JinjaValue) throws(ChatTemplateError) -> Bool
    ) throws(ChatTemplateError) -> JinjaValue {
        let keyed = try keyed(
            try items(of: value), by: arguments[1, "attribute"], isCaseSensitive: arguments[0, "case_sensitive"])
        guard var best = keyed.first else { return .undefined }
        for entry in keyed.dropFirst() where try isBetter(&self, entry.key, best.key) { best = entry }
        return best.item
    }

    /// `arguments` are a test's name and its arguments; without a name, truth is the test.
    fileprivate mutating func selected(
        _ value: JinjaValue, _ arguments: CallArguments, by attribute: JinjaValue?, keeping: SelectionOutcome
    ) throws(ChatTemplateError) -> JinjaValue {
        guard value.isTruthy else { return try generator([]) }
        return try generator(over: value) { (evaluator, item) throws(ChatTemplateError) in
            let judged = try evaluator.key(attribute, of: item)
            let passes: Bool
            if let test = arguments.positional.first {
                guard let name = test.stringValue else { throw evaluator.failure("a test is named by a string") }
                var rest = arguments
                rest.positional.removeFirst()
                passes = try evaluator.holds(test: name, of: judged, rest)
            } else {
                passes = judged.isTruthy
            }
            return passes == (keeping == .passing) ? item : nil
        }
    }

    fileprivate mutating func selectedByAttribute(
        _ value: JinjaValue, _ arguments: CallArguments, keeping: SelectionOutcome
    ) throws(ChatTemplateError) -> JinjaValue {
        guard let attribute = arguments.positional.first else {
            return try generator(
                [], failure: value.isTruthy ? failure("selectattr takes an attribute's name") : nil)
        }
        var rest = arguments
        rest.positional.removeFirst()
        return try selected(value, rest, by: attribute, keeping: keeping)
    }
}
