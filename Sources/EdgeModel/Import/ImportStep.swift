// What an import does, in the order of the finished file: from where to where, and how. Values are not touched here.
import EdgeFormats
import EdgeTensor

/// Float types that a checkpoint's weights may have.
enum SourceFloat: Equatable {
    case f32, f16, bf16

    init?(_ dtype: SafetensorsDType) {
        switch dtype {
        case .f32: self = .f32
        case .f16: self = .f16
        case .bf16: self = .bf16
        default: return nil
        }
    }

    var byteCount: Int { self == .f32 ? 4 : 2 }
}

/// Bytes of a file of the source.
struct SourceBytes {
    let region: ByteRegion
    let range: Range<Int>

    init(_ tensor: SafetensorsTensor) { (region, range) = (tensor.region, tensor.range) }

    init(_ tensor: GGUFTensor) {
        region = tensor.region
        range = tensor.fileOffset..<tensor.fileOffset + tensor.byteCount
    }
}

/// Neighbouring tensors of the finished file that are made together from one of the source.
struct ImportStep {
    enum Work {
        /// One tensor: the bytes as they are, and `tail` after them.
        case copy(SourceBytes, tail: [UInt8])
        /// One tensor: F16 or BF16 as F32.
        case widen(SourceBytes, SourceFloat)
        /// One tensor: F32 as BF16, to nearest even.
        case round(SourceBytes)
        /// Three tensors: NF4 codes, absmax codes, nested absmax with the offset at its end.
        case quantise(SourceBytes, SourceFloat)
    }

    /// Of the source.
    let name: String
    let work: Work
    /// Of all its tensors with the padding after each.
    let byteCount: Int

    /// Blocks of the matrix that is quantised; 0 of anything else.
    var quantisedBlocks: Int {
        guard case .quantise(let source, let type) = work else { return 0 }
        return source.range.count / type.byteCount / CheckpointConversion.nf4Block
    }
}

/// Steps, and the layout of the file that they fill.
struct ImportPlan {
    private(set) var layout: GGUFLayout
    private(set) var steps: [ImportStep] = []

    init(layout: GGUFLayout) { self.layout = layout }

    mutating func add(
        _ name: String, _ work: ImportStep.Work, as tensors: [(name: String, shape: [Int], type: GGMLType)]
    ) throws(GGUFError) {
        let start = layout.dataBytes
        for tensor in tensors { try layout.addTensor(tensor.name, shape: tensor.shape, type: tensor.type) }
        steps.append(ImportStep(name: name, work: work, byteCount: layout.dataBytes - start))
    }
}
