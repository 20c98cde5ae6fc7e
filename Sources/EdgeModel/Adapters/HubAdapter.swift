// The methods of the adapters library (AdapterHub, arXiv:2311.11077), which PEFT does not have, and what its adapter_config.json says of
// them: `config` there, whose keys are those of configuration/adapter_config.py.
import EdgeFormats
import EdgeTensor

package struct HubAdapter: AdapterMethod {
    package private(set) var name: String
    /// None of PEFT's.
    package var peftType: String { "ADAPTER_HUB" }
    package var configKeys: AdapterConfigKeys { AdapterConfigKeys(rank: nil, alpha: nil, dropout: nil) }
    package private(set) var bottleneck: Bottleneck?
    /// Keys and values before each sample's own, as P-tuning v2's; nil: it has none.
    package private(set) var prefix: Prefix?

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
    package var adaptsLinears: Bool { false }
    package var changesWeightsOnly: Bool { false }
    package var hasLayers: Bool { false }
    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] { [] }
    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { 0 }
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
        return (prefixes ?? []) + (0..<model.layerCount).flatMap { layer in
            bottleneck.map { bottleneck in
                bottleneck.parts(model, layer: layer) { site in
                    let module = site == .afterAttention ? "attention_adapters" : "output_adapters"
                    return "model.layers.\(layer).\(module).adapters.\(Self.adapterName)"
                }
            } ?? []
        }
    }

    /// `config` of its adapter_config.json, keys sorted.
    package var hubConfig: JSONText {
        let ofBottleneck = bottleneck.map { JSONText.object($0.hubMembers) } ?? .null
        guard let prefix else { return ofBottleneck }
        return .object([.init("architecture", .string("union")), .init("configs", .array([prefix.hubConfig, ofBottleneck]))])
    }

    /// - Parameter config: `config` of an adapter_config.json; absent keys are the library's defaults.
    /// - Throws: `AdapterSettingError` for a setting that the library has and this program does not.
    package init(hubConfig config: JSONText) throws(AdapterSettingError) {
        switch config["architecture"]?.string {
        case nil: break
        case "union":
            let configs = config["configs"]?.array ?? []
            // A gate is a mean over the whole sample, later tokens included, which a sample that is being generated does not have.
            if configs.contains(where: { $0["use_gating"] == .bool(true) }) { throw AdapterSettingError(key: "use_gating") }
            guard configs.count == 2 else { throw AdapterSettingError(key: "configs") }
            let order = configs[0]["architecture"]?.string == "prefix_tuning" ? (configs[0], configs[1]) : (configs[1], configs[0])
            guard order.0["architecture"]?.string == "prefix_tuning", order.1["architecture"] ?? .null == .null else {
                throw AdapterSettingError(key: "configs")
            }
            self = .mam
            prefix = try Prefix(hubConfig: order.0)
            bottleneck = try Bottleneck(hubConfig: order.1)
            return
        default: throw AdapterSettingError(key: "architecture")
        }
        let bottleneck = try Bottleneck(hubConfig: config)
        self = [.sum: .seqBn, .output: .doubleSeqBn, .residual: .parBn][bottleneck.input]!  // all cases are there
        self.bottleneck = bottleneck
    }
}

extension HubAdapter.Prefix {
    /// Settings that would change what the tensors mean. A prefix that is not flat is made by a network, whose weights the file has.
    private static let neutral: [String: JSONText] = ["flat": .bool(true), "leave_out": .array([]), "use_gating": .bool(false)]

    fileprivate var hubConfig: JSONText {
        let neutral = Self.neutral.map { JSONText.Member($0.key, $0.value) }
        return .object(
            (neutral + [
                .init("architecture", .string("prefix_tuning")), .init("bottleneck_size", .number("512")), .init("cross_prefix", .bool(true)),
                .init("dropout", .number("0.0")), .init("encoder_prefix", .bool(true)), .init("init_weights_seed", .null),
                .init("non_linearity", .string("tanh")), .init("prefix_length", .number("\(tokens)")), .init("shared_gating", .bool(true)),
            ]).sorted { $0.key < $1.key })
    }

    fileprivate init(hubConfig config: JSONText) throws(AdapterSettingError) {
        for (key, value) in Self.neutral.sorted(by: { $0.key < $1.key }) {
            let found = config[key] ?? (key == "flat" ? .bool(false) : value)
            guard found == value else { throw AdapterSettingError(key: key) }
        }
        guard let tokens = config["prefix_length"]?.integer, (1...1 << 16).contains(tokens) else { throw AdapterSettingError(key: "prefix_length") }
        self.init(tokens: tokens, start: .samples)
    }
}

extension Bottleneck {
    /// Of the library's BnConfig, sorted by key.
    fileprivate var hubMembers: [JSONText.Member] {
        let neutral = Self.neutral.map { JSONText.Member($0.key, $0.value) }
        return (neutral + [
            .init("dropout", .number("0.0")), .init("init_weights", .string("mam_adapter")), .init("init_weights_seed", .null),
            .init("is_parallel", .bool(input == .residual)), .init("mh_adapter", .bool(followsAttention)),
            .init("non_linearity", .string(nonLinearity.rawValue)), .init("original_ln_before", .bool(input == .sum)),
            .init("output_adapter", .bool(followsMLP)), .init("reduction_factor", Self.number(reductionFactor)),
            // The library takes a scaling that is no float for a word.
            .init("scaling", .number("\(scaling)")), .init("stochastic_depth", .number("0.0")),
        ]).sorted { $0.key < $1.key }
    }

    private static func number(_ value: Double) -> JSONText { .number(Int(exactly: value).map { "\($0)" } ?? "\(value)") }

    /// Settings that would change what the tensors mean, as they are where they do not.
    private static let neutral: [String: JSONText] = [
        "adapter_residual_before_ln": .bool(false), "cross_adapter": .bool(false), "inv_adapter": .null,
        "inv_adapter_reduction_factor": .null, "leave_out": .array([]), "ln_after": .bool(false), "ln_before": .bool(false),
        "original_ln_after": .bool(true), "phm_layer": .bool(false), "residual_before_ln": .bool(true), "use_gating": .bool(false),
    ]

    fileprivate init(hubConfig config: JSONText) throws(AdapterSettingError) {
        for (key, value) in Self.neutral.sorted(by: { $0.key < $1.key }) {
            guard config[key] ?? value == value else { throw AdapterSettingError(key: key) }
        }
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
