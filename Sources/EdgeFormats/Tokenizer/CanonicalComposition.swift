// Unicode's normalization form C (UAX #15) of a group: a starter and what may combine with it. Hangul is arithmetic
// (Unicode 16, §3.12), everything else a table. Linear in the length of the group but for the sorting of its marks.
// Upstream's tables are Unicode 9's (crate unicode-normalization-alignments); to give the same ids, later scalars
// neither compose nor combine here.

enum CanonicalComposition {
    private struct Pair: Hashable {
        let first: UInt32
        let second: UInt32
    }

    private static let newestVersion = 9

    private static func isKnown(_ scalar: Unicode.Scalar) -> Bool {
        (scalar.properties.age?.major ?? .max) <= newestVersion
    }

    private struct Tables {
        var decompositions: [UInt32: [Unicode.Scalar]] = [:]
        var compositions: [Pair: Unicode.Scalar] = [:]
        /// Starters that combine with what comes before them, or whose decomposition begins with something that does.
        var continuations: Set<UInt32> = []
    }

    private static let tables: Tables = {
        func scalar(_ hexadecimal: Substring) -> Unicode.Scalar {
            UInt32(hexadecimal, radix: 16).flatMap(Unicode.Scalar.init) ?? "\u{FFFD}"
        }
        var tables = Tables()
        for entry in CanonicalMappings.pairs.split(separator: " ") {
            let parts = entry.split(whereSeparator: { "=>+".contains($0) }).map(scalar)
            guard parts.count == 3, isKnown(parts[0]) else { continue }
            tables.decompositions[parts[0].value] = Array(parts[1...])
            guard entry.contains("=") else { continue }
            tables.compositions[Pair(first: parts[1].value, second: parts[2].value)] = parts[0]
            if combiningClass(parts[2]) == 0 { tables.continuations.insert(parts[2].value) }
        }
        var source: UInt32 = 0
        for word in CanonicalMappings.singletons.split(separator: " ") {
            if word.last == ">" {
                source = scalar(word.dropLast()).value
            } else {
                tables.decompositions[source] = [scalar(word)]
                source += 1
            }
        }
        for value in Hangul.vowels { tables.continuations.insert(value) }
        for value in Hangul.trailing.dropFirst() { tables.continuations.insert(value) }
        for (value, parts) in tables.decompositions {
            var first = parts[0]
            while let next = tables.decompositions[first.value] { first = next[0] }
            if combiningClass(first) != 0 || tables.continuations.contains(first.value) {
                tables.continuations.insert(value)
            }
        }
        return tables
    }()

    private enum Hangul {
        static let syllables: Range<UInt32> = 0xAC00..<0xAC00 + 11_172
        static let leading: Range<UInt32> = 0x1100..<0x1113
        static let vowels: Range<UInt32> = 0x1161..<0x1176
        /// The first stands for "none" in the arithmetic.
        static let trailing: Range<UInt32> = 0x11A7..<0x11C3
        static let vowelCount: UInt32 = 21
        static let trailingCount: UInt32 = 28
    }

    private static func combiningClass(_ scalar: Unicode.Scalar) -> UInt8 {
        guard scalar.value >= 0x300 else { return 0 }
        let combiningClass = scalar.properties.canonicalCombiningClass.rawValue
        return combiningClass == 0 || isKnown(scalar) ? combiningClass : 0
    }

    /// Whether no composition reaches over the scalar's left edge.
    static func startsGroup(_ scalar: Unicode.Scalar) -> Bool {
        scalar.value < 0x300 || combiningClass(scalar) == 0 && !tables.continuations.contains(scalar.value)
    }

    static func composed(_ group: [Unicode.Scalar]) -> [Unicode.Scalar] {
        if group.count == 1, tables.decompositions[group[0].value] == nil { return group }
        var scalars: [Unicode.Scalar] = []
        for scalar in group { appendDecomposition(of: scalar, to: &scalars) }
        order(&scalars)
        return compose(scalars)
    }

    private static func appendDecomposition(of scalar: Unicode.Scalar, to scalars: inout [Unicode.Scalar]) {
        if Hangul.syllables.contains(scalar.value) {
            let index = scalar.value - Hangul.syllables.lowerBound
            let (leading, rest) = index.quotientAndRemainder(dividingBy: Hangul.vowelCount * Hangul.trailingCount)
            let (vowel, trailing) = rest.quotientAndRemainder(dividingBy: Hangul.trailingCount)
            append(Hangul.leading.lowerBound + leading, to: &scalars)
            append(Hangul.vowels.lowerBound + vowel, to: &scalars)
            if trailing > 0 { append(Hangul.trailing.lowerBound + trailing, to: &scalars) }
        } else if let parts = tables.decompositions[scalar.value] {
            // At most three deep in any Unicode version.
            for part in parts { appendDecomposition(of: part, to: &scalars) }
        } else {
            scalars.append(scalar)
        }
    }

    private static func append(_ value: UInt32, to scalars: inout [Unicode.Scalar]) {
        if let scalar = Unicode.Scalar(value) { scalars.append(scalar) }
    }

    /// The canonical ordering: marks between starters by combining class, those of one class as they stand.
    private static func order(_ scalars: inout [Unicode.Scalar]) {
        var start = 0
        while start < scalars.count {
            guard combiningClass(scalars[start]) != 0 else {
                start += 1
                continue
            }
            var end = start
            while end < scalars.count, combiningClass(scalars[end]) != 0 { end += 1 }
            let marks = scalars[start..<end].enumerated().map { (combiningClass($1), $0, $1) }
            for (offset, mark) in marks.sorted(by: { ($0.0, $0.1) < ($1.0, $1.1) }).enumerated() {
                scalars[start + offset] = mark.2
            }
            start = end
        }
    }

    private static func compose(_ scalars: [Unicode.Scalar]) -> [Unicode.Scalar] {
        var result: [Unicode.Scalar] = []
        var starter: Int?
        /// Of the last scalar kept after the starter; nil when there is none.
        var lastClass: UInt8?
        for scalar in scalars {
            let scalarClass = combiningClass(scalar)
            // Blocked by a scalar in between that is a starter or of no lower class.
            if let starter, lastClass.map({ $0 < scalarClass }) ?? true,
                let composite = composite(of: result[starter], scalar)
            {
                result[starter] = composite
                continue
            }
            if scalarClass == 0 {
                starter = result.count
                lastClass = nil
            } else {
                lastClass = scalarClass
            }
            result.append(scalar)
        }
        return result
    }

    private static func composite(of first: Unicode.Scalar, _ second: Unicode.Scalar) -> Unicode.Scalar? {
        if Hangul.leading.contains(first.value), Hangul.vowels.contains(second.value) {
            let leading = first.value - Hangul.leading.lowerBound
            let vowel = second.value - Hangul.vowels.lowerBound
            return Unicode.Scalar(
                Hangul.syllables.lowerBound + (leading * Hangul.vowelCount + vowel) * Hangul.trailingCount)
        }
        if Hangul.syllables.contains(first.value),
            (first.value - Hangul.syllables.lowerBound).isMultiple(of: Hangul.trailingCount),
            Hangul.trailing.dropFirst().contains(second.value)
        {
            return Unicode.Scalar(first.value + (second.value - Hangul.trailing.lowerBound))
        }
        return tables.compositions[Pair(first: first.value, second: second.value)]
    }
}
