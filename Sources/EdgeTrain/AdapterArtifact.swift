// Published adapters: a directory as PEFT's, its tensors in an LZ4 frame, and the forms other programs load. Pure I/O on
// values. The bytes depend on the values alone: no times, no host names. What is published has been read back
// and compared bit for bit.
import EdgeFormats
import EdgeTensor

/// One adapted linear, in PEFT's orientation.
package struct LoRATensors: Equatable, Sendable {
    /// "model.layers.0.self_attn.q_proj"
    package var modulePath: String
    /// "blk.0.attn_q.weight"; nil when it was read from a PEFT directory, which does not know.
    package var ggufName: String?
    package var rank: Int
    package var inFeatures: Int
    package var outFeatures: Int
    /// `[rank, inFeatures]`, row-major.
    package var loraA: [Float]
    /// `[outFeatures, rank]`, row-major, rows in Hugging Face's order.
    package var loraB: [Float]
    /// Row i of the GGUF's matrix is Hugging Face's row `ggufRowOrder[i]`; nil: the same order.
    package var ggufRowOrder: [Int]?

    package init(
        modulePath: String, ggufName: String?, rank: Int, inFeatures: Int, outFeatures: Int, loraA: [Float],
        loraB: [Float], ggufRowOrder: [Int]?
    ) {
        self.modulePath = modulePath
        self.ggufName = ggufName
        self.rank = rank
        self.inFeatures = inFeatures
        self.outFeatures = outFeatures
        self.loraA = loraA
        self.loraB = loraB
        self.ggufRowOrder = ggufRowOrder
    }
}

package enum AdapterError: Error, Equatable, Sendable {
    case noTensors
    case duplicateModule(String)
    /// `expected` and `found` are element counts of `tensor`.
    case wrongSize(tensor: String, expected: Int, found: Int)
    case wrongRank(module: String, rank: Int, configured: Int)
    case nonFinite(tensor: String, index: Int)
    /// Nothing was learned: every B is zero.
    case allZero(modules: Int)
    case readBackDiffers(tensor: String)
    case unsupported(key: String, value: String)
    case badConfig(key: String, value: String)
    case unknownTensor(String)
    case missingTensor(String)
    case badShape(tensor: String, shape: [Int])
    case badDType(tensor: String, dtype: String)
    /// Ranks of A and B of one module.
    case rankMismatch(module: String, loraA: Int, loraB: Int)
    case noTensorFile(directory: String)
    case ambiguousTensorFiles(directory: String)
    case noGGUFName(module: String)
    case badRowOrder(module: String)
    /// rsLoRA with several ranks: a GGUF adapter has one alpha.
    case mixedRanks([Int])
    case badMetadata(key: String, found: String, expected: String)
    /// A file of a published artifact is gone, or is not what was published.
    case missingFile(String)
    case badChecksum(file: String)
}

