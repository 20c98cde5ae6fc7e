// Names of tensors in the order that people count in: layer 2 before layer 10. Whatever a model's shards, its tensors are in one
// order, and those of a layer lie together.

struct NaturalName: Comparable {
    let name: String
    private let parts: [Substring]

    init(_ name: String) {
        self.name = name
        parts = name.split(separator: ".", omittingEmptySubsequences: false)
    }

    static func == (left: NaturalName, right: NaturalName) -> Bool { left.name.utf8.elementsEqual(right.name.utf8) }

    static func < (left: NaturalName, right: NaturalName) -> Bool {
        for (a, b) in zip(left.parts, right.parts) where a != b {
            switch (number(a), number(b)) {
            case (let a?, let b?) where a != b: return a < b
            case (.some, nil): return true
            case (nil, .some): return false
            default: return a.utf8.lexicographicallyPrecedes(b.utf8)
            }
        }
        return left.parts.count < right.parts.count
    }

    /// Of digits alone; nil where that is not an integer.
    private static func number(_ part: Substring) -> Int? {
        part.utf8.allSatisfy { (0x30...0x39).contains($0) } ? Int(part) : nil
    }
}
