// Every kernel set and every format, against sums in f64 over the values that the portable decoder defines.
import CEdgeKernels
import EdgeTensor
import Testing

struct ProductTests {
    static let tails = [1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129]

    /// A matrix with its decoded values.
    struct Frozen {
        let matrix: QuantizedMatrix
        let values: Tensor

        init(_ format: QuantFormat, rows: Int, columns: Int, arena: Arena, seed: UInt64) {
            var random = Values(seed: seed)
            values = arena.tensor(rows, columns)
            random.fill(values)
            let rowBytes = format.byteCount(of: columns)
            let blocks = UnsafeMutableRawPointer(arena.floats((rows * rowBytes + 3) / 4))
            let entry = edge_quant_format(format.raw).pointee
            for row in 0..<rows {
                entry.encode(values.row(row), blocks + row * rowBytes, columns)
                entry.decode(blocks + row * rowBytes, values.row(row), columns)
            }
            matrix = QuantizedMatrix(blocks, format: format, outFeatures: rows, inFeatures: columns)
        }
    }

    /// γ_k = k·u / (1 - k·u) times Σ|a·b| bounds any order of an f32 sum of k products (Higham, §3.1).
    static func bound(_ terms: Int, _ magnitude: Double) -> Double {
        let ku = Double(terms + 2) * 0x1p-24
        return ku / (1 - ku) * magnitude
    }

    static func checkForward(_ set: KernelSet, _ frozen: Frozen, tokens: Int, arena: Arena) {
        let (rows, columns) = (frozen.matrix.outFeatures, frozen.matrix.inFeatures)
        let pool = WorkerPool(kernels: set, threadCount: 2, scratchFloats: columns, arena: arena)
        var random = Values(seed: 7)
        let x = arena.tensor(tokens, columns), y = arena.tensor(tokens, rows)
        random.fill(x)
        random.fill(y)
        let before = (0..<y.count).map { y.base[$0] }
        linear(x, frozen.matrix, into: y, .add, on: pool)
        var worst = 0.0
        for token in 0..<tokens {
            for row in 0..<rows {
                var sum = Double(before[token * rows + row])
                var magnitude = abs(sum)
                for k in 0..<columns {
                    let product = Double(x.row(token)[k]) * Double(frozen.values.row(row)[k])
                    sum += product
                    magnitude += abs(product)
                }
                worst = max(worst, abs(Double(y.row(token)[row]) - sum) / bound(columns + 1, magnitude))
            }
        }
        #expect(worst <= 1, "\(set.name) \(frozen.matrix.format.name) forward \(tokens)x\(rows)x\(columns): \(worst) of the bound")
    }

    static func checkBackward(_ set: KernelSet, _ frozen: Frozen, tokens: Int, arena: Arena) {
        let (rows, columns) = (frozen.matrix.outFeatures, frozen.matrix.inFeatures)
        let pool = WorkerPool(kernels: set, threadCount: 2, scratchFloats: columns, arena: arena)
        var random = Values(seed: 8)
        let dy = arena.tensor(tokens, rows), dx = arena.tensor(tokens, columns)
        random.fill(dy)
        linearBackward(dy, frozen.matrix, into: dx, on: pool)
        var worst = 0.0
        for token in 0..<tokens {
            for k in 0..<columns {
                var sum = 0.0
                var magnitude = 1e-30
                for row in 0..<rows {
                    let product = Double(dy.row(token)[row]) * Double(frozen.values.row(row)[k])
                    sum += product
                    magnitude += abs(product)
                }
                worst = max(worst, abs(Double(dx.row(token)[k]) - sum) / bound(rows, magnitude))
            }
        }
        #expect(worst <= 1, "\(set.name) \(frozen.matrix.format.name) backward \(tokens)x\(rows)x\(columns): \(worst) of the bound")
    }

    @Test("every set agrees with f64 sums on every tail of tokens and outputs, in every format")
    func tailsOfTokensAndOutputs() throws {
        for set in KernelSet.supported {
            for format in QuantFormat.all {
                for tail in Self.tails {
                    let arena = try testArena()
                    let frozen = Frozen(format, rows: tail, columns: 96, arena: arena, seed: UInt64(tail))
                    Self.checkForward(set, frozen, tokens: tail, arena: arena)
                    Self.checkBackward(set, frozen, tokens: tail, arena: arena)
                }
            }
        }
    }

    @Test("contracted lengths that fill no panel, and several, keep the bound")
    func tailsOfTheContraction() throws {
        for set in KernelSet.supported {
            for format in QuantFormat.all {
                for tail in Self.tails {
                    let arena = try testArena()
                    let columns = tail * format.blockElements
                    let frozen = Frozen(format, rows: 17, columns: columns, arena: arena, seed: UInt64(tail))
                    Self.checkForward(set, frozen, tokens: 7, arena: arena)
                    Self.checkBackward(set, frozen, tokens: 7, arena: arena)
                }
            }
        }
    }

