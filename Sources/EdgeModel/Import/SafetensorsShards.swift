// The tensors of a model's safetensors: of one file, or of the shards that an index names. What the index says and what the
// shards hold must be the same.
import EdgeFormats

struct SafetensorsShards {
    /// By name.
    private(set) var tensors: [String: SafetensorsTensor] = [:]
    private var files: [SafetensorsFile] = []

    init(_ source: SourceFiles) throws {
        let indexName = HuggingFaceDirectory.indexName, weightsName = HuggingFaceDirectory.weightsName
        guard source.contains(indexName) else {
            guard source.contains(weightsName) else { throw Self.withoutWeights(source) }
            try Self.refuseOthers(source, than: [weightsName])
            for tensor in try open(weightsName, source, neededBecause: "the weights are in it") { tensors[tensor.name] = tensor }
            guard !tensors.isEmpty else { throw ImportError.noTensors }
            return
        }
        let shardOfTensor = try Self.weightMap(source)
        let shards = Set(shardOfTensor.values).sorted()
        try Self.refuseOthers(source, than: shards)
        var found: [String: String] = [:]
        for shard in shards {
            for tensor in try open(shard, source, neededBecause: "\(indexName) names it") {
                if let other = found.updateValue(shard, forKey: tensor.name) {
                    throw ImportError.tensorInTwoShards(tensor.name, other, shard)
                }
                guard let mapped = shardOfTensor[tensor.name] else {
                    throw ImportError.tensorNotInIndex(tensor.name, shard: shard)
                }
                guard mapped == shard else { throw ImportError.tensorMissingInShard(tensor.name, shard: mapped) }
                tensors[tensor.name] = tensor
            }
        }
        if let missing = shardOfTensor.keys.filter({ found[$0] == nil }).min() {
            throw ImportError.tensorMissingInShard(missing, shard: shardOfTensor[missing]!)
        }
        guard !tensors.isEmpty else { throw ImportError.noTensors }
    }

    private static func weightMap(_ source: SourceFiles) throws -> [String: String] {
        let indexName = HuggingFaceDirectory.indexName
        let index = try source.json(indexName, neededBecause: "it was there")
        guard case .object(let members)? = index["weight_map"] else {
            throw ImportError.badField(file: indexName, field: "weight_map", expected: "an object")
        }
        var map: [String: String] = [:]
        for member in members {
            guard let shard = member.value.string else {
                throw ImportError.badField(file: indexName, field: "weight_map." + member.key, expected: "a file name")
            }
            guard SourceFiles.isName(shard) else { throw ImportError.badFileName(shard) }
            map[member.key] = shard
        }
        return map
    }

    /// The pages of the files that have been read so far need not stay.
    func releaseResident() {
        for file in files { file.releaseResident() }
    }

    private mutating func open(_ name: String, _ source: SourceFiles, neededBecause reason: String) throws -> [SafetensorsTensor] {
        let region = try source.map(name, neededBecause: reason)
        do {
            let file = try SafetensorsFile(region)
            files.append(file)
            return file.tensors
        } catch {
            throw ImportError.badSafetensors(file: name, error)
        }
    }

    /// Files named as transformers names weights, but not among `weights`. (Mistral's consolidated.safetensors repeats the same
    /// weights under other names and is left out.)
    private static func refuseOthers(_ source: SourceFiles, than weights: [String]) throws {
        let others = source.names.filter { isWeights($0) && !weights.contains($0) }
        guard others.isEmpty else { throw ImportError.ambiguousWeights(weights + others) }
    }

    private static func isWeights(_ name: String) -> Bool { name.hasPrefix("model") && name.hasSuffix(".safetensors") }

    private static func withoutWeights(_ source: SourceFiles) -> ImportError {
        let pickled = source.names.filter { name in
            [".bin", ".pt", ".pth", ".ckpt", ".pkl"].contains { name.hasSuffix($0) }
        }
        if let shard = source.names.first(where: isWeights) {
            return .missingFile(HuggingFaceDirectory.indexName, neededBecause: "\(shard) is one of several files")
        }
        if !pickled.isEmpty { return .pickledWeights(pickled) }
        return .missingFile(HuggingFaceDirectory.weightsName, neededBecause: "the weights are in it, or in files that an index names")
    }
}
