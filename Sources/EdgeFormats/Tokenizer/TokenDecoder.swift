// From tokens back to text: the decoders of a tokenizer.json, as steps that tokens pass through one at a time. What
// comes out never has to be taken back, so decoding a whole text and decoding while it is generated are the same code.
// Upstream: huggingface/tokenizers, decoders/*.rs.

package enum TokenDecoder: Sendable, Equatable {
    /// GPT-2's byte alphabet back to bytes. A token with a scalar outside of it stands for its own text.
    case byteLevel
    /// In every token, from left to right. The pattern is not empty.
    case replace([UInt8], with: [UInt8])
    /// `<0x0A>`-style tokens are bytes. A run of them that is no UTF-8 becomes one U+FFFD a byte.
    case byteFallback
    /// What follows sees all tokens as one.
    case fuse
    /// Up to `start` of the scalar go at the start of every token, or of the fused text.
    case strip(Unicode.Scalar, start: Int)
    /// The scalar becomes a space.
    case metaspace(Unicode.Scalar, FirstToken)

    package enum FirstToken: Sendable, Equatable {
        /// The first token's marks are dropped.
        case droppedInFirstToken
        case kept
    }
}

/// What becomes of bytes that are no UTF-8.
enum InvalidUTF8: Sendable {
    case kept
    /// As U+FFFD: per maximal part where bytes are a byte-level vocabulary's, per byte where they are byte tokens.
    case replaced
}

/// Tokens being decoded.
struct TokenDecoding: Sendable {
    private enum Kind: Sendable {
        case byteLevel
        case replace([UInt8], with: [UInt8])
        case byteFallback
        case stripTokens([UInt8], start: Int)
        case stripText([UInt8])
        case metaspace([UInt8], TokenDecoder.FirstToken)
    }

    private struct Step: Sendable {
        let kind: Kind
        /// Of `byteLevel` at most three bytes: a valid but incomplete sequence. Of `byteFallback` a run of byte tokens.
        var heldBack: [UInt8] = []
        /// Of `stripText`: how much may still go.
        var left = 0
        var isFirst = true
    }

    private var steps: [Step] = []
    private let invalidUTF8: InvalidUTF8

    init(_ decoders: [TokenDecoder], _ invalidUTF8: InvalidUTF8) {
        self.invalidUTF8 = invalidUTF8
        var isFused = false
        for decoder in decoders {
            switch decoder {
            case .byteLevel:
                steps.append(Step(kind: .byteLevel))
                isFused = true
            case .replace(let pattern, let replacement):
                steps.append(Step(kind: .replace(pattern, with: replacement)))
            case .byteFallback: steps.append(Step(kind: .byteFallback))
            case .fuse: isFused = true
            case .strip(let scalar, let start):
                let content = Array(String(scalar).utf8)
                steps.append(
                    Step(kind: isFused ? .stripText(content) : .stripTokens(content, start: start), left: start))
            case .metaspace(let scalar, let firstToken):
                steps.append(Step(kind: .metaspace(Array(String(scalar).utf8), firstToken)))
            }
        }
    }

    /// What the token completes, appended to `text`.
    mutating func append(_ token: ArraySlice<UInt8>, to text: inout [UInt8]) {
        advance(Array(token), from: 0, to: &text)
    }

    /// What is left at the end.
    mutating func finish(_ text: inout [UInt8]) {
        for index in steps.indices {
            switch steps[index].kind {
            case .byteLevel:
                let heldBack = takeHeldBack(index)
                if !heldBack.isEmpty { advance(repaired(heldBack[...]), from: index + 1, to: &text) }
            case .byteFallback: releaseRun(index, to: &text)
            case .replace, .stripTokens, .stripText, .metaspace: break
            }
        }
    }

    private mutating func takeHeldBack(_ index: Int) -> [UInt8] {
        defer { steps[index].heldBack = [] }
        return steps[index].heldBack
    }

