// One metadata value of a GGUF file: its type, and where in the file it lies. Values are decoded when asked for, so
// opening a file with 50 000 tokens allocates none of them. GGUFFile.open has checked every length inside; those of strings
// are checked again, for the file may have been written to since.

package struct GGUFValue: Sendable {
    /// GGUF's `gguf_metadata_value_type`.
    package enum Kind: UInt32, Sendable, CaseIterable {
        case uint8 = 0, int8, uint16, int16, uint32, int32, float32, bool, string, array, uint64, int64, float64

        /// In the file; nil for strings and arrays, whose size varies.
        package var byteCount: Int? {
            switch self {
            case .uint8, .int8, .bool: 1
            case .uint16, .int16: 2
            case .uint32, .int32, .float32: 4
            case .uint64, .int64, .float64: 8
            case .string, .array: nil
            }
        }
    }

    package let kind: Kind
    /// The type of the elements; nil unless `kind` is `array`.
    package let elementKind: Kind?
    /// Elements of an array; 1 for anything else.
    package let count: Int

    /// Where the value, or an array's first element, starts.
    let offset: Int
    let region: ByteRegion

    /// "uint32", "array of string", …
    package var typeName: String {
        if let elementKind { "array of \(elementKind)" } else { "\(kind)" }
    }

    /// nil when this is not an integer, or one past Int.max.
    package var integer: Int? { Self.integer(kind, at: offset, in: region) }

    package var float: Double? { Self.float(kind, at: offset, in: region) }

    package var bool: Bool? { kind == .bool ? region.bytes[offset] != 0 : nil }

    /// As stored; not necessarily UTF-8.
    package var stringBytes: [UInt8]? { kind == .string ? stringRange(at: offset).map { Array(region[$0]) } : nil }

    /// nil when this is not a string, or not UTF-8.
    package var string: String? {
        kind == .string ? stringRange(at: offset).flatMap { String(validating: region[$0], as: UTF8.self) } : nil
    }

    package var integerArray: [Int]? { elements(Self.integer) }

    package var floatArray: [Float]? {
        elements { kind, offset, region in Self.float(kind, at: offset, in: region).map { Float($0) } }
    }

    package var boolArray: [Bool]? {
        elements { kind, offset, region in kind == .bool ? region.bytes[offset] != 0 : nil }
    }

    /// As stored: a token may be half of a UTF-8 sequence.
    package var stringBytesArray: [[UInt8]]? { strings { Array($0) } }

    /// nil when this is not an array of strings, or one of them is not UTF-8.
    package var stringArray: [String]? { strings { String(validating: $0, as: UTF8.self) } }

    private func elements<T>(_ decode: (Kind, Int, ByteRegion) -> T?) -> [T]? {
        guard let elementKind, let size = elementKind.byteCount else { return nil }
        var decoded: [T] = []
        decoded.reserveCapacity(count)
        for i in 0..<count {
            guard let element = decode(elementKind, offset + i * size, region) else { return nil }
            decoded.append(element)
        }
        return decoded
    }

    private func strings<T>(_ decode: (UnsafeRawBufferPointer) -> T?) -> [T]? {
        guard elementKind == .string else { return nil }
        var decoded: [T] = []
        decoded.reserveCapacity(count)
        var position = offset
        for _ in 0..<count {
            guard let range = stringRange(at: position), let element = decode(region[range]) else { return nil }
            decoded.append(element)
            position = range.upperBound
        }
        return decoded
    }

    /// Nil when it would not lie inside the region.
    private func stringRange(at offset: Int) -> Range<Int>? {
        let start = offset + 8
        guard start <= region.bytes.count else { return nil }
        let byteCount: UInt64 = region.integer(at: offset)
        guard byteCount <= UInt64(region.bytes.count - start) else { return nil }
        return start..<start + Int(byteCount)
    }

    private static func integer(_ kind: Kind, at offset: Int, in region: ByteRegion) -> Int? {
        switch kind {
        case .uint8: Int(region.integer(at: offset, as: UInt8.self))
        case .int8: Int(region.integer(at: offset, as: Int8.self))
        case .uint16: Int(region.integer(at: offset, as: UInt16.self))
        case .int16: Int(region.integer(at: offset, as: Int16.self))
        case .uint32: Int(region.integer(at: offset, as: UInt32.self))
        case .int32: Int(region.integer(at: offset, as: Int32.self))
        case .uint64: Int(exactly: region.integer(at: offset, as: UInt64.self))
        case .int64: Int(region.integer(at: offset, as: Int64.self))
        case .float32, .float64, .bool, .string, .array: nil
        }
    }

    private static func float(_ kind: Kind, at offset: Int, in region: ByteRegion) -> Double? {
        switch kind {
        case .float32: Double(Float(bitPattern: region.integer(at: offset)))
        case .float64: Double(bitPattern: region.integer(at: offset))
        default: nil
        }
    }
}
