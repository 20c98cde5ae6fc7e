// Text on its way from what was given to what the model's vocabulary knows, with the way back: which byte of the
// original each byte came from. Transformations work on a whole stretch at once and are linear in its length.

/// What changes text before it is cut into pieces: the normalizers of a tokenizer.json, and what its pre-tokenizers
/// change before they cut.
package enum TextTransform: Sendable, Equatable {
    /// In front of text that is not empty.
    case prepend([UInt8])
    /// In front of text that does not start with it, and is not empty.
    case prependUnlessThere([UInt8], at: Place)
    /// Every occurrence, from left to right. Not empty.
    case replace([UInt8], with: [UInt8])
    /// Every run of two or more of the byte: ` {2,}`.
    case replaceRuns(UInt8, with: [UInt8])
    /// Unicode's canonical composition.
    case nfc
    /// White space at the ends goes.
    case strip(left: Bool, right: Bool)
    /// White space goes, and every word starts with the mark: `WhitespaceSplit` and then `Metaspace`.
    case markWords([UInt8])
    case precompiled(PrecompiledNormalizer)

    package enum Place: Sendable, Equatable {
        case everyStretch
        /// Only the stretch that starts where the text does.
        case startOfText
    }
}

struct AlignedText {
    private(set) var utf8: [UInt8]
    /// Per byte the offset in the original's UTF-8, ascending; one more for the end.
    private(set) var origins: [Int]

    init(_ utf8: [UInt8], _ range: Range<Int>) {
        self.utf8 = Array(utf8[range])
        origins = Array(range.lowerBound...range.upperBound)
    }

    private init(capacity: Int) {
        utf8 = []
        origins = []
        utf8.reserveCapacity(capacity)
        origins.reserveCapacity(capacity + 1)
    }

    private init(_ utf8: [UInt8], _ origins: [Int]) {
        self.utf8 = utf8
        self.origins = origins
    }

    func slice(_ range: Range<Int>) -> AlignedText {
        AlignedText(Array(utf8[range]), Array(origins[range.lowerBound...range.upperBound]))
    }

    /// The bytes of the original that a range of this text came from.
    func origin(of range: Range<Int>) -> Range<Int> {
        origins[range.lowerBound]..<origins[range.upperBound]
    }

    mutating func apply(_ transforms: [TextTransform]) {
        for transform in transforms where !utf8.isEmpty { apply(transform) }
    }

    private mutating func apply(_ transform: TextTransform) {
        switch transform {
        case .prepend(let prefix): prepend(prefix)
        case .prependUnlessThere(let prefix, let place):
            if !utf8.starts(with: prefix), place == .everyStretch || origins[0] == 0 { prepend(prefix) }
        case .replace(let pattern, let replacement): replace(pattern, with: replacement)
        case .replaceRuns(let byte, let replacement):
            self = rebuilt { source, start in
                var end = start
                while end < source.count, source[end] == byte { end += 1 }
                return end - start >= 2 ? (end - start, replacement) : nil
            }
        case .nfc: composeCanonically()
        case .strip(let left, let right): strip(left: left, right: right)
        case .markWords(let mark): markWords(mark)
        case .precompiled(let normalizer): self = normalizer.normalized(self)
        }
    }

    private mutating func prepend(_ prefix: [UInt8]) {
        utf8.insert(contentsOf: prefix, at: 0)
        origins.insert(contentsOf: repeatElement(origins[0], count: prefix.count), at: 0)
    }

    private mutating func replace(_ pattern: [UInt8], with replacement: [UInt8]) {
        guard let first = pattern.first, utf8.contains(first) else { return }
        self = rebuilt { source, start in
            guard source[start] == first, source[start...].starts(with: pattern) else { return nil }
            return (pattern.count, replacement)
        }
    }

