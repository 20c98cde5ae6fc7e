// The tokenised samples of a job, and the order in which a run sees them. The order is a function of the seed and the
// step, so a resumed run needs to know its step and nothing more.
import EdgeFormats
import EdgeTensor
import Glibc

func cosine(_ x: Double) -> Double { cos(x) }

package struct Dataset: Sendable {
    package let training: [TokenizedSample]
    /// Of each of them, its index among the samples that were parted.
    package let trainingIndices: [Int]
    package let heldOut: [TokenizedSample]

    package init(training: [TokenizedSample], heldOut: [TokenizedSample]) {
        self.training = training
        trainingIndices = Array(training.indices)
        self.heldOut = heldOut
    }

    /// Parts off the held-out samples by a seeded permutation; both parts keep the file's order.
    ///
    /// - Parameter heldOut: below 1 a share of the samples (at least one), else a count; 0: none.
    package init(_ samples: [TokenizedSample], heldOut: Double, seed: UInt64) {
        let wanted = heldOut == 0 ? 0 : heldOut < 1 ? max(1, Int(heldOut * Double(samples.count))) : Int(heldOut)
        // One sample at least is left to train on.
        let count = min(wanted, max(0, samples.count - 1))
        let chosen = Set(RandomSource(seed: seed, .split).permutation(samples.count).prefix(count))
        self.heldOut = samples.indices.filter(chosen.contains).map { samples[$0] }
        trainingIndices = samples.indices.filter { !chosen.contains($0) }
        training = trainingIndices.map { samples[$0] }
    }

    /// Tokens that count in the loss.
    package static func lossTokens(_ samples: [TokenizedSample]) -> Int {
        samples.reduce(0) { $0 + $1.lossTokenCount }
    }
}

extension TokenizedSample {
    /// Behind places for so many virtual tokens, whose embeddings are an adapter's and whose ids mean nothing.
    package func behindVirtualTokens(_ count: Int) -> TokenizedSample {
        guard count > 0 else { return self }
        var sample = self
        sample.tokens.insert(contentsOf: [TokenID](repeating: 0, count: count), at: 0)
        sample.carriesLoss.insert(contentsOf: [Bool](repeating: false, count: count), at: 0)
        return sample
    }

    /// The first token is predicted from nothing, so it never counts.
    package var lossTokenCount: Int { carriesLoss.dropFirst().reduce(0) { $0 + ($1 ? 1 : 0) } }
}

/// Which samples each step trains on. How a step's samples are parted into micro-batches is the plan's business and changes
/// no gradient.
package struct DataOrder: Sendable {
    package let sampleCount: Int
    package let samplesPerStep: Int
    package let totalSteps: Int
    package let seed: UInt64

    package init(sampleCount: Int, spec: TrainingSpec) {
        precondition(sampleCount > 0)
        self.sampleCount = sampleCount
        samplesPerStep = spec.microBatchSize * spec.gradientAccumulation
        seed = spec.seed
        let stepsPerEpoch = (sampleCount + samplesPerStep - 1) / samplesPerStep
        totalSteps = spec.maxSteps ?? max(1, Int((spec.epochs * Double(stepsPerEpoch)).rounded(.up)))
    }

    package var stepsPerEpoch: Int { (sampleCount + samplesPerStep - 1) / samplesPerStep }

    package func epoch(_ step: Int) -> Int { step / stepsPerEpoch }

    /// The order of one epoch.
    package func permutation(epoch: Int) -> [Int] {
        RandomSource(seed: seed, .shuffle, UInt64(epoch)).permutation(sampleCount)
    }

    /// Samples of a step, as indices. The last step of an epoch may have fewer.
    package func samples(step: Int, permutation: [Int]) -> ArraySlice<Int> {
        let first = step % stepsPerEpoch * samplesPerStep
        return permutation[first..<min(first + samplesPerStep, sampleCount)]
    }
}

/// What the largest micro-batch of a run holds.
package struct MicroBatchSize: Equatable, Sendable {
    package var tokens: Int
    package var lossTokens: Int
    /// Micro-batches of the step that has most.
    package var perStep: Int

    package init(tokens: Int, lossTokens: Int, perStep: Int) {
        self.tokens = tokens
        self.lossTokens = lossTokens
        self.perStep = perStep
    }
}

