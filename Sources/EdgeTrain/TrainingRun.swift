// A run from its first or its last checkpointed step to the published adapter. It emits events and asks whether to
// stop; it has no clock, no log and no environment.
import EdgeFormats
import EdgeModel
import EdgeTensor
import Glibc

package enum TrainingEvent: Sendable {
    case step(StepReport)
    case evaluation(Evaluation, isBest: Bool)
    case checkpoint(step: Int)
    case log(String)
}

package struct StepReport: Equatable, Sendable {
    /// Steps done, from 1.
    package let step: Int
    package let totalSteps: Int
    package let epoch: Double
    /// Mean nll of the step's loss tokens, in nats, before the update.
    package let loss: Double
    package let learningRate: Double
    package let gradNorm: Double
    /// Tokens that went through the model.
    package let tokens: Int
    package let evalLoss: Double?
    package let bestEvalLoss: Double?
}

package struct Evaluation: Equatable, Sendable {
    package let step: Int
    /// Mean nll per held-out loss token, in nats.
    package let loss: Double
    package let tokens: Int
    package var perplexity: Double { exp(loss) }
}

package enum TrainingError: Error, Equatable, CustomStringConvertible {
    /// `samples` are indices of training samples: of the micro-batch whose loss it is, or of the whole step where only a
    /// gradient is not finite. `gradNorm` is nil where the loss was enough to know.
    case nonFinite(step: Int, loss: Double, gradNorm: Double?, samples: [Int])
    /// Of the held-out samples, after `step` steps.
    case nonFiniteEvaluation(step: Int, loss: Double)
    /// The last update left it so.
    case nonFiniteAdapter(step: Int)
    case noSamples(lines: Int, tooLong: Int, sequenceLength: Int)
    case noLossTokens

    package var description: String {
        switch self {
        case .nonFinite(let step, let loss, let gradNorm, let samples):
            "step \(step): loss \(loss)" + (gradNorm.map { ", gradient norm \($0)" } ?? "")
                + "; training samples \(samples.map(String.init).joined(separator: ", "))"
        case .nonFiniteEvaluation(0, let loss): "before the first step the held-out loss is \(loss)"
        case .nonFiniteEvaluation(let step, let loss): "after step \(step) the held-out loss is \(loss)"
        case .nonFiniteAdapter(let step): "after step \(step), the last, the adapter has values that are not finite"
        case .noSamples(let lines, let tooLong, let sequenceLength):
            "no sample to train on: \(tooLong) of \(lines) are longer than sequence_len \(sequenceLength)"
        case .noLossTokens: "no token of the training samples carries loss"
        }
    }
}

/// What the next micro-batch is for.
package enum MicroBatchPurpose: Sendable { case training, evaluation, adapterStart }

/// What the control loop asks before every micro-batch, of training and of evaluation.
package enum RunDirection: Sendable {
    case goOn
    /// Go on, with as little memory as can be had back now.
    case giveBack
    /// Checkpoint, and leave: another run goes on from there.
    case stop
    /// End as an early-stopped run does, with what has been trained: the step under way is dropped, unless it is the first.
    case finish
}

package enum RunOutcome: Equatable, Sendable {
    case finished(FinishedRun)
    /// Stopped by request; the checkpoint is written.
    case stopped(step: Int)
}

package struct FinishedRun: Equatable, Sendable {
    package let steps: Int
    package let totalSteps: Int
    /// Step of the adapter that was kept.
    package let keptStep: Int
    package let evaluations: [Evaluation]
    package let endedEarly: Bool
    package let lastLoss: Double
}

