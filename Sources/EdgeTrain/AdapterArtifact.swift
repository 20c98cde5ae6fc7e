// Published adapters: a directory as PEFT's, its tensors in an LZ4 frame, and the forms other programs load. Pure I/O on
// values. The bytes depend on the values alone: no times, no host names. What is published has been read back
// and compared bit for bit.
import EdgeFormats
import EdgeModel
import EdgeTensor

/// A tensor of an adapter file, rows and columns in Hugging Face's order.
package struct AdapterTensor: Equatable, Sendable {
    /// The whole key.
    package let name: String
    package let shape: [Int]
    package var values: [Float]
    /// The one value that it had before training; nil: it was random.
    package var start: Float?
    /// I32 on file; the values are whole numbers below 2^24.
    package var isInteger: Bool

    package init(name: String, shape: [Int], values: [Float], start: Float? = nil, isInteger: Bool = false) {
        self.name = name
        self.isInteger = isInteger
        self.shape = shape
        self.values = values
        self.start = start
    }
}

package enum AdapterError: Error, Equatable, Sendable {
    case noTensors
    case duplicateTensor(String)
    /// `expected` and `found` are element counts of `tensor`.
    case wrongSize(tensor: String, expected: Int, found: Int)
    case nonFinite(tensor: String, index: Int)
    /// Nothing was learned: all of it is as it began.
    case nothingLearned(tensors: Int)
    case readBackDiffers(tensor: String)
    case unsupported(key: String, value: String)
    case badConfig(key: String, value: String)
    case unknownTensor(String)
    case missingTensor(String)
    case badShape(tensor: String, shape: [Int])
    case unexpectedShape(tensor: String, shape: [Int], expected: [Int])
    case badDType(tensor: String, dtype: String)
    /// Ranks of A and B of one module.
    case rankMismatch(module: String, loraA: Int, loraB: Int)
    case noTensorFile(directory: String)
    case ambiguousTensorFiles(directory: String)
    case noGGUFName(module: String)
    case badRowOrder(module: String)
    /// It is a LoRA of each of these tasks, and none of them was named.
    case needsTask([String])
    case unknownTask(String, tasks: [String])
    /// llama.cpp's adapters have no place for this.
    case notForGGUF(method: String)
    case savedForGGUF
    /// It does more than other weights would.
    case notOfWeights(method: String)
    /// PEFT has no class for this.
    case notForPEFT(method: String)
    /// Entry `index` of a sparse change is not in the linear.
    case badPlace(tensor: String, index: Int)
    case otherReader(method: String, asked: AdapterArtifact.Reader)
    case badMetadata(key: String, found: String, expected: String)
    /// A file of a published artifact is gone, or is not what was published.
    case missingFile(String)
    case badChecksum(file: String)
}

