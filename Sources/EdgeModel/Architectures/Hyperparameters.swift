// A model's hyperparameters by name, from the metadata of a GGUF file or from Hugging Face's config.json, each checked against
// its range. Keys: llama.cpp's gguf-py/gguf/constants.py and transformers' configuration classes.
import EdgeFormats
import EdgeTensor

package struct Hyperparameters {
    private enum Source {
        case gguf(GGUFFile, architecture: String)
        case huggingFace(JSONText)
    }
    private let source: Source
    /// What the model calls itself.
    let architectureName: String

    init(gguf file: GGUFFile, architecture: String) {
        source = .gguf(file, architecture: architecture)
        architectureName = architecture
    }

    init(config: JSONText) {
        source = .huggingFace(config)
        architectureName = config["model_type"]?.string ?? ""
    }

    var isHuggingFace: Bool { if case .huggingFace = source { true } else { false } }

    /// Names of a value in both kinds of file; nil where a kind has none.
    struct Key {
        let gguf: String?
        let config: String?
        init(_ gguf: String?, _ config: String?) {
            self.gguf = gguf
            self.config = config
        }
    }

    func count(_ key: Key, in range: ClosedRange<Int>, default fallback: Int? = nil) throws -> Int {
        guard let value = try integer(key) ?? fallback else { throw ModelError.missingMetadata(name(key)) }
        guard range.contains(value) else {
            throw bad(key, "\(value)", expected: "\(range.lowerBound) to \(range.upperBound)")
        }
        return value
    }

    /// Nil where it is absent, null or 0.
    func optionalCount(_ key: Key, in range: ClosedRange<Int>) throws -> Int? {
        guard let value = try integer(key), value != 0 else { return nil }
        guard range.contains(value) else {
            throw bad(key, "\(value)", expected: "\(range.lowerBound) to \(range.upperBound)")
        }
        return value
    }

    func number(_ key: Key, default fallback: Double? = nil) throws -> Double {
        guard let value = try optionalNumber(key) ?? fallback else { throw ModelError.missingMetadata(name(key)) }
        return value
    }

    /// Nil where it is null, and in a GGUF file where it is absent; `fallback` where config.json leaves it out.
    func optionalNumber(_ key: Key, unlessGiven fallback: Double?) throws -> Double? {
        if isHuggingFace, let name = key.config, !has(name) { return fallback }
        return try optionalNumber(key)
    }

    /// Nil where it is absent or null; otherwise above 0.
    func optionalNumber(_ key: Key) throws -> Double? {
        guard let value = try raw(key, gguf: \.float, config: \.double, "a number") else { return nil }
        guard value.isFinite, value > 0 else { throw bad(key, "\(value)", expected: "a number above 0") }
        return value
    }

    func flag(_ key: Key, default fallback: Bool) throws -> Bool {
        try raw(key, gguf: \.bool, config: \.bool, "true or false") ?? fallback
    }

    func word(_ key: Key) throws -> String? { try raw(key, gguf: \.string, config: \.string, "a word") }

    func flags(_ key: Key) throws -> [Bool]? {
        try raw(
            key, gguf: \.boolArray,
            config: { $0.array.flatMap { list in
                let flags = list.compactMap { $0.bool ?? $0.integer.map { $0 != 0 } }
                return flags.count == list.count ? flags : nil
            } }, "a list of flags")
    }

    func numbers(_ key: Key) throws -> [Double]? {
        try raw(
            key, gguf: { $0.floatArray?.map { Double($0) } },
            config: { $0.array.flatMap { list in
                let numbers = list.compactMap(\.double)
                return numbers.count == list.count ? numbers : nil
            } }, "a list of numbers")
    }

    func words(_ key: Key) throws -> [String]? {
        try raw(
            key, gguf: \.stringArray,
            config: { $0.array.flatMap { list in
                let words = list.compactMap(\.string)
                return words.count == list.count ? words : nil
            } }, "a list of words")
    }

    /// Whether a value of a GGUF file is a list: some keys hold one number for all layers or one each.
    func isList(_ key: Key) -> Bool {
        guard case .gguf(let file, let architecture) = source, let name = key.gguf else { return false }
        return file.metadata["\(architecture).\(name)"]?.boolArray != nil
    }

    /// Whether config.json has the key, be it null.
    func has(_ key: String) -> Bool {
        if case .huggingFace(let config) = source { config[key] != nil } else { false }
    }

    /// A part of config.json; nil in GGUF files.
    func object(_ key: String) -> JSONText? {
        guard case .huggingFace(let config) = source, let value = config[key], case .object = value else { return nil }
        return value
    }

    /// Values of a whole tensor of a GGUF file that is none of the layers'; nil where it is absent.
    func tensor(_ name: String, count: Int) throws -> [Float]? {
        guard case .gguf(let file, _) = source, let tensor = file.tensor(named: name) else { return nil }
        guard tensor.shape == [count] else { throw ModelError.badShape(tensor: name, shape: tensor.shape, expected: [count]) }
        guard tensor.type == .f32 else {
            throw ModelError.unsupportedFormat(tensor: name, format: tensor.type.name, supported: ["F32"])
        }
        let values = (0..<count).map { tensor.bytes.loadUnaligned(fromByteOffset: 4 * $0, as: Float.self) }
        guard let bad = values.first(where: { !($0.isFinite && $0 > 0) }) else { return values }
        throw ModelError.badMetadata(key: name, value: "\(bad)", expected: "numbers above 0")
    }
    /// The names that `tensor` is asked for.
    static let tensorNames: Set<String> = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"]

    /// Refuses a value that would change the model in a way that this program does not know.
    func require(_ key: Key, _ value: String?, isOneOf known: [String]) throws {
        guard let value, !known.contains(value) else { return }
        throw bad(key, value, expected: known.joined(separator: " or "))
    }

    func refuse(_ key: Key, _ isSet: Bool) throws {
        if isSet { throw bad(key, "true", expected: "false") }
    }

    func bad(_ key: Key, _ value: String, expected: String) -> ModelError {
        .badMetadata(key: name(key), value: value, expected: expected)
    }

    private func integer(_ key: Key) throws -> Int? { try raw(key, gguf: \.integer, config: \.integer, "a whole number") }

    private func name(_ key: Key) -> String {
        switch source {
        case .gguf(_, let architecture): "\(architecture).\(key.gguf ?? key.config ?? "")"
        case .huggingFace: key.config ?? key.gguf ?? ""
        }
    }

    private func raw<Value>(
        _ key: Key, gguf: (GGUFValue) -> Value?, config: (JSONText) -> Value?, _ expected: String
    ) throws -> Value? {
        switch source {
        case .gguf(let file, let architecture):
            guard let name = key.gguf, let value = file.metadata["\(architecture).\(name)"] else { return nil }
            guard let decoded = gguf(value) else { throw bad(key, "of another type", expected: expected) }
            return decoded
        case .huggingFace(let document):
            guard let name = key.config, let value = document[name], value != .null else { return nil }
            guard let decoded = config(value) else {
                throw bad(key, String(decoding: value.indented().prefix(80).dropLast(), as: UTF8.self), expected: expected)
            }
            return decoded
        }
    }
}

