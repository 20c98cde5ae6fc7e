// The values that a template computes with, and when two of them are equal. Strings are sequences of scalars compared
// scalar by scalar (Swift's == is canonical equivalence, and its Character joins "\r\n"). Lists and objects know their
// depth and refuse to nest beyond `maximumDepth`, so that recursion over a value is bounded. Objects: JinjaObject.

package indirect enum JinjaValue: Sendable {
    case undefined
    case none
    case bool(Bool)
    case int(Int)
    case double(Double)
    case string(String)
    /// What `safe` and `escape` give: a string that escapes what is added to it with `+`, as markupsafe's does.
    case markup(String)
    case list(JinjaList)
    case object(JinjaObject)
    /// Something that lives in the evaluator and cannot be handed in from outside.
    case handle(JinjaHandle)

    /// Levels of lists and objects inside each other.
    package static let maximumDepth = 64
    /// What a value in a list, an object or a variable costs in memory, at most, beside its text.
    static let bytes = 64
}

/// What a handle refers to; the numbers index the evaluator's own tables.
package struct JinjaHandle: Sendable, Equatable {
    enum Referent: Sendable, Equatable {
        case namespace(Int)
        case macro(Int)
        case loop(Int)
        case function(String)
        /// A method that was read and not called.
        case method(Int)
        /// Python's generators: what they held is gone once it was read.
        case iterator(Int)
    }
    let referent: Referent
}

package struct JinjaList: Sendable {
    /// Python's sequences that templates meet. They differ in how they print, and in what they equal.
    package enum Kind: Sendable, Equatable {
        case list
        case tuple
        /// What `groupby` gives: a tuple whose items are also called `grouper` and `list`.
        case group
        case range(start: Int, stop: Int, step: Int)
        /// `dict.keys()`, `.values()` and `.items()`: no item has an index.
        case view(String)
    }

    package let items: [JinjaValue]
    package let kind: Kind
    let depth: Int

    package init(_ items: [JinjaValue], kind: Kind = .list) throws(ChatTemplateError) {
        self.items = items
        self.kind = kind
        depth = try JinjaValue.nestedDepth(of: items)
    }

    var isView: Bool { if case .view = kind { true } else { false } }
    var isRange: Bool { if case .range = kind { true } else { false } }
}

extension JinjaValue {
    package static func list(_ items: [JinjaValue]) throws(ChatTemplateError) -> JinjaValue {
        .list(try JinjaList(items))
    }

    static func tuple(_ items: [JinjaValue]) throws(ChatTemplateError) -> JinjaValue {
        .list(try JinjaList(items, kind: .tuple))
    }

    package static func object(_ entries: [(String, JinjaValue)]) throws(ChatTemplateError) -> JinjaValue {
        .object(try JinjaObject(entries))
    }

    static func nestedDepth(of children: [JinjaValue]) throws(ChatTemplateError) -> Int {
        var deepest = 0
        for child in children { deepest = max(deepest, child.depth) }
        guard deepest < maximumDepth else { throw .valueTooDeep(limit: maximumDepth) }
        return deepest + 1
    }

    var depth: Int {
        switch self {
        case .list(let list): list.depth
        case .object(let object): object.depth
        default: 0
        }
    }

    /// Python's word for the type, for messages.
    package var typeName: String {
        switch self {
        case .undefined: "undefined"
        case .none: "none"
        case .bool: "boolean"
        case .int: "integer"
        case .double: "float"
        case .string, .markup: "string"
        case .list(let list): list.kind == .tuple ? "tuple" : "list"
        case .object: "object"
        case .handle(let handle): if case .iterator = handle.referent { "generator" } else { "function" }
        }
    }

    var isTruthy: Bool {
        switch self {
        case .undefined, .none: false
        case .bool(let value): value
        case .int(let value): value != 0
        case .double(let value): value != 0
        case .string(let value), .markup(let value): !value.utf8.isEmpty
        case .list(let list): !list.items.isEmpty
        case .object(let object): object.count > 0
        case .handle: true
        }
    }

    /// Where Python takes None for no argument.
    var unlessNone: JinjaValue? {
        if case .none = self { nil } else { self }
    }

    package var stringValue: String? {
        switch self {
        case .string(let text), .markup(let text): text
        default: nil
        }
    }

    /// Booleans are the integers 0 and 1, as in Python.
    var intValue: Int? {
        switch self {
        case .int(let value): value
        case .bool(let value): value ? 1 : 0
        default: nil
        }
    }

    var doubleValue: Double? {
        if case .double(let value) = self { value } else { intValue.map(Double.init) }
    }
}

extension JinjaValue: Equatable {
    package static func == (left: JinjaValue, right: JinjaValue) -> Bool {
        switch (left, right) {
        case (.undefined, .undefined), (.none, .none): true
        case (.list(let left), .list(let right)): hasKind(left.kind, of: right.kind) && left.items == right.items
        case (.object(let left), .object(let right)): left == right
        case (.handle(let left), .handle(let right)): left == right
        default:
            if let left = left.stringValue, let right = right.stringValue {
                JinjaText.equal(left, right)
            } else if let left = left.intValue, let right = right.intValue {
                left == right
            } else if let left = left.doubleValue, let right = right.doubleValue {
                left == right
            } else {
                false
            }
        }
    }

    /// Two ranges are equal when their numbers are, whatever they were made from.
    private static func hasKind(_ left: JinjaList.Kind, of right: JinjaList.Kind) -> Bool {
        if case .range = left, case .range = right { true } else { left == right }
    }
}
