// Training without a backward: MeZO (arXiv:2305.17333, algorithm 1) on an adapter. A step draws one direction z ~ N(0, 1), and has the losses
// of the step's samples at θ + ε·z and at θ - ε·z; g = (L(θ + ε·z) - L(θ - ε·z)) / 2ε is the gradient along z, and θ ← θ - η·(g·z + λ·θ), as the
// paper's program has it (princeton-nlp/MeZO, large_models/trainer.py, `zo_update`). There are no gradients, no moments, no layer inputs
// that wait for a backward: the memory is that of a forward. What it costs are steps, 10 to 100 times as many (§3 there).
//
// Both losses have the same dropout masks: L is then one function of θ, and its difference has no noise of the masks. Here z is drawn
// once more instead of being kept, and the perturbed parameters are made of θ layer by layer (EdgeModel/PerturbedAdapters.swift), so θ never
// drifts by what rounding adds to it and takes from it again, and a step that is cut off has changed nothing.
import EdgeFormats
import EdgeModel
import EdgeTensor

/// When a job takes such steps.
package enum ZerothOrderUse: Equatable, Sendable {
    case never
    /// Where no plan with a backward fits.
    case whereNothingElseFits
    case always
}

package enum ZerothOrder {
    /// MeZO's `zo_eps`.
    package static let defaultEpsilon: Float = 1e-3

    /// Whether losses alone say where a method's parameters are to go: not AdaLoRA's, which takes ranks away by every parameter's own
    /// gradient, nor those of a method that draws ranks, where z would move what the step's loss does not depend on, nor MixLoRA's, whose
    /// balance of experts has a gradient and no part in the losses.
    package static func isPossible(with method: any AdapterMethod) -> Bool {
        !(method is AdaLoRA) && !method.drawsRank && method.mixture == nil
    }

    /// The stream of a step's z.
    package static func direction(seed: UInt64, step: Int) -> RandomSource { RandomSource(seed: seed, .direction, UInt64(step)) }

    /// Losses at θ + ε·z and θ - ε·z.
    package struct Losses: Equatable, Sendable {
        package let ahead: Double
        package let behind: Double
        package init(ahead: Double, behind: Double) {
            self.ahead = ahead
            self.behind = behind
        }

        /// That of θ, but for ε² times its curvature along z.
        package var mean: Double { (ahead + behind) / 2 }

        /// The gradient along z, whose mean square over all z is the square of the gradient's norm.
        package func slope(epsilon: Float) -> Double { (ahead - behind) / (2 * Double(epsilon)) }
    }
}

extension AdapterSet {
    /// θ ← θ - η·(slope·z + λ·θ), a matrix's η being the learning rate times its own factor.
    package func descend(along direction: RandomSource, slope: Double, learningRate: Double, weightDecay: Float, on pool: WorkerPool) {
        move(along: direction, on: pool) { factor in
            let rate = learningRate * factor
            return (decay: Float(1 - rate * Double(weightDecay)), step: Float(rate * slope))
        }
    }
}
