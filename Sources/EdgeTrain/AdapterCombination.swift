// Several adapters of one base made one, as PEFT's `add_weighted_adapter` does (peft, tuners/lora/model.py, utils/merge_utils.py).
import EdgeModel
import EdgeTensor

package struct AdapterCombination: Equatable, Sendable {
    /// Matrices are combined by themselves, A with A and B with B, each by √|weight · scaling|; but for `cat` and `svd`, which combine the
    /// changes that they make, without and with a loss.
    package enum Kind: String, CaseIterable, Sendable {
        /// The weighted sum.
        case linear
        /// One rank after the other: exactly the weighted sum of the changes, with the sum of the ranks.
        case cat
        /// The nearest change of a given rank to the weighted sum of the changes.
        case svd
        /// The first ranks, scaled by alpha over as many: what a DyLoRA has there.
        case truncate
        /// TIES (arXiv:2306.01708): of each element the largest of a matrix alone, the sign that most weight is on, and the mean of those
        /// that have it.
        case ties
        /// DARE (arXiv:2311.03099): a random part of each matrix, grown by what is left out; then `linear`, or `ties`.
        case dareLinear = "dare_linear"
        case dareTies = "dare_ties"
        /// The largest elements of each matrix; then `linear`.
        case magnitudePrune = "magnitude_prune"

        package var prunes: Bool { ![.linear, .cat, .svd, .truncate].contains(self) }
    }

    package let kind: Kind
    /// One an adapter; below 0: its change is taken away.
    package let weights: [Double]
    /// The part of the elements that pruning leaves, 0 to 1.
    package let density: Double
    /// Of `svd` and `truncate`; nil: the largest that there is.
    package let rank: Int?
    package let seed: UInt64

    package init(_ kind: Kind, weights: [Double], density: Double = 1, rank: Int? = nil, seed: UInt64 = 42) {
        self.kind = kind
        self.weights = weights
        self.density = density
        self.rank = rank
        self.seed = seed
    }

    /// - Parameter adapters: as many as there are weights, all of them plain LoRA; a module that one of them lacks is as the others have it.
    /// - Throws: `CombinationError`.
    package func combine(_ adapters: [LoadedAdapter]) throws -> LoadedAdapter {
        precondition(adapters.count == weights.count && !adapters.isEmpty)
        for (index, adapter) in adapters.enumerated() where !adapter.isLoRA { throw CombinationError.noLoRA(index: index) }
        let ranks = adapters.map(\.rank)
        guard kind != .truncate || adapters.count == 1 else { throw CombinationError.severalToTruncate }
        guard kind == .cat || kind == .svd || kind == .truncate || Set(ranks).count == 1 else { throw CombinationError.ranks(ranks) }
        let paths = Set(adapters.flatMap { $0.tensors.map(\.modulePath) }).sorted { $0.utf8.lexicographicallyPrecedes($1.utf8) }
        let rank =
            switch kind {
            case .cat: ranks.reduce(0, +)
            case .svd, .truncate: self.rank ?? ranks.max()!
            default: ranks[0]
            }
        let tensors = try paths.map { path in
            let parts = zip(adapters, weights).enumerated().compactMap { index, one in
                one.0.tensors.first { $0.modulePath == path }.map { Part(tensors: $0, weight: one.1 * one.0.scaling, adapter: index) }
            }
            guard parts.allSatisfy({ $0.tensors.inFeatures == parts[0].tensors.inFeatures && $0.tensors.outFeatures == parts[0].tensors.outFeatures })
            else { throw CombinationError.shapes(module: path) }
            return combine(parts, rank: rank)
        }
        return LoadedAdapter(tensors, rank: rank)
    }

    private struct Part {
        let tensors: LoRATensors
        /// Times the scaling.
        let weight: Double
        let adapter: Int
    }

    /// With a scaling of 1.
    private func combine(_ parts: [Part], rank: Int) -> LoRATensors {
        var combined = parts[0].tensors
        combined.rank = rank
        switch kind {
        case .cat: (combined.loraA, combined.loraB) = concatenated(parts, rank: rank)
        case .svd:
            let (a, b) = concatenated(parts, rank: parts.reduce(0) { $0 + $1.tensors.rank })
            (combined.loraA, combined.loraB) = nearest(a, b, combined.inFeatures, combined.outFeatures, rank: rank)
        case .truncate: (combined.loraA, combined.loraB) = concatenated([truncated(parts[0], to: rank)], rank: rank)
        default:
            combined.loraA = mixed(parts, \.loraA, "A") { ($0 < 0 ? -1 : 1) * abs($0).squareRoot() }
            combined.loraB = mixed(parts, \.loraB, "B") { abs($0).squareRoot() }
        }
        return combined
    }

    /// Ranks that are missing are zero.
    private func concatenated(_ parts: [Part], rank: Int) -> (a: [Float], b: [Float]) {
        let (inFeatures, outFeatures) = (parts[0].tensors.inFeatures, parts[0].tensors.outFeatures)
        var a = parts.flatMap { part in part.tensors.loraA.map { $0 * Float(part.weight) } }
        a += [Float](repeating: 0, count: rank * inFeatures - a.count)
        var b = [Float](repeating: 0, count: outFeatures * rank)
        var first = 0
        for part in parts {
            let own = part.tensors.rank
            for row in 0..<outFeatures {
                for column in 0..<own { b[row * rank + first + column] = part.tensors.loraB[row * own + column] }
            }
            first += own
        }
        return (a, b)
    }

    private func truncated(_ part: Part, to rank: Int) -> Part {
        var tensors = part.tensors
        let kept = min(rank, tensors.rank)
        tensors.loraA = Array(tensors.loraA.prefix(kept * tensors.inFeatures))
        tensors.loraB = (0..<tensors.outFeatures).flatMap { tensors.loraB[$0 * part.tensors.rank..<$0 * part.tensors.rank + kept] }
        tensors.rank = kept
        return Part(tensors: tensors, weight: part.weight * Double(part.tensors.rank) / Double(kept), adapter: part.adapter)
    }

    private func mixed(
        _ parts: [Part], _ matrix: KeyPath<LoRATensors, [Float]>, _ name: String, _ factor: (Double) -> Double
    ) -> [Float] {
        let matrices = parts.map { pruned($0.tensors[keyPath: matrix], $0, name) }
        let factors = parts.map { Float(factor($0.weight)) }
        let elects = kind == .ties || kind == .dareTies
        return matrices[0].indices.map { index in
            guard elects else { return zip(matrices, factors).reduce(Float(0)) { $0 + $1.0[index] * $1.1 } }
            let isPositive = matrices.reduce(Float(0)) { $0 + $1[index] } >= 0
            var (sum, count) = (Float(0), Float(0))
            for (values, factor) in zip(matrices, factors) where isPositive ? values[index] > 0 : values[index] < 0 {
                sum += values[index] * factor
                count += 1
            }
            return sum / max(count, 1)
        }
    }

    private func pruned(_ values: [Float], _ part: Part, _ matrix: String) -> [Float] {
        guard kind.prunes, density < 1 else { return values }
        if kind == .dareLinear || kind == .dareTies {
            let path = part.tensors.modulePath.utf8.reduce(UInt64(0)) { mix64($0 ^ UInt64($1)) }
            let random = RandomSource(seed: seed, .pruning, path, UInt64(part.adapter), matrix == "A" ? 0 : 1)
            return values.indices.map { random.uniform($0) < Float(density) ? values[$0] / Float(density) : 0 }
        }
        let kept = Int(density * Double(values.count))
        var order = Array(values.indices)
        // Of equal ones the first.
        order.sort { abs(values[$0]) != abs(values[$1]) ? abs(values[$0]) > abs(values[$1]) : $0 < $1 }
        var pruned = [Float](repeating: 0, count: values.count)
        for index in order.prefix(kept) { pruned[index] = values[index] }
        return pruned
    }

    // MARK: the nearest change of a lower rank

    /// B · A of this rank, by the singular values of the factors: the product itself is never made. With A = L · Q, rows of Q orthonormal,
    /// the columns of B · L are turned against each other until they are orthogonal (one-sided Jacobi; Golub and Van Loan, §8.6.3).
    private func nearest(_ a: [Float], _ b: [Float], _ inFeatures: Int, _ outFeatures: Int, rank: Int) -> (a: [Float], b: [Float]) {
        let full = a.count / inFeatures
        var q = (0..<full).map { row in a[row * inFeatures..<(row + 1) * inFeatures].map(Double.init) }
        var columns = (0..<full).map { column in (0..<outFeatures).map { Double(b[$0 * full + column]) } }
        orthonormalise(&q, &columns)
        diagonalise(&columns, &q)
        let lengths = columns.map { dot($0, $0).squareRoot() }
        let order = lengths.indices.sorted { lengths[$0] > lengths[$1] }
        var (newA, newB) = ([Float](repeating: 0, count: rank * inFeatures), [Float](repeating: 0, count: outFeatures * rank))
        for (place, index) in order.prefix(rank).enumerated() {
            // The length is parted between both: each half as far from zero as the other.
            let share = lengths[index].squareRoot()
            guard share > 0 else { continue }
            for column in 0..<inFeatures { newA[place * inFeatures + column] = Float(q[index][column] * share) }
            for row in 0..<outFeatures { newB[row * rank + place] = Float(columns[index][row] / share) }
        }
        return (newA, newB)
    }

    /// Rows become orthonormal (or zero), and Σ columns ⊗ rows stays what it was. Gram and Schmidt, twice.
    private func orthonormalise(_ rows: inout [[Double]], _ columns: inout [[Double]]) {
        for i in rows.indices {
            let length = dot(rows[i], rows[i]).squareRoot()
            for _ in 0..<2 {
                for j in 0..<i {
                    let part = dot(rows[i], rows[j])
                    add(-part, rows[j], to: &rows[i])
                    add(part, columns[i], to: &columns[j])
                }
            }
            let rest = dot(rows[i], rows[i]).squareRoot()
            // What is left of a row that depends on the others is noise.
            let scale = rest > 1e-12 * length ? rest : 0
            for k in rows[i].indices { rows[i][k] = scale > 0 ? rows[i][k] / scale : 0 }
            for k in columns[i].indices { columns[i][k] *= scale }
        }
    }

    /// Columns become orthogonal; rows are turned with them.
    private func diagonalise(_ columns: inout [[Double]], _ rows: inout [[Double]]) {
        for _ in 0..<30 {
            var largest = 0.0
            for i in columns.indices {
                for j in i + 1..<max(i + 1, columns.count) {
                    let (x, y, xy) = (dot(columns[i], columns[i]), dot(columns[j], columns[j]), dot(columns[i], columns[j]))
                    guard x > 0, y > 0, abs(xy) > 1e-15 * (x * y).squareRoot() else { continue }
                    largest = max(largest, abs(xy) / (x * y).squareRoot())
                    let zeta = (y - x) / (2 * xy)
                    let tangent = (zeta >= 0 ? 1.0 : -1.0) / (abs(zeta) + (1 + zeta * zeta).squareRoot())
                    let cosine = 1 / (1 + tangent * tangent).squareRoot()
                    rotate(&columns, i, j, cosine, cosine * tangent)
                    rotate(&rows, i, j, cosine, cosine * tangent)
                }
            }
            if largest < 1e-13 { return }
        }
    }

    private func rotate(_ vectors: inout [[Double]], _ i: Int, _ j: Int, _ cosine: Double, _ sine: Double) {
        for k in vectors[i].indices {
            let (x, y) = (vectors[i][k], vectors[j][k])
            vectors[i][k] = cosine * x - sine * y
            vectors[j][k] = sine * x + cosine * y
        }
    }

    private func dot(_ x: [Double], _ y: [Double]) -> Double {
        var sum = 0.0
        for k in x.indices { sum += x[k] * y[k] }
        return sum
    }

    private func add(_ factor: Double, _ x: [Double], to y: inout [Double]) { for k in x.indices { y[k] += factor * x[k] } }
}

package enum CombinationError: Error, Equatable, CustomStringConvertible {
    case noLoRA(index: Int)
    case ranks([Int])
    case shapes(module: String)
    case severalToTruncate

    package var description: String {
        switch self {
        case .noLoRA(let index): "adapter number \(index + 1) is no plain LoRA; only those can be combined"
        case .ranks(let ranks):
            "the adapters have the ranks \(ranks.map(String.init).joined(separator: ", ")): their matrices can be combined by cat and svd only"
        case .severalToTruncate: "one adapter at a time is truncated"
        case .shapes(let module): "the adapters have matrices of different shapes for \(module)"
        }
    }
}
