// Views of a model's tensors by name, checked against the shapes that the architecture gives them, and a record of what was used.
import EdgeFormats
import EdgeTensor

struct WeightReader {
    let file: GGUFFile
    private(set) var used: Set<String> = []
    private var ranges: [Range<Int>] = []

    init(_ file: GGUFFile) { self.file = file }

    /// - Parameter name: with ".weight".
    mutating func matrix(_ name: String, _ rows: Int, _ columns: Int) throws -> QuantizedMatrix {
        if file.tensor(named: name) == nil {
            for format in BlockwiseParts.formats where has(BlockwiseParts.codes(name, format)) {
                return try blockwise(name, format, rows, columns)
            }
        }
        let tensor = try tensor(name, shape: [rows, columns])
        guard let format = QuantFormat(ggmlType: tensor.type.rawValue) else {
            throw ModelError.unsupportedFormat(
                tensor: name, format: tensor.type.name, supported: QuantFormat.all.map(\.name))
        }
        guard columns % format.blockElements == 0 else {
            throw ModelError.notWholeBlocks(tensor: name, columns: columns, format: format.name, block: format.blockElements)
        }
        return QuantizedMatrix(tensor.bytes.baseAddress!, format: format, outFeatures: rows, inFeatures: columns)
    }

    /// bitsandbytes' 4 bits as an import keeps them: codes; beside them the absmax of each block, in F32 or in codes, and then their
    /// own absmax and offset.
    private mutating func blockwise(_ name: String, _ format: QuantFormat, _ rows: Int, _ columns: Int) throws -> QuantizedMatrix {
        let codesName = BlockwiseParts.codes(name, format), absmaxName = BlockwiseParts.absmax(name)
        guard columns % format.blockElements == 0 else {
            throw ModelError.notWholeBlocks(tensor: codesName, columns: columns, format: format.name, block: format.blockElements)
        }
        let blocks = rows * columns / format.blockElements
        let absmax: Absmax
        if has(BlockwiseParts.nested(name)) {
            let count = (blocks + Absmax.nestedBlock - 1) / Absmax.nestedBlock
            let nested = try floats(BlockwiseParts.nested(name), count + 1)
            absmax = .nested(codes: try bytes(absmaxName, shape: [blocks]), absmax: nested, offset: nested[count])
        } else {
            absmax = .plain(try floats(absmaxName, blocks))
        }
        return QuantizedMatrix(
            try bytes(codesName, shape: [rows, columns / 2]), format: format, absmax: absmax, outFeatures: rows,
            inFeatures: columns)
    }

    private mutating func bytes(_ name: String, shape: [Int]) throws -> UnsafePointer<UInt8> {
        let tensor = try tensor(name, shape: shape)
        guard tensor.type == .i8 else {
            throw ModelError.unsupportedFormat(tensor: name, format: tensor.type.name, supported: ["I8"])
        }
        return tensor.bytes.baseAddress!.assumingMemoryBound(to: UInt8.self)
    }

    func has(_ name: String) -> Bool { file.tensor(named: name) != nil }

    /// Norm weights and biases; converters always write them as F32.
    mutating func floats(_ name: String, _ count: Int) throws -> UnsafePointer<Float> {
        let tensor = try tensor(name, shape: [count])
        guard tensor.type == .f32 else {
            throw ModelError.unsupportedFormat(tensor: name, format: tensor.type.name, supported: ["F32"])
        }
        return tensor.bytes.baseAddress!.assumingMemoryBound(to: Float.self)
    }

    /// - Parameter name: without ".weight".
    mutating func norm(_ name: String, _ kind: NormKind, width: Int, _ spec: DecoderSpec) throws -> Norm {
        Norm(
            kind, epsilon: spec.normEpsilon, width: width, weight: try floats("\(name).weight", width),
            bias: kind == .layer ? try floats("\(name).bias", width) : nil)
    }

    /// Not needed, and known to be of no consequence.
    mutating func leaveOut(_ name: String) { used.insert(name) }

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
