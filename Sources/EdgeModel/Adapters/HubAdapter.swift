// The methods of the adapters library (AdapterHub, arXiv:2311.11077), which PEFT does not have, and what its adapter_config.json says of
// them: `config` there, whose keys are those of configuration/adapter_config.py.
import EdgeFormats
import EdgeTensor

package struct HubAdapter: AdapterMethod {
    package private(set) var name: String
    /// None of PEFT's.
    package var peftType: String { "ADAPTER_HUB" }
    package var configKeys: AdapterConfigKeys {
        AdapterConfigKeys(rank: isGated ? "r" : nil, alpha: nil, dropout: nil)
    }
    package private(set) var bottleneck: Bottleneck?
    /// Keys and values before each sample's own, as P-tuning v2's; nil: it has none.
    package private(set) var prefix: Prefix?
    /// Whether q and v have a LoRA, and all parts a gate. The LoRA's is there instead of alpha / r.
    package private(set) var isGated = false

    package struct Prefix: Equatable, Sendable {
        package var tokens: Int
        package var start: VirtualTokenStart
    }

    /// With the library's defaults of these names.
    package static let seqBn = HubAdapter("seq_bn", .sum, afterAttention: false, reductionFactor: 16, .relu, scaling: 1)
    package static let doubleSeqBn = HubAdapter("double_seq_bn", .output, afterAttention: true, reductionFactor: 16, .swish, scaling: 1)
    package static let parBn = HubAdapter("par_bn", .residual, afterAttention: false, reductionFactor: 2, .relu, scaling: 4)

    /// He et al.'s mix (arXiv:2110.04366 §4.6): a prefix, and a bottleneck beside the MLP.
    package static let mam: HubAdapter = {
        var own = parBn
        own.name = "mam"
        own.prefix = Prefix(tokens: 30, start: .samples)
        return own
    }()

    /// Prefix, LoRA and bottleneck, each behind a gate, after Mao et al. (arXiv:2110.07577).
    package static let unipelt: HubAdapter = {
        var own = seqBn
        own.name = "unipelt"
        own.prefix = Prefix(tokens: 10, start: .samples)
        own.isGated = true
        return own
    }()

    private init(
        _ name: String, _ input: Bottleneck.Input, afterAttention: Bool, reductionFactor: Double, _ nonLinearity: NonLinearity, scaling: Double
    ) {
        self.name = name
        bottleneck = Bottleneck(
            input: input, followsAttention: afterAttention, followsMLP: true, nonLinearity: nonLinearity, scaling: scaling,
            reductionFactor: reductionFactor)
    }

    package func with(_ change: (inout Bottleneck) -> Void) -> HubAdapter {
        var own = self
        if var bottleneck {
            change(&bottleneck)
            own.bottleneck = bottleneck
        }
        return own
    }

    /// - Parameters: nil: as it is.
    package func with(prefixTokens: Int?, _ start: VirtualTokenStart) -> HubAdapter {
        var own = self
        own.prefix = prefix.map { Prefix(tokens: prefixTokens ?? $0.tokens, start: start) }
        return own
    }

    package var asOnFile: any AdapterMethod { with(prefixTokens: nil, .samples) }
    package var virtualTokenStart: VirtualTokenStart? { prefix?.start }
    package var beginsAsBase: Bool { prefix == nil }
    package func prefixTokens(_ spec: AdapterSpec) -> Int { prefix?.tokens ?? 0 }
    /// The library's positions are those of the sample's own tokens.
    package var prefixShiftsPositions: Bool { false }
    package var adaptsLinears: Bool { isGated }
    package func adapts(_ module: LinearModule) -> Bool { module == .query || module == .value }
    package var hasTargets: Bool { false }
    package var changesWeightsOnly: Bool { false }
    package var hasLayers: Bool { false }
    package var defaultRank: Int { 8 }
    package var storedFactors: (a: Int, b: Int)? { isGated ? (0, 1) : nil }
    package func gate(_ linear: LinearShape) -> (weight: Int, bias: Int)? { isGated ? (2, 3) : nil }
    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { isGated ? spec.rank : 0 }

    /// A and B of a LoRA, and w and b of its gate.
    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        guard isGated else { return [] }
        return [
            AdapterMatrix(name: "lora_A", rows: spec.rank, columns: linear.inFeatures, start: AdapterMatrix.kaiming(columns: linear.inFeatures)),
            AdapterMatrix(name: "lora_B", rows: linear.outFeatures, columns: spec.rank, outputs: .rows, start: .constant(0)),
        ] + AdapterMatrix.gate("gate", features: linear.inFeatures)
    }

    package func fileKey(_ modulePath: String, _ matrix: AdapterMatrix) -> String? { "\(modulePath).loras.\(Self.adapterName).\(matrix.name)" }
    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] { [] }

    // MARK: files

    /// What its files call the adapter: a part of every tensor's name.
    package static let adapterName = "edgetune"

    package func parts(_ model: DecoderSpec, _ spec: AdapterSpec) -> [AdapterPart] {
        let prefixes = prefix.map { prefix in
            PrefixTuning.parts(
                model,
                AdapterMatrix(
                    name: "model.prefix_tuning.prefix_tunings.\(Self.adapterName).self_prefix.control_trans", rows: prefix.tokens,
                    columns: model.keyValueWidth, isVector: true, start: prefix.start.matrixStart))
        }
        let withGates = (prefixes ?? []).map { part in
            guard isGated, let layer = part.layer else { return part }
            let name = "model.layers.\(layer).self_attn.prefix_tuning.prefix_gates.\(Self.adapterName)"
            return AdapterPart(part.site, layer: layer, part.matrices + AdapterMatrix.gate(name, features: model.hiddenSize).map { .init($0) })
        }
        return withGates + (0..<model.layerCount).flatMap { layer in
            bottleneck.map { bottleneck in
                bottleneck.parts(model, layer: layer, isGated: isGated) { site in
                    let module = site == .afterAttention ? "attention_adapters" : "output_adapters"
                    return "model.layers.\(layer).\(module).adapters.\(Self.adapterName)"
                }
            } ?? []
        }
    }

    /// `config` of its adapter_config.json, keys sorted.
    ///
    /// - Parameter rank: of the LoRA, where it has one.
    package func hubConfig(rank: Int) -> JSONText {
        let ofBottleneck = bottleneck.map { JSONText.object($0.hubMembers(isGated: isGated)) } ?? .null
        guard let prefix else { return ofBottleneck }
        let configs = [prefix.hubConfig(isGated: isGated), ofBottleneck] + (isGated ? [GatedLoRA.hubConfig(rank: rank)] : [])
        return .object([.init("architecture", .string("union")), .init("configs", .array(configs))])
    }

    /// Of a union's LoRA; nil: it has none.
    ///
    /// - Throws: as `init`.
    package static func rank(hubConfig config: JSONText) throws(AdapterSettingError) -> Int? {
        guard let own = config["configs"]?.array?.first(where: { $0["architecture"]?.string == GatedLoRA.architecture }) else { return nil }
        return try GatedLoRA.rank(hubConfig: own)
    }

    /// - Parameter config: `config` of an adapter_config.json; absent keys are the library's defaults.
    /// - Throws: `AdapterSettingError` for a setting that the library has and this program does not.
    package init(hubConfig config: JSONText) throws(AdapterSettingError) {
        switch config["architecture"]?.string {
        case nil: break
        case "union":
            let configs = config["configs"]?.array ?? []
            /// The one that has this architecture.
            func part(_ architecture: String?) throws(AdapterSettingError) -> JSONText {
                let found = configs.filter { $0["architecture"]?.string == architecture }
                guard found.count == 1 else { throw AdapterSettingError(key: "configs") }
                return found[0]
            }
            guard configs.count == 2 || configs.count == 3 else { throw AdapterSettingError(key: "configs") }
            self = configs.count == 2 ? .mam : .unipelt
            prefix = try Prefix(hubConfig: part("prefix_tuning"), isGated: isGated)
            let bottleneck = try Bottleneck(hubConfig: part(nil), isGated: isGated)
            if isGated {
                _ = try part(GatedLoRA.architecture)
                guard bottleneck.input == .sum else { throw AdapterSettingError(key: bottleneck.input == .residual ? "is_parallel" : "original_ln_before") }
            }
            self.bottleneck = bottleneck
            return
        default: throw AdapterSettingError(key: "architecture")
        }
        let bottleneck = try Bottleneck(hubConfig: config, isGated: false)
        self = [.sum: .seqBn, .output: .doubleSeqBn, .residual: .parBn][bottleneck.input]!  // all cases are there
        self.bottleneck = bottleneck
    }
}

