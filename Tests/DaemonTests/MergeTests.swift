// `edgetune merge` with the real client, daemon and worker: what comes out, what it says of its loss, and what it leaves.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct MergeTests {
    struct Report: Decodable {
        let path: String
        let merged: MergeReport
    }

    static func merges(_ directory: String) throws -> [String] {
        let exports = directory + "/state/cache/exports"
        return try FileManager.default.subpathsOfDirectory(atPath: exports).filter { $0.contains("merged") }
    }

    static func trained(_ name: String, _ daemon: DaemonProcess) throws -> JobStatus {
        var request = KillTests.request(name)
        request.maxSteps = 30
        let job = try daemon.post(Endpoint.jobs, request).decoded(JobStatus.self)
        let ended = try daemon.wait(for: job.id) { $0.state.isFinal }
        #expect(ended.state == .succeeded)
        return ended
    }

    @Test func aJobsAdapterBecomesAModelWithItsLoss() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        let job = try Self.trained("one", daemon)
        let best = try #require(job.progress?.bestEvalLoss)
        let (_, shown) = try AddTests.edgetune(["show", job.id], daemon)
        #expect(shown.contains("best \(String(format: "%.4f", best))"), "\(shown)")
        for (format, tolerance) in [("f16", 1e-3), ("q8_0", 1e-2), ("q4_0", 0.1)] {
            let path = directory.path + "/\(format).gguf"
            let (code, text) = try AddTests.edgetune(["merge", "one", "--format", format, "-o", path, "--json"], daemon)
            #expect(code == 0, "\(text)")
            let report = try Wire.decoder().decode(Report.self, from: Data(text.utf8))
            let losses = try #require(report.merged.losses)
            #expect(report.merged.format == format.uppercased() && report.path == path)
            #expect(abs(losses.adapter / best - 1) < 1e-6, "\(losses.adapter) is not the job's \(best)")
            #expect(abs(losses.merged / losses.adapter - 1) < tolerance, "\(losses)")
            #expect(losses.merged != losses.adapter)
            let (added, told) = try AddTests.edgetune(["models", "add", path], daemon)
            #expect(added == 0 && told.contains(format.uppercased()), "\(told)")
        }
        // What was fetched is not kept twice.
        #expect(try Self.merges(directory.path).isEmpty)

        let (code, text) = try AddTests.edgetune(["merge", "one", "--no-measure", "-o", directory.path + "/default.gguf"], daemon)
        #expect(code == 0 && text.contains("Q8_0") && text.contains("not measured: not asked for"), "\(text)")
        let again = try AddTests.edgetune(["merge", "one", "-o", directory.path + "/default.gguf"], daemon)
        #expect(again.code == 6 && again.text.contains("--force"), "\(again.text)")
    }

    @Test func whatAJobNeededMayBeGone() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        _ = try Self.trained("one", daemon)
        #expect(try daemon.call("DELETE", Endpoint.dataset("lines")).status == 204)
        let (code, text) = try AddTests.edgetune(["merge", "one", "-o", directory.path + "/m.gguf"], daemon)
        #expect(code == 0 && text.contains("data sets have been removed"), "\(text)")
        #expect(try daemon.call("DELETE", Endpoint.model("tiny")).status == 204)
        for arguments in [["merge", "one", "-o", directory.path + "/n.gguf"], ["export", "one", "--format", "gguf", "-o", directory.path + "/a.gguf"]] {
            let (code, text) = try AddTests.edgetune(arguments, daemon)
            #expect(code == 5 && text.contains("model \"tiny\"") && text.contains("hint"), "\(text)")
        }
    }

    @Test func anAdapterFromElsewhereIsMergedWithoutALoss() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        #expect(try InitialAdapterTests.add("mine", to: daemon).status == 201)
        let (code, text) = try AddTests.edgetune(["merge", "mine", "-o", directory.path + "/m.gguf"], daemon)
        #expect(code == 0 && text.contains("not measured: its job is no longer listed"), "\(text)")
    }

    @Test func whatCannotBeMergedSaysWhatCan() throws {
        let directory = try TemporaryDirectory()
        var daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        #expect(try InitialAdapterTests.add("mine", to: daemon).status == 201)
        let unknown = try AddTests.edgetune(["merge", "mine", "--format", "q6_k", "-o", directory.path + "/m"], daemon)
        #expect(unknown.code == 64 && unknown.text.contains("q8_0"), "\(unknown.text)")
        let answer = try daemon.call(
            "POST", Endpoint.mergedModel("mine"), headers: ["Content-Type": "application/json"], body: Data("{\"format\":\"q6_k\"}".utf8))
        #expect(answer.status == 400 && answer.text.contains("format"), "\(answer.text)")
        #expect(try AddTests.edgetune(["merge", "nobody", "-o", directory.path + "/m"], daemon).code == 5)
        #expect(try daemon.call("GET", Endpoint.mergedFile("mine", "model.gguf")).status == 404)
        #expect(try daemon.call("GET", Endpoint.mergedFile("mine", "..%2f..%2fjobs.db")).status == 404)

        // A client that asked and never fetched: the next daemon removes what is left.
        let made = try daemon.post(Endpoint.mergedModel("mine"), MergeRequest(measure: false))
        #expect(made.status == 200 && made.text.contains("\"report\""), "\(made.text)")
        #expect(try daemon.call("GET", Endpoint.mergedFile("mine", "model.gguf")).body.prefix(4) == Data("GGUF".utf8))
        #expect(try !Self.merges(directory.path).isEmpty)
        daemon.killNow()
        daemon = try DaemonProcess(in: directory.path)
        #expect(try Self.merges(directory.path).isEmpty)
    }
}
