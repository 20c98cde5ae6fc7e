// A minimiser that needs no gradient: the evolution strategy with covariance matrix adaptation, (μ/μ_w, λ)-CMA-ES
// (Hansen, arXiv:1604.00772, figure 6), inside a box. A value: it asks for points and is told what they cost; the same
// seed and costs give the same points.
import EdgeTensor
import Glibc

package struct CMAES {
    private let bounds: ClosedRange<Double>
    /// Of a generation: λ.
    package let populationSize: Int
    /// Of the best μ, the best first; their sum is 1.
    private let recombination: [Double]
    private let rates: Rates
    private let random: RandomSource
    private var drawn = 0
    private var generation = 0
    private var mean: [Double]
    private var stepSize: Double
    /// `[n][n]`, and what it is made of: columns of `basis` are its eigenvectors, `deviations` the roots of its eigenvalues.
    private var covariance: [[Double]]
    private var basis: [[Double]]
    private var deviations: [Double]
    private var covariancePath: [Double]
    private var stepPath: [Double]
    private var population: [(point: [Double], cost: Double)] = []
    private var asked: [Double]?

    /// How fast what is learned changes (table 1 there, without negative weights).
    private struct Rates {
        let effective: Double
        let stepPath: Double, damping: Double
        let covariancePath: Double, rankOne: Double, rankMu: Double
        /// What a normal vector's length is in the mean.
        let normalLength: Double

        init(dimensions: Int, _ weights: [Double]) {
            let n = Double(dimensions)
            effective = 1 / weights.reduce(0) { $0 + $1 * $1 }
            stepPath = (effective + 2) / (n + effective + 5)
            damping = 1 + 2 * max(0, ((effective - 1) / (n + 1)).squareRoot() - 1) + stepPath
            covariancePath = (4 + effective / n) / (n + 4 + 2 * effective / n)
            rankOne = 2 / ((n + 1.3) * (n + 1.3) + effective)
            rankMu = min(1 - rankOne, 2 * (effective - 2 + 1 / effective) / ((n + 2) * (n + 2) + effective))
            normalLength = n.squareRoot() * (1 - 1 / (4 * n) + 1 / (21 * n * n))
        }
    }

    /// - Parameters:
    ///   - start: where the best is looked for first; at least one coordinate, all of them within `bounds`.
    ///   - stepSize: how far around it, in every coordinate.
    ///   - bounds: of every coordinate. A point outside is moved to the border before it is asked for, and learned from there.
    package init(start: [Double], stepSize: Double, bounds: ClosedRange<Double>, seed: UInt64) {
        precondition(!start.isEmpty && start.allSatisfy(bounds.contains) && stepSize > 0)
        let count = start.count
        self.bounds = bounds
        let size = 4 + Int(3 * log(Double(count)))
        let raw = (1...size / 2).map { log((Double(size) + 1) / 2) - log(Double($0)) }
        let sum = raw.reduce(0, +)
        populationSize = size
        recombination = raw.map { $0 / sum }
        rates = Rates(dimensions: count, recombination)
        random = RandomSource(seed: seed, .composition)
        mean = start
        self.stepSize = stepSize
        covariance = Self.identity(count)
        basis = covariance
        deviations = [Double](repeating: 1, count: count)
        covariancePath = [Double](repeating: 0, count: count)
        stepPath = covariancePath
    }

    private static func identity(_ count: Int) -> [[Double]] {
        (0..<count).map { row in (0..<count).map { $0 == row ? 1 : 0 } }
    }

    /// The point to try; `take` is to be called with its cost before the next.
    package mutating func next() -> [Double] {
        precondition(asked == nil, "the cost of the last point has not been told")
        let normal = deviations.indices.map { deviations[$0] * Double(random.normal(drawn + $0)) }
        drawn += normal.count
        let point = mean.indices.map { row in
            clamped(mean[row] + stepSize * dot(basis[row], normal))
        }
        asked = point
        return point
    }

    /// - Parameter cost: the smaller the better; what is no number is the worst.
    package mutating func take(_ cost: Double) {
        guard let point = asked else { preconditionFailure("no point was asked for") }
        asked = nil
        population.append((point, cost.isNaN ? .infinity : cost))
        if population.count == populationSize { adapt() }
    }

    private func clamped(_ value: Double) -> Double { min(max(value, bounds.lowerBound), bounds.upperBound) }

    /// A generation is complete.
    private mutating func adapt() {
        generation += 1
        // Of equal ones the first.
        let order = population.indices.sorted {
            population[$0].cost != population[$1].cost ? population[$0].cost < population[$1].cost : $0 < $1
        }
        let best = order.prefix(recombination.count).map { population[$0].point }
        population = []
        // Steps of the best in units of the step size, and their weighted mean.
        let steps = best.map { point in zip(point, mean).map { ($0 - $1) / stepSize } }
        let shift = mean.indices.map { row in zip(recombination, steps).reduce(0) { $0 + $1.0 * $1.1[row] } }
        for row in mean.indices { mean[row] = clamped(mean[row] + stepSize * shift[row]) }

        let whitened = whitened(shift)
        let keptStep = 1 - rates.stepPath, addedStep = (rates.stepPath * (2 - rates.stepPath) * rates.effective).squareRoot()
        for row in mean.indices { stepPath[row] = keptStep * stepPath[row] + addedStep * whitened[row] }
        let length = dot(stepPath, stepPath).squareRoot()
        // While steps are still far too small the path of the covariance stands still.
        let unbiased = length / (1 - pow(keptStep, 2 * Double(generation))).squareRoot()
        let isMoving: Double = unbiased < (1.4 + 2 / (Double(mean.count) + 1)) * rates.normalLength ? 1 : 0
        let keptPath = 1 - rates.covariancePath, addedPath = (rates.covariancePath * (2 - rates.covariancePath) * rates.effective).squareRoot()
        for row in mean.indices { covariancePath[row] = keptPath * covariancePath[row] + isMoving * addedPath * shift[row] }

        let lost = (1 - isMoving) * rates.rankOne * rates.covariancePath * (2 - rates.covariancePath)
        let kept = 1 - rates.rankOne - rates.rankMu + lost
        for row in mean.indices {
            for column in 0...row {
                let ofBest = zip(recombination, steps).reduce(0) { $0 + $1.0 * $1.1[row] * $1.1[column] }
                let value = kept * covariance[row][column] + rates.rankOne * covariancePath[row] * covariancePath[column] + rates.rankMu * ofBest
                covariance[row][column] = value
                covariance[column][row] = value
            }
        }
        // No step is longer than the box is wide: on a plain the size would grow without end.
        stepSize = min(
            stepSize * exp(rates.stepPath / rates.damping * (length / rates.normalLength - 1)), bounds.upperBound - bounds.lowerBound)
        decompose()
    }

    /// C^(-1/2) · step.
    private func whitened(_ step: [Double]) -> [Double] {
        let turned = mean.indices.map { column in mean.indices.reduce(0) { $0 + basis[$1][column] * step[$1] } / deviations[column] }
        return mean.indices.map { dot(basis[$0], turned) }
    }

    private func dot(_ x: [Double], _ y: [Double]) -> Double { zip(x, y).reduce(0) { $0 + $1.0 * $1.1 } }

    /// Eigenvectors and roots of eigenvalues of the covariance, by cyclic rotations (Jacobi; Golub and Van Loan, §8.5).
    private mutating func decompose() {
        var (matrix, vectors) = (covariance, Self.identity(mean.count))
        for _ in 0..<30 {
            var largest = 0.0
            for p in matrix.indices {
                for q in p + 1..<max(p + 1, matrix.count) {
                    let limit = 1e-15 * (abs(matrix[p][p]) * abs(matrix[q][q])).squareRoot()
                    guard abs(matrix[p][q]) > limit else { continue }
                    largest = max(largest, abs(matrix[p][q]))
                    let theta = (matrix[q][q] - matrix[p][p]) / (2 * matrix[p][q])
                    let tangent = (theta >= 0 ? 1.0 : -1.0) / (abs(theta) + (1 + theta * theta).squareRoot())
                    let cosine = 1 / (1 + tangent * tangent).squareRoot()
                    Self.rotate(&matrix, &vectors, p, q, cosine, cosine * tangent)
                }
            }
            if largest == 0 { break }
        }
        basis = vectors
        // Rounding can leave an eigenvalue of zero, or one below it.
        deviations = matrix.indices.map { max(matrix[$0][$0], 1e-30).squareRoot() }
    }

    /// matrix becomes Jᵀ · matrix · J, vectors become vectors · J.
    private static func rotate(_ matrix: inout [[Double]], _ vectors: inout [[Double]], _ p: Int, _ q: Int, _ cosine: Double, _ sine: Double) {
        for k in matrix.indices {
            let (x, y) = (matrix[k][p], matrix[k][q])
            (matrix[k][p], matrix[k][q]) = (cosine * x - sine * y, sine * x + cosine * y)
            let (u, v) = (vectors[k][p], vectors[k][q])
            (vectors[k][p], vectors[k][q]) = (cosine * u - sine * v, sine * u + cosine * v)
        }
        for k in matrix.indices {
            let (x, y) = (matrix[p][k], matrix[q][k])
            (matrix[p][k], matrix[q][k]) = (cosine * x - sine * y, sine * x + cosine * y)
        }
    }
}
