// The element-wise operations: every backward against central differences, every set against `portable` bit for bit.
import CEdgeKernels
import EdgeTensor
import Testing

struct OperationTests {
    static func pool(_ arena: Arena, _ set: KernelSet = .strongest, longest: Int = 128) -> WorkerPool {
        WorkerPool(
            kernels: set, threadCount: 2, scratchFloats: CausalAttention.scratchFloats(longest: longest), arena: arena)
    }

    @Test("a norm's backward is its derivative, over whole rows and over heads, added or in the place of what comes in",
        arguments: [NormKind.rootMeanSquare(weightOffset: 0), .rootMeanSquare(weightOffset: 1), .layer], [37, 111])
    func normDerivative(_ kind: NormKind, _ width: Int) throws {
        let arena = try testArena()
        let pool = Self.pool(arena)
        var random = Values(seed: 1)
        let x = arena.tensor(5, 111), w = arena.tensor(1, width), b = arena.tensor(1, width), y = arena.tensor(5, 111)
        let dy = arena.tensor(5, 111), dx = arena.tensor(5, 111), inverse = arena.floats(15)
        for t in [x, w, b, dy] { random.fill(t) }
        let norm = Norm(
            kind, epsilon: 1e-5, width: width, weight: UnsafePointer(w.base),
            bias: kind == .layer ? UnsafePointer(b.base) : nil)
        func forward() { normalize(x, norm, into: y, inverse: inverse, on: pool) }
        forward()
        normalizeBackward(dy, x, norm, inverse: inverse, into: dx, .add, on: pool)
        let error = finiteDifferenceError(x, gradient: dx, step: 1e-2) {
            forward()
            return weighted(y, dy)
        }
        #expect(error < 1e-2, "\(error)")
        forward()
        let inPlace = arena.tensor(5, 111)
        inPlace.copy(from: dy)
        normalizeBackward(inPlace, x, norm, inverse: inverse, into: inPlace, .overwrite, on: pool)
        for i in 0..<dx.count { #expect(inPlace.base[i] == dx.base[i]) }
        let normed = arena.tensor(5, 111)
        normed.copy(from: x)
        normalize(normed, norm, into: normed, inverse: inverse, on: pool)
        for i in 0..<y.count { #expect(normed.base[i] == y.base[i]) }
    }

    @Test("a gated activation's backward is its derivative, by gate and by up", arguments: [Activation.swiglu, .geglu])
    func gatedDerivative(_ activation: Activation) throws {
        let arena = try testArena()
        let pool = Self.pool(arena)
        var random = Values(seed: 2)
        let gate = arena.tensor(3, 41), up = arena.tensor(3, 41), y = arena.tensor(3, 41), dy = arena.tensor(3, 41)
        random.fill(gate, scale: 4)
        random.fill(up)
        random.fill(dy)
        let dGate = arena.tensor(3, 41), dUp = arena.tensor(3, 41)
        dGate.copy(from: gate)
        dUp.copy(from: up)
        activateBackward(activation, dy: dy, gate: dGate, up: dUp, on: pool)
        func loss() -> Double {
            activate(activation, gate: gate, up: up, into: y, on: pool)
            return weighted(y, dy)
        }
        #expect(finiteDifferenceError(gate, gradient: dGate, loss: loss) < 1e-2)
        #expect(finiteDifferenceError(up, gradient: dUp, loss: loss) < 1e-2)
    }

    @Test("cross-entropy's gradient is its derivative, and its loss is -log softmax", arguments: [Float?.none, 3])
    func crossEntropyDerivative(_ cap: Float?) throws {
        let arena = try testArena()
        let pool = Self.pool(arena)
        var random = Values(seed: 3)
        let logits = arena.tensor(4, 50), gradient = arena.tensor(4, 50), scratch = arena.tensor(4, 50), losses = arena.floats(4)
        random.fill(logits, scale: 5)
        gradient.copy(from: logits)
        let targets: [Int32] = [3, 0, 49, 17]
        func value(_ logits: Tensor, _ gradientScale: Float) -> Double {
            var loss = 0.0
            // Capped logits are left in the place of what came in.
            let copy = gradientScale == 0 ? scratch : logits
            if gradientScale == 0 { copy.copy(from: logits) }
            crossEntropy(
                logits: copy, targets: targets, gradientScale: gradientScale, cap: cap, losses: losses, addingTo: &loss,
                on: pool)
            return loss
        }
        let exact = (0..<4).reduce(0.0) { sum, row in
            let values = (0..<50).map { column in
                let x = Double(logits.row(row)[column])
                return cap.map { Double($0) * tanh(x / Double($0)) } ?? x
            }
            return sum + log(values.reduce(0) { $0 + exp($1) }) - values[Int(targets[row])]
        }
        let loss = value(gradient, 1), again = value(logits, 0)
        #expect(abs(loss - exact) < 1e-5)
        #expect(abs(loss - again) < 1e-5)
        let error = finiteDifferenceError(logits, gradient: gradient) {
            value(logits, 0)
        }
        #expect(error < 1e-2, "\(error)")
    }

    @Test("rotation backward undoes rotation, in both pairings, and keeps lengths")
    func rotationIsOrthogonal() throws {
        for pairing in [RotaryPairing.interleaved, .halves] {
            let arena = try testArena()
            let pool = Self.pool(arena)
            var random = Values(seed: 4)
            let spec = RotarySpec(theta: 10_000, rotated: pairing == .halves ? 12 : 16)
            let rotary = RotaryEmbedding(positions: 64, headDim: 16, spec, pairing: pairing, arena: arena)
            let x = arena.tensor(20, 48), kept = arena.tensor(20, 48)
            random.fill(x)
            kept.copy(from: x)
            let positions = (0..<20).map { Int32($0 * 3) }
            rotary.rotate(x, positions: positions, .forward, on: pool)
            #expect((0..<x.count).contains { abs(x.base[$0] - kept.base[$0]) > 0.1 })
            #expect(abs(weighted(x, x) - weighted(kept, kept)) < 1e-3)
            rotary.rotate(x, positions: positions, .backward, on: pool)
            for i in 0..<x.count { #expect(abs(x.base[i] - kept.base[i]) < 1e-6) }
        }
    }

    @Test("attention's backward is its derivative, for grouped heads and packed samples, with a window and a cap",
        arguments: [Int?.none, 3], [Float?.none, 0.7])
    func attentionDerivative(_ window: Int?, _ cap: Float?) throws {
        let arena = try testArena()
        let pool = Self.pool(arena)
        let attention = CausalAttention(
            headCount: 4, keyValueHeadCount: 2, headDim: 8, scale: 0.5, window: window, cap: cap)
        let spans = [
            AttentionSpan(firstQuery: 0, queryCount: 5, firstKey: 0, keyCount: 5),
            AttentionSpan(firstQuery: 5, queryCount: 3, firstKey: 5, keyCount: 3),
        ]
        var random = Values(seed: 5)
        let q = arena.tensor(8, 32), k = arena.tensor(8, 16), v = arena.tensor(8, 16), o = arena.tensor(8, 32)
        let dO = arena.tensor(8, 32), lse = arena.tensor(8, 4)
        for t in [q, k, v, dO] { random.fill(t) }
        func forward() { attention.forward(q: q, k: k, v: v, spans: spans, into: o, logSumExp: lse, on: pool) }
        forward()
        let dQ = arena.tensor(8, 32), dK = arena.tensor(8, 16), dV = arena.tensor(8, 16)
        attention.backward(
            dO: dO, q: q, k: k, v: v, o: o, logSumExp: lse, spans: spans, dQ: dQ, headDK: arena.tensor(8, 32),
            headDV: arena.tensor(8, 32), dK: dK, dV: dV, on: pool)
        func loss() -> Double {
            forward()
            return weighted(o, dO)
        }
        #expect(finiteDifferenceError(q, gradient: dQ, loss: loss) < 1e-2)
        #expect(finiteDifferenceError(k, gradient: dK, loss: loss) < 1e-2)
        #expect(finiteDifferenceError(v, gradient: dV, loss: loss) < 1e-2)
    }

    @Test("attention over several blocks equals the naive sums, and sees neither the future, other samples, nor what the window hides",
        arguments: [Int?.none, 1, 3, 64, 70, 149], [Float?.none, 1.5])
    func attentionEqualsNaive(_ window: Int?, _ cap: Float?) throws {
        let arena = try testArena()
        let attention = CausalAttention(headCount: 2, keyValueHeadCount: 1, headDim: 16, window: window, cap: cap)
        let lengths = [150, 70]
        let total = lengths.reduce(0, +)
        let pool = Self.pool(arena, longest: 150)
        var random = Values(seed: 6)
        let q = arena.tensor(total, 32), k = arena.tensor(total, 16), v = arena.tensor(total, 16), dO = arena.tensor(total, 32)
        for t in [q, k, v, dO] { random.fill(t) }
        let o = arena.tensor(total, 32), lse = arena.tensor(total, 2)
        let spans = [
            AttentionSpan(firstQuery: 0, queryCount: 150, firstKey: 0, keyCount: 150),
            AttentionSpan(firstQuery: 150, queryCount: 70, firstKey: 150, keyCount: 70),
        ]
        attention.forward(q: q, k: k, v: v, spans: spans, into: o, logSumExp: lse, on: pool)
        let dQ = arena.tensor(total, 32), dK = arena.tensor(total, 16), dV = arena.tensor(total, 16)
        attention.backward(
            dO: dO, q: q, k: k, v: v, o: o, logSumExp: lse, spans: spans, dQ: dQ, headDK: arena.tensor(total, 32),
            headDV: arena.tensor(total, 32), dK: dK, dV: dV, on: pool)
        var naive = (q: [Double](repeating: 0, count: total * 32), k: [Double](repeating: 0, count: total * 16),
                     v: [Double](repeating: 0, count: total * 16))
        for (first, count) in [(0, 150), (150, 70)] {
            for head in 0..<2 {
                for i in first..<first + count {
                    let query = q.row(i) + head * 16, gradient = dO.row(i) + head * 16
                    let seen = max(first, i + 1 - (window ?? .max))...i
                    let scores = seen.map { j in
                        let s = (0..<16).reduce(0.0) { $0 + Double(query[$1]) * Double(k.row(j)[$1]) } / 4
                        return cap.map { Double($0) * tanh(s / Double($0)) } ?? s
                    }
                    let sum = scores.reduce(0) { $0 + exp($1) }
                    let p = scores.map { exp($0) / sum }
                    let dp = seen.map { j in (0..<16).reduce(0.0) { $0 + Double(gradient[$1]) * Double(v.row(j)[$1]) } }
                    let delta = zip(p, dp).reduce(0) { $0 + $1.0 * $1.1 }
                    for d in 0..<16 {
                        let expected = zip(seen, p).reduce(0) { $0 + $1.1 * Double(v.row($1.0)[d]) }
                        #expect(abs(Double(o.row(i)[head * 16 + d]) - expected) < 2e-6)
                    }
                    for (index, j) in seen.enumerated() {
                        let tanhOf = cap.map { scores[index] / Double($0) } ?? 0
                        let ds = p[index] * (dp[index] - delta) * (1 - tanhOf * tanhOf) / 4
                        for d in 0..<16 {
                            naive.q[i * 32 + head * 16 + d] += ds * Double(k.row(j)[d])
                            naive.k[j * 16 + d] += ds * Double(query[d])
                            naive.v[j * 16 + d] += p[index] * Double(gradient[d])
                        }
                    }
                }
            }
        }
        for (found, expected) in [(dQ, naive.q), (dK, naive.k), (dV, naive.v)] {
            let worst = expected.indices.map { abs(Double(found.base[$0]) - expected[$0]) }.max()!
            #expect(worst < 2e-5, "\(worst)")
        }
    }

    @Test("cached attention over earlier keys equals attention over the whole sequence")
    func cachedAttention() throws {
        let arena = try testArena()
        let attention = CausalAttention(headCount: 2, keyValueHeadCount: 2, headDim: 8)
        let pool = Self.pool(arena)
        var random = Values(seed: 7)
        let q = arena.tensor(20, 16), k = arena.tensor(20, 16), v = arena.tensor(20, 16)
        for t in [q, k, v] { random.fill(t) }
        let whole = arena.tensor(20, 16), part = arena.tensor(6, 16)
        let span = AttentionSpan(firstQuery: 0, queryCount: 20, firstKey: 0, keyCount: 20)
        attention.forward(q: q, k: k, v: v, spans: [span], into: whole, logSumExp: arena.tensor(20, 2), on: pool)
        let tail = AttentionSpan(firstQuery: 0, queryCount: 6, firstKey: 0, keyCount: 20)
        attention.forward(
            q: Tensor(q.row(14), rows: 6, columns: 16), k: k, v: v, spans: [tail], into: part,
            logSumExp: arena.tensor(6, 2), on: pool)
        for i in 0..<part.count { #expect(abs(part.base[i] - whole.row(14)[i]) < 1e-6) }
    }

    @Test("element-wise kernels of every set give portable's bits")
    func setsAgreeBitForBit() throws {
        let arena = try testArena()
        var random = Values(seed: 8)
        let n = 1003
        let a = arena.tensor(1, n), b = arena.tensor(1, n), c = arena.tensor(1, n)
        random.fill(a, scale: 20)
        random.fill(b)
        random.fill(c)
        func results(_ set: KernelSet) -> [UInt32] {
            let raw = set.raw
            var bits: [UInt32] = []
            func copies() -> (Tensor, Tensor, Tensor) {
                let t = (arena.tensor(1, n), arena.tensor(1, n), arena.tensor(1, n))
                t.0.copy(from: a)
                t.1.copy(from: b)
                t.2.copy(from: c)
                return t
            }
            func keep(_ tensors: Tensor...) {
                for t in tensors { bits += (0..<n).map { t.base[$0].bitPattern } }
            }
            var (x, y, z) = copies()
            bits.append(raw.softmax(x.base, n, 0.5).bitPattern)
            keep(x)
            (x, y, z) = copies()
            raw.swiglu(x.base, y.base, z.base, n)
            keep(z)
            raw.swiglu_backward(c.base, x.base, y.base, n)
            keep(x, y)
            (x, y, z) = copies()
            bits.append(raw.cross_entropy(x.base, n, 5, 0.25).bitPattern)
            keep(x)
            (x, y, z) = copies()
            raw.rms_norm(x.base, y.base, 1, z.base, y.base, 1, n, 1e-5)
            keep(z)
            (x, y, z) = copies()
            let settings = edge_adamw(
                decay: 0.9999, step: 1e-2, root_correction2: 0.0316, beta1: 0.9, rate1: 0.1, beta2: 0.999, rate2: 0.001,
                epsilon: 1e-8, gradient_scale: 0.5)
            for i in 0..<n { z.base[i] = abs(z.base[i]) }
            withUnsafePointer(to: settings) { raw.adamw(x.base, b.base, y.base, z.base, n, $0) }
            keep(x, y, z)
            raw.dropout(a.base, x.base, n, 77, 3, 0.3)
            keep(x)
            bits.append(raw.dot(a.base, b.base, n).bitPattern)
            return bits
        }
        let portable = results(KernelSet.supported[0])
        for set in KernelSet.supported.dropFirst() { #expect(results(set) == portable, "\(set.name)") }
    }

    @Test("the exponential inside softmax is within 2 ulp of the real one, and never overflows")
    func exponentialIsAccurate() throws {
        let arena = try testArena()
        let raw = KernelSet.strongest.raw
        let x = arena.floats(2), y = arena.floats(2)
        var worst = 0.0
        for step in 0..<20_000 {
            let value = Float(step) * -0.0043
            (x[0], x[1]) = (0, value)
            raw.softmax_backward(x, y, 2, 1, 2, [0, 0], [0, 0], 1, 2)
            let exact = Double.exp(Double(value))
            worst = max(worst, abs(Double(x[1]) - exact) / (exact * 0x1p-23))
        }
        #expect(worst <= 2, "\(worst) ulp")
        (x[0], x[1]) = (200, -200)
        raw.softmax_backward(x, y, 2, 1, 2, [0, 0], [0, 0], 1, 2)
        #expect(x[0].isFinite && x[1] == 0)
    }

    @Test("dropout drops its share, scales the rest, and repeats itself")
    func dropoutIsCounterBased() throws {
        let arena = try testArena()
        let pool = Self.pool(arena)
        let x = arena.tensor(100, 1000), y = arena.tensor(100, 1000), again = arena.tensor(100, 1000)
        for i in 0..<x.count { x.base[i] = 1 }
        func part(_ rows: Range<Int>) -> SamplePart { SamplePart(rows: rows, sample: 0, firstToken: 0) }
        dropout(x, probability: 0.25, parts: [(part(0..<40), 5), (part(40..<100), 9)], into: y, on: pool)
        dropout(x, probability: 0.25, parts: [(part(0..<40), 5), (part(40..<100), 9)], into: again, on: pool)
        let zeros = (0..<y.count).count { y.base[$0] == 0 }
        // Three standard deviations of a binomial with n = 100,000.
        #expect(abs(Double(zeros) / 100_000 - 0.25) < 3 * (0.25 * 0.75 / 100_000).squareRoot())
        for i in 0..<y.count { #expect(y.base[i] == again.base[i] && (y.base[i] == 0 || abs(y.base[i] - 4.0 / 3) < 1e-6)) }
        dropout(x, probability: 0.25, parts: [(part(0..<60), 9), (part(60..<100), 6)], into: again, on: pool)
        #expect((0..<y.count).contains { y.base[$0] != again.base[$0] })
        // A sample's mask is its own, wherever it lies, and a part of it has its part.
        for i in 0..<60_000 { #expect(again.base[i] == y.base[40_000 + i]) }
        dropout(x, probability: 0.25, parts: [(SamplePart(rows: 0..<50, sample: 0, firstToken: 10), 9)], into: again, on: pool)
        for i in 0..<50_000 { #expect(again.base[i] == y.base[50_000 + i]) }
    }
}

import Glibc
extension Double { static func exp(_ x: Double) -> Double { Glibc.exp(x) } }
