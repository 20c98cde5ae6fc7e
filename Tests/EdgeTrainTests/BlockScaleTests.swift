// (IA)³ in a model's own blocks: the codes stay, and what they are multiplied by is rounded once.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

struct BlockScaleTests {
    @Test("blocks are scaled to half a unit of their scales' last place, in every format that has scales")
    func formats() throws {
        let golden = try Golden("quant-goldens.safetensors")
        let factor: Float = 0.7
        for format in QuantFormat.all where !format.hasAbsmaxBeside {
            #expect(format.hasBlockScales == (format.name != "MXFP4"), "\(format.name)")
            guard format.hasBlockScales else { continue }
            // Blocks of the extremes of binary16 and of bits that are no numbers stay finite only as their scales do.
            var blocks = try #require(golden.file.tensor(named: "\(format.name).blocks")).withBytes { Array($0) }
            let before = try golden.floats("\(format.name).values"), original = blocks
            var after = [Float](repeating: 0, count: before.count)
            let isFinite = blocks.withUnsafeMutableBytes { bytes in
                let isFinite = format.scale(bytes.baseAddress!, values: before.count, by: factor)
                KernelSet.supported[0].decoder(of: format)(bytes.baseAddress!, 0, &after, before.count)
                return isFinite
            }
            #expect(isFinite == before.allSatisfy(\.isFinite))
            let relative: Float = format == .bf16 ? 0x1p-8 : 0x1p-9
            for first in stride(from: 0, to: before.count, by: format.blockElements) {
                // A value is a difference of two parts, each with a rounded scale; denormal scales are coarser.
                let block = first..<first + format.blockElements
                let largest = before[block].map(abs).max()!
                for i in block where before[i].isFinite {
                    let error = abs(after[i] - factor * before[i])
                    #expect(error <= largest * relative + 0x1p-17 * 256, "\(format.name) \(i): \(before[i]), \(after[i])")
                }
            }
            let changed = zip(original, blocks).reduce(0) { $0 + ($1.0 == $1.1 ? 0 : 1) }
            #expect(format.blockElements == 1 || changed <= 4 * before.count / format.blockElements)
        }
    }

    @Test("a scale that a binary16 cannot hold is said")
    func outOfRange() throws {
        var block: [UInt16] = [0x7bff, 0x3c00]
        block.withUnsafeMutableBytes { #expect(!QuantFormat.f16.scale($0.baseAddress!, values: 2, by: 2)) }
    }

    /// An (IA)³ with vectors around 1, in a directory of its own.
    static func adapter(_ base: BaseModel, targets: AdapterSpec.Targets, in directory: String) throws -> LoadedAdapter {
        let spec = AdapterSpec(method: AdapterMethods.named("ia3")!, rank: 1, alpha: 1, dropout: 0, targets: targets, layers: nil)
        let modules = try spec.modules(of: base.spec)
        let layout = AdapterLayout(spec, modules: modules, of: base.spec)
        let arena = try Arena(capacity: .floats(layout.parameterCount))
        let set = AdapterSet(layout, of: base.spec, parameters: arena.floats(layout.parameterCount), gradients: nil, factorSpace: nil)
        let random = RandomSource(seed: 11, .sampling)
        for i in 0..<set.parameterCount { set.parameters[i] = 1 + 0.3 * random.normal(i) }
        try AdapterArtifact.publish(
            to: directory, tensors: set.tensors(base.spec),
            config: AdapterConfig(spec, modules: modules, of: base.spec, baseModelNameOrPath: nil), provenance: [:], trainingJSON: [],
            modelCard: "")
        return try LoadedAdapter(directory: directory, of: base.spec)
    }

    @Test("a model with (IA)³ has the loss of the base with the adapter, its biases too, in every architecture", arguments: ReferenceModel.all)
    func losses(_ reference: ReferenceModel) throws {
        let scratch = try TemporaryDirectory()
        let samples = try reference.golden().samples()
        let base = try BaseModel.open(path: reference.directory + "/model.gguf")
        let adapter = try Self.adapter(base, targets: .allLinear, in: scratch.path + "/adapter")
        let expected = try MergedModelTests.loss(base, adapter, samples, in: scratch.path)
        let without = try MergedModelTests.loss(base, nil, samples, in: scratch.path)
        for (format, tolerance) in [(QuantFormat.f16, 0.04), (nil, 0.04)] as [(QuantFormat?, Double)] {
            let directory = scratch.path + "/merged"
            try MergedModelTests.write(try MergedModel(base, adapter, format: format), to: directory)
            let merged = try MergedModelTests.loss(try MergedModel.open(directory, madeFrom: base), nil, samples, in: scratch.path)
            #expect(abs(merged - expected) < tolerance * abs(without - expected), "\(merged), with the adapter \(expected), without \(without)")
        }
    }

    @Test("a model of every block format keeps its codes and its types; what is no scaling is refused")
    func codes() throws {
        let scratch = try TemporaryDirectory()
        let base = try BaseModel.open(path: TinyRun.modelPath)
        let all = try Self.adapter(base, targets: .allLinear, in: scratch.path + "/all")
        let keeping = try MergedModel.keepingBlocks(base, all, or: .q8_0)
        #expect(keeping.format == nil)
        try MergedModelTests.write(keeping, to: scratch.path + "/merged")
        let made = try MergedModel.open(scratch.path + "/merged", madeFrom: base)
        #expect(made.file.metadataKeys == base.file.metadataKeys)
        for (old, new) in zip(base.storedTensors, made.storedTensors) {
            #expect(old.name == new.name && old.pieces[0].type == new.pieces[0].type)
            guard old.linear == nil else { continue }
            #expect(old.pieces[0].withBytes { Array($0) } == new.pieces[0].withBytes { Array($0) })
        }
        let golden = try Golden("tiny-goldens.safetensors"), samples = try golden.samples()
        let expected = try MergedModelTests.loss(base, all, samples, in: scratch.path)
        #expect(abs(try MergedModelTests.loss(made, nil, samples, in: scratch.path) / expected - 1) < 1e-3)
        let lora = try LoadedAdapter(tensors: LoadedAdapterTests.ggufPath, config: nil, spec: base.spec, limitBytes: 1 << 30)
        #expect(try MergedModel.keepingBlocks(base, lora, or: .q8_0).format == .q8_0)
        #expect(throws: MergeError.self) { try MergedModel(base, lora, format: nil) }
    }
}