/// Settings of one of the library's configs that would change what the tensors mean, each with the only value that this program has.
private struct FixedSettings {
    let values: [String: JSONText]

    init(_ values: [String: JSONText]) { self.values = values }

    var members: [JSONText.Member] { values.map { JSONText.Member($0.key, $0.value) } }

    /// What the library takes for a key that a file has not, where that is another value.
    private static let defaults: [String: JSONText] = ["flat": .bool(false), "use_gating": .bool(false)]

    /// - Throws: the first key, sorted, that has another value.
    func check(_ config: JSONText) throws(AdapterSettingError) {
        for (key, value) in values.sorted(by: { $0.key < $1.key }) {
            guard config[key] ?? Self.defaults[key] ?? value == value else { throw AdapterSettingError(key: key) }
        }
    }
}

extension HubAdapter.Prefix {
    /// A prefix that is not flat is made by a network, whose weights the file has.
    private static func settings(isGated: Bool) -> FixedSettings {
        FixedSettings(["flat": .bool(true), "leave_out": .array([]), "shared_gating": .bool(true), "use_gating": .bool(isGated)])
    }

    fileprivate func hubConfig(isGated: Bool) -> JSONText {
        .object(
            (Self.settings(isGated: isGated).members + [
                .init("architecture", .string("prefix_tuning")), .init("bottleneck_size", .number("512")), .init("cross_prefix", .bool(true)),
                .init("dropout", .number("0.0")), .init("encoder_prefix", .bool(true)), .init("init_weights_seed", .null),
                .init("non_linearity", .string("tanh")), .init("prefix_length", .number("\(tokens)")),
            ]).sorted { $0.key < $1.key })
    }

