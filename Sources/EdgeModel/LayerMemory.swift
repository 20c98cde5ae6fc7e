// The memory that layers work in: what a forward leaves for its backward, and what only the layer at work needs.
import EdgeTensor

/// What a layer's forward leaves for its backward, and what other layers may not touch until then.
package struct LayerActivations {
    /// Rotated, but for models that normalise q and k: there as the products gave them.
    package let q: Tensor, k: Tensor, v: Tensor, attended: Tensor, logSumExp: Tensor
    package let middle: Tensor, gate: Tensor, up: Tensor
    /// What attention and MLP gave, before it was normalised; of models that do so.
    package let attentionOutput: Tensor, mlpOutput: Tensor
    let read: ReadByBottlenecks
    /// 1 / rms, or 1 / deviation, of the rows of each norm.
    package let inverses: Inverses
    /// `[tokens, rank]` per linear, at its leader; empty rows where no layer adapts it.
    package let projected: [Tensor]

    package struct Inverses {
        let attentionInput: UnsafeMutablePointer<Float>, mlpInput: UnsafeMutablePointer<Float>
        let attentionOutput: UnsafeMutablePointer<Float>, mlpOutput: UnsafeMutablePointer<Float>
        let query: UnsafeMutablePointer<Float>, key: UnsafeMutablePointer<Float>

        /// Rows of each norm for a token.
        private static func counts(_ spec: DecoderSpec) -> [Int] {
            let input = spec.hasInputNorms ? 1 : 0, output = spec.hasOutputNorms ? 1 : 0
            let heads =
                switch spec.headNorm {
                case .none: (0, 0)
                case .perHead: (spec.attentionHeadCount, spec.keyValueHeadCount)
                case .fullWidth: (1, 1)
                }
            return [input, input, output, output, heads.0, heads.1]
        }

        static func bytes(tokens: Int, _ spec: DecoderSpec) -> ByteCount {
            counts(spec).reduce(.zero) { $0 + .floats(tokens * $1) }
        }

        init(tokens: Int, _ spec: DecoderSpec, arena: Arena) {
            let places = Self.counts(spec).map { arena.floats(tokens * $0) }
            (attentionInput, mlpInput, attentionOutput, mlpOutput) = (places[0], places[1], places[2], places[3])
            (query, key) = (places[4], places[5])
        }
    }

    /// What bottlenecks have read after attention and MLP; empty where none has, or what they read is there in any case.
    struct ReadByBottlenecks {
        private let ofAttention: Tensor
        let afterMLP: Tensor

        static func bytes(tokens: Int, mlpTokens: Int, _ ofParts: PartMemory, _ spec: DecoderSpec) -> ByteCount {
            .floats(ofParts.keepsAfterAttention ? tokens * spec.hiddenSize : 0)
                + .floats(ofParts.keepsAfterMLP ? mlpTokens * spec.hiddenSize : 0)
        }

        init(tokens: Int, mlpTokens: Int, _ ofParts: PartMemory, _ spec: DecoderSpec, arena: Arena) {
            ofAttention = arena.tensor(ofParts.keepsAfterAttention ? tokens : 0, spec.hiddenSize)
            afterMLP = arena.tensor(ofParts.keepsAfterMLP ? mlpTokens : 0, spec.hiddenSize)
        }

        func afterAttention(_ tokens: Int) -> Tensor { ofAttention.prefix(min(tokens, ofAttention.rows)) }
    }

    /// - Parameter mlpTokens: rows of what belongs to the MLP: all, or those that it does at once.
    package static func bytes(
        tokens: Int, mlpTokens: Int, rank: Int, adapted: Set<LinearModule>, _ ofParts: PartMemory = .none, _ spec: DecoderSpec
    ) -> ByteCount {
        let output = spec.hasOutputNorms ? spec.hiddenSize : 0
        let widths = [
            spec.hiddenSize, spec.queryWidth, spec.queryWidth, spec.keyValueWidth, spec.keyValueWidth, spec.attentionHeadCount,
            output,
        ]
        let attention = widths.reduce(Inverses.bytes(tokens: tokens, spec)) { $0 + .floats(tokens * $1) }
        let mlp = [spec.intermediateSize, spec.intermediateSize, output].reduce(.zero) { $0 + .floats(mlpTokens * $1) }
        let read = ReadByBottlenecks.bytes(tokens: tokens, mlpTokens: mlpTokens, ofParts, spec)
        return adapted.reduce(attention + mlp + read) { $0 + .floats(($1.isOfMLP ? mlpTokens : tokens) * rank) }
    }

    package init(
        tokens: Int, mlpTokens: Int, rank: Int, adapted: Set<LinearModule>, _ ofParts: PartMemory = .none, _ spec: DecoderSpec,
        arena: Arena
    ) {
        q = arena.tensor(tokens, spec.queryWidth)
        k = arena.tensor(tokens, spec.keyValueWidth)
        v = arena.tensor(tokens, spec.keyValueWidth)
        attended = arena.tensor(tokens, spec.queryWidth)
        logSumExp = arena.tensor(tokens, spec.attentionHeadCount)
        middle = arena.tensor(tokens, spec.hiddenSize)
        gate = arena.tensor(mlpTokens, spec.intermediateSize)
        up = arena.tensor(mlpTokens, spec.intermediateSize)
        attentionOutput = arena.tensor(tokens, spec.hasOutputNorms ? spec.hiddenSize : 0)
        mlpOutput = arena.tensor(mlpTokens, spec.hasOutputNorms ? spec.hiddenSize : 0)
        read = ReadByBottlenecks(tokens: tokens, mlpTokens: mlpTokens, ofParts, spec, arena: arena)
        inverses = Inverses(tokens: tokens, spec, arena: arena)
        projected = LinearModule.allCases.map {
            arena.tensor(adapted.contains($0) ? ($0.isOfMLP ? mlpTokens : tokens) : 0, rank)
        }
    }
}

