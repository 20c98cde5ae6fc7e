// Everything that can be wrong with a GGUF file, with the numbers.

/// The parts of a GGUF header, named as in the format's specification (ggml docs/gguf.md).
package enum GGUFField: String, Sendable, CaseIterable {
    case magic
    case version
    case tensorCount = "tensor count"
    case keyValueCount = "key-value count"
    case key
    case valueType = "value type"
    case value
    case elementType = "array element type"
    case elementCount = "array length"
    case tensorName = "tensor name"
    case dimensionCount = "dimension count"
    case dimension
    case tensorType = "tensor type"
    case tensorOffset = "tensor offset"
}

package enum GGUFError: Error, Equatable, Sendable {
    case notGGUF(magic: UInt32)
    case bigEndian
    case unsupportedVersion(UInt32)
    /// `offset` is where the field starts, in bytes from the start of the file.
    case truncated(GGUFField, offset: Int, neededBytes: UInt64, remainingBytes: Int)
    /// `limit` is a fixed limit, or what the remaining bytes can hold.
    case tooMany(GGUFField, count: UInt64, limit: Int)
    case empty(GGUFField, offset: Int)
    case invalidUTF8(GGUFField, offset: Int)
    case duplicateKey(String)
    case duplicateTensor(String)
    case unknownValueType(key: String, raw: UInt32)
    case nestedArray(key: String)
    case invalidBool(key: String, byte: UInt8)
    /// Not a power of two.
    case badAlignment(UInt32)
    case badDimensionCount(tensor: String, count: UInt32)
    case zeroDimension(tensor: String, index: Int)
    /// The byte count does not fit 63 bits. `dimensions` are as stored, innermost first.
    case tooLarge(tensor: String, dimensions: [UInt64])
    case unknownTensorType(tensor: String, raw: UInt32)
    case partialBlock(tensor: String, rowElements: Int, blockElements: Int)
    case misaligned(tensor: String, offset: UInt64, alignment: Int)
    /// `offset` counts from the start of the data section, which has `dataBytes`.
    case outsideFile(tensor: String, offset: UInt64, byteCount: Int, dataBytes: Int)
    case overlap(tensor: String, with: String)
    case missingKey(String)
    case wrongType(key: String, expected: String, found: String)
    /// Written tensors only: the body is not what type and shape need.
    case wrongByteCount(tensor: String, needed: Int, given: Int)
}

extension GGUFError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .notGGUF(let magic):
            "not a GGUF file: it starts with 0x\(String(magic, radix: 16)), not 0x46554747"
        case .bigEndian:
            "a big-endian GGUF file; only little-endian files are supported"
        case .unsupportedVersion(let version):
            "GGUF version \(version); versions 2 and 3 are supported"
        case .truncated(let field, let offset, let needed, let remaining):
            "the file ends inside the \(field.rawValue) at byte \(offset): needs \(needed) bytes, \(remaining) remain"
        case .tooMany(let field, let count, let limit):
            "the \(field.rawValue) is \(count); at most \(limit) is possible here"
        case .empty(let field, let offset):
            "the \(field.rawValue) at byte \(offset) is empty"
        case .invalidUTF8(let field, let offset):
            "the \(field.rawValue) at byte \(offset) is not UTF-8"
        case .duplicateKey(let key):
            "the key \(key) occurs twice"
        case .duplicateTensor(let name):
            "the tensor \(name) occurs twice"
        case .unknownValueType(let key, let raw):
            "the key \(key) has the unknown value type \(raw)"
        case .nestedArray(let key):
            "the key \(key) holds an array of arrays, which is not supported"
        case .invalidBool(let key, let byte):
            "the key \(key) holds the byte \(byte) where a bool must be 0 or 1"
        case .badAlignment(let alignment):
            "general.alignment is \(alignment), which is not a power of two"
        case .badDimensionCount(let tensor, let count):
            "the tensor \(tensor) has \(count) dimensions; 1 to 4 are possible"
        case .zeroDimension(let tensor, let index):
            "dimension \(index) of the tensor \(tensor) is 0"
        case .tooLarge(let tensor, let dimensions):
            "the tensor \(tensor) with dimensions \(dimensions) has more bytes than can be addressed"
        case .unknownTensorType(let tensor, let raw):
            "the tensor \(tensor) has the unknown type \(raw)"
        case .partialBlock(let tensor, let row, let block):
            "the rows of the tensor \(tensor) have \(row) elements, not a multiple of the block size \(block)"
        case .misaligned(let tensor, let offset, let alignment):
            "the tensor \(tensor) is at offset \(offset), not a multiple of the alignment \(alignment)"
        case .outsideFile(let tensor, let offset, let byteCount, let dataBytes):
            "the tensor \(tensor) has \(byteCount) bytes at offset \(offset), but the data section has \(dataBytes)"
        case .overlap(let tensor, let other):
            "the tensors \(tensor) and \(other) overlap"
        case .missingKey(let key):
            "the key \(key) is missing"
        case .wrongType(let key, let expected, let found):
            "the key \(key) holds \(found), not \(expected)"
        case .wrongByteCount(let tensor, let needed, let given):
            "the tensor \(tensor) needs \(needed) bytes, \(given) were given"
        }
    }
}