    /// `match` says how many bytes at an offset become what; nil keeps the byte. Replacements start where they match.
    private func rebuilt(_ match: (_ utf8: [UInt8], _ offset: Int) -> (length: Int, with: [UInt8])?) -> AlignedText {
        var result = AlignedText(capacity: utf8.count)
        var offset = 0
        while offset < utf8.count {
            if let (length, replacement) = match(utf8, offset) {
                result.append(replacement, from: origins[offset])
                offset += length
            } else {
                result.append(utf8[offset], from: origins[offset])
                offset += 1
            }
        }
        result.origins.append(origins[utf8.count])
        return result
    }

    private mutating func append(_ byte: UInt8, from origin: Int) {
        utf8.append(byte)
        origins.append(origin)
    }

    private mutating func append(_ bytes: [UInt8], from origin: Int) {
        utf8.append(contentsOf: bytes)
        origins.append(contentsOf: repeatElement(origin, count: bytes.count))
    }

    /// Appends the scalar's bytes, all from one place.
    private mutating func append(_ scalar: Unicode.Scalar, from origin: Int) {
        for byte in UTF8.encode(scalar) ?? UTF8.encodedReplacementCharacter { append(byte, from: origin) }
    }

    private mutating func strip(left: Bool, right: Bool) {
        var kept: Range<Int>?
        var cursor = ScalarCursor(utf8, 0..<utf8.count)
        while let next = cursor.peek() {
            if next.classes != .whitespace {
                kept = (kept?.lowerBound ?? cursor.offset)..<cursor.offset + next.length
            }
            cursor.offset += next.length
        }
        let start = left ? kept?.lowerBound ?? utf8.count : 0
        let end = right ? kept?.upperBound ?? start : utf8.count
        utf8 = Array(utf8[start..<max(start, end)])
        origins = Array(origins[start...max(start, end)])
    }

    private mutating func markWords(_ mark: [UInt8]) {
        var result = AlignedText(capacity: utf8.count + mark.count)
        var cursor = ScalarCursor(utf8, 0..<utf8.count)
        var isInWord = false
        while let next = cursor.peek() {
            if next.classes == .whitespace {
                isInWord = false
            } else {
                if !isInWord, !utf8[cursor.offset...].starts(with: mark) {
                    result.append(mark, from: origins[cursor.offset])
                }
                isInWord = true
                for offset in cursor.offset..<cursor.offset + next.length {
                    result.append(utf8[offset], from: origins[offset])
                }
            }
            cursor.offset += next.length
        }
        result.origins.append(origins[utf8.count])
        self = result
    }

    /// Composes a starter with the marks and vowels after it as one group; everything else stays as it is.
    private mutating func composeCanonically() {
        // Below U+0300 every scalar is its own composition and nothing combines with what comes before it.
        guard utf8.contains(where: { $0 >= 0xCC }) else { return }
        var result = AlignedText(capacity: utf8.count)
        var group: [Unicode.Scalar] = []
        var groupStart = 0
        func flush(before end: Int) {
            guard !group.isEmpty else { return }
            let composed = CanonicalComposition.composed(group)
            if composed == group {
                for offset in groupStart..<end { result.append(utf8[offset], from: origins[offset]) }
            } else {
                for scalar in composed { result.append(scalar, from: origins[groupStart]) }
            }
        }
        var cursor = ScalarCursor(utf8, 0..<utf8.count)
        while let next = cursor.scalar() {
            if CanonicalComposition.startsGroup(next.scalar) {
                flush(before: cursor.offset)
                group.removeAll(keepingCapacity: true)
                groupStart = cursor.offset
            }
            group.append(next.scalar)
            cursor.offset += next.length
        }
        flush(before: utf8.count)
        result.origins.append(origins[utf8.count])
        self = result
    }
}

extension AlignedText {
    /// The text with every stretch that `replacement` knows exchanged. Ranges are ascending and cover the text.
    func replacing(_ ranges: [Range<Int>], by replacement: (Range<Int>) -> ArraySlice<UInt8>?) -> AlignedText {
        var result = AlignedText(capacity: utf8.count)
        for range in ranges {
            if let bytes = replacement(range) {
                result.append(Array(bytes), from: origins[range.lowerBound])
            } else {
                for offset in range { result.append(utf8[offset], from: origins[offset]) }
            }
        }
        result.origins.append(origins[utf8.count])
        return result
    }
}
