// AdamW on the adapters' matrices (arXiv:1711.05101; torch.optim.AdamW's and bitsandbytes' order of operations).
import CEdgeKernels
import EdgeModel
import EdgeTensor
import Glibc

package struct AdamW {
    private struct Matrix {
        /// In the adapters' block.
        let elements: Range<Int>
        let stored: OptimizerState
        /// Of its moments in `state`, in bytes.
        let offset: Int
        let learningRateFactor: Double
    }

    package let kind: OptimizerState
    /// All moments: what a checkpoint saves. Zero bytes are moments of zero.
    package let state: UnsafeMutableRawBufferPointer
    /// In the order of the block.
    private let matrices: [Matrix]

    /// What the moments of `matrices` take.
    package static func bytes(_ matrices: [TrainedMatrix], _ kind: OptimizerState) -> ByteCount {
        matrices.reduce(.zero) { $0 + kind.bytes(count: $1.elements.count) }
    }

    /// - Parameter matrices: as `AdapterLayout.trained` lists them.
    package init(_ matrices: [TrainedMatrix], _ kind: OptimizerState, arena: Arena) {
        self.kind = kind
        state = arena.bytes(Self.bytes(matrices, kind))
        var offset = 0
        self.matrices = matrices.map { matrix in
            let elements = matrix.elements
            defer { offset += kind.bytes(count: elements.count).bytes }
            return Matrix(
                elements: elements, stored: kind.stored(count: elements.count), offset: offset,
                learningRateFactor: matrix.learningRateFactor)
        }
    }

    /// The factor that gradients of this norm, all of them together, are clipped by: torch.nn.utils.clip_grad_norm_'s.
    package static func clipping(norm: Double, _ spec: TrainingSpec) -> Double {
        spec.maxGradNorm.map { min(1, $0 / (norm + 1e-6)) } ?? 1
    }

    /// Applies step `step` (from 0) to some of the adapters' trained matrices.
    ///
    /// - Parameters:
    ///   - elements: of the block: all that is trained, or one layer's.
    ///   - gradients: those of these elements alone.
    ///   - gradientScale: what gradients are multiplied by first.
    package func update(
        elements: Range<Int>, parameters: UnsafeMutablePointer<Float>, gradients: UnsafePointer<Float>,
        gradientScale: Double, step: Int, learningRate: Double, _ spec: TrainingSpec, on pool: WorkerPool
    ) {
        update(elements: elements, parameters: parameters, gradients: gradients, on: pool) { factor in
            let learningRate = learningRate * factor
            return edge_adamw(
                decay: Float(1 - learningRate * Double(spec.weightDecay)),
                step: Float(learningRate / (1 - pow(spec.beta1, Double(step + 1)))),
                root_correction2: Float((1 - pow(spec.beta2, Double(step + 1))).squareRoot()),
                beta1: Float(spec.beta1), rate1: Float(1 - spec.beta1), beta2: Float(spec.beta2), rate2: Float(1 - spec.beta2),
                epsilon: spec.adamEpsilon, gradient_scale: Float(gradientScale))
        }
    }

    /// - Parameter settings: by what a matrix's learning rate is multiplied by.
    func update(
        elements: Range<Int>, parameters: UnsafeMutablePointer<Float>, gradients: UnsafePointer<Float>, on pool: WorkerPool,
        settings: (_ learningRateFactor: Double) -> edge_adamw
    ) {
        let group = matrices.filter { elements.contains($0.elements.lowerBound) }
        let first = elements.lowerBound
        let settings = group.map { settings($0.learningRateFactor) }
        // Matrices are independent of each other: as many threads as there are, the same bits.
        let count = group.reduce(0) { $0 + $1.elements.count }
        pool.run(group.count, as: .optimizer, Self.cost(count, kind)) { piece, _ in
            let matrix = group[piece]
            update(
                matrix, parameters + matrix.elements.lowerBound, gradients + (matrix.elements.lowerBound - first),
                settings[piece], pool.kernels)
        }
    }

    /// Parameter, gradient and moments are read, all but the gradient are written.
    private static func cost(_ count: Int, _ kind: OptimizerState) -> OperationCost {
        OperationCost(flop: Double(16 * count), bytes: Double(12 * count + 2 * kind.bytes(count: count).bytes))
    }

    private func update(
        _ matrix: Matrix, _ parameters: UnsafeMutablePointer<Float>, _ gradients: UnsafePointer<Float>,
        _ settings: edge_adamw, _ kernels: KernelSet
    ) {
        let moments = state.baseAddress! + matrix.offset
        let count = matrix.elements.count
        var settings = settings
        switch matrix.stored {
        case .f32:
            let moment1 = moments.assumingMemoryBound(to: Float.self)
            kernels.raw.adamw(
                parameters, gradients, moment1, moment1 + ByteCount.floats(count).bytes / 4, count, &settings)
        case .bf16:
            let moment1 = moments.assumingMemoryBound(to: UInt16.self)
            kernels.raw.adamw_bf16(parameters, gradients, moment1, moment1 + count, count, &settings)
        case .eightBit:
            let blocks = OptimizerState.blocks(count)
            let absmax = moments.assumingMemoryBound(to: Float.self)
            let codes = (moments + 2 * blocks * 4).assumingMemoryBound(to: UInt8.self)
            var moment1 = edge_moment8(codes: codes, absmax: absmax)
            var moment2 = edge_moment8(codes: codes + count, absmax: absmax + blocks)
            kernels.raw.adamw_8bit(parameters, gradients, &moment1, &moment2, count, &settings)
        }
    }
}
