// How much each linear of a frozen model matters to some samples: what ranks are given by.
//
// In SPT (arXiv:2303.08566 §3.1) a weight's sensitivity is the square of its gradient, summed over batches: to first order, what a step
// along it takes off the loss. A linear's is then the sum over its weights, ‖dL/dW‖²_F. Here no dL/dW ever exists. But of a LoRA as it
// begins, with B = 0, dL/dB = scaling · dL/dW · Aᵀ, and the entries of A are independent, with mean 0 and one variance v: so
// E ‖dL/dB‖² = scaling² · rank · v · ‖dL/dW‖², a random projection's (Achlioptas, doi:10.1016/S0022-0000(03)00025-4). Every sample has an A of
// its own, so that what one A happens to miss is evened out. Of other measures, AdaLoRA's |w · dL/dw| is zero while B is, and
// GoRA's |W ⊙ dL/dW| (arXiv:2502.12171) needs both of them whole.
import EdgeFormats
import EdgeModel
import EdgeTensor

package struct LinearSensitivity {
    /// Rows of A. The estimate's standard deviation is at most √(1 / (2 · rank · samples)), where dL/dW has rank 1: 4 % with 32 samples.
    package static let rank = 8

    private let model: BaseModel
    private let samples: [TokenizedSample]
    private let memory: MemoryModel
    private let plan: TrainingPlan

    /// Plans it as a run of LoRA-FA, which has gradients of B alone, over these samples, one a step.
    ///
    /// - Parameters:
    ///   - samples: at least one; each has a token that carries loss.
    ///   - limits: of them the budget, the threads and what is known of the board count. It is computed in f32, and uses no disk.
    /// - Throws: `PlanError` where it does not fit.
    package init(
        of model: BaseModel, modules: [ModuleID], on samples: [TokenizedSample], process: ProcessMemory, limits: PlanLimits
    ) throws {
        precondition(!samples.isEmpty && samples.allSatisfy { $0.lossTokenCount > 0 })
        (self.model, self.samples) = (model, samples)
        let probe = AdapterSpec(
            method: AdapterMethods.loraFA, rank: Self.rank, alpha: Float(Self.rank), dropout: 0, targets: .allLinear, layers: nil)
        memory = MemoryModel(spec: model.spec, adapter: probe, modules: modules, weights: WeightParts(model), process: process)
        var limits = limits
        (limits.compute, limits.spill) = (.f32, .zero)
        // Nothing is trained: of what only a step of training needs, the plan has the least.
        (limits.optimizer, limits.appliesLayerByLayer) = (.eightBit, true)
        let spec = TrainingSpec(adapter: probe, samplesPerStep: 1, maxSteps: samples.count)
        plan = try TrainingPlan.make(
            memory, lengths: SampleLengths(Dataset(training: samples, heldOut: []), spec: spec), limits)
    }

    package var plannedPeak: ByteCount { plan.peak }

    /// One forward and one backward of every sample.
    ///
    /// - Parameters:
    ///   - seed: of the A's.
    ///   - proceed: called before every sample with how many are done; what it throws ends it.
    /// - Returns: of each module ‖dL/dW‖_F, L being a sample's mean nll: the root of its mean square over the samples.
    /// - Throws: `SensitivityError`, `FileError`, and what `proceed` throws.
    package func measure(kernels: KernelSet, seed: UInt64, proceed: (_ done: Int) throws -> Void = { _ in }) throws -> [Double] {
        let step = try TrainStep(
            model: model, memory: memory, shape: plan.shape, kernels: kernels, arena: try Arena(capacity: memory.arena(plan.shape)),
            spillDirectory: "")
        let adapters = step.adapters[0]
        var sums = [Double](repeating: 0, count: adapters.slots.count)
        for (number, sample) in samples.enumerated() {
            try proceed(number)
            adapters.initialize(seed: RandomSource(seed: seed, .sensitivity, UInt64(number)).streamKey)
            step.clearGradients()
            var work = [JobMicroBatch(MicroBatch([sample]), lossScale: 1 / Float(sample.lossTokenCount))]
            try step.accumulate(&work) { layer, _ in
                for (index, slot) in adapters.slots.enumerated() where slot.id.layer == layer { sums[index] += Self.square(slot, adapters) }
                // The next layer's may have the same place.
                step.clearGradients()
            }
            guard work[0].loss.isFinite, sums.allSatisfy(\.isFinite) else {
                throw SensitivityError.nonFinite(sample: number, loss: work[0].loss / Double(sample.lossTokenCount))
            }
        }
        return sums.map { ($0 / Double(samples.count)).squareRoot() }
    }

    /// What ‖dL/dB‖² says of ‖dL/dW‖².
    private static func square(_ slot: AdapterSet.Slot, _ adapters: AdapterSet) -> Double {
        guard case .uniform(let bound) = slot.places[0].matrix.start, let gradient = adapters.gradients(slot)[1] else {
            preconditionFailure("not a LoRA as it begins")
        }
        let variance = Double(bound) * Double(bound) / 3, scaling = Double(slot.scaling)
        return dot(gradient.base, gradient.base, gradient.count) / (scaling * scaling * Double(slot.rank) * variance)
    }
}

package enum SensitivityError: Error, Equatable, CustomStringConvertible {
    /// Of the sample with this number, or of a gradient.
    case nonFinite(sample: Int, loss: Double)

    package var description: String {
        switch self {
        case .nonFinite(let sample, let loss) where loss.isFinite:
            "a gradient of sample \(sample + 1) is not finite, its loss is \(loss): this base cannot be trained on it"
        case .nonFinite(let sample, let loss): "the loss of sample \(sample + 1) is \(loss): this base cannot be trained on it"
        }
    }
}
