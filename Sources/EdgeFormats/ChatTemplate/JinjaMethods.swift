// Python's methods of objects, lists and loops, as far as they mutate nothing. Those of strings are in JinjaMethods+Strings.

/// How many arguments a method takes, and by which names.
struct MethodSignature: Sendable {
    let counts: ClosedRange<Int>
    /// nil for any.
    var names: [String]? = []
}

extension JinjaEvaluator {
    private static let objectMethods: [String: MethodSignature] = [
        "items": MethodSignature(counts: 0...0), "keys": MethodSignature(counts: 0...0),
        "values": MethodSignature(counts: 0...0), "get": MethodSignature(counts: 1...2),
        "copy": MethodSignature(counts: 0...0),
    ]

    private static let listMethods: [String: MethodSignature] = [
        "count": MethodSignature(counts: 1...1), "index": MethodSignature(counts: 1...3),
    ]

    private static let mutableListMethods = listMethods.merging(["copy": MethodSignature(counts: 0...0)]) { $1 }

    private static func signatures(of value: JinjaValue) -> [String: MethodSignature] {
        switch value {
        case .string, .markup: stringMethods
        case .object: objectMethods
        case .list(let list): list.kind == .list ? mutableListMethods : list.isView ? [:] : listMethods
        default: [:]
        }
    }

    static func methodNames(of value: JinjaValue) -> Dictionary<String, MethodSignature>.Keys {
        signatures(of: value).keys
    }

    private static let mutatingObjectMethods: Set<String> = ["clear", "pop", "popitem", "setdefault", "update"]
    private static let mutatingListMethods: Set<String> = [
        "append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove",
    ]

    /// What the sandbox hides.
    static func mutatingMethods(of value: JinjaValue) -> Set<String> {
        switch value {
        case .object: mutatingObjectMethods
        case .list(let list) where list.kind == .list: mutatingListMethods
        default: []
        }
    }

    /// nil when the value has no such method.
    mutating func method(
        _ name: String, of value: JinjaValue, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue? {
        if case .handle(let handle) = value {
            guard case .loop(let id) = handle.referent else { return nil }
            return try loopMethod(name, ofLoop: id, arguments)
        }
        guard let signature = Self.signatures(of: value)[name] else { return nil }
        let count = arguments.positional.count + arguments.named.count
        let unknown = arguments.named.first { argument in
            signature.names.map { !$0.dropFirst(arguments.positional.count).contains(argument.0) } ?? false
        }
        guard signature.counts.contains(count), unknown == nil else {
            throw failure("\(name) takes \(signature.counts) arguments" + (unknown.map { ", none \"\($0.0)\"" } ?? ""))
        }
        switch value {
        case .string(let text), .markup(let text):
            let result = try stringMethod(name, of: text, arguments)
            // Of markup, what is text again stays markup.
            return if case .string(let text) = result { value.withText(text) } else { result }
        case .object(let object): return try objectMethod(name, of: object, arguments)
        case .list(let list): return try listMethod(name, of: list, arguments)
        default: return nil
        }
    }

    private mutating func objectMethod(
        _ name: String, of object: JinjaObject, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        switch name {
        case "items": return .list(try JinjaList(try pairs(of: object), kind: .view("dict_items")))
        case "keys":
            try charge(values: object.count)
            return .list(try JinjaList((0..<object.count).map { object.key(at: $0) }, kind: .view("dict_keys")))
        case "values": return try charged(object.values, kind: .view("dict_values"))
        case "get":
            let key = arguments.positional[0]
            if let name = key.stringValue { try read(name) }
            switch key {
            case .object: throw failure("an object is no key")
            case .list(let list) where list.kind == .list: throw failure("a list is no key")
            default: return object.value(key) ?? (arguments.positional.count > 1 ? arguments.positional[1] : .none)
            }
        default: return .object(object)
        }
    }

    private mutating func listMethod(
        _ name: String, of list: JinjaList, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue {
        switch name {
        case "count":
            var count = 0
            for item in list.items where try equal(item, arguments.positional[0]) { count += 1 }
            return .int(count)
        case "index":
            guard !list.isRange || arguments.positional.count == 1 else {
                throw failure("a range's index takes a value")
            }
            func bound(_ position: Int, or standard: Int) throws(ChatTemplateError) -> Int {
                guard position < arguments.positional.count else { return standard }
                let given = try integer(arguments.positional[position], or: standard)
                return max(0, given < 0 ? given + list.items.count : given)
            }
            let start = try bound(1, or: 0)
            let stop = min(try bound(2, or: list.items.count), list.items.count)
            for index in stride(from: start, to: stop, by: 1)
            where try equal(list.items[index], arguments.positional[0]) {
                return .int(index)
            }
            throw failure("the value is not in the list")
        default: return .list(list)
        }
    }
}
