// A base and an adapter made one model: the values, what stays as it was, and the loss of all architectures.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

@Suite(.serialized)
struct MergedModelTests {
    /// The adapter that a golden begins from, as PEFT saves it.
    static func adapter(of golden: Golden, in directory: String, spec: DecoderSpec) throws -> LoadedAdapter {
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        var file = SafetensorsWriter(metadata: ["format": "pt"])
        for tensor in golden.file.tensors where tensor.name.hasPrefix("initial.") {
            try file.add(
                String(tensor.name.dropFirst("initial.".count)), dtype: .f32, shape: tensor.shape,
                body: .floats(try #require(tensor.floats())))
        }
        try Data(try file.encoded()).write(to: URL(fileURLWithPath: directory + "/adapter_model.safetensors"))
        let config = AdapterConfig(
            rank: 4, loraAlpha: 8, loraDropout: 0, targetModules: [], layersToTransform: nil, baseModelNameOrPath: nil)
        try Data(config.json).write(to: URL(fileURLWithPath: directory + "/adapter_config.json"))
        return try LoadedAdapter(
            tensors: directory + "/adapter_model.safetensors", config: directory + "/adapter_config.json", spec: spec,
            limitBytes: 1 << 30)
    }

    static func imported(_ reference: ReferenceModel, in scratch: String) throws -> String {
        let names = ["config.json", "model.safetensors"]
        let path = scratch + "/imported.gguf"
        try ModelImport(files: Dictionary(uniqueKeysWithValues: names.map { ($0, "\(reference.directory)/\($0)") }))
            .write(to: path) { _ in }
        return path
    }

    static func loss(_ model: BaseModel, _ adapter: LoadedAdapter?, _ samples: [TokenizedSample], in scratch: String) throws -> Double {
        var spec = TinyRun().spec
        spec.adapter = LoadedAdapterTests.lora
        let limits = PlanLimits(
            budget: ByteCount(1 << 30), threads: 2, compute: .f32, optimizer: .f32, spill: .zero, appliesLayerByLayer: false,
            calibration: nil, weightsAreCached: true)
        return try HeldOutLoss(of: model, adapter, on: samples, spec: spec, process: .typical, limits: limits)
            .measure(kernels: .strongest, spillDirectory: scratch) { _ in }.mean
    }

    static func write(_ merged: MergedModel, to directory: String, threads: Int = 2) throws {
        var last = 0
        try merged.write(to: directory, kernels: .strongest, threads: threads) { last = $0 }
        #expect(try last == merged.fileBytes)
    }

    @Test("the merged model has the loss of the base with its adapter, in every architecture", arguments: ReferenceModel.all)
    func losses(_ reference: ReferenceModel) throws {
        let scratch = try TemporaryDirectory()
        let golden = try reference.golden()
        let samples = try golden.samples()
        for path in [reference.directory + "/model.gguf", try Self.imported(reference, in: scratch.path)] {
            let base = try BaseModel.open(path: path)
            let adapter = try Self.adapter(of: golden, in: scratch.path + "/adapter", spec: base.spec)
            let expected = try Self.loss(base, adapter, samples, in: scratch.path)
            let without = try Self.loss(base, nil, samples, in: scratch.path)
            for format in MergedModel.formats(of: base) where format != .q4_0 && format != .q4_1 {
                let directory = scratch.path + "/merged"
                do {
                    try Self.write(try MergedModel(base, adapter, format: format), to: directory)
                } catch MergeError.notWholeBlocks(_, let columns, _, _) {
                    #expect(columns % 32 != 0 && format == .q8_0)
                    continue
                }
                let merged = try Self.loss(try MergedModel.open(directory, madeFrom: base), nil, samples, in: scratch.path)
                // Random weights, large adapters: what 8 bits round away is a few per cent of what the adapter does, of 11 bits far less.
                let distance = abs(merged - expected) / abs(without - expected)
                #expect(
                    distance < (format == .f16 ? 0.02 : 0.2),
                    "\(format.name): \(merged), with the adapter \(expected), without \(without)")
            }
        }
    }

    @Test("values are W + scaling · B · A to the format's last place, whatever the threads; everything else keeps its bytes")
    func values() throws {
        let scratch = try TemporaryDirectory()
        let base = try BaseModel.open(path: TinyRun.modelPath)
        let adapter = try LoadedAdapter(tensors: LoadedAdapterTests.ggufPath, config: nil, spec: base.spec, limitBytes: 1 << 30)
        let merged = try MergedModel(base, adapter, format: .f16)
        try Self.write(merged, to: scratch.path + "/one", threads: 1)
        try Self.write(merged, to: scratch.path + "/two", threads: 2)
        let file = scratch.path + "/one/model.gguf"
        #expect(FileManager.default.contentsEqual(atPath: file, andPath: scratch.path + "/two/model.gguf"))

        let made = try BaseModel.open(path: file)
        #expect(Set(made.file.metadataKeys).subtracting(base.file.metadataKeys).isSubset(of: ["general.file_type", "general.quantization_version"]))
        #expect(made.file.metadata["general.file_type"]?.integer == 1)
        let changes = try adapter.tensors(of: base.spec)
        for (old, new) in zip(base.storedTensors, made.storedTensors) {
            #expect(old.name == new.name && old.shape == new.shape)
            guard let linear = old.linear, let change = changes[linear] else {
                #expect(old.pieces[0].type == new.pieces[0].type)
                #expect(old.pieces[0].withBytes { Array($0) } == new.pieces[0].withBytes { Array($0) })
                continue
            }
            #expect(new.pieces[0].type == .f16)
            let found = try #require(new.pieces[0].withBytes { SafetensorsDType.f16.floats(in: $0) })
            let weights = try Self.decoded(base, old)
            let (rows, columns) = (old.shape[0], old.shape[1])
            let order = base.spec.rowOrder(linear.module)
            for row in 0..<rows {
                for column in 0..<columns {
                    var sum = 0.0
                    for r in 0..<change.rank {
                        sum += Double(change.loraB[(order?[row] ?? row) * change.rank + r]) * Double(change.loraA[r * columns + column])
                    }
                    let expected = Double(weights[row * columns + column]) + adapter.scaling * sum
                    let error = abs(Double(found[row * columns + column]) - expected)
                    #expect(error <= abs(expected) * 0x1p-10 + 0x1p-24, "\(old.name) \(row) \(column)")
                }
            }
        }
    }

    static func decoded(_ base: BaseModel, _ tensor: StoredTensor) throws -> [Float] {
        let arena = try Arena(capacity: ByteCount(4 << 20))
        let pool = WorkerPool(kernels: .supported[0], threadCount: 1, scratchFloats: 0, arena: arena)
        return tensor.matrices.flatMap { matrix in
            let y = arena.tensor(matrix.outFeatures, matrix.inFeatures)
            decodeRows(matrix, (0..<Int32(matrix.outFeatures)).map { $0 }, into: y, on: pool)
            return (0..<y.count).map { y.base[$0] }
        }
    }

    @Test("Hugging Face's files come back: BF16 linears, a config without quantisation, the tokenizer's text as it was")
    func huggingFaceFiles() throws {
        let scratch = try TemporaryDirectory()
        let reference = try #require(ReferenceModel.all.first { $0.family == "llama" })
        let config = try String(contentsOfFile: reference.directory + "/config.json", encoding: .utf8)
        let text = "{\"model\": {\"type\": \"BPE\"}, \"odd\": \"\\u00e9 \"}"
        try Data(text.utf8).write(to: URL(fileURLWithPath: scratch.path + "/tokenizer.json"))
        let path = scratch.path + "/imported.gguf"
        try ModelImport(files: [
            "config.json": reference.directory + "/config.json", "model.safetensors": reference.directory + "/model.safetensors",
            "tokenizer.json": scratch.path + "/tokenizer.json",
        ]).write(to: path) { _ in }
        let base = try BaseModel.open(path: path)
        let adapter = try Self.adapter(of: reference.golden(), in: scratch.path + "/adapter", spec: base.spec)
        let directory = scratch.path + "/merged"
        try Self.write(try MergedModel(base, adapter, format: .bf16), to: directory)
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory).sorted() == ["config.json", "model.safetensors", "tokenizer.json"])
        #expect(try String(contentsOfFile: directory + "/tokenizer.json", encoding: .utf8) == text)
        let made = try String(contentsOfFile: directory + "/config.json", encoding: .utf8)
        #expect(made.contains("bfloat16") && !made.contains("quantization_config"), "\(made) of \(config)")
        let original = try SafetensorsFile.open(path: reference.directory + "/model.safetensors")
        let file = try SafetensorsFile.open(path: directory + "/model.safetensors")
        #expect(file.tensors.map(\.name).sorted() == original.tensors.map(\.name).sorted())
        for tensor in file.tensors {
            #expect(tensor.shape == original.tensor(named: tensor.name)?.shape)
            if tensor.name.contains("_proj") { #expect(tensor.dtype == .bf16) }
        }
    }

    @Test("what cannot be is refused with what can")
    func refusals() throws {
        let scratch = try TemporaryDirectory()
        let reference = try #require(ReferenceModel.all.first { $0.family == "llama" })
        let base = try BaseModel.open(path: try Self.imported(reference, in: scratch.path))
        let adapter = try Self.adapter(of: reference.golden(), in: scratch.path + "/adapter", spec: base.spec)
        #expect(throws: MergeError.unsupportedFormat("Q8_0", supported: ["BF16"], isImported: true)) {
            _ = try MergedModel(base, adapter, format: .q8_0)
        }
        let other = try BaseModel.open(path: TinyRun.modelPath)
        #expect(throws: AdapterMismatch.self) { _ = try MergedModel(other, adapter, format: .f16) }
        struct Stopped: Error {}
        let target = scratch.path + "/stopped"
        #expect(throws: Stopped.self) {
            try MergedModel(base, adapter, format: .bf16).write(to: target, kernels: .strongest, threads: 1) { _ in throw Stopped() }
        }
        #expect(try FileManager.default.contentsOfDirectory(atPath: scratch.path).filter { $0.hasPrefix("stopped") }.isEmpty)
    }
}