/// Samples packed without padding, in their order, as many as `tokenBudget` holds; a longer one goes alone.
package func packed<Samples: Collection>(
    _ samples: Samples, tokenBudget: Int, tokens: (Samples.Element) -> Int
) -> [[Samples.Element]] {
    var batches: [[Samples.Element]] = []
    var filled = 0
    for sample in samples {
        let count = tokens(sample)
        if batches.isEmpty || filled + count > tokenBudget {
            batches.append([])
            filled = 0
        }
        batches[batches.count - 1].append(sample)
        filled += count
    }
    return batches
}

/// Lengths of a job's samples: all that a plan needs to know of them.
package struct SampleLengths: Sendable {
    package struct Length: Equatable, Sendable {
        package let tokens: Int
        package let lossTokens: Int
        package init(tokens: Int, lossTokens: Int) {
            self.tokens = tokens
            self.lossTokens = lossTokens
        }
    }

    package let training: [Length]
    package let heldOut: [Length]
    private let order: DataOrder

    package init(_ dataset: Dataset, spec: TrainingSpec) {
        func lengths(_ samples: [TokenizedSample]) -> [Length] {
            samples.map { Length(tokens: $0.tokens.count, lossTokens: $0.lossTokenCount) }
        }
        self.init(training: lengths(dataset.training), heldOut: lengths(dataset.heldOut), spec: spec)
    }

    package init(training: [Length], heldOut: [Length], spec: TrainingSpec) {
        self.training = training
        self.heldOut = heldOut
        let order = DataOrder(sampleCount: training.count, spec: spec)
        self.order = order
        longest = (training + heldOut).map(\.tokens).max() ?? 0
        let tokens = Double(training.reduce(0) { $0 + $1.tokens })
        meanStepTokens = tokens / Double(training.count) * Double(min(order.samplesPerStep, training.count))
        meanLossShare = Double(training.reduce(0) { $0 + $1.lossTokens }) / max(1, tokens)
        meanSampleTokens = training.reduce(0) { $0 + Double($1.tokens * $1.tokens) } / max(1, tokens)
        mostStepTokens = training.map(\.tokens).sorted(by: >).prefix(order.samplesPerStep).reduce(0, +)
    }

    // Walked once: a planner asks for them hundreds of times.
    package let longest: Int
    /// Tokens of a step, if every step had the mean sample.
    package let meanStepTokens: Double
    package let meanLossShare: Double
    /// Mean over tokens, not over samples: long samples have more of them.
    package let meanSampleTokens: Double
    /// No step has more tokens.
    package let mostStepTokens: Int
    package var totalSteps: Int { order.totalSteps }
    package var epochs: Double { Double(order.totalSteps) / Double(order.stepsPerEpoch) }

    /// Most sample visits that are gone through one by one.
    private static let exactVisits = 2_000_000

    /// The largest micro-batch of the run with this token budget, held-out batches included. Exact for runs of up to two
    /// million sample visits; beyond that the bound.
    package func largestMicroBatch(tokenBudget: Int) -> MicroBatchSize {
        var largest = MicroBatchSize(tokens: 0, lossTokens: 0, perStep: 0)
        func take(_ batch: [Length]) {
            largest.tokens = max(largest.tokens, batch.reduce(0) { $0 + $1.tokens })
            largest.lossTokens = max(largest.lossTokens, batch.reduce(0) { $0 + $1.lossTokens })
        }
        for batch in packed(heldOut, tokenBudget: tokenBudget, tokens: \.tokens) { take(batch) }
        let epochs = order.epoch(order.totalSteps - 1) + 1
        guard epochs * training.count <= Self.exactVisits else {
            let tokens = max(longest, min(tokenBudget, mostStepTokens))
            let perBatch = max(1, tokenBudget / 2)
            return MicroBatchSize(
                tokens: tokens, lossTokens: tokens, perStep: max(1, (mostStepTokens + perBatch - 1) / perBatch))
        }
        for epoch in 0..<epochs {
            let permutation = order.permutation(epoch: epoch)
            for step in epoch * order.stepsPerEpoch..<min((epoch + 1) * order.stepsPerEpoch, order.totalSteps) {
                let batches = packed(
                    order.samples(step: step, permutation: permutation), tokenBudget: tokenBudget,
                    tokens: { training[$0].tokens })
                for batch in batches { take(batch.map { training[$0] }) }
                largest.perStep = max(largest.perStep, batches.count)
            }
        }
        return largest
    }
}
