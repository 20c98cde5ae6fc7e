// safetensors files (github.com/huggingface/safetensors, README "Format"), read. Layout:
//
//     u64 headerBytes | JSON header, spaces to a multiple of 8 | tensor data, without gaps

package enum SafetensorsError: Error, Equatable, Sendable {
    case truncated(neededBytes: UInt64, fileBytes: Int)
    case headerTooLarge(bytes: UInt64, limitBytes: Int)
    case badJSON(JSONTextError)
    /// The header is JSON but not of this format; `reason` names what is wrong.
    case badHeader(tensor: String, reason: String)
    case badMetadata(key: String)
    case unknownDType(tensor: String, name: String)
    case tooLarge(tensor: String, shape: [Int])
    case wrongRange(tensor: String, neededBytes: Int, begin: Int, end: Int)
    /// The ranges, in order, must follow each other without gap or overlap.
    case notContiguous(tensor: String, begin: Int, expected: Int)
    case wrongDataSize(rangesEnd: Int, dataBytes: Int)
    case duplicateTensor(String)
}

extension SafetensorsError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .truncated(let needed, let fileBytes):
            "the safetensors file has \(fileBytes) bytes, its header needs \(needed)"
        case .headerTooLarge(let bytes, let limit):
            "the safetensors header has \(bytes) bytes, the limit is \(limit)"
        case .badJSON(let error):
            "the safetensors header is not valid: \(error)"
        case .badHeader(let tensor, let reason):
            "the entry \(tensor) in the safetensors header \(reason)"
        case .badMetadata(let key):
            "the entry \(key) in the __metadata__ of the safetensors header is not a string"
        case .unknownDType(let tensor, let name):
            "the tensor \(tensor) has the unknown dtype \(name)"
        case .tooLarge(let tensor, let shape):
            "the tensor \(tensor) of shape \(shape) has more bytes than can be addressed"
        case .wrongRange(let tensor, let needed, let begin, let end):
            "the tensor \(tensor) needs \(needed) bytes, its range is \(begin) to \(end)"
        case .notContiguous(let tensor, let begin, let expected):
            "the tensor \(tensor) starts at \(begin), where \(expected) was expected: a gap or an overlap"
        case .wrongDataSize(let rangesEnd, let dataBytes):
            "the tensors end at \(rangesEnd), the data section has \(dataBytes) bytes"
        case .duplicateTensor(let name):
            "the tensor \(name) occurs twice"
        }
    }
}

/// In the order of the Rust library's `Dtype`, which is the order of files: the writer puts the last first.
package enum SafetensorsDType: String, CaseIterable, Sendable {
    case bool = "BOOL"
    case u8 = "U8"
    case i8 = "I8"
    case f8e5m2 = "F8_E5M2"
    case f8e4m3 = "F8_E4M3"
    case i16 = "I16"
    case u16 = "U16"
    case f16 = "F16"
    case bf16 = "BF16"
    case i32 = "I32"
    case u32 = "U32"
    case f32 = "F32"
    case f64 = "F64"
    case i64 = "I64"
    case u64 = "U64"

    package var byteCount: Int {
        switch self {
        case .bool, .u8, .i8, .f8e5m2, .f8e4m3: 1
        case .i16, .u16, .f16, .bf16: 2
        case .i32, .u32, .f32: 4
        case .f64, .i64, .u64: 8
        }
    }

    var rank: Int { Self.allCases.firstIndex(of: self)! }

    /// The values of F32, F16 or BF16 bytes; nil for any other type.
    package func floats(in bytes: UnsafeRawBufferPointer) -> [Float]? {
        let count = bytes.count / byteCount
        switch self {
        case .f32:
            return (0..<count).map {
                Float(bitPattern: UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self)))
            }
        case .f16:
            return (0..<count).map {
                let bits = UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: 2 * $0, as: UInt16.self))
                return Float(half: bits)
            }
        case .bf16:
            return (0..<count).map {
                let bits = UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: 2 * $0, as: UInt16.self))
                return Float(bitPattern: UInt32(bits) << 16)
            }
        default:
            return nil
        }
    }
}

