// What an adapter with tasks is to a sample of one of them: a plain LoRA, whose factors are those that the tasks share and the task's own,
// one after the other. Whatever computes with an adapter, or gives it to other programs, does so with one task's.
import EdgeFormats
import EdgeModel

extension AdapterArtifact {
    /// The adapter itself where it has no tasks.
    ///
    /// - Parameter name: of the task.
    /// - Throws: `AdapterError.needsTask`, `.unknownTask`, and what the tensors' shapes say against it.
    package func task(_ name: String?) throws -> AdapterArtifact {
        guard let tasks = config.method.tasks else {
            if let name { throw AdapterError.unknownTask(name, tasks: []) }
            return self
        }
        guard let name else { throw AdapterError.needsTask(tasks.names) }
        guard let number = tasks.names.firstIndex(of: name) else { throw AdapterError.unknownTask(name, tasks: tasks.names) }
        let matrices = config.method.fileNames(config.spec)
        let suffixes = tasks.matrices(of: number).map { "." + matrices[$0] }
        var byName = Dictionary(stored.map { ($0.name, $0) }) { first, _ in first }
        var tensors: [AdapterTensor] = []
        for first in stored where first.name.hasSuffix(suffixes[0]) {
            let module = String(first.name.dropLast(suffixes[0].utf8.count))
            let found = try suffixes.map { suffix in
                guard let tensor = byName[module + suffix] else { throw AdapterError.missingTensor(module + suffix) }
                guard tensor.shape.count == 2 else { throw AdapterError.badShape(tensor: tensor.name, shape: tensor.shape) }
                return tensor
            }
            tensors += try Self.joined(module, shared: (found[0], found[1]), own: (found[2], found[3]))
            for matrix in matrices { byName[module + "." + matrix] = nil }
        }
        if let other = byName.keys.min() { throw AdapterError.unknownTensor(other) }
        guard let loraA = tensors.first else { throw AdapterError.noTensors }
        let rank = loraA.shape[0]
        let plain = AdapterConfig(
            rank: rank, loraAlpha: config.scaling(rank: config.rank) * Double(rank), loraDropout: config.loraDropout,
            targetModules: config.targetModules, layersToTransform: config.layersToTransform, baseModelNameOrPath: config.baseModelNameOrPath)
        return AdapterArtifact(
            config: plain, provenance: provenance.merging(["task": name]) { $1 },
            stored: tensors.sorted { $0.name.utf8.lexicographicallyPrecedes($1.name.utf8) })
    }

    /// A above A_t, B beside B_t.
    private static func joined(
        _ module: String, shared: (a: AdapterTensor, b: AdapterTensor), own: (a: AdapterTensor, b: AdapterTensor)
    ) throws(AdapterError) -> [AdapterTensor] {
        let (rank, ownRank) = (shared.a.shape[0], own.a.shape[0])
        let (inFeatures, outFeatures) = (shared.a.shape[1], shared.b.shape[0])
        func require(_ tensor: AdapterTensor, _ shape: [Int]) throws(AdapterError) {
            guard tensor.shape == shape else { throw .unexpectedShape(tensor: tensor.name, shape: tensor.shape, expected: shape) }
        }
        try require(shared.b, [outFeatures, rank])
        try require(own.a, [ownRank, inFeatures])
        try require(own.b, [outFeatures, ownRank])
        var b: [Float] = []
        b.reserveCapacity(outFeatures * (rank + ownRank))
        for row in 0..<outFeatures {
            b += shared.b.values[row * rank..<(row + 1) * rank]
            b += own.b.values[row * ownRank..<(row + 1) * ownRank]
        }
        return [
            AdapterTensor(name: module + ".lora_A.weight", shape: [rank + ownRank, inFeatures], values: shared.a.values + own.a.values),
            AdapterTensor(name: module + ".lora_B.weight", shape: [outFeatures, rank + ownRank], values: b, start: 0),
        ]
    }

    /// The `adapter_config.json` of a task's LoRA.
    package static func exportConfig(_ directory: String, task: String?, to path: String) throws {
        let config = try open(directory: directory).task(task).config
        try AtomicFile.write(to: path) { try $0.write(config.json) }
    }
}
