// How the container of an imported model calls the tensors that a weight in bitsandbytes' 4 bits has become; what they hold:
// HuggingFaceDirectory.
import EdgeTensor

enum BlockwiseParts {
    static var formats: [QuantFormat] { QuantFormat.all.filter(\.hasAbsmaxBeside) }

    static func codes(_ weight: String, _ format: QuantFormat) -> String { weight + suffix(format) }
    static func absmax(_ weight: String) -> String { weight + absmaxSuffix }
    static func nested(_ weight: String) -> String { weight + nestedSuffix }

    /// The weight that a tensor is a part of; nil when it is one by itself.
    static func weight(of tensor: String) -> String? {
        let suffix = (formats.map(suffix) + [absmaxSuffix, nestedSuffix]).first { tensor.hasSuffix($0) }
        return suffix.map { String(tensor.dropLast($0.count)) }
    }

    private static let absmaxSuffix = ".absmax", nestedSuffix = ".nested"
    private static func suffix(_ format: QuantFormat) -> String { "." + format.name.lowercased() }
}
