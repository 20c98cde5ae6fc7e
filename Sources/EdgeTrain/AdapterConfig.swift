// `adapter_config.json` as PEFT's configuration classes read and write it (huggingface/peft, tuners/*/config.py). What this
// program cannot represent (biases, extra modules) is refused by name, never dropped.
import EdgeFormats
import EdgeModel

package struct AdapterConfig: Equatable, Sendable {
    /// What its files are read as.
    private var fileMethod = FileMethod(AdapterMethods.lora)
    package var rank: Int
    package var loraAlpha: Double
    package var loraDropout: Double
    /// Sorted. Empty when the file names its modules by a pattern; the tensors then say which.
    package var targetModules: [String]
    /// nil: every layer.
    package var layersToTransform: [Int]?
    /// A hub id or a path, as whoever trained the adapter called it.
    package var baseModelNameOrPath: String?
    package var usesRankStabilizedScaling: Bool
    /// Modules with an alpha of their own; and with a rank, which the tensors' shapes say too.
    private var alphaPattern = ModulePatterns<Double>()
    private var rankPattern = ModulePatterns<Int>()
    /// Those of the targets that are the MLP's last: (IA)³ scales what they get.
    private var downTargets: [String] = []
    /// Of LoRA and DoRA, beside the linears.
    package private(set) var saved = SavedModules()
    /// Of a method that has virtual tokens.
    private var virtualTokens: VirtualTokenSizes?
    /// Of a method of the adapters library's.
    var hub: HubFile?

    package init(
        rank: Int, loraAlpha: Double, loraDropout: Double, targetModules: [String], layersToTransform: [Int]?,
        baseModelNameOrPath: String?, usesRankStabilizedScaling: Bool = false
    ) {
        self.rank = rank
        self.loraAlpha = loraAlpha
        self.loraDropout = loraDropout
        self.targetModules = targetModules.sorted()
        self.layersToTransform = layersToTransform
        self.baseModelNameOrPath = baseModelNameOrPath
        self.usesRankStabilizedScaling = usesRankStabilizedScaling
    }

    /// Of an adapter that was trained here.
    package init(_ spec: AdapterSpec, modules: [ModuleID], of model: DecoderSpec, baseModelNameOrPath: String?) {
        // A mixture of experts is of the whole MLP.
        let experts = spec.method.mixture == nil ? [] : model.linears.map(\.leader).filter(\.isOfMLP)
        let linears = Set(modules.map(\.module) + experts).map { model.linear(doing: $0) }
        // PEFT's class for (IA)³ has no layers_to_transform: there a target is a whole path.
        let namesPaths = !spec.method.hasLayers && spec.layers != nil
        func targets(_ includes: (LinearModule) -> Bool) -> [String] {
            namesPaths
                ? modules.filter { includes($0.module) }.map { $0.path(model) } : linears.filter { includes($0.leader) }.map(\.name)
        }
        let keys = spec.method.configKeys
        self.init(
            rank: keys.rank == nil ? 1 : spec.rank, loraAlpha: keys.alpha == nil ? 1 : Double(spec.alpha),
            loraDropout: keys.dropout == nil ? 0 : Double(spec.dropout),
            targetModules: spec.method.adaptsLinears && spec.method.hasTargets ? targets { _ in true } : spec.method.targetNames(model, spec),
            layersToTransform: spec.layers, baseModelNameOrPath: baseModelNameOrPath,
            usesRankStabilizedScaling: spec.usesRankStabilizedScaling)
        fileMethod = FileMethod(spec.method.fileMethod == spec.method.name ? spec.method.asOnFile : AdapterMethods.named(spec.method.fileMethod)!)
        (rankPattern, alphaPattern) = (spec.rankPattern, spec.alphaPattern)
        virtualTokens = spec.method.virtualTokenSizes(model)
        saved = spec.saved
        if spec.method is HubAdapter { hub = .of(model) }
        if !hasLayers {
            layersToTransform = nil
            if method is IA3 { downTargets = targets { $0 == .down }.sorted() }
        }
    }

    private struct FileMethod: Equatable {
        let method: any AdapterMethod
        init(_ method: any AdapterMethod) { self.method = method }
        static func == (a: Self, b: Self) -> Bool { a.method.equals(b.method) }
    }

    package var method: any AdapterMethod { fileMethod.method }
    var spec: AdapterSpec {
        var spec = AdapterSpec(method: method, rank: rank, alpha: Float(loraAlpha), dropout: 0, targets: .allLinear, layers: nil)
        spec.saved = saved
        return spec
    }
    /// The same of a base that is called otherwise.
    func of(_ baseModel: String) -> AdapterConfig {
        var own = self
        own.baseModelNameOrPath = baseModel
        return own
    }

    /// With the linears and layers that the file names.
    var wholeSpec: AdapterSpec {
        var spec = spec
        if method.hasTargets { spec.targets = .names(targetModules) }
        spec.layers = layersToTransform
        return spec
    }
    private var hasLayers: Bool { method.hasLayers }

    /// Whether a tensor of this name has whole numbers.
    func isInteger(_ name: String) -> Bool {
        method.matrices(.smallest, spec).contains { $0.isInteger && name.hasSuffix(".\($0.name)") }
    }

    /// What B·A is multiplied by: alpha/r, or alpha/√r (rsLoRA, arXiv:2312.03732).
    package func scaling(rank: Int) -> Double {
        guard method.storedFactors != nil else { return method.configKeys.alpha == nil ? 1 : loraAlpha / (Double(self.rank) + method.rankMargin) }
        return loraAlpha / (usesRankStabilizedScaling ? Double(rank).squareRoot() : Double(rank))
    }

    /// By module path. PEFT's matching: a pattern matches the end of the path at a dot (`get_pattern_key` in peft's utils/other.py).
    ///
    /// - Throws: `AdapterError.badConfig` for a pattern that is no regular expression.
    package func scalings(of tensors: [LoRATensors]) throws -> [String: Double] {
        if let pattern = alphaPattern.badPattern { throw AdapterError.badConfig(key: "alpha_pattern", value: pattern) }
        var scalings: [String: Double] = [:]
        for one in tensors {
            var own = self
            own.loraAlpha = alphaPattern[one.modulePath] ?? loraAlpha
            scalings[one.modulePath] = own.scaling(rank: one.rank)
        }
        return scalings
    }

    /// `json.dumps(config, indent=2, sort_keys=True)`.
    package var json: [UInt8] {
        if let hub, let method = method as? HubAdapter { return hubJSON(method, hub) }
        let keys = method.configKeys
        var members: [JSONText.Member] = [
            .init("base_model_name_or_path", baseModelNameOrPath.map(JSONText.string) ?? .null),
            .init("inference_mode", .bool(true)),
            .init("peft_type", .string(method.peftType)),
            .init("revision", .null),
            .init("task_type", .string("CAUSAL_LM")),
        ]
        if method.hasTargets {
            let names = saved.names.isEmpty ? JSONText.null : .array(saved.names.map(JSONText.string))
            members += [.init("modules_to_save", names), .init("target_modules", .array(targetModules.map(JSONText.string)))]
        }
        if !saved.tokens.isEmpty { members.append(.init("trainable_token_indices", .array(saved.tokens.map { .number("\($0)") }))) }
        if hasLayers {
            members.append(.init("layers_pattern", .null))
            members.append(.init("layers_to_transform", layersToTransform.map { .array($0.map { .number("\($0)") }) } ?? .null))
        }
        if let key = keys.rank { members.append(.init(key, .number("\(rank)"))) }
        if let key = keys.alpha { members.append(.init(key, Self.number(loraAlpha))) }
        if let key = keys.dropout { members.append(.init(key, .number("\(loraDropout)"))) }
        members += method.configMembers(
            AdapterConfigValues(
                rank: rank, usesRankStabilizedScaling: usesRankStabilizedScaling, downTargets: downTargets,
                rankPattern: .object(rankPattern.rows.map { .init($0.pattern, .number("\($0.value)")) }),
                alphaPattern: .object(alphaPattern.rows.map { .init($0.pattern, Self.number($0.value)) }), virtualTokens: virtualTokens))
        members.sort { $0.key < $1.key }
        return JSONText.object(members).indented()
    }

    /// Of what is read; it is multiplied by itself, and by a linear's sizes.
    private static let largestRank = 1 << 16

    /// - Throws: `JSONTextError` or `AdapterError`.
    package init(json: ByteRegion) throws {
        let document = try json.withBytes { try JSONText(parsing: $0) }
        if let (method, ownRank, file, baseModel) = try Self.hub(document) {
            (rank, loraAlpha, loraDropout, targetModules, layersToTransform) = (ownRank ?? 1, 1, 0, [], nil)
            (baseModelNameOrPath, usesRankStabilizedScaling) = (baseModel, false)
            (fileMethod, hub) = (FileMethod(method), file)
            return
        }
        let method: any AdapterMethod
        do {
            method = try Self.method(of: document)
        } catch let error as AdapterSettingError {
            throw AdapterError.badConfig(key: error.key, value: Self.text(document[error.key]))
        }
        try Self.refuseUnsupported(document)
        fileMethod = FileMethod(method)
        let keys = method.configKeys
        rank = try keys.rank.map { try Self.read($0, document, default: 8) { $0.integer.flatMap { (1...Self.largestRank).contains($0) ? $0 : nil } } } ?? 1
        loraAlpha = try keys.alpha.map { try Self.read($0, document, default: 8) { $0.double.flatMap { $0.isFinite ? $0 : nil } } } ?? 1
        loraDropout = try keys.dropout.map { try Self.read($0, document, default: 0) { $0.double } } ?? 0
        downTargets = try Self.read("feedforward_modules", document, default: []) {
            $0.string == nil ? Self.strings($0)?.sorted() : []
        }
        targetModules = try Self.read("target_modules", document, default: []) {
            $0.string == nil ? Self.strings($0)?.sorted() : []
        }
        layersToTransform = try Self.read("layers_to_transform", document, default: nil) {
            $0.integer.map { [$0] } ?? Self.integers($0)
        }
        baseModelNameOrPath = try Self.read("base_model_name_or_path", document, default: nil) { $0.string }
        if method.virtualTokenStart != nil { virtualTokens = try VirtualTokenSizes(document) }
        usesRankStabilizedScaling = try Self.read("use_rslora", document, default: false) { $0.bool }
        saved = SavedModules(
            names: try Self.read("modules_to_save", document, default: []) { Self.strings($0) },
            tokens: try Self.read("trainable_token_indices", document, default: []) { Self.savedTokens($0) })
        // What AdaLoRA's rank_pattern says, its tensors' shapes do; an alpha_pattern it has not.
        guard method.rankTensor == nil else { return }
        alphaPattern = try Self.read("alpha_pattern", document, default: alphaPattern) {
            Self.patterns($0) { $0.double.flatMap { $0.isFinite ? $0 : nil } }
        }
        rankPattern = try Self.read("rank_pattern", document, default: rankPattern) { Self.patterns($0) { $0.integer } }
    }

    static func positive(_ key: String, _ document: JSONText) throws(AdapterError) -> Int {
        guard let count = document[key]?.integer, (1...largestSize).contains(count) else {
            throw .badConfig(key: key, value: text(document[key]))
        }
        return count
    }
    private static let largestSize = 1 << 24

    private static func method(of document: JSONText) throws -> any AdapterMethod {
        guard let type = document["peft_type"]?.string, let method = AdapterMethods.all.first(where: { $0.peftType == type && !($0 is HubAdapter) }) else {
            throw AdapterError.unsupported(key: "peft_type", value: text(document["peft_type"]))
        }
        // DoRA is a kind of LoRA to PEFT.
        if method.name == AdapterMethods.lora.name && document["use_dora"] == .bool(true) { return AdapterMethods.dora }
        return try method.configured(by: document)
    }

    private static func refuseUnsupported(_ document: JSONText) throws(AdapterError) {
        // Each would change what the tensors mean. rank_pattern does not: a tensor's shape gives its rank.
        let neutral: [String: [JSONText]] = [
            "use_qalora": [.bool(false)], "lora_bias": [.bool(false)],
            "fan_in_fan_out": [.bool(false)], "bias": [.string("none")], "modules_to_save": [.array([])],
            "trainable_token_indices": [], "layer_replication": [],
            "target_parameters": [.array([])], "alora_invocation_tokens": [], "velora_config": [],
            "mini_r": [.number("1")], "use_effective_conv2d": [.bool(false)], "save_projection": [.bool(true)],
            "coft": [.bool(false)], "block_share": [.bool(false)],
        ]
        let isLoRA = document["peft_type"] == .string(AdapterMethods.lora.peftType)
        for (key, values) in neutral.sorted(by: { $0.key < $1.key }) where !isLoRA || !["modules_to_save", "trainable_token_indices"].contains(key) {
            guard let value = document[key], value != .null, !values.contains(value) else { continue }
            throw .unsupported(key: key, value: text(value))
        }
        // The scaling of other methods is one for all.
        if ![.string("LORA"), .string("ADALORA")].contains(document["peft_type"]), let value = document["rank_pattern"], value != .null, value != .object([]) {
            throw .unsupported(key: "rank_pattern", value: text(value))
        }
    }

    private static func read<T>(
        _ key: String, _ document: JSONText, default: T, _ decode: (JSONText) -> T?
    ) throws(AdapterError) -> T {
        guard let value = document[key], value != .null else { return `default` }
        guard let decoded = decode(value) else { throw .badConfig(key: key, value: text(value)) }
        return decoded
    }

    /// In the order of the file.
    private static func patterns<Value>(_ value: JSONText, _ decode: (JSONText) -> Value?) -> ModulePatterns<Value>? {
        guard case .object(let members) = value else { return nil }
        let rows = members.compactMap { member in
            decode(member.value).map { ModulePatterns.Row(pattern: member.key, value: $0) }
        }
        return rows.count == members.count ? ModulePatterns(rows) : nil
    }

    /// Of the embedding, which an object names.
    private static func savedTokens(_ value: JSONText) -> [TokenID]? {
        guard case .object(let members) = value else { return TrainableTokens.tokens(value) }
        guard members.count == 1, TrainableTokens.embeddingPath.hasSuffix(members[0].key) else { return nil }
        return TrainableTokens.tokens(members[0].value)
    }

    private static func strings(_ value: JSONText) -> [String]? {
        guard let elements = value.array else { return nil }
        let strings = elements.compactMap { $0.string }
        return strings.count == elements.count ? strings : nil
    }

    private static func integers(_ value: JSONText) -> [Int]?? {
        guard let elements = value.array else { return .none }
        let integers = elements.compactMap { $0.integer }
        return integers.count == elements.count ? .some(integers) : .none
    }

    /// PEFT's type is int, and other readers insist on it, so a whole alpha is written as one.
    private static func number(_ value: Double) -> JSONText {
        .number(Int(exactly: value).map { "\($0)" } ?? "\(value)")
    }

    static func text(_ value: JSONText?) -> String {
        guard let value else { return "missing" }
        return String(decoding: value.indented().dropLast(), as: UTF8.self)
    }
}

extension VirtualTokenSizes {
    /// Of an adapter_config.json: PEFT cannot load one without them.
    fileprivate init(_ document: JSONText) throws(AdapterError) {
        self.init(
            tokenDim: try AdapterConfig.positive("token_dim", document), heads: try AdapterConfig.positive("num_attention_heads", document),
            layers: try AdapterConfig.positive("num_layers", document))
    }
}
