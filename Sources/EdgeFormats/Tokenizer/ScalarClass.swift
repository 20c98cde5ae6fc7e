// What the families' expressions tell apart in text: general categories and white space, per scalar, as Unicode 16 has
// them, which is Oniguruma's version; what Swift knows beyond it is unassigned here. The Basic Multilingual Plane is a
// table of 64 KiB made at first use, for a look-up of a scalar's properties costs more than the rest of a scanner's step.

/// A set of scalar classes; every scalar is in exactly one.
struct ScalarClasses: OptionSet, Sendable {
    let rawValue: UInt16

    /// Lu and Lt.
    static let upperLetter = ScalarClasses(rawValue: 1 << 0)
    /// Ll.
    static let lowerLetter = ScalarClasses(rawValue: 1 << 1)
    /// Lm and Lo.
    static let uncasedLetter = ScalarClasses(rawValue: 1 << 2)
    /// `\p{M}`.
    static let mark = ScalarClasses(rawValue: 1 << 3)
    /// `\p{N}`.
    static let number = ScalarClasses(rawValue: 1 << 4)
    /// `\s`: the property White_Space.
    static let whitespace = ScalarClasses(rawValue: 1 << 5)
    /// `\p{P}`.
    static let punctuation = ScalarClasses(rawValue: 1 << 6)
    /// `\p{S}`.
    static let symbol = ScalarClasses(rawValue: 1 << 7)
    /// Control and format characters, private and unassigned code points.
    static let other = ScalarClasses(rawValue: 1 << 8)

    /// `\p{L}`.
    static let letter: ScalarClasses = [.upperLetter, .lowerLetter, .uncasedLetter]

    init(rawValue: UInt16) { self.rawValue = rawValue }

    init(_ scalar: Unicode.Scalar) {
        guard scalar.value < 0x10000 else {
            self = Self.looked(up: scalar)
            return
        }
        self = ScalarClasses(rawValue: 1 << UInt16(Self.basicPlane[Int(scalar.value)]))
    }

    /// Per code point the number of its class's bit. Surrogates, which no text holds, are `other`.
    private static let basicPlane: [UInt8] = (0..<UInt32(0x10000)).map { value in
        let classes = Unicode.Scalar(value).map(looked(up:)) ?? .other
        return UInt8(classes.rawValue.trailingZeroBitCount)
    }

    private static func looked(up scalar: Unicode.Scalar) -> ScalarClasses {
        guard !scalar.properties.isWhitespace else { return .whitespace }
        guard (scalar.properties.age?.major ?? 0) <= 16 else { return .other }
        switch scalar.properties.generalCategory {
        case .uppercaseLetter, .titlecaseLetter: return .upperLetter
        case .lowercaseLetter: return .lowerLetter
        case .modifierLetter, .otherLetter: return .uncasedLetter
        case .nonspacingMark, .spacingMark, .enclosingMark: return .mark
        case .decimalNumber, .letterNumber, .otherNumber: return .number
        case .connectorPunctuation, .dashPunctuation, .openPunctuation, .closePunctuation, .initialPunctuation,
            .finalPunctuation, .otherPunctuation:
            return .punctuation
        case .mathSymbol, .currencySymbol, .modifierSymbol, .otherSymbol: return .symbol
        default: return .other
        }
    }
}

/// A position in valid UTF-8 that yields scalars and their classes. Where a stage cuts between bytes a piece may begin
/// or end within a scalar; what is left of it yields some scalar for a byte or more.
struct ScalarCursor {
    let utf8: [UInt8]
    let end: Int
    var offset: Int

    init(_ utf8: [UInt8], _ range: Range<Int>) {
        self.utf8 = utf8
        offset = range.lowerBound
        end = range.upperBound
    }

    var isAtEnd: Bool { offset >= end }

    func byte(at distance: Int) -> UInt8? {
        offset + distance < end ? utf8[offset + distance] : nil
    }

    /// The scalar that starts `distance` bytes on, with its length in bytes; nil at the end.
    func scalar(at distance: Int = 0) -> (scalar: Unicode.Scalar, length: Int)? {
        guard let first = byte(at: distance) else { return nil }
        let length = first < 0xC0 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4
        guard length > 1 else { return (Unicode.Scalar(first), 1) }
        var value = UInt32(first) & (0xFF >> UInt32(length + 1))
        for next in 1..<length { value = value << 6 | UInt32((byte(at: distance + next) ?? 0x80) & 0x3F) }
        return (Unicode.Scalar(value) ?? "\u{FFFD}", min(length, end - offset - distance))
    }

    /// The classes of the scalar that starts `distance` bytes on, and its length in bytes; nil at the end.
    func peek(at distance: Int = 0) -> (classes: ScalarClasses, length: Int)? {
        guard let (scalar, length) = scalar(at: distance) else { return nil }
        return (ScalarClasses(scalar), length)
    }

    /// Whether a scalar of `classes` starts `distance` bytes on.
    func isAt(_ classes: ScalarClasses, distance: Int = 0) -> Bool {
        peek(at: distance).map { classes.contains($0.classes) } ?? false
    }

    /// Moves past scalars of `classes` and says how long the last one was, 0 when there was none.
    @discardableResult
    mutating func skip(_ classes: ScalarClasses, atMost limit: Int = .max) -> Int {
        var lastLength = 0
        var count = 0
        while count < limit, let next = peek(), classes.contains(next.classes) {
            offset += next.length
            lastLength = next.length
            count += 1
        }
        return lastLength
    }

    /// Moves past bytes that are one of the ASCII characters.
    mutating func skip(bytes characters: [UInt8]) {
        while let next = byte(at: 0), characters.contains(next) { offset += 1 }
    }
}
