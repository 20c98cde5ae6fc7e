// How a run will use its memory: the fastest way that fits the budget, with what was traded for it, or a refusal with the
// numbers. Everything that is traded is exact, so the adapter has the same bits in
// every plan, but for what is taken where nothing exact fits: 8-bit optimizer state, and layer inputs in bf16.
import EdgeModel
import EdgeTensor

package struct TrainingPlan: Equatable, Sendable {
    /// One thing that was traded for memory.
    package struct Trade: Equatable, Sendable {
        package let what: String
        /// How much larger the peak would be without it.
        package let saves: ByteCount
        /// How much longer a step is predicted to take than without it, as a share; nil where the board has not been measured.
        package let costs: Double?

        /// For people: "recompute every layer in the backward (saves 238 MiB, +19 % time)".
        package var text: String {
            "\(what) (saves \(saves.mebibytes) MiB" + (costs.map { ", +\(Int(($0 * 100).rounded())) % time" } ?? "") + ")"
        }
    }

    package var shape: StepShape
    /// Samples of a step are packed up to so many tokens; by job.
    package var tokenBudgets: [Int]
    /// Of the job that has most.
    package let microBatchesPerStep: Int
    package let pools: [MemoryModel.Pool]
    package let peak: ByteCount
    package let budget: ByteCount
    package let trades: [Trade]
    /// Bytes of disk beside the checkpoints.
    package let spill: ByteCount
    /// Of it, what the activation cache may have.
    package let cache: ByteCount
    /// Of the whole run, or of the jobs' to the end of the last; nil where the board has not been measured.
    package var seconds: Double? { isMeasured ? duration : nil }
    /// The same, in units of a common board where this one has not been measured: to compare plans by.
    package let duration: Double
    private let isMeasured: Bool
    /// Tokens of all steps of all jobs.
    package let tokens: Double

    fileprivate init(
        shape: StepShape, tokenBudgets: [Int], microBatchesPerStep: Int, pools: [MemoryModel.Pool], peak: ByteCount, budget: ByteCount,
        trades: [Trade], spill: ByteCount, cache: ByteCount, duration: Double, isMeasured: Bool, tokens: Double
    ) {
        self.shape = shape
        self.tokenBudgets = tokenBudgets
        self.microBatchesPerStep = microBatchesPerStep
        self.pools = pools
        self.peak = peak
        self.budget = budget
        self.trades = trades
        self.spill = spill
        self.cache = cache
        self.duration = duration
        self.isMeasured = isMeasured
        self.tokens = tokens
    }

    /// Of the only job.
    package var tokenBudget: Int {
        get { tokenBudgets[0] }
        set { tokenBudgets = [newValue] }
    }
}

/// A change of the job that would make it fit, as a line of a job file.
package struct FittingChange: Equatable, Sendable {
    package let line: String
    package let note: String
    package init(line: String, note: String) {
        self.line = line
        self.note = note
    }
}

package enum PlanError: Error, Equatable, CustomStringConvertible {
    /// The smallest plan needs `needed`.
    case doesNotFit(needed: ByteCount, budget: ByteCount, changes: [FittingChange])

    package var description: String {
        switch self {
        case .doesNotFit(let needed, let budget, let changes):
            "needs \(needed.mebibytes) MiB at least, the budget is \(budget.mebibytes) MiB"
                + (changes.isEmpty ? "" : "; would fit: " + changes.map(\.line).joined(separator: ", or "))
        }
    }
}

extension ByteCount {
    /// Rounded up, for people.
    package var mebibytes: Int { (bytes + 1 << 20 - 1) >> 20 }
}

