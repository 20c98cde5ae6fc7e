// Ranks by how much linears matter: the measure against torch's autograd and peft's (Tests/Goldens/make_sensitivity_goldens.py), the
// apportionment's sums and bounds, and what becomes of its ranks.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

@Suite(.serialized)
struct SensitivityTests {
    static let golden = Result { try Golden("sensitivity-goldens.safetensors") }

    static func measured(
        _ samples: [TokenizedSample], path: String = TinyRun.modelPath, seed: UInt64, threads: Int = 2, budget: ByteCount = ByteCount(1 << 30),
        kernels: KernelSet = .strongest, layers: [Int]? = nil, proceed: (Int) throws -> Void = { _ in }
    ) throws -> [Double] {
        let model = try BaseModel.open(path: path)
        let spec = AdapterSpec(rank: 4, alpha: 8, dropout: 0, targets: .allLinear, layers: layers)
        // Compute and optimizer are not the measure's business.
        let limits = PlanLimits(
            budget: budget, threads: threads, compute: .int8, optimizer: .f32, spill: ByteCount(1 << 40), appliesLayerByLayer: false,
            calibration: nil, weightsAreCached: true)
        let sensitivity = try LinearSensitivity(
            of: model, modules: try spec.modules(of: model.spec), on: samples, process: .typical, limits: limits)
        #expect(sensitivity.plannedPeak <= budget)
        return try sensitivity.measure(kernels: kernels, seed: seed, proceed: proceed)
    }

    @Test("the estimate is the one of peft's LoRA at its start, in every kernel set")
    func parity() throws {
        let golden = try Self.golden.get(), expected = try golden.floats("estimated")
        let seed = UInt64(try golden.integers("seed")[0])
        var worst = 0.0
        for kernels in KernelSet.supported {
            let found = try Self.measured(try golden.samples(), seed: seed, kernels: kernels)
            #expect(found.count == 14 && expected.count == 14)
            for (value, estimate) in zip(found, expected) { worst = max(worst, abs(value / Double(estimate) - 1)) }
        }
        // f32's gradients are up to some 4e-6 off (MethodTests).
        #expect(worst < 1e-5, "\(worst)")
        print("sensitivity: worst relative error \(worst)")
    }

    @Test("the estimate is of the length of dL/dW that autograd gives")
    func expectation() throws {
        let golden = try Self.golden.get(), exact = try golden.floats("exact"), samples = try golden.samples()
        let times = 64
        let found = try Self.measured((0..<times).flatMap { _ in samples }, seed: 7)
        // Five deviations of the worst case, where one sample of the five has all the gradient, of rank 1.
        let tolerance = 5 * (1 / Double(2 * LinearSensitivity.rank * times)).squareRoot()
        var worst = 0.0
        for (value, length) in zip(found, exact) { worst = max(worst, abs(value / Double(length) - 1)) }
        #expect(worst < tolerance, "\(worst), \(tolerance)")
        print("sensitivity: \(times) projections of each are \(worst) from autograd's length")
    }

    @Test("threads and less memory change no bit, the least memory rounds layer inputs to bf16; another seed changes all")
    func determinism() throws {
        let samples = TinyRun.samples(6)
        let values = try Self.measured(samples, seed: 3)
        #expect(try Self.measured(samples, seed: 3, threads: 1) == values)
        #expect(try zip(Self.measured(samples, seed: 4), values).allSatisfy { $0 != $1 })
        var needed = ByteCount.zero
        do { _ = try Self.measured(samples, seed: 3, budget: ByteCount(1)) } catch PlanError.doesNotFit(let least, _, _) { needed = least }
        #expect(needed > .zero)
        // At most 23 tokens of 64 values in two layers: 16 KiB more hold their inputs in f32.
        #expect(try Self.measured(samples, seed: 3, budget: needed + ByteCount(16 << 10)) == values)
        // A value of bf16 is at most 2⁻⁹ off, and a gradient goes through few of them.
        for (rounded, value) in zip(try Self.measured(samples, seed: 3, budget: needed), values) {
            #expect(rounded != value && abs(rounded / value - 1) < 1 / 128)
        }
    }

