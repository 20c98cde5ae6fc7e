// `edgetune adapters compose` with the real client, daemon and worker: what comes out, what is refused, and what an end on the way leaves.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct ComposeTests {
    struct Report: Decodable {
        let adapter: AdapterRecord
        let composed: CompositionReport
    }

    /// Two adapters, each of a data set of its own.
    static func prepare(_ daemon: DaemonProcess) throws {
        try KillTests.prepare(daemon)
        let others = (0..<24).map { "{\"text\":\"other \($0) shouts \(String(repeating: "XY\($0 % 5) ", count: 3))\"}\n" }
        try KillTests.importBlob(Data(others.joined().utf8), as: "others", at: Endpoint.datasets, daemon)
        for (name, dataset) in [("one", "lines"), ("two", "others")] {
            var request = KillTests.request(name)
            (request.datasets[0].path, request.maxSteps, request.saveSteps) = (dataset, 40, 100)
            let job = try daemon.post(Endpoint.jobs, request).decoded(JobStatus.self)
            #expect(try daemon.wait(for: job.id) { $0.state.isFinal }.state == .succeeded)
        }
    }

    static func examples(_ count: Int, in directory: String) throws -> String {
        let path = directory + "/examples-\(count).jsonl"
        let lines = (0..<count).map { "{\"text\":\"sample \(30 + $0) says \(String(repeating: "ab\($0 % 7) ", count: 3))\"}\n" }
        try lines.joined().write(toFile: path, atomically: true, encoding: .utf8)
        return path
    }

    static func directories(_ directory: String) throws -> Set<String> {
        Set(try FileManager.default.contentsOfDirectory(atPath: directory + "/state/jobs"))
    }

    @Test func examplesChooseAMixtureThatGeneratesAndExports() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try Self.prepare(daemon)
        let data = try Self.examples(6, in: directory.path)
        func compose(_ name: String, _ more: [String] = []) throws -> (code: Int32, text: String) {
            try AddTests.edgetune(["adapters", "compose", name, "--adapters", "one", "two", "--data", data, "--steps", "12"] + more, daemon)
        }
        let (code, text) = try compose("desk", ["--json"])
        #expect(code == 0, "\(text)")
        let made = try Wire.decoder().decode(Report.self, from: Data(text.utf8)), report = made.composed
        #expect(made.adapter.name == "desk" && report.examples == 6 && report.tokens > 0 && report.steps == 12)
        #expect(report.weights.count == 2 && report.weights.allSatisfy { abs($0) <= 1.5 })
        let alone = report.aloneLosses.compactMap { $0 }
        #expect(alone.count == 2 && report.loss <= alone.min()! && report.loss < report.baseLoss, "\(report)")
        #expect(report.peakBytes > 0 && report.peakBytes <= report.plannedPeakBytes, "\(report)")

        let record = try daemon.call("GET", Endpoint.adapterFile("desk", "training.json")).text
        #expect(record.contains("\"method\" : \"lorahub\"") && record.contains("\"examples\" : \"sha256:"), "\(record)")
        #expect(record.contains("\"adapter\" : \"two\"") && record.contains("\"weight\" : \(report.weights[1])"), "\(record)")
        #expect(try daemon.call("GET", Endpoint.adapterFile("desk", "adapter.gguf")).status == 200)
        let generation = GenerateRequest(model: "tiny", adapter: "desk", messages: [ChatMessage(role: "user", content: "ab")])
        #expect(try daemon.post(Endpoint.generate, generation).text.contains("\"done\":true"))

        // The same order gives the same bytes, and its lines tell of every evaluation.
        let again = try compose("again")
        #expect(again.code == 0 && again.text.contains("again: an adapter of tiny, chosen by 6 examples"), "\(again.text)")
        #expect(try KillTests.files(of: "again", daemon) == KillTests.files(of: "desk", daemon))
        let datasets = try daemon.call("GET", Endpoint.datasets).decoded(DatasetList.self).datasets
        let dataset = try #require(datasets.first { $0.name.hasPrefix("examples-6") })
        let answer = try daemon.post(
            Endpoint.compositions, CompositionRequest(name: "third", adapters: ["two", "one"], dataset: dataset.blob, steps: 9))
        let events = try answer.text.split(separator: "\n").map { try Wire.decoder().decode(CompositionEvent.self, from: Data($0.utf8)) }
        #expect(events.dropLast().map(\.step) == Array(1...9) && events.last?.adapter?.name == "third", "\(answer.text)")
        let losses = events.dropLast().compactMap(\.bestLoss)
        #expect(losses.count == 9 && losses[0] == report.baseLoss)
    }

    @Test func whatCannotBeComposedSaysWhatCan() throws {
        let directory = try TemporaryDirectory()
        var daemon = try DaemonProcess(in: directory.path)
        try Self.prepare(daemon)
        var low = CombinationRequest(name: "low", adapters: [.init(adapter: "one", weight: 1)], combination: .svd)
        low.rank = 2
        #expect(try daemon.post(Endpoint.combinations, low).status == 201)
        let many = try Self.examples(257, in: directory.path)
        try KillTests.importBlob(try Data(contentsOf: URL(filePath: many)), as: "many", at: Endpoint.datasets, daemon)
        let before = try Self.directories(directory.path)
        func compose(_ name: String = "x", _ adapters: [String] = ["one", "two"], _ dataset: String = "lines", steps: Int = 6) throws -> HTTPAnswer {
            try daemon.post(Endpoint.compositions, CompositionRequest(name: name, adapters: adapters, dataset: dataset, steps: steps))
        }
        let refusals: [(HTTPAnswer, Int, String)] = [
            (try compose("one"), 409, "there is another adapter"), (try compose("../x"), 422, "name"),
            (try compose("x", ["one", "nobody"]), 404, "there is no adapter"), (try compose("x", ["one"]), 422, "use 2 to 20 adapters"),
            (try compose("x", ["one", "one"]), 422, "use each adapter once"), (try compose(steps: 4), 422, "steps: 4 is not allowed; use 5 to 1000"),
            (try compose("x", ["one", "two"], "nothing"), 404, "there is no data set"),
            // The worker's own come as the last line.
            (try compose("x", ["one", "low"]), 200, "adapter number 1 has rank 4, number 2 rank 2"),
            (try compose("x", ["one", "two"], "many"), 200, "the data set has 257 examples"),
        ]
        for (answer, status, text) in refusals { #expect(answer.status == status && answer.text.contains(text), "\(answer.text)") }
        daemon.killNow()
        let config = directory.path + "/config.yaml"
        try "memory_budget: 16MiB\n".write(toFile: config, atomically: true, encoding: .utf8)
        daemon = try DaemonProcess(in: directory.path, arguments: ["--config", config])
        let answer = try compose()
        #expect(answer.text.contains("composing needs") && answer.text.contains("required_bytes"), "\(answer.text)")
        #expect(try Self.directories(directory.path) == before)
    }

    @Test func anEndOnTheWayLeavesNothing() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try Self.prepare(daemon)
        let before = try Self.directories(directory.path)
        let data = try Self.examples(60, in: directory.path)
        let client = Process()
        client.executableURL = URL(fileURLWithPath: (DaemonProcess.binary as NSString).deletingLastPathComponent + "/edgetune")
        client.arguments = ["adapters", "compose", "desk", "--adapters", "one", "two", "--data", data, "--steps", "1000", "--socket", daemon.socket]
        client.environment = ["PATH": "/usr/bin:/bin", "HOME": directory.path]
        try client.run()
        func wait(_ what: String, until condition: () throws -> Bool) throws {
            let deadline = Date().addingTimeInterval(60)
            while try !condition() {
                guard Date() < deadline else { throw TestFailure("\(what): \(daemon.log)") }
                usleep(10_000)
            }
        }
        try wait("it did not begin") { try Self.directories(directory.path) != before }
        #expect(client.isRunning)
        let other = CompositionRequest(name: "x", adapters: ["one", "two"], dataset: "lines", steps: 6)
        #expect(try daemon.post(Endpoint.compositions, other).status == 429)
        client.interrupt()
        client.waitUntilExit()
        try wait("it left something") { try Self.directories(directory.path) == before }
        #expect(try daemon.call("GET", Endpoint.adapter("desk")).status == 404)
        // And the way is free.
        let next = try daemon.post(Endpoint.compositions, other)
        #expect(next.text.contains("\"report\""), "\(next.text)")
    }
}
