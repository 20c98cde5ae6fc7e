// An adapter that training begins from: another run's, PEFT's or llama.cpp's, checked against the base and against what the job
// asks for.
import EdgeFormats
import EdgeModel
import EdgeTensor

package struct InitialAdapter: Sendable {
    package let rank: Int
    /// What B · A is multiplied by.
    package let scaling: Double
    private let tensors: [LoRATensors]

    /// - Parameters:
    ///   - tensors: a path: safetensors, LZ4-framed or not, or a GGUF adapter.
    ///   - config: the path of its adapter_config.json, which a GGUF adapter does not have.
    /// - Throws: `InitialAdapterError`, and what `AdapterArtifact.open` and `openGGUF` throw.
    package init(tensors path: String, config: String?, spec: DecoderSpec) throws {
        let region = try ByteRegion.map(path: path)
        if region.withBytes({ $0.starts(with: "GGUF".utf8) }) {
            let (alpha, tensors) = try AdapterArtifact.openGGUF(region, for: spec)
            try self.init(tensors) { alpha / Double($0) }
        } else {
            guard let config else { throw InitialAdapterError.noConfig }
            let artifact = try AdapterArtifact.open(config: try ByteRegion.map(path: config), tensors: region)
            try self.init(artifact.tensors, scaling: artifact.config.scaling)
        }
    }

    /// - Parameter directory: an artifact as `publish` leaves it.
    package init(directory: String) throws {
        let artifact = try AdapterArtifact.open(directory: directory)
        try self.init(artifact.tensors, scaling: artifact.config.scaling)
    }

    /// The artifact of an adapter that was not trained here.
    ///
    /// - Throws: `AdapterMismatch` where the base has no such module, or one of another shape.
    package func publish(to directory: String, baseModel: String, spec: DecoderSpec) throws {
        let modules = try modules(of: spec)
        let layers = Set(modules.map(\.layer)).sorted()
        let config = AdapterConfig(
            rank: rank, loraAlpha: scaling * Double(rank), loraDropout: 0,
            targetModules: Set(modules.map { spec.linear(doing: $0.module).name }).sorted(),
            layersToTransform: layers.count == spec.layerCount ? nil : layers, baseModelNameOrPath: baseModel)
        try AdapterArtifact.publish(
            to: directory, tensors: tensors, config: config, provenance: ["source": "imported"], trainingJSON: Array("{}\n".utf8),
            modelCard: "# An adapter for \(baseModel)\n\nBrought in, not trained here: LoRA of rank \(rank).\n")
    }

    /// The modules that it changes, each checked against the base.
    private func modules(of spec: DecoderSpec) throws -> [ModuleID] {
        try tensors.map { one in
            let id = try ModuleID(path: one.modulePath, in: spec)
            let expected = [rank, id.inFeatures(spec), id.outFeatures(spec)]
            guard [one.rank, one.inFeatures, one.outFeatures] == expected else {
                throw AdapterMismatch.wrongShape(
                    module: one.modulePath, found: [one.rank, one.inFeatures, one.outFeatures], expected: expected)
            }
            return id
        }
    }

    private init(_ tensors: [LoRATensors], scaling: (_ rank: Int) -> Double) throws {
        let ranks = Set(tensors.map(\.rank)).sorted()
        guard let rank = ranks.first, ranks.count == 1 else { throw InitialAdapterError.severalRanks(ranks) }
        self.rank = rank
        self.scaling = scaling(rank)
        self.tensors = tensors
    }

    /// Fills every module of a set that it was checked for.
    package func load(into set: AdapterSet, _ spec: DecoderSpec) throws { try set.load(tensors, spec) }

    /// Memory that reading it takes beside the run's own block: its values, and the file's when it is decompressed.
    package static func loadingBytes(_ adapters: ByteCount) -> ByteCount { adapters + adapters }

    /// - Throws: `InitialAdapterError.differs` with the lines that would make the job fit the adapter; `AdapterMismatch` where the
    ///   base has no such module, or one of another shape.
    package func check(_ lora: LoRASpec, modules: [ModuleID], spec: DecoderSpec) throws {
        let found = Set(try self.modules(of: spec))
        var lines: [String] = []
        if rank != lora.rank { lines.append("lora_r: \(rank)") }
        // To what f32 keeps of alpha / r.
        if abs(scaling / Double(lora.scaling) - 1) > 1e-6 || rank != lora.rank {
            lines.append("lora_alpha: \(Self.text(scaling * Double(rank)))")
        }
        if found != Set(modules) {
            let linears = spec.linears.filter { linear in found.contains { $0.module == linear.leader } }
            let layers = Set(found.map(\.layer)).sorted()
            guard found.count == linears.count * layers.count else { throw InitialAdapterError.irregular }
            lines.append("lora_target_modules: [\(linears.map(\.name).joined(separator: ", "))]")
            lines.append(
                layers.count == spec.layerCount
                    ? "layers_to_transform: null" : "layers_to_transform: [\(layers.map(String.init).joined(separator: ", "))]")
        }
        guard lines.isEmpty else { throw InitialAdapterError.differs(lines: lines) }
    }

    private static func text(_ value: Double) -> String {
        Int(exactly: value.rounded()).flatMap { abs(value - Double($0)) < 1e-6 ? "\($0)" : nil } ?? "\(value)"
    }
}

package enum InitialAdapterError: Error, Equatable, CustomStringConvertible {
    case noConfig
    case severalRanks([Int])
    /// Some layers have other modules than others.
    case irregular
    case differs(lines: [String])

    package var description: String {
        switch self {
        case .noConfig: "the adapter to begin from has no adapter_config.json"
        case .severalRanks(let ranks): "the adapter to begin from has modules of rank \(ranks.map(String.init).joined(separator: ", ")); one is supported"
        case .irregular: "the adapter to begin from changes other modules in some layers than in others"
        case .differs: "the adapter to begin from is not what the job asks for"
        }
    }
}