/// What the planner may use.
package struct PlanLimits: Sendable {
    package var budget: ByteCount
    package var threads: Int
    package var compute: ComputeType
    /// How the job wants the optimizer's moments stored; nil: f32, or 8 bits where nothing else fits.
    package var optimizer: OptimizerState?
    /// Of disk, for layer inputs.
    package var spill: ByteCount
    /// Whether gradients may be applied layer by layer: no clipping by a norm of them all.
    package var appliesLayerByLayer: Bool
    /// Nil: not measured.
    package var calibration: Calibration?
    /// Whether the model's file stays in the page cache beside the job.
    package var weightsAreCached: Bool
    /// Whether there may be steps without a backward.
    package var zerothOrder: ZerothOrderUse

    package init(
        budget: ByteCount, threads: Int, compute: ComputeType, optimizer: OptimizerState?, spill: ByteCount,
        appliesLayerByLayer: Bool, calibration: Calibration?, weightsAreCached: Bool, zerothOrder: ZerothOrderUse = .never
    ) {
        self.zerothOrder = zerothOrder
        self.budget = budget
        self.threads = threads
        self.compute = compute
        self.optimizer = optimizer
        self.spill = spill
        self.appliesLayerByLayer = appliesLayerByLayer
        self.calibration = calibration
        self.weightsAreCached = weightsAreCached
    }
}

extension TrainingPlan {
    /// Of all ways to run the job whose peak is within the budget, the one that is predicted to be fastest; of two that are
    /// equally fast, the one with fewer trades.
    package static func make(_ memory: MemoryModel, lengths: SampleLengths, _ limits: PlanLimits) throws -> TrainingPlan {
        let planner = Planner(memory, [lengths], limits)
        guard let best = planner.fastest(within: limits.budget) else {
            throw PlanError.doesNotFit(
                needed: planner.smallestPeak, budget: limits.budget, changes: planner.fittingChanges())
        }
        return planner.plan(best)
    }

    /// The least peak of steps without a backward; nil: the method needs one.
    package static func leastPeakWithoutBackward(_ memory: MemoryModel, lengths: SampleLengths, _ limits: PlanLimits) -> ByteCount? {
        Planner(memory, [lengths], limits).leastWithoutBackward
    }

    /// The fastest way to run jobs together, with the bits that each has alone; nil: there is none within the budget.
    ///
    /// - Parameters:
    ///   - memory: made of the jobs' own, with the moments of their own plans.
    ///   - lengths: by job.
    package static func together(_ memory: MemoryModel, lengths: [SampleLengths], _ limits: PlanLimits) -> TrainingPlan? {
        let planner = Planner(memory, lengths, limits)
        return planner.fastest(within: limits.budget).map(planner.plan)
    }
}

/// One way to run a job, or several together.
private struct Candidate {
    var shape: StepShape
    var batches: JobBatches
    var microBatchesPerStep: Int { batches.sizes.map(\.perStep).max()! }
}

/// Micro-batches with a token budget: the largest of each job.
private struct JobBatches {
    let tokenBudgets: [Int]
    var sizes: [MicroBatchSize]

    init(_ lengths: [SampleLengths], tokenBudgets: [Int]) {
        self.tokenBudgets = tokenBudgets
        sizes = zip(lengths, tokenBudgets).map { $0.largestMicroBatch(tokenBudget: $1) }
    }

    var tokens: Int { sizes.reduce(0) { $0 + $1.tokens } }
    var lossTokens: Int { sizes.reduce(0) { $0 + $1.lossTokens } }
}

private struct Planner {
    let memory: MemoryModel
    /// By job.
    let lengths: [SampleLengths]
    let limits: PlanLimits
    /// Largest first.
    private let batches: [JobBatches]
    private var longest: Int { lengths.map(\.longest).max()! }

    /// Packed tokens that are worth trying: beyond the first, products gain nothing.
    private static let tokenBudgets = [2048, 1024, 512, 256]
    /// Not below `outerProductTokens`.
    private static let mlpTokens = [1024, 512, 256]
    /// Flash wears with every write, which no time shows: a file has to be worth a twentieth of the run.
    private static let wear = 1.05
    private static let lossChunks = [1024, 512, 256, 128, 96, 64, 48, 32, 16]

    init(_ memory: MemoryModel, _ lengths: [SampleLengths], _ limits: PlanLimits) {
        self.memory = memory
        self.lengths = lengths
        self.limits = limits
        // No less than the longest sample, and no more than a step has.
        let budgets = Set((Self.tokenBudgets + [0]).map { budget in
            lengths.map { min(max(budget, $0.longest), max($0.longest, $0.mostStepTokens)) }
        })
        batches = budgets.sorted { $0.reduce(0, +) > $1.reduce(0, +) }.map { JobBatches(lengths, tokenBudgets: $0) }
    }

