// The tokenised samples of a job, and the order in which a run sees them. The order is a function of the seed and the
// step, so a resumed run needs to know its step and nothing more.
import EdgeFormats
import EdgeTensor
import Glibc

func cosine(_ x: Double) -> Double { cos(x) }

package struct Dataset: Sendable {
    package let training: [TokenizedSample]
    package let heldOut: [TokenizedSample]

    package init(training: [TokenizedSample], heldOut: [TokenizedSample]) {
        self.training = training
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
        training = samples.indices.filter { !chosen.contains($0) }.map { samples[$0] }
    }

    /// Tokens that count in the loss.
    package static func lossTokens(_ samples: [TokenizedSample]) -> Int {
        samples.reduce(0) { $0 + $1.lossTokenCount }
    }
}

extension TokenizedSample {
    /// The first token is predicted from nothing, so it never counts.
    package var lossTokenCount: Int { carriesLoss.dropFirst().reduce(0) { $0 + ($1 ? 1 : 0) } }
}

/// Which samples each step trains on.
package struct DataOrder: Sendable {
    package let sampleCount: Int
    package let microBatchSize: Int
    package let gradientAccumulation: Int
    package let totalSteps: Int
    package let seed: UInt64

    package init(sampleCount: Int, microBatchSize: Int, gradientAccumulation: Int, spec: TrainingSpec) {
        precondition(sampleCount > 0)
        self.sampleCount = sampleCount
        self.microBatchSize = microBatchSize
        self.gradientAccumulation = gradientAccumulation
        seed = spec.seed
        let perStep = microBatchSize * gradientAccumulation
        let stepsPerEpoch = (sampleCount + perStep - 1) / perStep
        totalSteps = spec.maxSteps ?? max(1, Int((spec.epochs * Double(stepsPerEpoch)).rounded(.up)))
    }

    package var samplesPerStep: Int { microBatchSize * gradientAccumulation }
    package var stepsPerEpoch: Int { (sampleCount + samplesPerStep - 1) / samplesPerStep }

    package func epoch(_ step: Int) -> Int { step / stepsPerEpoch }

    /// The order of one epoch.
    package func permutation(epoch: Int) -> [Int] {
        RandomSource(seed: seed, .shuffle, UInt64(epoch)).permutation(sampleCount)
    }

    /// Micro-batches of a step, as indices of samples. The last step of an epoch may have fewer.
    package func microBatches(step: Int, permutation: [Int]) -> [[Int]] {
        let first = step % stepsPerEpoch * samplesPerStep
        let samples = permutation[first..<min(first + samplesPerStep, sampleCount)]
        return stride(from: samples.startIndex, to: samples.endIndex, by: microBatchSize).map {
            Array(samples[$0..<min($0 + microBatchSize, samples.endIndex)])
        }
    }

    /// Tokens of the largest micro-batch of the run. Exact while there are up to two million sample visits, beyond
    /// that the bound: the longest samples together.
    package func largestMicroBatch(_ samples: [TokenizedSample]) -> Int {
        let epochs = epoch(totalSteps - 1) + 1
        let lengths = samples.map(\.tokens.count)
        guard microBatchSize > 1, epochs * sampleCount <= 2_000_000 else {
            return lengths.sorted(by: >).prefix(microBatchSize).reduce(0, +)
        }
        var largest = 0
        for epoch in 0..<epochs {
            let permutation = permutation(epoch: epoch)
            let steps = epoch * stepsPerEpoch..<min((epoch + 1) * stepsPerEpoch, totalSteps)
            for step in steps {
                for batch in microBatches(step: step, permutation: permutation) {
                    largest = max(largest, batch.reduce(0) { $0 + lengths[$1] })
                }
            }
        }
        return largest
    }
}