extension AdapterError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .noTensors: "the adapter has no tensors"
        case .duplicateTensor(let tensor): "the tensor \(tensor) occurs twice"
        case .wrongSize(let tensor, let expected, let found):
            "\(tensor) has \(found) values, its shape needs \(expected)"
        case .nonFinite(let tensor, let index): "\(tensor) is not finite at index \(index)"
        case .nothingLearned(let tensors): "\(tensors) tensors are all as they began: nothing was learned"
        case .readBackDiffers(let tensor): "\(tensor) reads back differently from what was written"
        case .unsupported(let key, let value): "adapter_config.json: \(key) = \(value) is not supported"
        case .badConfig(let key, let value): "adapter_config.json: \(key) cannot be \(value)"
        case .unknownTensor(let name): "the tensor \(name) is not part of an adapter of its peft_type"
        case .missingTensor(let name): "the tensor \(name) is missing"
        case .badShape(let tensor, let shape): "\(tensor) has shape \(shape), not two positive dimensions"
        case .unexpectedShape(let tensor, let shape, let expected): "\(tensor) has shape \(shape), not \(expected)"
        case .badDType(let tensor, let dtype): "\(tensor) is \(dtype); F32, F16 and BF16 are supported"
        case .rankMismatch(let module, let a, let b): "\(module) has rank \(a) in lora_A and \(b) in lora_B"
        case .noTensorFile(let directory):
            "\(directory) has neither \(AdapterArtifact.framedName) nor \(AdapterArtifact.plainName)"
        case .ambiguousTensorFiles(let directory):
            "\(directory) has both \(AdapterArtifact.framedName) and \(AdapterArtifact.plainName)"
        case .noGGUFName(let module): "\(module) has no counterpart in the GGUF file"
        case .badRowOrder(let module): "the row order of \(module) is not a permutation of its rows"
        case .needsTask(let tasks): "the adapter is a LoRA of each of the tasks \(tasks.joined(separator: ", ")), and none was named"
        case .unknownTask(let task, []): "the adapter has no tasks, so none called \(task): leave task out"
        case .unknownTask(let task, let tasks): "the adapter has no task \(task); it has \(tasks.joined(separator: ", "))"
        case .savedForGGUF:
            "the adapter has norms or tokens of its own, and llama.cpp's adapters have matrices of linears alone (src/llama-adapter.cpp); "
                + "edgetune merge makes a GGUF model of it"
        case .notForGGUF(let method):
            "llama.cpp loads adapters of type lora only (src/llama-adapter.cpp), and no low-rank matrices say what \(method) does; "
                + "edgetune merge makes a model that has it"
        case .notForPEFT(let method) where AdapterMethods.named(method)?.mixture != nil:
            "PEFT has no class for \(method): as it is stored it has the keys of TUDB-Labs/MixLoRA (edgetune export --format artifact)"
        case .notForPEFT(let method) where AdapterMethods.named(method) is LadderSideTuning:
            "PEFT has no class for \(method), a network beside the model; edgetune generate computes it, and edgetune export --format artifact "
                + "copies its files"
        case .notOfWeights(let method) where AdapterMethods.named(method) is LadderSideTuning:
            "what \(method) has learned is a network beside the model, so it cannot be weights of the model, nor an adapter of llama.cpp's, which "
                + "loads type lora only (src/llama-adapter.cpp); edgetune generate computes it as it is"
        case .notOfWeights(let method) where AdapterMethods.named(method)?.mixture != nil:
            "what \(method) does depends on each token, so it cannot be weights of a model, nor an adapter of llama.cpp's, which loads type lora "
                + "only (src/llama-adapter.cpp); edgetune generate computes it as it is"
        case .notOfWeights(let method):
            "what \(method) does cannot be weights of a model, nor an adapter of llama.cpp's, which loads type lora only "
                + "(src/llama-adapter.cpp); edgetune generate computes it as it is, and so does the library that it is exported to"
        case .notForPEFT(let method):
            "PEFT has no class for \(method); edgetune merge makes a model that has it, and edgetune export --format artifact copies its files"
        case .badPlace(let tensor, let index): "\(tensor) has at index \(index) no row and column of the linear"
        case .otherReader(let method, .peft): "PEFT has no \(method); --format adapters is for the library that has"
        case .otherReader(let method, .hub): "of \(method) the adapters library loads no file of PEFT's kind; use --format peft"
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
    /// The adapters library's.
    static let hubName = "adapter.safetensors"
    /// A rank-256 adapter of every linear of an 8-billion-parameter model in f32 has 2.7 GB.
    package static let tensorFileLimitBytes = 4 << 30

    package let config: AdapterConfig
    /// `__metadata__` without "format".
    package let provenance: [String: String]
    /// By name.
    package let stored: [AdapterTensor]

    /// Checks, writes, reads back, compares, and only then gives the directory its name.
    ///
    /// - Throws: `AdapterError` and `FileError`; nothing is left behind.
    package static func publish(
        to directory: String, tensors: [AdapterTensor], config: AdapterConfig, provenance: [String: String],
        trainingJSON: [UInt8], modelCard: String
    ) throws {
        try check(tensors)
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
        let config = try AdapterConfig(json: config)
        var own = config
        own.hub?.name = HubAdapter.adapterName
        return AdapterArtifact(
            config: own, provenance: file.metadata.filter { $0.key != "format" },
            stored: try file.tensors.map { one in
                let tensor = try tensor(one, config)
                return config.hub.map { tensor.renamed(from: $0.name) } ?? tensor
            }.sorted { $0.name.utf8.lexicographicallyPrecedes($1.name.utf8) })
    }

    /// Who loads an adapter as it is.
    package enum Reader: String, Equatable, Sendable {
        case peft
        /// AdapterHub's adapters library.
        case hub = "adapters"
    }

    /// The plain `adapter_model.safetensors`, or `adapter.safetensors`, byte for byte as framed; of a task, what it is by itself.
    package static func exportSafetensors(_ directory: String, task: String? = nil, for reader: Reader = .peft, to path: String) throws {
        guard task == nil else {
            let artifact = try open(directory: directory).task(task)
            let file = try safetensors(artifact.stored, artifact.provenance)
            return try AtomicFile.write(to: path) { writer in try file.write { try writer.write($0) } }
        }
        let config = try AdapterConfig(json: try ByteRegion.map(path: directory + "/" + configName))
        if let tasks = config.method.tasks { throw AdapterError.needsTask(tasks.names) }
        guard (config.hub != nil) == (reader == .hub) else { throw AdapterError.otherReader(method: config.method.name, asked: reader) }
        try requirePEFTs(config.method)
        let tensors = try tensorFile(of: directory)
        _ = try SafetensorsFile(tensors)
        try AtomicFile.write(to: path) { try tensors.withBytes($0.write) }
    }

    /// A directory for `PeftModel.from_pretrained`, or the adapters library's `load_adapter(…, use_safetensors=True)`.
    package static func exportPEFT(_ directory: String, to destination: String) throws {
        let config = try open(directory: directory).config
        try requirePEFTs(config.method)
        let tensors = try tensorFile(of: directory)
        let configFile = try ByteRegion.map(path: directory + "/" + configName)
        try DirectoryPublish.publish(to: destination) { staging in
            try staging.write(configName) { try configFile.withBytes($0.write) }
            try staging.write(config.hub == nil ? plainName : hubName) { try tensors.withBytes($0.write) }
        }
    }

    private static func requirePEFTs(_ method: any AdapterMethod) throws(AdapterError) {
        guard method.isPEFTs else { throw AdapterError.notForPEFT(method: method.name) }
    }
}

