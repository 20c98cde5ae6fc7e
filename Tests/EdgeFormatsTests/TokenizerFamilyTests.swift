import EdgeFormats
import EdgeTestSupport
import Testing

/// A line of `tokenizer_families.jsonl`, which make_tokenizer_family_goldens.py describes.
struct TokenizerFamily: CustomTestStringConvertible, Sendable {
    let name: String
    let value: JSONText

    var testDescription: String { name }

    func spec() throws -> TokenizerSpec {
        if let text = value["tokenizer_json"]?.string {
            return try TokenizerSpec(tokenizerJSON: Array(text.utf8), config: nil)
        }
        guard let gguf = value["gguf"], let model = gguf["model"]?.string else { throw GoldenError.malformed }
        var metadata = GGUFTokenizerMetadata(
            model: model, preTokenizer: nil,
            tokens: (gguf["tokens"]?.array ?? []).compactMap { $0.string.map { Array($0.utf8) } },
            tokenTypes: (gguf["token_type"]?.array ?? []).compactMap { $0.integer.map { Int32($0) } })
        metadata.scores = (gguf["scores"]?.array ?? []).compactMap(\.double)
        metadata.unknownTokenID = gguf["unknown_token_id"]?.integer
        return try TokenizerSpec(metadata)
    }

    /// The fingerprint of every text, 16 hex digits each.
    func fingerprints(_ key: String) throws -> [Substring] {
        guard let all = value[key]?.string else { throw GoldenError.malformed }
        return stride(from: 0, to: all.utf8.count, by: 16).map { start in
            let from = all.index(all.startIndex, offsetBy: start)
            return all[from..<all.index(from, offsetBy: 16)]
        }
    }

    static let lines: [ArraySlice<UInt8>] =
        ((try? TestModel.goldens("tokenizer_families.jsonl")) ?? []).split(separator: UInt8(ascii: "\n"))

    static let texts: [String] =
        (try? lines.dropFirst().first?.withUnsafeBytes { try JSONText(parsing: $0) })?.array?.compactMap(\.string) ?? []

    static let all: [TokenizerFamily] = lines.dropFirst(2).compactMap { line in
        guard let value = try? line.withUnsafeBytes({ try JSONText(parsing: $0) }), let name = value["name"]?.string
        else { return nil }
        return TokenizerFamily(name: name, value: value)
    }
}

/// FNV-1a 64 in 16 hex digits.
func fingerprint(_ bytes: some Sequence<UInt8>) -> String {
    var value: UInt64 = 0xCBF2_9CE4_8422_2325
    for byte in bytes { value = (value ^ UInt64(byte)) &* 0x100_0000_01B3 }
    let hex = String(value, radix: 16)
    return String(repeating: "0", count: 16 - hex.count) + hex
}

/// Of the ids as little-endian int32.
func fingerprint(_ ids: [TokenID]) -> String {
    fingerprint(ids.flatMap { id in (0..<4).map { UInt8(truncatingIfNeeded: id >> Int32(8 * $0)) } })
}

@Suite struct TokenizerFamilyTests {
    @Test func theGoldensHoldEveryFamily() {
        let names = TokenizerFamily.all.map(\.name)
        #expect(names.count == 21)
        #expect(Set(names).isSuperset(of: ["llama-3", "qwen-2", "gemma", "phi-3", "t5", "llama-2 in GGUF"]))
        #expect(TokenizerFamily.texts.count == 150)
    }