/// What a family takes a value for that a config.json leaves out: transformers' class defaults.
struct FamilyDefaults {
    var hiddenSize = 4096
    var intermediateSize = 11_008
    var layerCount = 32
    var heads = 32
    /// Nil: hiddenSize / heads.
    var headDim: Int?
    /// Nil: as many as there are heads.
    var keyValueHeads: Int?
    var epsilon = 1e-6
    var theta = 10_000.0
    var partialRotary = 1.0
    var contextLength: Int
    var tiesEmbeddings = false
    /// Of GGUF files that do not say.
    var ggufTheta = 10_000.0
    var epsilonKey = Hyperparameters.Key("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    /// What config.json calls the activation, and the one that the family has.
    var activationKey = "hidden_act"
    var activation = "silu"
}

extension Hyperparameters {
    /// What all families have.
    func decoder(_ defaults: FamilyDefaults) throws -> DecoderSpec {
        // A GGUF file says these itself.
        func left<Value>(_ value: Value?) -> Value? { isHuggingFace ? value : nil }
        let activation = Key(nil, defaults.activationKey)
        try require(activation, try word(activation), isOneOf: [defaults.activation])
        let headCount = Key("attention.head_count", "num_attention_heads")
        let heads = try count(headCount, in: 1...1024, default: left(defaults.heads))
        let hidden = try count(
            Key("embedding_length", "hidden_size"), in: 1...65_536, default: left(defaults.hiddenSize))
        let dimension = Key("attention.key_length", "head_dim")
        let headDim = try count(dimension, in: 2...1024, default: left(defaults.headDim) ?? hidden / heads)
        let keyValueKey = Key("attention.head_count_kv", "num_key_value_heads")
        let keyValueHeads = try count(
            keyValueKey, in: 1...heads, default: min(heads, left(defaults.keyValueHeads) ?? heads))
        guard heads % keyValueHeads == 0, headDim % 2 == 0 else {
            throw bad(keyValueKey, "\(keyValueHeads)", expected: "a divisor of the \(heads) heads, of even length")
        }
        let valueLength = Key("attention.value_length", nil)
        guard try count(valueLength, in: 2...1024, default: headDim) == headDim else {
            throw bad(valueLength, "not \(headDim)", expected: "\(headDim), as long as keys")
        }
        var spec = DecoderSpec(
            architecture: architectureName,
            layerCount: try count(
                Key("block_count", "num_hidden_layers"), in: 1...1024, default: left(defaults.layerCount)),
            hiddenSize: hidden,
            intermediateSize: try count(
                Key("feed_forward_length", "intermediate_size"), in: 1...1_048_576,
                default: left(defaults.intermediateSize)),
            attentionHeadCount: heads, keyValueHeadCount: keyValueHeads, headDim: headDim,
            vocabularySize: 0,  // set from the embedding's shape
            contextLength: try count(
                Key("context_length", "max_position_embeddings"), in: 1...16_777_216,
                default: left(defaults.contextLength)),
            normEpsilon: Float(try number(defaults.epsilonKey, default: left(defaults.epsilon))),
            rotary: try rotary(headDim: headDim, defaults))
        if isHuggingFace {
            spec.tiesEmbeddings = try flag(Key(nil, "tie_word_embeddings"), default: defaults.tiesEmbeddings)
        }
        return spec
    }

    /// Layers that see a window: what `layer_types` says, or what the family does without it.
    func windows(_ spec: inout DecoderSpec, _ window: Int?, isLocal: (_ layer: Int) -> Bool) throws {
        let kinds = Key(nil, "layer_types")
        let names = try words(kinds)
        if let names {
            try requireOnePerLayer(kinds, names.count, spec)
            for name in names { try require(kinds, name, isOneOf: ["full_attention", "sliding_attention"]) }
        }
        for layer in 0..<spec.layerCount where names.map({ $0[layer] == "sliding_attention" }) ?? isLocal(layer) {
            guard let window else { throw ModelError.missingMetadata("sliding_window") }
            spec.layerKinds[layer].window = window
        }
    }

    func requireOnePerLayer(_ key: Key, _ count: Int, _ spec: DecoderSpec) throws {
        guard count == spec.layerCount else {
            throw bad(key, "a list of \(count)", expected: "one for each of \(spec.layerCount) layers")
        }
    }

    /// The window's length where the model has one.
    func window() throws -> Int? {
        try optionalCount(Key("attention.sliding_window", "sliding_window"), in: 1...16_777_216)
    }
}
