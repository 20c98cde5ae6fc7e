// The families of models that can be trained, as data: how a file's metadata becomes a DecoderSpec. No maths here.
import EdgeFormats
import EdgeTensor

package struct Architecture: Sendable {
    /// `general.architecture` in GGUF files.
    package let ggufName: String
    package let spec: @Sendable (GGUFFile) throws -> DecoderSpec
    /// Row i of a module's matrix in the file is row `rowOrder[i]` of Hugging Face's; nil: the same order.
    package let rowOrder: @Sendable (LinearModule, DecoderSpec) -> [Int]?
}

package enum Architectures {
    package static let all: [Architecture] = [.llama]
}

package enum ModelError: Error, Equatable, CustomStringConvertible {
    case unsupportedArchitecture(String, supported: [String])
    case missingMetadata(String)
    case badMetadata(key: String, value: String, expected: String)
    case missingTensor(String)
    case unexpectedTensor(String)
    case badShape(tensor: String, shape: [Int], expected: [Int])
    case unsupportedFormat(tensor: String, format: String, supported: [String])
    case noTokenizer(String)
    case noChatTemplate

    package var description: String {
        switch self {
        case .unsupportedArchitecture(let name, let supported):
            "models of architecture \"\(name)\" cannot be trained; supported: \(supported.joined(separator: ", "))"
        case .missingMetadata(let key): "the file has no \(key)"
        case .badMetadata(let key, let value, let expected): "\(key) is \(value); expected \(expected)"
        case .missingTensor(let name): "the file has no tensor \(name)"
        case .unexpectedTensor(let name):
            "the file has a tensor \(name) that this architecture does not use; training without it would be wrong"
        case .badShape(let tensor, let shape, let expected): "tensor \(tensor) has shape \(shape); expected \(expected)"
        case .unsupportedFormat(let tensor, let format, let supported):
            "tensor \(tensor) is stored as \(format); supported: \(supported.joined(separator: ", "))"
        case .noTokenizer(let reason): "the file's tokenizer cannot be used: \(reason)"
        case .noChatTemplate: "the model has no chat template, so messages cannot be rendered; use {\"text\": …} lines"
        }
    }
}
