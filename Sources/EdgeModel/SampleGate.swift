// UniPELT's gate (arXiv:2110.07577 §3.2): a number per sample that what a part of an adapter gives is multiplied by,
//
//   g = the mean over the sample's tokens of σ(x · wᵀ + b)
//
// as the adapters library has it in decoders, too (`use_gating` in its methods): a token's g has later tokens in it. While text is
// generated, g is the mean over the prompt, and then over the tokens so far.
import EdgeTensor
import Glibc

/// Of a sequence that is being generated, what the sigmoids of each gate have summed up to.
package struct RunningGates {
    private let sums: UnsafeMutablePointer<Float>
    /// Tokens that have been through all layers.
    private let past: Int

    /// - Parameter sums: of `count` elements; zero where there are no past tokens.
    package init(sums: UnsafeMutablePointer<Float>, past: Int) { (self.sums, self.past) = (sums, past) }

    private static let ofLayer = LinearModule.allCases.count + 3
    package static func count(layers: Int) -> Int { layers * ofLayer }

    /// Of one gate.
    struct Mean {
        fileprivate let sum: UnsafeMutablePointer<Float>
        fileprivate let past: Int
    }

    private func mean(_ layer: Int, _ gate: Int) -> Mean { Mean(sum: sums + layer * Self.ofLayer + gate, past: past) }
    func of(_ module: LinearModule, layer: Int) -> Mean { mean(layer, module.rawValue) }
    func ofPrefix(layer: Int) -> Mean { mean(layer, LinearModule.allCases.count) }
    func ofBottleneck(_ site: AdapterSite, layer: Int) -> Mean { mean(layer, LinearModule.allCases.count + (site == .afterMLP ? 2 : 1)) }
}

struct SampleGate {
    private let weight: AdapterSet.PartMatrix
    private let bias: AdapterSet.PartMatrix
    /// `[tokens, features]`.
    private let x: Tensor
    /// Of x; every sample whole.
    private let parts: [SamplePart]
    /// Of one sample, of which x has the tokens that are new; nil: x has all.
    private let running: RunningGates.Mean?
    private let pool: WorkerPool

    /// - Parameters:
    ///   - weight: `[1, features]`.
    ///   - bias: one number.
    init(
        _ weight: AdapterSet.PartMatrix, _ bias: AdapterSet.PartMatrix, x: Tensor, _ parts: [SamplePart], _ running: RunningGates.Mean?,
        on pool: WorkerPool
    ) {
        precondition(parts.allSatisfy { $0.firstToken == 0 }, "a gate of a part of a sample")
        precondition(running == nil || parts.count == 1)
        (self.weight, self.bias, self.x, self.parts, self.running, self.pool) = (weight, bias, x, parts, running, pool)
    }

    private func sigmoid(_ row: Int) -> Float {
        1 / (1 + expf(-(pool.kernels.raw.dot(x.row(row), weight.matrix.base, x.columns) + bias.matrix.base[0])))
    }

    /// g of each sample. Of a running one the tokens are counted: to be called once for them.
    func values() -> [Float] {
        eachSample { _, part in
            let sum = part.rows.reduce(0) { $0 + sigmoid($1) }
            guard let running else { return sum / Float(part.rows.count) }
            running.sum.pointee += sum
            return running.sum.pointee / Float(running.past + part.rows.count)
        }
    }

    private func eachSample(_ body: (Int, SamplePart) -> Float) -> [Float] {
        var values = [Float](repeating: 0, count: parts.count)
        values.withUnsafeMutableBufferPointer { values in
            let first = values.baseAddress
            pool.run(parts.count) { index, _ in first?[index] = body(index, parts[index]) }
        }
        return values
    }

    /// Of each sample Σ a · b over its rows.
    func products(_ a: Tensor, _ b: Tensor) -> [Float] {
        eachSample { _, part in part.rows.reduce(0) { $0 + pool.kernels.raw.dot(a.row($1), b.row($1), a.columns) } }
    }

    /// The rows of each sample times its value.
    func scale(_ y: Tensor, by values: [Float], times factor: Float = 1) {
        pool.run(parts.count) { index, _ in
            for row in parts[index].rows { pool.kernels.scale(y.row(row), count: y.columns, by: factor * values[index]) }
        }
    }

    /// Calls `body` with each of the sample's rows and the gradient of what the sigmoid gets there.
    private func forEachSlope(_ sample: Int, _ dValue: Float, _ body: (_ row: Int, _ slope: Float) -> Void) {
        let part = parts[sample]
        for row in part.rows {
            let sigmoid = sigmoid(row)
            body(row, dValue / Float(part.rows.count) * sigmoid * (1 - sigmoid))
        }
    }

    /// Adds the gradients of w and b, sample by sample.
    ///
    /// - Parameter dValues: of each sample's g.
    func addGradients(_ dValues: [Float]) {
        for (sample, dValue) in dValues.enumerated() {
            forEachSlope(sample, dValue) { row, slope in
                pool.kernels.raw.add_scaled(x.row(row), weight.gradient.base, x.columns, slope)
                bias.gradient.base[0] += slope
            }
        }
    }

    /// dx += what x's gradient is by way of the gate.
    func addInputGradient(_ dValues: [Float], to dx: Tensor) {
        pool.run(parts.count) { sample, _ in
            forEachSlope(sample, dValues[sample]) { row, slope in
                pool.kernels.raw.add_scaled(weight.matrix.base, dx.row(row), x.columns, slope)
            }
        }
    }
}

/// What a gate's own backward leaves for that of its input.
struct GateGradient {
    let gate: SampleGate
    let dValues: [Float]
    /// Of the tensor that has the input's gradient.
    let rows: Range<Int>

    func addInputGradient(to dx: Tensor) { gate.addInputGradient(dValues, to: dx.rows(rows)) }
}
