// Several adapters mixed by weights that a few examples choose: what is asked, what is said meanwhile, and what has come of it.

/// `POST /v1/compositions`; answers with `CompositionEvent` lines.
package struct CompositionRequest: Codable, Equatable, Sendable {
    /// Samples that choose the weights; every evaluation goes through all of them.
    package static let exampleLimit = 256
    /// Of the paper (arXiv:2307.13269).
    package static let adapterLimit = 20
    package static let defaultSteps = 40, defaultSeed: UInt64 = 42

    /// Of the new adapter.
    package var name: String
    /// Of one base, rank and choice of modules.
    package var adapters: [String]
    /// The examples: a name, or `sha256:` and the digest of an uploaded blob.
    package var dataset: String
    /// Evaluations of the examples in all. The base, each adapter by itself and all alike are the first.
    package var steps: Int
    package var seed: UInt64

    package init(name: String, adapters: [String], dataset: String, steps: Int = defaultSteps, seed: UInt64 = defaultSeed) {
        self.name = name
        self.adapters = adapters
        self.dataset = dataset
        self.steps = steps
        self.seed = seed
    }

    private enum CodingKeys: String, CodingKey { case name, adapters, dataset, steps, seed }

    package init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        self.init(
            name: try values.decode(String.self, forKey: .name), adapters: try values.decode([String].self, forKey: .adapters),
            dataset: try values.decode(String.self, forKey: .dataset),
            steps: try values.decodeIfPresent(Int.self, forKey: .steps) ?? Self.defaultSteps,
            seed: try values.decodeIfPresent(UInt64.self, forKey: .seed) ?? Self.defaultSeed)
    }

    /// - Throws: `InvalidRequest`.
    package func validate() throws {
        func require(_ condition: Bool, _ key: String, _ given: Any, _ allowed: String) throws {
            guard condition else { throw InvalidRequest(key: key, given: "\(given)", allowed: allowed) }
        }
        try require((2...Self.adapterLimit).contains(adapters.count), "adapters", "\(adapters.count) entries", "2 to \(Self.adapterLimit) adapters")
        try require(Set(adapters).count == adapters.count, "adapters", "a name given twice", "each adapter once")
        let fewest = adapters.count + 3
        try require(
            (fewest...1000).contains(steps), "steps", steps, "\(fewest) to 1000: the base, each adapter by itself and all alike come first")
    }
}

/// One line of a composition. The last has a report and the adapter, or a problem.
package struct CompositionEvent: Codable, Equatable, Sendable {
    /// Counted from 1, to `steps`.
    package var step: Int?
    package var steps: Int?
    /// Of this evaluation: mean nll per loss token of the examples, in nats; nil where it was no number.
    package var loss: Double?
    /// Of the best until now.
    package var bestLoss: Double?
    package var bestWeights: [Double]?
    package var report: CompositionReport?
    package var adapter: AdapterRecord?
    package var problem: Problem?

    package init(step: Int, steps: Int, loss: Double?, bestLoss: Double, bestWeights: [Double]) {
        (self.step, self.steps, self.loss, self.bestLoss, self.bestWeights) = (step, steps, loss, bestLoss, bestWeights)
    }
    package init(report: CompositionReport, adapter: AdapterRecord) { (self.report, self.adapter) = (report, adapter) }
    package init(problem: Problem) { self.problem = problem }

    package var isLast: Bool { report != nil || problem != nil }
}

package struct CompositionReport: Codable, Equatable, Sendable {
    /// One an adapter, -1.5 to 1.5.
    package var weights: [Double]
    /// Samples, and their tokens that carry loss.
    package var examples: Int
    package var tokens: Int
    /// Of the examples, in nats per token: with the new adapter, without any, with each by itself, and with all alike (nil: no number).
    package var loss: Double
    package var baseLoss: Double
    package var aloneLosses: [Double?]
    package var evenLoss: Double?
    package var steps: Int
    package var plannedPeakBytes: UInt64
    /// The most that the worker has held.
    package var peakBytes: UInt64

    package init(
        weights: [Double], examples: Int, tokens: Int, loss: Double, baseLoss: Double, aloneLosses: [Double?], evenLoss: Double?,
        steps: Int, plannedPeakBytes: UInt64, peakBytes: UInt64
    ) {
        self.weights = weights
        self.examples = examples
        self.tokens = tokens
        self.loss = loss
        self.baseLoss = baseLoss
        self.aloneLosses = aloneLosses
        self.evenLoss = evenLoss
        self.steps = steps
        self.plannedPeakBytes = plannedPeakBytes
        self.peakBytes = peakBytes
    }
}
