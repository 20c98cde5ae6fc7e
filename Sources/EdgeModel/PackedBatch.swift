// The samples of a micro-batch as the layers see them, whole or in runs of tokens, and which of their elements dropout drops.
import EdgeTensor

/// The samples of a micro-batch as the layers see them, of one job or of several, one after the other: one flat run of tokens, no
/// padding.
package struct PackedBatch {
    package let tokenCount: Int
    package let positions: UnsafePointer<Int32>
    package let spans: [AttentionSpan]
    /// Every sample whole.
    let parts: [SamplePart]

    /// - Parameters:
    ///   - jobs: how many of the spans are each job's.
    ///   - tasks: of every span.
    package init(tokenCount: Int, positions: UnsafePointer<Int32>, spans: [AttentionSpan], jobs: [Int], tasks: [Int?]) {
        self.tokenCount = tokenCount
        self.positions = positions
        self.spans = spans
        precondition(tasks.count == spans.count)
        var rest = spans.indices[...]
        parts = jobs.enumerated().flatMap { job, count in
            defer { rest = rest.dropFirst(count) }
            return rest.prefix(count).enumerated().map { sample, index in
                let span = spans[index]
                return SamplePart(
                    rows: span.firstQuery..<span.firstQuery + span.queryCount, job: job, task: tasks[index], sample: sample, firstToken: 0)
            }
        }
        precondition(rest.isEmpty)
    }

    /// The first row of each sample of a job.
    package func firstRows(job: Int) -> [Int] { parts.filter { $0.job == job }.map(\.rows.lowerBound) }

    /// The rows of a job's samples, each sample's.
    package func samples(job: Int) -> [Range<Int>] { parts.filter { $0.job == job }.map(\.rows) }

    /// The tokens parted into runs of at most `limit`, for what can be done token by token. Samples are cut where their outer
    /// products' sums are, so that the runs add up to the whole's bits.
    func chunks(_ limit: Int) -> [TokenChunk] {
        guard limit < tokenCount else { return [TokenChunk(rows: 0..<tokenCount, parts: parts)] }
        precondition(limit >= outerProductTokens)
        var chunks: [TokenChunk] = []
        for part in parts {
            for first in stride(from: 0, to: part.rows.count, by: outerProductTokens) {
                let rows = part.rows.lowerBound + first..<min(part.rows.lowerBound + first + outerProductTokens, part.rows.upperBound)
                if chunks.last.map({ $0.rows.count + rows.count > limit }) ?? true {
                    chunks.append(TokenChunk(rows: rows.lowerBound..<rows.lowerBound, parts: []))
                }
                chunks[chunks.count - 1].add(rows, of: part, firstToken: first)
            }
        }
        return chunks
    }
}

/// Some of the tokens of a batch that follow each other.
struct TokenChunk {
    /// In the batch.
    private(set) var rows: Range<Int>
    /// With rows counted from the chunk's first.
    private(set) var parts: [SamplePart]

    mutating func add(_ added: Range<Int>, of sample: SamplePart, firstToken: Int) {
        let offset = rows.lowerBound
        rows = rows.lowerBound..<added.upperBound
        let own = added.lowerBound - offset..<added.upperBound - offset
        if let last = parts.last, last.job == sample.job, last.sample == sample.sample {
            parts[parts.count - 1].rows = last.rows.lowerBound..<own.upperBound
        } else {
            parts.append(SamplePart(rows: own, job: sample.job, task: sample.task, sample: sample.sample, firstToken: firstToken))
        }
    }

    /// Its rows of a tensor of the batch, or the tensor's first where it has room for one chunk only.
    func of(_ tensor: Tensor) -> Tensor {
        // A module that nobody adapts has no rows.
        guard tensor.rows > 0 else { return tensor }
        guard tensor.rows >= rows.upperBound else { return tensor.prefix(rows.count) }
        return Tensor(tensor.row(rows.lowerBound), rows: rows.count, columns: tensor.columns)
    }
}

/// Which elements a micro-batch drops: a function of the step's key and the sample's number within the step alone.
package struct DropoutMasks: Equatable, Sendable {
    package let stepKey: UInt64
    /// Number of the micro-batch's first sample.
    package let firstSample: Int

    package init(stepKey: UInt64, firstSample: Int) {
        self.stepKey = stepKey
        self.firstSample = firstSample
    }

    func key(sample: Int, stream: Int) -> UInt64 {
        mix64(mix64(stepKey ^ UInt64(firstSample + sample)) ^ UInt64(stream))
    }
}
