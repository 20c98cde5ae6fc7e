// Weights and layer inputs that are not all in memory at once: what is resident, and what goes wrong.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

@Suite(.serialized)
struct StreamingTests {
    /// Bytes of a mapped file that are in this process's resident set.
    private func residentBytes(of path: String) throws -> Int {
        let maps = try String(contentsOfFile: "/proc/self/smaps", encoding: .utf8)
        var (isOurs, bytes) = (false, 0)
        for line in maps.split(separator: "\n") {
            if line.contains("-"), line.contains(" r--p ") || line.contains(" rw-p ") || line.contains("---p") || line.contains("r-xp") {
                isOurs = line.hasSuffix(path)
            } else if isOurs, line.hasPrefix("Rss:") {
                bytes += (Int(line.filter(\.isNumber)) ?? 0) << 10
            }
        }
        return bytes
    }

    @Test("a pass through the model forward and back never holds more of the file than the plan has")
    func residentWeights() throws {
        let directory = try TemporaryDirectory()
        // A file of its own: other tests map the model too.
        let path = directory.path + "/model.gguf"
        try AtomicFile.write(to: path) { file in
            try ByteRegion.map(path: TestModel.path).withBytes { try file.write($0) }
        }
        let model = try BaseModel.open(path: path)
        model.file.releaseHeader()
        let stream = WeightStream(model, .streamed)
        let allowed = stream.parts.residentBytes(.streamed).bytes
        #expect(allowed < 6 << 20 && stream.parts.headSlices.count > 10)
        let layers = (0..<model.spec.layerCount).flatMap { [WeightParts.Part.attention($0), .mlp($0)] }
        let order = layers + stream.parts.headSlices.indices.map { .headSlice($0) } + layers.reversed()
        var most = 0
        for (index, part) in order.enumerated() {
            try stream.use(part, next: index + 1 < order.count ? order[index + 1] : nil)
            // As a product would: every page of the part.
            var sum = 0
            for range in stream.parts.ranges(part) {
                for offset in stride(from: range.lowerBound, to: range.upperBound, by: 4096) { sum += Int(model.file.region.bytes[offset]) }
            }
            #expect(sum > 0)
            most = max(most, try residentBytes(of: path))
        }
        #expect(most <= allowed && most > 1 << 20, "\(most) of \(allowed)")
        try stream.releaseAll()
        #expect(try residentBytes(of: path) <= 128 << 10)
    }

    @Test("slices of a head cover it, and products over them have the whole's bits")
    func headSlices() throws {
        let format = try #require(QuantFormat.all.first { $0.name == "Q8_0" })
        for (rows, mostRows) in [(1, 1), (259, 100), (700, 300), (5000, 700), (5000, 960), (6400, 320), (4097, 4096)] {
            let slices = headSliceRanges(rows: rows, mostRows: mostRows, canBeParted: true)
            #expect(slices.first?.lowerBound == 0 && slices.last?.upperBound == rows)
            for (a, b) in zip(slices, slices.dropFirst()) { #expect(a.upperBound == b.lowerBound) }
            #expect(headSliceRanges(rows: rows, mostRows: mostRows, canBeParted: false) == [0..<rows])

            let columns = 64, tokens = 9
            let arena = try Arena(capacity: ByteCount(64 << 20))
            let blocks = UnsafeMutableRawPointer(arena.floats((rows * format.byteCount(of: columns) + 3) / 4))
            let random = RandomSource(seed: 4, .sampling)
            for block in 0..<rows * columns / 32 {
                blocks.storeBytes(of: 0x2000 + UInt16(block % 300), toByteOffset: 34 * block, as: UInt16.self)
                for i in 0..<32 { blocks.storeBytes(of: UInt8(truncatingIfNeeded: random.bits(32 * block + i)), toByteOffset: 34 * block + 2 + i, as: UInt8.self) }
            }
            let weight = QuantizedMatrix(blocks, format: format, outFeatures: rows, inFeatures: columns)
            let x = arena.tensor(tokens, columns), dy = arena.tensor(tokens, rows)
            for i in 0..<x.count { x.base[i] = random.uniform(i) - 0.5 }
            for i in 0..<dy.count { dy.base[i] = random.uniform(i) - 0.5 }
            for compute in KernelSet.strongest.computeTypes {
                let pool = WorkerPool(kernels: .strongest, threadCount: 2, scratchFloats: 0, arena: arena)
                let rounding = RoundedRows(
                    compute, capacity: RoundedRows.bytes(compute, rows: tokens, widths: [max(rows, columns)]), arena: arena)
                func products(_ slices: [Range<Int>]) -> [UInt32] {
                    let y = arena.tensor(tokens, rows), dx = arena.tensor(tokens, columns)
                    let left = rounding([x], on: pool)[0]
                    for slice in slices {
                        linear(left, [LinearOutput(weight: weight.rows(slice), adapter: nil, y: y, column: slice.lowerBound)], on: pool)
                    }
                    let gradient = rounding([dy], on: pool)[0]
                    for slice in slices {
                        linearBackward(
                            [LinearGradient(dy: gradient.columns(slice), weight: weight.rows(slice), adapter: nil)], into: dx,
                            slice.lowerBound == 0 ? .overwrite : .add, on: pool)
                    }
                    return (0..<y.count).map { y.base[$0].bitPattern } + (0..<dx.count).map { dx.base[$0].bitPattern }
                }
                #expect(products(slices) == products([0..<rows]), "\(rows) by \(mostRows), \(compute)")
            }
        }
    }

    @Test("a disk without room for layer inputs is told before the first step")
    func noRoomToSpill() throws {
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let arena = try Arena(capacity: ByteCount(1 << 20))
        #expect(throws: FileError.self) {
            try LayerCheckpoints(.file, tokens: 8, lowest: 0, model.spec, directory: "/nowhere", arena: arena)
        }
        // /proc takes no files.
        #expect(throws: FileError.self) {
            try LayerCheckpoints(.file, tokens: 8, lowest: 0, model.spec, directory: "/proc", arena: arena)
        }
    }

    @Test("work in the background keeps its order, and its first error reaches whoever waits")
    func backgroundThread() throws {
        struct Broken: Error {}
        final class Log: @unchecked Sendable { var entries: [Int] = [] }
        let log = Log()
        let thread = BackgroundThread()
        var last = 0
        for i in 0..<100 { last = thread.submit { log.entries.append(i) } }
        try thread.wait(last)
        #expect(log.entries == Array(0..<100))
        let broken = thread.submit { throw Broken() }
        let after = thread.submit { log.entries.append(100) }
        #expect(throws: Broken.self) { try thread.wait(broken) }
        #expect(throws: Broken.self) { try thread.wait(after) }
        #expect(log.entries.count == 101)
    }
}
