// An adapter read from its files, whoever has made it: to be trained further, to be brought in, to generate with, or to merge.
// Checked against the base, and against what a job asks for.
import EdgeFormats
import EdgeModel
import EdgeTensor

package struct LoadedAdapter: Sendable {
    /// Of every module.
    package let rank: Int
    /// What B · A is multiplied by, in every module.
    package let scaling: Double
    /// Plain LoRA where the adapter is exactly that; else its own.
    private let method: any AdapterMethod
    /// What its configuration says, where the change has no factors.
    private let configRank: Int
    let tensors: [LoRATensors]
    /// Of a method that is more than a change of weights, whose `tensors` are none.
    private let whole: AdapterArtifact?
    /// What a LoRA has beside the linears.
    private let saved: SavedModules
    private let ofSaved: [AdapterTensor]

    /// Modules of several ranks or scalings become ones of the largest rank and of one scaling, which compute the same: further rows
    /// of A and columns of B are zero, and B is multiplied by what its scaling differs.
    ///
    /// - Parameters:
    ///   - tensors: a path: safetensors, LZ4-framed or not, or a GGUF adapter.
    ///   - config: the path of its adapter_config.json, which a GGUF adapter does not have.
    ///   - limitBytes: the most that the tensors may take.
    /// - Throws: `LoadedAdapterError`, and what `AdapterArtifact.open` and `openGGUF` throw.
    package init(tensors path: String, config: String?, spec: DecoderSpec, limitBytes: Int) throws {
        let region = try ByteRegion.map(path: path)
        guard region.bytes.count <= limitBytes else {
            throw LoadedAdapterError.tooLarge(bytes: region.bytes.count, limitBytes: limitBytes)
        }
        if region.withBytes({ $0.starts(with: "GGUF".utf8) }) {
            let (alpha, tensors) = try AdapterArtifact.openGGUF(region, for: spec)
            try self.init(tensors.inLayerOrder(of: spec), AdapterMethods.lora, limitBytes: limitBytes) { alpha / Double($0.rank) }
        } else {
            guard let config else { throw LoadedAdapterError.noConfig }
            let artifact = try AdapterArtifact.open(
                config: try ByteRegion.map(path: config), tensors: region, limitBytes: limitBytes)
            try self.init(artifact.task(nil), of: spec, limitBytes: limitBytes)
        }
    }

    /// Plain LoRA, scaled by nothing.
    init(_ tensors: [LoRATensors], rank: Int) {
        (self.tensors, self.rank) = (tensors, rank)
        (scaling, method, configRank, whole) = (1, AdapterMethods.lora, 1, nil)
        (saved, ofSaved) = (SavedModules(), [])
    }

    /// - Parameters:
    ///   - directory: an artifact as `publish` leaves it.
    ///   - task: of an adapter that has tasks, the one whose LoRA it is.
    package init(directory: String, task: String? = nil, of spec: DecoderSpec) throws {
        try self.init(try AdapterArtifact.open(directory: directory).task(task), of: spec, limitBytes: AdapterArtifact.tensorFileLimitBytes)
    }

    private init(_ artifact: AdapterArtifact, of spec: DecoderSpec, limitBytes: Int) throws {
        guard artifact.config.method.changesWeightsOnly else {
            try self.init(whole: artifact, of: spec, limitBytes: limitBytes)
            return
        }
        let (ofLinears, ofSaved) = try artifact.split(of: spec)
        let tensors = try ofLinears.lora(limitBytes: limitBytes) { path in
            let id = try ModuleID(path: path, in: spec)
            return (id.inFeatures(spec), id.outFeatures(spec), spec.biases.contains(id.module))
        }
        let scalings = try artifact.config.scalings(of: tensors)
        let method = artifact.config.method
        try self.init(
            tensors.inLayerOrder(of: spec), method.isLoRA(artifact.config.spec) ? AdapterMethods.lora : method,
            configRank: artifact.config.rank, saved: artifact.config.saved, ofSaved, limitBytes: limitBytes
        ) {
            scalings[$0.modulePath]!
        }
    }

    private init(whole artifact: AdapterArtifact, of spec: DecoderSpec, limitBytes: Int) throws {
        let artifact = try artifact.withoutTiedCopy(in: spec).targetingNorms(of: spec)
        (rank, scaling, tensors, method, configRank, whole) = (artifact.config.rank, 1, [], artifact.config.method, 1, artifact)
        (saved, ofSaved) = (SavedModules(), [])
        let own = artifact.config.wholeSpec
        let layout = AdapterLayout(own, modules: try own.modules(of: spec), of: spec)
        guard layout.fileBytes <= limitBytes else { throw LoadedAdapterError.tooLarge(bytes: layout.fileBytes, limitBytes: limitBytes) }
        let expected = AdapterSet.fileTensors(layout, spec)
        for tensor in artifact.stored {
            guard let shape = expected[tensor.name] else { throw AdapterError.unknownTensor(tensor.name) }
            guard shape == tensor.shape else { throw AdapterError.unexpectedShape(tensor: tensor.name, shape: tensor.shape, expected: shape) }
        }
        let found = Set(artifact.stored.map(\.name))
        if let missing = expected.keys.sorted().first(where: { !found.contains($0) }) { throw AdapterError.missingTensor(missing) }
    }

    private init(
        _ tensors: [LoRATensors], _ method: any AdapterMethod, configRank: Int = 1, saved: SavedModules = SavedModules(),
        _ ofSaved: [AdapterTensor] = [], limitBytes: Int, scaling: (LoRATensors) -> Double
    ) throws {
        (self.method, self.configRank, whole, self.saved, self.ofSaved) = (method, configRank, nil, saved, ofSaved)
        let largest = tensors.max { $0.rank < $1.rank }!
        let (rank, common) = (largest.rank, ([largest] + tensors).map(scaling).first { $0 != 0 } ?? 1)
        for one in tensors where !Float(scaling(one) * Double(rank)).isFinite {
            throw AdapterError.badConfig(key: "lora_alpha", value: "\(scaling(one) * Double(one.rank))")
        }
        // One module of a high rank would make every other as large.
        let bytes = tensors.reduce(0) { $0 + 4 * Double(rank) * (Double($1.inFeatures) + Double($1.outFeatures)) }
        guard bytes <= Double(limitBytes) else {
            throw LoadedAdapterError.tooLarge(bytes: Int(exactly: bytes.rounded()) ?? .max, limitBytes: limitBytes)
        }
        self.rank = rank
        self.scaling = common
        self.tensors = try tensors.map { one in
            one.rank == rank && scaling(one) == common
                ? one : try one.widened(to: rank, timesB: Float(scaling(one) / common))
        }
    }

    /// The artifact of an adapter that was not trained here.
    ///
    /// - Throws: `AdapterMismatch` where the base has no such module, or one of another shape.
    package func publish(to directory: String, baseModel: String, spec: DecoderSpec, source: String = "imported", note: String) throws {
        if let whole {
            try AdapterArtifact.publish(
                to: directory, tensors: whole.stored, config: whole.config.of(baseModel), provenance: ["source": source],
                trainingJSON: Array("{}\n".utf8), modelCard: "# An adapter for \(baseModel)\n\n\(note): \(self.spec.summary).\n")
            return
        }
        let modules = try modules(of: spec)
        let layers = Set(modules.map(\.layer)).sorted()
        guard rank > 0 || tensors.allSatisfy({ $0.added != nil }) else {
            throw AdapterError.unsupported(key: "peft_type", value: method.peftType)
        }
        var own = self.spec
        own.layers = layers.count == spec.layerCount ? nil : layers
        var config = AdapterConfig(own, modules: modules, of: spec, baseModelNameOrPath: baseModel)
        if rank > 0 { config.loraAlpha = scaling * Double(rank) }
        let stored = zip(modules, tensors).flatMap { id, one in
            one.added?.stored(own, spec.shape(id.module), one.modulePath) ?? one.stored
        }
        try AdapterArtifact.publish(
            to: directory, tensors: stored + ofSaved, config: config, provenance: ["source": source], trainingJSON: Array("{}\n".utf8),
            modelCard: "# An adapter for \(baseModel)\n\n\(note): \(own.summary).\n")
    }

    /// What the modules that it changes are changed by.
    ///
    /// - Throws: `AdapterMismatch` where the base has no such module, or one of another shape.
    package func tensors(of spec: DecoderSpec) throws -> [ModuleID: LoRATensors] {
        Dictionary(zip(try modules(of: spec), tensors)) { first, _ in first }
    }

    package var isLoRA: Bool { method.isLoRA(spec) }

    /// Vectors of a model's file that it has other values for, by their names there.
    func vectors(of base: BaseModel) -> [String: [Float]] {
        let values = Dictionary(ofParts.map { ($0.name, $0.values) }) { first, _ in first }
        var vectors: [String: [Float]] = [:]
        for part in spec.parts(base.spec) {
            guard case .norm(let place) = part.site else { continue }
            let norm = ModelNorm(place: place, layer: part.layer)
            // What the base's own file has added, which Hugging Face's has not.
            let added: Float = if case .rootMeanSquare(let offset) = base.spec.normKind { base.spec.hubNormOffset - offset } else { 0 }
            for (stored, kind) in zip(part.matrices, ["weight", "bias"]) {
                guard let hub = values[stored.fileName] else { continue }
                vectors["\(base.name(of: norm)).\(kind)"] = hub.indices.map { hub[stored.columnOrder?[$0] ?? $0] + added }
            }
        }
        return vectors
    }

    private var ofParts: [AdapterTensor] { whole?.stored ?? ofSaved }

    /// Rows of matrices of a model's file that it has other values for, by their names there.
    func rows(of base: BaseModel) -> [String: [Int: [Float]]] {
        let part = spec.parts(base.spec).first { $0.site == .tokens }
        guard let name = part?.matrices[0].fileName, let tensor = ofParts.first(where: { $0.name == name }) else { return [:] }
        let width = base.spec.hiddenSize
        var rows: [Int: [Float]] = [:]
        for (row, token) in spec.trainedTokens.enumerated() { rows[Int(token)] = Array(tensor.values[row * width..<(row + 1) * width]) }
        return base.isHeadTied ? [base.embeddingName: rows, base.headName: rows] : [base.embeddingName: rows]
    }

    /// As it is computed with.
    package var spec: AdapterSpec {
        if let whole { return whole.config.wholeSpec }
        var spec = AdapterSpec(
            method: method, rank: rank > 0 ? rank : configRank, alpha: Float(scaling) * Float(rank), dropout: 0, targets: .allLinear, layers: nil)
        spec.saved = saved
        return spec
    }

    /// Of all its values.
    package var byteCount: ByteCount {
        let ofLinears = tensors.reduce(0) { sum, one in
            sum + one.loraA.count + one.loraB.count + (one.rotation?.skew.count ?? 0) + (one.added?.count ?? 0)
        }
        return ByteCount(4 * (ofLinears + ofParts.reduce(0) { $0 + $1.values.count }))
    }

    /// The largest of its rotations, and of their blocks; 0: it has none.
    var largestRotation: (elements: Int, blockSize: Int) {
        let sizes = tensors.compactMap { one in one.rotation.map { (one.inFeatures * $0.blockSize, $0.blockSize) } }
        return (sizes.map(\.0).max() ?? 0, sizes.map(\.1).max() ?? 0)
    }

    /// The modules that it changes, each checked against the base.
    package func modules(of spec: DecoderSpec) throws -> [ModuleID] {
        if let whole { return try whole.config.wholeSpec.modules(of: spec) }
        return try tensors.map { one in
            let id = try ModuleID(path: one.modulePath, in: spec)
            let expected = [rank, id.inFeatures(spec), id.outFeatures(spec)]
            guard [one.rank, one.inFeatures, one.outFeatures] == expected else {
                throw AdapterMismatch.wrongShape(
                    module: one.modulePath, found: [one.rank, one.inFeatures, one.outFeatures], expected: expected)
            }
            return id
        }
    }

    /// Fills every module of a set that it was checked for.
    package func load(into set: AdapterSet, _ spec: DecoderSpec) throws {
        if let whole { return try set.load(whole.stored, spec) }
        try set.load(tensors, spec)
        try set.loadParts(ofSaved)
    }

    /// - Throws: `AdapterError.notOfWeights` where no model has what it does as its weights.
    func requireWeights() throws(AdapterError) {
        if whole != nil, !method.canBeWeights { throw .notOfWeights(method: method.name) }
    }

    /// Memory that reading it takes beside the run's own block: its values, and the file's when it is decompressed.
    package static func loadingBytes(_ adapters: ByteCount) -> ByteCount { adapters + adapters }

    /// - Throws: `LoadedAdapterError.differs` with the lines that would make the job fit the adapter; `AdapterMismatch` where the
    ///   base has no such module, or one of another shape.
    package func check(_ lora: AdapterSpec, modules: [ModuleID], spec: DecoderSpec) throws {
        guard lora.method.storedFactors != nil, lora.method.mixture == nil, !lora.method.isGated, lora.method.fileMethod == method.name else {
            throw LoadedAdapterError.otherMethod(adapter: method.name, asked: lora.method.name)
        }
        guard lora.rankPattern.isEmpty, lora.alphaPattern.isEmpty else { throw LoadedAdapterError.patterns }
        let found = Set(try self.modules(of: spec))
        var lines: [String] = []
        func list(_ items: [String]) -> String { items.isEmpty ? "null" : "[\(items.joined(separator: ", "))]" }
        if saved.names != lora.saved.names { lines.append("modules_to_save: \(list(saved.names))") }
        if saved.tokens != lora.saved.tokens { lines.append("token_indices: \(list(saved.tokens.map { "\($0)" }))") }
        if rank != lora.rank { lines.append("lora_r: \(rank)") }
        // To what f32 keeps of alpha / r.
        if abs(scaling / Double(lora.scaling) - 1) > 1e-6 || rank != lora.rank {
            lines.append("lora_alpha: \(Self.text(scaling * Double(rank)))")
        }
        if found != Set(modules) {
            let linears = spec.linears.filter { linear in found.contains { $0.module == linear.leader } }
            let layers = Set(found.map(\.layer)).sorted()
            guard found.count == linears.count * layers.count else { throw LoadedAdapterError.irregular }
            lines.append("lora_target_modules: [\(linears.map(\.name).joined(separator: ", "))]")
            lines.append(
                layers.count == spec.layerCount
                    ? "layers_to_transform: null" : "layers_to_transform: [\(layers.map(String.init).joined(separator: ", "))]")
        }
        guard lines.isEmpty else { throw LoadedAdapterError.differs(lines: lines) }
    }

    private static func text(_ value: Double) -> String {
        Int(exactly: value.rounded()).flatMap { abs(value - Double($0)) < 1e-6 ? "\($0)" : nil } ?? "\(value)"
    }
}