extension Float {
    /// Of a binary16's bits. Not by way of `Float16`: where the processor has no instruction for it, Swift's conversion takes subnormals
    /// for zero on a thread that flushes denormals, as those of a WorkerPool do.
    fileprivate init(half bits: UInt16) {
        guard bits & 0x7C00 == 0 else {
            self = Float(Float16(bitPattern: bits))
            return
        }
        self = Float(bits & 0x3FF) * 0x1p-24 * (bits & 0x8000 == 0 ? 1 : -1)
    }
}

package struct SafetensorsTensor: Sendable {
    package let name: String
    package let dtype: SafetensorsDType
    /// Outermost dimension first; [] is a scalar; a dimension may be 0.
    package let shape: [Int]
    /// From the start of the file.
    package let range: Range<Int>
    package let region: ByteRegion

    /// Not aligned. Valid while the tensor or its file is held; `withBytes` holds it.
    package var bytes: UnsafeRawBufferPointer { region[range] }

    package func withBytes<R, E: Error>(_ body: (UnsafeRawBufferPointer) throws(E) -> R) throws(E) -> R {
        defer { withExtendedLifetime(region) {} }
        return try body(bytes)
    }

    /// The values of an F32, F16 or BF16 tensor; nil for any other dtype.
    package func floats() -> [Float]? { withBytes { dtype.floats(in: $0) } }

    /// The values of an I32 tensor that are below 2^24, which f32 holds; nil where there are others, and for any other dtype.
    package func wholeNumbers() -> [Float]? {
        guard dtype == .i32 else { return nil }
        let values = withBytes { bytes in
            (0..<bytes.count / 4).map { Int32(littleEndian: bytes.loadUnaligned(fromByteOffset: 4 * $0, as: Int32.self)) }
        }
        return values.allSatisfy { (0..<1 << 24).contains($0) } ? values.map(Float.init) : nil
    }
}

