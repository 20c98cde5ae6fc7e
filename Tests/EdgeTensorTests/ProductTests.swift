// Every kernel set and every format, against sums in f64 over the values that the portable decoder defines.
import CEdgeKernels
import EdgeTensor
import Testing

struct ProductTests {
    static let tails = [1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129]

    /// Every set, with the types that it has instructions for; `portable`, which defines them, with all.
    static let computing = KernelSet.supported.flatMap { set in
        (set.name == "portable" ? ComputeType.allCases : set.computeTypes).map { (set, $0) }
    }

    /// Forward (added to what is there) and backward of one matrix against f64 sums over the rounded operands; the share
    /// of the bound that the worst element takes.
    static func worst(
        _ set: KernelSet, _ type: ComputeType, _ frozen: FrozenMatrix, tokens: Int, arena: Arena
    ) -> (forward: Double, backward: Double) {
        let (rows, columns) = (frozen.matrix.outFeatures, frozen.matrix.inFeatures)
        let pool = WorkerPool(kernels: set, threadCount: 2, scratchFloats: columns, arena: arena)
        let capacity = RoundedRows.bytes(type, rows: tokens, widths: [max(rows, columns)])
        let rounding = RoundedRows(type, capacity: capacity, arena: arena)
        var random = Values(seed: 7)
        let x = arena.tensor(tokens, columns), y = arena.tensor(tokens, rows)
        let dy = arena.tensor(tokens, rows), dx = arena.tensor(tokens, columns)
        for tensor in [x, y, dy] { random.fill(tensor) }
        let before = (0..<y.count).map { y.base[$0] }
        linear(
            rounding([x], on: pool)[0], [LinearOutput(weight: frozen.matrix, y: y)], .add, on: pool)
        linearBackward(
            [LinearGradient(dy: rounding([dy], on: pool)[0], weight: frozen.matrix)], into: dx, on: pool)

        func compare(
            _ found: Tensor, _ before: (Int) -> Float, _ left: [[Double]], _ right: [[Double]]
        ) -> Double {
            var worst = 0.0
            for (i, a) in left.enumerated() {
                for (j, b) in right.enumerated() {
                    var sum = Double(before(i * right.count + j))
                    var magnitude = abs(sum)
                    for k in a.indices {
                        let product = a[k] * b[k]
                        sum += product
                        magnitude += abs(product)
                    }
                    worst = max(worst, abs(Double(found.row(i)[j]) - sum) / sumBound(a.count, magnitude, type))
                }
            }
            return worst
        }
        return (
            compare(
                y, { before[$0] }, rounded(type, rows: tokens, contracted: columns) { x.row($0)[$1] },
                rounded(type, rows: rows, contracted: columns) { frozen.values.row($0)[$1] }),
            compare(
                dx, { _ in 0 }, rounded(type, rows: tokens, contracted: rows) { dy.row($0)[$1] },
                rounded(type, rows: columns, contracted: rows) { frozen.values.row($1)[$0] })
        )
    }