extension [LoRATensors] {
    /// As layouts and plans have modules. Files have them by name, layer 10 before layer 2.
    ///
    /// - Throws: `AdapterMismatch.noSuchModule`.
    fileprivate func inLayerOrder(of spec: DecoderSpec) throws -> [LoRATensors] {
        try map { (id: try ModuleID(path: $0.modulePath, in: spec), tensors: $0) }.sorted { $0.id < $1.id }.map(\.tensors)
    }
}

extension AdapterArtifact {
    /// What a LoRA has of linears, and what beside.
    ///
    /// - Throws: `AdapterTargetError`; `AdapterError` where something beside is missing, or of another shape.
    fileprivate func split(of spec: DecoderSpec) throws -> (ofLinears: AdapterArtifact, ofSaved: [AdapterTensor]) {
        try config.saved.check(spec)
        let expected = config.saved.parts(spec).flatMap(\.matrices)
        guard !expected.isEmpty else { return (self, []) }
        let byName = Dictionary(stored.map { ($0.name, $0) }) { first, _ in first }
        let found = try expected.map { matrix in
            guard let tensor = byName[matrix.fileName] else { throw AdapterError.missingTensor(matrix.fileName) }
            guard tensor.shape == matrix.matrix.shape else {
                throw AdapterError.unexpectedShape(tensor: tensor.name, shape: tensor.shape, expected: matrix.matrix.shape)
            }
            return tensor
        }
        let names = Set(found.map(\.name))
        return (AdapterArtifact(config: config, provenance: provenance, stored: stored.filter { !names.contains($0.name) }), found)
    }

