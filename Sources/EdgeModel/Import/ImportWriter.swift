// Does the steps of an import, a bounded piece at a time. Sources are read, never touched through their mapping, so that none of
// their pages becomes resident.
import EdgeFormats
import EdgeTensor

/// Buffers for every step of a plan, allocated once.
private final class ImportScratch {
    /// Values that are converted at once: a multiple of NF4's block.
    static let pieceValues = 1 << 18

    /// A piece as it is in the source, or will be in the file.
    let raw: UnsafeMutableRawBufferPointer
    let values: UnsafeMutableBufferPointer<Float>
    let codes: UnsafeMutableBufferPointer<UInt8>
    /// Of a whole matrix.
    let absmax: UnsafeMutableBufferPointer<Float>
    let absmaxCodes: UnsafeMutableBufferPointer<UInt8>
    let nested: UnsafeMutableBufferPointer<Float>

    static func byteCount(blocks: Int) -> Int {
        pieceValues * 4 + pieceValues * 4 + pieceValues / 2 + blocks * 5 + CheckpointConversion.nestedCount(blocks) * 4
    }

    init(blocks: Int) {
        raw = .allocate(byteCount: Self.pieceValues * 4, alignment: 64)
        values = .allocate(capacity: Self.pieceValues)
        codes = .allocate(capacity: Self.pieceValues / 2)
        absmax = .allocate(capacity: blocks)
        absmaxCodes = .allocate(capacity: blocks)
        nested = .allocate(capacity: CheckpointConversion.nestedCount(blocks))
    }

    deinit {
        raw.deallocate()
        values.deallocate()
        codes.deallocate()
        absmax.deallocate()
        absmaxCodes.deallocate()
        nested.deallocate()
    }
}

struct ImportWriter {
    typealias Sink = (UnsafeRawBufferPointer) throws -> Void

    private let layout: GGUFLayout
    private let scratch: ImportScratch
    private let sink: Sink

    /// - Parameter sink: takes the bytes of the file in order.
    init(_ plan: ImportPlan, to sink: @escaping Sink) {
        layout = plan.layout
        scratch = ImportScratch(blocks: Self.largestMatrixBlocks(plan))
        self.sink = sink
    }

    static func scratchBytes(_ plan: ImportPlan) -> Int { ImportScratch.byteCount(blocks: largestMatrixBlocks(plan)) }

    private static func largestMatrixBlocks(_ plan: ImportPlan) -> Int {
        plan.steps.reduce(0) { max($0, $1.quantisedBlocks) }
    }

    /// - Throws: `ImportError.notFinite`, `FileError`, and what the sink throws.
    func perform(_ step: ImportStep) throws {
        switch step.work {
        case .copy(let source, let tail):
            try pieces(of: source, elementBytes: 1) { _, count in try put(scratch.raw.baseAddress!, count) }
            try tail.withUnsafeBytes(sink)
            try pad(source.range.count + tail.count)
        case .widen(let source, let type):
            try floats(of: source, type) { _, count in try put(scratch.values.baseAddress!, 4 * count) }
            try pad(source.range.count / type.byteCount * 4)
        case .round(let source):
            try floats(of: source, .f32) { _, count in
                // The piece has been copied out of `raw`.
                CheckpointConversion.bfloats(
                    of: scratch.values.baseAddress!, count: count,
                    into: scratch.raw.baseAddress!.assumingMemoryBound(to: UInt16.self))
                try put(scratch.raw.baseAddress!, 2 * count)
            }
            try pad(source.range.count / 2)
        case .quantise(let source, let type):
            try quantise(source, type, step)
        }
    }

    private func quantise(_ source: SourceBytes, _ type: SourceFloat, _ step: ImportStep) throws {
        let block = CheckpointConversion.nf4Block
        try floats(of: source, type) { first, count in
            let outcome = CheckpointConversion.quantiseNF4(
                scratch.values.baseAddress!, count: count, codes: scratch.codes.baseAddress!,
                absmax: scratch.absmax.baseAddress! + first / block)
            guard outcome == .done else {
                let index = scratch.values.prefix(count).firstIndex { !$0.isFinite }!
                throw ImportError.notFinite(tensor: step.name, index: first + index)
            }
            try put(scratch.codes.baseAddress!, count / 2)
        }
        try pad(source.range.count / type.byteCount / 2)
        let blocks = step.quantisedBlocks
        CheckpointConversion.quantiseAbsmax(
            scratch.absmax.baseAddress!, count: blocks, codes: scratch.absmaxCodes.baseAddress!,
            nested: scratch.nested.baseAddress!)
        try put(scratch.absmaxCodes.baseAddress!, blocks)
        try pad(blocks)
        let nestedBytes = 4 * CheckpointConversion.nestedCount(blocks)
        try put(scratch.nested.baseAddress!, nestedBytes)
        try pad(nestedBytes)
    }

    private func put(_ bytes: UnsafeRawPointer, _ count: Int) throws {
        try sink(UnsafeRawBufferPointer(start: bytes, count: count))
    }

    private func pad(_ byteCount: Int) throws { try layout.writePadding(after: byteCount, to: sink) }

    /// Hands on the first element's index and the count of each piece, which lies in `scratch.raw` then.
    private func pieces(of source: SourceBytes, elementBytes: Int, _ body: (Int, Int) throws -> Void) throws {
        let count = source.range.count / elementBytes
        for first in stride(from: 0, to: count, by: ImportScratch.pieceValues) {
            let length = min(ImportScratch.pieceValues, count - first)
            try source.region.read(
                at: source.range.lowerBound + first * elementBytes, count: length * elementBytes, into: scratch.raw.baseAddress!)
            try body(first, length)
        }
    }

    /// The same with the values in `scratch.values`.
    private func floats(of source: SourceBytes, _ type: SourceFloat, _ body: (Int, Int) throws -> Void) throws {
        let values = scratch.values.baseAddress!
        try pieces(of: source, elementBytes: type.byteCount) { first, count in
            let halves = UnsafePointer(scratch.raw.baseAddress!.assumingMemoryBound(to: UInt16.self))
            switch type {
            case .f32: UnsafeMutableRawPointer(values).copyMemory(from: scratch.raw.baseAddress!, byteCount: 4 * count)
            case .f16: CheckpointConversion.floats(ofHalves: halves, count: count, into: values)
            case .bf16: CheckpointConversion.floats(ofBFloats: halves, count: count, into: values)
            }
            try body(first, count)
        }
    }
}