    fileprivate init(hubConfig config: JSONText, isGated: Bool) throws(AdapterSettingError) {
        try Self.settings(isGated: isGated).check(config)
        guard let tokens = config["prefix_length"]?.integer, (1...1 << 16).contains(tokens) else { throw AdapterSettingError(key: "prefix_length") }
        self.init(tokens: tokens, start: .samples)
    }
}

/// The library's LoRAConfig of a gated one of q and v.
private enum GatedLoRA {
    static let architecture = "lora"

    private static let settings = FixedSettings([
        "attn_matrices": .array([.string("q"), .string("v")]), "composition_mode": .string("add"), "intermediate_lora": .bool(false),
        "leave_out": .array([]), "output_lora": .bool(false), "selfattn_lora": .bool(true), "use_dora": .bool(false), "use_gating": .bool(true),
        "vera_b": .null, "vera_d": .null,
    ])

    /// - Parameter rank: `alpha` says nothing where there is a gate, and is the library's.
    static func hubConfig(rank: Int) -> JSONText {
        .object(
            (settings.members + [
                .init("alpha", .number("2")), .init("architecture", .string(architecture)), .init("dropout", .number("0.0")),
                .init("dtype", .null), .init("init_weights", .string("lora")), .init("init_weights_seed", .null), .init("r", .number("\(rank)")),
            ]).sorted { $0.key < $1.key })
    }

