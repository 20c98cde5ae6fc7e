// Every PEFT method against real torch + transformers + peft: forward, every gradient, ten losses, and PEFT's own files.
// Tests/Goldens/make_method_goldens.py made the references.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

/// A case of the goldens, and the job that it is.
struct MethodCase: CustomTestStringConvertible, Sendable {
    let name: String
    let adapter: AdapterSpec
    /// What every step of the golden has drawn.
    var drawnRank: Int? { adapter.method.drawsRank ? 3 : nil }
    var testDescription: String { name }

    static let all: [MethodCase] = [
        make("rslora", "lora", rank: 4, alpha: 8) { $0.usesRankStabilizedScaling = true },
        make("loraplus", "lora", rank: 2, alpha: 8) { $0.learningRateRatio = 16 },
        make("lora-fa", "lora-fa", rank: 4, alpha: 8), make("dylora", "dylora", rank: 4, alpha: 8),
        make("patterns", "lora", rank: 4, alpha: 8) {
            $0.rankPattern = ModulePatterns(["layers.1.mlp.down_proj": 6, "q_proj": 2])
            $0.alphaPattern = ModulePatterns(["k_proj": 3, "q_proj": 5])
        }, make("vera", "vera", rank: 8), make("miss", "miss", rank: 6),
        make("loha", "loha", rank: 3, alpha: 6), make("dora", "dora", rank: 4, alpha: 8), make("ia3", "ia3"),
        make("adalora", "adalora", rank: 4, alpha: 8) {
            var allocation = RankAllocation()
            (allocation.targetRank, allocation.initialSteps, allocation.finalSteps, allocation.interval) = (2, 2, 3, 2)
            allocation.totalSteps = 10
            $0.method = AdaLoRA(allocation)
        },
        make("lokr", "lokr", rank: 4, alpha: 8) { $0.method = LoKr(factor: nil) },
        make("lokr-both", "lokr", rank: 2, alpha: 4) { $0.method = LoKr(factor: nil, decomposesBoth: true) },
        make("lokr-factor", "lokr", rank: 3, alpha: 6) { $0.method = LoKr(factor: 4) },
        make("oft", "oft") { $0.method = OFT(.size(8)) }, make("oft-exact", "oft") { $0.method = OFT(.size(16), .exact) },
        // 12 is no divisor of 64, nor of 160.
        make("oft-blocks", "oft") { $0.method = OFT(.count(12), .neumann(terms: 7)) },
        make("ia3-recommended", "ia3") { $0.targets = .names(["k_proj", "v_proj", "down_proj"]) },
    ]

    private static func make(
        _ name: String, _ method: String, rank: Int = 3, alpha: Float = 5, _ change: (inout AdapterSpec) -> Void = { _ in }
    ) -> MethodCase {
        var spec = AdapterSpec(
            method: AdapterMethods.named(method)!, rank: rank, alpha: alpha, dropout: 0, targets: .allLinear, layers: nil)
        change(&spec)
        return MethodCase(name: name, adapter: spec)
    }
}

@Suite(.serialized)
struct MethodTests {
    static let golden = Result { try Golden("method-goldens.safetensors") }

    static func trainee(_ method: MethodCase, keptLayers: Int = 0, mlpTokens: Int? = nil, threads: Int = 2) throws -> Trainee {
        try Trainee(
            TinyRun.modelPath, lora: method.adapter, tokens: 20, longest: 13, keptLayers: keptLayers, mlpTokens: mlpTokens, threads: threads)
    }

