// Norm tuning (arXiv:2312.11420): the weights of norms, and layer normalisation's biases, are trained themselves. A job has its own copies
// of the norms that its targets name, which begin as the base's (AdaptedNorms.swift computes with them).
import EdgeFormats
import EdgeTensor

package struct NormTuning: AdapterMethod {
    package let name = "ln-tuning"
    package let peftType = "LN_TUNING"
    package let configKeys = AdapterConfigKeys(rank: nil, alpha: nil, dropout: nil)

    package init() {}

    /// What follows a norm's path in the names of files' tensors: its weight's, and layer normalisation's bias's.
    package static let tensorNames = ["ln_tuning_layers.weight", "ln_tuning_layers.bias"]

    package var adaptsLinears: Bool { false }
    package var hasTargets: Bool { true }
    package var changesWeightsOnly: Bool { false }
    package var canBeWeights: Bool { true }
    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] { [] }
    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { 0 }

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] { [.init("exclude_modules", .null)] }

    package func parts(_ model: DecoderSpec, _ spec: AdapterSpec) -> [AdapterPart] {
        // What does not match has been refused when the job was checked.
        let norms = (try? Self.norms(model, spec)) ?? []
        return norms.map { Self.part($0, model, names: Self.tensorNames) }
    }

    /// - Parameter names: of the weight on file, and of layer normalisation's bias.
    static func part(_ norm: ModelNorm, _ model: DecoderSpec, names: [String]) -> AdapterPart {
        AdapterPart(
            .norm(norm.place), layer: norm.layer,
            names.prefix(model.normKind == .layer ? 2 : 1).map { name in
                let matrix = AdapterMatrix(name: name, rows: 1, columns: norm.width(model), isVector: true, start: .measured)
                return .init(matrix, path: norm.path(model), columnOrder: norm.order(model))
            })
    }

    package func checkTargets(_ model: DecoderSpec, _ spec: AdapterSpec) throws { _ = try Self.norms(model, spec) }

    /// PEFT's class has no layers: where some have been chosen, a target is a whole path.
    package func targetNames(_ model: DecoderSpec, _ spec: AdapterSpec) -> [String] {
        if case .names(let names) = spec.targets, spec.layers == nil { return names }
        let paths = parts(model, spec).compactMap { $0.matrices.first?.path }
        var short = spec
        short.targets = .names(Set(paths.map(AdapterSpec.lastName)).sorted())
        short.layers = nil
        let isShort = parts(model, short).compactMap { $0.matrices.first?.path } == paths
        guard isShort, case .names(let names) = short.targets else { return paths }
        return names
    }

    /// The last one of the model is in no layer, and so in none that was chosen.
    private static func norms(_ model: DecoderSpec, _ spec: AdapterSpec) throws -> [ModelNorm] {
        let all = model.norms.filter { norm in spec.layers.map { layers in norm.layer.map(layers.contains) ?? false } ?? true }
        let names = Set(model.norms.map { AdapterSpec.lastName($0.path(model)) }).sorted()
        return try spec.chosen(of: all, available: names) { $0.path(model) }
    }
}

/// A norm, by where it is in a model.
package struct ModelNorm: Hashable, Sendable {
    package let place: NormPlace
    /// Nil: the model's last.
    package let layer: Int?
    package init(place: NormPlace, layer: Int?) {
        self.place = place
        self.layer = layer
    }

    /// `model.layers.3.input_layernorm`, as in Hugging Face's model and so in PEFT's files.
    package func path(_ spec: DecoderSpec) -> String { TensorNames.huggingFace.norm(place, layer: layer, spec) }

    func width(_ spec: DecoderSpec) -> Int {
        switch (place, spec.headNorm) {
        case (.query, .fullWidth): spec.queryWidth
        case (.key, .fullWidth): spec.keyValueWidth
        case (.query, _), (.key, _): spec.headDim
        default: spec.hiddenSize
        }
    }

    /// Element i is Hugging Face's `order[i]`; nil: the same order.
    func order(_ spec: DecoderSpec) -> [Int]? {
        let module: LinearModule? = switch place {
        case .query: .query
        case .key: .key
        default: nil
        }
        guard let module, let rows = spec.rowOrder(module) else { return nil }
        // Of one head, where all have the same weights.
        return Array(rows.prefix(width(spec)))
    }
}

extension DecoderSpec {
    /// Layer by layer, and then the model's last.
    package var norms: [ModelNorm] {
        var places: [NormPlace] = hasInputNorms ? [.attentionInput] : []
        if headNorm != .none { places += [.query, .key] }
        if hasOutputNorms { places.append(.attentionOutput) }
        if hasInputNorms { places.append(.mlpInput) }
        if hasOutputNorms { places.append(.mlpOutput) }
        let ofLayers = (0..<layerCount).flatMap { layer in places.map { ModelNorm(place: $0, layer: layer) } }
        return ofLayers + [ModelNorm(place: .final, layer: nil)]
    }
}

extension BaseModel {
    /// As the model computes with it.
    package func norm(_ norm: ModelNorm) -> Norm? {
        guard let layer = norm.layer.map({ layers[$0] }) else { return outputNorm }
        return switch norm.place {
        case .attentionInput: layer.attentionInput
        case .attentionOutput: layer.attentionOutput
        case .mlpInput: layer.mlpInput
        case .mlpOutput: layer.mlpOutput
        case .query: layer.query
        case .key: layer.key
        case .final: nil
        }
    }

    /// Its name in the model's file, without ".weight".
    package func name(of norm: ModelNorm) -> String { names.norm(norm.place, layer: norm.layer, spec) }
}
