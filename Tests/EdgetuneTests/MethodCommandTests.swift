// `edgetune methods`, `edgetune adapters combine` and `compose`: what is asked of the daemon, and what is shown.
import EdgeWire
import Foundation
import Testing

@Suite struct MethodCommandTests {
    private static let table = MethodTable(
        rows: [
            .init(
                name: "lora", rank: 16, trainableParameters: 4_884_480, peakBytes: 300 << 20, fits: true, tokensPerSecond: 593.6,
                adapterBytes: 19 << 20, exports: ["peft", "gguf"], forwardOnlyPeakBytes: 80 << 20),
            .init(
                name: "ia3", rank: nil, trainableParameters: 184_320, peakBytes: 950 << 20, fits: false, tokensPerSecond: nil,
                adapterBytes: 720 << 10, exports: ["peft"]),
        ], budgetBytes: 900 << 20, budgetReason: "the job's memory_budget, 900MiB")

    @Test func theTableSaysWhatFitsAndWhoLoadsIt() throws {
        let daemon = ScriptedDaemon { _ in .value(Self.table) }
        let outcome = try Edgetune.run(
            ["methods", "m", "--sequence-len", "64", "--memory-budget", "900MiB", "--lora-target-modules", "q_proj,v_proj"], daemon: daemon)
        #expect(outcome.code == 0)
        let lines = outcome.out.split(separator: "\n").map { $0.split(separator: " ", omittingEmptySubsequences: true).joined(separator: " ") }
        #expect(lines == [
            "METHOD RANK TRAINABLE MEMORY FORWARD ONLY TOKENS/S ADAPTER EXPORTS", "lora 16 4884480 300.0 MiB 80.0 MiB 594 19.0 MiB peft, gguf",
            "ia3 - 184320 950.0 MiB (does not fit) - - 720.0 KiB peft", "budget: 900.0 MiB (the job's memory_budget, 900MiB)",
        ])
        let request = try #require(daemon.requests.last { $0.route == "POST /v1/methods" })
        let asked = try Wire.decoder().decode(MethodsRequest.self, from: Data(request.body))
        #expect(asked.sequenceLen == 64 && asked.samplesPerStep == 8 && asked.loraTargetModules == .names(["q_proj", "v_proj"]))
        #expect(try Wire.decoder().decode(MethodTable.self, from: Data(Edgetune.run(["methods", "m", "--json"], daemon: daemon).out.utf8)) == Self.table)
    }

    @Test func aCombinationIsAskedForWithItsWeights() throws {
        let record = AdapterRecord(name: "desk", job: "j-1", baseModel: "m", ownerUid: 1, createdAt: .distantPast, path: "/a", files: [])
        let daemon = ScriptedDaemon { _ in .value(record) }
        let outcome = try Edgetune.run(
            ["adapters", "combine", "a", "b", "--weights", "0.7,-0.3", "--combination", "dare_ties", "--density", "0.5", "--name", "desk"],
            daemon: daemon)
        #expect(outcome.code == 0 && outcome.out == "desk: an adapter of m\n")
        let request = try #require(daemon.requests.last { $0.route == "POST /v1/combinations" })
        var expected = CombinationRequest(
            name: "desk", adapters: [.init(adapter: "a", weight: 0.7), .init(adapter: "b", weight: -0.3)], combination: .dareTies)
        expected.density = 0.5
        #expect(try Wire.decoder().decode(CombinationRequest.self, from: Data(request.body)) == expected)
    }

    @Test(arguments: [
        (["a", "b", "--weights", "0.7", "--name", "x"], "--weights 0.7 is not 2 numbers with commas, one an adapter"),
        (["a", "--weights", "one", "--name", "x"], "--weights one is not 1 numbers with commas, one an adapter"),
        (["a", "b", "--combination", "ties", "--name", "x"], "density: nothing is not allowed; use above 0, to 1"),
        (["a", "b", "--rank", "4", "--name", "x"], "rank: 4 is not allowed; use it with svd and truncate only"),
        (["a", "b"], "--name"),
    ])
    func aWrongCombinationIsRefusedBeforeTheDaemonIsAsked(_ arguments: [String], _ text: String) throws {
        let daemon = ScriptedDaemon { _ in .value(Self.table) }
        let outcome = try Edgetune.run(["adapters", "combine"] + arguments, daemon: daemon)
        #expect(outcome.code == 64 && outcome.err.contains(text), "\(outcome.err)")
        #expect(daemon.requests.isEmpty)
    }

    private static func composed(_ adapter: AdapterRecord) throws -> [String] {
        let report = CompositionReport(
            weights: [1.25, -0.5], examples: 16, tokens: 48, loss: 0.5, baseLoss: 2, aloneLosses: [0.75, nil], evenLoss: 1.5, steps: 5,
            plannedPeakBytes: 9, peakBytes: 8)
        let events = [
            CompositionEvent(step: 1, steps: 5, loss: 2, bestLoss: 2, bestWeights: [0, 0]), CompositionEvent(report: report, adapter: adapter),
        ]
        return try events.map { String(decoding: try Wire.encoder().encode($0), as: UTF8.self) + "\n" }
    }

    @Test func aCompositionIsFollowedToItsTable() throws {
        let record = AdapterRecord(name: "desk", job: "j-1", baseModel: "m", ownerUid: 1, createdAt: .distantPast, path: "/a", files: [])
        let lines = try Self.composed(record)
        let daemon = ScriptedDaemon { _ in .chunks(lines, isCut: false) }
        let outcome = try Edgetune.run(
            ["adapters", "compose", "desk", "--adapters", "a", "b", "--data", "held", "--steps", "5", "--seed", "7"], daemon: daemon)
        #expect(outcome.code == 0, "\(outcome.err)")
        let words = outcome.out.split(separator: "\n").map { $0.split(separator: " ").joined(separator: " ") }
        #expect(words == [
            "desk: an adapter of m, chosen by 16 examples (48 tokens)", "WEIGHT LOSS", "base 2.0000", "a 1.2500 0.7500",
            "b -0.5000 not finite", "all alike 1.5000", "desk 0.5000",
        ])
        let request = try #require(daemon.requests.last { $0.route == "POST /v1/compositions" })
        let expected = CompositionRequest(name: "desk", adapters: ["a", "b"], dataset: "held", steps: 5, seed: 7)
        #expect(try Wire.decoder().decode(CompositionRequest.self, from: Data(request.body)) == expected)

        let cut = ScriptedDaemon { _ in .chunks([lines[0]], isCut: false) }
        let lost = try Edgetune.run(["adapters", "compose", "desk", "--adapters", "a", "b", "--data", "held"], daemon: cut)
        #expect(lost.code != 0 && lost.err.contains("the composition has no end"), "\(lost.err)")
        let refused = ScriptedDaemon { _ in
            .chunks([String(decoding: (try? Wire.encoder().encode(CompositionEvent(problem: Problem(.badAdapter, "no LoRA")))) ?? Data(), as: UTF8.self) + "\n"], isCut: false)
        }
        let problem = try Edgetune.run(["adapters", "compose", "desk", "--adapters", "a", "b", "--data", "held"], daemon: refused)
        #expect(problem.code != 0 && problem.err.contains("no LoRA"), "\(problem.err)")
    }

    @Test(arguments: [
        (["x", "--adapters", "a", "--data", "d"], "adapters: 1 entries is not allowed; use 2 to 20 adapters"),
        (["x", "--adapters", "a", "a", "--data", "d"], "adapters: a name given twice is not allowed; use each adapter once"),
        (["x", "--adapters", "a", "b", "--data", "d", "--steps", "4"], "steps: 4 is not allowed; use 5 to 1000"),
        (["x", "--adapters", "a", "b"], "--data"), (["--adapters", "a", "b", "--data", "d"], "name"),
    ])
    func aWrongCompositionIsRefusedBeforeTheDaemonIsAsked(_ arguments: [String], _ text: String) throws {
        let daemon = ScriptedDaemon { _ in .value(Self.table) }
        let outcome = try Edgetune.run(["adapters", "compose"] + arguments, daemon: daemon)
        #expect(outcome.code == 64 && outcome.err.contains(text), "\(outcome.err)")
        #expect(daemon.requests.isEmpty)
    }

    @Test func helpSaysWhatACompositionDoes() throws {
        let help = try Edgetune.run(["adapters", "compose", "--help"]).out
        for text in ["arXiv:2307.13269", "--adapters", "--data", "at most 256 lines", "(default: 40)", "(default: 42)"] { #expect(help.contains(text), "\(help)") }
        #expect(try Edgetune.run(["adapters", "--help"]).out.contains("compose"))
    }
}
