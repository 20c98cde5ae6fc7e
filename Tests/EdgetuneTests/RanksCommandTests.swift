// `edgetune ranks`: what is asked of the daemon, what is shown, and what is written.
import EdgeWire
import EdgeYAML
import Foundation
import Testing

@Suite struct RanksCommandTests {
    private static func report(_ change: (inout RankReport) -> Void = { _ in }) -> RankReport {
        var report = RankReport(
            rows: [
                .init(linear: "model.layers.0.mlp.up_proj", importance: 0.012345, rank: 3),
                .init(linear: "model.layers.0.mlp.down_proj", importance: 1.5, rank: 8),
                .init(linear: "model.layers.1.mlp.up_proj", importance: 12.25, rank: 13),
            ], rankPattern: ["model.layers.0.mlp.up_proj": 3, "model.layers.1.mlp.up_proj": 13],
            alphaPattern: ["model.layers.0.mlp.up_proj": 6, "model.layers.1.mlp.up_proj": 27.5], samples: 32, tokens: 411, parameters: 1500,
            uniformParameters: 1536, plannedPeakBytes: 9, peakBytes: 8)
        change(&report)
        return report
    }

    private static func daemon(_ report: RankReport, last: RankEvent? = nil) throws -> ScriptedDaemon {
        let events = [RankEvent(sample: 0, of: 32), RankEvent(sample: 32, of: 32), last ?? RankEvent(report: report)]
        let lines = try events.map { String(decoding: try Wire.encoder().encode($0), as: UTF8.self) + "\n" }
        return ScriptedDaemon { request in
            request.path == Endpoint.models ? .value(ModelList(models: [])) : .chunks(lines, isCut: false)
        }
    }

    private static let job = "base_model: m   # mine\ndatasets:\n  - path: held\nlora_r: 8\n"
    private static let lines = """
        rank_pattern:
          model.layers.0.mlp.up_proj: 3
          model.layers.1.mlp.up_proj: 13
        alpha_pattern:
          model.layers.0.mlp.up_proj: 6
          model.layers.1.mlp.up_proj: 27.5

        """

    private static func file(_ text: String = job, in directory: String) throws -> String {
        try text.write(toFile: directory + "/job.yaml", atomically: true, encoding: .utf8)
        return directory + "/job.yaml"
    }

