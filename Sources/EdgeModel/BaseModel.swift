// A frozen model: the mapped file, its shape, and views of its weights. Opening reads the header only; no weight is
// touched before it is used, and none is ever copied or written.
import EdgeFormats
import EdgeTensor

package struct BaseModel {
    package let file: GGUFFile
    package let spec: DecoderSpec
    /// `[vocabulary, hiddenSize]`.
    package let embedding: QuantizedMatrix
    package let layers: [LayerWeights]
    package let outputNorm: Norm
    /// `[vocabulary, hiddenSize]`; the embedding itself when they are tied.
    package let head: QuantizedMatrix
    package let weightBytes: ByteCount
    /// Where the weights of each layer's attention, and of its MLP, are in the file: in order and merged, each with its norms.
    package let attentionRanges: [[Range<Int>]], mlpRanges: [[Range<Int>]]
    package let embeddingRange: Range<Int>
    package let headRange: Range<Int>
    let names: TensorNames
    package var isHeadTied: Bool { headRange == embeddingRange }
    /// It came from Hugging Face's files, and has their names.
    package var isImported: Bool { names == .huggingFace }

    /// What a model that was imported from Hugging Face's files calls itself; its own words are in `configKey`.
    package static let importedArchitecture = "huggingface"
    package static let configKey = "edgetune.config.json"

    /// Maps the file and checks that every tensor that the architecture needs is there, with its shape and in a
    /// format that the kernels decode, and that there is none that would be left out silently.
    package static func open(path: String) throws -> BaseModel { try open(try GGUFFile.open(path: path)) }

    package static func open(_ file: GGUFFile) throws -> BaseModel {
        guard let name = file.metadata["general.architecture"]?.string else {
            throw ModelError.missingMetadata("general.architecture")
        }
        guard name == importedArchitecture else {
            let architecture = try Architectures.find(name) { [$0.ggufName] }
            return try BaseModel(file: file, try architecture.spec(Hyperparameters(gguf: file, architecture: name)), .gguf)
        }
        guard let config = file.metadata[configKey]?.stringBytes else { throw ModelError.missingMetadata(configKey) }
        return try BaseModel(file: file, try Architectures.spec(config: config), .huggingFace)
    }

    private init(file: GGUFFile, _ described: DecoderSpec, _ names: TensorNames) throws {
        self.file = file
        self.names = names
        var reader = WeightReader(file)
        var spec = described
        for name in Hyperparameters.tensorNames where names == .gguf { reader.leaveOut(name) }
        let embeddingName = "\(names.embedding).weight"
        guard let embeddingShape = file.tensor(named: embeddingName)?.shape else {
            throw ModelError.missingTensor(embeddingName)
        }
        spec.vocabularySize = embeddingShape[0]
        embedding = try reader.matrix(embeddingName, spec.vocabularySize, spec.hiddenSize)
        embeddingRange = reader.takeRanges()[0]
        outputNorm = try reader.norm(names.outputNorm, spec.normKind, width: spec.hiddenSize, spec)
        _ = reader.takeRanges()
        let headName = "\(names.head).weight"
        let isTied = spec.tiesEmbeddings ?? !reader.has(headName)
        spec.tiesEmbeddings = isTied
        if isTied {
            (head, headRange) = (embedding, embeddingRange)
            reader.leaveOut(headName)  // a copy of the embedding, where there is one
        } else {
            head = try reader.matrix(headName, spec.vocabularySize, spec.hiddenSize)
            headRange = reader.takeRanges()[0]
        }
        for linear in spec.linears where reader.has("\(names.linear(linear, layer: 0)).bias") {
            spec.biases.formUnion(linear.parts)
        }
        self.spec = spec
        var (attentionRanges, mlpRanges): ([[Range<Int>]], [[Range<Int>]]) = ([], [])
        layers = try (0..<spec.layerCount).map { layer in
            let attention = try Self.linears(isOfMLP: false, layer, spec, names, &reader)
            var norms = try Self.norms(isOfMLP: false, layer, spec, names, &reader)
            attentionRanges.append(reader.takeRanges())
            let mlp = try Self.linears(isOfMLP: true, layer, spec, names, &reader)
            norms.merge(try Self.norms(isOfMLP: true, layer, spec, names, &reader)) { first, _ in first }
            mlpRanges.append(reader.takeRanges())
            var weights = LayerWeights(
                linears: (attention + mlp).map(\.weight), biases: (attention + mlp).map(\.bias))
            weights.attentionInput = norms[.attentionInput]
            weights.attentionOutput = norms[.attentionOutput]
            weights.mlpInput = norms[.mlpInput]
            weights.mlpOutput = norms[.mlpOutput]
            weights.query = norms[.query]
            weights.key = norms[.key]
            return weights
        }
        if let unused = file.tensors.first(where: { !reader.used.contains($0.name) }) {
            throw ModelError.unexpectedTensor(unused.name)
        }
        (self.attentionRanges, self.mlpRanges) = (attentionRanges, mlpRanges)
        weightBytes = ByteCount(file.tensors.reduce(0) { $0 + $1.byteCount })
    }

    /// The products of a half of a layer, in order.
    private static func linears(
        isOfMLP: Bool, _ layer: Int, _ spec: DecoderSpec, _ names: TensorNames, _ reader: inout WeightReader
    ) throws -> [(weight: QuantizedMatrix, bias: UnsafePointer<Float>?)] {
        var found: [(QuantizedMatrix, UnsafePointer<Float>?)] = []
        for linear in spec.linears where linear.leader.isOfMLP == isOfMLP {
            let name = names.linear(linear, layer: layer)
            let whole = try reader.matrix("\(name).weight", linear.outFeatures(spec), linear.inFeatures(spec))
            let bias = spec.biases.contains(linear.leader) ? try reader.floats("\(name).bias", linear.outFeatures(spec)) : nil
            for part in linear.parts {
                let rows = linear.rows(of: part, spec)
                found.append((linear.parts.count == 1 ? whole : whole.rows(rows), bias.map { $0 + rows.lowerBound }))
            }
        }
        return found
    }

    private static func norms(
        isOfMLP: Bool, _ layer: Int, _ spec: DecoderSpec, _ names: TensorNames, _ reader: inout WeightReader
    ) throws -> [TensorNames.Norm: Norm] {
        var norms: [TensorNames.Norm: Norm] = [:]
        func read(_ norm: TensorNames.Norm, _ kind: NormKind, width: Int) throws {
            norms[norm] = try reader.norm(names.norm(norm, layer: layer, spec), kind, width: width, spec)
        }
        if spec.hasInputNorms { try read(isOfMLP ? .mlpInput : .attentionInput, spec.normKind, width: spec.hiddenSize) }
        if spec.hasOutputNorms { try read(isOfMLP ? .mlpOutput : .attentionOutput, spec.normKind, width: spec.hiddenSize) }
        if !isOfMLP, spec.headNorm != .none {
            let isFull = spec.headNorm == .fullWidth
            try read(.query, spec.normKind, width: isFull ? spec.queryWidth : spec.headDim)
            try read(.key, spec.normKind, width: isFull ? spec.keyValueWidth : spec.headDim)
        }
        return norms
    }

    /// Frees the memory that holds the weights; whoever uses one next reads it from the file again.
    package func releaseResidentWeights() { file.releaseResident() }

    /// Values of all tensors together.
    package var parameterCount: Int { storedTensors.reduce(0) { $0 + $1.shape.reduce(1, *) } }

    /// Formats of the weights with their share of the bytes, largest first: "Q4_1 71 %, Q8_0 29 %".
    package var quantisation: String {
        var bytes: [String: Int] = [:]
        for tensor in storedTensors { bytes[tensor.formatName, default: 0] += tensor.byteCount }
        let total = max(1, weightBytes.bytes)
        return bytes.sorted { ($0.value, $1.key) > ($1.value, $0.key) }
            .filter { $0.value * 200 > total }
            .map { "\($0.key) \(Int((Double($0.value) / Double(total) * 100).rounded())) %" }
            .joined(separator: ", ")
    }
}