    /// PEFT writes trained tokens that are rows of a tied head a second time, under its name.
    fileprivate func withoutTiedCopy(in spec: DecoderSpec) -> AdapterArtifact {
        guard spec.tiesEmbeddings == true else { return self }
        func name(_ path: String) -> String { "\(Self.keyPrefix)\(path).\(TrainableTokens.tensorName)" }
        func values(_ path: String) -> [Float]? { stored.first { $0.name == name(path) }?.values }
        let head = TrainableTokens.headPath
        guard let copy = values(head), copy == values(TrainableTokens.embeddingPath) else { return self }
        return AdapterArtifact(config: config, provenance: provenance, stored: stored.filter { $0.name != name(head) })
    }

    /// With the targets that its tensors are of, where its configuration names others: PEFT leaves a norm without tensors as it is.
    ///
    /// - Throws: `AdapterMismatch.noSuchModule`.
    fileprivate func targetingNorms(of spec: DecoderSpec) throws -> AdapterArtifact {
        guard config.method is NormTuning else { return self }
        let suffixes = NormTuning.tensorNames.map { ".\($0)" }
        let paths = Set(stored.compactMap { tensor in
            suffixes.first(where: tensor.name.hasSuffix).map { String(tensor.name.dropLast($0.count).dropFirst(Self.keyPrefix.count)) }
        })
        let known = Set(spec.norms.map { $0.path(spec) })
        if let path = paths.sorted().first(where: { !known.contains($0) }) { throw AdapterMismatch.noSuchModule(path) }
        guard Set(config.method.parts(spec, config.wholeSpec).compactMap { $0.matrices.first?.path }) != paths else { return self }
        var config = config
        config.targetModules = paths.sorted()
        return AdapterArtifact(config: config, provenance: provenance, stored: stored)
    }
}