    private mutating func advance(_ token: [UInt8], from index: Int, to text: inout [UInt8]) {
        guard index < steps.count else {
            text.append(contentsOf: token)
            return
        }
        var output = token
        switch steps[index].kind {
        case .byteLevel:
            let bytes = takeHeldBack(index) + (ByteAlphabet.decoded(token) ?? token)
            let complete = invalidUTF8 == .kept ? bytes.count : bytes.count - incompleteSuffixLength(bytes)
            steps[index].heldBack = Array(bytes[complete...])
            output = repaired(bytes[..<complete])
        case .replace(let pattern, let replacement):
            output = Self.replacing(pattern, with: replacement, in: token)
        case .byteFallback:
            if let byte = Self.byte(of: token) {
                steps[index].heldBack.append(byte)
                return
            }
            releaseRun(index, to: &text)
        case .stripTokens(let content, let start):
            var left = start
            Self.strip(content, &left, &output)
        case .stripText(let content):
            Self.strip(content, &steps[index].left, &output)
        case .metaspace(let mark, let firstToken):
            let dropped = steps[index].isFirst && firstToken == .droppedInFirstToken
            output = Self.replacing(mark, with: dropped ? [] : [UInt8(ascii: " ")], in: token)
            steps[index].isFirst = false
        }
        advance(output, from: index + 1, to: &text)
    }

    /// Passes on the byte tokens that were held back, as what they spell.
    private mutating func releaseRun(_ index: Int, to text: inout [UInt8]) {
        let run = takeHeldBack(index)
        guard !run.isEmpty else { return }
        if invalidUTF8 == .kept || String(validating: run, as: UTF8.self) != nil {
            advance(run, from: index + 1, to: &text)
        } else {
            for _ in run { advance(Array("\u{FFFD}".utf8), from: index + 1, to: &text) }
        }
    }

    private func repaired(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
        invalidUTF8 == .kept ? Array(bytes) : Array(String(decoding: bytes, as: UTF8.self).utf8)
    }

    /// Drops up to `left` of `content` at the start; anything else there ends it.
    private static func strip(_ content: [UInt8], _ left: inout Int, _ token: inout [UInt8]) {
        while left > 0, !token.isEmpty {
            guard token.starts(with: content) else {
                left = 0
                return
            }
            token.removeFirst(content.count)
            left -= 1
        }
    }

    private static func replacing(_ pattern: [UInt8], with replacement: [UInt8], in token: [UInt8]) -> [UInt8] {
        guard let first = pattern.first, token.contains(first) else { return token }
        var result: [UInt8] = []
        var offset = 0
        while offset < token.count {
            if token[offset] == first, token[offset...].starts(with: pattern) {
                result.append(contentsOf: replacement)
                offset += pattern.count
            } else {
                result.append(token[offset])
                offset += 1
            }
        }
        return result
    }

    /// The byte of a token like `<0x0A>`. Rust's parser takes a sign too.
    private static func byte(of token: [UInt8]) -> UInt8? {
        guard token.count == 6, token.starts(with: "<0x".utf8), token[5] == UInt8(ascii: ">") else { return nil }
        return UInt8(String(decoding: token[3..<5], as: UTF8.self), radix: 16)
    }
}

/// Length of the longest suffix that more bytes could turn into a character (Unicode 16, table 3-7).
private func incompleteSuffixLength(_ bytes: [UInt8]) -> Int {
    for length in stride(from: min(3, bytes.count), to: 0, by: -1) {
        let suffix = bytes.suffix(length)
        guard let lead = suffix.first else { continue }
        let needed = lead >= 0xF0 && lead <= 0xF4 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC2 ? 2 : 1
        guard lead <= 0xF4, length < needed else { continue }
        if suffix.dropFirst().enumerated().allSatisfy({ isContinuation($1, at: $0, after: lead) }) {
            return length
        }
    }
    return 0
}

private func isContinuation(_ byte: UInt8, at position: Int, after lead: UInt8) -> Bool {
    guard position == 0 else { return (0x80...0xBF).contains(byte) }
    switch lead {
    case 0xE0: return (0xA0...0xBF).contains(byte)
    case 0xED: return (0x80...0x9F).contains(byte)
    case 0xF0: return (0x90...0xBF).contains(byte)
    case 0xF4: return (0x80...0x8F).contains(byte)
    default: return (0x80...0xBF).contains(byte)
    }
}
