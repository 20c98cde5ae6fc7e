// What is asked of an adapter, and which modules get one.
import EdgeFormats
import EdgeTensor

/// What was asked of an adapter.
package struct AdapterSpec: Equatable, Sendable {
    package enum Targets: Equatable, Sendable {
        case names([String])
        /// `all-linear`: every linear of every layer.
        case allLinear
        /// A regular expression that must match the whole module path.
        case pattern(String)
    }

    package var method: any AdapterMethod
    package var rank: Int
    package var alpha: Float
    package var dropout: Float
    package var targets: Targets
    /// Nil: all layers.
    package var layers: [Int]?
    /// alpha is divided by √rank, and not by the rank (rsLoRA, arXiv:2312.03732): of the methods that have an alpha.
    package var usesRankStabilizedScaling = false
    /// Modules with a rank, or an alpha, of their own: of the methods whose files are LoRA's.
    package var rankPattern = ModulePatterns<Int>()
    package var alphaPattern = ModulePatterns<Double>()
    /// Of LoRA's A and B.
    package var start = AdapterStart.kaiming
    /// Of the eva start: each direction is divided by the square root of its singular value.
    package var whitensStart = false
    /// What LoRA+ (arXiv:2402.12354) multiplies the learning rate of every B by; nil: 1.
    package var learningRateRatio: Double?
    /// Beside the linears: of LoRA and DoRA.
    package var saved = SavedModules()

    package init(
        method: any AdapterMethod = AdapterMethods.lora, rank: Int, alpha: Float, dropout: Float, targets: Targets, layers: [Int]?
    ) {
        self.method = method
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.targets = targets
        self.layers = layers
    }

    package static func == (a: Self, b: Self) -> Bool {
        a.method.equals(b.method) && (a.rank, a.alpha, a.dropout) == (b.rank, b.alpha, b.dropout) && a.targets == b.targets
            && a.layers == b.layers && a.usesRankStabilizedScaling == b.usesRankStabilizedScaling
            && a.learningRateRatio == b.learningRateRatio && a.start == b.start && a.whitensStart == b.whitensStart
            && a.rankPattern == b.rankPattern && a.alphaPattern == b.alphaPattern && a.saved == b.saved
    }

    /// "rank 16, alpha 32.0": what of it the method has.
    package var summary: String {
        let keys = method.configKeys
        return [keys.rank.map { _ in "\(method.rankWord) \(rank)" }, keys.alpha.map { _ in "alpha \(alpha)" }].compactMap { $0 }
            .reduce(method.name) { "\($0), \($1)" }
    }

    /// Of the module with this path.
    func own(_ path: String) -> AdapterSpec {
        guard !rankPattern.isEmpty || !alphaPattern.isEmpty else { return self }
        var own = self
        own.rank = rankPattern[path] ?? rank
        own.alpha = alphaPattern[path].map(Float.init) ?? alpha
        return own
    }

    /// PEFT's word for what the low-rank change is multiplied by.
    package var scaling: Float { method.scaling(self) }
    /// Rows before each sample's own; keys before its own, in every layer; and both.
    package var promptTokens: Int { method.promptTokens(self) }
    package var prefixTokens: Int { method.prefixTokens(self) }
    package var virtualTokens: Int { promptTokens + prefixTokens }
    /// What is stored beside the linears, those of a layer together.
    package func parts(_ model: DecoderSpec) -> [AdapterPart] { method.parts(model, self) + saved.parts(model) }
    /// Whose embeddings are trained.
    package var trainedTokens: [TokenID] { method.trainedTokens + saved.tokens }
    /// alpha / rank, or alpha / √rank.
    var alphaOverRank: Float { alpha / (usesRankStabilizedScaling ? Float(rank).squareRoot() : Float(rank) + Float(method.rankMargin)) }
}