// Writing.
extension AdapterArtifact {
    private static func check(_ tensors: [AdapterTensor]) throws(AdapterError) {
        guard !tensors.isEmpty else { throw .noTensors }
        var seen: Set<String> = []
        for each in tensors {
            guard seen.insert(each.name).inserted else { throw .duplicateTensor(each.name) }
            let count = each.shape.reduce(1, *)
            guard each.values.count == count else { throw .wrongSize(tensor: each.name, expected: count, found: each.values.count) }
            if let index = each.values.firstIndex(where: { !$0.isFinite }) { throw .nonFinite(tensor: each.name, index: index) }
        }
        let constant = tensors.filter { $0.start != nil }
        guard constant.isEmpty || constant.contains(where: { tensor in tensor.values.contains { $0 != tensor.start } }) else {
            throw .nothingLearned(tensors: constant.count)
        }
    }

    private static func safetensors(
        _ tensors: [AdapterTensor], _ provenance: [String: String]
    ) throws(SafetensorsError) -> SafetensorsWriter {
        var file = SafetensorsWriter(metadata: provenance.merging(["format": "pt"]) { $1 })
        for each in tensors {
            let body = each.isInteger ? TensorBody.bytes(each.values.flatMap { bytes(of: $0) }) : .floats(each.values)
            try file.add(each.name, dtype: each.isInteger ? .i32 : .f32, shape: each.shape, body: body)
        }
        return file
    }

    private static func bytes(of value: Float) -> [UInt8] { withUnsafeBytes(of: Int32(value).littleEndian) { Array($0) } }

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
    private static func tensorFile(of directory: String) throws -> ByteRegion {
        let framed = try mapIfThere(directory + "/" + framedName)
        let plain = try mapIfThere(directory + "/" + plainName)
        switch (framed, plain) {
        case (.some, .some): throw AdapterError.ambiguousTensorFiles(directory: directory)
        case (nil, nil):
            guard let plain = try mapIfThere(directory + "/" + hubName) else { throw AdapterError.noTensorFile(directory: directory) }
            return plain
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

    private static func tensor(_ tensor: SafetensorsTensor, _ config: AdapterConfig) throws(AdapterError) -> AdapterTensor {
        // Of a linear that has lost all its ranks.
        let mayBeEmpty = config.method.rankTensor != nil
        guard (1...2).contains(tensor.shape.count), tensor.shape.allSatisfy({ $0 > (mayBeEmpty ? -1 : 0) }) else {
            throw .badShape(tensor: tensor.name, shape: tensor.shape)
        }
        if config.isInteger(tensor.name), let values = tensor.wholeNumbers() {
            return AdapterTensor(name: tensor.name, shape: tensor.shape, values: values, isInteger: true)
        }
        guard let values = tensor.floats() else { throw .badDType(tensor: tensor.name, dtype: tensor.dtype.rawValue) }
        if let index = values.firstIndex(where: { !$0.isFinite }) { throw .nonFinite(tensor: tensor.name, index: index) }
        return AdapterTensor(name: tensor.name, shape: tensor.shape, values: values)
    }
}
