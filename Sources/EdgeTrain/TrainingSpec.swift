// What a run is asked to do: values only, already checked by whoever took the request.
import EdgeModel

package struct TrainingSpec: Equatable, Sendable {
    package enum Schedule: String, Equatable, Sendable { case linear, cosine, constant }
    package enum WarmUp: Equatable, Sendable { case steps(Int), share(Double) }

    package var lora: LoRASpec
    /// Longest sample in tokens.
    package var sequenceLength: Int
    /// Samples per micro-batch.
    package var microBatchSize: Int
    /// Micro-batches per step.
    package var gradientAccumulation: Int
    package var epochs: Double
    /// Overrides `epochs`.
    package var maxSteps: Int?
    package var learningRate: Double
    package var schedule: Schedule
    package var warmUp: WarmUp
    package var weightDecay: Float
    package var beta1: Float
    package var beta2: Float
    package var adamEpsilon: Float
    /// Nil: no clipping.
    package var maxGradNorm: Double?
    package var seed: UInt64
    /// Nil: once an epoch.
    package var evalSteps: Int?
    package var saveSteps: Int
    /// Evaluations without improvement after which the run ends.
    package var earlyStoppingPatience: Int?

    package init(
        lora: LoRASpec, sequenceLength: Int, microBatchSize: Int, gradientAccumulation: Int, epochs: Double,
        maxSteps: Int?, learningRate: Double, schedule: Schedule, warmUp: WarmUp, weightDecay: Float, beta1: Float,
        beta2: Float, adamEpsilon: Float, maxGradNorm: Double?, seed: UInt64, evalSteps: Int?, saveSteps: Int,
        earlyStoppingPatience: Int?
    ) {
        self.lora = lora
        self.sequenceLength = sequenceLength
        self.microBatchSize = microBatchSize
        self.gradientAccumulation = gradientAccumulation
        self.epochs = epochs
        self.maxSteps = maxSteps
        self.learningRate = learningRate
        self.schedule = schedule
        self.warmUp = warmUp
        self.weightDecay = weightDecay
        self.beta1 = beta1
        self.beta2 = beta2
        self.adamEpsilon = adamEpsilon
        self.maxGradNorm = maxGradNorm
        self.seed = seed
        self.evalSteps = evalSteps
        self.saveSteps = saveSteps
        self.earlyStoppingPatience = earlyStoppingPatience
    }

    /// Learning rate of step `step` (from 0) of `total`, as in transformers' `get_scheduler`.
    package func learningRate(step: Int, of total: Int) -> Double {
        let warmUpSteps =
            switch warmUp {
            case .steps(let steps): steps
            case .share(let share): Int((share * Double(total)).rounded(.up))
            }
        if step < warmUpSteps { return learningRate * Double(step) / Double(max(1, warmUpSteps)) }
        let progress = Double(step - warmUpSteps) / Double(max(1, total - warmUpSteps))
        return switch schedule {
        case .constant: learningRate
        case .linear: learningRate * max(0, 1 - progress)
        case .cosine: learningRate * 0.5 * (1 + cosine(.pi * progress))
        }
    }
}
