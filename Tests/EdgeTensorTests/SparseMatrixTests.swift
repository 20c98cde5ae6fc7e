// Products with a sparse matrix against the same products in f64, entry by entry, in every kernel set and however they are parted.
import EdgeTensor
import Testing

struct SparseMatrixTests {
    private struct Made {
        let values: Tensor
        let places: Tensor
        let matrix: SparseMatrix
        var entries: [(row: Int, column: Int, value: Double)] {
            (0..<values.count).map { (Int(places.row(0)[$0]), Int(places.row(1)[$0]), Double(values.base[$0])) }
        }
    }

    /// About one entry in five; the rows 3 and 4 have none.
    private static func make(_ rows: Int, _ columns: Int, _ random: inout Values, _ arena: Arena) -> Made {
        var all: [(Int, Int)] = []
        for row in 0..<rows where row != 3 && row != 4 {
            for column in 0..<columns where random.value() > 0.6 { all.append((row, column)) }
        }
        let values = arena.tensor(1, all.count), places = arena.tensor(2, all.count)
        random.fill(values)
        for (entry, place) in all.enumerated() { (places.row(0)[entry], places.row(1)[entry]) = (Float(place.0), Float(place.1)) }
        return Made(
            values: values, places: places, matrix: SparseMatrix(values: values, places: places, outFeatures: rows, inFeatures: columns))
    }

    private static func bits(_ tensor: Tensor) -> [UInt32] { (0..<tensor.count).map { tensor.base[$0].bitPattern } }

    @Test("products, the input's gradient and the values' are those of the entries", arguments: [1, 2, 16, 37], [5, 300])
    func products(tokens: Int, rows: Int) throws {
        var all: Set<[UInt32]> = []
        for kernels in KernelSet.supported {
            let arena = try testArena(), columns = 43
            var random = Values(seed: 4)
            let pool = WorkerPool(kernels: kernels, threadCount: 2, scratchFloats: SparseMatrix.scratchFloats(inFeatures: columns), arena: arena)
            let made = Self.make(rows, columns, &random, arena)
            let x = arena.tensor(tokens, columns), dy = arena.tensor(tokens, rows)
            let y = arena.tensor(tokens, rows), dx = arena.tensor(tokens, columns), gradient = arena.tensor(1, made.values.count)
            for tensor in [x, dy, y, dx, gradient] { random.fill(tensor) }
            var (expectedY, expectedDX, expected) = ([y, dx, gradient].map { t in (0..<t.count).map { Double(t.base[$0]) } }).triple
            for (entry, place) in made.entries.enumerated() {
                for token in 0..<tokens {
                    expectedY[token * rows + place.row] += place.value * Double(x.row(token)[place.column])
                    expectedDX[token * columns + place.column] += place.value * Double(dy.row(token)[place.row])
                    expected[entry] += Double(dy.row(token)[place.row]) * Double(x.row(token)[place.column])
                }
            }
            made.matrix.addProduct(x, to: y, on: pool)
            made.matrix.addInputGradient(dy, to: dx, on: pool)
            made.matrix.addGradient(dy, x, [SamplePart(rows: 0..<tokens, sample: 0, firstToken: 0)], into: gradient, on: pool)
            for (found, expected) in [(y, expectedY), (dx, expectedDX), (gradient, expected)] {
                for i in 0..<found.count { #expect(abs(Double(found.base[i]) - expected[i]) < 2e-5) }
            }
            all.insert(Self.bits(y) + Self.bits(dx) + Self.bits(gradient))
        }
        #expect(all.count == 1)
    }

    @Test("parts of the rows, threads and batches leave the bits as they are")
    func parts() throws {
        let arena = try testArena(), (rows, columns) = (300, 43)
        var random = Values(seed: 9)
        let pools = (1...3).map { WorkerPool(kernels: .strongest, threadCount: $0, scratchFloats: SparseMatrix.scratchFloats(inFeatures: columns), arena: arena) }
        let made = Self.make(rows, columns, &random, arena)
        let x = arena.tensor(40, columns), dy = arena.tensor(40, rows)
        for tensor in [x, dy] { random.fill(tensor) }
        func parts(_ ranges: [Range<Int>]) -> [SamplePart] {
            ranges.enumerated().map { SamplePart(rows: $1, sample: $0, firstToken: 0) }
        }
        var results: Set<[UInt32]> = []
        for pool in pools {
            let y = arena.tensor(40, rows), whole = arena.tensor(1, made.values.count)
            made.matrix.addProduct(x, to: y, on: pool)
            made.matrix.addGradient(dy, x, parts([0..<19, 19..<40]), into: whole, on: pool)
            results.insert(Self.bits(y) + Self.bits(whole))

            let parted = arena.tensor(40, rows), apart = arena.tensor(1, made.values.count)
            for own in [0..<200, 200..<300] {
                let part = arena.tensor(40, own.count)
                made.matrix.rows(own).addProduct(x, to: part, on: pool)
                for token in 0..<40 { (parted.row(token) + own.lowerBound).update(from: part.row(token), count: own.count) }
                let partDY = arena.tensor(40, own.count)
                for token in 0..<40 { partDY.row(token).update(from: dy.row(token) + own.lowerBound, count: own.count) }
                made.matrix.rows(own).addGradient(partDY.rows(0..<19), x.rows(0..<19), parts([0..<19]), into: apart, on: pool)
                made.matrix.rows(own).addGradient(partDY.rows(19..<40), x.rows(19..<40), parts([0..<21]), into: apart, on: pool)
            }
            results.insert(Self.bits(parted) + Self.bits(apart))
        }
        #expect(results.count == 1)
    }
}

extension [[Double]] {
    fileprivate var triple: ([Double], [Double], [Double]) { (self[0], self[1], self[2]) }
}
