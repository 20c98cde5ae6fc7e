// A tree to a Decodable value, strictly: the value's own CodingKeys say which keys exist, in snake case as on the
// wire. Unlike Yams' decoder it says the line and what was expected, and reads 2e-4 as a number.
import EdgeWire
import Foundation

/// Collects which keys a value asked for, so that the ones nobody asked for can be named.
final class YAMLReading {
    let fileName: String
    private var mappings: [(entries: [YAMLTree.Entry], asked: Set<String>)] = []

    init(fileName: String) { self.fileName = fileName }

    func open(_ entries: [YAMLTree.Entry]) -> Int {
        mappings.append((entries, []))
        return mappings.count - 1
    }

    func ask(_ key: String, in mapping: Int) { mappings[mapping].asked.insert(key) }

    func problem(_ line: Int?, _ message: String) -> YAMLProblem {
        YAMLProblem(fileName: fileName, line: line, message: message)
    }

    func unknownKey() -> YAMLProblem? {
        for mapping in mappings {
            for entry in mapping.entries where !mapping.asked.contains(entry.key) {
                return problem(
                    entry.line, StrictYAML.unknownKey(entry.key, known: mapping.asked.sorted()))
            }
        }
        return nil
    }
}

struct YAMLDecoder: Decoder {
    let tree: YAMLTree
    /// The key that holds this value, as written in the file.
    let name: String
    let reading: YAMLReading
    var codingPath: [any CodingKey] { [] }
    var userInfo: [CodingUserInfoKey: Any] { [:] }

    func wants(_ expected: String) -> YAMLProblem {
        reading.problem(tree.line, "\(name) wants \(expected), found \(tree.found)")
    }

    func container<Key: CodingKey>(keyedBy type: Key.Type) throws -> KeyedDecodingContainer<Key> {
        let entries: [YAMLTree.Entry]
        if tree.isNull {
            entries = []
        } else {
            guard case .mapping(let found) = tree.value else { throw wants("keys and values") }
            entries = found
        }
        return KeyedDecodingContainer(YAMLKeyed<Key>(decoder: self, entries: entries))
    }

    func unkeyedContainer() throws -> any UnkeyedDecodingContainer {
        guard case .sequence(let items) = tree.value else { throw wants("a list") }
        return YAMLUnkeyed(decoder: self, items: items)
    }

    func singleValueContainer() throws -> any SingleValueDecodingContainer { YAMLSingle(decoder: self) }

    func text() throws -> String {
        guard case .scalar(let text, _) = tree.value, !tree.isNull else { throw wants("text") }
        return text
    }

    func number() throws -> Double {
        guard case .scalar(let text, quoted: false) = tree.value, let value = Double(plainNumber(text)), value.isFinite
        else { throw wants("a number") }
        return value
    }

    func integer<Value: FixedWidthInteger>() throws -> Value {
        guard case .scalar(let text, quoted: false) = tree.value, !tree.isNull else { throw wants("a whole number") }
        if let value = Value(plainNumber(text)) { return value }
        // 1e3 and 16.0 are whole numbers too; 2⁵³ is where Double stops telling them apart.
        if let value = Double(plainNumber(text)), abs(value) <= 9_007_199_254_740_992, let whole = Value(exactly: value)
        {
            return whole
        }
        throw wants("a whole number")
    }

    func truth() throws -> Bool {
        guard case .scalar(let text, quoted: false) = tree.value else { throw wants("true or false") }
        switch text.lowercased() {
        case "true", "yes", "on": return true
        case "false", "no", "off": return false
        default: throw wants("true or false")
        }
    }

    /// Double's own parser also takes hexadecimal, "nan" and "inf", which nobody means here; 1_000 is YAML's.
    private func plainNumber(_ text: String) -> String {
        text.allSatisfy { "0123456789+-.eE_".contains($0) } ? text.filter { $0 != "_" } : "not a number"
    }

    func value<Value: Decodable>(_ type: Value.Type) throws -> Value {
        do {
            return try Value(from: self)
        } catch let error as DecodingError {
            guard let cases = type as? any CaseIterable.Type else {
                throw reading.problem(tree.line, "\(name): \(error)")
            }
            throw wants(rawTexts(of: cases).joined(separator: ", "))
        }
    }

    private func rawTexts<Cases: CaseIterable>(of type: Cases.Type) -> [String] {
        type.allCases.compactMap { ($0 as? any RawRepresentable)?.rawValue as? String }
    }
}

private struct YAMLKeyed<Key: CodingKey>: KeyedDecodingContainerProtocol {
    let decoder: YAMLDecoder
    let entries: [YAMLTree.Entry]
    let mapping: Int
    var codingPath: [any CodingKey] { [] }

    init(decoder: YAMLDecoder, entries: [YAMLTree.Entry]) {
        self.decoder = decoder
        self.entries = entries
        mapping = decoder.reading.open(entries)
    }

    /// A dictionary makes its keys from this; a value with keys of its own does not look at it.
    var allKeys: [Key] { entries.compactMap { Key(stringValue: $0.key) } }

    private func entry(_ key: Key) -> YAMLTree.Entry? {
        let name = Wire.snakeCase(key.stringValue)
        decoder.reading.ask(name, in: mapping)
        return entries.first { $0.key == name }
    }

    private func inner(_ key: Key) throws -> YAMLDecoder {
        let name = Wire.snakeCase(key.stringValue)
        guard let entry = entry(key) else {
            throw decoder.reading.problem(
                decoder.name.isEmpty ? nil : decoder.tree.line,
                decoder.name.isEmpty ? "\(name) is missing" : "\(name) is missing in \(decoder.name)")
        }
        let tree = YAMLTree(line: entry.value.isNull ? entry.line : entry.value.line, value: entry.value.value)
        return YAMLDecoder(tree: tree, name: name, reading: decoder.reading)
    }

