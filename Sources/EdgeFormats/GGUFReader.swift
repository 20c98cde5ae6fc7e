// The header of a GGUF file, version 2 or 3, little-endian (ggml docs/gguf.md). Every length, count, offset and type
// is checked against the bytes that remain before anything is allocated or read; a bad file throws and never traps.
// Weights are not touched: a tensor is a range of the region.

package struct GGUFTensor: Sendable {
    package let name: String
    /// Outermost dimension first: ggml's `ne`, reversed. 1 to 4 dimensions, each positive.
    package let shape: [Int]
    package let type: GGMLType
    package let byteCount: Int
    /// From the start of the file.
    package let fileOffset: Int
    package let region: ByteRegion

    package var elementCount: Int { shape.reduce(1, *) }

    /// Valid while the tensor or its file is held; `withBytes` holds it.
    package var bytes: UnsafeRawBufferPointer { region[fileOffset..<fileOffset + byteCount] }

    package func withBytes<R, E: Error>(_ body: (UnsafeRawBufferPointer) throws(E) -> R) throws(E) -> R {
        defer { withExtendedLifetime(region) {} }
        return try body(bytes)
    }
}

package final class GGUFFile: Sendable {
    /// A Hugging Face tokenizer.json is one string: Gemma 3's has 33 MB, the largest known.
    package static let stringLimitBytes = 64 << 20
    /// gguf.md: a key has at most 2^16 - 1 bytes.
    package static let keyLimitBytes = (1 << 16) - 1
    package static let arrayLimit = 64 << 20
    static let magic: UInt32 = 0x4655_4747
    static let defaultAlignment: UInt32 = 32

    package let version: UInt32
    package let alignment: Int
    package let metadata: [String: GGUFValue]
    /// In the order of the file.
    package let metadataKeys: [String]
    /// In the order of the file.
    package let tensors: [GGUFTensor]
    package let fileBytes: Int
    /// "sha256:" and the digest of the header: metadata and tensor descriptions, without the weights.
    package var fingerprint: String { "sha256:" + SHA256.hex(SHA256.hash(header[0..<headerBytes])) }

    private let tensorIndex: [String: Int]
    /// In the order of `metadataKeys`: key, type and value.
    private let keyValueRanges: [Range<Int>]
    private let headerBytes: Int
    private let header: ByteRegion
    /// Where the tensors are.
    package let region: ByteRegion

    /// - Throws: `FileError` or `GGUFError`.
    package static func open(path: String) throws -> GGUFFile {
        try GGUFFile(ByteRegion.map(path: path))
    }

    /// The pages go back to the kernel until they are next used.
    package func releaseResident() { region.release(0..<region.bytes.count) }

    /// The header is read through the mapping and rarely needed again; its pages need not stay.
    package func releaseHeader() { header.release(0..<headerBytes) }

    package init(_ region: ByteRegion) throws(GGUFError) {
        var cursor = GGUFCursor(region: region)
        version = try cursor.preamble()
        let tensorCount = try cursor.count(.tensorCount, leastBytesEach: GGUFCursor.leastTensorBytes)
        let keyValueCount = try cursor.count(.keyValueCount, leastBytesEach: GGUFCursor.leastKeyValueBytes)

        var metadata: [String: GGUFValue] = [:]
        var keys: [String] = []
        var keyValueRanges: [Range<Int>] = []
        for _ in 0..<keyValueCount {
            let start = cursor.offset
            let (key, value) = try cursor.keyValue()
            keyValueRanges.append(start..<cursor.offset)
            guard metadata.updateValue(value, forKey: key) == nil else { throw .duplicateKey(key) }
            keys.append(key)
        }
        let alignment = try Self.alignment(metadata["general.alignment"])

        var descriptions: [GGUFCursor.TensorDescription] = []
        var tensorIndex: [String: Int] = [:]
        for i in 0..<tensorCount {
            let description = try cursor.tensorDescription()
            guard tensorIndex.updateValue(i, forKey: description.name) == nil else {
                throw .duplicateTensor(description.name)
            }
            descriptions.append(description)
        }

        headerBytes = cursor.offset
        let dataStart = (cursor.offset + alignment - 1) / alignment * alignment
        tensors = try Self.place(descriptions, from: dataStart, alignment: alignment, in: region)
        self.alignment = alignment
        self.metadata = metadata
        self.metadataKeys = keys
        self.keyValueRanges = keyValueRanges
        self.tensorIndex = tensorIndex
        self.fileBytes = region.bytes.count
        self.region = region
        header = region
    }

    /// The metadata of one file, with the tensors of another.
    ///
    /// - Throws: `GGUFError.unknownTensorType` for a dtype that is none of GGUF's.
    package init(metadataOf other: GGUFFile, tensorsOf weights: SafetensorsFile) throws(GGUFError) {
        var (tensors, index): ([GGUFTensor], [String: Int]) = ([], [:])
        for tensor in weights.tensors {
            guard let type = GGMLType(tensor.dtype) else { throw .unknownTensorType(tensor: tensor.name, raw: .max) }
            index[tensor.name] = tensors.count
            tensors.append(
                GGUFTensor(
                    name: tensor.name, shape: tensor.shape, type: type, byteCount: tensor.range.count,
                    fileOffset: tensor.range.lowerBound, region: tensor.region))
        }
        (self.tensors, tensorIndex) = (tensors, index)
        (version, alignment) = (other.version, other.alignment)
        (metadata, metadataKeys, keyValueRanges) = (other.metadata, other.metadataKeys, other.keyValueRanges)
        (header, headerBytes) = (other.header, other.headerBytes)
        region = weights.region
        fileBytes = weights.region.bytes.count
    }

    package func tensor(named name: String) -> GGUFTensor? {
        tensorIndex[name].map { tensors[$0] }
    }

    /// Of all keys, types and values.
    package var metadataBytes: Int { keyValueRanges.reduce(0) { $0 + $1.count } }

    /// Key, type and value of `metadataKeys[index]` as they stand in the file.
    package func withEncodedKeyValue<R, E: Error>(_ index: Int, _ body: (UnsafeRawBufferPointer) throws(E) -> R) throws(E) -> R {
        defer { withExtendedLifetime(header) {} }
        return try body(header[keyValueRanges[index]])
    }

    private static func alignment(_ value: GGUFValue?) throws(GGUFError) -> Int {
        guard let value else { return Int(defaultAlignment) }
        guard value.kind == .uint32, let alignment = value.integer else {
            throw .wrongType(key: "general.alignment", expected: "uint32", found: value.typeName)
        }
        guard alignment.nonzeroBitCount == 1 else { throw .badAlignment(UInt32(alignment)) }
        return alignment
    }

    /// Tensors with their ranges inside the file, none overlapping another.
    private static func place(
        _ descriptions: [GGUFCursor.TensorDescription], from dataStart: Int, alignment: Int, in region: ByteRegion
    ) throws(GGUFError) -> [GGUFTensor] {
        let dataBytes = max(0, region.bytes.count - dataStart)
        var tensors: [GGUFTensor] = []
        for description in descriptions {
            guard description.offset % UInt64(alignment) == 0 else {
                throw .misaligned(tensor: description.name, offset: description.offset, alignment: alignment)
            }
            guard let offset = Int(exactly: description.offset), offset <= dataBytes,
                description.byteCount <= dataBytes - offset
            else {
                throw .outsideFile(
                    tensor: description.name, offset: description.offset, byteCount: description.byteCount,
                    dataBytes: dataBytes)
            }
            tensors.append(
                GGUFTensor(
                    name: description.name, shape: description.shape, type: description.type,
                    byteCount: description.byteCount, fileOffset: dataStart + offset, region: region))
        }
        let ordered = tensors.sorted { $0.fileOffset < $1.fileOffset }
        for (left, right) in zip(ordered, ordered.dropFirst()) {
            guard left.fileOffset + left.byteCount <= right.fileOffset else {
                throw .overlap(tensor: left.name, with: right.name)
            }
        }
        return tensors
    }
}

