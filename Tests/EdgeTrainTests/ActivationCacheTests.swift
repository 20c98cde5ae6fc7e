// Layers below the adapted ones that run once for each sample: the adapter must not depend on what of it was on disk.
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Testing

@Suite(.serialized)
struct ActivationCacheTests {
    static func run(_ format: ActivationFormat?, _ checkpoints: CheckpointStorage = .memory, precision: ComputeType = .f32) -> TinyRun {
        var run = TinyRun()
        run.spec.adapter.layers = [1]
        run.spec.activationCache = format
        run.spec.precision = precision
        run.replan = {
            $0.shape.checkpoints = checkpoints
            $0.shape.keptLayers = 0
            $0.tokenBudget = 40
        }
        return run
    }

    @Test(
        "the bits are the same with room for all samples, for some, and for none, and after a resumption",
        arguments: ActivationFormat.allCases, [CheckpointStorage.memory, .file])
    func sameBits(_ format: ActivationFormat, _ checkpoints: CheckpointStorage) throws {
        let whole = try TemporaryDirectory(), none = try TemporaryDirectory(), some = try TemporaryDirectory(), cut = try TemporaryDirectory()
        let run = Self.run(format, checkpoints)
        let expected = try run.run(in: whole.path)
        guard case .finished(let finished) = expected.outcome else { Issue.record("did not finish"); return }
        var other = run
        other.cacheLimit = .zero
        #expect(try other.run(in: none.path).adapter == expected.adapter)
        other.cacheLimit = ByteCount(40 * 64 * 2)
        #expect(try other.run(in: some.path).adapter == expected.adapter)
        guard case .stopped = try run.run(in: cut.path, stopAfter: 9).outcome else { Issue.record("not stopped"); return }
        let resumed = try run.run(in: cut.path)
        #expect(resumed.adapter == expected.adapter && resumed.outcome == expected.outcome)
        // And near to those of a run that rounds nothing.
        let directory = try TemporaryDirectory()
        guard case .finished(let exact) = try Self.run(nil, checkpoints).run(in: directory.path).outcome else { return }
        #expect(exact.lastLoss != finished.lastLoss)
        #expect(abs(exact.lastLoss / finished.lastLoss - 1) < (format == .bf16 ? 2e-3 : 1e-2), "\(exact.lastLoss) \(finished.lastLoss)")
    }

    @Test("what is read again is what was rounded, no further from it than the format allows", arguments: ActivationFormat.allCases)
    func rounding(_ format: ActivationFormat) throws {
        let directory = try TemporaryDirectory()
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let columns = model.spec.hiddenSize, lengths = [5, 3, 4]
        let arena = try Arena(
            capacity: ActivationCache.bytes(format, samples: 3, longest: 5, model.spec) + .floats(12 * columns) + .floats(5 * columns)
                + WorkerPool.scratchBytes(threads: 2, scratchFloats: 64))
        let pool = WorkerPool(kernels: .strongest, threadCount: 2, scratchFloats: 64, arena: arena)
        // Without room for the last.
        let limit = ActivationCache.fileBytes(format, tokens: 8, model.spec)
        let cache = try ActivationCache(
            format, lengths: lengths, longest: 5, limit: limit, directory: directory.path, model.spec, arena: arena)
        let rows = arena.tensor(12, columns), again = arena.tensor(5, columns)
        let random = RandomSource(seed: 5, .sampling)
        for i in 0..<rows.count { rows.base[i] = random.normal(i) * Float(1 + i % 7) }
        let before = (0..<rows.count).map { rows.base[$0] }
        let numbers = CachedSamples(cache: cache, numbers: [0, 1, 2], layer: 1)
        let spans = [0..<5, 5..<8, 8..<12].map {
            AttentionSpan(firstQuery: $0.lowerBound, queryCount: $0.count, firstKey: $0.lowerBound, keyCount: $0.count)
        }
        #expect(!numbers.areThere && cache.hasRoom)
        try numbers.keep(rows, spans, on: pool)
        #expect(!numbers.areThere && CachedSamples(cache: cache, numbers: [1, 0], layer: 1).areThere)
        for row in 0..<12 {
            let largest = before[row * columns..<(row + 1) * columns].map(abs).max()!
            for i in row * columns..<(row + 1) * columns {
                let allowed = format == .bf16 ? abs(before[i]) / 256 : largest / 127 * 0.501
                #expect(abs(rows.base[i] - before[i]) <= allowed)
            }
        }
        try CachedSamples(cache: cache, numbers: [1], layer: 1).load(into: again, [AttentionSpan(firstQuery: 2, queryCount: 3, firstKey: 2, keyCount: 3)], on: pool)
        #expect((0..<3 * columns).allSatisfy { again.base[2 * columns + $0] == rows.base[5 * columns + $0] })
        // Rounded once more they stay as they are, and no number stays none.
        let rounded = (0..<rows.count).map { rows.base[$0] }
        rows.base[0] = .nan
        try numbers.keep(rows, spans, on: pool)
        #expect(rows.base[0].isNaN)
        #expect((columns..<rows.count).allSatisfy { rows.base[$0] == rounded[$0] })
    }

    @Test("from the second time on the layers below are not run")
    func skipped() throws {
        var adapter = TinyRun().spec.adapter
        adapter.layers = [1]
        adapter.dropout = 0
        let trainee = try Trainee(TinyRun.modelPath, lora: adapter, tokens: 60, longest: 30)
        trainee.adapters.initialize(seed: 1)
        let directory = try TemporaryDirectory()
        let samples = TinyRun.samples(2)
        let lengths = samples.map(\.tokens.count)
        let cache = try ActivationCache(
            .bf16, lengths: lengths, longest: 30, limit: ByteCount(1 << 30), directory: directory.path, trainee.model.spec,
            arena: try Arena(capacity: ActivationCache.bytes(.bf16, samples: 2, longest: 30, trainee.model.spec)))
        final class Counter { var products = 0 }
        let counter = Counter()
        trainee.step.observer = { operation, _, body in
            if operation == .frozenProduct { counter.products += 1 }
            body()
        }
        func products() throws -> (products: Int, loss: Double) {
            counter.products = 0
            var work = [
                JobMicroBatch(
                    MicroBatch(samples), lossScale: 1, cached: CachedSamples(cache: cache, numbers: [0, 1], layer: trainee.adapters.lowestLayer))
            ]
            try trainee.step.accumulate(&work)
            return (counter.products, work[0].loss)
        }
        let first = try products(), second = try products()
        // One of two layers: q, k and v together, o, gate and up together, down.
        #expect(first.products - second.products == 4, "\(first) \(second)")
        #expect(first.loss == second.loss)
    }
}
