import EdgeFormats
import EdgeTestSupport
import Testing

@Suite struct TokenizerTests {
    /// `tokenizer_smollm.jsonl` is described in make_tokenizer_goldens.py.
    @Test func idsEqualThoseOfHuggingFaceTokenizers() throws {
        let tokenizer = try TestModel.tokenizer()
        let rows = try TestModel.goldens("tokenizer_smollm.jsonl").split(separator: UInt8(ascii: "\n")).dropFirst()
        #expect(rows.count >= 10_000)
        var rowsWithIDs = 0
        for row in rows {
            guard case .list(let fields) = try JinjaValue(json: Array(row)), let text = fields.items[0].stringValue
            else { throw GoldenError.malformed }
            let ids = tokenizer.encode(text, specialTokens: .parse)
            if fields.items.count > 2 {
                rowsWithIDs += 1
                #expect(
                    JinjaValue.list(try JinjaList(ids.map { .int(Int($0)) })) == fields.items[2],
                    "\(text.debugDescription)")
            }
            #expect(fingerprint(ids) == fields.items[1].stringValue, "\(text.debugDescription)")
        }
        #expect(rowsWithIDs >= 500)
    }

    @Test func decodingUndoesEncoding() throws {
        let tokenizer = try TestModel.tokenizer()
        #expect(tokenizer.unencodableBytes.filter { $0 < 0x80 } == [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D])
        var random = SeededText(seed: 11)
        for _ in 0..<3_000 {
            let text = random.text(scalars: 60)
            let utf8 = Array(text.utf8).filter { !tokenizer.unencodableBytes.contains($0) }
            for mode in [SpecialTokens.parse, .asText] {
                #expect(
                    try tokenizer.decode(tokenizer.encode(text, specialTokens: mode)) == utf8,
                    "\(text.debugDescription)")
            }
        }
    }

    @Test func decodingUndoesEncodingForEveryScalarOfACompleteVocabulary() throws {
        let tokenizer = try Tokenizer(TokenizerSpec(Self.bytesOnly()))
        #expect(tokenizer.unencodableBytes.isEmpty)
        var text = ""
        for value in UInt32(0)...0x10FFFF {
            if let scalar = Unicode.Scalar(value) { text.unicodeScalars.append(scalar) }
        }
        #expect(try tokenizer.decode(tokenizer.encode(text, specialTokens: .asText)) == Array(text.utf8))
    }

    @Test func spansCoverTheTextInOrder() throws {
        let tokenizer = try TestModel.tokenizer()
        var random = SeededText(seed: 12)
        for _ in 0..<500 {
            let text = random.text(scalars: 80)
            var end = 0
            for span in tokenizer.spans(of: text, specialTokens: .parse) {
                #expect(span.utf8Range.lowerBound >= end)
                let gap = Array(text.utf8)[end..<span.utf8Range.lowerBound]
                #expect(gap.allSatisfy(tokenizer.unencodableBytes.contains))
                end = span.utf8Range.upperBound
            }
        }
    }

    @Test func specialTokensAreTextWhenAskedFor() throws {
        let tokenizer = try TestModel.tokenizer()
        #expect(tokenizer.encode("<|im_start|>", specialTokens: .parse) == [1])
        let asText = tokenizer.encode("<|im_start|>", specialTokens: .asText)
        #expect(asText.count > 1)
        #expect(try tokenizer.decodedText(asText) == "<|im_start|>" && !asText.contains(1))
    }

    @Test func theLongestSpecialTokenWins() throws {
        var spec = Self.bytesOnly()
        for token in ["<a>", "<a><b>", "<a><b"] {
            spec.tokens.append(Array(token.utf8))
            spec.tokenTypes.append(3)
        }
        let tokenizer = try Tokenizer(TokenizerSpec(spec))
        #expect(tokenizer.encode("<a><b><a><b<a>", specialTokens: .parse) == [257, 258, 256])
    }

    @Test(arguments: [" ", "a", "\n", "'", "é", "1", "ab", "<|im_start", "\u{301}", "👨‍👩‍👧 "])
    func timeIsNearlyLinearInTheLengthOfARun(_ unit: String) throws {
        let tokenizer = try TestModel.tokenizer()
        let text = String(repeating: unit, count: 100_000)
        let seconds = processorSeconds { _ = tokenizer.encode(text, specialTokens: .parse) }
        #expect(seconds < 1, "\(unit.debugDescription): \(seconds)")
    }

    @Test func streamingNeverTakesTextBack() throws {
        let tokenizer = try Tokenizer(TokenizerSpec(Self.bytesOnly()))
        var random = SeededText(seed: 13)
        for round in 0..<2_000 {
            let bytes = round.isMultiple(of: 2) ? Array(random.text(scalars: 12).utf8) : random.bytes(12)
            var decoder = StreamingDecoder(tokenizer)
            var text = ""
            for byte in bytes { text += try decoder.append(TokenID(byte)) }
            text += decoder.finish()
            #expect(Array(text.utf8) == Array(String(decoding: bytes, as: UTF8.self).utf8))
        }
    }

    @Test func streamingHoldsBackAnIncompleteCharacter() throws {
        var decoder = StreamingDecoder(try Tokenizer(TokenizerSpec(Self.bytesOnly())))
        let pieces = try "é€".utf8.map { byte in try decoder.append(TokenID(byte)) }
        #expect(pieces == ["", "é", "", "", "€"])
    }

    @Test func aBadVocabularyIsRefusedWithItsNumbers() {
        func error(_ change: (inout GGUFTokenizerMetadata) -> Void) -> TokenizerError? {
            var spec = Self.bytesOnly()
            change(&spec)
            do throws(TokenizerError) { _ = try Tokenizer(TokenizerSpec(spec)) } catch { return error }
            return nil
        }
        #expect(
            error {
                $0.tokens = []
                $0.tokenTypes = []
            } == .vocabularySize(0))
        #expect(error { $0.tokenTypes.removeLast() } == .entryCount(key: "token_type", tokens: 256, entries: 255))
        #expect(error { $0.tokenTypes[3] = 9 } == .unknownTokenType(token: 3, type: 9))
        #expect(error { $0.tokenTypes[3] = 6 } == .byteTokenInByteLevelVocabulary(token: 3))
        #expect(
            error { $0.preTokenizer = "bert" }
                == .unknownPreTokenizer("bert", supported: PreTokenizer.all.flatMap(\.names)))
        #expect(error { $0.model = "rwkv" } == .unsupportedModel("rwkv", supported: ["gpt2", "llama", "t5"]))
        #expect(error { $0.model = "llama" } == .entryCount(key: "scores", tokens: 256, entries: 0))
        #expect(error { $0.model = "t5" } == .entryCount(key: "scores", tokens: 256, entries: 0))
        #expect(
            error {
                $0.tokens[3] = Array(repeating: 0x61, count: 4097)
                $0.tokenTypes[3] = 3
            } == .tokenTooLong(id: 3, bytes: 4097, limit: 4096))
        #expect(error { $0.merges = ["ab"] } == .malformedMerge(rank: 0, merge: "ab"))
        #expect(error { $0.merges = ["a b"] } == .mergeNotInVocabulary(rank: 0, merge: "a b", missing: "ab"))
        #expect(error { $0.eosTokenID = 256 } == .specialTokenOutOfRange(role: "EOS", id: 256, vocabularySize: 256))
    }

    /// Ids without a token count: a score was read past the end.
    @Test func aUnigramVocabularyWithGapsNeedsAScoreForItsLastID() {
        var metadata = GGUFTokenizerMetadata(
            model: "t5", preTokenizer: nil, tokens: ["<unk>", "", "a"].map { Array($0.utf8) }, tokenTypes: [2, 1, 1])
        metadata.scores = [0, 0]
        metadata.unknownTokenID = 0
        #expect(throws: TokenizerError.entryCount(key: "scores", tokens: 3, entries: 2)) {
            try Tokenizer(TokenizerSpec(metadata))
        }
    }

    /// Of Gemma's GGUFs runs of spaces are spelled as spaces, and the order of tokens stands in for their scores.
    @Test func gemmaKeepsRunsOfSpaces() throws {
        var metadata = GGUFTokenizerMetadata(
            model: "llama", preTokenizer: nil, tokens: ["<unk>", "\u{2581}", "a", "  ", "\u{2581}a"].map { Array($0.utf8) },
            tokenTypes: [2, 1, 1, 1, 1])
        metadata.scores = [0, -1, -2, -1000, -1]
        metadata.addSpacePrefix = false
        metadata.unknownTokenID = 0
        #expect(try Tokenizer(TokenizerSpec(metadata)).encode("a  a", specialTokens: .parse) == [2, 1, 4])
        metadata.architecture = "gemma3"
        let tokenizer = try Tokenizer(TokenizerSpec(metadata))
        #expect(tokenizer.encode("a  a", specialTokens: .parse) == [2, 3, 2])
        #expect(try tokenizer.decodedText([2, 3, 2, 4]) == "a  a a")
        #expect(tokenizer.addBOS)
    }

    @Test func aTokenOutsideTheVocabularyIsRefused() throws {
        let tokenizer = try Tokenizer(TokenizerSpec(Self.bytesOnly()))
        #expect(throws: TokenizerError.tokenOutOfRange(id: 256, vocabularySize: 256)) { try tokenizer.decode([256]) }
        #expect(throws: TokenizerError.tokenOutOfRange(id: -1, vocabularySize: 256)) { try tokenizer.decode([-1]) }
    }

    /// 256 tokens, token i being byte i, without merges.
    static func bytesOnly() -> GGUFTokenizerMetadata {
        var standIn: UInt32 = 0x100
        let tokens = (0...255).map { (byte: UInt32) -> [UInt8] in
            let isItself = (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || (0xAE...0xFF).contains(byte)
            defer { if !isItself { standIn += 1 } }
            return Unicode.Scalar(isItself ? byte : standIn).map { Array(String($0).utf8) } ?? []
        }
        return GGUFTokenizerMetadata(
            model: "gpt2", preTokenizer: "smollm", tokens: tokens, tokenTypes: Array(repeating: 1, count: 256))
    }
}

enum GoldenError: Error { case malformed }

/// SplitMix64 (Steele et al. 2014), and texts made from it.
struct SeededText: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }

    mutating func bytes(_ limit: Int) -> [UInt8] {
        (0..<Int.random(in: 0...limit, using: &self)).map { _ in UInt8.random(in: .min ... .max, using: &self) }
    }

    /// Up to `limit` scalars of any plane, mostly short code points.
    mutating func text(scalars limit: Int) -> String {
        var text = ""
        let highest: [UInt32] = [0x7F, 0x7F, 0x7FF, 0xFFFF, 0x10FFFF]
        for _ in 0..<Int.random(in: 0...limit, using: &self) {
            let value = UInt32.random(in: 0...highest[Int.random(in: 0..<5, using: &self)], using: &self)
            if let scalar = Unicode.Scalar(value) { text.unicodeScalars.append(scalar) }
        }
        return text
    }

    /// Up to `limit` of the pieces, end to end.
    mutating func mixture(of pieces: [String], limit: Int) -> String {
        (0..<Int.random(in: 0...limit, using: &self)).map { _ in pieces[Int.random(in: pieces.indices, using: &self)] }
            .joined()
    }
}
