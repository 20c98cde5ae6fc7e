// The tokens of a model by id and by bytes. One block of bytes and a table of ids: half a million tokens cost no
// allocation each. Look-ups are the inner loop of everything but byte-level merging.

struct Vocabulary: Sendable {
    /// All tokens' bytes end to end; token i is `bytes[ends[i - 1] ..< ends[i]]`.
    private var bytes: [UInt8] = []
    private var ends: [Int] = []
    /// Open addressing with linear probing, at most half full; `free` where no token is.
    private var slots: [TokenID]
    private let mask: Int

    private static let free: TokenID = -1

    /// Empty tokens are ids without a token. Of two tokens with the same bytes the last is found.
    init(_ tokens: [[UInt8]], outsideModel: Set<TokenID> = []) {
        var count = 16
        while count < 2 * tokens.count { count *= 2 }
        slots = Array(repeating: Self.free, count: count)
        mask = count - 1
        ends.reserveCapacity(tokens.count)
        bytes.reserveCapacity(tokens.reduce(0) { $0 + $1.count })
        for token in tokens {
            bytes.append(contentsOf: token)
            ends.append(bytes.count)
        }
        for (id, token) in tokens.enumerated() where !token.isEmpty {
            guard outsideModel.isEmpty || !outsideModel.contains(TokenID(id)) else { continue }
            slots[slot(of: token[...])] = TokenID(id)
        }
    }

    var count: Int { ends.count }

    var tokens: [[UInt8]] { ends.indices.map { Array(self[TokenID($0)]) } }

    /// `id` is below `count`.
    subscript(id: TokenID) -> ArraySlice<UInt8> {
        let index = Int(id)
        return bytes[(index == 0 ? 0 : ends[index - 1])..<ends[index]]
    }

    func id(of token: ArraySlice<UInt8>) -> TokenID? {
        let id = slots[slot(of: token)]
        return id == Self.free ? nil : id
    }

    /// The slot that holds the token, or the free one where it belongs.
    private func slot(of token: ArraySlice<UInt8>) -> Int {
        // FNV-1a, then Fibonacci hashing for its weak low bits.
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for byte in token { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
        var slot = Int(truncatingIfNeeded: (hash &* 0x9E37_79B9_7F4A_7C15) >> 32) & mask
        while slots[slot] != Self.free, self[slots[slot]] != token { slot = (slot + 1) & mask }
        return slot
    }
}

// Merges: from a file's text, or from the vocabulary alone.
extension Vocabulary {
    /// "left right", one space between.
    func merges(_ merges: [String]) throws(TokenizerError) -> [TokenMerge] {
        let space = UInt8(ascii: " ")
        var resolved: [TokenMerge] = []
        resolved.reserveCapacity(merges.count)
        // One for all of them, of which a vocabulary has fifty thousand.
        var text: [UInt8] = []
        for (rank, merge) in merges.enumerated() {
            text.removeAll(keepingCapacity: true)
            text.append(contentsOf: merge.utf8)
            guard let end = text.firstIndex(of: space), end > 0, end + 1 < text.count, !text[(end + 1)...].contains(space) else {
                throw .malformedMerge(rank: rank, merge: merge)
            }
            resolved.append(try self.merge(rank: rank, text[..<end], text[(end + 1)...]))
        }
        return resolved
    }

    func merge(rank: Int, _ left: ArraySlice<UInt8>, _ right: ArraySlice<UInt8>) throws(TokenizerError) -> TokenMerge {
        func id(_ token: ArraySlice<UInt8>) throws(TokenizerError) -> TokenID {
            guard let id = self.id(of: token) else {
                throw .mergeNotInVocabulary(
                    rank: rank,
                    merge: String(decoding: left, as: UTF8.self) + " " + String(decoding: right, as: UTF8.self),
                    missing: String(decoding: token, as: UTF8.self))
            }
            return id
        }
        return TokenMerge(left: try id(left), right: try id(right), merged: try id(left + right))
    }