    @Test(arguments: TokenizerFamily.all)
    func idsAndTextsEqualThoseOfHuggingFaceTokenizers(_ family: TokenizerFamily) throws {
        let tokenizer = try Tokenizer(family.spec())
        let (ids, texts) = (try family.fingerprints("ids"), try family.fingerprints("texts"))
        let first = family.value["first_ids"]?.array ?? []
        #expect(ids.count == TokenizerFamily.texts.count && texts.count == ids.count && first.count == 12)
        for (index, text) in TokenizerFamily.texts.enumerated() {
            let encoded = tokenizer.encode(text, specialTokens: .parse)
            if index < first.count {
                #expect(
                    encoded.map(Int.init) == first[index].array?.compactMap(\.integer), "\(text.debugDescription)")
            }
            #expect(fingerprint(encoded) == ids[index], "\(index): \(text.debugDescription)")
            let decoded = try tokenizer.decodedText(encoded)
            #expect(fingerprint(decoded.utf8) == texts[index], "\(index): \(text.debugDescription)")
        }
    }

    @Test(arguments: TokenizerFamily.all) func streamedTextEqualsDecodedText(_ family: TokenizerFamily) throws {
        let tokenizer = try Tokenizer(family.spec())
        var random = SeededText(seed: 31)
        for _ in 0..<300 {
            let ids = (0..<40).map { _ in TokenID.random(in: 0..<TokenID(tokenizer.vocabularySize), using: &random) }
            var decoder = StreamingDecoder(tokenizer)
            var text = ""
            for id in ids { text += try decoder.append(id) }
            text += decoder.finish()
            #expect(Array(text.utf8) == Array(try tokenizer.decodedText(ids).utf8))
        }
    }

    @Test(arguments: TokenizerFamily.all) func spansAscendInsideTheText(_ family: TokenizerFamily) throws {
        let tokenizer = try Tokenizer(family.spec())
        for text in TokenizerFamily.texts {
            var start = 0
            for span in tokenizer.spans(of: text, specialTokens: .parse) {
                #expect(span.utf8Range.lowerBound >= start && span.utf8Range.upperBound <= text.utf8.count)
                start = span.utf8Range.lowerBound
            }
        }
    }

    /// A quadratic step would take minutes.
    @Test(arguments: TokenizerFamily.all)
    func timeIsNearlyLinearInTheLengthOfARun(_ family: TokenizerFamily) throws {
        let tokenizer = try Tokenizer(family.spec())
        for unit in ["a", " ", "ab", "\n", "1", "é", "\u{301}", "e\u{301}", "漢", "'s", " a", "\u{2581}", "<", "Aa", "."] {
            let text = String(repeating: unit, count: 250_000 / unit.utf8.count)
            let seconds = processorSeconds {
                let ids = tokenizer.encode(text, specialTokens: .parse)
                _ = try? tokenizer.decodedText(ids)
            }
            #expect(seconds < 4, "\(unit.debugDescription): \(seconds)")
        }
    }

    @Test func aRunOfByteTokensIsHeldBackUntilItEnds() throws {
        let family = try #require(TokenizerFamily.all.first { $0.name == "llama-2" })
        let tokenizer = try Tokenizer(family.spec())
        let word = try #require(tokenizer.encode("a", specialTokens: .asText).last)
        func byte(_ value: UInt8) throws -> TokenID {
            let name = "<0x" + (value < 16 ? "0" : "") + String(value, radix: 16, uppercase: true) + ">"
            return try #require(
                (0..<TokenID(tokenizer.vocabularySize)).first { (try? family.spec().tokens[Int($0)]) == Array(name.utf8) })
        }
        let euro = try "€".utf8.map(byte)
        var decoder = StreamingDecoder(tokenizer)
        let pieces = try (euro + [word]).map { id throws in try decoder.append(id) }
        #expect(pieces == ["", "", "", "€a"])
        #expect(try tokenizer.decodedText(euro.dropLast() + [word]) == "\u{FFFD}\u{FFFD}a")
        #expect(try tokenizer.decode(Array(euro.dropLast())) == Array("€".utf8.dropLast()))
    }

    @Test func textThatIsToBePlainKeepsOnlyTokensThatAreNotSpecial() throws {
        let family = try #require(TokenizerFamily.all.first { $0.name == "added tokens" })
        let tokenizer = try Tokenizer(family.spec())
        #expect(tokenizer.encode("<|user|>", specialTokens: .parse).count == 1)
        #expect(tokenizer.encode("<|user|>", specialTokens: .asText).count > 1)
        #expect(tokenizer.encode("<left>", specialTokens: .asText).count == 1)
    }

    @Test func aTurnEndsWithAnAddedTokenButNotWithWhiteSpace() throws {
        let family = try #require(TokenizerFamily.all.first { $0.name == "added tokens" })
        let tokenizer = try Tokenizer(family.spec())
        #expect(tokenizer.endOfLastSpecialToken(in: Array("a<|end|>b    c".utf8)[...]) == 8)
        #expect(tokenizer.endOfLastSpecialToken(in: Array("a<|end|>b<left>  ".utf8)[1...]) == 15)
        #expect(tokenizer.endOfLastSpecialToken(in: Array("a    b".utf8)[...]) == nil)
    }

    /// Python: `bytes.decode("utf-8", errors="replace")`.
    @Test(arguments: [
        ([0x61, 0xFF, 0x62], "a\u{FFFD}b"), ([0xE2, 0x82], "\u{FFFD}"), ([0xE2, 0x82, 0x41], "\u{FFFD}A"),
        ([0xF0, 0x9F, 0x98], "\u{FFFD}"), ([0xC0, 0x80], "\u{FFFD}\u{FFFD}"),
        ([0xED, 0xA0, 0x80], "\u{FFFD}\u{FFFD}\u{FFFD}"), ([0xF4, 0x90, 0x80, 0x80], "\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}"),
        ([0xE2, 0x28, 0xA1], "\u{FFFD}(\u{FFFD}"),
    ] as [([UInt8], String)])
    func bytesThatAreNoUTF8AreReplacedAsPythonDoes(_ bytes: [UInt8], _ text: String) {
        #expect(Array(String(decoding: bytes, as: UTF8.self).utf8) == Array(text.utf8))
    }
}
