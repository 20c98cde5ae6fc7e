// `edgetune ranks` with the real client, daemon and worker: what comes out, that a job takes it, what is refused, and an end on the way.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct RanksTests {
    static let job = """
        # a job of mine
        base_model: tiny
        datasets:
          - path: lines.jsonl
        lora_r: 6
        lora_alpha: 9
        sequence_len: 64
        val_set_size: 4
        max_steps: 6

        """

    /// The job's file, in a directory of its own beside its data.
    static func jobFile(in directory: String, _ text: String = job) throws -> String {
        let own = directory + "/mine"
        try FileManager.default.createDirectory(atPath: own, withIntermediateDirectories: true)
        let lines = (0..<24).map { "{\"text\":\"sample \($0) says \(String(repeating: "ab\($0 % 7) ", count: 3))\"}\n" }
        try lines.joined().write(toFile: own + "/lines.jsonl", atomically: true, encoding: .utf8)
        try text.write(toFile: own + "/job.yaml", atomically: true, encoding: .utf8)
        return own + "/job.yaml"
    }

    static func ranks(_ arguments: [String], _ daemon: DaemonProcess) throws -> (code: Int32, text: String) {
        try AddTests.edgetune(["ranks"] + arguments, daemon)
    }

    @Test func aJobIsGivenRanksThatItTrainsWith() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        let file = try Self.jobFile(in: directory.path), ranked = directory.path + "/mine/ranked.yaml"
        let before = try ComposeTests.directories(directory.path)
        let (code, text) = try Self.ranks([file, "--samples", "9", "--output", ranked, "--json"], daemon)
        #expect(code == 0, "\(text)")
        let report = try Wire.decoder().decode(RankReport.self, from: Data(text.utf8))
        #expect(report.rows.count == 14 && report.samples == 9 && report.tokens > 9)
        #expect(report.rows.allSatisfy { $0.importance > 0 && (1...24).contains($0.rank) } && Set(report.rows.map(\.rank)).count > 2)
        #expect(report.parameters <= report.uniformParameters && report.parameters > report.uniformParameters - 224)
        #expect(report.rankPattern == Dictionary(uniqueKeysWithValues: report.rows.filter { $0.rank != 6 }.map { ($0.linear, $0.rank) }))
        #expect(report.alphaPattern == report.rankPattern.mapValues { 1.5 * Double($0) })
        #expect(report.peakBytes > 0 && report.peakBytes <= report.plannedPeakBytes, "\(report)")
        #expect(try ComposeTests.directories(directory.path) == before)

        // The same again, for people.
        let printed = try Self.ranks([file, "--samples", "9"], daemon)
        #expect(printed.code == 0 && printed.text.contains("LINEAR") && printed.text.contains("rank_pattern:\n  model.layers.0."), "\(printed.text)")
        let written = try String(contentsOfFile: ranked, encoding: .utf8)
        #expect(written.hasPrefix(Self.job + "rank_pattern:\n") && printed.text.hasSuffix(String(written.dropFirst(Self.job.count))), "\(written)")
        #expect(try Self.ranks([file, "--output", ranked], daemon).code == 6)
        #expect(try Self.ranks([file, "--samples", "9", "--output", ranked, "--force"], daemon).code == 0)
        #expect(try String(contentsOfFile: ranked, encoding: .utf8) == written)

        let submitted = try AddTests.edgetune(["submit", ranked, "--name", "ranked", "--watch"], daemon)
        #expect(submitted.code == 0, "\(submitted.text)")
        let config = try daemon.call("GET", Endpoint.adapterFile("ranked", "adapter_config.json")).text
        for (linear, rank) in report.rankPattern { #expect(config.contains("\"\(linear)\": \(rank)"), "\(config)") }
        #expect(try daemon.call("GET", Endpoint.adapterFile("ranked", "adapter.gguf")).status == 200)
        // What has ranks is not given any.
        let again = try Self.ranks([ranked], daemon)
        #expect(again.code != 0 && again.text.contains("rank_pattern and alpha_pattern are what is looked for"), "\(again.text)")
    }

    @Test func aBudgetHasTheMostRanksThatAPlanFitsIn() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        let file = try Self.jobFile(in: directory.path)
        func report(_ budget: String) throws -> RankReport {
            let (code, text) = try Self.ranks([file, "--samples", "4", "--budget", budget, "--json"], daemon)
            #expect(code == 0, "\(text)")
            return try Wire.decoder().decode(RankReport.self, from: Data(text.utf8))
        }
        let ample = try report("500MiB")
        #expect(ample.rows.allSatisfy { $0.rank == 24 } && ample.parameters == 4 * ample.uniformParameters)
        #expect(try #require(ample.jobPeakBytes) <= 500 << 20 && ample.budgetBytes == 500 << 20)
        let (code, text) = try Self.ranks([file, "--budget", "1MiB"], daemon)
        #expect(code == 8 && text.contains("MiB at least, the budget is"), "\(code) \(text)")
        // Between what one rank needs and what all need; a job with the ranks fits where they were to fit.
        let written = directory.path + "/mine/small.yaml"
        let least = try #require(
            text.split(whereSeparator: { !$0.isNumber && $0 != "." }).first.flatMap { Int($0) })
        let small = try Self.ranks([file, "--samples", "4", "--budget", "\(least + 2)MiB", "--output", written], daemon)
        #expect(small.code == 0 && small.text.contains("the job's plan:"), "\(small.text)")
        #expect(try String(contentsOfFile: written, encoding: .utf8).hasSuffix("memory_budget: \(least + 2)MiB\n"))
        let planned = try AddTests.edgetune(["submit", written, "--dry-run"], daemon)
        #expect(planned.code == 0, "\(planned.text)")
    }

    @Test func whatHasNoRanksToGiveIsRefused() throws {
        let directory = try TemporaryDirectory()
        var daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        func answer(_ query: String = "", _ change: (inout JobRequest) -> Void = { _ in }) throws -> HTTPAnswer {
            var request = KillTests.request("x")
            change(&request)
            return try daemon.post(Endpoint.ranks + query, request)
        }
        let refusals: [(HTTPAnswer, Int, String)] = [
            (try answer("?samples=0"), 422, "samples=0 is not allowed; use 1 to 4096"),
            (try answer("?budget=much"), 422, "budget=much is not allowed; use a size such as 900MiB"),
            (try answer { $0.baseModel = "none" }, 404, "there is no model"), (try answer { $0.datasets[0].path = "none" }, 404, "there is no data set"),
            (try answer { $0.loraR = 0 }, 422, "lora_r: 0 is not allowed"),
            // The worker's own come as the last line.
            (try answer { $0.loraR = 1 }, 200, "lora_r: 1 leaves no rank to give"),
            (try answer { ($0.adapter, $0.loraDropout) = ("vera", 0) }, 200, "the linears of vera have one rank"),
            (try answer { ($0.adapter, $0.loraDropout) = ("dylora", 0) }, 200, "use lora, lora-fa or dora"),
            (try answer { $0.rankPattern = ["q_proj": 2] }, 200, "are what is looked for"),
            (try answer { $0.initLoraWeights = .orthogonal }, 200, "orthogonal wants even ranks"),
            (try answer { $0.sequenceLen = 8 }, 200, "no sample to train on"),
        ]
        for (answer, status, text) in refusals { #expect(answer.status == status && answer.text.contains(text), "\(answer.text)") }
        let fine = try answer("?samples=3").text.split(separator: "\n").map { try Wire.decoder().decode(RankEvent.self, from: Data($0.utf8)) }
        #expect(fine.compactMap(\.sample) == [0, 1, 2, 3] && fine.last?.report?.samples == 3)
        daemon.killNow()
        let config = directory.path + "/config.yaml"
        try "memory_budget: 16MiB\n".write(toFile: config, atomically: true, encoding: .utf8)
        daemon = try DaemonProcess(in: directory.path, arguments: ["--config", config])
        let small = try answer()
        #expect(small.text.contains("measuring needs") && small.text.contains("required_bytes"), "\(small.text)")
    }

    @Test func anInterruptEndsTheWorkerAndFreesTheWay() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        let many = (0..<4000).map { "{\"text\":\"sample \($0) says \(String(repeating: "ab\($0 % 7) ", count: 3))\"}\n" }
        let file = try Self.jobFile(in: directory.path)
        try many.joined().write(toFile: directory.path + "/mine/lines.jsonl", atomically: true, encoding: .utf8)
        let ranked = directory.path + "/mine/ranked.yaml"
        func started() throws -> Process {
            let client = Process()
            client.executableURL = URL(fileURLWithPath: (DaemonProcess.binary as NSString).deletingLastPathComponent + "/edgetune")
            client.arguments = ["ranks", file, "--samples", "4000", "--output", ranked, "--socket", daemon.socket]
            client.environment = ["PATH": "/usr/bin:/bin", "HOME": directory.path]
            try client.run()
            return client
        }
        var client = try started()
        func wait(_ what: String, until condition: () throws -> Bool) throws {
            let deadline = Date().addingTimeInterval(60)
            while try !condition() {
                guard Date() < deadline else { throw TestFailure("\(what): \(daemon.log)") }
                usleep(10_000)
            }
        }
        let request = KillTests.request("x")
        try wait("it did not begin") {
            // What asks whether the way is free is in it for a moment, and the client may have met that.
            if !client.isRunning { client = try started() }
            return try daemon.post(Endpoint.ranks + "?samples=1", request).status == 429
        }
        // On a busy machine one before it may have come to its end unseen.
        if FileManager.default.fileExists(atPath: ranked) { try FileManager.default.removeItem(atPath: ranked) }
        #expect(client.isRunning)
        client.interrupt()
        client.waitUntilExit()
        try wait("the way is not free") { try daemon.post(Endpoint.ranks + "?samples=1", request).text.contains("\"report\"") }
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory.path + "/mine").sorted() == ["job.yaml", "lines.jsonl"])
    }
}
