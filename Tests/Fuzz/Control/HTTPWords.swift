// Words of requests that one byte of an input stands for, so that one change of it changes a path, a header or a whole head. They
// are the dictionary's, which libFuzzer has too.
import Foundation

struct HTTPWords: Sendable {
    static let shared = Result { try HTTPWords() }
    private static let most = 16 << 10

    private let words: [[UInt8]]

    private init() throws {
        let folder = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        let text = try String(contentsOf: folder.appending(path: "dictionaries/http-head.dict"), encoding: .utf8)
        words = try text.split(separator: "\n").filter { $0.hasPrefix("\"") }.map { line in
            var (word, rest) = ([UInt8](), line.utf8.dropFirst().dropLast())
            while let byte = rest.popFirst() {
                guard byte == UInt8(ascii: "\\") else {
                    word.append(byte)
                    continue
                }
                guard rest.popFirst() == UInt8(ascii: "x"), let value = UInt8(String(Substring(rest.prefix(2))), radix: 16) else {
                    throw BrokenClaim(claim: "the dictionary has \\x and two digits: \(line)")
                }
                word.append(value)
                rest = rest.dropFirst(2)
            }
            return word
        }
    }

    /// Bytes below 0x80 are themselves, and whatever follows 0xff is; others are words.
    func spelled(_ input: Slice<UnsafeRawBufferPointer>) -> [UInt8] {
        var (spelled, rest) = ([UInt8](), input)
        while let byte = rest.popFirst(), spelled.count < Self.most {
            if byte < 0x80 {
                spelled.append(byte)
            } else if byte == 0xff {
                if let next = rest.popFirst() { spelled.append(next) }
            } else if Int(byte) - 0x80 < words.count {
                spelled += words[Int(byte) - 0x80]
            }
        }
        return Array(spelled.prefix(Self.most))
    }
}
