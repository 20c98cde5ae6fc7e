// Text from a model, with or without an adapter: a prompt in chunks, then one token at a time over cached keys and
// values.
import EdgeFormats
import EdgeModel
import EdgeTensor

package struct GenerationSettings: Equatable, Sendable {
    package var maxTokens: Int
    /// 0: the most likely token.
    package var temperature: Float
    package var seed: UInt64
    package init(maxTokens: Int, temperature: Float, seed: UInt64) {
        self.maxTokens = maxTokens
        self.temperature = temperature
        self.seed = seed
    }
}

package enum GenerationError: Error, Equatable, CustomStringConvertible {
    case emptyPrompt
    case tooLong(prompt: Int, maxTokens: Int, contextLength: Int)

    package var description: String {
        switch self {
        case .emptyPrompt: "the prompt has no tokens"
        case .tooLong(let prompt, let maxTokens, let contextLength):
            "\(prompt) prompt tokens and max_tokens \(maxTokens) are more than the model's context of \(contextLength)"
        }
    }
}

package final class Generator {
    private let model: BaseModel
    private let adapters: AdapterSet?
    private let pool: WorkerPool
    private let rotaries: [RotaryEmbedding]
    private let arena: Arena
    private let context: Int
    /// Of the adapter: keys before the prompt's, and rows.
    private let prefixTokens: Int
    /// Keys of the cache that do not make positions higher.
    private let unshifted: Int
    private let promptTokens: Int
    private let promptChunk: Int
    private let gateSums: UnsafeMutablePointer<Float>
    /// Of gateSums.
    private let gateCount: Int
    private let keys: [Tensor], values: [Tensor]
    /// Nil where the adapter has no side network.
    private let side: Side?
    private let activations: LayerActivations
    private let workspace: LayerWorkspace
    private let scaledRows: UnsafeMutablePointer<Float>
    private let hidden: (Tensor, Tensor)
    private let lastNormed: Tensor
    private let inverseNorm: UnsafeMutablePointer<Float>
    private let logits: Tensor
    private let tokens: UnsafeMutablePointer<Int32>
    private let positions: UnsafeMutablePointer<Int32>

    /// What a side network needs beside the adapter.
    private struct Side {
        let memory: SideMemory
        let keys: [Tensor], values: [Tensor]
        /// The last state, and the number, of the token whose logits are asked for.
        let lastState: UnsafeMutablePointer<Float>
        let lastToken: UnsafeMutablePointer<Int32>

        static func bytes(_ sizes: SideSizes, _ spec: DecoderSpec, chunk: Int, context: Int) -> ByteCount {
            ByteCount(2 * spec.layerCount * ByteCount.floats(context * sizes.queryWidth).bytes)
                + SideMemory.stateBytes(sizes, tokens: chunk, layers: spec.layerCount, .forwardOnly)
                + SideMemory.workBytes(sizes, tokens: chunk, .forwardOnly) + .floats(sizes.width) + .floats(1)
        }

        init(_ sizes: SideSizes, _ spec: DecoderSpec, chunk: Int, context: Int, arena: Arena) {
            keys = (0..<spec.layerCount).map { _ in arena.tensor(context, sizes.queryWidth) }
            values = (0..<spec.layerCount).map { _ in arena.tensor(context, sizes.queryWidth) }
            memory = SideMemory(
                sizes, states: SideMemory.states(sizes, tokens: chunk, layers: spec.layerCount, .forwardOnly, arena: arena),
                work: SideMemory.work(sizes, tokens: chunk, .forwardOnly, arena: arena))
            lastState = arena.floats(sizes.width)
            lastToken = arena.integers(1)
        }
    }

    /// Prompt tokens that go through the layers at once: all where a gate needs them.
    private static func promptChunk(_ spec: DecoderSpec, _ adapter: AdapterLayout?, context: Int) -> Int {
        gateCount(spec, adapter) > 0 ? context : 128
    }

    /// Bytes of the arena of a generator, beside the mapped weights.
    package static func bytes(_ spec: DecoderSpec, _ adapter: AdapterLayout?, context: Int, threads: Int) -> ByteCount {
        let chunk = promptChunk(spec, adapter, context: context)
        let cache = ByteCount(2 * spec.layerCount * ByteCount.floats(context * spec.keyValueWidth).bytes)
        let ofAdapter = adapter.map { ByteCount.floats($0.parameterCount) + .floats($0.factorCount(isTrained: false)) } ?? .zero
        let hidden = ByteCount.floats(chunk * spec.hiddenSize)
        let side = adapter.flatMap { SideSizes([$0]) }.map { Side.bytes($0, spec, chunk: chunk, context: context) } ?? .zero
        return cache + ofAdapter + side + hidden + hidden
            + LayerActivations.bytes(
                tokens: chunk, mlpTokens: chunk, rank: adapter?.factorRank ?? 1, adapted: adapter?.modules ?? [], partMemory(spec, adapter), spec)
            + .floats(adapter?.scaledCount(tokens: chunk, isTrained: false) ?? 0)
            + LayerWorkspace.bytes(
                tokens: chunk, mlpTokens: chunk, partMemory(spec, adapter), spec, .forwardOnly, adapter.flatMap { MixtureSizes([$0]) })
            + .floats(gateCount(spec, adapter)) + .floats(spec.hiddenSize) + .floats(1) + .floats(spec.vocabularySize) + .floats(chunk) + .floats(chunk)
            + WorkerPool.scratchBytes(threads: threads, scratchFloats: scratchFloats(spec, adapter, context: context))
            + RotaryEmbedding.bytes(positions: context, spec)
    }

    private static func gateCount(_ spec: DecoderSpec, _ adapter: AdapterLayout?) -> Int {
        adapter?.spec.method.isGated == true ? RunningGates.count(layers: spec.layerCount) : 0
    }

    private static func partMemory(_ spec: DecoderSpec, _ adapter: AdapterLayout?) -> PartMemory {
        PartMemory(adapter.map { [$0.spec] } ?? [], of: spec).forwardOnly
    }

    private static func scratchFloats(_ spec: DecoderSpec, _ adapter: AdapterLayout?, context: Int) -> Int {
        max(CausalAttention.scratchFloats(longest: context), spec.intermediateSize, spec.hiddenSize, adapter?.scratchFloats ?? 0)
    }

    /// - Parameters:
    ///   - adapter: its layout, and what writes the parameters into the block.
    ///   - context: prompt and answer together, in tokens, and the adapter's virtual ones.
    package init(
        model: BaseModel, adapter: (layout: AdapterLayout, load: (AdapterSet) throws -> Void)?,
        context: Int, kernels: KernelSet, threads: Int
    ) throws {
        let spec = model.spec
        self.model = model
        self.context = context
        let layout = adapter?.layout
        prefixTokens = layout.map { $0.spec.prefixTokens } ?? 0
        unshifted = prefixTokens - (layout?.positionShift ?? 0)
        promptTokens = layout.map { $0.spec.promptTokens } ?? 0
        arena = try Arena(capacity: Self.bytes(spec, layout, context: context, threads: threads))
        pool = WorkerPool(
            kernels: kernels, threadCount: threads, scratchFloats: Self.scratchFloats(spec, layout, context: context),
            arena: arena)
        rotaries = RotaryEmbedding.tables(positions: context, spec, arena: arena)
        if let adapter {
            let set = AdapterSet(
                adapter.layout, of: spec, parameters: arena.floats(adapter.layout.parameterCount), gradients: nil,
                factorSpace: arena.floats(adapter.layout.factorCount(isTrained: false)))
            try adapter.load(set)
            adapters = set
        } else {
            adapters = nil
        }
        let arena = arena
        keys = (0..<spec.layerCount).map { _ in arena.tensor(context, spec.keyValueWidth) }
        values = (0..<spec.layerCount).map { _ in arena.tensor(context, spec.keyValueWidth) }
        for layer in 0..<spec.layerCount {
            for (part, cache) in zip(adapters?.part(.prefix, layer: layer) ?? [], [keys[layer], values[layer]]) {
                cache.prefix(prefixTokens).copy(from: part.matrix)
            }
        }
        let chunk = Self.promptChunk(spec, layout, context: context)
        promptChunk = chunk
        side = layout.flatMap { SideSizes([$0]) }.map { Side($0, spec, chunk: chunk, context: context, arena: arena) }
        activations = LayerActivations(
            tokens: chunk, mlpTokens: chunk, rank: layout?.factorRank ?? 1, adapted: layout?.modules ?? [],
            Self.partMemory(spec, layout), spec, arena: arena)
        scaledRows = arena.floats(layout?.scaledCount(tokens: chunk, isTrained: false) ?? 0)
        workspace = LayerWorkspace(
            tokens: chunk, mlpTokens: chunk, Self.partMemory(spec, layout), spec, .forwardOnly,
            layout.flatMap { MixtureSizes([$0]) }, arena: arena)
        hidden = (arena.tensor(chunk, spec.hiddenSize), arena.tensor(chunk, spec.hiddenSize))
        gateCount = Self.gateCount(spec, layout)
        gateSums = arena.floats(gateCount)
        lastNormed = arena.tensor(1, spec.hiddenSize)
        inverseNorm = arena.floats(1)
        logits = arena.tensor(1, spec.vocabularySize)
        tokens = arena.integers(chunk)
        positions = arena.integers(chunk)
    }

    /// Calls `onToken` for each new token until it returns `.stop`, an end token comes, or `maxTokens` are there.
    /// Returns the number of tokens generated, without the end token.
    package func generate(
        prompt: [TokenID], _ settings: GenerationSettings, endTokens: Set<TokenID>,
        onToken: (TokenID) throws -> RunDirection
    ) throws -> Int {
        guard !prompt.isEmpty else { throw GenerationError.emptyPrompt }
        let virtualTokens = prefixTokens + promptTokens
        guard virtualTokens + prompt.count + settings.maxTokens <= context else {
            throw GenerationError.tooLong(
                prompt: virtualTokens + prompt.count, maxTokens: settings.maxTokens, contextLength: context)
        }
        let prompt = [TokenID](repeating: 0, count: promptTokens) + prompt
        var past = prefixTokens
        gateSums.update(repeating: 0, count: gateCount)
        for first in stride(from: 0, to: prompt.count, by: promptChunk) {
            let chunk = prompt[first..<min(first + promptChunk, prompt.count)]
            advance(chunk, past: past)
            past += chunk.count
        }
        let random = RandomSource(seed: settings.seed, .sampling)
        for index in 0..<settings.maxTokens {
            let token = choose(settings, random, index)
            if endTokens.contains(token) { return index }
            if try onToken(token) == .stop { return index + 1 }
            advance([token], past: past)
            past += 1
        }
        return settings.maxTokens
    }

    /// Runs new tokens through the model and leaves the logits of the last one.
    private func advance(_ new: ArraySlice<TokenID>, past: Int) {
        let spec = model.spec
        for (offset, token) in new.enumerated() {
            tokens[offset] = token
            positions[offset] = rotaries.row(position: past - unshifted + offset, length: context)
        }
        var (input, output) = (hidden.0.prefix(new.count), hidden.1.prefix(new.count))
        decodeRows(model.embedding, tokens, into: input, on: pool)
        let trained = adapters?.tokenRows
        trained?.replace(UnsafeBufferPointer(start: tokens, count: new.count), in: input)
        if past < promptTokens, let virtual = adapters?.part(.prompt, layer: nil).first?.matrix {
            let rows = past..<min(promptTokens, past + new.count)
            input.prefix(rows.count).copy(from: virtual.rows(rows))
        }
        multiply(input, by: spec.embeddingScale, on: pool)
        let beside = adapters.flatMap { SideNetwork($0, spec, side?.memory, rotaries, tokens: new.count, positions: positions, on: pool) }
        beside?.begin(input)
        let gates = gateCount > 0 ? RunningGates(sums: gateSums, past: past - prefixTokens) : nil
        for index in 0..<spec.layerCount {
            var layer = DecoderLayer(
                index: index, spec: spec, weights: model.layers[index], jobs: adapters.map { [LayerJob($0, runningGates: gates)] } ?? [], rotaries: rotaries,
                dropped: nil, scaledRows: scaledRows, rounding: .unrounded, pool: pool)
            layer.mixture = workspace.mixture
            layer.forwardCached(
                input, positions: positions, past: past, keyCache: keys[index], valueCache: values[index], activations,
                workspace, into: output)
            if let side { beside?.forwardCached(index, output, past: past, keys: side.keys[index], values: side.values[index]) }
            swap(&input, &output)
        }
        let last = Tensor(input.row(new.count - 1), rows: 1, columns: spec.hiddenSize)
        if let side {
            side.lastToken[0] = Int32(new.count - 1)
            beside?.addOutput(of: side.lastToken, gathered: side.lastState, to: last)
        }
        let norm = adapters?.norm(.final, layer: nil, insteadOf: model.outputNorm, spec)?.norm ?? model.outputNorm
        normalize(last, norm, into: lastNormed, inverse: inverseNorm, on: pool)
        multiply(lastNormed, by: spec.logitScale, on: pool)
        linearVector(lastNormed, model.head, into: logits, on: pool)
        if model.isHeadTied, let trained {
            for (row, token) in trained.tokens.enumerated() {
                logits.base[Int(token)] = pool.kernels.raw.dot(lastNormed.base, trained.matrix.row(row), spec.hiddenSize)
            }
        }
        if let cap = spec.logitCap { softCap(logits, cap, on: pool) }
    }

    private func choose(_ settings: GenerationSettings, _ random: RandomSource, _ index: Int) -> TokenID {
        let count = logits.columns
        if settings.temperature == 0 {
            var best = 0
            for i in 1..<count where logits.base[i] > logits.base[best] { best = i }
            return TokenID(best)
        }
        _ = pool.kernels.raw.softmax(logits.base, count, 1 / settings.temperature)
        var remaining = random.uniform(index)
        for i in 0..<count {
            remaining -= logits.base[i]
            if remaining < 0 { return TokenID(i) }
        }
        // Rounding can leave a crumb after the last probability.
        return TokenID(count - 1)
    }
}
