// Several adapters made one: what is asked.

/// `POST /v1/combinations`; answers with the new adapter's record.
package struct CombinationRequest: Codable, Equatable, Sendable {
    package struct Part: Codable, Equatable, Sendable {
        package var adapter: String
        /// Below 0: what it has learned is taken away.
        package var weight: Double
        package init(adapter: String, weight: Double) {
            self.adapter = adapter
            self.weight = weight
        }
    }

    /// Of the new adapter.
    package var name: String
    /// Of one base.
    package var adapters: [Part]
    package var combination: CombinationKind
    /// Of the kinds that prune: the part of the elements that is left.
    package var density: Double?
    /// Of `svd` and `truncate`; nil: the largest that the adapters have.
    package var rank: Int?
    /// Of `dare_linear` and `dare_ties`.
    package var seed: UInt64?

    package init(name: String, adapters: [Part], combination: CombinationKind) {
        self.name = name
        self.adapters = adapters
        self.combination = combination
    }

    /// - Throws: `InvalidRequest`.
    package func validate() throws {
        func require(_ condition: Bool, _ key: String, _ given: Any, _ allowed: String) throws {
            guard condition else { throw InvalidRequest(key: key, given: "\(given)", allowed: allowed) }
        }
        try require((1...16).contains(adapters.count), "adapters", "\(adapters.count) entries", "1 to 16 adapters")
        for part in adapters { try require(abs(part.weight) <= 1000, "weight", part.weight, "-1000 to 1000") }
        try require(combination.prunes || density == nil, "density", density ?? 1, "it with ties, dare_linear, dare_ties or magnitude_prune only")
        try require(!combination.prunes || density.map { $0 > 0 && $0 <= 1 } == true, "density", density.map { "\($0)" } ?? "nothing", "above 0, to 1")
        try require(combination == .svd || combination == .truncate || rank == nil, "rank", rank ?? 0, "it with svd and truncate only")
        if let rank { try require((1...512).contains(rank), "rank", rank, "1 to 512") }
    }
}

/// PEFT's words for `combination_type`.
package enum CombinationKind: String, Codable, CaseIterable, Sendable {
    case linear, cat, svd, truncate, ties
    case dareLinear = "dare_linear", dareTies = "dare_ties", magnitudePrune = "magnitude_prune"

    package var prunes: Bool { ![.linear, .cat, .svd, .truncate].contains(self) }
}
