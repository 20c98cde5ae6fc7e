// Every architecture against real transformers and peft: logits, loss, every adapter gradient and five training losses of a tiny
// random model, from the GGUF file that llama.cpp's converter writes and from Hugging Face's own files
// (Tests/Goldens/make_architecture_goldens.py).
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

/// One directory of `Tests/Goldens/architectures`.
struct ReferenceModel: CustomTestStringConvertible, Sendable {
    static let root = TestModel.repositoryRoot + "/Tests/Goldens/architectures"
    static let all = try! FileManager.default.contentsOfDirectory(atPath: root).sorted()
        .filter { FileManager.default.fileExists(atPath: "\(root)/\($0)/golden.safetensors") }
        .map(ReferenceModel.init)

    let family: String
    var testDescription: String { family }
    var directory: String { "\(Self.root)/\(family)" }
    func golden() throws -> Golden { try Golden("architectures/\(family)/golden.safetensors") }

    enum Source: String, CaseIterable {
        case gguf
        case huggingFace = "config.json"
        /// As transformers 4 wrote it, and most of the hub's files are.
        case olderHuggingFace = "config.v4.json"
    }

    /// The model as `BaseModel` opens it: the GGUF file itself, or an import of the directory without quantisation.
    func path(_ source: Source, in scratch: String) throws -> String {
        guard source != .gguf else { return directory + "/model.gguf" }
        var container = GGUFWriter()
        try container.add("general.architecture", .string(BaseModel.importedArchitecture))
        let config = try String(contentsOfFile: "\(directory)/\(source.rawValue)", encoding: .utf8)
        try container.add(BaseModel.configKey, .string(config))
        for tensor in try SafetensorsFile.open(path: directory + "/model.safetensors").tensors {
            let isMatrix = tensor.shape.count == 2
            let body: TensorBody = isMatrix ? .bytes(tensor.withBytes { Array($0) }) : .floats(try #require(tensor.floats()))
            try container.addTensor(tensor.name, shape: tensor.shape, type: isMatrix ? .f16 : .f32, body: body)
        }
        let path = "\(scratch)/\(source.rawValue).gguf"
        try Data(try container.encoded()).write(to: URL(fileURLWithPath: path))
        return path
    }
}

@Suite(.serialized)
struct ArchitectureTests {
    static func trainee(
        _ reference: ReferenceModel, _ source: ReferenceModel.Source, in scratch: String, keptLayers: Int = 0,
        mlpTokens: Int? = nil, weights: WeightResidence = .resident, kernels: KernelSet = .strongest
    ) throws -> (Trainee, Golden) {
        let golden = try reference.golden()
        let lora = AdapterSpec(rank: 4, alpha: 8, dropout: 0, targets: .allLinear, layers: nil)
        let trainee = try Trainee(
            try reference.path(source, in: scratch), lora: lora, tokens: 33, longest: 20, keptLayers: keptLayers,
            mlpTokens: mlpTokens, weights: weights, kernels: kernels, lossChunk: 8)
        for slot in trainee.adapters.slots {
            let a = try golden.floats("initial." + GoldenTests.name(slot, "A"))
            let b = try golden.floats("initial." + GoldenTests.name(slot, "B"))
            let tensor = trainee.adapters.loraA(slot)
            try #require(a.count == tensor.count && b.count == trainee.adapters.loraB(slot).count)
            for i in 0..<tensor.count { tensor.base[i] = a[i] }
            trainee.set(trainee.adapters.loraB(slot), slot) { b[$0] }
        }
        return (trainee, golden)
    }

    /// What a GGUF file cannot say is another model: llama.cpp's, whose numbers are in the golden too. Phi-3's files do say their
    /// window, which llama.cpp does not heed and Hugging Face does.
    static func saysLess(_ reference: ReferenceModel, _ golden: Golden, _ source: ReferenceModel.Source) -> Bool {
        source == .gguf && golden.file.tensor(named: "gguf.logits") != nil && reference.family != "phi3"
    }

