// The start of a LoRA from what quantisation took, against torch's decompositions and peft's, on every family's linears, and in runs.
// Tests/Goldens/make_start_goldens.py made the references.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

@Suite(.serialized)
struct LoftQTests {
    static let originalPath = TestModel.repositoryRoot + "/Tests/Goldens/tiny-original.gguf"

    struct Started {
        let trainee: Trainee
        let original: BaseModel
        let outcome: LoftQStart.Outcome
    }

    static func start(_ path: String, original: String, rank: Int = 4, threads: Int = 2) throws -> Started {
        let trainee = try Trainee(path, lora: StartTests.spec(.loftq, rank: rank), tokens: 20, longest: 13, threads: threads)
        trainee.adapters.initialize(seed: 1)
        let original = try BaseModel.open(path: original)
        let outcome = try LoftQStart(trainee.adapters, base: trainee.model, original: original, seed: 1)
            .run(on: trainee.step.pool) { true }
        return Started(trainee: trainee, original: original, outcome: try #require(outcome))
    }

    /// scaling · B · A, in the order of the base's file.
    static func change(_ trainee: Trainee, _ slot: AdapterSet.Slot) -> [Double] {
        let a = trainee.adapters.loraA(slot), b = trainee.adapters.loraB(slot)
        var change = [Double](repeating: 0, count: b.rows * a.columns)
        for row in 0..<b.rows {
            for rank in 0..<a.rows {
                let factor = Double(slot.scaling * b.row(row)[rank])
                for column in 0..<a.columns { change[row * a.columns + column] += factor * Double(a.row(rank)[column]) }
            }
        }
        return change
    }

    /// The weights of a slot's linear, in Hugging Face's order.
    static func weights(_ model: BaseModel, _ slot: AdapterSet.Slot, on pool: WorkerPool) throws -> [Float] {
        var values: [Float] = []
        for module in slot.linear.parts {
            let matrix = model.layers[slot.id.layer][module]
            let arena = try Arena(capacity: .floats(matrix.outFeatures * matrix.inFeatures) + .floats(matrix.outFeatures))
            let dense = arena.tensor(matrix.outFeatures, matrix.inFeatures), rows = arena.integers(matrix.outFeatures)
            for row in 0..<matrix.outFeatures { rows[row] = Int32(row) }
            decodeRows(matrix, rows, into: dense, on: pool)
            values += huggingFace((0..<dense.count).map { dense.base[$0] }, matrix.inFeatures, model.spec.rowOrder(module))
        }
        return values
    }

    static func huggingFace<Value>(_ values: [Value], _ columns: Int, _ order: [Int]?) -> [Value] {
        guard let order else { return values }
        var ordered = values
        for (row, place) in order.enumerated() {
            ordered.replaceSubrange(place * columns..<(place + 1) * columns, with: values[row * columns..<(row + 1) * columns])
        }
        return ordered
    }

    static func squares(_ values: [Double]) -> Double { values.reduce(0) { $0 + $1 * $1 } }

    @Test("the change is torch's best one of its rank, in both files' own order of rows")
    func change() throws {
        let golden = try StartTests.golden.get()
        let started = try Self.start(TinyRun.modelPath, original: Self.originalPath)
        let trainee = started.trainee
        var (worst, worstRest) = (0.0, 0.0)
        for slot in trainee.adapters.slots {
            let path = slot.id.path(trainee.model.spec).dropFirst("model.layers.".count), rank = slot.rank
            let left = try golden.floats("loftq.\(path).left"), right = try golden.floats("loftq.\(path).right")
            let values = try golden.floats("loftq.\(path).values").map(Double.init)
            let change = Self.huggingFace(Self.change(trainee, slot), slot.inFeatures, trainee.rowOrder(slot))
            if slot.id == ModuleID(layer: 0, module: .up) {
                // Both files have it in F16: it begins as any LoRA.
                #expect(change.allSatisfy { $0 == 0 } && (0..<slot.inFeatures).contains { trainee.adapters.loraA(slot).base[$0] != 0 })
                continue
            }
            var expected = [Double](repeating: 0, count: change.count)
            for row in 0..<slot.outFeatures {
                for k in 0..<rank {
                    for column in 0..<slot.inFeatures {
                        expected[row * slot.inFeatures + column] += Double(left[row * rank + k]) * Double(right[k * slot.inFeatures + column])
                    }
                }
            }
            worst = max(worst, (Self.squares(zip(change, expected).map { $0 - $1 }) / Self.squares(expected)).squareRoot())
            let own = try Self.weights(trainee.model, slot, on: trainee.step.pool)
            let theirs = try Self.weights(started.original, slot, on: trainee.step.pool)
            let rest = Self.squares(change.indices.map { Double(theirs[$0]) - Double(own[$0]) - change[$0] }).squareRoot()
            worstRest = max(worstRest, rest / Self.squares(Array(values.dropFirst(rank))).squareRoot() - 1)
        }
        print("loftq: change \(worst) from torch's, what is left \(worstRest) above the least")
        #expect(worstRest < 1e-4 && worst < 0.03)
        #expect(started.outcome.linears == 14 && started.outcome.unchanged == 1)
        #expect(started.outcome.summary.hasPrefix("loftq: the distance of 14 linears from the original's is "))
    }

    /// The family's Hugging Face files with their matrices in Q4_0.
    static func quantised(_ reference: ReferenceModel, in scratch: String) throws -> String {
        let whole = try GGUFFile.open(path: reference.path(.huggingFace, in: scratch))
        var container = GGUFWriter()
        try container.add("general.architecture", .string(BaseModel.importedArchitecture))
        try container.add(BaseModel.configKey, .string(String(decoding: whole.metadata[BaseModel.configKey]!.stringBytes!, as: UTF8.self)))
        let arena = try Arena(capacity: WorkerPool.scratchBytes(threads: 1, scratchFloats: 0) + .floats(1 << 20) + .wholeLines(1 << 20))
        let pool = WorkerPool(kernels: .strongest, threadCount: 1, scratchFloats: 0, arena: arena)
        let values = arena.floats(1 << 20), blocks = arena.bytes(.wholeLines(1 << 20))
        for tensor in whole.tensors {
            guard tensor.shape.count == 2, tensor.shape[1] % 32 == 0 else {
                try container.addTensor(tensor.name, shape: tensor.shape, type: tensor.type, body: .bytes(Array(tensor.bytes)))
                continue
            }
            let dense = Tensor(values, rows: tensor.shape[0], columns: tensor.shape[1])
            for i in 0..<dense.count { values[i] = Float(tensor.bytes.loadUnaligned(fromByteOffset: 2 * i, as: Float16.self)) }
            try #require(encodeRows(dense, as: .q4_0, into: blocks.baseAddress!, on: pool))
            let count = dense.rows * QuantFormat.q4_0.byteCount(of: dense.columns)
            try container.addTensor(tensor.name, shape: tensor.shape, type: .q4_0, body: .bytes(Array(blocks.prefix(count))))
        }
        let path = scratch + "/quantised.gguf"
        try Data(try container.encoded()).write(to: URL(fileURLWithPath: path))
        return path
    }

    @Test("fused linears and files with other orders of rows: the change is near to what is the least", arguments: ["llama", "phi3", "qwen2"])
    func families(_ family: String) throws {
        let scratch = try TemporaryDirectory(), reference = ReferenceModel(family: family)
        let started = try Self.start(Self.quantised(reference, in: scratch.path), original: reference.path(.gguf, in: scratch.path))
        var worst = 0.0
        for slot in started.trainee.adapters.slots {
            let pool = started.trainee.step.pool
            let own = try Self.weights(started.trainee.model, slot, on: pool), theirs = try Self.weights(started.original, slot, on: pool)
            let change = Self.huggingFace(Self.change(started.trainee, slot), slot.inFeatures, started.trainee.rowOrder(slot))
            let arena = try Arena(capacity: RowSpace.bytes(rows: slot.outFeatures) + .floats(change.count))
            let difference = arena.tensor(slot.outFeatures, slot.inFeatures)
            for i in change.indices { difference.base[i] = theirs[i] - own[i] }
            let space = RowSpace(rows: slot.outFeatures, arena: arena)
            _ = try #require(space.decompose(difference, on: pool))
            let least = Self.squares(Array(space.lengths.dropFirst(slot.rank)))
            let rest = Self.squares(change.indices.map { Double(difference.base[$0]) - change[$0] })
            worst = max(worst, (rest / least).squareRoot() - 1)
        }
        print("loftq \(family): \(worst) above the least")
        #expect(worst < 1e-4 && started.outcome.unchanged == 0)
    }

    @Test("both files of a model have the same weights, which is refused", arguments: ReferenceModel.all)
    func sameWeights(_ reference: ReferenceModel) throws {
        let scratch = try TemporaryDirectory()
        let paths = [try reference.path(.huggingFace, in: scratch.path), try reference.path(.gguf, in: scratch.path)]
        #expect(throws: AdapterStartError.sameWeights) { try Self.start(paths[0], original: paths[1]) }
        #expect(throws: AdapterStartError.sameWeights) { try Self.start(paths[1], original: paths[0]) }
    }

    @Test("another model is refused by what differs")
    func otherModel() throws {
        let tiny = try BaseModel.open(path: TinyRun.modelPath).spec
        var other = tiny
        other.layerCount = 3
        #expect(throws: AdapterStartError.otherModel(what: "layers", base: "2", original: "3")) { try LoftQStart.check(tiny, other) }
        other = tiny
        other.intermediateSize = 192
        #expect { try LoftQStart.check(tiny, other) } throws: { "\($0)".contains("down_proj [64, 192]") }
        other.ggufArchitecture = "qwen2"
        #expect(throws: AdapterStartError.otherModel(what: "architecture", base: "llama", original: "qwen2")) {
            try LoftQStart.check(tiny, other)
        }
    }

