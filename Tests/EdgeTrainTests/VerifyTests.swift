// Checkpoints and artifacts as `edgetuned check` looks at them: every flipped byte and every cut is noticed, without the run
// that they are of.
import EdgeFormats
import EdgeModel
import EdgeTestSupport
import EdgeTrain
import Glibc
import Testing

@Suite(.serialized) struct VerifyTests {
    private static func read(_ path: String) throws -> [UInt8] { try ByteRegion.map(path: path).withBytes { Array($0) } }

    @Test func aCheckpointIsWholeOrNamed() throws {
        let directory = try TemporaryDirectory()
        _ = try TrainingRunTests.improving.run(in: directory.path, stopAfter: 9)
        let files = try CheckpointStore.verify(directory: directory.path)
        #expect(files.allSatisfy { $0.error == nil } && files.filter { $0.name.hasPrefix("step-") }.count == 2)
        #expect(files.contains { $0.name.hasPrefix("best-") })
        for file in files {
            let path = directory.path + "/" + file.name
            let whole = try Self.read(path)
            for position in stride(from: 0, to: whole.count, by: 499) {
                var bytes = whole
                bytes[position] ^= 0x20
                try AtomicFile.write(to: path, bytes)
                let found = try CheckpointStore.verify(directory: directory.path)
                #expect(found.first { $0.name == file.name }?.isDamaged == true, "\(file.name) byte \(position)")
            }
            for length in [0, 1, 31, 60, whole.count / 2, whole.count - 1] {
                try AtomicFile.write(to: path, Array(whole[..<length]))
                let found = try CheckpointStore.verify(directory: directory.path)
                #expect(found.first { $0.name == file.name }?.isDamaged == true, "\(file.name) of \(length) bytes")
            }
            try AtomicFile.write(to: path, whole)
        }
        #expect(try CheckpointStore.verify(directory: directory.path).allSatisfy { $0.error == nil })
    }

    @Test func aCheckpointWhoseBestIsGoneIsNamed() throws {
        let directory = try TemporaryDirectory()
        _ = try TrainingRunTests.improving.run(in: directory.path, stopAfter: 9)
        let files = try CheckpointStore.verify(directory: directory.path)
        let best = try #require(files.last { $0.name.hasPrefix("best-") }?.name)
        unlink(directory.path + "/" + best)
        let found = try #require(try CheckpointStore.verify(directory: directory.path).last)
        #expect(found.isDamaged && found.error == .noBest(path: directory.path + "/" + found.name, best: best))
        #expect(try CheckpointStore.verify(directory: directory.path + "/nowhere").isEmpty)
    }

    private static func publish(to directory: String) throws {
        let tensors = ["q", "v"].map { name in
            LoRATensors(
                modulePath: "model.layers.0.self_attn.\(name)_proj", rank: 2, inFeatures: 30, outFeatures: 40,
                loraA: (0..<60).map { Float($0) }, loraB: (0..<80).map { Float($0) })
        }
        try AdapterArtifact.publish(
            to: directory, tensors: tensors.flatMap(\.stored),
            config: AdapterConfig(
                rank: 2, loraAlpha: 4, loraDropout: 0, targetModules: ["q_proj", "v_proj"], layersToTransform: nil,
                baseModelNameOrPath: "m"),
            provenance: [:], trainingJSON: Array("{}\n".utf8), modelCard: "# Card\n")
    }

    @Test func everyByteOfAnArtifactHasAChecksum() throws {
        let directory = try TemporaryDirectory()
        let adapter = directory.path + "/a"
        try Self.publish(to: adapter)
        #expect(try AdapterArtifact.verify(directory: adapter) == .asPublished)
        let names = try entries(of: adapter)
        #expect(names == ["README.md", "SHA256SUMS", "adapter_config.json", "adapter_model.safetensors.lz4", "training.json"])
        for name in names {
            let path = adapter + "/" + name
            let whole = try Self.read(path)
            for position in whole.indices {
                var bytes = whole
                bytes[position] ^= 0x01
                try AtomicFile.write(to: path, bytes)
                #expect(throws: (any Error).self, "\(name) byte \(position)") { try AdapterArtifact.verify(directory: adapter) }
            }
            for length in 0..<whole.count {
                try AtomicFile.write(to: path, Array(whole[..<length]))
                #expect(throws: (any Error).self, "\(name) of \(length) bytes") { try AdapterArtifact.verify(directory: adapter) }
            }
            unlink(path)
            if name == "SHA256SUMS" {
                // As every artifact was before there were checksums.
                #expect(try AdapterArtifact.verify(directory: adapter) == .withoutChecksums)
            } else {
                #expect(throws: AdapterError.missingFile(name)) { try AdapterArtifact.verify(directory: adapter) }
            }
            try AtomicFile.write(to: path, whole)
        }
    }

    /// Saturated by its learning rate and scaling; its gradients are nothing then, and moments divided by nothing have no end.
    private static var wild: TinyRun {
        var run = TinyRun()
        run.spec.adapter = AdapterSpec(rank: 1, alpha: 65536, dropout: 0, targets: .allLinear, layers: nil)
        run.spec.learningRate = 1
        run.spec.beta2 = 0
        run.spec.adamEpsilon = 1e-30
        run.spec.schedule = .constant
        run.spec.warmUp = .steps(0)
        run.spec.maxGradNorm = nil
        run.spec.maxSteps = 300
        run.spec.evalSteps = 1
        run.spec.precision = .f32
        return run
    }

    @Test func aRunThatDivergesStopsAndItsBestIsWhatWasMeasuredBest() throws {
        let directory = try TemporaryDirectory()
        let error = #expect(throws: TrainingError.self) { try Self.wild.run(in: directory.path) }
        switch error {
        case .nonFinite(let step, _, _, let samples):
            #expect(step > 1 && !samples.isEmpty && samples.allSatisfy { (0..<14).contains($0) })
        case .nonFiniteEvaluation(let step, let loss): #expect(step > 1 && !loss.isFinite)
        default: Issue.record("\(String(describing: error))")
        }
        // Every checkpoint and best adapter that it left is whole.
        #expect(try CheckpointStore.verify(directory: directory.path).allSatisfy { $0.error == nil })
    }
}
