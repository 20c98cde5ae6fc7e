// Writes GGUF version 3, little-endian, alignment 32: metadata and tensors in the order they were added, so equal input
// gives equal bytes.

package enum GGUFNewValue: Equatable, Sendable {
    case uint32(UInt32)
    case uint64(UInt64)
    case float32(Float)
    case bool(Bool)
    case string(String)
    case integers([Int32])
    case floats([Float])
    /// Bytes, because tokens need not be UTF-8.
    case strings([[UInt8]])
}

package struct GGUFWriter: Sendable {
    private struct Entry {
        let key: String
        let value: GGUFNewValue
    }
    private struct Tensor {
        let name: String
        let shape: [Int]
        let type: GGMLType
        let body: TensorBody
    }

    private static let alignment = 32
    private var entries: [Entry] = []
    private var tensors: [Tensor] = []

    package init() {}

    package mutating func add(_ key: String, _ value: GGUFNewValue) throws(GGUFError) {
        guard !entries.contains(where: { $0.key == key }) else { throw .duplicateKey(key) }
        entries.append(Entry(key: key, value: value))
    }

    /// - Parameter shape: outermost dimension first, 1 to 4 positive dimensions.
    package mutating func addTensor(
        _ name: String, shape: [Int], type: GGMLType, body: TensorBody
    ) throws(GGUFError) {
        guard !tensors.contains(where: { $0.name == name }) else { throw .duplicateTensor(name) }
        guard (1...4).contains(shape.count) else {
            throw .badDimensionCount(tensor: name, count: UInt32(shape.count))
        }
        if let index = shape.firstIndex(where: { $0 <= 0 }) { throw .zeroDimension(tensor: name, index: index) }
        let row = shape[shape.count - 1]
        guard row % type.blockElements == 0 else {
            throw .partialBlock(tensor: name, rowElements: row, blockElements: type.blockElements)
        }
        let needed = shape.reduce(1, *) / type.blockElements * type.blockBytes
        guard body.byteCount == needed else {
            throw .wrongByteCount(tensor: name, needed: needed, given: body.byteCount)
        }
        tensors.append(Tensor(name: name, shape: shape, type: type, body: body))
    }

    /// Hands the file to `sink` in order, piece by piece; tensor bodies are not copied.
    package func write(to sink: (UnsafeRawBufferPointer) throws -> Void) throws {
        let header = header()
        try header.withUnsafeBytes(sink)
        try zeros(Self.padding(after: header.count)).withUnsafeBytes(sink)
        for tensor in tensors {
            try tensor.body.write(to: sink)
            try zeros(Self.padding(after: tensor.body.byteCount)).withUnsafeBytes(sink)
        }
    }

    package func encoded() throws -> [UInt8] {
        var bytes: [UInt8] = []
        try write { bytes.append(contentsOf: $0) }
        return bytes
    }

    private func header() -> [UInt8] {
        var bytes: [UInt8] = []
        Self.append(GGUFFile.magic, to: &bytes)
        Self.append(UInt32(3), to: &bytes)
        Self.append(UInt64(tensors.count), to: &bytes)
        Self.append(UInt64(entries.count), to: &bytes)
        for entry in entries {
            Self.append(string: Array(entry.key.utf8), to: &bytes)
            Self.append(entry.value, to: &bytes)
        }
        var offset = 0
        for tensor in tensors {
            Self.append(string: Array(tensor.name.utf8), to: &bytes)
            Self.append(UInt32(tensor.shape.count), to: &bytes)
            for extent in tensor.shape.reversed() { Self.append(UInt64(extent), to: &bytes) }
            Self.append(tensor.type.rawValue, to: &bytes)
            Self.append(UInt64(offset), to: &bytes)
            offset += tensor.body.byteCount
            offset += Self.padding(after: offset)
        }
        return bytes
    }

    private static func padding(after byteCount: Int) -> Int { (alignment - byteCount % alignment) % alignment }

    private func zeros(_ count: Int) -> [UInt8] { [UInt8](repeating: 0, count: count) }

    private static func append(_ value: GGUFNewValue, to bytes: inout [UInt8]) {
        func begin(_ kind: GGUFValue.Kind) { append(kind.rawValue, to: &bytes) }
        func beginArray(of kind: GGUFValue.Kind, count: Int) {
            begin(.array)
            begin(kind)
            append(UInt64(count), to: &bytes)
        }
        switch value {
        case .uint32(let integer):
            begin(.uint32)
            append(integer, to: &bytes)
        case .uint64(let integer):
            begin(.uint64)
            append(integer, to: &bytes)
        case .float32(let float):
            begin(.float32)
            append(float.bitPattern, to: &bytes)
        case .bool(let bool):
            begin(.bool)
            append(bool ? 1 : 0 as UInt8, to: &bytes)
        case .string(let string):
            begin(.string)
            append(string: Array(string.utf8), to: &bytes)
        case .integers(let integers):
            beginArray(of: .int32, count: integers.count)
            for integer in integers { append(integer, to: &bytes) }
        case .floats(let floats):
            beginArray(of: .float32, count: floats.count)
            for float in floats { append(float.bitPattern, to: &bytes) }
        case .strings(let strings):
            beginArray(of: .string, count: strings.count)
            for string in strings { append(string: string, to: &bytes) }
        }
    }

    private static func append(string: [UInt8], to bytes: inout [UInt8]) {
        append(UInt64(string.count), to: &bytes)
        bytes.append(contentsOf: string)
    }

    private static func append<T: FixedWidthInteger>(_ integer: T, to bytes: inout [UInt8]) {
        Swift.withUnsafeBytes(of: integer.littleEndian) { bytes.append(contentsOf: $0) }
    }
}