extension AdapterError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .noTensors: "the adapter has no tensors"
        case .duplicateModule(let module): "the module \(module) occurs twice"
        case .wrongSize(let tensor, let expected, let found):
            "\(tensor) has \(found) values, its shape needs \(expected)"
        case .wrongRank(let module, let rank, let configured):
            "\(module) has rank \(rank), the configuration says \(configured)"
        case .nonFinite(let tensor, let index): "\(tensor) is not finite at index \(index)"
        case .allZero(let modules): "lora_B is zero in all \(modules) modules: nothing was learned"
        case .readBackDiffers(let tensor): "\(tensor) reads back differently from what was written"
        case .unsupported(let key, let value): "adapter_config.json: \(key) = \(value) is not supported"
        case .badConfig(let key, let value): "adapter_config.json: \(key) cannot be \(value)"
        case .unknownTensor(let name): "the tensor \(name) is not part of a LoRA adapter"
        case .missingTensor(let name): "the tensor \(name) is missing"
        case .badShape(let tensor, let shape): "\(tensor) has shape \(shape), not two positive dimensions"
        case .badDType(let tensor, let dtype): "\(tensor) is \(dtype); F32, F16 and BF16 are supported"
        case .rankMismatch(let module, let a, let b): "\(module) has rank \(a) in lora_A and \(b) in lora_B"
        case .noTensorFile(let directory):
            "\(directory) has neither \(AdapterArtifact.framedName) nor \(AdapterArtifact.plainName)"
        case .ambiguousTensorFiles(let directory):
            "\(directory) has both \(AdapterArtifact.framedName) and \(AdapterArtifact.plainName)"
        case .noGGUFName(let module): "\(module) has no counterpart in the GGUF file"
        case .badRowOrder(let module): "the row order of \(module) is not a permutation of its rows"
        case .mixedRanks(let ranks):
            "rank-stabilized scaling with ranks \(ranks) does not fit a GGUF adapter's one alpha"
        case .badMetadata(let key, let found, let expected): "\(key) of the GGUF adapter is \(found), not \(expected)"
        case .missingFile(let file): "\(file) is missing"
        case .badChecksum(let file): "\(file) does not have its checksum"
        }
    }
}

package struct AdapterArtifact: Equatable, Sendable {
    static let configName = "adapter_config.json"
    static let plainName = "adapter_model.safetensors"
    static let framedName = "adapter_model.safetensors.lz4"
    /// A rank-256 adapter of every linear of an 8-billion-parameter model in f32 has 2.7 GB.
    package static let tensorFileLimitBytes = 4 << 30

    package let config: AdapterConfig
    /// `__metadata__` without "format".
    package let provenance: [String: String]
    /// Sorted by module path. Without GGUF names.
    package let tensors: [LoRATensors]

    /// Checks, writes, reads back, compares, and only then gives the directory its name.
    ///
    /// - Throws: `AdapterError` and `FileError`; nothing is left behind.
    package static func publish(
        to directory: String, tensors: [LoRATensors], config: AdapterConfig, provenance: [String: String],
        trainingJSON: [UInt8], modelCard: String
    ) throws {
        try check(tensors, against: config)
        let file = try safetensors(tensors, provenance)
        var written = SHA256()
        try DirectoryPublish.publish(to: directory) { staging in
            try staging.write(configName, config.json)
            try staging.write(framedName) { writer in
                try LZ4Frame.compress(contentBytes: file.byteCount, to: { try writer.write($0) }) { compress in
                    try file.write { piece in
                        written.update(piece)
                        try compress(piece)
                    }
                }
            }
            let card = Array(modelCard.utf8)
            try staging.write(recordName, trainingJSON)
            try staging.write(cardName, card)
            let frame = try readBack(staging.path, config, digest: written.finalize())
            try staging.write(
                checksumsName,
                checksums([
                    configName: SHA256.hash(config.json), framedName: frame, recordName: SHA256.hash(trainingJSON),
                    cardName: SHA256.hash(card),
                ]))
        }
    }

    /// Any PEFT LoRA directory, compressed or not. Every tensor is used, or is an error.
    ///
    /// - Throws: `AdapterError`, `FileError`, `JSONTextError`, `LZ4FrameError`, `SafetensorsError`.
    package static func open(directory: String) throws -> AdapterArtifact {
        try open(config: ByteRegion.map(path: directory + "/" + configName), plain: tensorFile(of: directory))
    }

    /// Of the tensors' file as PEFT has it, without reading it.
    package static func tensorFileBytes(_ directory: String) throws -> ByteCount {
        guard let framed = try mapIfThere(directory + "/" + framedName) else {
            return ByteCount(try ByteRegion.map(path: directory + "/" + plainName).bytes.count)
        }
        // An artifact's frame says its size.
        return ByteCount(Int(clamping: try framed.withBytes { try LZ4Frame.declaredBytes($0) } ?? 0))
    }

    /// The same of two files, whatever they are called.
    ///
    /// - Parameters:
    ///   - tensors: safetensors, as they are or in an LZ4 frame.
    ///   - limitBytes: the most that a frame may hold.
    package static func open(
        config: ByteRegion, tensors: ByteRegion, limitBytes: Int = tensorFileLimitBytes
    ) throws -> AdapterArtifact {
        let isFramed = tensors.withBytes { LZ4Frame.hasMagic($0) }
        return try open(config: config, plain: isFramed ? unframed(tensors, limitBytes) : tensors)
    }

    private static func open(config: ByteRegion, plain: ByteRegion) throws -> AdapterArtifact {
        let file = try SafetensorsFile(plain)
        return AdapterArtifact(
            config: try AdapterConfig(json: config), provenance: file.metadata.filter { $0.key != "format" },
            tensors: try read(file))
    }

    /// The plain `adapter_model.safetensors`, byte for byte as framed.
    package static func exportSafetensors(_ directory: String, to path: String) throws {
        let region = try tensorFile(of: directory)
        _ = try SafetensorsFile(region)
        try AtomicFile.write(to: path) { try region.withBytes($0.write) }
    }

    /// A directory for `PeftModel.from_pretrained`.
    package static func exportPEFT(_ directory: String, to destination: String) throws {
        _ = try open(directory: directory)
        let region = try tensorFile(of: directory)
        let config = try ByteRegion.map(path: directory + "/" + configName)
        try DirectoryPublish.publish(to: destination) { staging in
            try staging.write(configName) { try config.withBytes($0.write) }
            try staging.write(plainName) { try region.withBytes($0.write) }
        }
    }
}