/// What only the layer at work needs: one exists, for all layers. The norms' results and the activation's cost one cheap pass to
/// make again, so no layer keeps its own.
package struct LayerWorkspace {
    /// Tokens that the MLP does at once.
    let mlpTokens: Int
    /// Inputs of attention and MLP after their norms; without those they are not needed.
    let n1: Tensor, n2: Tensor
    package let activated: Tensor
    /// Normalised and rotated, in models that normalise q and k; empty where there is no backward.
    let q: Tensor, k: Tensor
    /// `[tokens, width]`: what is between a bottleneck's matrices.
    let bottleneck: Tensor
    /// Nil where no prefix has a gate.
    let gatedPrefix: GatedPrefix.Memory?
    /// Nil where there is no backward.
    package let gradients: LayerGradients?
    /// Nil where no job's MLP is a mixture of experts.
    package let mixture: MixtureMemory?

    package enum Use: Equatable, Sendable {
        case forwardOnly
        case training(rank: Int)
    }

    private static func widths(_ spec: DecoderSpec, _ use: Use) -> (norm: Int, q: Int, k: Int) {
        let heads = spec.headNorm == .none || use == .forwardOnly ? (0, 0) : (spec.queryWidth, spec.keyValueWidth)
        return (spec.hasInputNorms ? spec.hiddenSize : 0, heads.0, heads.1)
    }

    package static func bytes(
        tokens: Int, mlpTokens: Int, _ ofParts: PartMemory = .none, _ spec: DecoderSpec, _ use: Use, _ sizes: MixtureSizes? = nil
    ) -> ByteCount {
        let mixture = sizes.map { MixtureMemory.bytes($0, tokens: tokens, mlpTokens: mlpTokens, spec, use) } ?? .zero
        let widths = widths(spec, use)
        let bottleneck = ByteCount.floats(tokens * ofParts.width)
        let prefix = GatedPrefix.Memory.bytes(tokens: ofParts.gatedPrefixTokens, spec, isTrained: use != .forwardOnly)
        let n = ByteCount.floats(tokens * widths.norm) + .floats(mlpTokens * widths.norm) + bottleneck + prefix
        let heads = ByteCount.floats(tokens * widths.q) + .floats(tokens * widths.k)
        let i = ByteCount.floats(mlpTokens * spec.intermediateSize)
        return switch use {
        case .forwardOnly: n + heads + i + mixture
        case .training(let rank):
            n + heads + bottleneck + .floats(tokens * ofParts.gatedWidth) + mixture + LayerGradients.ownBytes(tokens: tokens, rank: rank, spec)
                + max(i + i, LayerGradients.attentionBytes(tokens: tokens, spec))
        }
    }

    package init(
        tokens: Int, mlpTokens: Int, _ ofParts: PartMemory = .none, _ spec: DecoderSpec, _ use: Use,
        _ sizes: MixtureSizes? = nil, arena: Arena
    ) {
        bottleneck = arena.tensor(tokens, ofParts.width)
        let prefixTokens = ofParts.gatedPrefixTokens
        gatedPrefix =
            prefixTokens == 0 ? nil : GatedPrefix.Memory(tokens: prefixTokens, spec, isTrained: use != .forwardOnly, arena: arena)
        self.mlpTokens = mlpTokens
        mixture = sizes.map { MixtureMemory($0, tokens: tokens, mlpTokens: mlpTokens, spec, use, arena: arena) }
        let widths = Self.widths(spec, use)
        n1 = arena.tensor(tokens, widths.norm)
        n2 = arena.tensor(mlpTokens, widths.norm)
        q = arena.tensor(tokens, widths.q)
        k = arena.tensor(tokens, widths.k)
        switch use {
        case .forwardOnly:
            activated = arena.tensor(mlpTokens, spec.intermediateSize)
            gradients = nil
        case .training(let rank):
            let own = LayerGradients.Own(tokens: tokens, rank: rank, ofParts, spec, arena: arena)
            // The MLP's backward is over when the attention's begins.
            let (mlp, attention) = arena.either {
                (arena.tensor(mlpTokens, spec.intermediateSize), arena.tensor(mlpTokens, spec.intermediateSize))
            } or: {
                LayerGradients.Attention(tokens: tokens, spec, arena: arena)
            }
            activated = mlp.0
            gradients = LayerGradients(own: own, dActivated: mlp.1, attention: attention)
        }
    }
}

