import EdgeFormats
import Testing

@Suite struct TokenizerJSONTests {
    /// A complete file of seven tokens; the arguments replace parts of it.
    static func file(
        model: String = #""type":"BPE","vocab":{"a":0,"b":1,"ab":2,"\u0120":3},"merges":[["a","b"]]"#,
        added: String = #"{"id":4,"content":"<s>","special":true},{"id":5,"content":"</s>","special":true}"#,
        normalizer: String = "null",
        preTokenizer: String = #"{"type":"ByteLevel","add_prefix_space":false}"#,
        postProcessor: String = "null", decoder: String = #"{"type":"ByteLevel"}"#
    ) -> [UInt8] {
        Array(
            """
            {"version":"1.0","added_tokens":[\(added)],"normalizer":\(normalizer),"pre_tokenizer":\(preTokenizer),\
            "post_processor":\(postProcessor),"decoder":\(decoder),"model":{\(model)}}
            """.utf8)
    }

    static func spec(_ file: [UInt8], config: String? = nil) throws -> TokenizerSpec {
        try TokenizerSpec(tokenizerJSON: file, config: config.map { Array($0.utf8) })
    }

    @Test func aSmallFileIsRead() throws {
        let tokenizer = try Tokenizer(Self.spec(Self.file()))
        #expect(tokenizer.vocabularySize == 6)
        #expect(tokenizer.encode("ab b<s>a", specialTokens: .parse) == [2, 3, 1, 4, 0])
        #expect(try tokenizer.decodedText([2, 3, 1, 4]) == "ab b<s>")
    }

