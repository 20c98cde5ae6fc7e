// What a run is asked to do: values only, already checked by whoever took the request.
import EdgeModel
import EdgeTensor

/// A precision that this processor would compute more slowly than f32, and no better.
package struct PrecisionError: Error, Equatable, CustomStringConvertible {
    package let asked: ComputeType
    package let kernelSet: String
    package let available: [ComputeType]
    package init(asked: ComputeType, kernelSet: String, available: [ComputeType]) {
        self.asked = asked
        self.kernelSet = kernelSet
        self.available = available
    }
    package var description: String {
        "precision \(asked.rawValue) needs instructions that the kernel set \(kernelSet) of this processor has not; "
            + "it has \(available.map(\.rawValue).joined(separator: ", "))"
    }
}

package struct TrainingSpec: Equatable, Sendable {
    package enum Schedule: String, Equatable, Sendable { case linear, cosine, constant }
    package enum WarmUp: Equatable, Sendable { case steps(Int), share(Double) }

    package var adapter: AdapterSpec
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
    package var beta1: Double
    package var beta2: Double
    package var adamEpsilon: Float
    /// Nil: no clipping.
    package var maxGradNorm: Double?
    package var seed: UInt64
    /// What products with frozen weights are computed in; nil: what the kernel set prefers.
    package var precision: ComputeType?
    /// Nil: once an epoch.
    package var evalSteps: Int?
    package var saveSteps: Int
    /// Evaluations without improvement after which the run ends.
    package var earlyStoppingPatience: Int?
    /// Nil: f32, or 8 bits where nothing else fits.
    package var optimizer: OptimizerState?
    /// What the layers below the lowest adapted one make of each sample is rounded so, and kept on disk; nil: they run every time.
    package var activationCache: ActivationFormat?
    /// Steps without a backward, and how far from the adapter they look.
    package var zerothOrder = ZerothOrderUse.never
    package var zerothOrderEpsilon = ZerothOrder.defaultEpsilon

    package init(
        adapter: AdapterSpec, sequenceLength: Int, microBatchSize: Int, gradientAccumulation: Int, epochs: Double,
        maxSteps: Int?, learningRate: Double, schedule: Schedule, warmUp: WarmUp, weightDecay: Float, beta1: Double,
        beta2: Double, adamEpsilon: Float, maxGradNorm: Double?, seed: UInt64, precision: ComputeType?, evalSteps: Int?, saveSteps: Int,
        earlyStoppingPatience: Int?, optimizer: OptimizerState? = .f32
    ) {
        self.adapter = adapter
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
        self.precision = precision
        self.evalSteps = evalSteps
        self.saveSteps = saveSteps
        self.earlyStoppingPatience = earlyStoppingPatience
        self.optimizer = optimizer
    }

    /// For measurements: the defaults of a job, one micro-batch a step.
    package init(adapter: AdapterSpec, samplesPerStep: Int, maxSteps: Int) {
        self.init(
            adapter: adapter, sequenceLength: .max, microBatchSize: samplesPerStep, gradientAccumulation: 1, epochs: 1,
            maxSteps: maxSteps, learningRate: 2e-4, schedule: .constant, warmUp: .steps(0), weightDecay: 0, beta1: 0.9,
            beta2: 0.999, adamEpsilon: 1e-8, maxGradNorm: 1, seed: 1, precision: nil, evalSteps: nil, saveSteps: .max,
            earlyStoppingPatience: nil)
    }

    /// `precision`, or what the set prefers.
    /// - Throws: `PrecisionError` when the set has no instructions for it.
    package func computeType(on kernels: KernelSet) throws -> ComputeType {
        guard let precision else { return kernels.preferredComputeType }
        guard kernels.computeTypes.contains(precision) else {
            throw PrecisionError(asked: precision, kernelSet: kernels.name, available: kernels.computeTypes)
        }
        return precision
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
