// Starts of a LoRA from data and from weights, against torch's own decompositions and peft's.
// Tests/Goldens/make_start_goldens.py made the references.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

@Suite(.serialized)
struct StartTests {
    static let golden = Result { try Golden("start-goldens.safetensors") }

    static func samples(_ set: String) throws -> [TokenizedSample] {
        let golden = try golden.get()
        let tokens = try golden.integers("\(set)/tokens"), loss = try golden.integers("\(set)/carries_loss")
        var first = 0
        return try golden.integers("\(set)/sample_lengths").map { length in
            defer { first += length }
            return TokenizedSample(
                tokens: tokens[first..<first + length].map { TokenID($0) }, carriesLoss: loss[first..<first + length].map { $0 == 1 })
        }
    }

    static func spec(_ start: AdapterStart, rank: Int) -> AdapterSpec {
        var spec = AdapterSpec(rank: rank, alpha: 8, dropout: 0, targets: .allLinear, layers: nil)
        spec.start = start
        return spec
    }

    // MARK: eva

    /// The trainee's A after the start.
    static func eva(
        _ set: String, rank: Int, whitens: Bool = false, threads: Int = 2, weights: WeightResidence = .resident
    ) throws -> Trainee {
        var spec = spec(.eva, rank: rank)
        spec.whitensStart = whitens
        let samples = try samples(set), longest = samples.map(\.tokens.count).max()!
        let trainee = try Trainee(
            TinyRun.modelPath, lora: spec, tokens: longest, longest: longest, weights: weights, threads: threads)
        trainee.adapters.initialize(seed: 1)
        let start = try EVAStart(trainee.adapters, seed: 1)
        for sample in samples { try start.add(sample, trainee.step) }
        _ = start.finish()
        return trainee
    }

    static func cosine(_ x: ArraySlice<Float>, _ y: ArraySlice<Float>) -> Double {
        var (product, xs, ys) = (0.0, 0.0, 0.0)
        for (a, b) in zip(x, y) { (product, xs, ys) = (product + Double(a * b), xs + Double(a * a), ys + Double(b * b)) }
        return abs(product) / (xs * ys).squareRoot()
    }

    /// The largest 1 - |cosine| between A's rows and the golden's.
    static func worst(_ trainee: Trainee, _ set: String, _ kind: String, where isCompared: (String) -> Bool = { _ in true }) throws -> Double {
        var (worst, compared) = (0.0, 0)
        for slot in trainee.adapters.slots {
            let path = slot.id.path(trainee.model.spec).dropFirst("model.layers.".count)
            guard isCompared(String(path)), let tensor = try golden.get().file.tensor(named: "\(set)/\(kind).\(path)") else { continue }
            let expected = try #require(tensor.floats()), a = trainee.adapters.loraA(slot)
            #expect(expected.count == a.count)
            for row in 0..<a.rows {
                let own = (0..<a.columns).map { a.row(row)[$0] }
                worst = max(worst, 1 - cosine(own[...], expected[row * a.columns..<(row + 1) * a.columns]))
                compared += 1
            }
        }
        try #require(compared > 0)
        return worst
    }

