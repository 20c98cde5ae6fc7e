// The families of models that can be trained, as data: how a file's hyperparameters become a DecoderSpec. No maths here.
import EdgeFormats
import EdgeTensor

package struct Architecture: Sendable {
    /// `general.architecture` in GGUF files.
    package let ggufName: String
    /// `architectures` in config.json; empty where no configuration of Hugging Face's means this.
    package let huggingFaceNames: [String]
    private let variations: @Sendable (Hyperparameters) throws -> DecoderSpec
    /// llama.cpp's converter permutes the rows of q and k, so that the rotation works on neighbours instead of halves.
    private let ggufInterleavesPairs: Bool

    init(
        ggufName: String, huggingFaceNames: [String], ggufInterleavesPairs: Bool = false,
        spec: @escaping @Sendable (Hyperparameters) throws -> DecoderSpec
    ) {
        self.ggufName = ggufName
        self.huggingFaceNames = huggingFaceNames
        self.ggufInterleavesPairs = ggufInterleavesPairs
        variations = spec
    }

    func spec(_ values: Hyperparameters) throws -> DecoderSpec {
        var spec = try variations(values)
        spec.ggufArchitecture = ggufName
        spec.ggufInterleavesPairs = ggufInterleavesPairs
        return spec
    }
}

package enum Architectures {
    package static let all: [Architecture] = [
        .llama, .mistral, .smollm3, .qwen2, .qwen3, .gemma2, .gemma3, .phi3, .olmo2, .granite, .stablelm,
    ]

    /// - Parameters:
    ///   - name: what a file says.
    ///   - names: what an architecture is called in files of its kind.
    static func find(_ name: String, _ names: (Architecture) -> [String]) throws -> Architecture {
        if let found = all.first(where: { names($0).contains(name) }) { return found }
        let supported = Set(all.flatMap(names)).sorted()
        throw ModelError.unsupportedArchitecture(
            name, supported: supported, nearest: supported.max { sharedPrefix($0, name) < sharedPrefix($1, name) } ?? "")
    }

    private static func sharedPrefix(_ a: String, _ b: String) -> Int {
        zip(a.lowercased(), b.lowercased()).prefix { $0 == $1 }.count
    }

    /// - Parameter config: the bytes of a config.json. No tensor is needed: a directory is judged before it is read.
    package static func spec(config bytes: [UInt8]) throws -> DecoderSpec {
        let config: JSONText
        do {
            config = try bytes.withUnsafeBytes { bytes throws(JSONTextError) in try JSONText(parsing: bytes) }
        } catch {
            throw ModelError.badConfig("\(error)")
        }
        guard let name = config["architectures"]?.array?.first?.string else {
            throw ModelError.badConfig(
                "it names no architecture; add \"architectures\": [\"…ForCausalLM\"], one of "
                    + all.flatMap(\.huggingFaceNames).joined(separator: ", "))
        }
        return try find(name, \.huggingFaceNames).spec(Hyperparameters(config: config))
    }
}

extension DecoderSpec {
    /// Row i of a module's matrix in the model's file is row `rowOrder[i]` of Hugging Face's; nil: the same order.
    package func rowOrder(_ module: LinearModule) -> [Int]? {
        rotaryPairing == .interleaved ? interleavedRows(module) : nil
    }

    /// The same of a GGUF file of this architecture, whatever the model's file is.
    package func ggufRowOrder(_ module: LinearModule) -> [Int]? {
        ggufInterleavesPairs ? interleavedRows(module) : nil
    }

    private func interleavedRows(_ module: LinearModule) -> [Int]? {
        let heads: Int
        switch module {
        case .query: heads = attentionHeadCount
        case .key: heads = keyValueHeadCount
        default: return nil
        }
        // File row h·d + 2j + t is Hugging Face's row h·d + t·d/2 + j.
        return (0..<heads * headDim).map { row in
            let (head, within) = row.quotientAndRemainder(dividingBy: headDim)
            return head * headDim + within % 2 * (headDim / 2) + within / 2
        }
    }
}

package enum ModelError: Error, Equatable, CustomStringConvertible {
    case unsupportedArchitecture(String, supported: [String], nearest: String)
    case missingMetadata(String)
    case badMetadata(key: String, value: String, expected: String)
    case badConfig(String)
    case missingTensor(String)
    case unexpectedTensor(String)
    case badShape(tensor: String, shape: [Int], expected: [Int])
    case unsupportedFormat(tensor: String, format: String, supported: [String])
    case notWholeBlocks(tensor: String, columns: Int, format: String, block: Int)
    case noTokenizer(String)
    case noChatTemplate

    package var description: String {
        switch self {
        case .unsupportedArchitecture(let name, let supported, let nearest):
            "models of architecture \"\(name)\" cannot be trained; supported: \(supported.joined(separator: ", ")); the nearest by name is \(nearest)"
        case .missingMetadata(let key): "the file has no \(key)"
        case .badMetadata(let key, let value, let expected): "\(key) is \(value); expected \(expected)"
        case .badConfig(let reason): "config.json cannot be read: \(reason)"
        case .missingTensor(let name): "the file has no tensor \(name)"
        case .unexpectedTensor(let name):
            "the file has a tensor \(name) that this architecture does not use; training without it would be wrong"
        case .badShape(let tensor, let shape, let expected): "tensor \(tensor) has shape \(shape); expected \(expected)"
        case .unsupportedFormat(let tensor, let format, let supported):
            "tensor \(tensor) is stored as \(format); supported: \(supported.joined(separator: ", "))"
        case .notWholeBlocks(let tensor, let columns, let format, let block):
            "rows of tensor \(tensor) have \(columns) values, which are not whole blocks of \(format) (\(block) values each)"
        case .noTokenizer(let reason): "the file's tokenizer cannot be used: \(reason)"
        case .noChatTemplate: "the model has no chat template, so messages cannot be rendered; use {\"text\": …} lines"
        }
    }
}