package enum LoadedAdapterError: Error, Equatable, CustomStringConvertible {
    case noConfig
    case tooLarge(bytes: Int, limitBytes: Int)
    case otherMethod(adapter: String, asked: String)
    /// Some layers have other modules than others.
    case irregular
    case patterns
    case differs(lines: [String])

    package var description: String {
        switch self {
        case .noConfig: "the adapter has no adapter_config.json"
        case .tooLarge(let bytes, let limit): "the adapter has \(bytes) bytes; there is memory for \(limit)"
        case .otherMethod(let adapter, let asked):
            "the adapter to begin from is \(adapter), the job asks for \(asked); a job of lora or lora-fa can begin from what is exactly a "
                + "LoRA, one of dora from a DoRA"
        case .patterns: "a job that begins from an adapter has its ranks and alphas, and no rank_pattern or alpha_pattern"
        case .irregular: "the adapter to begin from changes other modules in some layers than in others"
        case .differs: "the adapter to begin from is not what the job asks for"
        }
    }
}

extension LoRATensors {
    /// The same change of the base, up to the rounding of B, by matrices of a larger rank.
    ///
    /// - Throws: `AdapterError.nonFinite` where a scaling is beyond what f32 holds.
    fileprivate func widened(to rank: Int, timesB factor: Float) throws(AdapterError) -> LoRATensors {
        var wide = self
        wide.rank = rank
        wide.loraA += [Float](repeating: 0, count: (rank - self.rank) * inFeatures)
        wide.loraB = [Float](repeating: 0, count: outFeatures * rank)
        for row in 0..<outFeatures {
            for column in 0..<self.rank { wide.loraB[row * rank + column] = loraB[row * self.rank + column] * factor }
        }
        if let index = wide.loraB.firstIndex(where: { !$0.isFinite }) { throw .nonFinite(tensor: modulePath, index: index) }
        return wide
    }
}
