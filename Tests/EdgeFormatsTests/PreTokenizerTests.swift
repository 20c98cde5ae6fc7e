import EdgeFormats
import Testing

@Suite struct PreTokenizerTests {
    @Test(arguments: [
        ("Hello world", ["Hello", " world"]),
        ("I'll don't 'LL", ["I", "'ll", " don", "'t", " '", "LL"]),
        ("a  b", ["a", " ", " b"]),
        ("a \n b ", ["a", " \n", " b", " "]),
        ("  12", ["  ", "1", "2"]),
        ("x\u{A0}\u{3000}y", ["x", "\u{A0}", "\u{3000}", "y"]),
        ("\r\n\r\nx", ["\r\n\r", "\n", "x"]),
        ("é\u{301}½Ⅷ!?", ["é", "\u{301}", "½", "Ⅷ", "!?"]),
    ])
    func smolLMCutsNumbersApart(_ text: String, _ expected: [String]) throws {
        #expect(
            try PreTokenizer.named("smollm").pieces(of: text) == expected.map { Array($0.utf8) })
    }

    @Test(arguments: [
        ("  12 34", [" ", " 12", " 34"]),
        ("x=10'000", ["x", "=", "10", "'", "000"]),
    ])
    func gpt2KeepsNumbersTogether(_ text: String, _ expected: [String]) throws {
        #expect(try PreTokenizer.named("gpt-2").pieces(of: text) == expected.map { Array($0.utf8) })
    }

    @Test(arguments: [
        ("llama-bpe", "I'LL say 12345 x!?\n\n\ty  z  ", ["I", "'LL", " say", " ", "123", "45", " x", "!?\n\n", "\ty", " ", " z", "  "]),
        ("qwen2", "a12.\r\n  b", ["a", "1", "2", ".\r\n", " ", " b"]),
        ("qwen35", "के 1", ["के", " ", "1"]),
        ("gpt-4o", "HelloWORLD's aB/\n", ["Hello", "WORLD's", " a", "B", "/\n"]),
        ("tekken", "don't", ["don", "'t"]),
        ("deepseek-v3", "x_y 1234漢字かな!a", ["x", "_y", " ", "123", "4", "漢字かな", "!a"]),
        ("falcon", "a, b12345", ["a", ",", " b", "123", "45"]),
    ])
    func familiesCutAsTheirExpressionsDo(_ family: String, _ text: String, _ expected: [String]) throws {
        #expect(
            try PreTokenizer.named(family).pieces(of: text) == expected.map { Array($0.utf8) })
    }

    @Test(arguments: PreTokenizer.all.flatMap(\.names)) func piecesCoverTheText(_ name: String) throws {
        let preTokenizer = try PreTokenizer.named(name)
        var random = SeededText(seed: 21)
        for _ in 0..<2_000 {
            let text = random.text(scalars: 50)
            let pieces = preTokenizer.pieces(of: text)
            #expect(pieces.allSatisfy { !$0.isEmpty })
            #expect(pieces.flatMap { $0 } == Array(text.utf8))
        }
    }

    @Test func anUnknownNameNamesTheSupportedOnes() {
        #expect(throws: TokenizerError.unknownPreTokenizer("bert", supported: PreTokenizer.all.flatMap(\.names))) {
            try PreTokenizer.named("bert")
        }
    }
}
