// Adapters made one, against real peft's `add_weighted_adapter`.
import EdgeFormats
import EdgeModel
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

struct CombinationTests {
    static let prefix = "base_model.model.model.layers."

    static func adapter(_ name: String, alpha: Int, in directory: String) throws -> LoadedAdapter {
        let path = "\(directory)/\(name)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        var file = SafetensorsWriter(metadata: ["format": "pt"])
        for (key, tensor) in try tensors(name) { try file.add(key, dtype: .f32, shape: tensor.shape, body: .floats(tensor.values)) }
        try Data(try file.encoded()).write(to: URL(fileURLWithPath: path + "/adapter_model.safetensors"))
        try Data(#"{"peft_type": "LORA", "r": 4, "lora_alpha": \#(alpha), "target_modules": "x"}"#.utf8)
            .write(to: URL(fileURLWithPath: path + "/adapter_config.json"))
        return try LoadedAdapter(directory: path, of: LoadedAdapterTests.spec())
    }

    static func tensors(_ name: String) throws -> [String: AdapterTensor] {
        let start = "combine/\(name)."
        let found = try MethodTests.golden.get().file.tensors.filter { $0.name.hasPrefix(start) }
        return Dictionary(
            uniqueKeysWithValues: try found.map {
                let key = String($0.name.dropFirst(start.count))
                return (key, AdapterTensor(name: key, shape: $0.shape, values: try #require($0.floats())))
            })
    }

    static func pair(in directory: String) throws -> [LoadedAdapter] {
        [try adapter("first", alpha: 8, in: directory), try adapter("second", alpha: 2, in: directory)]
    }

    /// scaling · B · A of every module.
    static func changes(_ adapter: LoadedAdapter) throws -> [String: [Float]] {
        let tensors = try adapter.tensors(of: LoadedAdapterTests.spec())
        return Dictionary(uniqueKeysWithValues: tensors.values.map { one in
            var change = [Float](repeating: 0, count: one.outFeatures * one.inFeatures)
            for row in 0..<one.outFeatures {
                for k in 0..<one.rank {
                    let b = Float(adapter.scaling) * one.loraB[row * one.rank + k]
                    for column in 0..<one.inFeatures { change[row * one.inFeatures + column] += b * one.loraA[k * one.inFeatures + column] }
                }
            }
            return (one.modulePath, change)
        })
    }

    @Test(
        "combinations change every linear as peft's do",
        arguments: [
            AdapterCombination(.linear, weights: [0.7, -0.4]), AdapterCombination(.cat, weights: [0.7, -0.4]),
            AdapterCombination(.svd, weights: [0.7, -0.4], rank: 3), AdapterCombination(.ties, weights: [0.7, -0.4], density: 0.6),
            AdapterCombination(.magnitudePrune, weights: [0.7, -0.4], density: 0.5),
        ])
    func parity(_ combination: AdapterCombination) throws {
        let scratch = try TemporaryDirectory()
        let found = try Self.changes(combination.combine(Self.pair(in: scratch.path)))
        let expected = try Self.tensors(combination.kind.rawValue)
        let modules = Set(expected.keys.map { String($0.dropFirst("base_model.model.".count).dropLast(".lora_A.weight".count)) })
        #expect(Set(found.keys) == modules)
        for (path, change) in found {
            let a = try #require(expected["base_model.model.\(path).lora_A.weight"]), b = try #require(expected["base_model.model.\(path).lora_B.weight"])
            let (rank, columns) = (a.shape[0], a.shape[1])
            var theirs = [Float](repeating: 0, count: b.shape[0] * columns)
            for row in 0..<b.shape[0] {
                for k in 0..<rank { for column in 0..<columns { theirs[row * columns + column] += b.values[row * rank + k] * a.values[k * columns + column] } }
            }
            #expect(relativeError(change, theirs) < 3e-6, "\(combination.kind) \(path)")
        }
    }

    @Test("DARE keeps what its density says, grown by it, the same for a seed; all of it is a linear combination")
    func dare() throws {
        let scratch = try TemporaryDirectory()
        let pair = try Self.pair(in: scratch.path)
        let spec = try LoadedAdapterTests.spec()
        func combined(_ kind: AdapterCombination.Kind, _ density: Double, seed: UInt64 = 1) throws -> [LoRATensors] {
            try AdapterCombination(kind, weights: [1, 0], density: density, seed: seed).combine(pair).tensors(of: spec).values
                .sorted { $0.modulePath < $1.modulePath }
        }
        #expect(try combined(.dareLinear, 1) == combined(.linear, 1))
        #expect(try combined(.dareLinear, 0.5) == combined(.dareLinear, 0.5))
        #expect(try combined(.dareLinear, 0.5) != combined(.dareLinear, 0.5, seed: 2))
        let whole = try combined(.linear, 1).flatMap(\.loraA), part = try combined(.dareLinear, 0.25).flatMap(\.loraA)
        let kept = zip(whole, part).filter { $0.1 != 0 }
        #expect(kept.allSatisfy { abs($0.1 - 4 * $0.0) <= 4e-6 * abs($0.0) })
        #expect(abs(Double(kept.count) / Double(whole.count) - 0.25) < 0.03)
        #expect(try combined(.dareTies, 0.5).map(\.modulePath) == combined(.ties, 0.5).map(\.modulePath))
    }

    @Test("a truncated adapter is its first ranks, scaled by alpha over as many")
    func truncation() throws {
        let scratch = try TemporaryDirectory()
        let whole = try Self.pair(in: scratch.path)[0], spec = try LoadedAdapterTests.spec()
        let first = try AdapterCombination(.truncate, weights: [1], rank: 3).combine([whole])
        #expect(first.rank == 3)
        let found = try Self.changes(first)
        for (_, one) in try whole.tensors(of: spec) {
            var change = [Float](repeating: 0, count: one.outFeatures * one.inFeatures)
            for row in 0..<one.outFeatures {
                for k in 0..<3 {
                    for column in 0..<one.inFeatures {
                        change[row * one.inFeatures + column] += 8 / 3 * one.loraB[row * 4 + k] * one.loraA[k * one.inFeatures + column]
                    }
                }
            }
            #expect(relativeError(try #require(found[one.modulePath]), change) < 1e-6)
        }
        #expect(throws: CombinationError.severalToTruncate) { try AdapterCombination(.truncate, weights: [1, 1]).combine([whole, whole]) }
    }

    @Test("ranks that differ are refused but by cat and svd, and one adapter's own rank is made lower")
    func ranks() throws {
        let scratch = try TemporaryDirectory()
        let pair = try Self.pair(in: scratch.path)
        let low = try AdapterCombination(.svd, weights: [1], rank: 2).combine([pair[0]])
        #expect(low.rank == 2)
        #expect(throws: CombinationError.ranks([2, 4])) { try AdapterCombination(.linear, weights: [1, 1]).combine([low, pair[1]]) }
        #expect(try AdapterCombination(.cat, weights: [1, 1]).combine([low, pair[1]]).rank == 6)
        // Of its full rank nothing is lost.
        let same = try Self.changes(AdapterCombination(.svd, weights: [1], rank: 4).combine([pair[0]]))
        for (path, change) in try Self.changes(pair[0]) { #expect(relativeError(try #require(same[path]), change) < 1e-6) }
    }
}
