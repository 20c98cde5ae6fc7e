// GPT-2's byte alphabet: a bijection between the 256 bytes and 256 printable scalars, so that a vocabulary of byte
// strings can be stored as text. Printable Latin-1 stands for itself; the other 68 bytes are U+0100 onwards, in byte
// order ("Ġ" is the space). Source: openai/gpt-2, encoder.py, `bytes_to_unicode`.

enum ByteAlphabet {
    /// The scalar that stands for each byte.
    static let scalars: [Unicode.Scalar] = {
        var nextStandIn: UInt32 = 0x100
        return (0...255).map { (byte: UInt8) in
            if standsForItself(byte) { return Unicode.Scalar(byte) }
            defer { nextStandIn += 1 }
            // U+0100 ..< U+0144 are all scalars.
            return Unicode.Scalar(nextStandIn) ?? Unicode.Scalar(byte)
        }
    }()

    /// The byte of each scalar below U+0144; nil where the scalar is outside the alphabet.
    private static let bytes: [UInt8?] = {
        var bytes = [UInt8?](repeating: nil, count: 0x144)
        for (byte, scalar) in scalars.enumerated() { bytes[Int(scalar.value)] = UInt8(byte) }
        return bytes
    }()

    private static func standsForItself(_ byte: UInt8) -> Bool {
        switch byte {
        case 0x21...0x7E, 0xA1...0xAC, 0xAE...0xFF: true
        default: false
        }
    }

    static func encoded(_ byte: UInt8) -> [UInt8] {
        Array(String(scalars[Int(byte)]).utf8)
    }

    /// Appends the UTF-8 of the byte's scalar, which is below U+0144.
    static func append(_ byte: UInt8, to text: inout [UInt8]) {
        let value = scalars[Int(byte)].value
        if value < 0x80 {
            text.append(UInt8(value))
        } else {
            text.append(UInt8(0xC0 | value >> 6))
            text.append(UInt8(0x80 | value & 0x3F))
        }
    }

    /// The bytes that `text` stands for; nil when it holds a scalar outside the alphabet.
    static func decoded(_ text: [UInt8]) -> [UInt8]? {
        var decoded: [UInt8] = []
        decoded.reserveCapacity(text.count)
        for scalar in String(decoding: text, as: UTF8.self).unicodeScalars {
            guard scalar.value < bytes.count, let byte = bytes[Int(scalar.value)] else { return nil }
            decoded.append(byte)
        }
        return decoded
    }
}
