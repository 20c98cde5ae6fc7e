// The unigram model: of all ways to cut a piece into tokens the one with the greatest sum of scores, by Viterbi's
// algorithm from left to right. A position costs at most the longest token's length. Ids equal those of
// huggingface/tokenizers (models/unigram/model.rs, `encode_optimized`), ties included.

struct UnigramEncoder: Sendable {
    private let vocabulary: Vocabulary
    private let sorted: SortedVocabulary
    private let scores: [Double]
    private let unknown: TokenID
    /// Of a scalar that no token covers: 10 below the worst token (sentencepiece, unigram_model.cc, kUnkPenalty).
    private let unknownScore: Double
    /// nil where unknown text is not spelled in byte tokens.
    private let byteTokens: [TokenID?]?

    /// The best way to reach a position.
    private struct Arrival {
        var score = 0.0
        var start = -1
        var token: TokenID = 0
    }

    /// - Parameter ids: ascending.
    init(_ model: UnigramModel, _ vocabulary: Vocabulary, ids: [TokenID]) throws(TokenizerError) {
        let needed = (ids.last.map { Int($0) } ?? 0) + 1
        guard model.scores.count >= needed, let worst = ids.map({ model.scores[Int($0)] }).min() else {
            throw .entryCount(key: "scores", tokens: needed, entries: model.scores.count)
        }
        for (index, score) in model.scores.enumerated() where !score.isFinite {
            throw .scoreNotFinite(token: index)
        }
        guard let unknown = model.unknown else { throw .missingUnknownToken }
        for id in ids where vocabulary[id].count > TokenizerSpec.longestToken {
            throw .tokenTooLong(id: Int(id), bytes: vocabulary[id].count, limit: TokenizerSpec.longestToken)
        }
        self.vocabulary = vocabulary
        self.unknown = unknown
        sorted = SortedVocabulary(vocabulary, ids)
        scores = model.scores
        unknownScore = worst - 10
        byteTokens =
            model.fallback == .none
            ? nil : (UInt8.min...UInt8.max).map { vocabulary.id(of: byteToken($0)[...]) }
    }

    /// Appends the piece's tokens with where they lie in `utf8`.
    func encode(_ utf8: [UInt8], _ piece: Range<Int>, into spans: inout [TokenSpan]) {
        let arrivals = arrivals(utf8, piece)
        var best: [TokenSpan] = []
        var end = piece.count
        while end > 0 {
            let arrival = arrivals[end]
            let range = piece.lowerBound + arrival.start..<piece.lowerBound + end
            end = arrival.start
            if arrival.token == unknown, let last = best.last, last.id == unknown {
                best[best.count - 1] = TokenSpan(id: unknown, utf8Range: range.lowerBound..<last.utf8Range.upperBound)
            } else {
                best.append(TokenSpan(id: arrival.token, utf8Range: range))
            }
        }
        for span in best.reversed() {
            if span.id == unknown { appendUnknown(utf8, span.utf8Range, into: &spans) } else { spans.append(span) }
        }
    }

    private func arrivals(_ utf8: [UInt8], _ piece: Range<Int>) -> [Arrival] {
        var arrivals = [Arrival](repeating: Arrival(), count: piece.count + 1)
        func arrive(_ end: Int, _ arrival: Arrival) {
            if arrivals[end].start < 0 || arrival.score > arrivals[end].score { arrivals[end] = arrival }
        }
        var start = 0
        while start < piece.count {
            let offset = piece.lowerBound + start
            var scalarLength = 1
            while offset + scalarLength < piece.upperBound, utf8[offset + scalarLength] & 0xC0 == 0x80 {
                scalarLength += 1
            }
            let score = arrivals[start].score
            var coversScalar = false
            sorted.forEachPrefix(of: utf8, at: offset, end: piece.upperBound) { token, length in
                arrive(
                    start + length, Arrival(score: scores[Int(token)] + score, start: start, token: token))
                if length == scalarLength { coversScalar = true }
            }
            if !coversScalar {
                arrive(
                    start + scalarLength, Arrival(score: unknownScore + score, start: start, token: unknown))
            }
            start += scalarLength
        }
        return arrivals
    }

    /// A run of unknown text is a token after all where its characters together are one.
    private func appendUnknown(_ utf8: [UInt8], _ range: Range<Int>, into spans: inout [TokenSpan]) {
        if let token = vocabulary.id(of: utf8[range]) {
            spans.append(TokenSpan(id: token, utf8Range: range))
        } else if let byteTokens, range.allSatisfy({ byteTokens[Int(utf8[$0])] != nil }) {
            for offset in range {
                if let token = byteTokens[Int(utf8[offset])] {
                    spans.append(TokenSpan(id: token, utf8Range: offset..<offset + 1))
                }
            }
        } else {
            spans.append(TokenSpan(id: unknown, utf8Range: range))
        }
    }
}
