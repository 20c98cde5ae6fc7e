// The merge table and the merging of one piece. A piece of n symbols takes O(n log n): the candidate merges wait in a
// heap ordered by (rank, position), the symbols are a linked list, and a candidate whose pair has changed since it
// was queued is dropped when it surfaces. Upstream: huggingface/tokenizers, models/bpe/word.rs.

/// One token of an encoded text, and the bytes of the text it stands for.
package struct TokenSpan: Sendable, Equatable {
    package let id: TokenID
    /// Offsets into the text's UTF-8.
    package let utf8Range: Range<Int>
}

/// `(left, right) -> (rank, merged)`. Open addressing with linear probing, at most half full: merges are looked up once
/// per adjacent pair of symbols, which makes this the tokenizer's inner loop.
struct BytePairMerges: Sendable {
    struct Merge {
        let rank: UInt32
        let merged: TokenID
    }

    private var pairs: [UInt64]
    private var merges: [Merge]
    private let mask: Int
    /// No pair: token ids are not negative.
    private static let empty = UInt64.max

    /// - Parameter ordered: best first.
    init(_ ordered: [TokenMerge]) {
        var slots = 16
        while slots < 2 * ordered.count { slots *= 2 }
        pairs = Array(repeating: Self.empty, count: slots)
        merges = Array(repeating: Merge(rank: 0, merged: 0), count: slots)
        mask = slots - 1
        for (rank, merge) in ordered.enumerated() { insert(merge, rank: rank) }
    }

    private static func pair(_ left: TokenID, _ right: TokenID) -> UInt64 {
        UInt64(UInt32(bitPattern: left)) << 32 | UInt64(UInt32(bitPattern: right))
    }

    /// The slot that holds `pair`, or the free one where it belongs.
    private func slot(of pair: UInt64) -> Int {
        // Fibonacci hashing: 2^64 / golden ratio; the high half is well mixed.
        var slot = Int(truncatingIfNeeded: (pair &* 0x9E37_79B9_7F4A_7C15) >> 32) & mask
        while pairs[slot] != pair, pairs[slot] != Self.empty { slot = (slot + 1) & mask }
        return slot
    }

    /// The last of two merges of the same pair counts, as in huggingface/tokenizers.
    private mutating func insert(_ merge: TokenMerge, rank: Int) {
        let pair = Self.pair(merge.left, merge.right)
        let slot = slot(of: pair)
        pairs[slot] = pair
        merges[slot] = Merge(rank: UInt32(rank), merged: merge.merged)
    }

    func merge(left: TokenID, right: TokenID) -> Merge? {
        let pair = Self.pair(left, right)
        let slot = slot(of: pair)
        return pairs[slot] == pair ? merges[slot] : nil
    }
}

/// The symbols of the piece being merged. One value serves a whole text, so that a piece allocates nothing.
struct PieceSymbols {
    private struct Symbol {
        var id: TokenID
        var start: Int
        var end: Int
        /// Index of the neighbour; `none` at the ends. A symbol merged into its left neighbour has `end == start`.
        var previous: Int
        var next: Int
    }

    private static let none = -1
    private var symbols: [Symbol] = []
    /// `rank << 32 | index of the left symbol`, a binary min-heap.
    private var candidates: [UInt64] = []

    mutating func removeAll() {
        symbols.removeAll(keepingCapacity: true)
        candidates.removeAll(keepingCapacity: true)
    }

    mutating func append(_ id: TokenID, utf8Range: Range<Int>) {
        let index = symbols.count
        if index > 0 { symbols[index - 1].next = index }
        symbols.append(
            Symbol(
                id: id, start: utf8Range.lowerBound, end: utf8Range.upperBound,
                previous: index - 1, next: Self.none))
    }

    /// Merges until no pair is left in `merges`, and appends what remains.
    mutating func merge(by merges: BytePairMerges, into spans: inout [TokenSpan]) {
        for index in symbols.indices.dropLast() { queueMerge(at: index, by: merges) }
        while let candidate = popCandidate() {
            let left = Int(candidate & 0xFFFF_FFFF)
            let right = symbols[left].next
            guard symbols[left].start < symbols[left].end, right != Self.none,
                let merge = merges.merge(left: symbols[left].id, right: symbols[right].id),
                UInt64(merge.rank) == candidate >> 32
            else { continue }
            symbols[left].id = merge.merged
            symbols[left].end = symbols[right].end
            symbols[right].end = symbols[right].start
            let next = symbols[right].next
            symbols[left].next = next
            if next != Self.none {
                symbols[next].previous = left
                queueMerge(at: left, by: merges)
            }
            if symbols[left].previous != Self.none { queueMerge(at: symbols[left].previous, by: merges) }
        }
        for symbol in symbols where symbol.start < symbol.end {
            spans.append(TokenSpan(id: symbol.id, utf8Range: symbol.start..<symbol.end))
        }
    }

    private mutating func queueMerge(at left: Int, by merges: BytePairMerges) {
        let right = symbols[left].next
        guard let merge = merges.merge(left: symbols[left].id, right: symbols[right].id) else { return }
        var child = candidates.count
        candidates.append(UInt64(merge.rank) << 32 | UInt64(left))
        while child > 0 {
            let parent = (child - 1) / 2
            guard candidates[child] < candidates[parent] else { return }
            candidates.swapAt(child, parent)
            child = parent
        }
    }

    private mutating func popCandidate() -> UInt64? {
        guard let first = candidates.first, let last = candidates.popLast() else { return nil }
        guard !candidates.isEmpty else { return first }
        candidates[0] = last
        var parent = 0
        while true {
            var child = 2 * parent + 1
            guard child < candidates.count else { break }
            if child + 1 < candidates.count, candidates[child + 1] < candidates[child] { child += 1 }
            guard candidates[child] < candidates[parent] else { break }
            candidates.swapAt(child, parent)
            parent = child
        }
        return first
    }
}