package final class SafetensorsFile: Sendable {
    package static let headerLimitBytes = 16 << 20
    /// PyTorch's.
    package static let dimensionLimit = 64

    package let metadata: [String: String]
    /// In the order of their bytes in the file.
    package let tensors: [SafetensorsTensor]
    private let index: [String: Int]
    let region: ByteRegion

    /// - Throws: `FileError` or `SafetensorsError`.
    package static func open(path: String) throws -> SafetensorsFile {
        try SafetensorsFile(ByteRegion.map(path: path))
    }

    package init(_ region: ByteRegion) throws(SafetensorsError) {
        let fileBytes = region.bytes.count
        guard fileBytes >= 8 else { throw .truncated(neededBytes: 8, fileBytes: fileBytes) }
        let headerBytes: UInt64 = region.integer(at: 0)
        guard headerBytes <= UInt64(Self.headerLimitBytes) else {
            throw .headerTooLarge(bytes: headerBytes, limitBytes: Self.headerLimitBytes)
        }
        let dataStart = 8 + Int(headerBytes)
        guard dataStart <= fileBytes else { throw .truncated(neededBytes: UInt64(dataStart), fileBytes: fileBytes) }

        let header = try Self.parse(region[8..<dataStart])
        var metadata: [String: String] = [:]
        var tensors: [SafetensorsTensor] = []
        for member in header {
            if member.key == "__metadata__" {
                metadata = try Self.metadata(member.value)
            } else {
                tensors.append(try Self.tensor(member, dataStart: dataStart, in: region))
            }
        }
        // Of two tensors that start together one is empty, and comes first.
        tensors.sort { ($0.range.lowerBound, $0.range.upperBound) < ($1.range.lowerBound, $1.range.upperBound) }
        var position = dataStart
        for tensor in tensors {
            guard tensor.range.lowerBound == position else {
                throw .notContiguous(
                    tensor: tensor.name, begin: tensor.range.lowerBound - dataStart, expected: position - dataStart)
            }
            position = tensor.range.upperBound
        }
        guard position == fileBytes else {
            throw .wrongDataSize(rangesEnd: position - dataStart, dataBytes: fileBytes - dataStart)
        }
        self.metadata = metadata
        self.tensors = tensors
        self.region = region
        // The parser has refused repeated keys.
        index = Dictionary(uniqueKeysWithValues: tensors.enumerated().map { ($1.name, $0) })
    }

    package func tensor(named name: String) -> SafetensorsTensor? {
        index[name].map { tensors[$0] }
    }

    /// The pages go back to the kernel until they are next used.
    package func releaseResident() { region.release(0..<region.bytes.count) }

    private static func parse(_ header: UnsafeRawBufferPointer) throws(SafetensorsError) -> [JSONText.Member] {
        // The format demands that the header begins with '{'.
        guard header.first == UInt8(ascii: "{") else { throw .badJSON(.unexpected(expected: "'{'", offset: 0)) }
        let document: JSONText
        do { document = try JSONText(parsing: header) } catch { throw .badJSON(error) }
        guard case .object(let members) = document else {
            throw .badJSON(.unexpected(expected: "an object", offset: 0))
        }
        return members
    }

    private static func metadata(_ value: JSONText) throws(SafetensorsError) -> [String: String] {
        guard case .object(let members) = value else { throw .badMetadata(key: "__metadata__") }
        var metadata: [String: String] = [:]
        for member in members {
            guard let string = member.value.string else { throw .badMetadata(key: member.key) }
            metadata[member.key] = string
        }
        return metadata
    }

    private static func tensor(
        _ member: JSONText.Member, dataStart: Int, in region: ByteRegion
    ) throws(SafetensorsError) -> SafetensorsTensor {
        let name = member.key
        guard case .object(let fields) = member.value else {
            throw .badHeader(tensor: name, reason: "is not an object")
        }
        if let unknown = fields.first(where: { !["dtype", "shape", "data_offsets"].contains($0.key) }) {
            throw .badHeader(tensor: name, reason: "has the unknown field \(unknown.key)")
        }
        guard let dtypeName = member.value["dtype"]?.string else {
            throw .badHeader(tensor: name, reason: "has no dtype")
        }
        guard let dtype = SafetensorsDType(rawValue: dtypeName) else {
            throw .unknownDType(tensor: name, name: dtypeName)
        }
        guard let shape = sizes(member.value["shape"]) else {
            throw .badHeader(tensor: name, reason: "has no shape of non-negative integers")
        }
        guard let offsets = sizes(member.value["data_offsets"]), offsets.count == 2 else {
            throw .badHeader(tensor: name, reason: "has no data_offsets of two non-negative integers")
        }
        guard shape.count <= dimensionLimit else {
            throw .badHeader(tensor: name, reason: "has \(shape.count) dimensions, the limit is \(dimensionLimit)")
        }
        guard let needed = byteCount(shape, dtype) else { throw .tooLarge(tensor: name, shape: shape) }
        let (begin, end) = (offsets[0], offsets[1])
        guard begin <= end, end - begin == needed else {
            throw .wrongRange(tensor: name, neededBytes: needed, begin: begin, end: end)
        }
        let dataBytes = region.bytes.count - dataStart
        guard end <= dataBytes else { throw .wrongDataSize(rangesEnd: end, dataBytes: dataBytes) }
        return SafetensorsTensor(
            name: name, dtype: dtype, shape: shape, range: dataStart + begin..<dataStart + end, region: region)
    }

    private static func sizes(_ value: JSONText?) -> [Int]? {
        guard let elements = value?.array else { return nil }
        let sizes = elements.compactMap { $0.integer }.filter { $0 >= 0 }
        return sizes.count == elements.count ? sizes : nil
    }

    private static func byteCount(_ shape: [Int], _ dtype: SafetensorsDType) -> Int? {
        var product = dtype.byteCount
        for extent in shape {
            let (next, overflow) = product.multipliedReportingOverflow(by: extent)
            guard !overflow else { return nil }
            product = next
        }
        return product
    }
}
