// The values that a template computes with, and how Python would compare and print them. Strings are sequences of
// scalars compared scalar by scalar (Swift's == is canonical equivalence, and its Character joins "\r\n"). Lists and
// objects know their depth and refuse to nest beyond `maximumDepth`, so that recursion over a value is bounded.

package indirect enum JinjaValue: Sendable {
    case undefined
    case none
    case bool(Bool)
    case int(Int)
    case double(Double)
    case string(String)
    case list(JinjaList)
    case object(JinjaObject)
    /// Something that lives in the evaluator and cannot be handed in from outside.
    case handle(JinjaHandle)

    /// Levels of lists and objects inside each other.
    package static let maximumDepth = 64
}

/// What a handle refers to; the numbers index the evaluator's own tables.
package struct JinjaHandle: Sendable, Equatable {
    enum Referent: Sendable, Equatable {
        case namespace(Int)
        case macro(Int)
        case loop(Int)
        case function(String)
    }
    let referent: Referent
}

package struct JinjaList: Sendable {
    package let items: [JinjaValue]
    let depth: Int

    package init(_ items: [JinjaValue]) throws(ChatTemplateError) {
        self.items = items
        depth = try nestedDepth(of: items)
    }
}

/// Keys in insertion order, as in Python.
package struct JinjaObject: Sendable {
    package private(set) var keys: [String] = []
    package private(set) var values: [JinjaValue] = []
    private(set) var depth = 1
    /// Positions by the key's UTF-8, once there are enough keys to be worth it.
    private var positions: [[UInt8]: Int] = [:]
    private static let indexedFrom = 12

    package init() {}

    /// Later values replace earlier ones of the same key.
    package init(_ entries: [(String, JinjaValue)]) throws(ChatTemplateError) {
        for (key, value) in entries { try set(key, value) }
    }

    package var count: Int { keys.count }

    package func value(_ key: String) -> JinjaValue? {
        position(of: key).map { values[$0] }
    }

    package mutating func set(_ key: String, _ value: JinjaValue) throws(ChatTemplateError) {
        depth = max(depth, try nestedDepth(of: [value]))
        if let position = position(of: key) {
            values[position] = value
            return
        }
        keys.append(key)
        values.append(value)
        if keys.count == Self.indexedFrom {
            for (position, key) in keys.enumerated() { positions[Array(key.utf8)] = position }
        } else if keys.count > Self.indexedFrom {
            positions[Array(key.utf8)] = keys.count - 1
        }
    }

    private func position(of key: String) -> Int? {
        guard keys.count < Self.indexedFrom else { return positions[Array(key.utf8)] }
        return keys.firstIndex { JinjaText.equal($0, key) }
    }
}

private func nestedDepth(of children: [JinjaValue]) throws(ChatTemplateError) -> Int {
    var deepest = 0
    for child in children { deepest = max(deepest, child.depth) }
    guard deepest < JinjaValue.maximumDepth else { throw .valueTooDeep(limit: JinjaValue.maximumDepth) }
    return deepest + 1
}

extension JinjaValue {
    package static func list(_ items: [JinjaValue]) throws(ChatTemplateError) -> JinjaValue {
        .list(try JinjaList(items))
    }

    package static func object(_ entries: [(String, JinjaValue)]) throws(ChatTemplateError) -> JinjaValue {
        .object(try JinjaObject(entries))
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
        case .string: "string"
        case .list: "list"
        case .object: "object"
        case .handle: "function"
        }
    }

    var isTruthy: Bool {
        switch self {
        case .undefined, .none: false
        case .bool(let value): value
        case .int(let value): value != 0
        case .double(let value): value != 0
        case .string(let value): !value.utf8.isEmpty
        case .list(let list): !list.items.isEmpty
        case .object(let object): object.count > 0
        case .handle: true
        }
    }

    package var stringValue: String? {
        if case .string(let value) = self { value } else { nil }
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
        case (.string(let left), .string(let right)): JinjaText.equal(left, right)
        case (.list(let left), .list(let right)): left.items == right.items
        case (.object(let left), .object(let right)):
            left.count == right.count && left.keys.allSatisfy { left.value($0) == right.value($0) }
        case (.handle(let left), .handle(let right)): left == right
        default:
            if let left = left.intValue, let right = right.intValue {
                left == right
            } else if let left = left.doubleValue, let right = right.doubleValue {
                left == right
            } else {
                false
            }
        }
    }
}
