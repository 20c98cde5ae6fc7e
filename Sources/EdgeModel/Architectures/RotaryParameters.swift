// Position embeddings of a model: base, scaling and tables, as GGUF files and both dialects of config.json say them
// (transformers/modeling_rope_utils.py; `rope_parameters` since version 5, `rope_theta` and `rope_scaling` before).
import EdgeFormats
import EdgeTensor
import Glibc

extension Hyperparameters {
    func rotary(headDim: Int, _ defaults: FamilyDefaults) throws -> RotarySpec {
        if isHuggingFace {
            let parameters = object("rope_scaling") ?? object("rope_parameters")
            return try rotary(headDim: headDim, parameters, defaults)
        }
        let dimension = Key("rope.dimension_count", nil)
        let rotated = try count(dimension, in: 2...1024, default: headDim)
        guard rotated <= headDim, rotated % 2 == 0 else {
            throw bad(dimension, "\(rotated)", expected: "an even number up to \(headDim)")
        }
        var spec = RotarySpec(theta: try number(Key("rope.freq_base", nil), default: defaults.ggufTheta), rotated: rotated)
        let kind = Key("rope.scaling.type", nil)
        let type = try word(kind)
        try require(kind, type, isOneOf: ["none", "linear", "longrope"])
        if type == "linear" {
            let factor = Float(try number(Key("rope.scaling.factor", nil)))
            spec.factors = .fixed([Float](repeating: factor, count: rotated / 2))
        }
        if let divisors = try tensor("rope_freqs.weight", count: rotated / 2) { spec.factors = .fixed(divisors) }
        if let long = try tensor("rope_factors_long.weight", count: rotated / 2) {
            guard let short = try tensor("rope_factors_short.weight", count: rotated / 2) else {
                throw ModelError.missingTensor("rope_factors_short.weight")
            }
            let original = try count(Key("rope.scaling.original_context_length", nil), in: 1...16_777_216)
            spec.factors = .byLength(short: short, long: long, original: original)
            spec.magnitude = Float(try number(Key("rope.scaling.attn_factor", nil), default: 1))
        }
        return spec
    }

    /// - Parameters:
    ///   - parameters: one kind of layer's; nil: none are given.
    ///   - defaults: the family's, where neither they nor the configuration say.
    func rotary(headDim: Int, _ parameters: JSONText?, _ defaults: FamilyDefaults) throws -> RotarySpec {
        let values = Hyperparameters(config: parameters ?? .object([]))
        func own(_ name: String) throws -> Double? { try values.optionalNumber(Key(nil, name)) }
        let share = try own("partial_rotary_factor") ?? optionalNumber(Key(nil, "partial_rotary_factor"))
            ?? defaults.partialRotary
        let rotated = Int(exactly: (Double(headDim) * share).rounded(.towardZero)) ?? 0
        guard (2...headDim).contains(rotated), rotated % 2 == 0 else {
            throw bad(Key(nil, "partial_rotary_factor"), "\(share)", expected: "what leaves an even number of \(headDim) elements")
        }
        var spec = RotarySpec(
            theta: try own("rope_theta") ?? optionalNumber(Key(nil, "rope_theta")) ?? defaults.theta, rotated: rotated)
        let kind = Key(nil, "rope_type")
        let type = try values.word(kind) ?? values.word(Key(nil, "type")) ?? "default"
        switch type {
        case "default": break
        case "linear":
            spec.factors = .fixed([Float](repeating: Float(try values.number(Key(nil, "factor"))), count: rotated / 2))
        case "llama3": spec.factors = .fixed(try llama3Divisors(values, spec, defaults))
        case "longrope", "su":
            let original = try originalLength(values, defaults)
            spec.factors = .byLength(
                short: try values.divisors("short_factor", count: rotated / 2),
                long: try values.divisors("long_factor", count: rotated / 2), original: original)
            let context = try contextLength(defaults)
            let factor = try own("factor") ?? Double(context) / Double(original)
            spec.magnitude = Float(
                try own("attention_factor") ?? (factor <= 1 ? 1 : (1 + log(factor) / log(Double(original))).squareRoot()))
        default: try require(kind, type, isOneOf: ["default", "linear", "llama3", "longrope"])
        }
        return spec
    }

    private func contextLength(_ defaults: FamilyDefaults) throws -> Int {
        try count(Key(nil, "max_position_embeddings"), in: 2...16_777_216, default: defaults.contextLength)
    }

    private func originalLength(_ values: Hyperparameters, _ defaults: FamilyDefaults) throws -> Int {
        let key = Key(nil, "original_max_position_embeddings")
        let range = 2...16_777_216
        return try optionalCount(key, in: range) ?? values.optionalCount(key, in: range)
            ?? contextLength(defaults)
    }

    /// Long wavelengths are stretched, short ones are not, and those between partly (Llama 3.1's model card).
    private func llama3Divisors(_ values: Hyperparameters, _ spec: RotarySpec, _ defaults: FamilyDefaults) throws -> [Float] {
        let factor = try values.number(Key(nil, "factor"))
        let (low, high) = (try values.number(Key(nil, "low_freq_factor")), try values.number(Key(nil, "high_freq_factor")))
        let original = Double(try originalLength(values, defaults))
        return (0..<spec.rotated / 2).map { pair in
            let wavelength = 2 * Double.pi * pow(spec.theta, Double(2 * pair) / Double(spec.rotated))
            if wavelength > original / low { return Float(factor) }
            if wavelength < original / high { return 1 }
            let smooth = (original / wavelength - low) / (high - low)
            return Float(1 / ((1 - smooth) / factor + smooth))
        }
    }

    private func divisors(_ name: String, count: Int) throws -> [Float] {
        let key = Key(nil, name)
        guard let list = try numbers(key), list.count == count, list.allSatisfy({ $0.isFinite && $0 > 0 }) else {
            throw bad(key, "something else", expected: "\(count) numbers above 0")
        }
        return list.map { Float($0) }
    }
}