// Writing.
extension AdapterArtifact {
    private static func check(_ tensors: [LoRATensors], against config: AdapterConfig) throws(AdapterError) {
        guard !tensors.isEmpty else { throw .noTensors }
        var seen: Set<String> = []
        for each in tensors {
            guard seen.insert(each.modulePath).inserted else { throw .duplicateModule(each.modulePath) }
            guard each.rank == config.rank else {
                throw .wrongRank(module: each.modulePath, rank: each.rank, configured: config.rank)
            }
            try check(key(each.modulePath, "A"), each.loraA, count: each.rank * each.inFeatures)
            try check(key(each.modulePath, "B"), each.loraB, count: each.outFeatures * each.rank)
        }
        guard tensors.contains(where: { $0.loraB.contains { $0 != 0 } }) else {
            throw .allZero(modules: tensors.count)
        }
    }

    private static func check(_ name: String, _ values: [Float], count: Int) throws(AdapterError) {
        guard values.count == count else { throw .wrongSize(tensor: name, expected: count, found: values.count) }
        if let index = values.firstIndex(where: { !$0.isFinite }) { throw .nonFinite(tensor: name, index: index) }
    }

    private static func safetensors(
        _ tensors: [LoRATensors], _ provenance: [String: String]
    ) throws(SafetensorsError) -> SafetensorsWriter {
        var file = SafetensorsWriter(metadata: provenance.merging(["format": "pt"]) { $1 })
        for each in tensors {
            try file.add(
                key(each.modulePath, "A"), dtype: .f32, shape: [each.rank, each.inFeatures], body: .floats(each.loraA))
            try file.add(
                key(each.modulePath, "B"), dtype: .f32, shape: [each.outFeatures, each.rank], body: .floats(each.loraB))
        }
        return file
    }

    /// What is on the disk is what was written, bit for bit: piece by piece, for a board may have no room for a second copy.
    ///
    /// - Parameter digest: of the tensors as they were before the frame.
    /// - Returns: the frame's own digest.
    private static func readBack(_ directory: String, _ config: AdapterConfig, digest: [UInt8]) throws -> [UInt8] {
        guard try AdapterConfig(json: ByteRegion.map(path: directory + "/" + configName)) == config else {
            throw AdapterError.readBackDiffers(tensor: configName)
        }
        let framed = try ByteRegion.map(path: directory + "/" + framedName)
        var read = SHA256()
        try framed.withBytes { frame in
            try LZ4Frame.decompress(frame, limitBytes: tensorFileLimitBytes) { piece, consumed, _ in
                read.update(piece)
                framed.release(0..<consumed)
            }
        }
        guard read.finalize() == digest else { throw AdapterError.readBackDiffers(tensor: framedName) }
        return digestByPieces(framed)
    }
}