    @Test func theTableIsFollowedByLinesForTheJob() throws {
        let directory = temporaryDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let daemon = try Self.daemon(Self.report()), file = try Self.file(in: directory)
        let outcome = try Edgetune.run(["ranks", file], daemon: daemon)
        #expect(outcome.code == 0, "\(outcome.err)")
        let words = outcome.out.split(separator: "\n").prefix(5).map { $0.split(separator: " ").joined(separator: " ") }
        #expect(words == [
            "LINEAR IMPORTANCE RANK", "model.layers.0.mlp.up_proj 0.0123 3", "model.layers.0.mlp.down_proj 1.5 8",
            "model.layers.1.mlp.up_proj 12.2 13", "1500 parameters in A and B (1536 with one rank), by 32 samples (411 tokens with loss)",
        ])
        #expect(outcome.out.hasSuffix("\n\n" + Self.lines), "\(outcome.out)")
        let request = try #require(daemon.requests.last { $0.method == "POST" })
        #expect(request.path == "/v1/ranks?samples=32")
        let asked = try Wire.decoder().decode(JobRequest.self, from: Data(request.body))
        #expect(asked.loraR == 8 && asked.datasets.map(\.path) == ["held"])
        #expect(try Wire.decoder().decode(RankReport.self, from: Data(Edgetune.run(["ranks", file, "--json"], daemon: daemon).out.utf8)) == Self.report())
    }

    @Test func theJobIsWrittenAsItWasWithTheRanks() throws {
        let directory = temporaryDirectory(), ranked = directory + "/ranked.yaml"
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let file = try Self.file(in: directory)
        let budgeted = Self.report { ($0.budgetBytes, $0.budgetReason, $0.jobPeakBytes) = (900 << 20, "what was asked", 899 << 20) }
        let daemon = try Self.daemon(budgeted)
        let outcome = try Edgetune.run(["ranks", file, "--samples", "7", "--budget", "60%", "-o", ranked], daemon: daemon)
        #expect(outcome.code == 0 && outcome.out.contains("the job's plan: 899.0 MiB of 900.0 MiB allowed (what was asked)"), "\(outcome.out)\(outcome.err)")
        #expect(daemon.requests.last { $0.method == "POST" }?.path == "/v1/ranks?samples=7&budget=60%25")
        let text = try String(contentsOfFile: ranked, encoding: .utf8)
        #expect(text == Self.job + Self.lines + "memory_budget: 60%\n")
        #expect(try JobFile.read(text: text, fileName: "x").alphaPattern == Self.report().alphaPattern)
        // A job's own budget is its own.
        let own = try Self.file(Self.job + "memory_budget: 2GiB", in: directory)
        #expect(try Edgetune.run(["ranks", own, "--budget", "1GiB", "-o", ranked, "--force"], daemon: daemon).code == 0)
        #expect(try String(contentsOfFile: ranked, encoding: .utf8) == Self.job + "memory_budget: 2GiB\n" + Self.lines)
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory).sorted() == ["job.yaml", "ranked.yaml"])
    }

    @Test func whatCannotBeWrittenIsSaid() throws {
        let directory = temporaryDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let daemon = try Self.daemon(Self.report()), file = try Self.file(in: directory)
        func refused(_ arguments: [String], _ code: Int32, _ text: String) throws {
            let outcome = try Edgetune.run(["ranks"] + arguments, daemon: daemon)
            #expect(outcome.code == code && outcome.err.contains(text), "\(outcome.code) \(outcome.err)")
        }
        try refused([file, "--output", file], 6, "is there already")
        try refused([file, "--force"], 64, "--force is for --output")
        try refused([file, "--samples", "0"], 64, "--samples 0 is not allowed; use 1 to 4096")
        try refused([file, "--budget", "much"], 64, "use a size such as 900MiB or 2GB")
        try refused([directory + "/none.yaml"], 5, "there is no job file")
        #expect(daemon.requests.isEmpty)
        // Its data would be others' from another directory.
        try "{}\n".write(toFile: directory + "/held", atomically: true, encoding: .utf8)
        try refused([file, "--output", directory + "/../ranked.yaml"], 64, "the job's held is a path from the directory of")
        try FileManager.default.removeItem(atPath: directory + "/held")
        let braces = try Self.file("{base_model: m, datasets: [{path: held}]}\n", in: directory)
        try refused([braces, "--output", directory + "/ranked.yaml"], 64, "is not a job file of lines that others can follow")
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory) == ["job.yaml"])
    }

    @Test func aProblemOrALostEndIsAFailure() throws {
        let directory = temporaryDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let file = try Self.file(in: directory)
        let problem = try Edgetune.run(
            ["ranks", file], daemon: try Self.daemon(Self.report(), last: RankEvent(problem: Problem(.invalidValue, "lora_r: 1 leaves no rank"))))
        #expect(problem.code == 64 && problem.err.contains("lora_r: 1 leaves no rank"), "\(problem.err)")
        let lost = try Edgetune.run(["ranks", file], daemon: try Self.daemon(Self.report(), last: RankEvent(sample: 32, of: 32)))
        #expect(lost.code != 0 && lost.err.contains("looking for ranks has no end"), "\(lost.err)")
        let help = try Edgetune.run(["ranks", "--help"]).out
        for text in ["arXiv:2303.08566", "--samples", "(default: 32)", "--budget", "--output", "rank_pattern"] { #expect(help.contains(text), "\(help)") }
    }
}
