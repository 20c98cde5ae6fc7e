// How a run will use its memory: the fastest way that fits the budget, or a refusal with the numbers.
import EdgeModel
import EdgeTensor

package struct TrainingPlan: Equatable, Sendable {
    package let shape: StepShape
    package let microBatchSize: Int
    package let gradientAccumulation: Int
    package let pools: [MemoryModel.Pool]
    package let peak: ByteCount
    package let budget: ByteCount
    /// What was traded for memory, in the order in which it was taken.
    package let choices: [String]
}

package enum PlanError: Error, Equatable, CustomStringConvertible {
    /// Even one sample per micro-batch with full recomputation needs `needed`.
    /// `longestThatFits` is the largest sequence length, in tokens, that would fit; nil if none does.
    case doesNotFit(needed: ByteCount, budget: ByteCount, longestSample: Int, longestThatFits: Int?)

    package var description: String {
        switch self {
        case .doesNotFit(let needed, let budget, let longestSample, let longestThatFits):
            "needs \(needed.mebibytes) MiB, the budget is \(budget.mebibytes) MiB"
                + (longestThatFits.map { "; sequence_len \($0) would fit (longest sample: \(longestSample) tokens)" }
                    ?? "; no sequence length fits")
        }
    }
}

extension ByteCount {
    /// Rounded up, for people.
    package var mebibytes: Int { (bytes + 1 << 20 - 1) >> 20 }
}

/// The micro-batch sizes and their largest token counts, from the data set: what the planner may choose from.
package struct BatchSizes {
    package let longestSample: Int
    package let gradientAccumulation: Int
    package let microBatchSize: Int
    /// Tokens of the largest micro-batch when it has that many samples, held-out batches included.
    package let largestMicroBatch: (_ microBatchSize: Int, _ gradientAccumulation: Int) -> Int

    package init(
        longestSample: Int, microBatchSize: Int, gradientAccumulation: Int,
        largestMicroBatch: @escaping (_ microBatchSize: Int, _ gradientAccumulation: Int) -> Int
    ) {
        self.longestSample = longestSample
        self.microBatchSize = microBatchSize
        self.gradientAccumulation = gradientAccumulation
        self.largestMicroBatch = largestMicroBatch
    }
}

extension TrainingPlan {
    /// Walks from fast to small until the peak is within the budget.
    package static func make(
        _ memory: MemoryModel, batches: BatchSizes, threads: Int, keepsBest: Bool, compute: ComputeType,
        budget: ByteCount
    ) throws -> TrainingPlan {
        var choices: [String] = []
        var microBatch = batches.microBatchSize
        var accumulation = batches.gradientAccumulation
        var shape = StepShape(
            tokens: batches.largestMicroBatch(microBatch, accumulation), longestSample: batches.longestSample,
            policy: .keepAll, lossChunk: 0, threads: threads, keepsBest: keepsBest, compute: compute)
        shape.lossChunk = min(512, shape.tokens)

        func fits() -> Bool { memory.peak(shape) <= budget }
        if !fits() {
            shape.policy = .everyLayer
            choices.append("recompute every layer in the backward")
        }
        for chunk in [256, 128, 64] where !fits() && chunk < shape.lossChunk {
            shape.lossChunk = chunk
            if choices.last?.hasPrefix("loss") == true { choices.removeLast() }
            choices.append("loss in chunks of \(chunk) tokens")
        }
        while !fits(), microBatch > 1 {
            // The step keeps its samples: fewer at a time, more often.
            let smaller = (microBatch + 1) / 2
            accumulation = (accumulation * microBatch + smaller - 1) / smaller
            microBatch = smaller
            shape.tokens = batches.largestMicroBatch(microBatch, accumulation)
            shape.lossChunk = min(shape.lossChunk, shape.tokens)
            if choices.last?.hasPrefix("micro") == true { choices.removeLast() }
            choices.append("micro-batches of \(microBatch), \(accumulation) of them a step")
        }
        for chunk in [32, 16] where !fits() && chunk < shape.lossChunk {
            shape.lossChunk = chunk
            choices.append("loss in chunks of \(chunk) tokens")
        }
        guard fits() else {
            throw PlanError.doesNotFit(
                needed: memory.peak(shape), budget: budget, longestSample: batches.longestSample,
                longestThatFits: longestThatFits(memory, smallest: shape, budget: budget))
        }
        return TrainingPlan(
            shape: shape, microBatchSize: microBatch, gradientAccumulation: accumulation, pools: memory.pools(shape),
            peak: memory.peak(shape), budget: budget, choices: choices)
    }

    private static func longestThatFits(_ memory: MemoryModel, smallest: StepShape, budget: ByteCount) -> Int? {
        func fits(_ length: Int) -> Bool {
            var shape = smallest
            shape.tokens = length
            shape.longestSample = length
            shape.lossChunk = min(shape.lossChunk, length)
            return memory.peak(shape) <= budget
        }
        // The peak grows with the length, so halving finds the border; lengths are given in steps of eight tokens.
        var (low, high) = (0, smallest.longestSample / 8)
        while low < high {
            let middle = (low + high + 1) / 2
            if fits(middle * 8) { low = middle } else { high = middle - 1 }
        }
        return low == 0 ? nil : low * 8
    }
}
