// Routing of tokens to experts: which a token goes to, with what weight, and the gradient of that; and the rows of an expert gathered and
// given back. Everything is done row by row, so a token's bits do not depend on those around it.
import Glibc

/// Where the tokens of a batch go. Its memory is the caller's.
package struct ExpertRouting {
    /// `[tokens, experts]`: the router's products, and then their softmax.
    package let probabilities: Tensor
    /// `[tokens, chosen]`: numbers of the experts of each token, the likeliest first, and what each one's output counts.
    package let experts: UnsafeMutablePointer<Int32>
    package let weights: Tensor
    package var chosen: Int { weights.columns }
    package var expertCount: Int { probabilities.columns }

    package init(probabilities: Tensor, experts: UnsafeMutablePointer<Int32>, weights: Tensor) {
        precondition(probabilities.rows == weights.rows && weights.columns <= probabilities.columns)
        self.probabilities = probabilities
        self.experts = experts
        self.weights = weights
    }

    package func rows(_ range: Range<Int>) -> ExpertRouting {
        ExpertRouting(probabilities: probabilities.rows(range), experts: experts + range.lowerBound * chosen, weights: weights.rows(range))
    }

    /// Softmax over the experts, of which the likeliest count, as much as they are of their sum (Mixtral, arXiv:2401.04088 §2.1). Of equal
    /// ones the first.
    package func choose(on pool: WorkerPool) {
        let cost = OperationCost.pass(probabilities.count, streams: 1, flopEach: 20)
        pool.run(rowPieces(probabilities.rows), as: .elementwise, cost) { piece, _ in
            for token in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, probabilities.rows) { choose(token) }
        }
    }

    private func choose(_ token: Int) {
        let p = probabilities.row(token), count = expertCount
        var largest = -Float.infinity, sum: Float = 0
        for expert in 0..<count { largest = max(largest, p[expert]) }
        for expert in 0..<count {
            p[expert] = exp(p[expert] - largest)
            sum += p[expert]
        }
        for expert in 0..<count { p[expert] /= sum }
        let own = experts + token * chosen, weight = weights.row(token)
        var ofChosen: Float = 0
        for place in 0..<chosen {
            var best = -1
            for expert in 0..<count where !(0..<place).contains(where: { own[$0] == Int32(expert) }) {
                if best < 0 || p[expert] > p[best] { best = expert }
            }
            own[place] = Int32(best)
            weight[place] = p[best]
            ofChosen += p[best]
        }
        for place in 0..<chosen { weight[place] /= ofChosen }
    }

    /// Of the tokens of a sample, how many each expert gets.
    package func counts(_ tokens: Range<Int>) -> [Int] {
        var counts = [Int](repeating: 0, count: expertCount)
        for index in tokens.lowerBound * chosen..<tokens.upperBound * chosen { counts[Int(experts[index])] += 1 }
        return counts
    }

    /// The tokens of an expert, in their order.
    ///
    /// - Parameters:
    ///   - rows: gets their numbers, and
    ///   - places: which of each token's choices it is; both have room for all tokens.
    /// - Returns: how many there are.
    package func find(_ expert: Int, rows: UnsafeMutablePointer<Int32>, places: UnsafeMutablePointer<Int32>) -> Int {
        var found = 0
        for token in 0..<probabilities.rows {
            for place in 0..<chosen where experts[token * chosen + place] == Int32(expert) {
                (rows[found], places[found]) = (Int32(token), Int32(place))
                found += 1
            }
        }
        return found
    }

    /// Probabilities become the gradients of the router's products.
    ///
    /// - Parameters:
    ///   - dWeights: `[tokens, chosen]`.
    ///   - balance: gradients of the probabilities, one for each expert, the same for all of these tokens: of a loss that is linear in them.
    package func backward(_ dWeights: Tensor, balance: [Float], _ tokens: Range<Int>) {
        for token in tokens {
            let p = probabilities.row(token), own = experts + token * chosen, weight = weights.row(token), dWeight = dWeights.row(token)
            var ofBalance: Float = 0, ofChosen: Float = 0
            for expert in 0..<expertCount { ofBalance += p[expert] * balance[expert] }
            for place in 0..<chosen { ofChosen += weight[place] * dWeight[place] }
            for expert in 0..<expertCount { p[expert] *= balance[expert] - ofBalance }
            // The chosen ones' weights are a softmax over them alone.
            for place in 0..<chosen { p[Int(own[place])] += weight[place] * (dWeight[place] - ofChosen) }
        }
    }
}

/// Rows of x, one after the other.
///
/// - Parameter y: as many rows as are taken.
package func gather(_ rows: UnsafePointer<Int32>, of x: Tensor, into y: Tensor, on pool: WorkerPool) {
    pool.run(rowPieces(y.rows), as: .elementwise, .pass(y.count, streams: 2, flopEach: 0)) { piece, _ in
        for i in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, y.rows) {
            y.row(i).update(from: x.row(Int(rows[i])), count: y.columns)
        }
    }
}

/// Adds each row of x, times its weight, to one of y; no two to the same.
///
/// - Parameters:
///   - rows: of y.
///   - weights: nil: 1.
package func addGathered(_ x: Tensor, weights: UnsafePointer<Float>? = nil, to rows: UnsafePointer<Int32>, of y: Tensor, on pool: WorkerPool) {
    let kernel = pool.kernels.raw.add_scaled!
    pool.run(rowPieces(x.rows), as: .elementwise, .pass(x.count, streams: 3, flopEach: 2)) { piece, _ in
        for i in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, x.rows) {
            kernel(x.row(i), y.row(Int(rows[i])), x.columns, weights?[i] ?? 1)
        }
    }
}

/// Every row of y is multiplied by its weight.
package func scaleRows(_ y: Tensor, by weights: UnsafePointer<Float>, on pool: WorkerPool) {
    pool.run(rowPieces(y.rows), as: .elementwise, .pass(y.count, streams: 2, flopEach: 1)) { piece, _ in
        for i in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, y.rows) { pool.kernels.scale(y.row(i), count: y.columns, by: weights[i]) }
    }
}

/// The scalar product of each row of x with that of y.
package func rowProducts(_ x: Tensor, _ y: Tensor, into products: UnsafeMutablePointer<Float>, _ accumulation: Accumulation, on pool: WorkerPool) {
    precondition(x.rows == y.rows && x.columns == y.columns)
    pool.run(rowPieces(x.rows), as: .elementwise, .pass(x.count, streams: 2, flopEach: 2)) { piece, _ in
        for i in piece * elementwiseRows..<min((piece + 1) * elementwiseRows, x.rows) {
            let product = pool.kernels.raw.dot(x.row(i), y.row(i), x.columns)
            products[i] = accumulation == .add ? products[i] + product : product
        }
    }
}