    @Test("logits, loss and every adapter gradient are torch's, from GGUF and from Hugging Face's files",
        arguments: ReferenceModel.all)
    func gradients(_ reference: ReferenceModel) throws {
        let scratch = try TemporaryDirectory()
        for source in ReferenceModel.Source.allCases {
            for (keptLayers, kernels) in [(0, KernelSet.strongest), (1, .supported[0]), (2, .strongest)] {
                let (trainee, golden) = try Self.trainee(
                    reference, source, in: scratch.path, keptLayers: keptLayers, kernels: kernels)
                let prefix = Self.saysLess(reference, golden, source) ? "gguf." : ""
                let batch = MicroBatch(try golden.samples())
                let expected = try golden.floats(prefix + "logits")
                let vocabulary = trainee.model.spec.vocabularySize
                var worst: Float = 0
                try trainee.step.logits(of: batch) { first, logits in
                    for i in 0..<logits.count {
                        worst = max(worst, abs(logits.base[i] - expected[first * vocabulary + i]))
                    }
                }
                #expect(worst < 1e-4, "\(source), \(kernels.name): logits differ by \(worst)")
                let count = batch.lossRows.count
                let loss = try trainee.accumulate(batch, lossScale: 1 / Float(count)) / Double(count)
                let expectedLoss = Double(try golden.floats(prefix + "loss")[0])
                #expect(abs(loss - expectedLoss) / expectedLoss < 1e-5, "\(source): loss \(loss), torch \(expectedLoss)")
                guard prefix.isEmpty else { continue }
                var worstGradient = 0.0
                for slot in trainee.adapters.slots {
                    let a = trainee.adapters.gradientA(slot)
                    let errorA = relativeError(
                        (0..<a.count).map { a.base[$0] }, try golden.floats("gradient." + GoldenTests.name(slot, "A")))
                    let errorB = relativeError(
                        trainee.huggingFace(trainee.adapters.gradientB(slot), slot),
                        try golden.floats("gradient." + GoldenTests.name(slot, "B")))
                    worstGradient = max(worstGradient, errorA, errorB)
                    #expect(
                        errorA < 1e-4 && errorB < 1e-4,
                        "\(source), \(keptLayers) kept, layer \(slot.id.layer) \(slot.linear.path): \(errorA), \(errorB)")
                }
                print("\(reference.family) \(source), \(kernels.name), \(keptLayers) kept: logits \(worst), loss \(abs(loss - expectedLoss)), gradients \(worstGradient)")
            }
        }
    }

    @Test("five AdamW steps have torch's losses and norms", arguments: ReferenceModel.all)
    func training(_ reference: ReferenceModel) throws {
        let scratch = try TemporaryDirectory()
        for source in ReferenceModel.Source.allCases {
            let (trainee, golden) = try Self.trainee(reference, source, in: scratch.path)
            if Self.saysLess(reference, golden, source) { continue }
            let (losses, norms) = try trainee.train(MicroBatch(try golden.samples()), steps: 5, learningRate: 5e-3)
            for (found, expected) in zip(losses, try golden.floats("training_losses")) {
                #expect(abs(found / Double(expected) - 1) < 1e-3, "\(source): \(found), torch \(expected)")
            }
            for (found, expected) in zip(norms, try golden.floats("training_grad_norms")) {
                #expect(abs(found / Double(expected) - 1) < 2e-3, "\(source): \(found), torch \(expected)")
            }
        }
    }

    @Test("layers kept or not and weights streamed or not: the same bits, in every architecture", arguments: ReferenceModel.all)
    func exactTrades(_ reference: ReferenceModel) throws {
        let scratch = try TemporaryDirectory()
        var results: Set<[UInt32]> = []
        for keptLayers in 0...2 {
            for weights in WeightResidence.allCases {
                let (trainee, golden) = try Self.trainee(
                    reference, .huggingFace, in: scratch.path, keptLayers: keptLayers, weights: weights)
                _ = try trainee.accumulate(MicroBatch(try golden.samples()), lossScale: 0.1)
                results.insert((0..<trainee.adapters.parameterCount).map { trainee.adapters.gradients[$0].bitPattern })
            }
        }
        #expect(results.count == 1)
    }

    @Test("a generated token's logits are those of the whole sequence: cached keys, windows and norms", arguments: ReferenceModel.all)
    func generation(_ reference: ReferenceModel) throws {
        let scratch = try TemporaryDirectory()
        let golden = try reference.golden()
        let model = try BaseModel.open(path: try reference.path(.huggingFace, in: scratch.path))
        let sample = try golden.samples()[0]
        let expected = try golden.floats("base.logits")
        let vocabulary = model.spec.vocabularySize
        // The most likely next token after every prefix, the context being as long as the golden's sample.
        let generator = try Generator(model: model, adapter: nil, context: sample.tokens.count, kernels: .strongest, threads: 2)
        for length in [1, 9, sample.tokens.count - 1] {
            var next: [TokenID] = []
            _ = try generator.generate(
                prompt: Array(sample.tokens.prefix(length)),
                GenerationSettings(maxTokens: 1, temperature: 0, seed: 1), endTokens: []
            ) {
                next.append($0)
                return .goOn
            }
            let logits = expected[(length - 1) * vocabulary..<length * vocabulary]
            let best = try #require(logits.indices.max { logits[$0] < logits[$1] }) - logits.startIndex
            #expect(next == [TokenID(best)], "after \(length) tokens")
        }
    }
}

