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
    /// Without a backward: the size of the gradient along the step's direction.
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

/// A job's way through the steps of a `TrainingGroup`.
package final class TrainingRun {
    package let adapters: AdapterSet
    private let model: BaseModel
    private let step: TrainStep
    /// Number of the job in the step.
    private let job: Int
    private let gradients: AdapterSet.GradientExtent
    private let optimizer: AdamW
    private let allocator: RankAllocator?
    /// Of the training samples, and then of the held-out ones.
    private let cache: ActivationCache?
    private let spec: TrainingSpec
    private let tokenBudget: Int
    private let dataset: Dataset
    private let order: DataOrder
    private let checkpoints: CheckpointStore
    private let emit: (TrainingEvent) -> Void
    private let direction: (MicroBatchPurpose) -> RunDirection
    /// Asked for once, when the run begins and is not resumed.
    private let initial: (() throws -> LoadedAdapter)?
    private let original: BaseModel?
    private var state = RunState()
    private var isResumed = false
    private var hasBegun = false
    private var permutation: (epoch: Int, order: [Int])?
    /// Step of the last checkpoint; nil: there is none that says all.
    private var checkpointed: Int?
    private var underWay: StepUnderWay?

    /// What one job of a group is.
    package struct Job {
        let spec: TrainingSpec
        let dataset: Dataset
        /// Samples of a step are packed up to so many tokens.
        let tokenBudget: Int
        /// Most bytes of disk for cached activations, and their directory.
        let cache: (limit: ByteCount, directory: String)
        let checkpoints: CheckpointStore
        let initial: (() throws -> LoadedAdapter)?
        let original: BaseModel?
        let emit: (TrainingEvent) -> Void
        let direction: (MicroBatchPurpose) -> RunDirection

        /// - Parameters:
        ///   - cache: used where the specification has a cache of activations.
        ///   - checkpoints: where resumable state is written and found.
        ///   - initial: the adapter that a run begins from, read when it begins; nil: PEFT's start.
        ///   - original: what the base was quantised from, for the loftq start.
        ///   - direction: asked before every micro-batch.
        package init(
            spec: TrainingSpec, dataset: Dataset, tokenBudget: Int, cache: (limit: ByteCount, directory: String) = (.zero, ""),
            checkpoints: CheckpointStore, initial: (() throws -> LoadedAdapter)? = nil, original: BaseModel? = nil,
            emit: @escaping (TrainingEvent) -> Void, direction: @escaping (MicroBatchPurpose) -> RunDirection
        ) {
            self.spec = spec
            self.dataset = dataset
            self.tokenBudget = tokenBudget
            self.cache = cache
            self.checkpoints = checkpoints
            self.initial = initial
            self.original = original
            self.emit = emit
            self.direction = direction
        }
    }

    /// - Parameters:
    ///   - longest: tokens of a sample, as planned.
    ///   - arena: has room for the moments, for what the ranks are allocated by, and for the activation cache.
    init(
        _ job: Job, number: Int, of step: TrainStep, model: BaseModel, optimizer: OptimizerState, gradients: AdapterSet.GradientExtent,
        longest: Int, arena: Arena
    ) throws {
        self.model = model
        self.step = step
        self.job = number
        self.gradients = gradients
        adapters = step.adapters[number]
        spec = job.spec
        tokenBudget = job.tokenBudget
        dataset = job.dataset
        checkpoints = job.checkpoints
        emit = job.emit
        direction = job.direction
        initial = job.initial
        original = job.original
        order = DataOrder(sampleCount: dataset.training.count, spec: spec)
        // Without gradients there is nothing to remember of them.
        self.optimizer = AdamW(gradients == .forwardOnly ? [] : adapters.layout.trained, optimizer, arena: arena)
        precondition(gradients != .forwardOnly || ZerothOrder.isPossible(with: spec.adapter.method))
        allocator = try RankAllocator(adapters, totalSteps: order.totalSteps, arena: arena)
        cache = try spec.activationCache.map { [dataset] format in
            try ActivationCache(
                format, lengths: (dataset.training + dataset.heldOut).map(\.tokens.count), longest: longest, limit: job.cache.limit,
                directory: job.cache.directory, model.spec, arena: arena)
        }
    }

    private func cached(_ samples: [Int]) -> CachedSamples? {
        cache.map { CachedSamples(cache: $0, numbers: samples, layer: adapters.lowestLayer) }
    }

    /// What a run does next.
    enum Turn {
        /// It goes through the step, and then to `take`.
        case microBatch(JobMicroBatch)
        case ended(RunOutcome)
    }

    /// The adapter, its moments and the run's state, from a checkpoint or as they begin.
    func load() throws {
        let (found, notes) = try checkpoints.restore(into: adapters, optimizer, allocator)
        for note in notes { emit(.log(note)) }
        if let found {
            state = found
            isResumed = true
            checkpointed = state.step
            emit(.log("resumed after step \(state.step)"))
        } else if let initial {
            try initial().load(into: adapters, model.spec)
        } else {
            try step.initialize(seed: spec.seed, job: job)
        }
    }

    /// Does whatever comes before the next micro-batch: checkpoints, evaluations, the step's beginning.
    func next() throws -> Turn {
        if !hasBegun {
            guard try begin() else { return .ended(.stopped(step: 0)) }
            hasBegun = true
        }
        while true {
            if let underWay {
                switch direction(.training) {
                case .goOn: return .microBatch(work(underWay))
                case .giveBack:
                    model.releaseResidentWeights()
                    return .microBatch(work(underWay))
                // Whatever was under way is dropped whole, and done again on resume.
                case .stop: return .ended(try stop())
                case .finish:
                    // An adapter of no step is no result.
                    guard state.step > 0 else { return .microBatch(work(underWay)) }
                    self.underWay = nil
                    // A checkpoint of this step may be there that does not know of its end.
                    checkpointed = nil
                    state.endedEarly = true
                    state.evaluationIsDue = !dataset.heldOut.isEmpty && state.evaluations.last?.step != state.step
                }
            }
            if state.evaluationIsDue, try !evaluate() { return .ended(try stop()) }
            guard state.step < order.totalSteps, !state.endedEarly else { return .ended(.finished(try end())) }
            if state.step % spec.saveSteps == 0, checkpointed != state.step { try checkpoint() }
            beginStep()
        }
    }

    /// - Returns: false when it was asked to stop.
    private func begin() throws -> Bool {
        guard try beginAdapter() else { return false }
        // They are lengths of the model's rows, and not of what a perturbation has made of a zero.
        if gradients == .forwardOnly, adapters.layout.hasMagnitudes {
            var loss = 0.0
            try step.evaluate(MicroBatch([dataset.training[0]]), job: job, loss: &loss)
        }
        return true
    }

    /// - Returns: false when it was asked to stop.
    private func beginAdapter() throws -> Bool {
        guard !isResumed else { return true }
        if initial == nil {
            switch spec.adapter.start {
            case .kaiming, .gaussian, .orthogonal: break
            case .eva: guard try startByInputs() else { return false }
            case .loftq: guard try startByDifference() else { return false }
            }
            if spec.adapter.method.virtualTokenStart == .samples { try step.startVirtualTokens(firstTokens(adapters.layout.virtualTokens), job: job) }
        }
        guard !dataset.heldOut.isEmpty else { return true }
        guard let evaluation = try measure() else { return false }
        state.evaluations.append(evaluation)
        emit(.evaluation(evaluation, isBest: false))
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

    /// Of the training samples, one after the other, and then again.
    private func firstTokens(_ count: Int) -> [TokenID] {
        let before = spec.adapter.promptTokens
        var tokens: [TokenID] = []
        while tokens.count < count {
            for sample in dataset.training where tokens.count < count { tokens += sample.tokens.dropFirst(before).prefix(count - tokens.count) }
        }
        return tokens
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

    private func stop() throws -> RunOutcome {
        if checkpointed != state.step || state.step == 0 { try checkpoint() }
        return .stopped(step: state.step)
    }

    private func end() throws -> FinishedRun {
        guard (0..<adapters.parameterCount).allSatisfy({ adapters.parameters[$0].isFinite }) else {
            throw TrainingError.nonFiniteAdapter(step: state.step)
        }
        // Published from here on; a crash before the artifact is in place does this much again, not the training.
        if checkpointed != state.step { try checkpoint() }
        return try finish()
    }

    // MARK: steps

    /// A step whose micro-batches are not all done.
    private struct StepUnderWay {
        /// Of the training samples.
        let indices: ArraySlice<Int>
        let batches: [[TokenizedSample]]
        let lossTokens: Int
        let tokens: Int
        let stepKey: UInt64
        let rank: Int?
        /// Micro-batches that are done, and their samples.
        var done = 0
        var doneSamples = 0
        var loss = 0.0
        /// Of the gradients that were applied layer by layer.
        var squares = 0.0
        /// Without a backward, once all micro-batches have been at θ + ε·z: Σ nll of them there.
        var lossAhead: Double?

        func mean(_ loss: Double) -> Double { loss / Double(max(1, lossTokens)) }
    }

    /// The mean over the whole step's loss tokens: however samples are parted, the gradient is the same.
    private func work(_ now: StepUnderWay) -> JobMicroBatch {
        let batch = now.batches[now.done]
        return JobMicroBatch(
            job: job, MicroBatch(batch), lossScale: 1 / Float(max(1, now.lossTokens)), sampleShare: 1 / Float(now.indices.count),
            masks: spec.adapter.dropout > 0 ? DropoutMasks(stepKey: now.stepKey, firstSample: now.doneSamples) : nil, rank: now.rank,
            cached: cached(Array(now.indices.dropFirst(now.doneSamples).prefix(batch.count))), perturbation: perturbation(now),
            addingTo: now.loss)
    }

    private func perturbation(_ now: StepUnderWay) -> Perturbation? {
        guard gradients == .forwardOnly else { return nil }
        let epsilon = spec.zerothOrderEpsilon
        return Perturbation(
            ZerothOrder.direction(seed: spec.seed, step: state.step), distance: now.lossAhead == nil ? epsilon : -epsilon)
    }

    private func beginStep() {
        let epoch = order.epoch(state.step)
        if permutation?.epoch != epoch { permutation = (epoch, order.permutation(epoch: epoch)) }
        let indices = order.samples(step: state.step, permutation: permutation!.order)
        let samples = indices.map { dataset.training[$0] }
        underWay = StepUnderWay(
            indices: indices, batches: packed(samples, tokenBudget: tokenBudget, tokens: \.tokens.count),
            lossTokens: Dataset.lossTokens(samples), tokens: samples.reduce(0) { $0 + $1.tokens.count },
            stepKey: RandomSource(seed: spec.seed, .dropout, UInt64(state.step)).streamKey,
            rank: spec.adapter.method.drawsRank
                ? 1 + RandomSource(seed: spec.seed, .rank).integer(state.step, below: spec.adapter.rank) : nil)
        step.clearGradients(job: job)
    }

    /// Applies the gradients of a layer, where those of one layer exist at a time.
    func finish(layer: Int, _ work: JobMicroBatch) throws {
        guard gradients == .oneLayer, let now = underWay else { return }
        underWay?.squares += try apply(
            adapters.layerRanges[layer], adapters.layerGradients(layer), loss: now.mean(work.loss), now.indices)
        adapters.layerGradients(layer).update(repeating: 0, count: adapters.layerRanges[layer].count)
    }

    /// The step has done a micro-batch of this run.
    func take(_ work: JobMicroBatch) throws {
        guard var now = underWay else { preconditionFailure("a micro-batch of no step") }
        let count = now.batches[now.done].count
        guard work.loss.isFinite else {
            throw TrainingError.nonFinite(
                step: state.step + 1, loss: work.loss, gradNorm: nil, samples: Array(now.indices.dropFirst(now.doneSamples).prefix(count)))
        }
        now.done += 1
        now.doneSamples += count
        now.loss = work.loss
        guard now.done == now.batches.count else {
            underWay = now
            return
        }
        var mean = now.mean(now.loss)
        switch gradients {
        case .allLayers: now.squares = try apply(0..<adapters.trainedCount, adapters.gradients, loss: mean, now.indices)
        case .oneLayer: break
        case .forwardOnly:
            guard let ahead = now.lossAhead else {
                (now.lossAhead, now.loss, now.done, now.doneSamples) = (now.loss, 0, 0, 0)
                underWay = now
                return
            }
            let losses = ZerothOrder.Losses(ahead: now.mean(ahead), behind: mean)
            let slope = descend(losses)
            (mean, now.squares) = (losses.mean, slope * slope)
        }
        allocator?.allocate(step: state.step, on: step.pool)
        underWay = nil
        let rate = learningRate
        state.step += 1
        state.lastLoss = mean
        state.evaluationIsDue = isEvaluationDue()
        emit(
            .step(
                StepReport(
                    step: state.step, totalSteps: order.totalSteps, epoch: Double(state.step) / Double(order.stepsPerEpoch), loss: mean,
                    learningRate: rate, gradNorm: now.squares.squareRoot(), tokens: now.tokens,
                    evalLoss: state.evaluations.last?.loss, bestEvalLoss: state.bestEvaluation?.loss)))
    }

    private var learningRate: Double { spec.learningRate(step: state.step, of: order.totalSteps) }

    /// Returns the gradient along the step's direction. Two finite losses have a finite one.
    private func descend(_ losses: ZerothOrder.Losses) -> Double {
        let slope = losses.slope(epsilon: spec.zerothOrderEpsilon)
        adapters.descend(
            along: ZerothOrder.direction(seed: spec.seed, step: state.step), slope: slope * AdamW.clipping(norm: abs(slope), spec),
            learningRate: learningRate, weightDecay: spec.weightDecay, on: step.pool)
        return slope
    }

    /// Updates some of the block's elements; returns the sum of their gradients' squares.
    ///
    /// - Parameters:
    ///   - gradients: of these elements.
    ///   - samples: of the step, for the error.
    private func apply(
        _ elements: Range<Int>, _ gradients: UnsafeMutablePointer<Float>, loss: Double, _ samples: ArraySlice<Int>
    ) throws -> Double {
        allocator?.addOrthogonality(elements, to: gradients, on: step.pool)
        let squares = sumOfSquares(gradients, count: elements.count, kernels: step.kernels)
        // Before the update: what it would change stays as it was when a number goes wrong.
        guard loss.isFinite, squares.isFinite else {
            throw TrainingError.nonFinite(
                step: state.step + 1, loss: loss, gradNorm: squares.squareRoot(), samples: Array(samples))
        }
        let clipping = AdamW.clipping(norm: squares.squareRoot(), spec)
        optimizer.update(
            elements: elements, parameters: adapters.parameters, gradients: gradients, gradientScale: clipping, step: state.step,
            learningRate: learningRate, spec, on: step.pool)
        allocator?.measure(elements, gradients: gradients, gradientScale: clipping, step: state.step, on: step.pool)
        adapters.parametersChanged()
        return squares
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
            let (loss, tokens) = try step.heldOutLoss(
                dataset.heldOut, job: job, tokenBudget: tokenBudget,
                cached: { self.cached($0.map { self.dataset.training.count + $0 }) }, progress: { _ in try heed() })
            guard loss.isFinite else { throw TrainingError.nonFiniteEvaluation(step: state.step, loss: loss) }
            return Evaluation(step: state.step, loss: loss, tokens: tokens)
        } catch is Stopped {
            return nil
        }
    }

    private func checkpoint() throws {
        try checkpoints.write(state, adapters, optimizer, allocator)
        checkpointed = state.step
        emit(.checkpoint(step: state.step))
    }

    /// After the run has failed because a number is not finite: leaves the best adapter so far in `adapters`. Nil when none has
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
