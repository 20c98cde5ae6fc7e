// A frozen model: the mapped file, its shape, and views of its weights. Opening reads the header only; no weight is
// touched before it is used, and none is ever copied or written.
import EdgeFormats
import EdgeTensor

package struct BaseModel {
    package let file: GGUFFile
    package let architecture: Architecture
    package let spec: DecoderSpec
    /// `[vocabulary, hiddenSize]`.
    package let embedding: QuantizedMatrix
    package let layers: [LayerWeights]
    package let outputNorm: UnsafePointer<Float>
    /// `[vocabulary, hiddenSize]`; the embedding itself when they are tied.
    package let head: QuantizedMatrix
    package let weightBytes: ByteCount
    /// Where the weights of each layer's attention, and of its MLP, are in the file: in order and merged, each with its norm.
    package let attentionRanges: [[Range<Int>]], mlpRanges: [[Range<Int>]]
    package let embeddingRange: Range<Int>
    package let headRange: Range<Int>
    package var isHeadTied: Bool { headRange == embeddingRange }

    /// Maps the file and checks that every tensor that the architecture needs is there, with its shape and in a
    /// format that the kernels decode, and that there is none that would be left out silently.
    package static func open(path: String) throws -> BaseModel {
        let file = try GGUFFile.open(path: path)
        guard let name = file.metadata["general.architecture"]?.string else {
            throw ModelError.missingMetadata("general.architecture")
        }
        guard let architecture = Architectures.all.first(where: { $0.ggufName == name }) else {
            throw ModelError.unsupportedArchitecture(name, supported: Architectures.all.map(\.ggufName))
        }
        return try BaseModel(file: file, architecture: architecture)
    }

    private init(file: GGUFFile, architecture: Architecture) throws {
        self.file = file
        self.architecture = architecture
        var reader = WeightReader(file)
        var spec = try architecture.spec(file)
        guard let embeddingShape = file.tensor(named: "token_embd.weight")?.shape else {
            throw ModelError.missingTensor("token_embd.weight")
        }
        spec.vocabularySize = embeddingShape[0]
        self.spec = spec
        embedding = try reader.matrix("token_embd.weight", spec.vocabularySize, spec.hiddenSize)
        embeddingRange = reader.takeRanges()[0]
        outputNorm = try reader.vector("output_norm.weight", spec.hiddenSize)
        _ = reader.takeRanges()
        if file.tensor(named: "output.weight") == nil {
            (head, headRange) = (embedding, embeddingRange)
        } else {
            head = try reader.matrix("output.weight", spec.vocabularySize, spec.hiddenSize)
            headRange = reader.takeRanges()[0]
        }
        var (attentionRanges, mlpRanges): ([[Range<Int>]], [[Range<Int>]]) = ([], [])
        layers = try (0..<spec.layerCount).map { layer in
            func linears(_ isOfMLP: Bool) throws -> [QuantizedMatrix] {
                try LinearModule.allCases.filter { $0.isOfMLP == isOfMLP }.map { module in
                    try reader.matrix(
                        ModuleID(layer: layer, module: module).ggufName, module.outFeatures(spec),
                        module.inFeatures(spec))
                }
            }
            let attentionNorm = try reader.vector("blk.\(layer).attn_norm.weight", spec.hiddenSize)
            let attention = try linears(false)
            attentionRanges.append(reader.takeRanges())
            let mlpNorm = try reader.vector("blk.\(layer).ffn_norm.weight", spec.hiddenSize)
            let mlp = try linears(true)
            mlpRanges.append(reader.takeRanges())
            return LayerWeights(attentionNorm: attentionNorm, mlpNorm: mlpNorm, linears: attention + mlp)
        }
        if let unused = file.tensors.first(where: { !reader.used.contains($0.name) }) {
            throw ModelError.unexpectedTensor(unused.name)
        }
        (self.attentionRanges, self.mlpRanges) = (attentionRanges, mlpRanges)
        weightBytes = ByteCount(file.tensors.reduce(0) { $0 + $1.byteCount })
    }

    /// Frees the memory that holds the weights; whoever uses one next reads it from the file again.
    package func releaseResidentWeights() { file.releaseResident() }

    /// Values of all tensors together.
    package var parameterCount: Int { file.tensors.reduce(0) { $0 + $1.shape.reduce(1, *) } }

    /// Formats of the weights with their share of the bytes, largest first: "Q4_1 71 %, Q8_0 29 %".
    package var quantisation: String {
        var bytes: [String: Int] = [:]
        for tensor in file.tensors { bytes[tensor.type.name, default: 0] += tensor.byteCount }
        let total = max(1, weightBytes.bytes)
        return bytes.sorted { ($0.value, $1.key) > ($1.value, $0.key) }
            .filter { $0.value * 200 > total }
            .map { "\($0.key) \(Int((Double($0.value) / Double(total) * 100).rounded())) %" }
            .joined(separator: ", ")
    }
}

/// Views of tensors by name, and the names that were asked for.
private struct WeightReader {
    let file: GGUFFile
    var used: Set<String> = []
    private var ranges: [Range<Int>] = []

    init(_ file: GGUFFile) { self.file = file }

    mutating func matrix(_ name: String, _ rows: Int, _ columns: Int) throws -> QuantizedMatrix {
        let tensor = try tensor(name, shape: [rows, columns])
        guard let format = QuantFormat(ggmlType: tensor.type.rawValue) else {
            throw ModelError.unsupportedFormat(
                tensor: name, format: tensor.type.name, supported: QuantFormat.all.map(\.name))
        }
        return QuantizedMatrix(tensor.bytes.baseAddress!, format: format, outFeatures: rows, inFeatures: columns)
    }

    /// Norm weights; converters always write them as F32.
    mutating func vector(_ name: String, _ count: Int) throws -> UnsafePointer<Float> {
        let tensor = try tensor(name, shape: [count])
        guard tensor.type == .f32 else {
            throw ModelError.unsupportedFormat(tensor: name, format: tensor.type.name, supported: ["F32"])
        }
        return tensor.bytes.baseAddress!.assumingMemoryBound(to: Float.self)
    }

    /// Where in the file the tensors are that were read since the last call, in order; neighbours are one range.
    mutating func takeRanges() -> [Range<Int>] {
        defer { ranges = [] }
        return ranges.sorted { $0.lowerBound < $1.lowerBound }.reduce(into: []) { merged, range in
            // What lies between two tensors is padding.
            if let last = merged.last, range.lowerBound - last.upperBound < file.alignment {
                merged[merged.count - 1] = last.lowerBound..<range.upperBound
            } else {
                merged.append(range)
            }
        }
    }

    private mutating func tensor(_ name: String, shape: [Int]) throws -> GGUFTensor {
        guard let tensor = file.tensor(named: name) else { throw ModelError.missingTensor(name) }
        guard tensor.shape == shape else {
            throw ModelError.badShape(tensor: name, shape: tensor.shape, expected: shape)
        }
        used.insert(name)
        ranges.append(tensor.fileOffset..<tensor.fileOffset + tensor.byteCount)
        return tensor
    }
}
