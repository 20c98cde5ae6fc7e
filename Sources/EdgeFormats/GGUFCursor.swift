// Reads the header of a GGUF file front to back. It never passes the end of the region: each read asks first.

struct GGUFCursor {
    struct TensorDescription {
        let name: String
        /// Outermost first.
        let shape: [Int]
        let type: GGMLType
        let byteCount: Int
        /// From the start of the data section; not yet checked.
        let offset: UInt64
    }

    /// Key length, one byte of key, value type, one byte of value.
    static let leastKeyValueBytes = 8 + 1 + 4 + 1
    /// Name length, one byte of name, dimension count, one dimension, type, offset.
    static let leastTensorBytes = 8 + 1 + 4 + 8 + 4 + 8

    let region: ByteRegion
    private(set) var offset = 0

    init(region: ByteRegion) { self.region = region }

    private var remaining: Int { region.bytes.count - offset }

    /// Magic and version; returns the version.
    mutating func preamble() throws(GGUFError) -> UInt32 {
        let magic: UInt32 = try take(.magic)
        guard magic == GGUFFile.magic else { throw .notGGUF(magic: magic) }
        let version: UInt32 = try take(.version)
        // A big-endian file of any version below 65536 has its low half zero here.
        guard version & 0xFFFF != 0 || version == 0 else { throw .bigEndian }
        guard version == 2 || version == 3 else { throw .unsupportedVersion(version) }
        return version
    }

    mutating func count(_ field: GGUFField, leastBytesEach: Int) throws(GGUFError) -> Int {
        let count: UInt64 = try take(field)
        let limit = remaining / leastBytesEach
        guard count <= UInt64(limit) else { throw .tooMany(field, count: count, limit: limit) }
        return Int(count)
    }

    mutating func keyValue() throws(GGUFError) -> (String, GGUFValue) {
        let key = try name(.key)
        let kind = try valueKind(.valueType, of: key)
        guard kind == .array else {
            let value = GGUFValue(kind: kind, elementKind: nil, count: 1, offset: offset, region: region)
            try skip(kind, count: 1, of: key)
            return (key, value)
        }
        let elementKind = try valueKind(.elementType, of: key)
        guard elementKind != .array else { throw .nestedArray(key: key) }
        let count: UInt64 = try take(.elementCount)
        // A string takes at least its length field.
        let limit = min(GGUFFile.arrayLimit, remaining / (elementKind.byteCount ?? 8))
        guard count <= UInt64(limit) else { throw .tooMany(.elementCount, count: count, limit: limit) }
        let value = GGUFValue(
            kind: .array, elementKind: elementKind, count: Int(count), offset: offset, region: region)
        try skip(elementKind, count: Int(count), of: key)
        return (key, value)
    }

    mutating func tensorDescription() throws(GGUFError) -> TensorDescription {
        let name = try name(.tensorName)
        let dimensionCount: UInt32 = try take(.dimensionCount)
        guard (1...4).contains(dimensionCount) else { throw .badDimensionCount(tensor: name, count: dimensionCount) }
        var dimensions: [UInt64] = []
        for index in 0..<Int(dimensionCount) {
            let dimension: UInt64 = try take(.dimension)
            guard dimension > 0 else { throw .zeroDimension(tensor: name, index: index) }
            dimensions.append(dimension)
        }
        let raw: UInt32 = try take(.tensorType)
        guard let type = GGMLType(rawValue: raw) else { throw .unknownTensorType(tensor: name, raw: raw) }
        let offset: UInt64 = try take(.tensorOffset)

        guard let shape = Self.shape(dimensions), let elements = Self.product(shape) else {
            throw .tooLarge(tensor: name, dimensions: dimensions)
        }
        guard shape[shape.count - 1] % type.blockElements == 0 else {
            throw .partialBlock(
                tensor: name, rowElements: shape[shape.count - 1], blockElements: type.blockElements)
        }
        let (byteCount, overflow) = (elements / type.blockElements).multipliedReportingOverflow(by: type.blockBytes)
        guard !overflow else { throw .tooLarge(tensor: name, dimensions: dimensions) }
        return TensorDescription(name: name, shape: shape, type: type, byteCount: byteCount, offset: offset)
    }

    private static func shape(_ dimensions: [UInt64]) -> [Int]? {
        var shape: [Int] = []
        for dimension in dimensions.reversed() {
            guard let extent = Int(exactly: dimension) else { return nil }
            shape.append(extent)
        }
        return shape
    }

    private static func product(_ shape: [Int]) -> Int? {
        var product = 1
        for extent in shape {
            let (next, overflow) = product.multipliedReportingOverflow(by: extent)
            guard !overflow else { return nil }
            product = next
        }
        return product
    }

    private mutating func valueKind(_ field: GGUFField, of key: String) throws(GGUFError) -> GGUFValue.Kind {
        let raw: UInt32 = try take(field)
        guard let kind = GGUFValue.Kind(rawValue: raw) else { throw .unknownValueType(key: key, raw: raw) }
        return kind
    }

    /// Passes `count` values of `kind`; the caller has checked `count` against the remaining bytes.
    private mutating func skip(_ kind: GGUFValue.Kind, count: Int, of key: String) throws(GGUFError) {
        guard let size = kind.byteCount else {
            for _ in 0..<count { _ = try string(.value, limitBytes: GGUFFile.stringLimitBytes) }
            return
        }
        try require(.value, bytes: UInt64(count * size))
        if kind == .bool, let bad = region[offset..<offset + count].first(where: { $0 > 1 }) {
            throw .invalidBool(key: key, byte: bad)
        }
        offset += count * size
    }

    private mutating func name(_ field: GGUFField) throws(GGUFError) -> String {
        let start = offset
        let range = try string(field, limitBytes: GGUFFile.keyLimitBytes)
        guard !range.isEmpty else { throw .empty(field, offset: start) }
        guard let name = String(validating: region[range], as: UTF8.self) else {
            throw .invalidUTF8(field, offset: start)
        }
        return name
    }

    private mutating func string(_ field: GGUFField, limitBytes: Int) throws(GGUFError) -> Range<Int> {
        let byteCount: UInt64 = try take(field)
        guard byteCount <= UInt64(limitBytes) else { throw .tooMany(field, count: byteCount, limit: limitBytes) }
        try require(field, bytes: byteCount)
        let range = offset..<offset + Int(byteCount)
        offset = range.upperBound
        return range
    }

    private mutating func take<T: FixedWidthInteger & BitwiseCopyable>(_ field: GGUFField) throws(GGUFError) -> T {
        let size = MemoryLayout<T>.size
        try require(field, bytes: UInt64(size))
        defer { offset += size }
        return region.integer(at: offset)
    }

    private func require(_ field: GGUFField, bytes needed: UInt64) throws(GGUFError) {
        guard needed <= UInt64(remaining) else {
            throw .truncated(field, offset: offset, neededBytes: needed, remainingBytes: remaining)
        }
    }
}
