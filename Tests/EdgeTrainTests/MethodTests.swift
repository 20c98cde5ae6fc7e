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
    var testDescription: String { name }

    static let all: [MethodCase] = [
        make("rslora", "lora", rank: 4, alpha: 8) { $0.usesRankStabilizedScaling = true },
        make("loraplus", "lora", rank: 2, alpha: 8) { $0.learningRateRatio = 16 },
        make("lora-fa", "lora-fa", rank: 4, alpha: 8), make("vera", "vera", rank: 8), make("miss", "miss", rank: 6),
        make("loha", "loha", rank: 3, alpha: 6), make("ia3", "ia3"),
        make("ia3-recommended", "ia3") { $0.targets = .names(["k_proj", "v_proj", "down_proj"]) },
    ]

    private static func make(
        _ name: String, _ method: String, rank: Int = 1, alpha: Float = 1, _ change: (inout AdapterSpec) -> Void = { _ in }
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
        return Array(copy.tensors(trainee.model.spec).prefix(own.slots.reduce(0) { $0 + $1.places.count }))
    }

    @Test("forward, gradients and ten losses are those of peft", arguments: MethodCase.all, [0, 2])
    func parity(_ method: MethodCase, keptLayers: Int) throws {
        let golden = try Self.golden.get()
        let trainee = try Self.trainee(method, keptLayers: keptLayers)
        try trainee.adapters.load(Self.tensors(method, "initial"), trainee.model.spec)
        let batch = MicroBatch(try golden.samples())
        let expectedLogits = try golden.floats("\(method.name)/logits")
        var worst: Float = 0
        try trainee.step.logits(of: batch) { first, logits in
            for i in 0..<logits.count { worst = max(worst, abs(logits.base[i] - expectedLogits[first * logits.columns + i])) }
        }
        #expect(worst < 5e-5)

        let count = batch.lossRows.count
        let loss = try trainee.accumulate(batch, lossScale: 1 / Float(count)) / Double(count)
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

        let (losses, _) = try trainee.train(batch, steps: 10, learningRate: 2e-3)
        let expectedLosses = try golden.floats("\(method.name)/training_losses")
        let worstLoss = zip(losses, expectedLosses).map { abs($0 / Double($1) - 1) }.max()!
        #expect(worstLoss < 1e-3)
        print("parity \(method.name), \(keptLayers) layers kept: logits \(worst), gradients \(worstGradient), ten losses \(worstLoss)")
    }
}
