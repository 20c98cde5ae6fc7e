// Frozen weights in less memory than they have bytes: a part of the model at a time is read from the file on a thread of its
// own while the part before it is computed with. Read, and not mapped: what is mapped is the kernel's to round up, to a whole
// large folio where it likes, and a budget is kept to the byte.
import EdgeFormats
import EdgeTensor

package enum WeightResidence: String, Equatable, Sendable, CaseIterable {
    /// Mapped, and never given back.
    case resident
    /// Two parts at a time, in memory of the arena.
    case streamed
}

/// How a model is parted: each layer's attention, each layer's MLP, and the head in slices of rows.
package struct WeightParts: Equatable, Sendable {
    private let attention: [[Range<Int>]], mlp: [[Range<Int>]]
    package let headSlices: [Range<Int>]
    private let headStart: Int
    private let headRowBytes: Int
    package let fileBytes: Int
    /// Of one token's embedding.
    package let embeddingRowBytes: Int
    package let isHeadTied: Bool

    package init(_ model: BaseModel) {
        attention = model.attentionRanges
        mlp = model.mlpRanges
        headStart = model.headRange.lowerBound
        headRowBytes = model.head.rowBytes
        embeddingRowBytes = model.embedding.rowBytes
        fileBytes = model.file.fileBytes
        isHeadTied = model.isHeadTied
        // Beside an MLP no more than an attention is; but threads should not meet for a handful of rows.
        let slice = max(Self.bytes(model.attentionRanges).max()!, Self.leastSliceBytes)
        headSlices = headSliceRanges(rows: model.head.outFeatures, mostRows: slice / model.head.rowBytes)
    }

    private static let leastSliceBytes = 2 << 20

    private static func bytes(_ ranges: [[Range<Int>]]) -> [Int] { ranges.map { $0.reduce(0) { $0 + $1.count } } }

    package enum Part: Hashable, Sendable {
        case attention(Int)
        case mlp(Int)
        case headSlice(Int)
    }

    package var layerBytes: [Int] { zip(Self.bytes(attention), Self.bytes(mlp)).map { $0 + $1 } }
    package var headBytes: Int { (headSlices.last?.upperBound ?? 0) * headRowBytes }

    /// In the file.
    package func ranges(_ part: Part) -> [Range<Int>] {
        switch part {
        case .attention(let index): attention[index]
        case .mlp(let index): mlp[index]
        case .headSlice(let index):
            [headStart + headSlices[index].lowerBound * headRowBytes..<headStart + headSlices[index].upperBound * headRowBytes]
        }
    }

    /// What a part takes in a stream's memory: every range from a cache line on.
    fileprivate func bytes(_ part: Part) -> ByteCount {
        ranges(part).reduce(.zero) { $0 + .wholeLines($1.count) }
    }

    /// Memory of a stream: the part in use and the one that comes next. Two MLPs never follow each other.
    package var streamBytes: ByteCount {
        func largest(_ parts: [Part]) -> ByteCount { parts.map { bytes($0) }.max() ?? .zero }
        let small = max(
            largest(attention.indices.map { .attention($0) }), largest(headSlices.indices.map { .headSlice($0) }))
        return max(largest(mlp.indices.map { .mlp($0) }) + small, small + small)
    }

    /// Mapped pages that stay. Rows of an embedding that is not the head as well are read, not mapped.
    package var mappedBytes: ByteCount {
        ByteCount(layerBytes.reduce(0, +) + headBytes + Self.mappedAround)
    }
    /// The kernel maps some pages around the ends of what is touched.
    private static let mappedAround = 128 << 10
}

package final class WeightStream {
    package let residence: WeightResidence
    package let parts: WeightParts
    private let region: ByteRegion
    private let thread: BackgroundThread?
    /// Held, because the thread writes into it until it is waited for.
    private let arena: Arena
    private let memory: UnsafeMutableRawBufferPointer
    /// The part in use and the one that comes next: at different ends of the memory.
    private var held: [Held] = []

    private struct Held {
        let part: WeightParts.Part
        let end: End
        /// Where each of the part's ranges is.
        let places: [(range: Range<Int>, base: UnsafeMutableRawPointer)]
        let ticket: BackgroundThread.Ticket
    }
    private enum End { case low, high }

    /// - Parameter arena: gives `streamBytes` where weights are streamed.
    package init(_ model: BaseModel, _ residence: WeightResidence, arena: Arena) {
        self.residence = residence
        parts = WeightParts(model)
        region = model.file.region
        thread = residence == .streamed ? BackgroundThread() : nil
        self.arena = arena
        memory = arena.bytes(residence == .streamed ? parts.streamBytes : .zero)
    }

    deinit {
        // An error of a reading that nobody waits for is of no consequence.
        if let last = held.map(\.ticket).max() { try? thread?.wait(last) }
    }

    /// Slices of the head as its products take them: one where weights stay.
    package var headSlices: [Range<Int>] {
        residence == .streamed ? parts.headSlices : [0..<(parts.headSlices.last?.upperBound ?? 0)]
    }

    /// Returns when `part` is in memory; reads `next` meanwhile, in the place of everything else.
    ///
    /// - Throws: `FileError` when the file cannot be read.
    package func use(_ part: WeightParts.Part, next: WeightParts.Part?) throws {
        guard let thread else { return }
        let wanted = [part] + (next.map { [$0] } ?? [])
        // What is on its way and not wanted after all must land before its place is used again.
        for old in held where !wanted.contains(old.part) { try thread.wait(old.ticket) }
        held.removeAll { !wanted.contains($0.part) }
        for part in wanted where !held.contains(where: { $0.part == part }) { held.append(read(part, thread)) }
        try thread.wait(held.first { $0.part == part }!.ticket)
    }

    private func read(_ part: WeightParts.Part, _ thread: BackgroundThread) -> Held {
        let end: End = held.first?.end == .low ? .high : .low
        var place = end == .low ? memory.baseAddress! : memory.baseAddress! + (memory.count - parts.bytes(part).bytes)
        let places = parts.ranges(part).map { range in
            defer { place += ByteCount.wholeLines(range.count).bytes }
            return (range: range, base: place)
        }
        let region = region
        let ticket = thread.submit {
            for (range, base) in places { try region.read(at: range.lowerBound, count: range.count, into: base) }
        }
        return Held(part: part, end: end, places: places, ticket: ticket)
    }

    /// A matrix of the model where it is now: in the mapping, or in the stream's memory.
    package func inMemory(_ matrix: QuantizedMatrix) -> QuantizedMatrix {
        held.isEmpty ? matrix : matrix.moved(address)
    }

    package func inMemory(_ layer: LayerWeights) -> LayerWeights { held.isEmpty ? layer : layer.moved(address) }

    /// Of bytes of the mapping; those of parts that are not held stay where they are.
    private func address(_ mapped: UnsafeRawPointer) -> UnsafeRawPointer {
        let offset = mapped - region.bytes.baseAddress!
        for one in held {
            for (range, base) in one.places where range.contains(offset) {
                return UnsafeRawPointer(base + (offset - range.lowerBound))
            }
        }
        return mapped
    }
}
