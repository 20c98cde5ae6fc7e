// Bytes of every pool of a run, by arithmetic alone: no weight is mapped and nothing is allocated to know them. What
// TrainStep allocates is asserted against these numbers.
import EdgeModel
import EdgeTensor

/// Which activations the forward keeps for the backward.
package enum RecomputePolicy: String, Equatable, Sendable {
    /// The result of every product: no product is computed twice.
    case keepAll
    /// Only each layer's input; everything else is computed again in the backward.
    case everyLayer
}

/// The sizes that decide how much memory a step takes.
package struct StepShape: Equatable, Sendable {
    /// Tokens of the largest micro-batch, held-out batches included.
    package var tokens: Int
    /// Tokens of the longest sample.
    package var longestSample: Int
    package var policy: RecomputePolicy
    /// Loss tokens whose logits exist at once.
    package var lossChunk: Int
    package var threads: Int
    /// Whether a second copy of the adapter is kept: the best one so far.
    package var keepsBest: Bool
    /// What products with frozen weights are computed in while training; held-out loss is always computed in f32.
    package var compute: ComputeType

    package init(
        tokens: Int, longestSample: Int, policy: RecomputePolicy, lossChunk: Int, threads: Int, keepsBest: Bool,
        compute: ComputeType
    ) {
        self.tokens = tokens
        self.longestSample = longestSample
        self.policy = policy
        self.lossChunk = lossChunk
        self.threads = threads
        self.keepsBest = keepsBest
        self.compute = compute
    }
}

package struct MemoryModel {
    package struct Pool: Equatable, Sendable {
        package let name: String
        package let size: ByteCount
    }

    package let spec: DecoderSpec
    package let lora: LoRASpec
    package let modules: [ModuleID]
    package let weightBytes: ByteCount

    package init(spec: DecoderSpec, lora: LoRASpec, modules: [ModuleID], weightBytes: ByteCount) {
        self.spec = spec
        self.lora = lora
        self.modules = modules
        self.weightBytes = weightBytes
    }

    /// Program, libraries, runtime, thread stacks and malloc's own, before the first tensor: measured as the resident
    /// set of a worker that has opened a model and has an arena of zero bytes (x86-64, `edgebench plan`).
    package static let processBytes = ByteCount(48 << 20)

    var parameterFloats: ByteCount {
        .floats(AdapterSet.layout(modules, rank: lora.rank, of: spec).count)
    }
    var lowestLayer: Int { modules.map(\.layer).min() ?? 0 }
    var adaptedModules: Set<LinearModule> { Set(modules.map(\.module)) }
    package var trainedLayers: Int { spec.layerCount - lowestLayer }
    /// Widest input of an adapted module: what dropout needs per token.
    var widestInput: Int { adaptedModules.map { $0.inFeatures(spec) }.max() ?? 0 }

    package func adapters(_ shape: StepShape) -> ByteCount {
        shape.keepsBest ? parameterFloats + parameterFloats : parameterFloats
    }
    /// The copy that is published; it is made before the arena goes.
    package var publishedCopy: ByteCount { parameterFloats }
    /// While the artifact is written and read back the arena is gone. What there is then: the copy, the file's bytes,
    /// their decompressed form, and the tensors read from it.
    package var publication: ByteCount { ByteCount(parameterFloats.bytes * 5) }
    package var gradients: ByteCount { parameterFloats }
    package var optimizer: ByteCount { parameterFloats + parameterFloats }

    /// Inputs of the trained layers, the last layer's output, and one more that the frozen layers below alternate with.
    package func layerCheckpoints(_ shape: StepShape) -> ByteCount {
        let one = ByteCount.floats(shape.tokens * spec.hiddenSize)
        return ByteCount(one.bytes * (trainedLayers + 2))
    }

    package func activations(_ shape: StepShape) -> ByteCount {
        let one = LayerActivations.bytes(tokens: shape.tokens, rank: lora.rank, adapted: adaptedModules, spec)
        return ByteCount(one.bytes * (shape.policy == .keepAll ? trainedLayers : 1))
            + RemadeActivations.bytes(tokens: shape.tokens, spec)
    }

    package func layerGradients(_ shape: StepShape) -> ByteCount {
        LayerGradients.bytes(tokens: shape.tokens, rank: lora.rank, spec) + .floats(shape.tokens * spec.hiddenSize)
            + (lora.dropout > 0 ? .floats(shape.tokens * widestInput) : .zero)
    }

    package func loss(_ shape: StepShape) -> ByteCount {
        let hidden = ByteCount.floats(shape.lossChunk * spec.hiddenSize)
        let row = ByteCount.floats(shape.lossChunk)
        return .floats(shape.lossChunk * spec.vocabularySize) + hidden + hidden + hidden + row + row
    }

    /// The largest of a step's products: its left operands in the type that is computed in.
    package func rounding(_ shape: StepShape) -> ByteCount {
        let ofLayers = [
            [spec.hiddenSize], [spec.queryWidth], [spec.intermediateSize], [spec.intermediateSize, spec.intermediateSize],
            [spec.queryWidth, spec.keyValueWidth, spec.keyValueWidth],
        ].map { RoundedRows.bytes(shape.compute, rows: shape.tokens, widths: $0) }
        let ofHead = [spec.hiddenSize, spec.vocabularySize].map {
            RoundedRows.bytes(shape.compute, rows: shape.lossChunk, widths: [$0])
        }
        return (ofLayers + ofHead).max()!
    }

    package func scratchFloats(_ shape: StepShape) -> Int {
        max(CausalAttention.scratchFloats(longest: shape.longestSample), spec.intermediateSize, spec.hiddenSize)
    }

    package func scratch(_ shape: StepShape) -> ByteCount {
        WorkerPool.scratchBytes(threads: shape.threads, scratchFloats: scratchFloats(shape))
            + RotaryEmbedding.bytes(positions: shape.longestSample, headDim: spec.headDim)
            + ByteCount(4 * ByteCount.floats(shape.tokens).bytes)
    }

    /// Everything that one arena holds.
    package func arena(_ shape: StepShape) -> ByteCount {
        adapters(shape) + gradients + optimizer + layerCheckpoints(shape) + activations(shape) + layerGradients(shape)
            + loss(shape) + rounding(shape) + scratch(shape)
    }

    package func pools(_ shape: StepShape) -> [Pool] {
        [
            Pool(name: "base weights, mapped", size: weightBytes),
            Pool(name: "adapters", size: adapters(shape)),
            Pool(name: "gradients", size: gradients),
            Pool(name: "optimizer state", size: optimizer),
            Pool(name: "adapter to publish", size: publishedCopy),
            Pool(name: "layer checkpoints", size: layerCheckpoints(shape)),
            Pool(name: "activations", size: activations(shape)),
            Pool(name: "layer gradients", size: layerGradients(shape)),
            Pool(name: "loss chunk", size: loss(shape)),
            Pool(name: "rounded operands", size: rounding(shape)),
            Pool(name: "kernel panels and tables", size: scratch(shape)),
            Pool(name: "program and libraries", size: Self.processBytes),
        ]
    }

    /// The larger of the training's and the publication's; the first, but for the smallest batches.
    package func peak(_ shape: StepShape) -> ByteCount {
        max(pools(shape).reduce(.zero) { $0 + $1.size }, weightBytes + publication + Self.processBytes)
    }
}
