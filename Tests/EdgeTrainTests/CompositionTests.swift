// Adapters mixed by weights that examples choose: the mixture against LoRAHub's in peft, the search, what is published, refusals.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

@Suite(.serialized)
struct CompositionTests {
    static func heldOut(
        _ composition: AdapterComposition, _ model: BaseModel, _ samples: [TokenizedSample], threads: Int = 2, budget: Int = 1 << 30
    ) throws -> HeldOutLoss {
        let limits = PlanLimits(
            budget: ByteCount(budget), threads: threads, compute: .f32, optimizer: .eightBit, spill: .zero, appliesLayerByLayer: true,
            calibration: nil, weightsAreCached: true)
        return try HeldOutLoss(
            of: model, filling: composition.spec, modules: composition.modules, on: samples,
            spec: TrainingSpec(adapter: composition.spec, samplesPerStep: samples.count, maxSteps: 1), process: .typical, limits: limits)
    }

    static func composition(_ directories: [String], _ model: BaseModel) throws -> AdapterComposition {
        try AdapterComposition(directories.count, of: model.spec, reserve: { _ in }) {
            try LoadedAdapter(directory: directories[$0], of: model.spec)
        }
    }

    static func search(
        _ directories: [String], _ samples: [TokenizedSample], steps: Int = 40, seed: UInt64 = 42, threads: Int = 2
    ) throws -> (outcome: AdapterComposition.Outcome, trials: [AdapterComposition.Trial]) {
        let scratch = try TemporaryDirectory()
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let composition = try composition(directories, model)
        var trials: [AdapterComposition.Trial] = []
        let outcome = try composition.search(
            try heldOut(composition, model, samples, threads: threads), steps: steps, seed: seed, kernels: .strongest,
            spillDirectory: scratch.path, tried: { number, trial, _ in
                #expect(number == trials.count + 1)
                trials.append(trial)
            })
        return (outcome, trials)
    }

    static func publish(_ composition: AdapterComposition, _ weights: [Double], to directory: String) throws {
        try composition.publish(
            weights, to: directory, baseModel: "tiny", provenance: ["source": "composed"], trainingJSON: Array("{}\n".utf8), modelCard: "")
    }

    /// A directory as PEFT's, changed where the test says so.
    static func write(
        _ tensors: [AdapterTensor], alpha: Double = 8, to directory: String, change: (AdapterTensor) -> AdapterTensor = { $0 }
    ) throws {
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        var file = SafetensorsWriter(metadata: ["format": "pt"])
        for tensor in tensors.map(change) { try file.add(tensor.name, dtype: .f32, shape: tensor.shape, body: .floats(tensor.values)) }
        try Data(try file.encoded()).write(to: URL(fileURLWithPath: directory + "/adapter_model.safetensors"))
        let config = AdapterConfig(
            rank: 4, loraAlpha: alpha, loraDropout: 0, targetModules: [], layersToTransform: nil, baseModelNameOrPath: nil)
        try Data(config.json).write(to: URL(fileURLWithPath: directory + "/adapter_config.json"))
    }