    // MARK: runs

    static func run(threads: Int = 2) throws -> TinyRun {
        var run = TinyRun()
        run.spec.adapter = StartTests.spec(.loftq, rank: 3)
        run.threads = threads
        run.originalPath = originalPath
        return run
    }

    @Test("a run that begins by loftq begins once, stopped anywhere and resumed, with any number of threads")
    func runs() throws {
        let expected = try Self.run().run(in: TemporaryDirectory().path)
        guard case .finished(let finished) = expected.outcome else { Issue.record("did not finish"); return }
        let kaiming = try TinyRun().run(in: TemporaryDirectory().path)
        guard case .finished(let base) = kaiming.outcome else { Issue.record("did not finish"); return }
        // Nearer to the original than the base is, and so elsewhere.
        #expect(finished.evaluations[0].loss != base.evaluations[0].loss)
        #expect(try Self.run(threads: 3).run(in: TemporaryDirectory().path).adapter == expected.adapter)
        for (stopAfter, purpose) in [(0, MicroBatchPurpose.adapterStart), (5, .adapterStart), (1, .training), (6, .training)] {
            let directory = try TemporaryDirectory()
            let first = try Self.run().run(in: directory.path, stopAfter: stopAfter, counted: [purpose])
            guard case .stopped = first.outcome else { Issue.record("stop \(stopAfter) ignored"); continue }
            let resumed = try Self.run().run(in: directory.path)
            #expect(resumed.adapter == expected.adapter, "stopped after \(stopAfter)")
            let starts = resumed.events.contains { if case .log(let text) = $0 { text.hasPrefix("loftq: ") } else { false } }
            #expect(starts == (purpose == .adapterStart))
        }
    }

    @Test("what is held beside the adapter is in the plan")
    func memory() throws {
        let model = try BaseModel.open(path: TinyRun.modelPath), original = try BaseModel.open(path: Self.originalPath)
        let none = ProcessMemory(resident: .zero, preparation: .zero)
        // A start of high rank, before steps that take next to nothing.
        let spec = StartTests.spec(.loftq, rank: 60)
        let memory = try MemoryModel(model, adapter: spec, process: none, original: original)
        let shape = StepShape(tokens: 2, longestSample: 2, lossChunk: 1, keptLayers: 0, threads: 1, compute: .f32)
        let start = LoftQStart.bytes(memory.layout, base: WeightParts(model), original: WeightParts(original))
        #expect(start > WeightParts(original).streamBytes + WeightParts(model).streamBytes)
        #expect(memory.peak(shape) >= memory.adapters + start)
        #expect(try MemoryModel(model, adapter: spec, process: none).peak(shape) <= memory.peak(shape))
    }
}
