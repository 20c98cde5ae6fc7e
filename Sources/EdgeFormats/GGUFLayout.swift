// A GGUF file to be written, without the values of its tensors: its header, and where each tensor will lie. Version 3,
// little-endian; metadata and tensors in the order they were added, so equal input gives equal bytes.

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

package struct GGUFLayout: Sendable {
    /// So that no sum of sizes overflows.
    private static let dataLimitBytes = Int.max / 4
    /// Read at once from a file.
    private static let pieceBytes = 64 << 10

    /// After every tensor zeros up to a multiple of this, and before the first.
    package let alignment: Int
    /// From the start of the data section to the end of the file.
    package private(set) var dataBytes = 0
    package private(set) var tensorCount = 0
    private var keys: Set<String> = []
    private var names: Set<String> = []
    /// As they will stand in the file.
    private var keyValues: [UInt8] = []
    private var descriptions: [UInt8] = []

    /// - Parameters:
    ///   - alignment: a power of two; other than 32 only in a file that says so in `general.alignment`.
    ///   - metadataBytes: what the metadata will take, if that is much, so that it never lies twice in memory.
    package init(alignment: Int = Int(GGUFFile.defaultAlignment), metadataBytes: Int = 0) {
        self.alignment = alignment
        keyValues.reserveCapacity(metadataBytes)
    }

    package var headerBytes: Int { padded(unpaddedHeaderBytes) }
    package var fileBytes: Int { headerBytes + dataBytes }

    /// Zeros after something of `byteCount` bytes.
    package func paddingBytes(after byteCount: Int) -> Int { (alignment - byteCount % alignment) % alignment }

    package mutating func add(_ key: String, _ value: GGUFNewValue) throws(GGUFError) {
        try reserve(key)
        Self.append(string: Array(key.utf8), to: &keyValues)
        Self.append(value, to: &keyValues)
    }

    /// The text of a file as a string; none of the file's pages becomes resident.
    package mutating func add(_ key: String, textOf file: ByteRegion) throws {
        try reserve(key)
        Self.append(string: Array(key.utf8), to: &keyValues)
        Self.append(GGUFValue.Kind.string.rawValue, to: &keyValues)
        Self.append(UInt64(file.bytes.count), to: &keyValues)
        let piece = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.pieceBytes, alignment: 16)
        defer { piece.deallocate() }
        for first in stride(from: 0, to: file.bytes.count, by: piece.count) {
            let count = min(piece.count, file.bytes.count - first)
            try file.read(at: first, count: count, into: piece.baseAddress!)
            keyValues.append(contentsOf: piece.prefix(count))
        }
    }

    /// - Parameter encoded: key, type and value as they stand in another file.
    package mutating func add(_ key: String, encoded: UnsafeRawBufferPointer) throws(GGUFError) {
        try reserve(key)
        keyValues.append(contentsOf: encoded)
    }

    /// - Parameter shape: outermost dimension first, 1 to 4 positive dimensions.
    /// - Returns: the bytes that its values need.
    @discardableResult
    package mutating func addTensor(_ name: String, shape: [Int], type: GGMLType) throws(GGUFError) -> Int {
        guard !name.isEmpty else { throw .empty(.tensorName, offset: unpaddedHeaderBytes) }
        guard name.utf8.count <= GGUFFile.keyLimitBytes else {
            throw .tooMany(.tensorName, count: UInt64(name.utf8.count), limit: GGUFFile.keyLimitBytes)
        }
        guard (1...4).contains(shape.count) else {
            throw .badDimensionCount(tensor: name, count: UInt32(clamping: shape.count))
        }
        if let index = shape.firstIndex(where: { $0 <= 0 }) { throw .zeroDimension(tensor: name, index: index) }
        let row = shape[shape.count - 1]
        guard row % type.blockElements == 0 else {
            throw .partialBlock(tensor: name, rowElements: row, blockElements: type.blockElements)
        }
        guard let byteCount = Self.product(shape.dropLast() + [row / type.blockElements, type.blockBytes]),
            byteCount <= Self.dataLimitBytes - dataBytes
        else { throw .tooLarge(tensor: name, dimensions: shape.reversed().map(UInt64.init)) }
        guard names.insert(name).inserted else { throw .duplicateTensor(name) }

        Self.append(string: Array(name.utf8), to: &descriptions)
        Self.append(UInt32(shape.count), to: &descriptions)
        for extent in shape.reversed() { Self.append(UInt64(extent), to: &descriptions) }
        Self.append(type.rawValue, to: &descriptions)
        Self.append(UInt64(dataBytes), to: &descriptions)
        dataBytes = padded(dataBytes + byteCount)
        tensorCount += 1
        return byteCount
    }

    /// Hands the header and the zeros after it to `sink`, in order, piece by piece.
    package func writeHeader(to sink: (UnsafeRawBufferPointer) throws -> Void) throws {
        var start: [UInt8] = []
        Self.append(GGUFFile.magic, to: &start)
        Self.append(UInt32(3), to: &start)
        Self.append(UInt64(tensorCount), to: &start)
        Self.append(UInt64(keys.count), to: &start)
        for part in [start, keyValues, descriptions] { try part.withUnsafeBytes(sink) }
        try writePadding(after: unpaddedHeaderBytes, to: sink)
    }

    package func writePadding(after byteCount: Int, to sink: (UnsafeRawBufferPointer) throws -> Void) throws {
        let zeros = [UInt8](repeating: 0, count: paddingBytes(after: byteCount))
        if !zeros.isEmpty { try zeros.withUnsafeBytes(sink) }
    }

    /// Magic, version and two counts; metadata; tensor descriptions.
    private var unpaddedHeaderBytes: Int { 24 + keyValues.count + descriptions.count }

    private func padded(_ byteCount: Int) -> Int { byteCount + paddingBytes(after: byteCount) }

    private mutating func reserve(_ key: String) throws(GGUFError) {
        guard keys.insert(key).inserted else { throw .duplicateKey(key) }
    }

    private static func product(_ factors: some Sequence<Int>) -> Int? {
        var product = 1
        for factor in factors {
            let (next, overflow) = product.multipliedReportingOverflow(by: factor)
            guard !overflow else { return nil }
            product = next
        }
        return product
    }

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