    func plan(_ best: Candidate) -> TrainingPlan {
        TrainingPlan(
            shape: best.shape, tokenBudgets: best.batches.tokenBudgets, microBatchesPerStep: best.microBatchesPerStep,
            pools: memory.pools(best.shape), peak: memory.peak(best.shape), budget: limits.budget,
            trades: trades(best), spill: memory.spill(best.shape) + cache(best.shape), cache: cache(best.shape),
            duration: seconds(best), isMeasured: limits.calibration != nil,
            tokens: lengths.reduce(0) { $0 + $1.meanStepTokens * Double($1.totalSteps) })
    }

    /// As much as there is room for: what is not cached is computed again.
    private func cache(_ shape: StepShape) -> ByteCount {
        guard let cache = memory.cache else { return .zero }
        let room = max(0, limits.spill.bytes - memory.spill(shape).bytes)
        return min(ByteCount(room), ActivationCache.fileBytes(cache.format, tokens: cache.tokens, memory.spec))
    }

    /// Of a run's tokens, those that are met again with what the layers below the adapted ones made of them on disk.
    private func cachedShare(_ shape: StepShape) -> Double {
        guard let cache = memory.cache else { return 0 }
        let all = ActivationCache.fileBytes(cache.format, tokens: cache.tokens, memory.spec)
        return max(0, 1 - 1 / lengths[0].epochs) * Double(self.cache(shape).bytes) / Double(max(1, all.bytes))
    }

    /// What int8 products are smoothed by goes through the step, too, and what virtual tokens begin as.
    private var leastTokens: Int { max(memory.startTokens, limits.compute == .int8 ? SmoothingText.pieceTokens : 0) }

    /// Without kept layers, weights resident, layer inputs in memory.
    private func candidate(_ batch: JobBatches, lossChunk: Int) -> Candidate {
        var one = Candidate(
            shape: StepShape(
                tokens: max(batch.tokens, leastTokens), longestSample: max(longest, leastTokens),
                lossChunk: min(lossChunk, max(1, batch.lossTokens)), keptLayers: 0, threads: limits.threads, compute: limits.compute,
                optimizer: limits.optimizer ?? .f32),
            batches: batch)
        if limits.appliesLayerByLayer && one.microBatchesPerStep == 1 { one.shape.gradients = .oneLayer }
        return one
    }

    /// Every way but for the number of kept layers, fewest trades first: those with the adapter's exact bits, those that round what is
    /// kept between steps or between passes, and at last another algorithm.
    private var tiers: [[Candidate]] {
        switch limits.zerothOrder {
        case .never: return tiersWithBackward
        case .whereNothingElseFits: return tiersWithBackward + [forwardOnly]
        case .always:
            precondition(hasForwardOnly, "a method that needs a backward, without one")
            return [forwardOnly]
        }
    }

    private var hasForwardOnly: Bool { memory.layouts.allSatisfy { ZerothOrder.isPossible(with: $0.spec.method) } }

    /// Of steps without a backward.
    private var forwardOnly: [Candidate] { hasForwardOnly ? candidates([.memory]).map(Self.withoutBackward) : [] }

    var leastWithoutBackward: ByteCount? { forwardOnly.map { memory.peak($0.shape) }.min() }

    private static func withoutBackward(_ candidate: Candidate) -> Candidate {
        var one = candidate
        (one.shape.gradients, one.shape.optimizer, one.shape.keptLayers) = (.forwardOnly, .f32, 0)
        return one
    }

    private var tiersWithBackward: [[Candidate]] {
        let exact = candidates([.memory, .file])
        // Together a job has the bits that it has alone.
        guard lengths.count == 1 else { return [exact] }
        let rounded = candidates([.memory, .file, .bf16])
        guard limits.optimizer == nil else { return [exact, rounded] }
        func inEightBits(_ candidates: [Candidate]) -> [Candidate] {
            candidates.map {
                var one = $0
                one.shape.optimizer = .eightBit
                return one
            }
        }
        return [exact, inEightBits(exact), inEightBits(rounded)]
    }