    func contains(_ key: Key) -> Bool { entry(key) != nil }
    func decodeNil(forKey key: Key) throws -> Bool { entry(key)?.value.isNull ?? true }
    func decode(_ type: Bool.Type, forKey key: Key) throws -> Bool { try inner(key).truth() }
    func decode(_ type: String.Type, forKey key: Key) throws -> String { try inner(key).text() }
    func decode(_ type: Double.Type, forKey key: Key) throws -> Double { try inner(key).number() }
    func decode(_ type: Float.Type, forKey key: Key) throws -> Float { Float(try inner(key).number()) }
    func decode(_ type: Int.Type, forKey key: Key) throws -> Int { try inner(key).integer() }
    func decode(_ type: Int8.Type, forKey key: Key) throws -> Int8 { try inner(key).integer() }
    func decode(_ type: Int16.Type, forKey key: Key) throws -> Int16 { try inner(key).integer() }
    func decode(_ type: Int32.Type, forKey key: Key) throws -> Int32 { try inner(key).integer() }
    func decode(_ type: Int64.Type, forKey key: Key) throws -> Int64 { try inner(key).integer() }
    func decode(_ type: UInt.Type, forKey key: Key) throws -> UInt { try inner(key).integer() }
    func decode(_ type: UInt8.Type, forKey key: Key) throws -> UInt8 { try inner(key).integer() }
    func decode(_ type: UInt16.Type, forKey key: Key) throws -> UInt16 { try inner(key).integer() }
    func decode(_ type: UInt32.Type, forKey key: Key) throws -> UInt32 { try inner(key).integer() }
    func decode(_ type: UInt64.Type, forKey key: Key) throws -> UInt64 { try inner(key).integer() }
    func decode<Value: Decodable>(_ type: Value.Type, forKey key: Key) throws -> Value {
        try inner(key).value(type)
    }
    func nestedContainer<Nested: CodingKey>(
        keyedBy type: Nested.Type, forKey key: Key
    ) throws -> KeyedDecodingContainer<Nested> { try inner(key).container(keyedBy: type) }
    func nestedUnkeyedContainer(forKey key: Key) throws -> any UnkeyedDecodingContainer {
        try inner(key).unkeyedContainer()
    }
    func superDecoder() throws -> any Decoder { decoder }
    func superDecoder(forKey key: Key) throws -> any Decoder { try inner(key) }
}

private struct YAMLUnkeyed: UnkeyedDecodingContainer {
    let decoder: YAMLDecoder
    let items: [YAMLTree]
    var currentIndex = 0
    var codingPath: [any CodingKey] { [] }
    var count: Int? { items.count }
    var isAtEnd: Bool { currentIndex >= items.count }

    init(decoder: YAMLDecoder, items: [YAMLTree]) {
        self.decoder = decoder
        self.items = items
    }

    private mutating func next() throws -> YAMLDecoder {
        guard !isAtEnd else { throw decoder.wants("\(items.count + 1) values or more") }
        defer { currentIndex += 1 }
        return YAMLDecoder(
            tree: items[currentIndex], name: "\(decoder.name)[\(currentIndex)]", reading: decoder.reading)
    }

    mutating func decodeNil() throws -> Bool {
        guard !isAtEnd, items[currentIndex].isNull else { return false }
        currentIndex += 1
        return true
    }
    mutating func decode<Value: Decodable>(_ type: Value.Type) throws -> Value { try next().value(type) }
    mutating func nestedContainer<Nested: CodingKey>(
        keyedBy type: Nested.Type
    ) throws -> KeyedDecodingContainer<Nested> { try next().container(keyedBy: type) }
    mutating func nestedUnkeyedContainer() throws -> any UnkeyedDecodingContainer { try next().unkeyedContainer() }
    mutating func superDecoder() throws -> any Decoder { try next() }
}

private struct YAMLSingle: SingleValueDecodingContainer {
    let decoder: YAMLDecoder
    var codingPath: [any CodingKey] { [] }
    func decodeNil() -> Bool { decoder.tree.isNull }
    func decode(_ type: Bool.Type) throws -> Bool { try decoder.truth() }
    func decode(_ type: String.Type) throws -> String { try decoder.text() }
    func decode(_ type: Double.Type) throws -> Double { try decoder.number() }
    func decode(_ type: Float.Type) throws -> Float { Float(try decoder.number()) }
    func decode(_ type: Int.Type) throws -> Int { try decoder.integer() }
    func decode(_ type: Int8.Type) throws -> Int8 { try decoder.integer() }
    func decode(_ type: Int16.Type) throws -> Int16 { try decoder.integer() }
    func decode(_ type: Int32.Type) throws -> Int32 { try decoder.integer() }
    func decode(_ type: Int64.Type) throws -> Int64 { try decoder.integer() }
    func decode(_ type: UInt.Type) throws -> UInt { try decoder.integer() }
    func decode(_ type: UInt8.Type) throws -> UInt8 { try decoder.integer() }
    func decode(_ type: UInt16.Type) throws -> UInt16 { try decoder.integer() }
    func decode(_ type: UInt32.Type) throws -> UInt32 { try decoder.integer() }
    func decode(_ type: UInt64.Type) throws -> UInt64 { try decoder.integer() }
    func decode<Value: Decodable>(_ type: Value.Type) throws -> Value { try decoder.value(type) }
}