    @Test("eva's directions are those of torch's SVD of all activations, and peft's")
    func evaDirections() throws {
        let few = try Self.eva("few", rank: 13), many = try Self.eva("many", rank: 56)
        let ofFew = try Self.worst(few, "few", "exact")
        // 64 directions are all that an input of 64 has; of down_proj's 160 some are let go of after every sample.
        let ofMany = try Self.worst(many, "many", "exact") { !$0.contains("down_proj") }
        let peft = try Self.worst(many, "many", "peft") { !$0.contains("down_proj") }
        print("eva: 1 - cosine with torch \(ofFew) of few tokens, \(ofMany) of many; with peft \(peft)")
        #expect(ofFew < 1e-6 && ofMany < 1e-6)
        // Its own are a randomised SVD's, 2e-6 from torch's.
        #expect(peft < 1e-5)
        for slot in many.adapters.slots {
            let a = many.adapters.loraA(slot), b = many.adapters.loraB(slot)
            for row in 0..<a.rows {
                for other in 0..<row { #expect(abs(dot(a.row(row), a.row(other), a.columns)) < 1e-5) }
                #expect(abs(dot(a.row(row), a.row(row), a.columns) - 1) < 1e-5)
            }
            #expect((0..<b.count).allSatisfy { b.base[$0] == 0 })
        }
    }

    @Test("what is let go of on the way costs next to nothing of what the directions explain")
    func evaTruncation() throws {
        let trainee = try Self.eva("many", rank: 16)
        let golden = try Self.golden.get()
        for slot in trainee.adapters.slots {
            let path = slot.id.path(trainee.model.spec).dropFirst("model.layers.".count)
            guard let exact = golden.file.tensor(named: "many/exact.\(path)")?.floats() else { continue }
            let values = try golden.floats("many/values.\(path)").map { Double($0 * $0) }
            let a = trainee.adapters.loraA(slot), directions = exact.count / a.columns
            var explained = 0.0
            // Of what 56 directions explain; there is no more in the golden.
            for direction in 0..<directions {
                for row in 0..<a.rows {
                    let part = (0..<a.columns).reduce(0.0) { $0 + Double(a.row(row)[$1] * exact[direction * a.columns + $1]) }
                    explained += part * part * values[direction]
                }
            }
            let best = values.prefix(a.rows).reduce(0, +)
            #expect(explained > 0.97 * best && explained < best * (1 + 1e-6), "\(path): \(explained / best)")
        }
    }

    @Test("whitened rows are as long as one over the root of their singular value, as peft's are")
    func evaWhitening() throws {
        let trainee = try Self.eva("few", rank: 13, whitens: true)
        let golden = try Self.golden.get()
        var worst = 0.0
        for slot in trainee.adapters.slots where slot.id.module == .output || slot.id.module == .gate {
            let path = slot.id.path(trainee.model.spec).dropFirst("model.layers.".count)
            let values = try golden.floats("few/values.\(path)"), peft = try golden.floats("few/whitened.\(path)")
            let a = trainee.adapters.loraA(slot)
            for row in 0..<a.rows {
                let length = dot(a.row(row), a.row(row), a.columns).squareRoot()
                worst = max(worst, abs(length * Double(values[row]).squareRoot() - 1))
                // PEFT divides what linears share in place, once for each of them: gate's and up's is whitened twice there.
                guard slot.id.module == .output else { continue }
                let theirs = peft[row * a.columns..<(row + 1) * a.columns].reduce(0.0) { $0 + Double($1 * $1) }.squareRoot()
                // And it saw its one batch twice before all came to rest: each singular value is √2 times as large.
                #expect(abs(length / (theirs * 2.0.squareRoot().squareRoot()) - 1) < 1e-3)
            }
        }
        #expect(worst < 1e-5)
    }

    @Test("eva has the same bits with any number of threads and with streamed weights, and one start for all linears that share an input")
    func evaBits() throws {
        func bits(_ trainee: Trainee) -> [UInt32] {
            (0..<trainee.adapters.parameterCount).map { trainee.adapters.parameters[$0].bitPattern }
        }
        let expected = try Self.eva("many", rank: 8)
        #expect(try bits(Self.eva("many", rank: 8, threads: 3)) == bits(expected))
        #expect(try bits(Self.eva("many", rank: 8, weights: .streamed)) == bits(expected))
        let adapters = expected.adapters
        for slot in adapters.slots where slot.id.module != slot.id.module.sharesInputWith {
            let first = adapters.loraA(adapters.slot(layer: slot.id.layer, slot.id.module.sharesInputWith)!), own = adapters.loraA(slot)
            #expect((0..<own.count).allSatisfy { own.base[$0] == first.base[$0] })
        }
    }

    @Test("data with fewer directions than the rank has random ones for the rest, orthogonal to them")
    func evaOfTooLittle() throws {
        var spec = Self.spec(.eva, rank: 8)
        spec.rankPattern = ModulePatterns(["k_proj": 3])
        let trainee = try Trainee(TinyRun.modelPath, lora: spec, tokens: 20, longest: 13)
        trainee.adapters.initialize(seed: 1)
        let start = try EVAStart(trainee.adapters, seed: 1)
        let sample = TokenizedSample(tokens: [5, 6, 7, 8, 9, 10], carriesLoss: [false, false, true, true, true, true])
        try start.add(sample, trainee.step)
        #expect(!start.endStep())
        try start.add(sample, trainee.step)
        // The same again turns nothing, but a rank of 8 is not reached.
        #expect(!start.endStep())
        var tokens = 2 * 4
        repeat {
            try start.add(sample, trainee.step)
            tokens += 4
        } while !start.endStep()
        #expect(tokens == EVAStart.mostTokens)
        #expect(start.finish().contains("8 have fewer than the rank"))
        for slot in trainee.adapters.slots {
            let a = trainee.adapters.loraA(slot)
            #expect(a.rows == (slot.id.module == .key ? 3 : 8))
            for row in 0..<a.rows {
                for other in 0..<row { #expect(abs(dot(a.row(row), a.row(other), a.columns)) < 1e-5) }
                #expect(abs(dot(a.row(row), a.row(row), a.columns) - 1) < 1e-5)
            }
        }
        var wide = Self.spec(.eva, rank: 65)
        wide.rankPattern = ModulePatterns(["down_proj": 160])
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let layout = try MemoryModel(model, adapter: wide).layout
        #expect(throws: AdapterStartError.rankAboveInputs(module: "model.layers.0.self_attn.q_proj", rank: 65, inputs: 64)) {
            try EVAStart.check(layout, model.spec)
        }
    }

    static func run() -> TinyRun {
        var run = TinyRun()
        run.spec.adapter = spec(.eva, rank: 3)
        run.spec.adapter.rankPattern = ModulePatterns(["q_proj": 2])
        return run
    }

    @Test("a run that begins by eva gathers once: stopped anywhere and resumed it ends with the same bits")
    func evaRun() throws {
        let whole = try TemporaryDirectory()
        let expected = try Self.run().run(in: whole.path)
        guard case .finished = expected.outcome else { Issue.record("did not finish"); return }
        func gathered(_ result: TinyRun.Result) -> Bool {
            result.events.contains { if case .log(let text) = $0 { text.hasPrefix("eva: ") } else { false } }
        }
        #expect(gathered(expected))
        for stopAfter in [0, 2, 7] {
            let directory = try TemporaryDirectory()
            // Four samples a step, and no direction is at rest before the second.
            let first = try Self.run().run(in: directory.path, stopAfter: stopAfter, counted: [.adapterStart])
            #expect(first.outcome == .stopped(step: 0))
            let resumed = try Self.run().run(in: directory.path)
            #expect(gathered(resumed) && resumed.adapter == expected.adapter, "stopped after \(stopAfter)")
        }
        for stopAfter in [1, 9] {
            let directory = try TemporaryDirectory()
            _ = try Self.run().run(in: directory.path, stopAfter: stopAfter)
            let resumed = try Self.run().run(in: directory.path)
            #expect(!gathered(resumed) && resumed.adapter == expected.adapter, "stopped after \(stopAfter)")
        }
        var tight = Self.run()
        tight.replan = {
            $0.shape.keptLayers = 0
            $0.shape.weights = .streamed
            $0.shape.checkpoints = .file
            $0.shape.lossChunk = 3
        }
        #expect(try MethodTests.adapter(of: tight) == expected.adapter)
    }

    @Test("what eva holds is in the plan: in the place of gradients, or beyond them")
    func evaMemory() throws {
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let shape = StepShape(tokens: 20, longestSample: 13, lossChunk: 16, keptLayers: 0, threads: 1, compute: .f32)
        for rank in [1, 4, 48] {
            let with = try MemoryModel(model, adapter: Self.spec(.eva, rank: rank), process: ProcessMemory(resident: .zero, preparation: .zero))
            let without = try MemoryModel(
                model, adapter: Self.spec(.kaiming, rank: rank), process: ProcessMemory(resident: .zero, preparation: .zero))
            let more = max(0, EVAStart.bytes(with.layout).bytes - with.gradients(shape).bytes)
            #expect(with.peak(shape).bytes == without.peak(shape).bytes + more)
            #expect(rank > 4 || more > 0)
        }
    }
}