    private func candidates(_ storages: [CheckpointStorage]) -> [Candidate] {
        var all: [Candidate] = []
        for weights in WeightResidence.allCases {
            for checkpoints in storages {
                for batch in batches {
                    var chunks: Set<Int> = []
                    for lossChunk in Self.lossChunks {
                        var one = candidate(batch, lossChunk: lossChunk)
                        guard chunks.insert(one.shape.lossChunk).inserted else { continue }
                        one.shape.weights = weights
                        one.shape.checkpoints = checkpoints
                        guard memory.spill(one.shape) <= limits.spill else { continue }
                        all.append(one)
                        for mlpTokens in Self.mlpTokens where memory.partsMLP && mlpTokens < one.shape.tokens {
                            one.shape.mlpTokens = mlpTokens
                            all.append(one)
                        }
                    }
                }
            }
        }
        return all
    }

    /// What a job brings to a round in the mean, and for how many rounds.
    private struct Share {
        let job: Int
        let tokens: Double
        let lossTokens: Double
        let sampleTokens: Double
        let rounds: Double
    }

    private func shares(_ candidate: Candidate) -> [Share] {
        lengths.indices.map { job in
            let own = lengths[job], size = candidate.batches.sizes[job]
            let mean = own.meanStepTokens / Double(max(1, min(own.training.count, size.perStep)))
            // As many as the mean step's tokens fill, in the mean as full as the largest is.
            let count = max(1, (own.meanStepTokens / Double(max(1, size.tokens))).rounded(.up))
            let tokens = max(mean, own.meanStepTokens / count)
            return Share(
                job: job, tokens: tokens, lossTokens: tokens * own.meanLossShare, sampleTokens: own.meanSampleTokens,
                rounds: Double(own.totalSteps) * own.meanStepTokens / tokens)
        }
    }

    /// To the end of the last job: every round has a micro-batch of each that has not ended.
    func seconds(_ candidate: Candidate) -> Double {
        let board = limits.calibration ?? .nominal
        var (seconds, rounds) = (0.0, 0.0)
        let cachedShare = cachedShare(candidate.shape)
        var active = shares(candidate).sorted { $0.rounds < $1.rounds }[...]
        while let next = active.first {
            let tokens = active.reduce(0) { $0 + $1.tokens }
            let cost = StepCost(
                memory, candidate.shape, layouts: active.map { memory.layouts[$0.job] }, tokens: tokens,
                lossTokens: active.reduce(0) { $0 + $1.lossTokens },
                sampleTokens: active.reduce(0) { $0 + $1.sampleTokens * $1.tokens } / max(1, tokens), cachedShare: cachedShare)
            seconds += (next.rounds - rounds) * cost.seconds(board, weightsAreCached: limits.weightsAreCached)
            rounds = next.rounds
            active = active.dropFirst()
        }
        for job in lengths.indices {
            seconds += Double(lengths[job].totalSteps * memory.layouts[job].trainedCount) * perParameter(job, candidate.shape, board)
        }
        return seconds
    }

    /// Of a step's update.
    private func perParameter(_ job: Int, _ shape: StepShape, _ board: Calibration) -> Double {
        guard shape.hasBackward else { return StepCost.elementsPerDraw * board.perElement }
        return memory.optimizerState(job: job, shape) == .eightBit ? board.perParameter8Bit : board.perParameter
    }

    /// Nil when nothing fits.
    func fastest(within budget: ByteCount) -> Candidate? {
        tiers.lazy.compactMap { fastest($0, within: budget) }.first
    }

    private func fastest(_ candidates: [Candidate], within budget: ByteCount) -> Candidate? {
        var best: (candidate: Candidate, seconds: Double)?
        for var candidate in candidates {
            guard let kept = keptLayers(candidate.shape, within: budget) else { continue }
            candidate.shape.keptLayers = kept
            let seconds = seconds(candidate) * (candidate.shape.checkpoints == .file ? Self.wear : 1)
            // Half a percent is less than the prediction can tell apart.
            if seconds < 0.995 * (best?.seconds ?? .infinity) { best = (candidate, seconds) }
        }
        return best?.candidate
    }

    /// As many as fit; nil when even none is too much.
    private func keptLayers(_ shape: StepShape, within budget: ByteCount) -> Int? {
        let none = memory.peak(shape)
        guard none <= budget else { return nil }
        guard shape.hasBackward else { return 0 }
        // The peak grows with each layer, so halving finds the last that fits.
        var (low, high) = (0, memory.trainedLayers)
        while low < high {
            var more = shape
            more.keptLayers = (low + high + 1) / 2
            if memory.peak(more) <= budget { low = more.keptLayers } else { high = more.keptLayers - 1 }
        }
        return low
    }