/// Values for modules whose path ends in what a regular expression matches, from a dot on; the first that matches counts, in the order of
/// the expressions (peft `get_pattern_key`, which takes them in the order of the file: sorted, in ours).
package struct ModulePatterns<Value: Equatable & Sendable>: Equatable, Sendable {
    package struct Row: Equatable, Sendable {
        package let pattern: String
        package let value: Value
        package init(pattern: String, value: Value) {
            self.pattern = pattern
            self.value = value
        }
    }

    package let rows: [Row]
    package var isEmpty: Bool { rows.isEmpty }
    package init(_ rows: [Row] = []) { self.rows = rows }
    package init(_ values: [String: Value]) { rows = values.sorted { $0.key < $1.key }.map { Row(pattern: $0.key, value: $0.value) } }

    /// The first that is no regular expression.
    package var badPattern: String? { rows.first { !Self.isPath($0.pattern) && (try? Self.regex($0.pattern)) == nil }?.pattern }

    /// - Precondition: there is no bad pattern.
    package subscript(path: String) -> Value? {
        rows.first { Self.isPath($0.pattern) ? Self.ends(path, in: $0.pattern) : (try? Self.regex($0.pattern).wholeMatch(in: path)) != nil }?
            .value
    }

    /// Whether it has nothing of an expression but dots. A pattern for every linear would take longer to compile than a plan to make.
    private static func isPath(_ pattern: String) -> Bool {
        pattern.utf8.allSatisfy { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "0")...UInt8(ascii: "9"),
                UInt8(ascii: "_"), UInt8(ascii: "."): true
            default: false
            }
        }
    }

    /// As the expression would match: a dot stands for any byte of a module's path.
    private static func ends(_ path: String, in pattern: String) -> Bool {
        let (path, pattern) = (path.utf8, pattern.utf8), dot = UInt8(ascii: ".")
        guard path.count >= pattern.count else { return false }
        let rest = path.dropLast(pattern.count)
        return (rest.isEmpty || rest.last == dot) && zip(path.suffix(pattern.count), pattern).allSatisfy { $0 == $1 || $1 == dot }
    }

    private static func regex(_ pattern: String) throws -> Regex<AnyRegexOutput> { try Regex("(.*\\.)?(\(pattern))") }
}

package enum AdapterTargetError: Error, Equatable, CustomStringConvertible {
    case noModule(targets: String, available: [String])
    case layerOutOfRange(Int, layerCount: Int)
    case badPattern(String, reason: String)
    /// `targets` is nil where the model has no bias at all.
    case noBias(method: String, targets: String?, available: [String])
    case tokenOutOfRange(Int, vocabularySize: Int)
    case notSaved(String, available: [String])
    /// Of a side network.
    case badReductionFactor(Int, hiddenSize: Int, allowed: [Int])
    case rankTooLarge(method: String, rank: Int, module: String, largest: Int)

    /// Another method could have what was asked for.
    package var isOfMethod: Bool {
        switch self {
        case .noBias, .rankTooLarge, .badReductionFactor: true
        case .noModule, .layerOutOfRange, .badPattern, .tokenOutOfRange, .notSaved: false
        }
    }

    package var description: String {
        switch self {
        case .noModule(let targets, let available):
            "lora_target_modules \(targets) matches nothing of this model that the method can change; there are "
                + available.joined(separator: ", ")
        case .layerOutOfRange(let layer, let layerCount):
            "layers_to_transform names layer \(layer); the model has layers 0 to \(layerCount - 1)"
        case .tokenOutOfRange(let token, let vocabularySize):
            "token_indices names token \(token); the model has tokens 0 to \(vocabularySize - 1)"
        case .notSaved(let name, let available):
            "modules_to_save: no norm of this model is called \(name); there are \(available.joined(separator: ", ")). Of embeddings the rows "
                + "that token_indices and trainable_tokens name are trained, and nothing of a head of its own"
        case .badReductionFactor(let factor, let hiddenSize, let allowed):
            "reduction_factor: \(factor) is not allowed; it divides the model's hidden size of \(hiddenSize): use one of "
                + allowed.map { "\($0)" }.joined(separator: ", ")
        case .badPattern(let pattern, let reason):
            "lora_target_modules \"\(pattern)\" is not a regular expression: \(reason)"
        case .noBias(let method, nil, _):
            "\(method) trains biases, and no linear of this model has one; as few parameters have ia3, a vector a linear, and rlrr, two"
        case .noBias(let method, .some(let targets), let available):
            "\(method) trains biases, and lora_target_modules \(targets) names linears without; \(available.joined(separator: ", ")) have one"
        case .rankTooLarge(let method, let rank, let module, let largest):
            "lora_r: \(rank) is not allowed; with \(method) \(module) can have 1 to \(largest)"
        }
    }
}