    static func tensors(_ name: String, _ golden: Golden) throws -> [AdapterTensor] {
        try golden.file.tensors.filter { $0.name.hasPrefix(name + ".") }.map {
            AdapterTensor(name: String($0.name.dropFirst(name.count + 1)), shape: $0.shape, values: try #require($0.floats()))
        }
    }

    /// The golden's adapters; the second's B grown, and its alpha less for it.
    static func pair(in directory: String, _ golden: Golden, secondAlpha: Double = 8) throws -> [String] {
        let paths = ["first", "second"].map { "\(directory)/\($0)" }
        try write(try tensors("first", golden), to: paths[0])
        try write(try tensors("second", golden), alpha: secondAlpha, to: paths[1]) { tensor in
            var tensor = tensor
            if tensor.name.contains("lora_B") { tensor.values = tensor.values.map { $0 * Float(8 / secondAlpha) } }
            return tensor
        }
        return paths
    }

    @Test("mixtures have the losses that peft gives to LoRAHub's weighted states, whatever scaling an adapter has", arguments: [8.0, 2])
    func parity(_ secondAlpha: Double) throws {
        let scratch = try TemporaryDirectory()
        let golden = try Golden("composition-goldens.safetensors")
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let (samples, weights) = (try golden.samples(), try golden.floats("weights").map(Double.init))
        let expected = try golden.floats("losses").map(Double.init)
        let paths = try Self.pair(in: scratch.path, golden, secondAlpha: secondAlpha)
        for (index, loss) in expected.enumerated() {
            let pair = [weights[2 * index], weights[2 * index + 1]]
            let composition = try Self.composition(paths, model), made = "\(scratch.path)/\(index)"
            guard pair != [0, 0] else {
                #expect(throws: AdapterError.self) { try Self.publish(composition, pair, to: made) }
                continue
            }
            try Self.publish(composition, pair, to: made)
            let found = try MergedModelTests.loss(model, try LoadedAdapter(directory: made, of: model.spec), samples, in: scratch.path)
            #expect(abs(found / loss - 1) < 1e-6, "\(pair): \(found), peft \(loss)")
        }
        let (outcome, trials) = try Self.search(paths, samples, steps: 12)
        #expect(trials.count == 12 && outcome.tokens == Dataset.lossTokens(samples))
        for (found, loss) in zip([outcome.base] + outcome.alone, expected) { #expect(abs(found / loss - 1) < 1e-6) }
    }

    /// The artifact of a run on these samples.
    static func trained(on samples: [TokenizedSample], in directory: String) throws -> String {
        var run = TinyRun()
        run.dataset = Dataset(training: samples, heldOut: [])
        (run.spec.maxSteps, run.spec.evalSteps, run.spec.adapter.dropout) = (60, nil, 0)
        let bits = try run.run(in: directory).adapter
        let spec = try LoadedAdapterTests.spec(), modules = try run.spec.adapter.modules(of: spec)
        let layout = AdapterLayout(run.spec.adapter, modules: modules, of: spec)
        let arena = try Arena(capacity: .floats(layout.parameterCount))
        let set = AdapterSet(layout, of: spec, parameters: arena.floats(layout.parameterCount), gradients: nil, factorSpace: nil)
        for (index, bits) in bits.enumerated() { set.parameters[index] = Float(bitPattern: bits) }
        try AdapterArtifact.publish(
            to: directory + "/adapter", tensors: set.tensors(spec),
            config: AdapterConfig(run.spec.adapter, modules: modules, of: spec, baseModelNameOrPath: nil), provenance: [:], trainingJSON: [],
            modelCard: "")
        return directory + "/adapter"
    }

    @Test("of an adapter that knows the examples and one that does not, the mixture is no worse than each and the base; and repeats itself")
    func search() throws {
        let first = try TemporaryDirectory(), second = try TemporaryDirectory()
        let samples = TinyRun.samples(24)
        let knows = try Self.trained(on: Array(samples.prefix(12)), in: first.path)
        let other = try Self.trained(on: Array(samples.suffix(12)), in: second.path)
        let examples = Array(samples.prefix(6))
        let (outcome, trials) = try Self.search([knows, other], examples)
        #expect(outcome.alone[0] < outcome.base && outcome.alone[0] < outcome.alone[1])
        #expect(outcome.best.loss <= outcome.alone[0] && outcome.best.cost <= trials.map(\.cost).min()!)
        #expect(trials.count == 40 && trials.flatMap(\.weights).allSatisfy { abs($0) <= AdapterComposition.largestWeight })
        #expect(trials[0].weights == [0, 0] && trials[1].weights == [1, 0] && trials[2].weights == [0, 1])
        let even = (1.0 / 2).squareRoot()
        #expect(trials[3].weights == [even, even] && trials[3].loss == outcome.even)
        #expect(outcome.best.cost == outcome.best.loss + 0.05 * (abs(outcome.best.weights[0]) + abs(outcome.best.weights[1])) / 2)

        for threads in [1, 3] { #expect(try Self.search([knows, other], examples, threads: threads).trials == trials) }
        #expect(try Self.search([knows, other], examples, seed: 43).trials != trials)

        // What is published has the loss that was found.
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let made = first.path + "/made"
        try Self.publish(try Self.composition([knows, other], model), outcome.best.weights, to: made)
        let adapter = try LoadedAdapter(directory: made, of: model.spec)
        #expect(try abs(MergedModelTests.loss(model, adapter, examples, in: first.path) / outcome.best.loss - 1) < 1e-6)
        #expect(adapter.rank == 4 && adapter.scaling == 2)
        #expect(try AdapterArtifact.verify(directory: made) == .asPublished)
    }

    @Test("an adapter of noise is left out")
    func noise() throws {
        let scratch = try TemporaryDirectory(), run = try TemporaryDirectory()
        let samples = TinyRun.samples(12)
        let knows = try Self.trained(on: samples, in: run.path)
        let loud = try AdapterArtifact.open(directory: knows).stored.map { tensor in
            let random = RandomSource(seed: 5, .sampling, UInt64(tensor.values.count))
            return AdapterTensor(name: tensor.name, shape: tensor.shape, values: tensor.values.indices.map { 0.3 * random.normal($0) })
        }
        try Self.write(loud, to: scratch.path + "/noise")
        let (outcome, _) = try Self.search([knows, scratch.path + "/noise"], Array(samples.prefix(6)))
        #expect(outcome.alone[1] > outcome.base)
        #expect(outcome.best.loss <= min(outcome.base, outcome.alone[0]))
        #expect(abs(outcome.best.weights[1]) < 0.3 && abs(outcome.best.weights[0]) > 0.5, "\(outcome.best)")
    }

    @Test("what has no sum is refused with what would do, and weights that do nothing are not published")
    func refusals() throws {
        let scratch = try TemporaryDirectory()
        let golden = try Golden("composition-goldens.safetensors"), model = try BaseModel.open(path: TinyRun.modelPath)
        let paths = try Self.pair(in: scratch.path, golden)
        let fewer = scratch.path + "/fewer", low = scratch.path + "/low", still = scratch.path + "/still"
        try Self.write(try Self.tensors("first", golden).filter { !$0.name.contains("down_proj") }, to: fewer)
        #expect(throws: CompositionError.modules(index: 1)) { try Self.composition([paths[0], fewer], model) }
        try AdapterCombination(.svd, weights: [1], rank: 2).combine([try LoadedAdapter(directory: paths[1], of: model.spec)])
            .publish(to: low, baseModel: "tiny", spec: model.spec, note: "")
        #expect(throws: CompositionError.ranks(first: 4, index: 1, rank: 2)) { try Self.composition([paths[0], low], model) }
        #expect(CompositionError.ranks(first: 4, index: 1, rank: 2).description.contains("--combination svd --rank 4"))
        try Self.write(try Self.tensors("first", golden), to: still) { tensor in
            var tensor = tensor
            if tensor.name.contains("lora_B") { tensor.values = tensor.values.map { _ in 0 } }
            return tensor
        }
        let samples = try golden.samples(), base = try Self.search(paths, samples, steps: 5).outcome.base
        #expect(throws: CompositionError.nothingHelps(base: base)) { try Self.search([still, still], samples, steps: 10) }
    }

    @Test("a stop ends the search, and what adapters take is asked for before it is taken")
    func stops() throws {
        struct Stop: Error, Equatable {}
        let scratch = try TemporaryDirectory()
        let golden = try Golden("composition-goldens.safetensors"), model = try BaseModel.open(path: TinyRun.modelPath)
        let paths = try Self.pair(in: scratch.path, golden)
        let composition = try Self.composition(paths, model)
        var asked = 0
        #expect(throws: Stop()) {
            try composition.search(
                try Self.heldOut(composition, model, try golden.samples()), steps: 40, seed: 1, kernels: .strongest, spillDirectory: scratch.path,
                proceed: {
                    asked += 1
                    if asked == 5 { throw Stop() }
                })
        }
        #expect(asked == 5)
        var reserved = ByteCount.zero
        #expect(throws: Stop()) {
            try AdapterComposition(
                2, of: model.spec,
                reserve: { bytes in
                    reserved = bytes
                    throw Stop()
                }, read: { try LoadedAdapter(directory: paths[$0], of: model.spec) })
        }
        let layout = AdapterLayout(composition.spec, modules: composition.modules, of: model.spec)
        #expect(reserved.bytes == 2 * ByteCount.floats(layout.parameterCount).bytes)
        #expect(throws: PlanError.self) { try Self.heldOut(composition, model, try golden.samples(), budget: 1 << 20) }
    }
}