    @Test("one token through the vector product equals the sum over the decoded row")
    func vectorProduct() throws {
        for set in KernelSet.supported {
            for format in QuantFormat.all {
                let arena = try testArena()
                let frozen = Frozen(format, rows: 37, columns: 160, arena: arena, seed: 3)
                let pool = WorkerPool(kernels: set, threadCount: 2, scratchFloats: 160, arena: arena)
                var random = Values(seed: 5)
                let x = arena.tensor(1, 160), y = arena.tensor(1, 37)
                random.fill(x)
                linearVector(x, frozen.matrix, into: y, on: pool)
                for row in 0..<37 {
                    var (sum, magnitude) = (0.0, 1e-30)
                    for k in 0..<160 {
                        let product = Double(x.base[k]) * Double(frozen.values.row(row)[k])
                        (sum, magnitude) = (sum + product, magnitude + abs(product))
                    }
                    #expect(abs(Double(y.base[row]) - sum) <= Self.bound(160, magnitude))
                }
            }
        }
    }

    @Test("every set decodes every format to the portable decoder's bits")
    func decodersAgree() throws {
        for format in QuantFormat.all {
            let arena = try testArena()
            let count = 64 * format.blockElements
            let bytes = format.byteCount(of: count)
            let blocks = UnsafeMutableRawPointer(arena.floats((bytes + 3) / 4))
            let random = RandomSource(seed: 11, .sampling)
            for i in 0..<bytes { blocks.storeBytes(of: UInt8(truncatingIfNeeded: random.bits(i)), toByteOffset: i, as: UInt8.self) }
            let expected = arena.floats(count), found = arena.floats(count)
            edge_quant_format(format.raw).pointee.decode(blocks, expected, count)
            for set in KernelSet.supported {
                set.decoder(of: format)(blocks, found, count)
                for i in 0..<count {
                    // Random bytes hold NaNs, whose payload bits no one promises.
                    #expect(expected[i].bitPattern == found[i].bitPattern || expected[i].isNaN && found[i].isNaN, "\(set.name) \(format.name) value \(i)")
                }
            }
        }
    }

    @Test("decode(encode(x)) is within half a level, and the scale's own rounding")
    func encodeRounds() throws {
        for format in QuantFormat.all {
            let arena = try testArena()
            let frozen = Frozen(format, rows: 8, columns: 256, arena: arena, seed: 2)
            var random = Values(seed: 2)
            let levels: Float = switch format.name { case "Q4_0": 8; case "Q4_1": 7.5; case "Q8_0": 127; case "BF16": 256; case "F16": 2048; default: 16_777_216 }
            for i in 0..<frozen.values.count {
                let x = random.value()
                // Half a level, twice that where Q4_0 clips its last level, and 2^-10 for a binary16 scale.
                let slack = (format.name == "Q4_0" ? 1.05 : 0.5) / levels + (format.blockElements > 1 ? 0x1p-9 : 0)
                #expect(abs(frozen.values.base[i] - x) <= slack, "\(format.name)")
            }
        }
    }

    @Test("one thread or three give the same bits")
    func threadsDoNotChangeBits() throws {
        let arena = try testArena()
        let frozen = Frozen(QuantFormat.all.first { $0.name == "Q4_1" }!, rows: 200, columns: 352, arena: arena, seed: 1)
        var random = Values(seed: 9)
        let x = arena.tensor(150, 352), dy = arena.tensor(150, 200)
        random.fill(x)
        random.fill(dy)
        var results: [[UInt32]] = []
        for threads in [1, 2, 3] {
            let pool = WorkerPool(kernels: .strongest, threadCount: threads, scratchFloats: 0, arena: arena)
            let y = arena.tensor(150, 200), dx = arena.tensor(150, 352)
            linear(x, frozen.matrix, into: y, on: pool)
            linearBackward(dy, frozen.matrix, into: dx, on: pool)
            results.append((0..<y.count).map { y.base[$0].bitPattern } + (0..<dx.count).map { dx.base[$0].bitPattern })
        }
        #expect(results[0] == results[1] && results[1] == results[2])
    }

    @Test("other tokens in the batch do not change a token's bits")
    func batchDoesNotChangeBits() throws {
        for set in KernelSet.supported {
            let arena = try testArena()
            let frozen = Frozen(QuantFormat.all.first { $0.name == "Q8_0" }!, rows: 70, columns: 352, arena: arena, seed: 1)
            var random = Values(seed: 9)
            let x = arena.tensor(20, 352)
            random.fill(x)
            let pool = WorkerPool(kernels: set, threadCount: 2, scratchFloats: 0, arena: arena)
            let together = arena.tensor(20, 70), alone = arena.tensor(1, 70)
            linear(x, frozen.matrix, into: together, on: pool)
            for token in 0..<20 {
                linear(Tensor(x.row(token), rows: 1, columns: 352), frozen.matrix, into: alone, on: pool)
                for i in 0..<70 { #expect(alone.base[i].bitPattern == together.row(token)[i].bitPattern) }
            }
        }
    }
}
