// Frozen weights in less memory than they have bytes: a part of the model at a time is brought in from the mapped file on a
// thread of its own while the part before it is computed with, and taken out of the resident set after use. The values are
// the same mapping's, so not a bit changes.
import EdgeFormats
import EdgeTensor

package enum WeightResidence: String, Equatable, Sendable, CaseIterable {
    /// Mapped, and never given back.
    case resident
    /// Two parts at a time.
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

    package init(_ model: BaseModel) {
        attention = model.attentionRanges
        mlp = model.mlpRanges
        headStart = model.headRange.lowerBound
        headRowBytes = model.head.rowBytes
        embeddingRowBytes = model.embedding.rowBytes
        fileBytes = model.file.fileBytes
        // Beside an MLP no more than an attention is; but threads should not meet for a handful of rows.
        let slice = max(Self.bytes(model.attentionRanges).max()!, Self.leastSliceBytes)
        headSlices = headSliceRanges(
            rows: model.head.outFeatures, mostRows: slice / model.head.rowBytes, canBeParted: model.head.format != .nf4)
    }

    private static let leastSliceBytes = 2 << 20

    private static func bytes(_ ranges: [[Range<Int>]]) -> [Int] { ranges.map { $0.reduce(0) { $0 + $1.count } } }

    package enum Part: Hashable, Sendable {
        case attention(Int)
        case mlp(Int)
        case headSlice(Int)
    }

    package var layerBytes: [Int] { zip(Self.bytes(attention), Self.bytes(mlp)).map { $0 + $1 } }

    /// In the file.
    package func ranges(_ part: Part) -> [Range<Int>] {
        switch part {
        case .attention(let index): attention[index]
        case .mlp(let index): mlp[index]
        case .headSlice(let index):
            [headStart + headSlices[index].lowerBound * headRowBytes..<headStart + headSlices[index].upperBound * headRowBytes]
        }
    }

    package var headBytes: Int { (headSlices.last?.upperBound ?? 0) * headRowBytes }

    /// Pages that a part occupies, with those that the kernel maps around its ends.
    private func residentBytes(_ part: Part) -> Int {
        ranges(part).reduce(0) { $0 + $1.count + 2 * ByteRegion.faultAroundBytes }
    }

    /// What the weights occupy at most.
    package func residentBytes(_ residence: WeightResidence) -> ByteCount {
        switch residence {
        case .resident:
            // Rows of an embedding that is not the head as well are read, not mapped.
            return ByteCount(layerBytes.reduce(0, +) + headBytes + ByteRegion.faultAroundBytes)
        case .streamed:
            func largest(_ parts: [Part]) -> Int { parts.map { residentBytes($0) }.max() ?? 0 }
            let (attention, mlp) = (largest(attention.indices.map { .attention($0) }), largest(mlp.indices.map { .mlp($0) }))
            let slice = largest(headSlices.indices.map { .headSlice($0) })
            // Two of them at a time, but never two MLPs.
            return ByteCount(max(mlp + max(attention, slice), 2 * max(attention, slice)))
        }
    }
}

package final class WeightStream {
    package let residence: WeightResidence
    package let parts: WeightParts
    private let region: ByteRegion
    private let thread: BackgroundThread?
    /// The part in use and the one that comes next, with the ticket of its reading.
    private var held: [(part: WeightParts.Part, ticket: BackgroundThread.Ticket)] = []

    package init(_ model: BaseModel, _ residence: WeightResidence) {
        self.residence = residence
        parts = WeightParts(model)
        region = model.file.region
        thread = residence == .streamed ? BackgroundThread() : nil
    }

    /// Slices of the head as its products take them: one where weights stay.
    package var headSlices: [Range<Int>] {
        residence == .streamed ? parts.headSlices : [0..<(parts.headSlices.last?.upperBound ?? 0)]
    }

    /// Returns when `part` is resident; reads `next` meanwhile, and takes out everything else.
    ///
    /// - Throws: `FileError` when the file cannot be read.
    package func use(_ part: WeightParts.Part, next: WeightParts.Part?) throws {
        guard let thread else { return }
        let wanted = [part] + (next.map { [$0] } ?? [])
        for old in held where !wanted.contains(old.part) {
            // It may be on its way still.
            try thread.wait(old.ticket)
            release(old.part, keeping: wanted)
        }
        held.removeAll { !wanted.contains($0.part) }
        for part in wanted where !held.contains(where: { $0.part == part }) {
            let (region, ranges) = (region, parts.ranges(part))
            held.append((part, thread.submit { for range in ranges { try region.makeResident(range) } }))
        }
        try thread.wait(held.first { $0.part == part }!.ticket)
    }

    /// Takes everything out.
    package func releaseAll() throws {
        for one in held {
            try thread?.wait(one.ticket)
            release(one.part, keeping: [])
        }
        held = []
    }

    /// With what the kernel has mapped around it, but for what is kept.
    private func release(_ part: WeightParts.Part, keeping kept: [WeightParts.Part]) {
        let around = ByteRegion.faultAroundBytes
        let keptRanges = kept.flatMap(parts.ranges)
        for range in parts.ranges(part) {
            let first = max(0, range.lowerBound / around * around)
            let end = min(region.bytes.count, (range.upperBound + around - 1) / around * around)
            var rest = [first..<end]
            for kept in keptRanges {
                rest = rest.flatMap { piece in
                    kept.overlaps(piece)
                        ? [piece.lowerBound..<max(piece.lowerBound, kept.lowerBound), min(piece.upperBound, kept.upperBound)..<piece.upperBound]
                        : [piece]
                }
            }
            for piece in rest { region.release(piece) }
        }
    }
}
