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
    @Option(help: "Only this format, such as Q4_1.") var format: String?
    @Flag(help: "JSON lines (the default is a table).") var json = false

    struct Line: Encodable {
        let kernelSet: String, op: String, format: String, shape: [Int], threads: Int
        let gflops: Double, peakGflops: Double, shareOfPeak: Double
    }

    /// Rows and columns of the linears of real models.
    static let shapes: [(model: String, rows: Int, columns: Int)] = [
        ("SmolLM2-135M q", 576, 576), ("SmolLM2-135M k", 192, 576), ("SmolLM2-135M gate", 1536, 576),
        ("SmolLM2-135M down", 576, 1536), ("TinyLlama-1.1B q", 2048, 2048), ("TinyLlama-1.1B gate", 5632, 2048),
        ("TinyLlama-1.1B down", 2048, 5632),
    ]

    func run() throws {
        if !json { print("set       op        format  shape                 threads   GFLOP/s  of peak") }
        for kernels in KernelSet.supported where set == nil || kernels.name == set {
            let arena = try Arena(capacity: ByteCount(1 << 30))
            let pool = WorkerPool(kernels: kernels, threadCount: threads, scratchFloats: 0, arena: arena)
            let peak = Measurement.peak(kernels, .f32, pool: pool)
            for entry in QuantFormat.all where format == nil || entry.name == format {
                for shape in Self.shapes {
                    for count in tokens { try measure(kernels, entry, shape.rows, shape.columns, count, peak) }
                }
            }
        }
    }

    private func measure(
        _ kernels: KernelSet, _ format: QuantFormat, _ rows: Int, _ columns: Int, _ tokens: Int, _ peak: Double
    ) throws {
        let arena = try Arena(capacity: ByteCount(512 << 20))
        let pool = WorkerPool(kernels: kernels, threadCount: threads, scratchFloats: 0, arena: arena)
        let rowBytes = format.byteCount(of: columns)
        let blocks = UnsafeMutableRawPointer(arena.floats((rows * rowBytes + 3) / 4))
        let values = arena.floats(columns)
        let random = RandomSource(seed: 1, .sampling)
        for row in 0..<rows {
            for column in 0..<columns { values[column] = random.uniform(row * columns + column) - 0.5 }
            edge_quant_format(format.raw).pointee.encode(values, blocks + row * rowBytes, columns)
        }
        let weight = QuantizedMatrix(blocks, format: format, outFeatures: rows, inFeatures: columns)
        let x = arena.tensor(tokens, columns), y = arena.tensor(tokens, rows)
        for i in 0..<x.count { x.base[i] = random.uniform(i) - 0.5 }
        let flop = 2 * Double(rows) * Double(columns) * Double(tokens)
        // About a tenth of a second per median on the portable set.
        let runs = max(3, min(101, Int(2e9 / flop) | 1))
        let forward = Measurement.median(runs: runs) { linear(x, weight, into: y, on: pool) }
        let backward = Measurement.median(runs: runs) { linearBackward(y, weight, into: x, on: pool) }
        for (op, seconds) in [("forward", forward), ("backward", backward)] {
            let line = Line(
                kernelSet: kernels.name, op: op, format: format.name, shape: [tokens, rows, columns], threads: threads,
                gflops: flop / seconds / 1e9, peakGflops: peak / 1e9, shareOfPeak: flop / seconds / peak)
            if json {
                try Measurement.printLine(line)
            } else {
                print(
                    Measurement.padded(line.kernelSet, 10) + Measurement.padded(op, 10) + Measurement.padded(line.format, 8)
                        + Measurement.padded("\(tokens)x\(rows)x\(columns)", 22) + Measurement.padded("\(threads)", 10)
                        + Measurement.padded("\((line.gflops * 10).rounded() / 10)", 9)
                        + "\((line.shareOfPeak * 1000).rounded() / 10) %")
            }
        }
    }
}