    @Test("only the named layers are measured, each sample once, and an end on the way is one")
    func extent() throws {
        let samples = TinyRun.samples(5)
        var done: [Int] = []
        let all = try Self.measured(samples, seed: 3) { done.append($0) }
        #expect(done == [0, 1, 2, 3, 4])
        #expect(try Self.measured(samples, seed: 3, layers: [1]) == Array(all.suffix(7)))
        #expect(throws: TestFailure.self) { try Self.measured(samples, seed: 3) { if $0 == 2 { throw TestFailure("stop") } } }
    }

    @Test("a base whose numbers are not finite is refused")
    func nonFinite() throws {
        let scratch = try TemporaryDirectory()
        let path = scratch.path + "/broken.gguf"
        let region = try ByteRegion.map(path: TinyRun.modelPath)
        let norm = try #require(try GGUFFile(region).tensor(named: "blk.1.ffn_norm.weight")).withBytes { Data($0) }
        var bytes = try Data(contentsOf: URL(filePath: TinyRun.modelPath))
        let place = try #require(bytes.range(of: norm))
        bytes.replaceSubrange(place.lowerBound..<place.lowerBound + 4, with: withUnsafeBytes(of: Float.nan) { Data($0) })
        try bytes.write(to: URL(filePath: path))
        #expect { try Self.measured(TinyRun.samples(3), path: path, seed: 3) } throws: { error in
            guard case SensitivityError.nonFinite(sample: 0, _) = error else { return false }
            return "\(error)".contains("sample 1")
        }
    }

    // MARK: apportionment

    static func linears(_ seed: UInt64, rank: Int, alike: (importance: Double, cost: Int)? = nil) -> [RankApportionment.Linear] {
        let random = RandomSource(seed: seed, .sampling)
        return (0..<40).map { index in
            .init(
                importance: alike?.importance ?? Double(exp(2 * random.normal(index))), cost: alike?.cost ?? 64 + 64 * random.integer(900 + index, below: 9),
                most: 4 * rank)
        }
    }

    @Test("every total is kept to, nobody is outside of his bounds, and more matters more", arguments: [UInt64(1), 2, 3, 4, 5])
    func apportionment(_ seed: UInt64) throws {
        let rank = 2 + Int(seed), linears = Self.linears(seed, rank: rank)
        let apportionment = RankApportionment(linears)
        let costs = linears.map(\.cost), one = costs.reduce(0, +), dearest = costs.max()!
        var before = [Int](repeating: 1, count: linears.count)
        for budget in stride(from: one, through: 5 * rank * one, by: one / 3) {
            let ranks = try #require(apportionment.ranks(parameters: budget))
            let total = zip(ranks, costs).reduce(0) { $0 + $1.0 * $1.1 }
            #expect(total == apportionment.parameters(ranks) && total <= budget)
            #expect(total > budget - dearest || ranks == linears.map(\.most))
            #expect(zip(ranks, linears).allSatisfy { (1...$1.most).contains($0) })
            // A larger budget takes nothing away.
            #expect(zip(before, ranks).allSatisfy { $0 <= $1 })
            before = ranks
        }
        #expect(apportionment.ranks(parameters: one - 1) == nil)
        let ranks = try #require(apportionment.ranks(parameters: rank * one))
        #expect(Set(ranks).count > 3 && ranks == RankApportionment(linears).ranks(parameters: rank * one))
        for (a, x) in zip(linears, ranks) {
            for (b, y) in zip(linears, ranks) where a.cost <= b.cost && a.importance >= b.importance { #expect(x >= y - 1) }
        }
        // Webster's rule: between the bounds, nobody's next rank is worth more than anybody's last.
        let next = zip(linears, ranks).filter { $1 < $0.most && $0.cost < dearest }.map { $0.importance / Double($0.cost).squareRoot() / (Double($1) + 0.5) }.max()!
        let last = zip(linears, ranks).filter { $1 > 1 }.map { $0.importance / Double($0.cost).squareRoot() / (Double($1) - 0.5) }.min()!
        #expect(next <= last)
    }

    @Test("linears that matter alike have the rank that was asked for, and one that does not matter still has one")
    func evenness() throws {
        let alike = Self.linears(1, rank: 8, alike: (2.5, 128))
        #expect(RankApportionment(alike).ranks(parameters: 8 * 40 * 128) == [Int](repeating: 8, count: 40))
        let idle = RankApportionment([.init(importance: 0, cost: 10, most: 32), .init(importance: 1e-9, cost: 10, most: 32)])
        #expect(idle.ranks(parameters: 160) == [1, 15])
        #expect(idle.ranks(parameters: 640) == [32, 32])
        let bounded = RankApportionment([.init(importance: 5, cost: 10, most: 3), .init(importance: 1, cost: 10, most: 32)])
        #expect(bounded.ranks(parameters: 160) == [3, 13])
        var asked: [[Int]] = []
        let fitting = bounded.ranks { ranks in
            asked.append(ranks)
            return ranks.reduce(0, +) <= 9
        }
        #expect(fitting == [3, 6] && asked.count <= 8)
    }

    @Test("ranks become patterns that leave alpha over rank as it was, of rsLoRA alpha, and are planned and laid out", arguments: [false, true])
    func patterns(_ usesRankStabilizedScaling: Bool) throws {
        let model = try BaseModel.open(path: TinyRun.modelPath)
        var spec = AdapterSpec(rank: 8, alpha: 20, dropout: 0, targets: .allLinear, layers: nil)
        spec.usesRankStabilizedScaling = usesRankStabilizedScaling
        let modules = try spec.modules(of: model.spec)
        let importance = try Self.measured(TinyRun.samples(8), seed: 1)
        let apportionment = spec.apportionment(importance, of: modules, model.spec)
        let uniform = try MemoryModel(model, adapter: spec).layout.trainableCount
        let ranks = try #require(apportionment.ranks(parameters: uniform))
        let ranked = spec.with(ranks: ranks, of: modules, model.spec)
        let layout = try MemoryModel(model, adapter: ranked).layout
        #expect(layout.slots.map(\.rank) == ranks && Set(ranks).count > 2 && ranks.allSatisfy { (1...32).contains($0) })
        #expect(layout.trainableCount == apportionment.parameters(ranks) && (uniform - 223..<uniform + 1).contains(layout.trainableCount))
        for slot in layout.slots {
            let expected = usesRankStabilizedScaling ? 20 / Double(slot.rank).squareRoot() : 2.5
            #expect(abs(Double(slot.scaling) / expected - 1) < 1e-6)
        }
        #expect(ranked.rankPattern.rows.count == ranks.count { $0 != 8 } && ranked.alphaPattern.isEmpty == usesRankStabilizedScaling)
        var run = TinyRun()
        run.spec.adapter = ranked
        #expect(try MethodTests.adapter(of: run).contains { Float(bitPattern: $0) != 0 })
    }

    @Test("a pattern that is a path matches what it matches as an expression")
    func paths() {
        let paths = ["model.layers.1.mlp.up_proj", "model.layers.11.mlp.up_proj", "up_proj", "xup_proj", "layersX1Xmlp.up_proj", ""]
        let patterns = ["up_proj", "layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj", "1.mlp.up_proj", "mlp", "mlp.", ".", "..proj", ""]
        for pattern in patterns {
            let plain = ModulePatterns([pattern: 1]), expression = ModulePatterns(["(?:\(pattern))": 1])
            #expect(plain.badPattern == nil && expression.badPattern == nil)
            for path in paths { #expect(plain[path] == expression[path], "\(pattern) \(path)") }
        }
        #expect(ModulePatterns(["up_proj": 1])["model.layers.1.mlp.up_proj"] == 1 && ModulePatterns(["1.mlp.up_proj": 1])[paths[1]] == nil)
    }
}