// Reading.
extension AdapterArtifact {
    private static let keyPrefix = "base_model.model."

    private static func key(_ modulePath: String, _ matrix: String) -> String {
        "\(keyPrefix)\(modulePath).lora_\(matrix).weight"
    }

    private static func tensorFile(of directory: String) throws -> ByteRegion {
        let framed = try mapIfThere(directory + "/" + framedName)
        let plain = try mapIfThere(directory + "/" + plainName)
        switch (framed, plain) {
        case (.some, .some): throw AdapterError.ambiguousTensorFiles(directory: directory)
        case (nil, nil): throw AdapterError.noTensorFile(directory: directory)
        case (nil, .some(let plain)): return plain
        case (.some(let framed), nil): return try unframed(framed)
        }
    }

    private static func unframed(_ framed: ByteRegion, _ limitBytes: Int = tensorFileLimitBytes) throws -> ByteRegion {
        // A frame's pages would stay beside its content.
        let content = try framed.withBytes {
            try LZ4Frame.decompress($0, limitBytes: limitBytes) { framed.release(0..<$0) }
        }
        return ByteRegion.copy(of: content)
    }

    static func mapIfThere(_ path: String) throws(FileError) -> ByteRegion? {
        do {
            return try ByteRegion.map(path: path)
        } catch where error.isNotFound {
            return nil
        }
    }

    private static func read(_ file: SafetensorsFile) throws(AdapterError) -> [LoRATensors] {
        var modules: Set<String> = []
        for tensor in file.tensors { modules.insert(try modulePath(of: tensor.name)) }
        var tensors: [LoRATensors] = []
        for module in modules.sorted(by: { $0.utf8.lexicographicallyPrecedes($1.utf8) }) {
            let (loraA, aShape) = try matrix(key(module, "A"), in: file)
            let (loraB, bShape) = try matrix(key(module, "B"), in: file)
            guard aShape[0] == bShape[1] else {
                throw .rankMismatch(module: module, loraA: aShape[0], loraB: bShape[1])
            }
            tensors.append(
                LoRATensors(
                    modulePath: module, ggufName: nil, rank: aShape[0], inFeatures: aShape[1], outFeatures: bShape[0],
                    loraA: loraA, loraB: loraB, ggufRowOrder: nil))
        }
        guard !tensors.isEmpty else { throw .noTensors }
        return tensors
    }

    private static func modulePath(of name: String) throws(AdapterError) -> String {
        for suffix in [".lora_A.weight", ".lora_B.weight"] where name.hasPrefix(keyPrefix) && name.hasSuffix(suffix) {
            let module = name.dropFirst(keyPrefix.count).dropLast(suffix.count)
            if !module.isEmpty { return String(module) }
        }
        throw .unknownTensor(name)
    }

    private static func matrix(
        _ name: String, in file: SafetensorsFile
    ) throws(AdapterError) -> (values: [Float], shape: [Int]) {
        guard let tensor = file.tensor(named: name) else { throw .missingTensor(name) }
        guard tensor.shape.count == 2, tensor.shape.allSatisfy({ $0 > 0 }) else {
            throw .badShape(tensor: name, shape: tensor.shape)
        }
        guard let values = tensor.floats() else { throw .badDType(tensor: name, dtype: tensor.dtype.rawValue) }
        if let index = values.firstIndex(where: { !$0.isFinite }) { throw .nonFinite(tensor: name, index: index) }
        return (values, tensor.shape)
    }
}