    @Test("every set agrees with f64 sums on every tail of tokens, outputs and contraction, in every format and type")
    func tails() throws {
        for (set, type) in Self.computing {
            for format in QuantFormat.all {
                for tail in Self.tails {
                    for (rows, columns, tokens) in [(tail, 96, tail), (17, tail * format.blockElements, 7)] {
                        let arena = try testArena()
                        let frozen = FrozenMatrix(
                            format, rows: rows, columns: min(columns, 2112), arena: arena, seed: UInt64(tail))
                        let (forward, backward) = Self.worst(set, type, frozen, tokens: tokens, arena: arena)
                        #expect(
                            forward <= 1 && backward <= 1,
                            "\(set.name) \(type) \(format.name) \(tokens)x\(rows)x\(columns): \(forward), \(backward) of the bound")
                    }
                }
            }
        }
    }

    /// Every distinct linear of SmolLM2-135M, Qwen2.5-0.5B, TinyLlama-1.1B, Llama-3.2-1B and 3B, and Llama-3.1-8B.
    static let realShapes: [(rows: Int, columns: Int)] = [
        (576, 576), (192, 576), (1536, 576), (576, 1536), (896, 896), (128, 896), (4864, 896), (896, 4864), (2048, 2048),
        (256, 2048), (5632, 2048), (2048, 5632), (512, 2048), (8192, 2048), (2048, 8192), (3072, 3072), (1024, 3072),
        (8192, 3072), (3072, 8192), (4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336),
    ]

    @Test("every set agrees with f64 sums on the layers of real models, sampled")
    func realLayers() throws {
        let format = QuantFormat.all.first { $0.name == "Q4_1" }!
        let tokens = 5
        for (rows, columns) in Self.realShapes {
            let arena = try testArena(mebibytes: 256)
            let rowBytes = format.byteCount(of: columns)
            let blocks = UnsafeMutableRawPointer(arena.floats(rows * rowBytes / 4))
            let random = RandomSource(seed: 17, .sampling, UInt64(rows), UInt64(columns))
            for i in 0..<rows * rowBytes / 8 { blocks.storeBytes(of: random.bits(i), toByteOffset: 8 * i, as: UInt64.self) }
            for block in 0..<rows * columns / 32 {
                // A scale and a minimum as weights have them: random bits would be infinite here and there.
                blocks.storeBytes(of: 0x2400 + UInt16(block % 512), toByteOffset: 20 * block, as: UInt16.self)
                blocks.storeBytes(of: 0xac00 + UInt16(block % 256), toByteOffset: 20 * block + 2, as: UInt16.self)
            }
            let matrix = QuantizedMatrix(blocks, format: format, outFeatures: rows, inFeatures: columns)
            let decoded = arena.tensor(1, columns)
            let x = arena.tensor(tokens, columns), y = arena.tensor(tokens, rows)
            let dx = arena.tensor(tokens, columns)
            var values = Values(seed: 3)
            values.fill(x)
            for (set, type) in Self.computing where set.name != "portable" {
                let pool = WorkerPool(kernels: set, threadCount: 2, scratchFloats: 0, arena: arena)
                let rounding = RoundedRows(
                    type, capacity: RoundedRows.bytes(type, rows: tokens, widths: [max(rows, columns)]), arena: arena)
                linear(
                    rounding([x], on: pool)[0], [LinearOutput(weight: matrix, y: y)], on: pool)
                let left = rounded(type, rows: tokens, contracted: columns) { x.row($0)[$1] }
                for sample in 0..<8 {
                    let row = random.integer(sample, below: rows)
                    decodeRows(matrix, [Int32(row)], into: decoded, on: pool)
                    let right = rounded(type, rows: 1, contracted: columns) { decoded.base[$1] }[0]
                    for token in 0..<tokens {
                        var (sum, magnitude) = (0.0, 0.0)
                        for k in 0..<columns {
                            sum += left[token][k] * right[k]
                            magnitude += abs(left[token][k] * right[k])
                        }
                        #expect(
                            abs(Double(y.row(token)[row]) - sum) <= sumBound(columns, magnitude, type),
                            "\(set.name) \(type) \(rows)x\(columns) row \(row)")
                    }
                }
                // The transposed product: <dx, x> = <y, W x> for any y, which holds to the rounding of both sides.
                linearBackward(
                    [LinearGradient(dy: rounding([y], on: pool)[0], weight: matrix)], into: dx, on: pool)
                let forward = weighted(y, y), backward = weighted(dx, x)
                let slack: Double = switch type { case .f32: 1e-4; case .bf16, .f16: 1e-2; case .int8: 2e-2 }
                #expect(abs(backward / forward - 1) < slack, "\(set.name) \(type) \(rows)x\(columns): \(forward), \(backward)")
            }
        }
    }

    @Test("a NaN in x reaches y in every type")
    func notANumberPropagates() throws {
        for (set, type) in Self.computing {
            let arena = try testArena()
            let frozen = FrozenMatrix(.nf4, rows: 33, columns: 192, arena: arena, seed: 4)
            let pool = WorkerPool(kernels: set, threadCount: 1, scratchFloats: 0, arena: arena)
            let rounding = RoundedRows(type, capacity: RoundedRows.bytes(type, rows: 3, widths: [192]), arena: arena)
            let x = arena.tensor(3, 192), y = arena.tensor(3, 33)
            x.row(1)[77] = .nan
            linear(rounding([x], on: pool)[0], [LinearOutput(weight: frozen.matrix, y: y)], on: pool)
            for row in 0..<33 {
                #expect(y.row(1)[row].isNaN && y.row(0)[row] == 0 && y.row(2)[row] == 0, "\(set.name) \(type)")
            }
        }
    }

    @Test("one token through the vector product equals the sum over the decoded row")
    func vectorProduct() throws {
        for set in KernelSet.supported {
            for format in QuantFormat.all {
                let arena = try testArena()
                let frozen = FrozenMatrix(format, rows: 37, columns: 192, arena: arena, seed: 3)
                let columns = frozen.matrix.inFeatures
                let pool = WorkerPool(kernels: set, threadCount: 2, scratchFloats: columns, arena: arena)
                var random = Values(seed: 5)
                let x = arena.tensor(1, columns), y = arena.tensor(1, 37)
                random.fill(x)
                linearVector(x, frozen.matrix, into: y, on: pool)
                for row in 0..<37 {
                    var (sum, magnitude) = (0.0, 1e-30)
                    for k in 0..<columns {
                        let product = Double(x.base[k]) * Double(frozen.values.row(row)[k])
                        (sum, magnitude) = (sum + product, magnitude + abs(product))
                    }
                    #expect(abs(Double(y.base[row]) - sum) <= sumBound(columns, magnitude), "\(set.name) \(format.name)")
                }
            }
        }
    }

    @Test("every set decodes every format to the portable decoder's bits, from any unit to any other")
    func decodersAgree() throws {
        for format in QuantFormat.all {
            let arena = try testArena()
            let count = 64 * format.blockElements
            let bytes = format.byteCount(of: count)
            let blocks = UnsafeMutableRawPointer(arena.floats((bytes + 3) / 4))
            let random = RandomSource(seed: 11, .sampling)
            for i in 0..<bytes { blocks.storeBytes(of: UInt8(truncatingIfNeeded: random.bits(i)), toByteOffset: i, as: UInt8.self) }
            let expected = arena.floats(count), found = arena.floats(count)
            edge_quant_format(format.raw).pointee.decode(blocks, 0, expected, count)
            let units = count / format.unitElements
            let parts = [0..<units] + (0..<32).map { i in
                let first = random.integer(bytes + 2 * i, below: units)
                return first..<first + 1 + random.integer(bytes + 2 * i + 1, below: min(20, units - first))
            }
            for set in KernelSet.supported {
                for part in parts {
                    let first = part.lowerBound * format.unitElements, length = part.count * format.unitElements
                    set.decoder(of: format)(blocks, first, found, length)
                    // Random bytes hold NaNs, whose payload bits no one promises.
                    let different = (0..<length).first {
                        let (a, b) = (expected[first + $0], found[$0])
                        return a.bitPattern != b.bitPattern && !(a.isNaN && b.isNaN)
                    }
                    #expect(different == nil, "\(set.name) \(format.name) units \(part) value \(different ?? 0)")
                }
            }
        }
    }

    @Test("products over some rows of a matrix have the bits of the whole's, in every format")
    func rowRanges() throws {
        for format in QuantFormat.all {
            for seed: UInt64 in [1, 2] {  // the scales beside NF4's and FP4's blocks plain, and nested
                let arena = try testArena()
                // Rows of 12 blocks of 64: the second nested scale begins inside row 21.
                let frozen = FrozenMatrix(format, rows: 90, columns: 768, arena: arena, seed: seed)
                let pool = WorkerPool(kernels: .strongest, threadCount: 2, scratchFloats: 768, arena: arena)
                var random = Values(seed: 6)
                let x = arena.tensor(3, 768), whole = arena.tensor(3, 90), vector = arena.tensor(1, 90)
                random.fill(x)
                linear(x, frozen.matrix, into: whole, on: pool)
                linearVector(Tensor(x.base, rows: 1, columns: 768), frozen.matrix, into: vector, on: pool)
                for range in [1..<90, 1..<2, 20..<23, 43..<90, 85..<90] {
                    // Some of some.
                    let part = frozen.matrix.rows(1..<90).rows(range.lowerBound - 1..<range.upperBound - 1)
                    let (first, rows) = (range.lowerBound, range.count)
                    let y = arena.tensor(3, rows), one = arena.tensor(1, rows), decoded = arena.tensor(rows, 768)
                    linear(x, part, into: y, on: pool)
                    linearVector(Tensor(x.base, rows: 1, columns: 768), part, into: one, on: pool)
                    decodeRows(part, (0..<Int32(rows)).map { $0 }, into: decoded, on: pool)
                    for row in 0..<rows {
                        for token in 0..<3 { #expect(y.row(token)[row].bitPattern == whole.row(token)[first + row].bitPattern) }
                        #expect(one.base[row].bitPattern == vector.base[first + row].bitPattern)
                        let same = (0..<768).allSatisfy {
                            decoded.row(row)[$0].bitPattern == frozen.values.row(first + row)[$0].bitPattern
                        }
                        #expect(same, "\(format.name) row \(first + row)")
                    }
                }
            }
        }
    }

    @Test("slices of a head cover it, and products over them have the whole's bits, in every format")
    func headSlices() throws {
        for (rows, mostRows) in [(1, 1), (259, 100), (700, 300), (5000, 700), (5000, 960), (6400, 320), (4097, 4096)] {
            let slices = headSliceRanges(rows: rows, mostRows: mostRows)
            #expect(slices.first?.lowerBound == 0 && slices.last?.upperBound == rows)
            for (a, b) in zip(slices, slices.dropFirst()) { #expect(a.upperBound == b.lowerBound) }
            for format in QuantFormat.all {
                let tokens = 9
                let arena = try testArena()
                let frozen = FrozenMatrix(format, rows: rows, columns: 64, arena: arena, seed: UInt64(rows))
                let columns = frozen.matrix.inFeatures
                var random = Values(seed: 4)
                let x = arena.tensor(tokens, columns), dy = arena.tensor(tokens, rows)
                random.fill(x)
                random.fill(dy)
                for compute in KernelSet.strongest.computeTypes {
                    let pool = WorkerPool(kernels: .strongest, threadCount: 2, scratchFloats: 0, arena: arena)
                    let rounding = RoundedRows(
                        compute, capacity: RoundedRows.bytes(compute, rows: tokens, widths: [max(rows, columns)]), arena: arena)
                    func products(_ slices: [Range<Int>]) -> [UInt32] {
                        let y = arena.tensor(tokens, rows), dx = arena.tensor(tokens, columns)
                        let left = rounding([x], on: pool)[0]
                        for slice in slices {
                            linear(
                                left,
                                [LinearOutput(weight: frozen.matrix.rows(slice), y: y, column: slice.lowerBound)],
                                on: pool)
                        }
                        let gradient = rounding([dy], on: pool)[0]
                        for slice in slices {
                            linearBackward(
                                [LinearGradient(dy: gradient.columns(slice), weight: frozen.matrix.rows(slice))],
                                into: dx, slice.lowerBound == 0 ? .overwrite : .add, on: pool)
                        }
                        return (0..<y.count).map { y.base[$0].bitPattern } + (0..<dx.count).map { dx.base[$0].bitPattern }
                    }
                    #expect(products(slices) == products([0..<rows]), "\(rows) by \(mostRows), \(format.name) \(compute)")
                }
            }
        }
    }

    @Test("decode(encode(x)) is within half a level, and the scale's own rounding")
    func encodeRounds() throws {
        for format in QuantFormat.all where format.encoder != nil && !format.hasAbsmaxBeside {
            let arena = try testArena()
            let frozen = FrozenMatrix(format, rows: 8, columns: 256, arena: arena, seed: 2)
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
        let frozen = FrozenMatrix(QuantFormat.all.first { $0.name == "Q4_1" }!, rows: 200, columns: 384, arena: arena, seed: 1)
        var random = Values(seed: 9)
        let x = arena.tensor(150, 384), dy = arena.tensor(150, 200)
        random.fill(x)
        random.fill(dy)
        var results: [[UInt32]] = []
        for threads in [1, 2, 3] {
            let pool = WorkerPool(kernels: .strongest, threadCount: threads, scratchFloats: 0, arena: arena)
            let y = arena.tensor(150, 200), dx = arena.tensor(150, 384)
            linear(x, frozen.matrix, into: y, on: pool)
            linearBackward(dy, frozen.matrix, into: dx, on: pool)
            results.append((0..<y.count).map { y.base[$0].bitPattern } + (0..<dx.count).map { dx.base[$0].bitPattern })
        }
        #expect(results[0] == results[1] && results[1] == results[2])
    }

    @Test("other tokens in the batch do not change a token's bits")
    func batchDoesNotChangeBits() throws {
        for (set, type) in Self.computing {
            let arena = try testArena()
            let frozen = FrozenMatrix(
                QuantFormat.all.first { $0.name == "Q8_0" }!, rows: 70, columns: 384, arena: arena, seed: 1)
            var random = Values(seed: 9)
            let x = arena.tensor(20, 384)
            random.fill(x)
            let pool = WorkerPool(kernels: set, threadCount: 2, scratchFloats: 0, arena: arena)
            let rounding = RoundedRows(type, capacity: RoundedRows.bytes(type, rows: 20, widths: [384]), arena: arena)
            func product(_ x: Tensor, _ y: Tensor) {
                linear(rounding([x], on: pool)[0], [LinearOutput(weight: frozen.matrix, y: y)], on: pool)
            }
            let together = arena.tensor(20, 70), alone = arena.tensor(1, 70)
            product(x, together)
            for token in 0..<20 {
                product(Tensor(x.row(token), rows: 1, columns: 384), alone)
                for i in 0..<70 { #expect(alone.base[i].bitPattern == together.row(token)[i].bitPattern) }
            }
        }
    }
}