    @Test func mergesMayComeFirstAndBeWrittenWithASpace() throws {
        let file = Self.file(model: #""merges":["a b"],"vocab":{"ab":2,"b":1,"a":0}"#, added: "")
        #expect(try Tokenizer(Self.spec(file)).encode("abba", specialTokens: .parse) == [2, 1, 0])
    }

    @Test func theConfigurationNamesTheTokens() throws {
        let spec = try Self.spec(
            Self.file(),
            config: #"{"bos_token":"<s>","eos_token":{"content":"</s>"},"pad_token":"<pad>","add_bos_token":true}"#)
        #expect(spec.bosTokenID == 4 && spec.eosTokenID == 5 && spec.paddingTokenID == nil && spec.addBOS)
        #expect(try Tokenizer(spec).bosToken == "<s>")
        #expect(throws: TokenizerError.specialTokenNotInVocabulary(role: "eos_token", token: "<e>")) {
            try Self.spec(Self.file(), config: #"{"eos_token":"<e>"}"#)
        }
        #expect(throws: TokenizerError.malformed("add_bos_token", expected: "false where there is no bos_token")) {
            try Self.spec(Self.file(), config: #"{"add_bos_token":true}"#)
        }
    }

    @Test func aTemplateThatBeginsWithATokenAsksForIt() throws {
        let template =
            #"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A"}}],"#
            + #""special_tokens":{"<s>":{"id":"<s>","ids":[4],"tokens":["<s>"]}}}"#
        let spec = try Self.spec(Self.file(postProcessor: template))
        #expect(spec.addBOS && spec.bosTokenID == 4)
        #expect(try !Self.spec(Self.file(postProcessor: template), config: #"{"add_bos_token":false}"#).addBOS)
    }

    @Test(arguments: [
        (file(normalizer: #"{"type":"NFKC"}"#), "normalizer NFKC"),
        (file(normalizer: #"{"type":"Replace","pattern":{"Regex":"x+"},"content":""}"#), "Replace of x+"),
        (file(preTokenizer: #"{"type":"BertPreTokenizer"}"#), "pre_tokenizer BertPreTokenizer"),
        (
            file(preTokenizer: #"{"type":"Split","pattern":{"Regex":"\\w+"},"behavior":"Isolated","invert":false}"#),
            #"Split of \w+"#
        ),
        (file(postProcessor: #"{"type":"BertProcessing"}"#), "post_processor BertProcessing"),
        (file(decoder: "null"), "decoder null"),
        (file(decoder: #"{"type":"WordPiece"}"#), "decoder WordPiece"),
        (file(model: #""type":"WordPiece","vocab":{}"#), "\"WordPiece\" is not supported"),
        (file(model: #""type":"BPE","vocab":{"a":0},"merges":[],"dropout":0.1"#), "BPE with dropout 0.1"),
        (file(model: #""type":"BPE","vocab":{"a":0},"merges":[],"end_of_word_suffix":"</w>""#), "end_of_word_suffix"),
        (file(model: #""type":"BPE","vocab":{"a":0},"merges":["a b"]"#), "needs \"b\", which is no token"),
        (file(model: #""type":"BPE","vocab":{"a":0},"merges":["a"]"#), "merge 0 (\"a\") is not two tokens"),
        (file(model: #""type":"BPE","vocab":{"a":0}"#), "model.merges is not an array"),
        // A file of some hundred bytes does not name four million tokens, which would take 200 MB.
        (file(model: #""type":"BPE","vocab":{"a":4194303},"merges":[]"#), "not an id below"),
        (file(model: #""type":"BPE","vocab":{"a":-1},"merges":[]"#), "not an id below"),
        (file(model: #""type":"BPE","vocab":{"a":0,"b":0},"merges":[]"#), "not an id of its own"),
        (file(model: #""type":"BPE","vocab":{"a":0,"a":1},"merges":[]"#), "\"a\" is token 0 and 1"),
        (file(model: #""type":"BPE","vocab":{"a":4},"merges":[]"#), "not an id of its own"),
        (file(model: #""type":"BPE","merges":[]"#), "model.vocab is not"),
        (file(model: #""type":"Unigram","vocab":[["a",0]]"#), "ByteLevel for Unigram"),
        (file(added: #"{"id":9999999,"content":"x"}"#), "added_tokens[0].id is not"),
        (file(added: #"{"id":4,"content":""}"#), "added_tokens[0].content is not"),
        (file(added: #"{"id":1,"content":"a"}"#), "\"a\" is token 0 and 1"),
    ])
    func whatIsNotSupportedIsRefusedByName(_ file: [UInt8], _ name: String) {
        #expect {
            try Self.spec(file)
        } throws: {
            "\($0)".contains(name)
        }
    }

    @Test func aUnigramModelNeedsFiniteScoresAndAnUnknownToken() throws {
        func error(_ model: String) -> TokenizerError? {
            let file = Self.file(
                model: #""type":"Unigram","# + model, added: "", preTokenizer: #"{"type":"Metaspace","replacement":"▁"}"#,
                decoder: #"{"type":"Metaspace","replacement":"▁"}"#)
            do { _ = try Tokenizer(Self.spec(file)) } catch { return error as? TokenizerError }
            return nil
        }
        #expect(error(#""unk_id":0,"vocab":[["u",0],["a",-1.5]]"#) == nil)
        #expect(error(#""vocab":[["u",0],["a",-1.5]]"#) == .missingUnknownToken)
        #expect(error(#""unk_id":0,"vocab":[["u",0],["a",1e999]]"#) == .scoreNotFinite(token: 1))
        #expect(error(#""unk_id":2,"vocab":[["u",0],["a",-1]]"#)
            == .specialTokenOutOfRange(role: "unknown", id: 2, vocabularySize: 2))
        #expect(error(#""unk_id":0,"vocab":[["u"]]"#) == .malformed("model.vocab[0]", expected: "[token, score]"))
    }

    @Test func aContainersOwnFilesArePreferred() throws {
        var writer = GGUFWriter()
        try writer.add("tokenizer.ggml.model", .string("unknown"))
        try writer.add("tokenizer.ggml.eos_token_id", .uint32(5))
        try writer.add(TokenizerSpec.tokenizerJSONKey, .string(String(decoding: Self.file(), as: UTF8.self)))
        try writer.add(TokenizerSpec.tokenizerConfigKey, .string(#"{"bos_token":"<s>"}"#))
        let spec = try TokenizerSpec(gguf: try GGUFFile(ByteRegion.copy(of: try writer.encoded())))
        #expect(spec.bosTokenID == 4 && spec.eosTokenID == 5)
        #expect(try Tokenizer(spec).encode("ab", specialTokens: .parse) == [2])
    }

    /// Claims: no prefix and no mutation of a file traps; a prefix is refused. The seed is in the source.
    @Test func brokenFilesAreRefused() throws {
        let files = [Self.file()] + TokenizerFamily.all.prefix(25).compactMap { family in
            family.value["tokenizer_json"]?.string.map { Array($0.utf8) }
        }
        var random = SeededText(seed: 41)
        let small = files[0]
        for length in 0..<small.count {
            #expect(throws: (any Error).self) { try Self.spec(Array(small[..<length])) }
        }
        var refused = 0
        for round in 0..<1_500 {
            var file = round.isMultiple(of: 4) ? files[Int.random(in: files.indices, using: &random)] : small
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                let at = Int.random(in: file.indices, using: &random)
                switch Int.random(in: 0..<3, using: &random) {
                case 0: file[at] = UInt8.random(in: .min ... .max, using: &random)
                case 1: file.remove(at: at)
                default: file.insert(contentsOf: Array("\"[{0-,}]".utf8.shuffled(using: &random).prefix(2)), at: at)
                }
            }
            do {
                let tokenizer = try Tokenizer(Self.spec(file))
                _ = try tokenizer.decodedText(tokenizer.encode("ab <s> 12\u{301}", specialTokens: .parse))
            } catch { refused += 1 }
        }
        #expect(refused > 500)
    }

    @Test func aBrokenCharacterMapIsRefusedOrHarmless() throws {
        #expect(throws: TokenizerError.malformedCharacterMap(bytes: 3, trieBytes: 0)) {
            try PrecompiledNormalizer([1, 2, 3])
        }
        #expect(throws: TokenizerError.malformedCharacterMap(bytes: 8, trieBytes: 8)) {
            try PrecompiledNormalizer([8, 0, 0, 0, 0, 0, 0, 0])
        }
        var random = SeededText(seed: 42)
        for _ in 0..<500 {
            var metadata = GGUFTokenizerMetadata(
                model: "t5", preTokenizer: nil, tokens: [Array("<unk>".utf8), Array("a".utf8)], tokenTypes: [2, 1])
            metadata.scores = [0, -1]
            metadata.unknownTokenID = 0
            metadata.characterMap = [64, 0, 0, 0] + (0..<80).map { _ in UInt8.random(in: .min ... .max, using: &random) }
            let ids = try Tokenizer(TokenizerSpec(metadata)).encode(random.text(scalars: 30), specialTokens: .parse)
            #expect(ids.count <= 200)
        }
    }
}
