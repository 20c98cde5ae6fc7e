// Llama and what is stored as it: SmolLM, TinyLlama. llama.cpp's converter permutes the rows of q and k, so that the
// rotation works on neighbours instead of halves.
import EdgeFormats
import EdgeTensor

extension Architecture {
    package static let llama = Architecture(
        ggufName: "llama",
        spec: { file in
            let values = ArchitectureMetadata(file, prefix: "llama")
            let heads = try values.count("attention.head_count", in: 1...1024)
            let hidden = try values.count("embedding_length", in: 1...65_536)
            let headDim = try values.count("attention.key_length", in: 2...1024, default: hidden / heads)
            let rotated = try values.count("rope.dimension_count", in: 2...1024, default: headDim)
            guard rotated == headDim else {
                throw ModelError.badMetadata(
                    key: "llama.rope.dimension_count", value: "\(rotated)", expected: "\(headDim), the whole head")
            }
            // Scaled positions give other angles: refuse rather than train something else.
            if let scaling = file.metadata["llama.rope.scaling.type"]?.string, scaling != "none" {
                throw ModelError.badMetadata(key: "llama.rope.scaling.type", value: scaling, expected: "none")
            }
            let keyValueHeads = try values.count("attention.head_count_kv", in: 1...heads, default: heads)
            guard heads % keyValueHeads == 0, headDim % 2 == 0 else {
                throw ModelError.badMetadata(
                    key: "llama.attention.head_count_kv", value: "\(keyValueHeads)",
                    expected: "a divisor of the \(heads) heads, of even length")
            }
            return DecoderSpec(
                architecture: "llama", layerCount: try values.count("block_count", in: 1...1024), hiddenSize: hidden,
                intermediateSize: try values.count("feed_forward_length", in: 1...1_048_576),
                attentionHeadCount: heads, keyValueHeadCount: keyValueHeads, headDim: headDim,
                vocabularySize: 0,  // set from the embedding's shape
                contextLength: try values.count("context_length", in: 1...16_777_216),
                rmsNormEpsilon: try values.number("attention.layer_norm_rms_epsilon"),
                ropeTheta: Double(try values.number("rope.freq_base", default: 10_000)), rotaryPairing: .interleaved)
        },
        rowOrder: { module, spec in
            switch module {
            case .query: interleavedRows(heads: spec.attentionHeadCount, headDim: spec.headDim)
            case .key: interleavedRows(heads: spec.keyValueHeadCount, headDim: spec.headDim)
            default: nil
            }
        })

    /// File row h·d + 2j + t is Hugging Face's row h·d + t·d/2 + j.
    private static func interleavedRows(heads: Int, headDim: Int) -> [Int] {
        (0..<heads * headDim).map { row in
            let (head, within) = row.quotientAndRemainder(dividingBy: headDim)
            return head * headDim + within % 2 * (headDim / 2) + within / 2
        }
    }
}

/// Reads `<prefix>.<key>` values with their ranges.
struct ArchitectureMetadata {
    let file: GGUFFile
    let prefix: String

    init(_ file: GGUFFile, prefix: String) {
        self.file = file
        self.prefix = prefix
    }

    func count(_ key: String, in range: ClosedRange<Int>, default fallback: Int? = nil) throws -> Int {
        guard let value = file.metadata["\(prefix).\(key)"]?.integer ?? fallback else {
            throw ModelError.missingMetadata("\(prefix).\(key)")
        }
        guard range.contains(value) else {
            throw ModelError.badMetadata(
                key: "\(prefix).\(key)", value: "\(value)", expected: "\(range.lowerBound) to \(range.upperBound)")
        }
        return value
    }

    func number(_ key: String, default fallback: Float? = nil) throws -> Float {
        guard let value = file.metadata["\(prefix).\(key)"]?.float.map({ Float($0) }) ?? fallback else {
            throw ModelError.missingMetadata("\(prefix).\(key)")
        }
        guard value.isFinite, value > 0 else {
            throw ModelError.badMetadata(key: "\(prefix).\(key)", value: "\(value)", expected: "a number above 0")
        }
        return value
    }
}