    static func rank(hubConfig config: JSONText) throws(AdapterSettingError) -> Int {
        try settings.check(config)
        guard let rank = (config["r"] ?? .number("8")).integer, (1...HubAdapter.unipelt.largestRank).contains(rank) else {
            throw AdapterSettingError(key: "r")
        }
        return rank
    }
}

extension JSONText {
    /// Without a fraction where there is none.
    fileprivate init(whole value: Double) { self = .number(Int(exactly: value).map { "\($0)" } ?? "\(value)") }
}

extension AdapterMatrix {
    /// How the library's gates begin.
    private static let gateDeviation: Float = 0.02

    /// w `[1, features]` and b of a gate: a linear of one output.
    static func gate(_ name: String, features: Int) -> [AdapterMatrix] {
        [
            AdapterMatrix(name: name + ".weight", rows: 1, columns: features, start: .normal(deviation: gateDeviation)),
            AdapterMatrix(name: name + ".bias", rows: 1, columns: 1, isVector: true, start: .constant(0)),
        ]
    }
}

extension Bottleneck {
    /// Of the library's BnConfig, sorted by key.
    fileprivate func hubMembers(isGated: Bool) -> [JSONText.Member] {
        (Self.settings(isGated: isGated).members + [
            .init("dropout", .number("0.0")), .init("init_weights", .string("mam_adapter")), .init("init_weights_seed", .null),
            .init("is_parallel", .bool(input == .residual)), .init("mh_adapter", .bool(followsAttention)),
            .init("non_linearity", .string(nonLinearity.rawValue)), .init("original_ln_before", .bool(input == .sum)),
            .init("output_adapter", .bool(followsMLP)), .init("reduction_factor", JSONText(whole: reductionFactor)),
            // The library takes a scaling that is no float for a word.
            .init("scaling", .number("\(scaling)")), .init("stochastic_depth", .number("0.0")),
        ]).sorted { $0.key < $1.key }
    }

    private static func settings(isGated: Bool) -> FixedSettings {
        FixedSettings([
            "adapter_residual_before_ln": .bool(false), "cross_adapter": .bool(false), "inv_adapter": .null,
            "inv_adapter_reduction_factor": .null, "leave_out": .array([]), "ln_after": .bool(false), "ln_before": .bool(false),
            "original_ln_after": .bool(true), "phm_layer": .bool(false), "residual_before_ln": .bool(true), "use_gating": .bool(isGated),
        ])
    }

    fileprivate init(hubConfig config: JSONText, isGated: Bool) throws(AdapterSettingError) {
        try Self.settings(isGated: isGated).check(config)
        func flag(_ key: String, default: Bool) throws(AdapterSettingError) -> Bool {
            guard let value = config[key] else { return `default` }
            guard let flag = value.bool else { throw AdapterSettingError(key: key) }
            return flag
        }
        func number(_ key: String, default: Double?, _ range: ClosedRange<Double>) throws(AdapterSettingError) -> Double {
            guard let value = config[key]?.double ?? (config[key] == nil ? `default` : nil), range.contains(value) else {
                throw AdapterSettingError(key: key)
            }
            return value
        }
        let word = config["non_linearity"]?.string?.lowercased()
        guard let nonLinearity = NonLinearity(rawValue: word == "silu" ? NonLinearity.swish.rawValue : word ?? "") else {
            throw AdapterSettingError(key: "non_linearity")
        }
        let isParallel = try flag("is_parallel", default: false), followsOutput = try !flag("original_ln_before", default: false)
        self.init(
            input: isParallel ? .residual : followsOutput ? .output : .sum, followsAttention: try flag("mh_adapter", default: false),
            followsMLP: try flag("output_adapter", default: true), nonLinearity: nonLinearity,
            scaling: try number("scaling", default: 1, -1e6...1e6),
            reductionFactor: try number("reduction_factor", default: nil, HubAdapter.reductionFactors))
        guard followsAttention || followsMLP else { throw AdapterSettingError(key: "output_adapter") }
    }
}

extension HubAdapter {
    package static let reductionFactors = 0.125...65536.0
}