extension AdapterSpec {
    /// The adapted modules, by layer and then in the layer's order. PEFT's matching: a name matches the end of the
    /// path at a dot, a pattern the whole path (peft `tuners_utils.check_target_module_exists`).
    package func modules(of spec: DecoderSpec) throws -> [ModuleID] {
        if let layer = layers?.first(where: { !(0..<spec.layerCount).contains($0) }) {
            throw AdapterTargetError.layerOutOfRange(layer, layerCount: spec.layerCount)
        }
        try saved.check(spec)
        guard method.adaptsLinears else {
            try method.checkTargets(spec, self)
            return []
        }
        let chosen = try targeted(of: spec)
        for id in chosen {
            let rank = own(id.path(spec)).rank
            if let largest = method.largestRank(spec.shape(id.module)), rank > largest {
                throw AdapterTargetError.rankTooLarge(method: method.name, rank: rank, module: id.path(spec), largest: largest)
            }
        }
        return method.needsBias ? try withBias(chosen, spec) : chosen
    }

    /// Those of `chosen`; what was named must have one.
    private func withBias(_ chosen: [ModuleID], _ spec: DecoderSpec) throws -> [ModuleID] {
        let have = chosen.filter { spec.biases.contains($0.module) }
        guard have.count < chosen.count else { return have }
        let available = spec.linears.filter { spec.biases.contains($0.leader) }.map(\.name)
        if available.isEmpty { throw AdapterTargetError.noBias(method: method.name, targets: nil, available: []) }
        let asked: String
        switch targets {
        case .allLinear: return have
        case .names(let names): asked = names.joined(separator: ", ")
        case .pattern(let pattern): asked = pattern
        }
        throw AdapterTargetError.noBias(method: method.name, targets: asked, available: available)
    }

    private func targeted(of spec: DecoderSpec) throws -> [ModuleID] {
        let linears = spec.linears
        let available = linears.map(\.name)
        let all = (0..<spec.layerCount).filter { layers?.contains($0) ?? true }.flatMap { layer in
            linears.map { ModuleID(layer: layer, module: $0.leader) }
        }
        return try chosen(of: all, available: available) { $0.path(spec) }.filter { method.adapts($0.module) }
    }

    /// The modules among these that the targets name; of `allLinear` all.
    ///
    /// - Parameter available: their names, for the error.
    /// - Throws: `AdapterTargetError` where a target names none.
    func chosen<Module>(of all: [Module], available: [String], path: (Module) -> String) throws -> [Module] {
        func matches(_ module: Module, _ name: String) -> Bool {
            let path = path(module)
            return path == name || path.hasSuffix("." + name)
        }
        let chosen: [Module]
        let asked: String
        switch targets {
        case .allLinear:
            return all
        case .names(let names):
            asked = names.joined(separator: ", ")
            for name in names where !all.contains(where: { matches($0, name) }) {
                throw AdapterTargetError.noModule(targets: name, available: available)
            }
            chosen = all.filter { module in names.contains { matches(module, $0) } }
        case .pattern(let pattern):
            asked = pattern
            let regex: Regex<AnyRegexOutput>
            do {
                regex = try Regex(pattern)
            } catch {
                throw AdapterTargetError.badPattern(pattern, reason: "\(error)")
            }
            chosen = try all.filter { try regex.wholeMatch(in: path($0)) != nil }
        }
        guard !chosen.isEmpty else {
            throw AdapterTargetError.noModule(targets: asked, available: available)
        }
        return chosen
    }

    /// `q_proj` of `model.layers.3.self_attn.q_proj`.
    static func lastName(_ path: String) -> String { String(path.split(separator: ".").last ?? "") }
}
