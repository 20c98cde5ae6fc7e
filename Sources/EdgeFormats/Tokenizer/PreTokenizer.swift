// The pre-tokenizers that a GGUF names in `tokenizer.ggml.pre`, one row of `PreTokenizer.all` a family. Names and what
// they stand for: llama.cpp, src/llama-vocab.cpp, checked against the families' own tokenizer.json.

package struct PreTokenizer: Sendable {
    /// The first is the family's, the others mean the same.
    package let names: [String]
    package let splits: [PieceSplit]
    /// A piece that is a token is that token, whatever its merges give.
    let ignoresMerges: Bool
    /// What holds when `tokenizer.ggml.add_bos_token` is absent.
    let addsBOSUnlessTold: Bool

    private init(
        _ names: [String], _ splits: [PieceSplit], ignoresMerges: Bool = false, addsBOSUnlessTold: Bool = false
    ) {
        self.names = names
        self.splits = splits
        self.ignoresMerges = ignoresMerges
        self.addsBOSUnlessTold = addsBOSUnlessTold
    }

    package static let all: [PreTokenizer] = [
        PreTokenizer(
            ["gpt-2", "default", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "mellum", "gigachat", "a.x-4.0",
             "granite-docling"],
            [.gpt2Words]),
        PreTokenizer(
            ["smollm", "refact", "starcoder", "command-r", "codeshell", "exaone", "minerva-7b"],
            [.numericScalars(.isolated), .gpt2Words]),
        PreTokenizer(
            ["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
            [.words(.llama3)], ignoresMerges: true, addsBOSUnlessTold: true),
        PreTokenizer(["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], [.words(.llama3)]),
        PreTokenizer(
            ["qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "grok-2"], [.words(.qwen2)]),
        PreTokenizer(["qwen35"], [.words(.qwen35)]),
        PreTokenizer(["gpt-4o", "llama4", "minimax-m2"], [.words(.gpt4o)]),
        PreTokenizer(["tekken"], [.words(.tekken)], ignoresMerges: true),
        PreTokenizer(
            ["deepseek-v3", "hunyuan-dense"], [.numbers(atMost: 3), .eastAsianRuns, .deepSeekWords]),
        PreTokenizer(
            ["falcon"], [.punctuation(.contiguous), .gpt2Words, .numericBytes(.contiguous), .digitTriples]),
    ]

    package static func named(_ name: String) throws(TokenizerError) -> PreTokenizer {
        guard let preTokenizer = all.first(where: { $0.names.contains(name) }) else {
            throw .unknownPreTokenizer(name, supported: all.flatMap(\.names))
        }
        return preTokenizer
    }

    /// The bytes of each piece: a family may cut within a character.
    package func pieces(of text: String) -> [[UInt8]] {
        let utf8 = Array(text.utf8)
        var pieces: [[UInt8]] = []
        splits.forEachPiece(utf8, 0..<utf8.count) { pieces.append(Array(utf8[$0])) }
        return pieces
    }
}