    /// What PEFT saved of the case.
    static func tensors(_ method: MethodCase, _ kind: String) throws -> [AdapterTensor] {
        let prefix = "\(method.name)/\(kind)."
        return try golden.get().file.tensors.filter { $0.name.hasPrefix(prefix) }.map {
            AdapterTensor(name: String($0.name.dropFirst(prefix.count)), shape: $0.shape, values: try #require($0.floats()))
        }
    }

    /// The gradients under the names and in the order of files.
    static func gradients(_ trainee: Trainee) -> [AdapterTensor] {
        let own = trainee.adapters
        let copy = AdapterSet(own.layout, of: trainee.model.spec, parameters: own.gradients, gradients: nil, factorSpace: nil)
        return Array(copy.tensors(trainee.model.spec).dropLast(own.layout.shared.count))
    }

    @Test("forward, gradients and ten losses are those of peft", arguments: MethodCase.all, [0, 2])
    func parity(_ method: MethodCase, keptLayers: Int) throws {
        let golden = try Self.golden.get()
        let trainee = try Self.trainee(method, keptLayers: keptLayers)
        try trainee.adapters.load(Self.tensors(method, "initial"), trainee.model.spec)
        let batch = MicroBatch(try golden.samples())
        let expectedLogits = try golden.floats("\(method.name)/logits")
        let worst = try trainee.largestLogitDifference(batch, from: expectedLogits)
        #expect(worst < 5e-5)

        let count = batch.lossRows.count
        let loss = try trainee.accumulate(batch, lossScale: 1 / Float(count), rank: method.drawnRank) / Double(count)
        let expectedLoss = Double(try golden.floats("\(method.name)/loss")[0])
        #expect(abs(loss / expectedLoss - 1) < 2e-6)
        let expected = try Self.tensors(method, "gradient")
        let found = Dictionary(uniqueKeysWithValues: Self.gradients(trainee).map { ($0.name, $0.values) })
        var worstGradient = 0.0
        for gradient in expected {
            let error = relativeError(try #require(found[gradient.name]), gradient.values)
            worstGradient = max(worstGradient, error)
            #expect(error < 2e-5, "\(gradient.name)")
        }
        #expect(expected.reduce(0) { $0 + $1.values.count } == trainee.adapters.layout.trainableCount)

        let (losses, _) = try trainee.train(batch, steps: 10, learningRate: 2e-3, rank: method.drawnRank)
        let expectedLosses = try golden.floats("\(method.name)/training_losses")
        let worstLoss = zip(losses, expectedLosses).map { abs($0 / Double($1) - 1) }.max()!
        #expect(worstLoss < 1e-3)
        print("parity \(method.name), \(keptLayers) layers kept: logits \(worst), gradients \(worstGradient), ten losses \(worstLoss)")
    }

    // MARK: files

    /// What PEFT's `save_pretrained` would have left.
    static func peftDirectory(
        _ method: MethodCase, _ directory: String, _ change: (AdapterTensor) -> AdapterTensor = { $0 }
    ) throws {
        var file = SafetensorsWriter(metadata: ["format": "pt"])
        for tensor in try tensors(method, "initial").map(change) { try file.add(tensor.name, dtype: .f32, shape: tensor.shape, body: .floats(tensor.values)) }
        try Data(try file.encoded()).write(to: URL(fileURLWithPath: directory + "/adapter_model.safetensors"))
        let config = try #require(golden.get().file.metadata[method.name])
        try Data(config.utf8).write(to: URL(fileURLWithPath: directory + "/adapter_config.json"))
    }

    /// Of all ranks, by the golden's logits.
    static func wholeLoss(_ method: MethodCase) throws -> Double {
        let golden = try golden.get(), batch = MicroBatch(try golden.samples())
        let logits = try golden.floats("\(method.name)/logits")
        let columns = logits.count / batch.tokens.count
        let losses = zip(batch.lossRows, batch.targets).map { row, target in
            let values = logits[Int(row) * columns..<(Int(row) + 1) * columns].map(Double.init)
            return log(values.reduce(0) { $0 + exp($1) }) - values[Int(target)]
        }
        return losses.reduce(0, +) / Double(losses.count)
    }

    static func loss(_ model: BaseModel, _ adapter: LoadedAdapter?, in scratch: String) throws -> Double {
        try MergedModelTests.loss(model, adapter, try golden.get().samples(), in: scratch)
    }

    @Test("PEFT's own directory gives the same loss, as it is, and after a merge", arguments: MethodCase.all)
    func peftDirectories(_ method: MethodCase) throws {
        let scratch = try TemporaryDirectory()
        try Self.peftDirectory(method, scratch.path)
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let expected = try Self.wholeLoss(method)
        let adapter = try LoadedAdapter(directory: scratch.path, of: model.spec)
        #expect(abs(try Self.loss(model, adapter, in: scratch.path) / expected - 1) < 2e-6)
        let merged = try MergedModel(model, adapter, format: .f16)
        try MergedModelTests.write(merged, to: scratch.path + "/merged")
        let made = try MergedModel.open(scratch.path + "/merged", madeFrom: model)
        #expect(abs(try Self.loss(made, nil, in: scratch.path) / expected - 1) < 5e-4)
    }

    @Test("what is published has PEFT's keys, shapes and values, and a configuration that says the same", arguments: MethodCase.all)
    func published(_ method: MethodCase) throws {
        let scratch = try TemporaryDirectory()
        let trainee = try Self.trainee(method)
        let expected = try Self.tensors(method, "initial").sorted { $0.name < $1.name }
        try trainee.adapters.load(expected, trainee.model.spec)
        try AdapterArtifact.publish(
            to: scratch.path + "/a", tensors: trainee.adapters.tensors(trainee.model.spec),
            config: AdapterConfig(
                method.adapter, modules: trainee.memory.modules, of: trainee.model.spec, baseModelNameOrPath: nil),
            provenance: [:], trainingJSON: [], modelCard: "")
        let artifact = try AdapterArtifact.open(directory: scratch.path + "/a")
        #expect(artifact.stored.sorted { $0.name < $1.name } == expected)
        func members(_ text: String) throws -> [String: JSONText] {
            guard case .object(let members) = try Array(text.utf8).withUnsafeBytes({ try JSONText(parsing: $0) }) else { return [:] }
            return Dictionary(uniqueKeysWithValues: members.map { ($0.key, $0.value) })
        }
        let theirs = try members(try #require(try Self.golden.get().file.metadata[method.name]))
        let ours = try members(String(decoding: artifact.config.json, as: UTF8.self))
        for (key, value) in ours where !["inference_mode", "base_model_name_or_path", "projection_prng_key", "peft_version"].contains(key) {
            // A number may be written in two ways.
            #expect(theirs[key] == value || theirs[key]?.double == value.double && value.double != nil, "\(key): \(value)")
        }
        let adapter = try LoadedAdapter(directory: scratch.path + "/a", of: trainee.model.spec)
        let loss = try Self.wholeLoss(method)
        #expect(abs(try Self.loss(trainee.model, adapter, in: scratch.path) / loss - 1) < 2e-6)
    }

    @Test("what is exactly a LoRA is an adapter of llama.cpp's; the others are refused, with what to do", arguments: MethodCase.all)
    func ggufAdapters(_ method: MethodCase) throws {
        let scratch = try TemporaryDirectory()
        try Self.peftDirectory(method, scratch.path)
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let path = scratch.path + "/adapter.gguf"
        func export() throws {
            try AdapterArtifact.exportGGUF(scratch.path, architecture: "llama", to: path) { module in
                guard let id = try? ModuleID(path: module, in: model.spec) else { return nil }
                return AdapterArtifact.GGUFTarget(
                    name: id.ggufName(model.spec), rowOrder: model.spec.ggufRowOrder(id.module), inFeatures: id.inFeatures(model.spec),
                    outFeatures: id.outFeatures(model.spec))
            }
        }
        guard method.adapter.method.isLoRA(method.adapter) else {
            #expect(throws: AdapterError.notForGGUF(method: method.adapter.method.name)) { try export() }
            return
        }
        try export()
        let adapter = try LoadedAdapter(tensors: path, config: nil, spec: model.spec, limitBytes: 1 << 24)
        #expect(abs(try Self.loss(model, adapter, in: scratch.path) / Self.wholeLoss(method) - 1) < 2e-6)
    }

    @Test("sizes are parted as by peft's factorization", arguments: [
        (576, nil, 24, 24), (576, 8, 8, 72), (576, 5, 4, 144), (1536, 100, 32, 48), (100, 20, 20, 5), (127, nil, 1, 127), (128, 12, 8, 16),
        (5632, nil, 64, 88), (24, 7, 4, 6), (1, 8, 1, 1),
    ] as [(Int, Int?, Int, Int)])
    func factorization(size: Int, factor: Int?, first: Int, second: Int) {
        #expect(LoKr.divisors(of: size, factor: factor) == (first, second))
    }

    @Test("blocks are parted as by peft's adjust_oft_parameters", arguments: [
        (576, 32, 32), (64, 12, 8), (160, 12, 10), (1536, 100, 96), (64, 100, 64), (7, 3, 1), (7, 5, 7), (2048, 1, 1),
    ])
    func oftBlocks(size: Int, asked: Int, divisor: Int) {
        #expect(OFT.divisor(of: size, near: asked) == divisor)
    }

    @Test("a LoKr's file with a matrix both whole and as a product is refused")
    func twoFormsOfAMatrix() throws {
        let scratch = try TemporaryDirectory()
        let method = try #require(MethodCase.all.first { $0.name == "lokr" })
        let module = "base_model.model.model.layers.0.mlp.up_proj"
        try Self.peftDirectory(method, scratch.path) { tensor in
            // Another linear's, which has it whole.
            guard tensor.name == "base_model.model.model.layers.0.self_attn.q_proj.lokr_w2" else { return tensor }
            return AdapterTensor(name: module + ".lokr_w2", shape: tensor.shape, values: tensor.values)
        }
        let model = try BaseModel.open(path: TinyRun.modelPath)
        #expect(throws: AdapterError.unknownTensor(module + ".lokr_w2")) { try LoadedAdapter(directory: scratch.path, of: model.spec) }
    }

    // MARK: the same bits

    static func gradientBits(
        _ method: MethodCase, batches: [[TokenizedSample]], keptLayers: Int = 0, threads: Int = 2
    ) throws -> [UInt32] {
        let trainee = try trainee(method, keptLayers: keptLayers, threads: threads)
        try trainee.adapters.load(tensors(method, "initial"), trainee.model.spec)
        for batch in batches { _ = try trainee.accumulate(MicroBatch(batch), lossScale: 0.1, rank: method.drawnRank) }
        return (0..<trainee.adapters.trainedCount).map { trainee.adapters.gradients[$0].bitPattern }
    }

    @Test("gradients have the same bits however samples are packed, layers kept and threads counted", arguments: MethodCase.all)
    func bits(_ method: MethodCase) throws {
        let samples = try Self.golden.get().samples()
        let expected = try Self.gradientBits(method, batches: [samples])
        #expect(try Self.gradientBits(method, batches: samples.map { [$0] }) == expected)
        #expect(try Self.gradientBits(method, batches: [samples], keptLayers: 1) == expected)
        #expect(try Self.gradientBits(method, batches: [samples], threads: 3) == expected)
    }

    @Test("every method that can begins as the base, and every one learns", arguments: AdapterMethods.ofAnyModel.map(\.name))
    func starts(_ name: String) throws {
        let method = try #require(AdapterMethods.tested(name))
        let spec = AdapterSpec(
            method: method, rank: min(4, method.largestRank), alpha: 8, dropout: 0, targets: .allLinear, layers: nil)
        let trainee = try Trainee(TinyRun.modelPath, lora: spec, tokens: 30, longest: 20)
        try trainee.step.initialize(seed: 7)
        let batch = MicroBatch(try Self.golden.get().samples().map { $0.behindVirtualTokens(method.promptTokens(spec)) })
        let scratch = try TemporaryDirectory()
        let base = try Self.loss(trainee.model, nil, in: scratch.path)
        let (losses, _) = try trainee.train(batch, steps: 30, learningRate: 5e-3)
        #expect(!method.beginsAsBase || abs(losses[0] / base - 1) < 1e-6)
        #expect(losses.last! < 0.99 * losses[0], "\(losses)")
    }

    @Test(
        "linears that share an input with ones that have no adapter begin as the base, and learn",
        arguments: AdapterMethods.ofAnyModel.filter { $0.adaptsLinears && $0.beginsAsBase }.map(\.name))
    func partlyAdapted(_ name: String) throws {
        let method = try #require(AdapterMethods.named(name))
        let spec = AdapterSpec(
            method: method, rank: min(4, method.largestRank), alpha: 8, dropout: 0, targets: .names(["v_proj", "up_proj"]), layers: nil)
        let trainee = try Trainee(TinyRun.modelPath, lora: spec, tokens: 20, longest: 13)
        trainee.adapters.initialize(seed: 7)
        let scratch = try TemporaryDirectory()
        let base = try Self.loss(trainee.model, nil, in: scratch.path)
        let (losses, _) = try trainee.train(MicroBatch(try Self.golden.get().samples()), steps: 30, learningRate: 5e-3)
        #expect(abs(losses[0] / base - 1) < 1e-6)
        #expect(losses.last! < losses[0], "\(losses)")
    }

    @Test("every start leaves the base as it is; gaussian has its deviation, orthogonal is none of zero", arguments: AdapterStart.allCases)
    func starts(_ start: AdapterStart) throws {
        var spec = AdapterSpec(rank: 4, alpha: 8, dropout: 0, targets: .allLinear, layers: nil)
        spec.start = start
        let trainee = try Trainee(TinyRun.modelPath, lora: spec, tokens: 20, longest: 13)
        trainee.adapters.initialize(seed: 3)
        var (count, squares) = (0, 0.0)
        for slot in trainee.adapters.slots {
            let a = trainee.adapters.loraA(slot), b = trainee.adapters.loraB(slot)
            for i in 0..<a.count { squares += Double(a.base[i] * a.base[i]) }
            count += a.count
            #expect((0..<b.count).allSatisfy { (b.base[$0] == 0) == (start != .orthogonal) })
            for row in 0..<b.rows {
                for column in 0..<a.columns {
                    let change = (0..<4).reduce(Float(0)) { $0 + b.row(row)[$1] * a.row($1)[column] }
                    #expect(abs(change) < 1e-7)
                }
            }
        }
        if start == .gaussian { #expect(abs((squares / Double(count)).squareRoot() - 0.25) < 0.01) }
        // A tenth of normal in half of the directions.
        if start == .orthogonal { #expect(abs((squares / Double(count)).squareRoot() - 0.1 * 0.5.squareRoot()) < 0.005) }
    }

    // MARK: runs

    static func run(_ name: String) throws -> TinyRun {
        let method = try #require(AdapterMethods.tested(name))
        var run = TinyRun()
        run.spec.adapter = AdapterSpec(
            method: method, rank: min(4, method.largestRank), alpha: 8, dropout: method.hasDropout ? 0.1 : 0, targets: .allLinear, layers: nil)
        if method is AdaLoRA {
            var allocation = RankAllocation()
            (allocation.initialSteps, allocation.finalSteps) = (1, 3)
            run.spec.adapter.method = AdaLoRA(allocation)
        }
        run.dataset = Dataset(
            TinyRun.samples(17).map { $0.behindVirtualTokens(method.promptTokens(run.spec.adapter)) }, heldOut: 3, seed: 3)
        if method.peftType == "LORA" { run.spec.adapter.rankPattern = ModulePatterns(["q_proj": 2]) }
        return run
    }

    static func adapter(of run: TinyRun) throws -> [UInt32] {
        let directory = try TemporaryDirectory()
        let result = try run.run(in: directory.path)
        guard case .finished = result.outcome else { throw CancellationError() }
        return result.adapter
    }

    @Test("a run of every method, stopped and resumed, ends with the same bits", arguments: AdapterMethods.ofAnyModel.map(\.name))
    func resume(_ name: String) throws {
        let expected = try Self.adapter(of: Self.run(name))
        var piecemeal = try Self.run(name)
        piecemeal.replan = { $0.tokenBudget = 1 }
        for stopAfter in [0, 1, 7, 14, 27] {
            let directory = try TemporaryDirectory()
            guard case .stopped = try piecemeal.run(in: directory.path, stopAfter: stopAfter).outcome else {
                Issue.record("stop \(stopAfter) ignored")
                continue
            }
            var rest = try Self.run(name)
            rest.threads = 3
            #expect(try rest.run(in: directory.path).adapter == expected, "stopped after \(stopAfter)")
        }
    }

    @Test("what a plan trades for memory leaves every method's bits as they are", arguments: AdapterMethods.ofAnyModel.map(\.name))
    func trades(_ name: String) throws {
        let free = try Self.adapter(of: Self.run(name))
        var tight = try Self.run(name)
        tight.replan = {
            $0.shape.keptLayers = 0
            $0.shape.weights = .streamed
            $0.shape.checkpoints = .file
            $0.shape.lossChunk = 3
        }
        #expect(try Self.adapter(of: tight) == free)
        // Gradients applied layer by layer, where nothing is clipped and a step is one micro-batch.
        var whole = try Self.run(name), layered = try Self.run(name)
        (whole.spec.maxGradNorm, layered.spec.maxGradNorm) = (nil, nil)
        whole.replan = { $0.shape.gradients = .allLayers }
        layered.replan = { $0.shape.gradients = .oneLayer }
        #expect(try Self.adapter(of: layered) == Self.adapter(of: whole))
    }
}