    var smallestPeak: ByteCount { tiers.joined().map { memory.peak($0.shape) }.min()! }

    /// What the candidate has given up against the fastest way in unlimited memory, each with what it would take to have it
    /// back.
    func trades(_ chosen: Candidate) -> [TrainingPlan.Trade] {
        guard let free = fastest(within: ByteCount(.max / 4)) else { return [] }
        let (peak, seconds) = (memory.peak(chosen.shape), seconds(chosen))
        var trades: [TrainingPlan.Trade] = []
        func trade(_ what: String, _ undo: (inout Candidate) -> Void) {
            var without = chosen
            undo(&without)
            let saves = ByteCount(max(0, memory.peak(without.shape).bytes - peak.bytes))
            // What shrank only because something else did was not traded.
            guard saves > .zero else { return }
            let costs = limits.calibration.map { _ in max(0, seconds / self.seconds(without) - 1) }
            trades.append(TrainingPlan.Trade(what: what, saves: saves, costs: costs))
        }
        if !chosen.shape.hasBackward && free.shape.hasBackward {
            // Times do not compare: there is another number of steps. What it saves is against the least with a backward.
            let least = tiersWithBackward.joined().map { memory.peak($0.shape) }.min()!
            trades.append(
                TrainingPlan.Trade(
                    what: "two forwards and no backward (MeZO): 10 to 100 times as many steps, and a learning rate of its own",
                    saves: ByteCount(max(0, least.bytes - peak.bytes)), costs: nil))
        }
        let recomputed = chosen.shape.hasBackward ? memory.trainedLayers - chosen.shape.keptLayers : 0
        if recomputed > 0 {
            trade(
                recomputed == memory.trainedLayers
                    ? "recompute every layer in the backward" : "recompute \(recomputed) of \(memory.trainedLayers) layers in the backward"
            ) { $0.shape.keptLayers = memory.trainedLayers }
        }
        if chosen.shape.tokens < free.shape.tokens {
            trade("micro-batches of at most \(chosen.shape.tokens) tokens, \(chosen.microBatchesPerStep) a step") {
                $0.shape.mlpTokens = $0.shape.mlpTokens == $0.shape.tokens ? free.shape.tokens : $0.shape.mlpTokens
                $0.shape.tokens = free.shape.tokens
                $0.batches = free.batches
            }
        }
        if chosen.shape.lossChunk < free.shape.lossChunk {
            trade("loss in chunks of \(chosen.shape.lossChunk) tokens") { $0.shape.lossChunk = free.shape.lossChunk }
        }
        if chosen.shape.mlpTokens < chosen.shape.tokens {
            trade("MLPs in chunks of \(chosen.shape.mlpTokens) tokens") { $0.shape.mlpTokens = $0.shape.tokens }
        }
        if chosen.shape.weights != free.shape.weights {
            trade("base weights streamed: two parts of the model at a time") { $0.shape.weights = .resident }
        }
        if chosen.shape.checkpoints != free.shape.checkpoints {
            let what =
                chosen.shape.checkpoints == .bf16
                ? "layer inputs in bf16 (gradients are rounded)"
                : "layer inputs in a file: \(memory.spill(chosen.shape).mebibytes) MiB of disk"
            trade(what) { $0.shape.checkpoints = .memory }
        }
        if chosen.shape.optimizer != free.shape.optimizer {
            trade("optimizer state in 8 bits (updates are rounded)") { $0.shape.optimizer = free.shape.optimizer }
        }
        return trades
    }

    // MARK: refusal

