// Every kernel set, format and shape: the products of both directions against the set's own peak.
import ArgumentParser
import CEdgeKernels
import EdgeTensor

struct KernelsBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "kernels", abstract: "Products with frozen weights, per kernel set, format and shape.")

    @Option(help: "Tokens in the batch.") var tokens: [Int] = [512]
    @Option(help: "Worker threads.") var threads = 1
    @Option(help: "Only this kernel set.") var set: String?
    @Option(help: "Only this precision: f32, bf16, f16 or int8.") var precision: ComputeType?
    @Option(help: "Only this format, such as Q4_1.") var format: String?
    @Flag(help: "JSON lines (the default is a table).") var json = false

    struct Line: Encodable {
        let kernelSet: String, precision: String, op: String, format: String, shape: [Int], threads: Int
        let gflops: Double, peakGflops: Double, shareOfPeak: Double

        static let head = "set            precision  op        format  shape               threads  GFLOP/s   of peak"
        var row: String {
            Measurement.padded(kernelSet, 15) + Measurement.padded(precision, 11) + Measurement.padded(op, 10)
                + Measurement.padded(format, 8)
                + Measurement.padded(shape.map(String.init).joined(separator: "x"), 20)
                + Measurement.padded("\(threads)", 9) + Measurement.padded("\((gflops * 10).rounded() / 10)", 10)
                + "\((shareOfPeak * 1000).rounded() / 10) %"
        }
    }

    /// Rows and columns of the linears of real models.
    static let shapes: [(model: String, rows: Int, columns: Int)] = [
        ("SmolLM2-135M q", 576, 576), ("SmolLM2-135M k", 192, 576), ("SmolLM2-135M gate", 1536, 576),
        ("SmolLM2-135M down", 576, 1536), ("TinyLlama-1.1B q", 2048, 2048), ("TinyLlama-1.1B gate", 5632, 2048),
        ("TinyLlama-1.1B down", 2048, 5632), ("Llama-3.2-3B gate", 8192, 3072), ("Llama-3.1-8B q", 4096, 4096),
    ]

    func run() throws {
        if !json { print(Line.head) }
        for kernels in KernelSet.supported where set == nil || kernels.name == set {
            for type in kernels.computeTypes where precision == nil || type == precision {
                let arena = try Arena(capacity: ByteCount(1 << 30))
                let pool = WorkerPool(kernels: kernels, threadCount: threads, scratchFloats: 0, arena: arena)
                let peak = Measurement.peak(kernels, type, pool: pool)
                for entry in QuantFormat.all where format == nil || entry.name == format {
                    for shape in Self.shapes where shape.columns % entry.blockElements == 0 {
                        for count in tokens {
                            for line in try measure(kernels, type, entry, shape.rows, shape.columns, count, peak) {
                                if json { try Measurement.printLine(line) } else { print(line.row) }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Both directions; rounding the left operand is part of the time.
    private func measure(
        _ kernels: KernelSet, _ type: ComputeType, _ format: QuantFormat, _ rows: Int, _ columns: Int, _ tokens: Int,
        _ peak: Double
    ) throws -> [Line] {
        let arena = try Arena(capacity: ByteCount(1 << 30))
        let pool = WorkerPool(kernels: kernels, threadCount: threads, scratchFloats: 0, arena: arena)
        let weight = Self.matrix(format, rows: rows, columns: columns, arena: arena)
        let x = arena.tensor(tokens, columns), y = arena.tensor(tokens, rows)
        let random = RandomSource(seed: 1, .sampling)
        for tensor in [x, y] { for i in 0..<tensor.count { tensor.base[i] = random.uniform(i) - 0.5 } }
        let smoothing = arena.floats(columns)
        measureSmoothing(x, into: smoothing, on: pool)
        let rounding = RoundedRows(
            type, capacity: RoundedRows.bytes(type, rows: tokens, widths: [max(rows, columns)]), arena: arena)
        let flop = 2 * Double(rows) * Double(columns) * Double(tokens)
        // About a tenth of a second per median on the portable set.
        let runs = max(3, min(101, Int(2e9 / flop) | 1))
        let forward = Measurement.median(runs: runs) {
            linear(
                rounding([x], smoothing: smoothing, on: pool)[0], [LinearOutput(weight: weight, y: y)], on: pool)
        }
        let backward = Measurement.median(runs: runs) {
            linearBackward(
                [LinearGradient(dy: rounding([y], on: pool)[0], weight: weight)], into: x, on: pool)
        }
        return [("forward", forward), ("backward", backward)].map { op, seconds in
            Line(
                kernelSet: kernels.name, precision: type.rawValue, op: op, format: format.name,
                shape: [tokens, rows, columns], threads: threads, gflops: flop / seconds / 1e9, peakGflops: peak / 1e9,
                shareOfPeak: flop / seconds / peak)
        }
    }

    /// Random weights.
    private static func matrix(_ format: QuantFormat, rows: Int, columns: Int, arena: Arena) -> QuantizedMatrix {
        let rowBytes = format.byteCount(of: columns)
        let blocks = UnsafeMutableRawPointer(arena.floats((rows * rowBytes + 3) / 4))
        let random = RandomSource(seed: 1, .sampling)
        if let encode = format.encoder {
            let values = arena.floats(columns)
            for row in 0..<rows {
                for column in 0..<columns { values[column] = random.uniform(row * columns + column) - 0.5 }
                encode(values, blocks + row * rowBytes, columns)
            }
        } else {
            let pool = usualBlocks(format)
            for block in 0..<rows * columns / format.blockElements {
                (blocks + block * format.blockBytes).copyMemory(
                    from: pool[random.integer(block, below: pool.count)], byteCount: format.blockBytes)
            }
        }
        guard format.hasAbsmaxBeside else {
            return QuantizedMatrix(blocks, format: format, outFeatures: rows, inFeatures: columns)
        }
        let count = rows * columns / format.blockElements
        let codes = UnsafeMutableRawPointer(arena.floats((count + 3) / 4)).assumingMemoryBound(to: UInt8.self)
        for block in 0..<count { codes[block] = UInt8(truncatingIfNeeded: random.bits(block)) }
        let absmax = arena.floats(count / Absmax.nestedBlock + 1)
        for i in 0...count / Absmax.nestedBlock { absmax[i] = 0.1 }
        return QuantizedMatrix(
            blocks.assumingMemoryBound(to: UInt8.self), format: format,
            absmax: .nested(codes: codes, absmax: absmax, offset: 0.5), outFeatures: rows, inFeatures: columns)
    }

    /// Random bytes as blocks of a format that nothing writes. Those with infinite scales, or with next to none, are left out:
    /// arithmetic on them may take another time.
    private static func usualBlocks(_ format: QuantFormat) -> [[UInt8]] {
        let random = RandomSource(seed: 2, .sampling)
        let decode = KernelSet.strongest.decoder(of: format)
        var values = [Float](repeating: 0, count: format.blockElements)
        return (0..<4096).map { block in
            (0..<format.blockBytes).map { UInt8(truncatingIfNeeded: random.bits(block * format.blockBytes + $0)) }
        }.filter {
            decode($0, 0, &values, values.count)
            return values.allSatisfy(\.isFinite) && (0x1p-8...0x1p8).contains(values.map(abs).max()!)
        }
    }
}
