// What an adapter of any method is as a change of each linear: plain LoRA, exactly, for every method whose change has factors; or
// scales, a rotation, or what is added beside (AddedValues.swift). What generates, merges and exports knows no other form.
import EdgeModel
import EdgeTensor

/// The change of one linear, rows in Hugging Face's order.
package struct LoRATensors: Equatable, Sendable {
    /// "model.layers.0.self_attn.q_proj"
    package var modulePath: String
    /// 0: there are no factors.
    package var rank: Int
    package var inFeatures: Int
    package var outFeatures: Int
    /// `[rank, inFeatures]`, row-major.
    package var loraA: [Float]
    /// `[outFeatures, rank]`, row-major.
    package var loraB: [Float]
    /// `[inFeatures]`: what the linear's input is multiplied by.
    package var inputScale: [Float]?
    /// What the linear's input is multiplied by, block-diagonal.
    package var rotation: Rotation?
    /// `[outFeatures]`: what the linear gives is multiplied by.
    package var outputScale: [Float]?
    /// `[outFeatures]`: DoRA's lengths of the rows of the sum.
    package var magnitude: [Float]?
    /// What is added beside; nil: nothing.
    package var added: AddedValues?

    package struct Rotation: Equatable, Sendable {
        /// As stored: `[inFeatures / blockSize, blockSize · (blockSize - 1) / 2]`.
        package let skew: [Float]
        package let blockSize: Int
        package let form: CayleyForm
    }

    package init(modulePath: String, rank: Int, inFeatures: Int, outFeatures: Int, loraA: [Float], loraB: [Float]) {
        self.modulePath = modulePath
        self.rank = rank
        self.inFeatures = inFeatures
        self.outFeatures = outFeatures
        self.loraA = loraA
        self.loraB = loraB
    }

    /// As PEFT's files have LoRA, and DoRA.
    package var stored: [AdapterTensor] {
        let prefix = AdapterArtifact.keyPrefix + modulePath
        let factors = [
            AdapterTensor(name: prefix + ".lora_A.weight", shape: [rank, inFeatures], values: loraA),
            AdapterTensor(name: prefix + ".lora_B.weight", shape: [outFeatures, rank], values: loraB, start: 0),
        ]
        return factors + (magnitude.map { [AdapterTensor(name: prefix + ".lora_magnitude_vector", shape: [outFeatures], values: $0)] } ?? [])
    }
}

extension LoRATensors {
    /// Without the rows of A that are zero, and the columns of B that they meet; where nothing is left, a rank of zeros.
    fileprivate var withoutEmptyRanks: Self {
        let kept = (0..<rank).filter { row in loraA[row * inFeatures..<(row + 1) * inFeatures].contains { $0 != 0 } }
        var change = self
        change.rank = max(1, kept.count)
        guard !kept.isEmpty else {
            (change.loraA, change.loraB) = ([Float](repeating: 0, count: inFeatures), [Float](repeating: 0, count: outFeatures))
            return change
        }
        change.loraA = kept.flatMap { loraA[$0 * inFeatures..<($0 + 1) * inFeatures] }
        change.loraB = (0..<outFeatures).flatMap { row in kept.map { loraB[row * rank + $0] } }
        return change
    }
}

extension AdapterArtifact {
    static let keyPrefix = "base_model.model."

    /// Sorted by module path. Every tensor is used, or is an error.
    ///
    /// - Parameters:
    ///   - limitBytes: the most that derived factors may take: a small file can mean large ones.
    ///   - shape: of a module of the base; nil where there is none.
    /// - Throws: `AdapterError`; `AdapterMismatch.noSuchModule`.
    package func lora(
        limitBytes: Int = tensorFileLimitBytes,
        _ shape: (_ modulePath: String) throws -> (inFeatures: Int, outFeatures: Int, hasBias: Bool)?
    ) throws -> [LoRATensors] {
        var derivedBytes = 0
        let method = config.method
        let byName = Dictionary(stored.map { ($0.name, $0) }) { first, _ in first }
        let spec = config.spec
        let suffixes = method.fileNames(spec).map { "." + $0 }
        let shared = method.shared(LinearShape(inFeatures: 1, outFeatures: 1, isDown: false), spec).map(\.name)
        var modules: [String] = []
        for tensor in stored where !shared.contains(tensor.name) {
            guard let suffix = suffixes.first(where: tensor.name.hasSuffix), tensor.name.hasPrefix(Self.keyPrefix),
                tensor.name.utf8.count > Self.keyPrefix.utf8.count + suffix.utf8.count
            else { throw AdapterError.unknownTensor(tensor.name) }
            let module = String(tensor.name.dropFirst(Self.keyPrefix.count).dropLast(suffix.count))
            if modules.last != module { modules.append(module) }
        }
        func require(_ name: String) throws(AdapterError) -> AdapterTensor {
            guard let tensor = byName[name] else { throw .missingTensor(name) }
            return tensor
        }
        let common = try shared.map { try require($0) }
        let tensors = try modules.map { module in
            guard let stored = method.storedFactors else {
                guard let found = try shape(module) else { throw AdapterMismatch.noSuchModule(module) }
                let linear = LinearShape(
                    inFeatures: found.inFeatures, outFeatures: found.outFeatures, isDown: module.hasSuffix("mlp.down_proj"),
                    hasBias: found.hasBias)
                var ofModule = spec
                if let name = method.rankTensor { ofModule.rank = try require(Self.keyPrefix + module + "." + name).shape[0] }
                derivedBytes += 4 * method.factorRank(linear, ofModule) * (linear.inFeatures + linear.outFeatures)
                guard derivedBytes <= limitBytes else { throw LoadedAdapterError.tooLarge(bytes: derivedBytes, limitBytes: limitBytes) }
                let own = method.matrices(linear, ofModule).filter(\.isOnFile).map { "." + $0.name }
                if let other = suffixes.first(where: { !own.contains($0) && byName[Self.keyPrefix + module + $0] != nil }) {
                    throw AdapterError.unknownTensor(Self.keyPrefix + module + other)
                }
                let tensors = try own.map { try require(Self.keyPrefix + module + $0) }
                return try Self.change(of: module, linear, ofModule, tensors, common)
            }
            let tensors = try suffixes.map { try require(Self.keyPrefix + module + $0) }
            let (a, b) = (tensors[stored.a], tensors[stored.b])
            for one in [a, b] where one.shape.count != 2 { throw AdapterError.badShape(tensor: one.name, shape: one.shape) }
            guard a.shape[0] == b.shape[1] else {
                throw AdapterError.rankMismatch(module: module, loraA: a.shape[0], loraB: b.shape[1])
            }
            var change = LoRATensors(
                modulePath: module, rank: a.shape[0], inFeatures: a.shape[1], outFeatures: b.shape[0], loraA: a.values, loraB: b.values)
            if tensors.count > 2 {
                guard tensors[2].shape == [b.shape[0]] else {
                    throw AdapterError.unexpectedShape(tensor: tensors[2].name, shape: tensors[2].shape, expected: [b.shape[0]])
                }
                change.magnitude = tensors[2].values
            }
            return change
        }
        guard !tensors.isEmpty else { throw AdapterError.noTensors }
        return tensors
    }

