// GGUF files with random weights, in the shapes of real models or any other: what plans and times are measured on where the
// real file is too large to keep.
import ArgumentParser
import CEdgeKernels
import EdgeFormats
import EdgeTensor
import EdgeTrain

struct ModelShape: Equatable {
    var layers: Int, hidden: Int, intermediate: Int, heads: Int, keyValueHeads: Int, headDim: Int, vocabulary: Int
    /// The head is the embedding.
    var isTied: Bool
    var context = 131_072

    static let presets: [(name: String, shape: ModelShape)] = [
        ("smollm2-135m", ModelShape(
            layers: 30, hidden: 576, intermediate: 1536, heads: 9, keyValueHeads: 3, headDim: 64, vocabulary: 49_152,
            isTied: true)),
        ("tinyllama-1.1b", ModelShape(
            layers: 22, hidden: 2048, intermediate: 5632, heads: 32, keyValueHeads: 4, headDim: 64, vocabulary: 32_000,
            isTied: false)),
        ("llama-3.2-3b", ModelShape(
            layers: 28, hidden: 3072, intermediate: 8192, heads: 24, keyValueHeads: 8, headDim: 128, vocabulary: 128_256,
            isTied: true)),
        ("llama-3.1-8b", ModelShape(
            layers: 32, hidden: 4096, intermediate: 14_336, heads: 32, keyValueHeads: 8, headDim: 128, vocabulary: 128_256,
            isTied: false)),
    ]
}

struct RandomModel {
    let shape: ModelShape
    let format: GGMLType
    let seed: UInt64

    /// Tokens that the tokenizer knows: one per byte, and an end token.
    private static let byteTokens = 256

    func write(to path: String) throws {
        let writer = try writer()
        try AtomicFile.write(to: path) { file in try writer.write { try file.write($0) } }
    }

    private func writer() throws -> GGUFWriter {
        var file = GGUFWriter()
        try file.add("general.architecture", .string("llama"))
        try file.add("llama.block_count", .uint32(UInt32(shape.layers)))
        try file.add("llama.embedding_length", .uint32(UInt32(shape.hidden)))
        try file.add("llama.feed_forward_length", .uint32(UInt32(shape.intermediate)))
        try file.add("llama.attention.head_count", .uint32(UInt32(shape.heads)))
        try file.add("llama.attention.head_count_kv", .uint32(UInt32(shape.keyValueHeads)))
        try file.add("llama.attention.key_length", .uint32(UInt32(shape.headDim)))
        try file.add("llama.rope.dimension_count", .uint32(UInt32(shape.headDim)))
        try file.add("llama.context_length", .uint32(UInt32(shape.context)))
        try file.add("llama.attention.layer_norm_rms_epsilon", .float32(1e-5))
        try file.add("llama.rope.freq_base", .float32(500_000))
        try file.add("tokenizer.ggml.model", .string("gpt2"))
        try file.add("tokenizer.ggml.pre", .string("smollm"))
        let tokens = (0..<Self.byteTokens).map(Self.byteToken) + [Array("<|end|>".utf8)]
        try file.add("tokenizer.ggml.tokens", .strings(tokens))
        let types = [Int32](repeating: TokenKind.normal.rawValue, count: Self.byteTokens) + [TokenKind.control.rawValue]
        try file.add("tokenizer.ggml.token_type", .integers(types))
        try file.add("tokenizer.ggml.merges", .strings([]))
        try file.add("tokenizer.ggml.eos_token_id", .uint32(UInt32(Self.byteTokens)))

        let q = shape.heads * shape.headDim, kv = shape.keyValueHeads * shape.headDim
        try matrix("token_embd.weight", shape.vocabulary, shape.hidden, &file)
        for layer in 0..<shape.layers {
            let name = { (part: String) in "blk.\(layer).\(part).weight" }
            try ones(name("attn_norm"), &file)
            try matrix(name("attn_q"), q, shape.hidden, &file)
            try matrix(name("attn_k"), kv, shape.hidden, &file)
            try matrix(name("attn_v"), kv, shape.hidden, &file)
            try matrix(name("attn_output"), shape.hidden, q, &file)
            try ones(name("ffn_norm"), &file)
            try matrix(name("ffn_gate"), shape.intermediate, shape.hidden, &file)
            try matrix(name("ffn_up"), shape.intermediate, shape.hidden, &file)
            try matrix(name("ffn_down"), shape.hidden, shape.intermediate, &file)
        }
        try ones("output_norm.weight", &file)
        if !shape.isTied { try matrix("output.weight", shape.vocabulary, shape.hidden, &file) }
        return file
    }

    /// GPT-2's byte alphabet: printable bytes stand for themselves, the others for code points from 256 on.
    private static func byteToken(_ byte: Int) -> [UInt8] {
        func isPrintable(_ byte: Int) -> Bool { (33...126).contains(byte) || (161...172).contains(byte) || (174...255).contains(byte) }
        let scalar = isPrintable(byte) ? byte : 256 + (0..<byte).count { !isPrintable($0) }
        return Array(String(Unicode.Scalar(UInt32(scalar))!).utf8)  // below the surrogates
    }

    private func ones(_ name: String, _ file: inout GGUFWriter) throws {
        try file.addTensor(
            name, shape: [shape.hidden], type: .f32, body: .floats([Float](repeating: 1, count: shape.hidden)))
    }

    /// Uniform values of variance 1 / columns: a short piece of them, again and again.
    private func matrix(_ name: String, _ rows: Int, _ columns: Int, _ file: inout GGUFWriter) throws {
        guard let format = QuantFormat(ggmlType: format.rawValue), let encode = format.encoder else {
            let written = QuantFormat.all.filter { $0.encoder != nil && !$0.hasAbsmaxBeside }.map(\.name)
            throw ValidationError("\(self.format.name) cannot be written, only \(written.joined(separator: ", "))")
        }
        let count = 256 * format.blockElements
        // Of the name: matrices differ, and are the same in every run.
        let random = RandomSource(seed: seed, .sampling, name.utf8.reduce(0) { $0 &* 31 &+ UInt64($1) })
        let bound = (3 / Float(columns)).squareRoot()
        let values = (0..<count).map { (2 * random.uniform($0) - 1) * bound }
        let piece = [UInt8](unsafeUninitializedCapacity: format.byteCount(of: count)) { bytes, initialized in
            encode(values, bytes.baseAddress!, count)
            initialized = format.byteCount(of: count)
        }
        try file.addTensor(
            name, shape: [rows, columns], type: self.format,
            body: .repeated(piece, byteCount: format.byteCount(of: rows * columns)))
    }
}

/// `edgebench model`.
struct ModelBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "model", abstract: "Write a GGUF file with random weights in a real model's shape.")

    @Argument(help: "smollm2-135m, tinyllama-1.1b, llama-3.2-3b or llama-3.1-8b.") var preset: String
    @Argument(help: "The file.") var path: String
    @Option(help: "Format of the matrices, such as Q4_0.") var format = "Q4_0"

    func run() throws {
        guard let shape = ModelShape.presets.first(where: { $0.name == preset })?.shape else {
            throw ValidationError("no shape \(preset); there are \(ModelShape.presets.map(\.name).joined(separator: ", "))")
        }
        guard let type = QuantFormat.all.first(where: { $0.name == format }), let ggml = GGMLType(rawValue: type.ggmlType) else {
            throw ValidationError("no format \(format)")
        }
        try RandomModel(shape: shape, format: ggml, seed: 1).write(to: path)
    }
}
