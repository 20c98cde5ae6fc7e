// LoRA (arXiv:2106.09685): which modules get an adapter, and its start values. The products are in AdapterSet.swift.
import EdgeTensor

/// What was asked of LoRA.
package struct LoRASpec: Equatable, Sendable {
    package enum Targets: Equatable, Sendable {
        case names([String])
        /// `all-linear`: every linear of every layer.
        case allLinear
        /// A regular expression that must match the whole module path.
        case pattern(String)
    }

    package var rank: Int
    package var alpha: Float
    package var dropout: Float
    package var targets: Targets
    /// Nil: all layers.
    package var layers: [Int]?

    package init(rank: Int, alpha: Float, dropout: Float, targets: Targets, layers: [Int]?) {
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.targets = targets
        self.layers = layers
    }

    /// PEFT's word for alpha / rank.
    package var scaling: Float { alpha / Float(rank) }
}

package enum LoRATargetError: Error, Equatable, CustomStringConvertible {
    case noModule(targets: String, available: [String])
    case layerOutOfRange(Int, layerCount: Int)
    case badPattern(String, reason: String)

    package var description: String {
        switch self {
        case .noModule(let targets, let available):
            "lora_target_modules \(targets) matches no linear of this model; it has \(available.joined(separator: ", "))"
        case .layerOutOfRange(let layer, let layerCount):
            "layers_to_transform names layer \(layer); the model has layers 0 to \(layerCount - 1)"
        case .badPattern(let pattern, let reason):
            "lora_target_modules \"\(pattern)\" is not a regular expression: \(reason)"
        }
    }
}

extension LoRASpec {
    /// The adapted modules, by layer and then in the layer's order. PEFT's matching: a name matches the end of the
    /// path at a dot, a pattern the whole path (peft `tuners_utils.check_target_module_exists`).
    package func modules(of spec: DecoderSpec) throws -> [ModuleID] {
        if let layer = layers?.first(where: { !(0..<spec.layerCount).contains($0) }) {
            throw LoRATargetError.layerOutOfRange(layer, layerCount: spec.layerCount)
        }
        let linears = spec.linears
        let available = linears.map(\.name)
        let all = (0..<spec.layerCount).filter { layers?.contains($0) ?? true }.flatMap { layer in
            linears.map { ModuleID(layer: layer, module: $0.leader) }
        }
        func matches(_ id: ModuleID, _ name: String) -> Bool {
            let path = id.path(spec)
            return path == name || path.hasSuffix("." + name)
        }
        let chosen: [ModuleID]
        let asked: String
        switch targets {
        case .allLinear:
            return all
        case .names(let names):
            asked = names.joined(separator: ", ")
            for name in names where !all.contains(where: { matches($0, name) }) {
                throw LoRATargetError.noModule(targets: name, available: available)
            }
            chosen = all.filter { id in names.contains { matches(id, $0) } }
        case .pattern(let pattern):
            asked = pattern
            let regex: Regex<AnyRegexOutput>
            do {
                regex = try Regex(pattern)
            } catch {
                throw LoRATargetError.badPattern(pattern, reason: "\(error)")
            }
            chosen = try all.filter { try regex.wholeMatch(in: $0.path(spec)) != nil }
        }
        guard !chosen.isEmpty else {
            throw LoRATargetError.noModule(targets: asked, available: available)
        }
        return chosen
    }
}
