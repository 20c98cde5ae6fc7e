// `edgetuned check` beside the real daemon and the real worker: what it finds in a state that was spoilt by hand, what it
// moves aside, and that jobs and adapters are none the worse for it.
import EdgeFormats
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct CheckTests {
    struct Report: Decodable {
        struct Finding: Decodable {
            let kind: String, subject: String, detail: String, done: String?
        }
        struct Counts: Decodable {
            let jobs: Int, models: Int, datasets: Int, blobs: Int, checkpoints: Int, adapters: Int
        }
        let findings: [Finding], checked: Counts, damaged: Int, quarantine: String?

        func damage(of subject: String) -> Finding? { findings.first { $0.kind == "damage" && $0.subject.contains(subject) } }
    }

    static func check(_ directory: String, repair: String? = nil) throws -> (code: Int32, report: Report) {
        let arguments = ["check", "--json", "--state-dir", directory + "/state"] + (repair.map { [$0] } ?? [])
        let (code, text) = try Command.run(DaemonProcess.binary, arguments)
        do { return (code, try Wire.decoder().decode(Report.self, from: Data(text.utf8))) } catch {
            throw TestFailure("exit code \(code): \(text)")
        }
    }

    static let repair = "--repair"

    static func flip(_ path: String, at offset: Int) throws {
        chmod(path, 0o600)
        var bytes = try Data(contentsOf: URL(filePath: path))
        bytes[offset < 0 ? bytes.count + offset : offset] ^= 0x10
        try bytes.write(to: URL(filePath: path))
    }

    static func names(_ directory: String) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: directory).sorted()
    }

    /// A state with a finished job, as a daemon leaves it that was stopped.
    static func finishedState(_ directory: String) throws -> (job: String, files: [Data]) {
        let daemon = try DaemonProcess(in: directory)
        try KillTests.prepare(daemon)
        let job = try KillTests.submit("whole", to: daemon)
        #expect(try daemon.wait(for: job) { $0.state.isFinal }.state == .succeeded, "\(daemon.log)")
        let files = try KillTests.files(of: "whole", daemon)
        #expect(daemon.terminate() == 0)
        return (job, files)
    }

    @Test func aStateThatIsWholeIsCleanAndARunningDaemonIsNotLookedAt() throws {
        let directory = try TemporaryDirectory()
        _ = try Self.finishedState(directory.path)
        let (code, report) = try Self.check(directory.path)
        #expect(code == 0 && report.damaged == 0 && report.findings.isEmpty, "\(report)")
        #expect(report.checked.jobs == 1 && report.checked.models == 1 && report.checked.datasets == 1)
        #expect(report.checked.blobs == 2 && report.checked.adapters == 1 && report.checked.checkpoints >= 2)
        let text = try Command.run(DaemonProcess.binary, ["check", "--state-dir", directory.path + "/state"])
        #expect(text.code == 0 && text.text.contains("1 adapters: nothing is damaged"))
        // A check leaves nothing behind that a start would mind.
        let daemon = try DaemonProcess(in: directory.path)
        let refused = try Command.run(DaemonProcess.binary, ["check", "--state-dir", directory.path + "/state"])
        #expect(refused.code == 2 && refused.text.contains("edgetuned is running on \(directory.path)/state; stop it first"))
        #expect(try daemon.call("GET", Endpoint.job("x")).status == 404)
        let nowhere = try Command.run(DaemonProcess.binary, ["check", "--state-dir", directory.path + "/nowhere"])
        #expect(nowhere.code == 2 && nowhere.text.contains("No such file"))
    }

    @Test(arguments: [nil, "--repair"] as [String?])
    func aSpoiltNewestCheckpointIsPassedOverAndTheAdapterIsTheSame(how: String?) throws {
        let directory = try TemporaryDirectory()
        let expected = try Self.finishedState(directory.path).files
        let job: String
        do {
            let daemon = try DaemonProcess(in: directory.path)
            job = try KillTests.submit("spoilt", to: daemon)
            _ = try daemon.wait(for: job) { ($0.progress?.step ?? 0) >= 40 }
            daemon.killNow()
        }
        let checkpoints = "\(directory.path)/state/jobs/\(job)/checkpoints"
        // The worker dies with its parent, which may take it a moment.
        usleep(300_000)
        let all = try Self.names(checkpoints).filter { $0.hasPrefix("step-") && $0.hasSuffix(".ckpt") }
        // Three where it was killed between a new one and the removal of the oldest.
        #expect((2...3).contains(all.count))
        let (newest, before) = (try #require(all.last), all[all.count - 2])
        try Self.flip("\(checkpoints)/\(newest)", at: 200)

        let (code, report) = try Self.check(directory.path, repair: how)
        let finding = try #require(report.damage(of: newest), "\(report)")
        #expect(code == 1 && report.damaged == 1 && finding.detail.contains("the job goes on from \(before)"))
        #expect(try Self.names(checkpoints).contains(newest) == (how == nil))
        if how != nil {
            let quarantine = try #require(report.quarantine)
            #expect(FileManager.default.fileExists(atPath: "\(quarantine)/jobs/\(job)/checkpoints/\(newest)"))
            #expect(try String(contentsOfFile: quarantine + "/NOTE.txt", encoding: .utf8).contains(newest))
            #expect(try Self.check(directory.path).code == 0)
        }

        let daemon = try DaemonProcess(in: directory.path)
        let done = try daemon.wait(for: job) { $0.state.isFinal }
        #expect(done.state == .succeeded, "\(done)")
        #expect(try KillTests.files(of: "spoilt", daemon) == expected)
        let log = try daemon.call("GET", Endpoint.jobLog(job)).text
        let said = how == nil ? "\(newest) does not have its checksum; passed over" : "\(newest) is damaged and moved aside"
        #expect(log.contains(said), "\(log)")
        let step = before.dropFirst("step-".count).prefix(9)
        #expect(log.contains("resumed after step \(Int(step) ?? -1)"), "\(log)")
        // Who follows the job is told, too.
        let events = try daemon.call("GET", Endpoint.jobEvents(job)).text
        #expect(events.contains("resumed after step"), "\(events)")
        if how == nil { #expect(events.contains(said), "\(events)") }
    }

    @Test func whatIsSpoiltIsMovedAsideAndCanBeBroughtInAgain() throws {
        let directory = try TemporaryDirectory()
        let (job, _) = try Self.finishedState(directory.path)
        let state = directory.path + "/state"
        let model = try Data(contentsOf: URL(filePath: TestModel.repositoryRoot + "/Tests/Goldens/tiny-llama.gguf"))
        let digest = model.withUnsafeBytes { SHA256.hex(SHA256.hash($0)) }
        try Self.flip("\(state)/blobs/sha256-\(digest)", at: -1)
        try Self.flip("\(state)/jobs/\(job)/adapter/adapter_model.safetensors.lz4", at: 300)
        try Data("{}".utf8).write(to: URL(filePath: "\(state)/jobs/\(job)/adapter.tmp-1-0"))
        try Data("x".utf8).write(to: URL(filePath: "\(state)/blobs/.stray"))

        let looked = try Self.check(directory.path)
        #expect(looked.code == 1 && looked.report.damaged == 3, "\(looked.report)")
        #expect(looked.report.damage(of: "blob sha256:\(digest)")?.detail.contains("have the digest sha256:") == true)
        #expect(looked.report.damage(of: "model \"tiny\"") != nil)
        #expect(looked.report.damage(of: "adapter \"whole\"")?.detail.contains("adapter_model.safetensors.lz4") == true)
        #expect(looked.report.findings.filter { $0.kind == "leftover" }.count >= 2)
        #expect(looked.report.quarantine == nil && looked.report.findings.allSatisfy { $0.done == nil })
        #expect(try Self.check(directory.path).report.damaged == 3, "looking changes nothing")

        let repaired = try Self.check(directory.path, repair: Self.repair)
        let quarantine = try #require(repaired.report.quarantine)
        #expect(repaired.code == 1 && repaired.report.damaged == 3)
        #expect(FileManager.default.fileExists(atPath: "\(quarantine)/blobs/sha256-\(digest)"))
        #expect(FileManager.default.fileExists(atPath: "\(quarantine)/jobs/\(job)/adapter/adapter_config.json"))
        let rows = try ["records", "adapters"].map { try String(contentsOfFile: "\(quarantine)/\($0).jsonl", encoding: .utf8) }
        #expect(rows[0].contains("\"name\":\"tiny\"") && rows[1].contains("\"name\":\"whole\""))
        #expect(try !Self.names("\(state)/jobs/\(job)").contains("adapter.tmp-1-0"))
        let after = try Self.check(directory.path)
        #expect(after.code == 0 && after.report.damaged == 0, "\(after.report)")

        let daemon = try DaemonProcess(in: directory.path)
        #expect(try daemon.call("GET", Endpoint.adapter("whole")).status == 404)
        #expect(try daemon.call("GET", Endpoint.model("tiny")).status == 404)
        try KillTests.importBlob(model, as: "tiny", at: Endpoint.models, daemon)
        #expect(try daemon.call("GET", Endpoint.model("tiny")).status == 200)
    }

    @Test(arguments: [nil, 0, 20_000] as [Int?])
    func aStoreThatIsGoneEmptyOrGarbageIsRefusedByTheDaemonAndMadeAnewByACheck(bytes: Int?) throws {
        let directory = try TemporaryDirectory()
        _ = try Self.finishedState(directory.path)
        let store = directory.path + "/state/jobs.db"
        try FileManager.default.removeItem(atPath: store)
        if let bytes { try Data(repeating: 0x41, count: bytes).write(to: URL(filePath: store)) }
        #expect(throws: TestFailure.self) { _ = try DaemonProcess(in: directory.path) }
        let log = try String(contentsOfFile: directory.path + "/log", encoding: .utf8)
        #expect(log.contains("the job store is damaged") && log.contains("run: edgetuned check"), "\(log)")
        let looked = try Self.check(directory.path)
        #expect(looked.code == 1 && looked.report.damage(of: "job store")?.done == nil)

        let repaired = try Self.check(directory.path, repair: Self.repair)
        #expect(repaired.code == 1)
        let quarantine = try #require(repaired.report.quarantine)
        #expect((try? Data(contentsOf: URL(filePath: quarantine + "/jobs.db")).count) == bytes)
        // Nothing says any more what the blobs are, and nothing is lost of them.
        let blobs = try Self.names(directory.path + "/state/blobs")
        #expect(blobs.count == 2)
        #expect(try Self.names("\(quarantine)/jobs").count == 1)
        #expect(try Self.check(directory.path).code == 0)
        let daemon = try DaemonProcess(in: directory.path)
        #expect(try Self.names(directory.path + "/state/blobs") == blobs)
        try KillTests.prepare(daemon)
        let job = try KillTests.submit("again", to: daemon)
        #expect(try daemon.wait(for: job) { $0.state.isFinal }.state == .succeeded)
    }

    @Test func aModelThatIsCutOffWhileAJobReadsItEndsTheWorkerAndNotTheDaemon() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        let job = try KillTests.submit("cut", to: daemon)
        _ = try daemon.wait(for: job) { ($0.progress?.step ?? 0) >= 3 }
        let blobs = directory.path + "/state/blobs"
        for name in try Self.names(blobs) {
            chmod("\(blobs)/\(name)", 0o600)
            #expect(truncate("\(blobs)/\(name)", 100) == 0)
        }
        let done = try daemon.wait(for: job) { $0.state.isFinal }
        // What it had in memory may have been enough; else it fails, with a reason.
        #expect(done.state == .succeeded || (done.state == .failed && done.problem != nil), "\(done)")
        #expect(try daemon.call("GET", Endpoint.health).status == 200)
        #expect(daemon.terminate() == 0)
        #expect(try Self.check(directory.path).report.damaged >= 2)
    }
}