// Required keys: missing and mistyped ones throw; optional ones are read through `metadata[key]?`.
extension GGUFFile {
    package func string(_ key: String) throws(GGUFError) -> String {
        try required(key, "a UTF-8 string") { $0.string }
    }

    package func integer(_ key: String) throws(GGUFError) -> Int {
        try required(key, "an integer") { $0.integer }
    }

    package func float(_ key: String) throws(GGUFError) -> Double {
        try required(key, "a float") { $0.float }
    }

    package func bool(_ key: String) throws(GGUFError) -> Bool {
        try required(key, "a bool") { $0.bool }
    }

    package func stringArray(_ key: String) throws(GGUFError) -> [String] {
        try required(key, "an array of UTF-8 strings") { $0.stringArray }
    }

    package func stringBytesArray(_ key: String) throws(GGUFError) -> [[UInt8]] {
        try required(key, "an array of strings") { $0.stringBytesArray }
    }

    package func integerArray(_ key: String) throws(GGUFError) -> [Int] {
        try required(key, "an array of integers") { $0.integerArray }
    }

    package func floatArray(_ key: String) throws(GGUFError) -> [Float] {
        try required(key, "an array of floats") { $0.floatArray }
    }

    private func required<T>(
        _ key: String, _ expected: String, _ decode: (GGUFValue) -> T?
    ) throws(GGUFError) -> T {
        guard let value = metadata[key] else { throw .missingKey(key) }
        guard let decoded = decode(value) else {
            throw .wrongType(key: key, expected: expected, found: value.typeName)
        }
        return decoded
    }
}
