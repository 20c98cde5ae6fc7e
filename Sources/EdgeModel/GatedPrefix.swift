// Keys and values before a sample's own, as the layer's attention has them: those of prefix tuning as they are, and UniPELT's times the
// sample's gate, so that each sample attends by itself.
import EdgeTensor

/// A job's keys and values before a sample's own, with the sample's gate.
struct GatedPrefix {
    /// Number of the sample in the batch, and its rows.
    let sample: Int
    let rows: Range<Int>
    let gate: SampleGate
    /// As it is stored.
    let prefix: AttentionPrefix

    /// Of the sample by itself.
    var ownSpan: AttentionSpan { AttentionSpan(firstQuery: 0, queryCount: rows.count, firstKey: 0, keyCount: rows.count) }

    /// The samples whose prefix has no gate, and these prefixes.
    static func without(
        _ gated: [GatedPrefix], _ spans: [AttentionSpan], _ prefixes: [AttentionPrefix?]
    ) -> (spans: [AttentionSpan], prefixes: [AttentionPrefix?]) {
        guard !gated.isEmpty else { return (spans, prefixes) }
        let samples = Set(gated.map(\.sample))
        func others<T>(_ all: [T]) -> [T] { all.indices.filter { !samples.contains($0) }.map { all[$0] } }
        return (others(spans), others(prefixes))
    }

    /// Where a sample's prefix times its gate is, and the gradients of that.
    struct Memory {
        let keys: Tensor, values: Tensor
        /// Empty where there is no backward.
        let dKeys: Tensor, dValues: Tensor

        static func bytes(tokens: Int, _ spec: DecoderSpec, isTrained: Bool) -> ByteCount {
            ByteCount(ByteCount.floats(tokens * spec.keyValueWidth).bytes * (isTrained ? 4 : 2))
        }

        init(tokens: Int, _ spec: DecoderSpec, isTrained: Bool, arena: Arena) {
            keys = arena.tensor(tokens, spec.keyValueWidth)
            values = arena.tensor(tokens, spec.keyValueWidth)
            dKeys = arena.tensor(isTrained ? tokens : 0, spec.keyValueWidth)
            dValues = arena.tensor(isTrained ? tokens : 0, spec.keyValueWidth)
        }
    }

    /// g times keys and values.
    ///
    /// - Parameters:
    ///   - keys, values: at least of the prefix's rows.
    /// - Returns: g.
    @discardableResult
    func scale(into keys: Tensor, _ values: Tensor, on pool: WorkerPool) -> Float {
        let value = gate.values()[0]
        for (scaled, own) in [(keys, prefix.keys), (values, prefix.values)] {
            let scaled = scaled.prefix(prefix.tokens)
            scaled.copy(from: own)
            multiply(scaled, by: value, on: pool)
        }
        return value
    }

    /// The prefix as the sample sees it.
    func seen(_ memory: Memory) -> AttentionPrefix {
        let tokens = prefix.tokens
        return AttentionPrefix(
            keys: memory.keys.prefix(tokens), values: memory.values.prefix(tokens), dKeys: memory.dKeys.prefix(min(tokens, memory.dKeys.rows)),
            dValues: memory.dValues.prefix(min(tokens, memory.dValues.rows)))
    }

    /// Adds the gradients of what is stored, given those of what the sample saw.
    func backward(_ seen: AttentionPrefix, value: Float, on pool: WorkerPool) -> GateGradient {
        let kernels = pool.kernels.raw, count = seen.keys.count
        let dValue = kernels.dot(seen.dKeys.base, prefix.keys.base, count) + kernels.dot(seen.dValues.base, prefix.values.base, count)
        kernels.add_scaled(seen.dKeys.base, prefix.dKeys.base, count, value)
        kernels.add_scaled(seen.dValues.base, prefix.dValues.base, count, value)
        gate.addGradients([dValue])
        return GateGradient(gate: gate, dValues: [dValue], rows: rows)
    }
}

extension LayerWorkspace {
    var forGatedPrefix: GatedPrefix.Memory {
        guard let gatedPrefix else { preconditionFailure("a gated prefix without room for it") }
        return gatedPrefix
    }
}

extension DecoderLayer {
    /// What a job has before its samples' keys, and w and b of the gate.
    private func prefix(of job: LayerJob) -> (prefix: AttentionPrefix, gate: [AdapterSet.PartMatrix])? {
        let part = job.adapters.part(.prefix, layer: index)
        guard part.count >= 2 else { return nil }
        let prefix = AttentionPrefix(keys: part[0].matrix, values: part[1].matrix, dKeys: part[0].gradient, dValues: part[1].gradient)
        return (prefix, Array(part[2...]))
    }

    /// What the samples' jobs have before their keys, without a gate; empty where none has anything.
    func prefixes(_ samples: [SamplePart]) -> [AttentionPrefix?] {
        let ofJobs = jobs.map { prefix(of: $0).flatMap { $0.gate.isEmpty ? $0.prefix : nil } }
        return ofJobs.contains { $0 != nil } ? samples.map { ofJobs[$0.job] } : []
    }

    /// Those with a gate, of the samples that have one.
    ///
    /// - Parameter x: what q, k and v are made of.
    func gatedPrefixes(_ samples: [SamplePart], _ x: Tensor) -> [GatedPrefix] {
        let ofJobs = jobs.map(prefix)
        return samples.enumerated().compactMap { index, sample in
            guard !ofJobs.isEmpty, let (prefix, gate) = ofJobs[sample.job], !gate.isEmpty else { return nil }
            var whole = sample
            whole.rows = 0..<sample.rows.count
            let running = jobs[sample.job].runningGates?.ofPrefix(layer: self.index)
            return GatedPrefix(
                sample: index, rows: sample.rows, gate: SampleGate(gate[0], gate[1], x: x.rows(sample.rows), [whole], running, on: pool),
                prefix: prefix)
        }
    }
}
