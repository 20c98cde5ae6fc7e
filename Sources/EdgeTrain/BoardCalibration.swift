// Measures a board for `Calibration`: one operation of each kind on made-up numbers, a second or two in all.
import CEdgeKernels
import EdgeFormats
import EdgeModel
import EdgeTensor
import Glibc

extension Calibration {
    /// Of the linears that are measured: a gate of SmolLM2-135M, and a projection of a 1B model.
    private static let narrowShape = (outFeatures: 1536, inFeatures: 576)
    private static let wideShape = (outFeatures: 2048, inFeatures: 2048)
    private static let features = 2048
    private static let tokens = 512
    private static let fewTokens = 64
    private static let diskBytes = 32 << 20

    /// - Parameters:
    ///   - seconds: a clock.
    ///   - directory: where a file is written and read back; nil: the disk is not measured.
    package static func measure(
        _ kernels: KernelSet, _ compute: ComputeType, threads: Int, seconds: () -> Double, directory: String?
    ) throws -> Calibration {
        let arena = try Arena(capacity: ByteCount(96 << 20))
        let heads = CausalAttention(headCount: 8, keyValueHeadCount: 8, headDim: 64)
        let pool = WorkerPool(
            kernels: kernels, threadCount: threads,
            scratchFloats: max(CausalAttention.scratchFloats(longest: tokens), features), arena: arena)
        /// Of the fastest of some turns: the others were disturbed.
        func time(_ body: () throws -> Void) rethrows -> Double {
            try body()
            var best = Double.infinity
            for _ in 0..<5 {
                let start = seconds()
                try body()
                best = min(best, seconds() - start)
            }
            return best
        }
        let random = RandomSource(seed: 1, .sampling)
        func values(_ rows: Int, _ columns: Int) -> Tensor {
            let tensor = arena.tensor(rows, columns)
            for i in 0..<tensor.count { tensor.base[i] = random.uniform(i) - 0.5 }
            return tensor
        }

        let x = values(tokens, features), y = values(tokens, features)
        func product(_ shape: (outFeatures: Int, inFeatures: Int)) -> ProductCost {
            let format = QuantFormat.all.first { $0.name == "Q4_0" }!  // of quant_formats.def
            let blocks = arena.floats((shape.outFeatures * format.byteCount(of: shape.inFeatures) + 3) / 4)
            let weight = QuantizedMatrix(
                blocks, format: format, outFeatures: shape.outFeatures, inFeatures: shape.inFeatures)
            let rounding = RoundedRows(
                compute, capacity: RoundedRows.bytes(compute, rows: tokens, widths: [features]), arena: arena)
            let smoothing = arena.floats(features)
            measureSmoothing(x, into: smoothing, on: pool)
            func products(_ tokens: Int) -> Double {
                let x = Tensor(x.base, rows: tokens, columns: shape.inFeatures)
                let y = Tensor(y.base, rows: tokens, columns: shape.outFeatures)
                return time {
                    linear(
                        rounding([x], smoothing: UnsafePointer(smoothing), on: pool)[0],
                        [LinearOutput(weight: weight, y: y)], on: pool)
                    linearBackward(
                        [LinearGradient(dy: rounding([y], on: pool)[0], weight: weight)], into: x, on: pool)
                } / 2
            }
            let (many, few) = (products(tokens), products(fewTokens))
            let weights = Double(shape.outFeatures * shape.inFeatures)
            let each = max(0, many - few) / weights / Double(tokens - fewTokens)
            return ProductCost(perWeight: max(0, few / weights - Double(fewTokens) * each), perWeightAndToken: each)
        }
        let (narrow, wide) = (product(narrowShape), product(wideShape))

        let rank = 16
        let a = values(rank, features), z = values(tokens, rank), da = arena.tensor(rank, features)
        let adapter = time {
            projectDown(x, [(a: a, z: z, scale: 1)], on: pool)
            addOuterProduct(z, x, [SamplePart(rows: 0..<tokens, sample: 0, firstToken: 0)], into: da, on: pool)
        }

        let width = heads.headCount * heads.headDim
        let q = values(tokens, width), o = arena.tensor(tokens, width), dq = arena.tensor(tokens, width)
        let shares = (arena.tensor(tokens, width), arena.tensor(tokens, width))
        let dkv = (arena.tensor(tokens, width), arena.tensor(tokens, width)), lse = arena.tensor(tokens, heads.headCount)
        let spans = [AttentionSpan(firstQuery: 0, queryCount: tokens, firstKey: 0, keyCount: tokens)]
        let attention = time {
            heads.forward(q: q, k: q, v: q, spans: spans, into: o, logSumExp: lse, on: pool)
            heads.backward(
                dO: o, q: q, k: q, v: q, o: o, logSumExp: lse, spans: spans, dQ: dq, headDK: shares.0, headDV: shares.1,
                dK: dkv.0, dV: dkv.1, on: pool)
        }

        let activated = arena.tensor(tokens, features)
        let elements = time { activate(.swiglu, gate: x, up: y, into: activated, on: pool) }
        // As many matrices as have work for every thread.
        let matrices = (0..<8).map { TrainedMatrix(elements: $0 * rank * features..<($0 + 1) * rank * features) }
        let settings = edge_adamw(
            decay: 1, step: 1e-4, root_correction2: 1, beta1: 0.9, rate1: 0.1, beta2: 0.999, rate2: 0.001, epsilon: 1e-8,
            gradient_scale: 1)
        func update(_ kind: OptimizerState) -> Double {
            let optimizer = AdamW(matrices, kind, arena: arena)
            let seconds = time {
                optimizer.update(
                    elements: 0..<matrices.count * rank * features, parameters: activated.base, gradients: x.base, on: pool
                ) { _ in settings }
            }
            return seconds / Double(matrices.count * rank * features)
        }
        let disk = try directory.map { try measureDisk($0, arena, seconds: seconds) }
        return Calibration(
            kernelSet: kernels.name, compute: compute.rawValue, threads: threads,
            narrow: narrow, wide: wide,
            perAdapterMultiplyAdd: adapter / Double(2 * rank * features * tokens),
            perAttentionMultiplyAdd: attention / (7 * Double(tokens) * CausalAttention.meanKeys(Double(tokens)) * Double(width)),
            perElement: elements / Double(tokens * features), perParameter: update(.f32), perParameter8Bit: update(.eightBit),
            perCopiedByte: disk?.copied ?? nominal.perCopiedByte, perDiskByte: disk?.read)
    }

    /// Seconds per byte: of copying what is cached, and of reading what is not.
    private static func measureDisk(
        _ directory: String, _ arena: Arena, seconds: () -> Double
    ) throws -> (copied: Double, read: Double) {
        let path = directory + "/calibration.tmp"
        defer { unlink(path) }
        try AtomicFile.write(to: path) { file in
            let piece = [UInt8](repeating: 0x5A, count: 1 << 20)
            for _ in 0..<diskBytes / piece.count { try file.write(piece) }
        }
        let region = try ByteRegion.map(path: path)
        try region.dropCached()
        func time(_ body: () throws -> Void) rethrows -> Double {
            let start = seconds()
            try body()
            return (seconds() - start) / Double(diskBytes)
        }
        let target = UnsafeMutableRawPointer(arena.floats((1 << 20) / 4))
        func readAll() throws {
            for offset in stride(from: 0, to: diskBytes, by: 1 << 20) { try region.read(at: offset, count: 1 << 20, into: target) }
        }
        let read = try time(readAll)
        return (try time(readAll), read)
    }
}