/// What `models add` makes of a Hugging Face directory: linears in NF4, everything else as it was.
@Suite(.serialized)
struct ImportedArchitectureTests {
    @Test("an imported directory trains on NF4 weights: as the model that has their values in f32", arguments: ReferenceModel.all)
    func importTrains(_ reference: ReferenceModel) throws {
        let scratch = try TemporaryDirectory()
        let path = scratch.path + "/imported.gguf"
        let names = ["config.json", "model.safetensors"]
        let source = try ModelImport(
            files: Dictionary(uniqueKeysWithValues: names.map { ($0, "\(reference.directory)/\($0)") }))
        try source.write(to: path) { _ in }
        let model = try BaseModel.open(path: path)
        #expect(model.quantisation.contains("NF4"))

        // The same container with every quantised linear decoded.
        var decoded = GGUFWriter()
        try decoded.add("general.architecture", .string(BaseModel.importedArchitecture))
        try decoded.add(
            BaseModel.configKey, .string(String(contentsOfFile: reference.directory + "/config.json", encoding: .utf8)))
        for tensor in model.file.tensors where !tensor.name.hasSuffix(".absmax") && !tensor.name.hasSuffix(".nested") {
            guard tensor.name.hasSuffix(".nf4") else {
                try decoded.addTensor(
                    tensor.name, shape: tensor.shape, type: tensor.type, body: .bytes(tensor.withBytes { Array($0) }))
                continue
            }
            let (rows, columns) = (tensor.shape[0], tensor.shape[1] * 2)
            try decoded.addTensor(
                String(tensor.name.dropLast(4)), shape: [rows, columns], type: .f32,
                body: .floats(try Self.values(model, String(tensor.name.dropLast(4)), rows, columns)))
        }
        let plainPath = scratch.path + "/decoded.gguf"
        try Data(try decoded.encoded()).write(to: URL(fileURLWithPath: plainPath))

        var results: [(loss: Double, gradients: [Float])] = []
        for (path, weights) in [(path, WeightResidence.resident), (path, .streamed), (plainPath, .resident)] {
            let lora = AdapterSpec(rank: 4, alpha: 8, dropout: 0, targets: .allLinear, layers: nil)
            let trainee = try Trainee(path, lora: lora, tokens: 33, longest: 20, weights: weights, lossChunk: 8)
            trainee.adapters.initialize(seed: 5)
            for slot in trainee.adapters.slots { trainee.set(trainee.adapters.loraB(slot), slot) { Float($0 % 7) * 0.01 } }
            let loss = try trainee.accumulate(MicroBatch(try reference.golden().samples()), lossScale: 0.1)
            results.append((loss, (0..<trainee.adapters.parameterCount).map { trainee.adapters.gradients[$0] }))
        }
        #expect(results[0].loss == results[1].loss && results[0].gradients == results[1].gradients)
        #expect(results[0].loss == results[2].loss && results[0].gradients == results[2].gradients)
        #expect(results[0].loss.isFinite && results[0].gradients.contains { $0 != 0 })
    }

    /// - Parameter name: of a linear, as Hugging Face has it.
    static func values(_ model: BaseModel, _ name: String, _ rows: Int, _ columns: Int) throws -> [Float] {
        for layer in 0..<model.spec.layerCount {
            for linear in model.spec.linears where name == "model.layers.\(layer).\(linear.path).weight" {
                let arena = try Arena(capacity: ByteCount(4 << 20))
                let pool = WorkerPool(kernels: .strongest, threadCount: 1, scratchFloats: columns, arena: arena)
                return linear.parts.flatMap { part in
                    let matrix = model.layers[layer][part]
                    let y = arena.tensor(matrix.outFeatures, columns)
                    decodeRows(matrix, (0..<Int32(matrix.outFeatures)).map { $0 }, into: y, on: pool)
                    return (0..<y.count).map { y.base[$0] }
                }
            }
        }
        throw ModelError.missingTensor(name)
    }
}