    /// - Parameters:
    ///   - tensors: what is stored for the module, in the method's order.
    ///   - common: what all modules share.
    private static func change(
        of module: String, _ linear: LinearShape, _ spec: AdapterSpec, _ tensors: [AdapterTensor], _ common: [AdapterTensor]
    ) throws -> LoRATensors {
        let method = spec.method
        for (matrix, tensor) in zip(method.matrices(linear, spec), tensors) where matrix.shape != tensor.shape {
            throw AdapterError.unexpectedShape(tensor: tensor.name, shape: tensor.shape, expected: matrix.shape)
        }
        for (matrix, tensor) in zip(method.shared(linear, spec), common) {
            // The corner of this module is in them.
            guard tensor.shape.count == 2, tensor.shape[0] >= matrix.rows, tensor.shape[1] >= matrix.columns else {
                throw AdapterError.unexpectedShape(tensor: tensor.name, shape: tensor.shape, expected: matrix.shape)
            }
        }
        var change = LoRATensors(
            modulePath: module, rank: method.factorRank(linear, spec), inFeatures: linear.inFeatures, outFeatures: linear.outFeatures, loraA: [], loraB: [])
        switch method.inputTransform(linear) {
        case nil: break
        case .scale(let index): change.inputScale = tensors[index].values
        case .rotation(let index, let matrix, let form):
            let blockSize = method.matrices(linear, spec)[matrix].columns
            change.rotation = LoRATensors.Rotation(skew: tensors[index].values, blockSize: blockSize, form: form)
        }
        if case .stored(let index) = method.outputScale(linear) { change.outputScale = tensors[index].values }
        change.added = try AddedValues(method.addedTerms(linear), tensors, linear)
        // Of a linear that has lost all its ranks.
        if method.rankTensor != nil, change.rank == 0 { return change.withoutEmptyRanks }
        guard method.derivesFactors(spec) else { return change }
        let rank = change.rank
        let space = UnsafeMutablePointer<Float>.allocate(capacity: rank * (linear.inFeatures + linear.outFeatures))
        defer { space.deallocate() }
        let factors = AdapterFactors(
            a: Tensor(space, rows: rank, columns: linear.inFeatures),
            b: Tensor(space + rank * linear.inFeatures, rows: linear.outFeatures, columns: rank))
        withTensors(tensors + common) { all in
            method.derive(linear, Array(all.prefix(tensors.count)), Array(all.dropFirst(tensors.count)), rank: spec.rank, into: factors)
        }
        change.loraA = Array(UnsafeBufferPointer(start: factors.a.base, count: factors.a.count))
        change.loraB = Array(UnsafeBufferPointer(start: factors.b.base, count: factors.b.count))
        return method.rankTensor == nil ? change : change.withoutEmptyRanks
    }

    /// Calls `body` with the tensors as matrices, a vector as one of one row.
    private static func withTensors(_ tensors: [AdapterTensor], _ body: ([Tensor]) -> Void) {
        let space = UnsafeMutablePointer<Float>.allocate(capacity: max(1, tensors.reduce(0) { $0 + $1.values.count }))
        defer { space.deallocate() }
        var first = space
        body(
            tensors.map { tensor in
                first.update(from: tensor.values, count: tensor.values.count)
                defer { first += tensor.values.count }
                let columns = tensor.shape.last!
                return Tensor(first, rows: tensor.values.count / columns, columns: columns)
            })
    }
}