/// Working memory of the backward.
package struct LayerGradients {
    struct Own {
        let dNormed: Tensor
        /// One per module that reads the same input.
        let dProjected: [Tensor]
        /// `[tokens, width]`.
        let dBottleneck: Tensor
        /// The same of those that have a gate.
        let gatedBottleneck: Tensor

        init(tokens: Int, rank: Int, _ ofParts: PartMemory, _ spec: DecoderSpec, arena: Arena) {
            dBottleneck = arena.tensor(tokens, ofParts.width)
            gatedBottleneck = arena.tensor(tokens, ofParts.gatedWidth)
            dNormed = arena.tensor(tokens, spec.hiddenSize)
            dProjected = (0..<mostTogether).map { _ in arena.tensor(tokens, rank) }
        }
    }

    struct Attention {
        let dAttended: Tensor, dQ: Tensor, dK: Tensor, dV: Tensor, headDK: Tensor, headDV: Tensor

        init(tokens: Int, _ spec: DecoderSpec, arena: Arena) {
            dAttended = arena.tensor(tokens, spec.queryWidth)
            dQ = arena.tensor(tokens, spec.queryWidth)
            dK = arena.tensor(tokens, spec.keyValueWidth)
            dV = arena.tensor(tokens, spec.keyValueWidth)
            headDK = arena.tensor(tokens, spec.queryWidth)
            headDV = arena.tensor(tokens, spec.queryWidth)
        }
    }

    let own: Own
    let dActivated: Tensor
    let attention: Attention

    private static let mostTogether = 3  // q, k, v

    fileprivate static func ownBytes(tokens: Int, rank: Int, _ spec: DecoderSpec) -> ByteCount {
        let projected = ByteCount.floats(tokens * rank).bytes * mostTogether
        return .floats(tokens * spec.hiddenSize) + ByteCount(projected)
    }

    fileprivate static func attentionBytes(tokens: Int, _ spec: DecoderSpec) -> ByteCount {
        let q = ByteCount.floats(tokens * spec.queryWidth), kv = ByteCount.floats(tokens * spec.keyValueWidth)
        return q + q + q + q + kv + kv
    }
}

/// What int8 products of a layer divide the channels of their inputs by; see `measureSmoothing`.
package struct LayerSmoothing {
    private let attentionInput: UnsafeMutablePointer<Float>, attended: UnsafeMutablePointer<Float>
    private let mlpInput: UnsafeMutablePointer<Float>, activated: UnsafeMutablePointer<Float>

    package static func bytes(_ spec: DecoderSpec) -> ByteCount {
        .floats(spec.hiddenSize) + .floats(spec.queryWidth) + .floats(spec.hiddenSize) + .floats(spec.intermediateSize)
    }

    package init(_ spec: DecoderSpec, arena: Arena) {
        attentionInput = arena.floats(spec.hiddenSize)
        attended = arena.floats(spec.queryWidth)
        mlpInput = arena.floats(spec.hiddenSize)
        activated = arena.floats(spec.intermediateSize)
    }

    subscript(module: LinearModule) -> UnsafeMutablePointer<Float> {
        switch module {
        case .query, .key, .value: attentionInput
        case .output: attended
        case .gate, .up: mlpInput
        case .down: activated
        }
    }
}