    /// Whether the job would fit if it were changed so.
    private func fits(_ memory: MemoryModel, longest: Int) -> Bool {
        var batch = batches.last!
        if longest < self.longest {
            batch.sizes = [MicroBatchSize(tokens: longest, lossTokens: min(longest, batch.lossTokens), perStep: 2)]
        }
        for weights in WeightResidence.allCases {
            for checkpoints in CheckpointStorage.allCases {
                var one = candidate(batch, lossChunk: Self.lossChunks.last!)
                one.shape.longestSample = max(longest, leastTokens)
                one.shape.weights = weights
                one.shape.checkpoints = checkpoints
                one.shape.optimizer = limits.optimizer ?? .eightBit
                if memory.partsMLP { one.shape.mlpTokens = min(one.shape.tokens, outerProductTokens) }
                if limits.zerothOrder != .never, hasForwardOnly {
                    one = Self.withoutBackward(one)
                    one.shape.checkpoints = .memory
                }
                if memory.spill(one.shape) <= limits.spill && memory.peak(one.shape) <= limits.budget { return true }
            }
        }
        return false
    }

    private func changed(_ change: (inout AdapterSpec) -> Void) -> MemoryModel? {
        var adapter = memory.adapter
        change(&adapter)
        guard let modules = try? adapter.modules(of: memory.spec) else { return nil }
        return MemoryModel(
            spec: memory.spec, adapter: adapter, modules: modules, weights: memory.weights, process: memory.process,
            original: memory.original)
    }

    /// The nearest changes of one key each, and the budget that would do.
    func fittingChanges() -> [FittingChange] {
        var changes: [FittingChange] = []
        // The peak grows with the length, so halving finds the border; lengths are given in steps of eight tokens.
        var (low, high) = (0, longest / 8)
        while low < high {
            let middle = (low + high + 1) / 2
            if fits(memory, longest: middle * 8) { low = middle } else { high = middle - 1 }
        }
        if low > 0 {
            changes.append(
                FittingChange(line: "sequence_len: \(low * 8)", note: "leaves out longer samples; the longest has \(longest) tokens"))
        }
        var rank = memory.adapter.rank / 2
        while rank >= 1 {
            let lower = rank
            if let changed = changed({ $0.rank = lower }), fits(changed, longest: longest) {
                changes.append(FittingChange(line: "\(memory.adapter.method.rankKey): \(rank)", note: "smaller adapters"))
                break
            }
            rank /= 2
        }
        if let hub = memory.adapter.method as? HubAdapter, let factor = hub.bottleneck?.reductionFactor {
            for larger in [2, 4, 8, 16, 32].map({ $0 * factor }) where larger <= Double(memory.spec.hiddenSize) {
                let narrower = hub.with { $0.reductionFactor = larger }
                guard let changed = changed({ $0.method = narrower }), fits(changed, longest: longest) else { continue }
                changes.append(FittingChange(line: "reduction_factor: \(Int(larger))", note: "narrower bottlenecks"))
                break
            }
        }
        if let ladder = memory.adapter.method as? LadderSideTuning {
            for larger in [2, 4, 8, 16].map({ $0 * ladder.reductionFactor }) where memory.spec.hiddenSize % larger == 0 {
                guard let changed = changed({ $0.method = LadderSideTuning(reductionFactor: larger) }), fits(changed, longest: longest) else { continue }
                changes.append(FittingChange(line: "reduction_factor: \(larger)", note: "a narrower side network"))
                break
            }
        }
        if memory.adaptedModules.count > 2,
            let changed = changed({ $0.targets = .names(["q_proj", "v_proj"]) }), fits(changed, longest: longest)
        {
            changes.append(FittingChange(line: "lora_target_modules: [q_proj, v_proj]", note: "attention only"))
        }
        let upper = memory.spec.layerCount / 2..<memory.spec.layerCount
        if memory.lowestLayer < upper.lowerBound,
            let changed = changed({ $0.layers = Array(upper) }), fits(changed, longest: longest)
        {
            changes.append(
                FittingChange(
                    line: "layers_to_transform: [\(upper.map(String.init).joined(separator: ", "))]",
                    note: "the upper half of the model"))
        }
        if limits.zerothOrder == .never, let least = leastWithoutBackward, least <= limits.budget {
            changes.append(
                FittingChange(
                    line: "zeroth_order: auto",
                    note: "needs \(least.mebibytes) MiB: two forwards a step and no backward, 10 to 100 times as many steps, a learning rate of its own"))
        }
        changes.append(FittingChange(line: "memory_budget: \(smallestPeak.mebibytes)MiB", note: "what the job needs as it is"))
        return changes
    }
}
