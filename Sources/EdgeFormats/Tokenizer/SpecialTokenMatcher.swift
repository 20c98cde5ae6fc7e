// Finds control and user-defined tokens in text: leftmost, and of those that start together the longest, as the added
// tokens of huggingface/tokenizers are found. A trie over bytes; a position costs at most the longest token's length.

struct SpecialTokenMatcher: Sendable {
    private struct Node {
        var children: [UInt8: Int] = [:]
        var token: TokenID?
    }

    private var nodes = [Node()]
    /// Whether any token starts with the byte: nearly every position of ordinary text is dismissed here.
    private var startsToken = [Bool](repeating: false, count: 256)

    mutating func insert(_ text: [UInt8], token: TokenID) {
        guard let first = text.first else { return }
        startsToken[Int(first)] = true
        var node = 0
        for byte in text {
            if let child = nodes[node].children[byte] {
                node = child
            } else {
                nodes.append(Node())
                nodes[node].children[byte] = nodes.count - 1
                node = nodes.count - 1
            }
        }
        nodes[node].token = token
    }

    /// The longest token that starts at `offset`.
    func match(in utf8: [UInt8], at offset: Int) -> TokenSpan? {
        guard startsToken[Int(utf8[offset])] else { return nil }
        var longest: TokenSpan?
        var node = 0
        var end = offset
        while end < utf8.count, let child = nodes[node].children[utf8[end]] {
            node = child
            end += 1
            if let token = nodes[node].token { longest = TokenSpan(id: token, utf8Range: offset..<end) }
        }
        return longest
    }
}
