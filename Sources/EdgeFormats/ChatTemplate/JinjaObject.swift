// Python's dict: keys in insertion order. A key is a string, or what a template's own literal may have instead: a number,
// a boolean or none. JSON has only strings.

package struct JinjaObject: Sendable {
    /// As `str` prints them; `otherKeys` has those that are not strings.
    package private(set) var keys: [String] = []
    package private(set) var values: [JinjaValue] = []
    private(set) var depth = 1
    /// By position.
    private var otherKeys: [Int: JinjaValue] = [:]
    /// Positions by `identity`, once there are enough keys to be worth it.
    private var positions: [[UInt8]: Int] = [:]
    private static let indexedFrom = 12

    /// Which turn of the conversation this is, from 0: a loop over turns says with it what a turn was rendered to. It is
    /// no part of the value.
    var turn: Int?

    package init() {}

    /// Later values replace earlier ones of the same key.
    package init(_ entries: [(String, JinjaValue)]) throws(ChatTemplateError) {
        for (key, value) in entries { try set(key, value) }
    }

    package var count: Int { keys.count }

    package func value(_ key: String) -> JinjaValue? {
        position(of: key).map { values[$0] }
    }

    /// nil also for a key that no object has: a list, an object.
    func value(_ key: JinjaValue) -> JinjaValue? {
        if let text = key.stringValue { return value(text) }
        return Self.identity(key).flatMap { position(ofOther: $0) }.map { values[$0] }
    }

    func key(at position: Int) -> JinjaValue { otherKeys[position] ?? .string(keys[position]) }

    package mutating func set(_ key: String, _ value: JinjaValue) throws(ChatTemplateError) {
        try set(key, value, position: position(of: key), other: nil)
    }

    /// False when a key cannot be of that kind.
    mutating func set(_ key: JinjaValue, text: String, _ value: JinjaValue) throws(ChatTemplateError) -> Bool {
        if let text = key.stringValue {
            try set(text, value)
            return true
        }
        guard let identity = Self.identity(key) else { return false }
        try set(text, value, position: position(ofOther: identity), other: key)
        return true
    }

    private mutating func set(
        _ key: String, _ value: JinjaValue, position: Int?, other: JinjaValue?
    ) throws(ChatTemplateError) {
        depth = max(depth, try JinjaValue.nestedDepth(of: [value]))
        if let position {
            values[position] = value
            return
        }
        keys.append(key)
        values.append(value)
        if let other { otherKeys[keys.count - 1] = other }
        if keys.count == Self.indexedFrom {
            for position in keys.indices { positions[identity(at: position)] = position }
        } else if keys.count > Self.indexedFrom {
            positions[identity(at: keys.count - 1)] = keys.count - 1
        }
    }

    private func identity(at position: Int) -> [UInt8] {
        otherKeys[position].flatMap(Self.identity) ?? Array(keys[position].utf8)
    }

    /// Starts with a byte that no string has. 1, 1.0 and true are one key, as in Python.
    private static func identity(_ key: JinjaValue) -> [UInt8]? {
        switch key {
        case .none: return [0xFF]
        case .bool, .int, .double:
            if let number = key.intValue { return [0xFF] + Array(String(number).utf8) }
            let number = key.doubleValue ?? .nan
            return [0xFF] + Array((Int(exactly: number).map { String($0) } ?? number.description).utf8)
        default: return nil
        }
    }

    private func position(of key: String) -> Int? {
        guard keys.count < Self.indexedFrom else { return positions[Array(key.utf8)] }
        return keys.indices.first { JinjaText.equal(keys[$0], key) && (otherKeys.isEmpty || otherKeys[$0] == nil) }
    }

    private func position(ofOther identity: [UInt8]) -> Int? {
        guard keys.count < Self.indexedFrom else { return positions[identity] }
        return otherKeys.keys.first { self.identity(at: $0) == identity }
    }
}

extension JinjaObject: Equatable {
    package static func == (left: JinjaObject, right: JinjaObject) -> Bool {
        left.count == right.count && left.keys.indices.allSatisfy { left.values[$0] == right.value(left.key(at: $0)) }
    }
}