package final class TrainingRun {
    package let adapters: AdapterSet
    private let model: BaseModel
    private let step: TrainStep
    private let optimizer: AdamW
    private let arena: Arena
    private let spec: TrainingSpec
    private let plan: TrainingPlan
    private let dataset: Dataset
    private let order: DataOrder
    private let checkpoints: CheckpointStore
    private let emit: (TrainingEvent) -> Void
    private let direction: (MicroBatchPurpose) -> RunDirection
    /// Asked for once, when the run begins and is not resumed.
    private let initial: (() throws -> LoadedAdapter)?
    private let original: BaseModel?
    private var state = RunState()

    /// - Parameters:
    ///   - checkpoints: where resumable state is written and found.
    ///   - initial: the adapter that a run begins from, read when it begins; nil: PEFT's start.
    ///   - original: what the base was quantised from, for the loftq start.
    ///   - spillDirectory: where layer inputs go when the plan has them in a file.
    ///   - direction: asked before every micro-batch.
    package init(
        model: BaseModel, memory: MemoryModel, spec: TrainingSpec, plan: TrainingPlan, dataset: Dataset,
        kernels: KernelSet, checkpoints: CheckpointStore, initial: (() throws -> LoadedAdapter)? = nil,
        original: BaseModel? = nil, spillDirectory: String,
        emit: @escaping (TrainingEvent) -> Void,
        direction: @escaping (MicroBatchPurpose) -> RunDirection
    ) throws {
        self.model = model
        self.spec = spec
        self.plan = plan
        self.dataset = dataset
        self.checkpoints = checkpoints
        self.emit = emit
        self.direction = direction
        self.initial = initial
        self.original = original
        arena = try Arena(capacity: memory.arena(plan.shape))
        step = try TrainStep(
            model: model, memory: memory, shape: plan.shape, kernels: kernels, arena: arena,
            spillDirectory: spillDirectory)
        adapters = step.adapters
        optimizer = AdamW(
            adapters.layout.trained, plan.shape.optimizer, arena: arena)
        precondition(arena.used == arena.capacity, "the plan has \(arena.capacity.bytes) bytes, the step took \(arena.used.bytes)")
        order = DataOrder(sampleCount: dataset.training.count, spec: spec)
    }

    package func run() throws -> RunOutcome {
        // Stopped before there was anything to keep.
        guard try begin() else { return .stopped(step: 0) }
        var permutation: (epoch: Int, order: [Int])?
        var checkpointed: Int? = state.step
        // Whatever was under way is dropped whole, and done again on resume.
        func stopped() throws -> RunOutcome {
            if checkpointed != state.step || state.step == 0 { try checkpoint() }
            return .stopped(step: state.step)
        }
        while true {
            if state.evaluationIsDue, try !evaluate() { return try stopped() }
            guard state.step < order.totalSteps, !state.endedEarly else { break }
            if state.step % spec.saveSteps == 0, checkpointed != state.step {
                try checkpoint()
                checkpointed = state.step
            }
            let epoch = order.epoch(state.step)
            if permutation?.epoch != epoch { permutation = (epoch, order.permutation(epoch: epoch)) }
            switch try trainStep(order.samples(step: state.step, permutation: permutation!.order)) {
            case .stopped: return try stopped()
            case .finished:
                // A checkpoint of this step may be there that does not know of its end.
                checkpointed = nil
                state.endedEarly = true
                state.evaluationIsDue = !dataset.heldOut.isEmpty && state.evaluations.last?.step != state.step
            case .done(let done):
                state.step += 1
                state.lastLoss = done.loss
                state.evaluationIsDue = isEvaluationDue()
                emit(.step(report(done, epoch: Double(state.step) / Double(order.stepsPerEpoch))))
            }
        }
        guard (0..<adapters.parameterCount).allSatisfy({ adapters.parameters[$0].isFinite }) else {
            throw TrainingError.nonFiniteAdapter(step: state.step)
        }
        // Published from here on; a crash before the artifact is in place does this much again, not the training.
        if checkpointed != state.step { try checkpoint() }
        return .finished(try finish())
    }

    /// - Returns: false when it was asked to stop.
    private func begin() throws -> Bool {
        try step.measureSmoothing(smoothingSamples)
        let (found, notes) = try checkpoints.restore(into: adapters, optimizer)
        for note in notes { emit(.log(note)) }
        if let found {
            state = found
            emit(.log("resumed after step \(state.step)"))
        } else {
            if let initial {
                try initial().load(into: adapters, model.spec)
            } else {
                adapters.initialize(seed: spec.seed)
                switch spec.adapter.start {
                case .kaiming, .gaussian, .orthogonal: break
                case .eva: guard try startByInputs() else { return false }
                case .loftq: guard try startByDifference() else { return false }
                }
            }
            if !dataset.heldOut.isEmpty {
                guard let evaluation = try measure() else { return false }
                state.evaluations.append(evaluation)
                emit(.evaluation(evaluation, isBest: false))
            }
        }
        return true
    }

    /// Over the samples of the first epoch, and no further than it takes.
    ///
    /// - Returns: false when it was asked to stop.
    private func startByInputs() throws -> Bool {
        let start = try EVAStart(adapters, seed: spec.seed)
        let permutation = order.permutation(epoch: 0)
        for index in 0..<order.stepsPerEpoch {
            for sample in order.samples(step: index, permutation: permutation) {
                guard startGoesOn() else { return false }
                try start.add(dataset.training[sample], step)
            }
            if start.endStep() { break }
        }
        emit(.log(start.finish()))
        return true
    }

    /// - Returns: false when it was asked to stop.
    private func startByDifference() throws -> Bool {
        guard let original else { preconditionFailure("a loftq start without the original model") }
        // What was measured may have them all in memory; the start reads its own.
        model.releaseResidentWeights()
        let start = try LoftQStart(adapters, base: model, original: original, seed: spec.seed)
        guard let outcome = try start.run(on: step.pool, goesOn: startGoesOn) else { return false }
        emit(.log(outcome.summary))
        return true
    }

    private func startGoesOn() -> Bool {
        switch direction(.adapterStart) {
        // An adapter of no step is no result.
        case .goOn, .finish: return true
        case .giveBack: model.releaseResidentWeights()
        case .stop: return false
        }
        return true
    }

    /// The first samples that the run sees: some hundred tokens show a model's outlying channels.
    private var smoothingSamples: [TokenizedSample] {
        let firstStep = order.samples(step: 0, permutation: order.permutation(epoch: 0)).map { dataset.training[$0] }
        return packed(firstStep, tokenBudget: 512, tokens: \.tokens.count)[0]
    }

    private struct StepResult {
        let loss: Double, learningRate: Double, gradNorm: Double, tokens: Int
    }

    private enum StepOutcome {
        case done(StepResult)
        /// Asked to, before the step was done.
        case stopped, finished
    }

    private func trainStep(_ indices: ArraySlice<Int>) throws -> StepOutcome {
        let samples = indices.map { dataset.training[$0] }
        let lossTokens = Dataset.lossTokens(samples)
        let stepKey = RandomSource(seed: spec.seed, .dropout, UInt64(state.step)).streamKey
        let rank = spec.adapter.method.drawsRank
            ? 1 + RandomSource(seed: spec.seed, .rank).integer(state.step, below: spec.adapter.rank) : nil
        step.clearGradients()
        var (loss, squares) = (0.0, 0.0)
        var firstSample = 0
        for batch in packed(samples, tokenBudget: plan.tokenBudget, tokens: \.tokens.count) {
            switch direction(.training) {
            case .goOn: break
            case .giveBack: model.releaseResidentWeights()
            case .stop: return .stopped
            // An adapter of no step is no result.
            case .finish: if state.step > 0 { return .finished }
            }
            // The mean over the whole step's loss tokens: however samples are parted, the gradient is the same.
            try step.accumulate(
                MicroBatch(batch), lossScale: 1 / Float(max(1, lossTokens)),
                masks: spec.adapter.dropout > 0 ? DropoutMasks(stepKey: stepKey, firstSample: firstSample) : nil, rank: rank,
                loss: &loss
            ) { layer, loss in
                guard plan.shape.gradients == .oneLayer else { return }
                squares += try apply(
                    adapters.layerRanges[layer], adapters.layerGradients(layer),
                    loss: loss / Double(max(1, lossTokens)), indices)
                step.clearGradients()
            }
            guard loss.isFinite else {
                throw TrainingError.nonFinite(
                    step: state.step + 1, loss: loss, gradNorm: nil,
                    samples: Array(indices.dropFirst(firstSample).prefix(batch.count)))
            }
            firstSample += batch.count
        }
        let mean = loss / Double(max(1, lossTokens))
        if plan.shape.gradients == .allLayers {
            squares = try apply(
                0..<adapters.trainedCount, adapters.gradients, loss: mean, indices)
        }
        return .done(
            StepResult(
                loss: mean, learningRate: spec.learningRate(step: state.step, of: order.totalSteps),
                gradNorm: squares.squareRoot(), tokens: samples.reduce(0) { $0 + $1.tokens.count }))
    }

    /// Updates some of the block's elements; returns the sum of their gradients' squares.
    ///
    /// - Parameters:
    ///   - gradients: of these elements.
    ///   - samples: of the step, for the error.
    private func apply(
        _ elements: Range<Int>, _ gradients: UnsafePointer<Float>, loss: Double, _ samples: ArraySlice<Int>
    ) throws -> Double {
        let squares = sumOfSquares(gradients, count: elements.count, kernels: step.kernels)
        // Before the update: what it would change stays as it was when a number goes wrong.
        guard loss.isFinite, squares.isFinite else {
            throw TrainingError.nonFinite(
                step: state.step + 1, loss: loss, gradNorm: squares.squareRoot(), samples: Array(samples))
        }
        optimizer.update(
            elements: elements, parameters: adapters.parameters, gradients: gradients,
            gradientScale: AdamW.clipping(norm: squares.squareRoot(), spec), step: state.step,
            learningRate: spec.learningRate(step: state.step, of: order.totalSteps), spec, on: step.pool)
        adapters.parametersChanged()
        return squares
    }

    private func report(_ done: StepResult, epoch: Double) -> StepReport {
        StepReport(
            step: state.step, totalSteps: order.totalSteps, epoch: epoch, loss: done.loss,
            learningRate: done.learningRate, gradNorm: done.gradNorm, tokens: done.tokens,
            evalLoss: state.evaluations.last?.loss, bestEvalLoss: state.bestEvaluation?.loss)
    }

    private func isEvaluationDue() -> Bool {
        guard !dataset.heldOut.isEmpty else { return false }
        return state.step % (spec.evalSteps ?? order.stepsPerEpoch) == 0 || state.step == order.totalSteps
    }

    /// - Returns: false when it was asked to stop; the evaluation is then still due.
    private func evaluate() throws -> Bool {
        guard let evaluation = try measure() else { return false }
        state.evaluationIsDue = false
        // The base itself (step 0) is no candidate: an adapter of zeros is not a result.
        let isBest = evaluation.loss < state.bestEvaluation?.loss ?? .infinity
        state.evaluations.append(evaluation)
        if isBest {
            // Before anything names it.
            try checkpoints.writeBest(adapters, step: evaluation.step)
            state.bestEvaluation = evaluation
            state.evaluationsWithoutImprovement = 0
        } else {
            state.evaluationsWithoutImprovement += 1
        }
        if let patience = spec.earlyStoppingPatience, state.evaluationsWithoutImprovement >= patience {
            state.endedEarly = true
        }
        emit(.evaluation(evaluation, isBest: isBest))
        return true
    }

    private struct Stopped: Error {}

    /// Nil when asked to stop.
    private func measure() throws -> Evaluation? {
        func heed() throws {
            switch direction(.evaluation) {
            // The end of a run has an evaluation, too.
            case .goOn, .finish: break
            case .giveBack: model.releaseResidentWeights()
            case .stop: throw Stopped()
            }
        }
        do {
            try heed()
            let (loss, tokens) = try step.heldOutLoss(dataset.heldOut, tokenBudget: plan.tokenBudget) { _ in try heed() }
            guard loss.isFinite else { throw TrainingError.nonFiniteEvaluation(step: state.step, loss: loss) }
            return Evaluation(step: state.step, loss: loss, tokens: tokens)
        } catch is Stopped {
            return nil
        }
    }

    private func checkpoint() throws {
        try checkpoints.write(state, adapters, optimizer)
        emit(.checkpoint(step: state.step))
    }

    /// The adapter as files have it. Ends the run: all its other memory is given back first.
    package func takeTensors() -> [AdapterTensor] {
        model.releaseResidentWeights()
        arena.discard(after: adapters.parameters + adapters.parameterCount)
        return adapters.tensors(model.spec)
    }

    /// After `run` has thrown that a number is not finite: leaves the best adapter so far in `adapters`. Nil when none has
    /// been measured.
    package func salvage() throws -> FinishedRun? {
        guard state.bestEvaluation != nil else { return nil }
        state.endedEarly = true
        return try finish()
    }

    /// Leaves the adapter to publish in `adapters`.
    private func finish() throws -> FinishedRun {
        if let best = state.bestEvaluation { try checkpoints.restoreBest(into: adapters, step: best.step) }
        return FinishedRun(
            steps: state.step, totalSteps: order.totalSteps, keptStep: state.bestEvaluation?.step ?? state.step,
            evaluations: state.evaluations, endedEarly: state.endedEarly, lastLoss: state.lastLoss)
    }
}