    /// Every way of putting a token together from two, as a vocabulary with scores implies: the best score first, then
    /// the longer left part (transformers, tokenization_utils_base.py, `generate_merges`).
    ///
    /// - Parameter scores: one a token.
    func impliedMerges(scores: [Double]) -> [TokenMerge] {
        struct Candidate {
            let merge: TokenMerge
            let score: Double
            let scalars: (left: Int32, right: Int32)
        }
        var candidates: [Candidate] = []
        for index in ends.indices {
            let token = self[TokenID(index)]
            // Of equal tokens the last is the one that is found.
            guard !token.isEmpty, id(of: token) == TokenID(index) else { continue }
            let scalars = Int32(token.count { $0 & 0xC0 != 0x80 })
            var left: Int32 = 1
            for split in token.indices.dropFirst() where token[split] & 0xC0 != 0x80 {
                if let leftID = id(of: token[..<split]), let rightID = id(of: token[split...]) {
                    candidates.append(
                        Candidate(
                            merge: TokenMerge(left: leftID, right: rightID, merged: TokenID(index)),
                            score: scores[index], scalars: (left, scalars - left)))
                }
                left += 1
            }
        }
        // Python sorts stably: what compares equal keeps the order of the vocabulary.
        let order = candidates.indices.sorted { left, right in
            let (first, second) = (candidates[left], candidates[right])
            if first.score != second.score { return first.score > second.score }
            if first.scalars.left != second.scalars.left { return first.scalars.left > second.scalars.left }
            if first.scalars.right != second.scalars.right { return first.scalars.right > second.scalars.right }
            return left < right
        }
        return order.map { candidates[$0].merge }
    }
}

/// Finds the tokens that a text begins with: ids in the order of their bytes, narrowed a byte at a time.
struct SortedVocabulary: Sendable {
    private let vocabulary: Vocabulary
    private let ids: [TokenID]
    /// Per first byte where its tokens begin in `ids`; 257 entries.
    private let starts: [Int]

    /// - Parameter ids: whose tokens can be found; none of them is empty.
    init(_ vocabulary: Vocabulary, _ ids: [TokenID]) {
        self.vocabulary = vocabulary
        self.ids = ids.sorted { vocabulary[$0].lexicographicallyPrecedes(vocabulary[$1]) }
        var starts = [Int](repeating: 0, count: 257)
        for id in ids { starts[Int(vocabulary[id].first ?? 0) + 1] += 1 }
        for byte in 1...256 { starts[byte] += starts[byte - 1] }
        self.starts = starts
    }

    /// Calls back with every token that starts at `offset`, shortest first.
    func forEachPrefix(of utf8: [UInt8], at offset: Int, end: Int, _ body: (TokenID, _ length: Int) -> Void) {
        var (low, high) = (starts[Int(utf8[offset])], starts[Int(utf8[offset]) + 1])
        var length = 1
        while low < high {
            // All of [low, high) share `length` bytes; one that has no more of them is the first.
            if vocabulary[ids[low]].count == length {
                body(ids[low], length)
                low += 1
            }
            guard offset + length < end else { return }
            let byte = utf8[offset + length]
            low = partition(low, high) { self.byte(of: $0, at: length) >= byte }
            high = partition(low, high) { self.byte(of: $0, at: length) > byte }
            length += 1
        }
    }

    private func byte(of id: TokenID, at offset: Int) -> UInt8 {
        let token = vocabulary[id]
        return token[token.startIndex + offset]
    }

    /// The first index in [low, high) whose token satisfies what every later one does too; `high` without one.
    private func partition(_ low: Int, _ high: Int, _ isAfter: (TokenID) -> Bool) -> Int {
        var (low, high) = (low, high)
        while low < high {
            let middle = low + (high - low) / 2
            if isAfter(ids[middle]) { high = middle } else { low = middle + 1 }
        }
        return low
    }
}
