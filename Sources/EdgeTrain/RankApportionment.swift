// Ranks for linears by how much each matters, under a budget: arithmetic alone.
//
// The squares of a gradient's singular values fall off, about as 1/k². The k-th rank of a linear is then worth importance²/k² for the
// in + out parameters that it takes, and a budget does most when the next rank always goes where that is largest. This makes ranks
// proportional to importance/√(in + out), as GoRA's are (arXiv:2502.12171 §3.2, which rounds each by itself and so misses the total). Whole
// ranks come as seats do in Webster's method, which divides by k - ½ and favours neither the large nor the small.
import EdgeModel

package struct RankApportionment {
    package struct Linear: Equatable, Sendable {
        /// 0 or more: as `LinearSensitivity` gives it.
        package let importance: Double
        /// Parameters of a rank: in + out.
        package let cost: Int
        /// The most ranks that it may have.
        package let most: Int

        package init(importance: Double, cost: Int, most: Int) {
            self.importance = importance
            self.cost = cost
            self.most = most
        }
    }

    private let linears: [Linear]
    /// Who gets each next rank, after one for everybody: PEFT has no rank 0.
    private let order: [Int]

    package init(_ linears: [Linear]) {
        precondition(linears.allSatisfy { $0.importance >= 0 && $0.importance.isFinite && $0.cost > 0 && $0.most > 0 })
        self.linears = linears
        var grants: [(worth: Double, rank: Int, linear: Int)] = []
        for (index, linear) in linears.enumerated() {
            let worth = linear.importance / Double(linear.cost).squareRoot()
            for rank in 1..<linear.most { grants.append((worth / (Double(rank) + 0.5), rank, index)) }
        }
        // Of those that are worth the same, lower ranks and then earlier linears first: the order is one, and fair.
        grants.sort { $0.worth != $1.worth ? $0.worth > $1.worth : ($0.rank, $0.linear) < ($1.rank, $1.linear) }
        order = grants.map(\.linear)
    }

    private func ranks(granted: Int) -> [Int] {
        var ranks = [Int](repeating: 1, count: linears.count)
        for linear in order.prefix(granted) { ranks[linear] += 1 }
        return ranks
    }

    /// Of ranks, one a linear: elements of A and B.
    package func parameters(_ ranks: [Int]) -> Int { zip(ranks, linears).reduce(0) { $0 + $1.0 * $1.1.cost } }

    /// As many ranks as these parameters pay for, up to the first that they do not.
    ///
    /// - Returns: by linear; nil where not even one rank everywhere can be had.
    package func ranks(parameters budget: Int) -> [Int]? { ranks { parameters($0) <= budget } }

    /// As many ranks as fit.
    ///
    /// - Parameter fits: whoever fits with some ranks fits with less of any.
    package func ranks(fitting fits: ([Int]) throws -> Bool) rethrows -> [Int]? {
        guard try fits(ranks(granted: 0)) else { return nil }
        var (low, high) = (0, order.count)
        while low < high {
            let middle = (low + high + 1) / 2
            if try fits(ranks(granted: middle)) { low = middle } else { high = middle - 1 }
        }
        return ranks(granted: low)
    }
}

extension AdapterSpec {
    /// Nobody has more than so many times the rank that was asked for.
    package static let mostOfRank = 4

    /// The linears' importance by module, as what ranks are given by. More ranks than a linear has inputs or outputs change nothing.
    package func apportionment(_ importance: [Double], of modules: [ModuleID], _ model: DecoderSpec) -> RankApportionment {
        RankApportionment(
            zip(modules, importance).map { id, importance in
                let (inputs, outputs) = (id.inFeatures(model), id.outFeatures(model))
                return .init(
                    importance: importance, cost: inputs + outputs,
                    most: min(Self.mostOfRank * rank, method.largestRank, inputs, outputs))
            })
    }

    /// With a rank of its own for each module, and with an alpha that leaves alpha / rank what it is, so that a rank learns alike wherever it
    /// is (PEFT's `adjust_scaling_factors`, peft tuners/lora/eva.py). rsLoRA's alpha / √rank is for any rank (arXiv:2312.03732 §3):
    /// there alpha stays.
    package func with(ranks: [Int], of modules: [ModuleID], _ model: DecoderSpec) -> AdapterSpec {
        let own = zip(modules, ranks).filter { $1 != rank }.map { (path: $0.path(model), rank: $1) }
        var spec = self
        spec.rankPattern = ModulePatterns(Dictionary(uniqueKeysWithValues: own.map { ($0.path, $0.rank) }))
        guard !usesRankStabilizedScaling else { return spec }
        spec.alphaPattern = ModulePatterns(
            Dictionary(uniqueKeysWithValues: own.map { ($0.path, Double(alpha) * Double($0.rank) / Double(rank)) }))
        return spec
    }
}
