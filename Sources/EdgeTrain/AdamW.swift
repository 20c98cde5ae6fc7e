// AdamW on the adapters' block of parameters (arXiv:1711.05101; torch.optim.AdamW's order of operations).
import CEdgeKernels
import EdgeTensor
import Glibc

package struct AdamW {
    package let moment1: UnsafeMutablePointer<Float>
    package let moment2: UnsafeMutablePointer<Float>
    package let count: Int

    package init(count: Int, arena: Arena) {
        self.count = count
        moment1 = arena.floats(count)
        moment2 = arena.floats(count)
    }

    /// Applies step `step` (from 0).
    ///
    /// - Parameter norm: of all gradients together, before clipping.
    package func update(
        parameters: UnsafeMutablePointer<Float>, gradients: UnsafePointer<Float>, norm: Double, step: Int,
        learningRate: Double, _ spec: TrainingSpec, kernels: KernelSet
    ) {
        // As torch.nn.utils.clip_grad_norm_.
        let clip = spec.maxGradNorm.map { min(1, $0 / (norm + 1e-6)) } ?? 1
        let (beta1, beta2) = (Double(spec.beta1), Double(spec.beta2))
        var settings = edge_adamw(
            decay: Float(1 - learningRate * Double(spec.weightDecay)),
            step: Float(learningRate / (1 - pow(beta1, Double(step + 1)))),
            root_correction2: Float((1 - pow(beta2, Double(step + 1))).squareRoot()),
            beta1: spec.beta1, rate1: Float(1 - beta1), beta2: spec.beta2, rate2: Float(1 - beta2),
            epsilon: spec.adamEpsilon, gradient_scale: Float(clip))
        kernels.raw.adamw(parameters, gradients, moment1, moment2, count, &settings)
    }
}
