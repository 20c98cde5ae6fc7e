// Several adapters of one base mixed by weights that a few examples choose, without gradients: LoRAHub (arXiv:2307.13269). All of them
// are in memory once, in the order of the run's own block, so that a mixture is one sum over it.
import EdgeModel
import EdgeTensor

package final class AdapterComposition {
    /// The paper's bound of a weight, and its factor of the weights' mean size in what is minimised (§4.2 there, and its code's
    /// `default_l1_regularization`).
    package static let largestWeight = 1.5, penalty = 0.05
    /// Of the search. On bowls of random centres and widths, 2 to 20 weights and forty evaluations, 0.15 to 0.3 end within a tenth of each
    /// other, and 0.5 up to twice as high.
    private static let firstStep = 0.25

    /// Weights, and what they gave.
    package struct Trial: Equatable, Sendable {
        /// One an adapter.
        package let weights: [Double]
        /// Mean nll per loss token of the examples, in nats.
        package let loss: Double
        /// What is minimised: the loss, and `penalty` times the weights' mean size.
        package var cost: Double { loss + penalty * weights.reduce(0) { $0 + abs($1) } / Double(weights.count) }
    }

    package struct Outcome: Equatable, Sendable {
        /// Of least cost.
        package let best: Trial
        /// Of the base without any adapter.
        package let base: Double
        /// Of each adapter by itself.
        package let alone: [Double]
        /// Of all alike, each of weight 1/√n: PEFT's `linear` combination of weights 1/n.
        package let even: Double
        /// Loss tokens of the examples.
        package let tokens: Int
    }

    /// How an adapter is computed with, whatever the weights.
    package let spec: AdapterSpec
    package let modules: [ModuleID]
    private let model: DecoderSpec
    private let scaling: Double
    private let layout: AdapterLayout
    /// `[parameterCount]` each, in the layout's order.
    private let parts: [UnsafeMutablePointer<Float>]
    private let arena: Arena

    /// Reads the adapters one after the other.
    ///
    /// The paper's adapters have one rank, scaling and choice of modules. Of another scaling here, B is multiplied by what it differs from
    /// the first one's, so that an adapter of weight 1 is what it was.
    ///
    /// - Parameters:
    ///   - reserve: gets the bytes that all adapters take before they are taken; what it throws ends it.
    ///   - read: an adapter by its number.
    /// - Throws: `CompositionError`; `AdapterMismatch` where the base has no such module, or one of another shape.
    package init(
        _ count: Int, of model: DecoderSpec, reserve: (ByteCount) throws -> Void, read: (Int) throws -> LoadedAdapter
    ) throws {
        precondition(count > 0)
        // Given back before the next is read.
        var first: LoadedAdapter? = try Self.plain(read(0), 0)
        (spec, scaling, modules) = (first!.spec, first!.scaling, try first!.modules(of: model))
        layout = AdapterLayout(spec, modules: modules, of: model)
        let bytes = ByteCount(count * ByteCount.floats(layout.parameterCount).bytes)
        try reserve(bytes)
        let arena = try Arena(capacity: bytes), elements = layout.parameterCount
        parts = (0..<count).map { _ in arena.floats(elements) }
        (self.arena, self.model) = (arena, model)
        try fill(0, first!)
        first = nil
        for index in 1..<count {
            let other = try Self.plain(read(index), index)
            guard other.rank == spec.rank else { throw CompositionError.ranks(first: spec.rank, index: index, rank: other.rank) }
            guard try Set(other.modules(of: model)) == Set(modules) else { throw CompositionError.modules(index: index) }
            try fill(index, other)
        }
    }

    private static func plain(_ adapter: LoadedAdapter, _ index: Int) throws -> LoadedAdapter {
        guard adapter.isLoRA else { throw CompositionError.noLoRA(index: index) }
        return adapter
    }

    private func set(over parameters: UnsafeMutablePointer<Float>) -> AdapterSet {
        AdapterSet(layout, of: model, parameters: parameters, gradients: nil, factorSpace: nil)
    }

    private func fill(_ index: Int, _ adapter: LoadedAdapter) throws {
        let set = set(over: parts[index])
        try adapter.load(into: set, model)
        guard adapter.scaling != scaling else { return }
        let factor = Float(adapter.scaling / scaling)
        for slot in set.slots {
            let b = set.factors(slot)!.b
            for element in 0..<b.count { b.base[element] *= factor }
        }
    }

    /// A = Σ wᵢ · Aᵢ and B = Σ wᵢ · Bᵢ (equation 1 there): a sum of whole blocks. `sum` may be the first part.
    private func mix(_ weights: [Double], into sum: UnsafeMutablePointer<Float>) {
        precondition(weights.count == parts.count)
        let factors = weights.map(Float.init)
        for element in 0..<layout.parameterCount { sum[element] = factors[0] * parts[0][element] }
        for (part, factor) in zip(parts, factors).dropFirst() {
            for element in 0..<layout.parameterCount { sum[element] += factor * part[element] }
        }
    }

    /// Finds weights for these examples: the base, each adapter by itself and all alike are tried first, and then what CMA-ES asks for
    /// from the best of those. (The paper begins at 0, where a change that is a product of two sums has no slope.)
    ///
    /// - Parameters:
    ///   - steps: evaluations of the examples in all, more than two and the number of adapters.
    ///   - proceed: called before every micro-batch; what it throws ends the search.
    ///   - tried: gets each trial, and the best one so far.
    /// - Throws: `CompositionError`, `FileError`, and what the closures throw.
    package func search(
        _ examples: HeldOutLoss, steps: Int, seed: UInt64, kernels: KernelSet, spillDirectory: String,
        proceed: () throws -> Void = {}, tried: (_ number: Int, _ trial: Trial, _ best: Trial) throws -> Void = { _, _, _ in }
    ) throws -> Outcome {
        precondition(steps > 2 + parts.count)
        let step = try examples.step(kernels: kernels, spillDirectory: spillDirectory)
        var (number, tokens) = (0, 0)
        var best: Trial?
        func measure(_ weights: [Double]) throws -> Trial {
            try proceed()
            mix(weights, into: step.adapters[0].parameters)
            step.adapters[0].parametersChanged()
            let (loss, count) = try examples.loss(by: step) { _ in try proceed() }
            let trial = Trial(weights: weights, loss: loss)
            number += 1
            tokens = count
            // What is not a number is never better.
            if best.map({ trial.cost < $0.cost }) ?? true { best = trial }
            try tried(number, trial, best!)
            return trial
        }
        let nothing = [Double](repeating: 0, count: parts.count)
        let base = try measure(nothing).loss
        guard base.isFinite else { throw CompositionError.nonFinite(loss: base) }
        let alone = try parts.indices.map { index in
            var weights = nothing
            weights[index] = 1
            return try measure(weights).loss
        }
        let even = try measure([Double](repeating: (1 / Double(parts.count)).squareRoot(), count: parts.count)).loss
        var strategy = CMAES(
            start: best!.weights, stepSize: Self.firstStep, bounds: -Self.largestWeight...Self.largestWeight, seed: seed)
        while number < steps { strategy.take(try measure(strategy.next()).cost) }
        guard let best, best.weights != nothing else { throw CompositionError.nothingHelps(base: base) }
        return Outcome(best: best, base: base, alone: alone, even: even, tokens: tokens)
    }

    /// Publishes the mixture. Its values take the place of the first adapter's: nothing can be tried afterwards.
    ///
    /// - Throws: `AdapterError`, `FileError`; nothing is left behind.
    package func publish(
        _ weights: [Double], to directory: String, baseModel: String, provenance: [String: String], trainingJSON: [UInt8], modelCard: String
    ) throws {
        mix(weights, into: parts[0])
        arena.discard(after: parts[0] + layout.parameterCount)
        let layers = Set(modules.map(\.layer)).sorted()
        var own = spec
        own.layers = layers.count == model.layerCount ? nil : layers
        var config = AdapterConfig(own, modules: modules, of: model, baseModelNameOrPath: baseModel)
        config.loraAlpha = scaling * Double(spec.rank)
        try AdapterArtifact.publish(
            to: directory, tensors: set(over: parts[0]).tensors(model), config: config, provenance: provenance, trainingJSON: trainingJSON,
            modelCard: modelCard)
    }
}

package enum CompositionError: Error, Equatable, CustomStringConvertible {
    case noLoRA(index: Int)
    /// `first` is the first adapter's.
    case ranks(first: Int, index: Int, rank: Int)
    /// Other modules than the first adapter's.
    case modules(index: Int)
    case nonFinite(loss: Double)
    /// `base` is the base's own loss.
    case nothingHelps(base: Double)

    package var description: String {
        switch self {
        case .noLoRA(let index):
            "adapter number \(index + 1) is no plain LoRA, and only those can be composed; of a VeRA, MiSS or LoHa edgetune adapters combine "
                + "NAME --combination cat makes one"
        case .ranks(let first, let index, let rank):
            "adapter number 1 has rank \(first), number \(index + 1) rank \(rank): their matrices have no sum; edgetune adapters combine NAME "
                + "--combination svd --rank \(first) makes one of rank \(first)"
        case .modules(let index):
            "adapter number \(index + 1) changes other modules than number 1: train both with the same lora_target_modules and layers_to_transform"
        case .nonFinite(let loss): "the loss of the base alone on the examples is \(loss)"
        case .nothingHelps(let base):
            "no weights were better on the examples than the base alone (loss \(base)): other adapters, more examples or more steps may help"
        }
    }
}
