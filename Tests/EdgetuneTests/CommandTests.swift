// The client as a user meets it: exit codes, JSON, what it says when things are wrong, and what it does over a bad
// connection.
import EdgeWire
import Foundation
import Glibc
import Synchronization
import Testing

private let moment = Date(timeIntervalSince1970: 1_760_000_000)

private func job(_ state: JobState, adapter: String? = nil, name: String = "first") -> JobStatus {
    JobStatus(
        id: "j-1", name: name, state: state, reason: nil, ownerUid: 1, createdAt: moment, startedAt: nil,
        finishedAt: nil, runs: 1, request: JobRequest(baseModel: "m", datasets: [DatasetReference(path: "d")]),
        progress: nil, plan: nil, problem: nil, adapter: adapter)
}

private func event(_ seq: Int, _ kind: JobEvent.Kind) -> String {
    String(decoding: (try? Wire.encoder().encode(JobEvent(seq: seq, at: moment, event: kind))) ?? Data(), as: UTF8.self)
        + "\n"
}

private func step(_ number: Int) -> JobEvent.Kind {
    .step(
        JobProgress(
            step: number, totalSteps: 90, epoch: 0.5, loss: 2.25, learningRate: 0.1, gradNorm: 1, tokensPerSecond: 512,
            rssBytes: 310 << 20, plannedPeakBytes: 400 << 20, budgetBytes: 900 << 20, etaSeconds: 192, evalLoss: nil,
            bestEvalLoss: nil))
}

private func followed(_ events: [String], end: JobState) -> ScriptedDaemon {
    ScriptedDaemon { request in
        request.path.hasPrefix("/v1/jobs/j-1/events")
            ? .chunks(events, isCut: false) : .value(job(end, adapter: end == .succeeded ? "first" : nil))
    }
}

@Suite struct LogsTests {
    @Test func aLogIsPrintedAsItIsOrALineAsAJSONValue() throws {
        let daemon = ScriptedDaemon { _ in .bytes(Array("one\ntwo \"quoted\"\n".utf8)) }
        #expect(try Edgetune.run(["logs", "j-1"], socket: daemon.path).out == "one\ntwo \"quoted\"\n")
        #expect(
            try Edgetune.run(["logs", "j-1", "--json"], socket: daemon.path).out
                == "{\"line\":\"one\"}\n{\"line\":\"two \\\"quoted\\\"\"}\n")
    }
}

@Suite struct FailureTests {
    @Test func aMissingSocketSaysHowToStartTheDaemon() throws {
        let outcome = try Edgetune.run(["jobs"], socket: "/tmp/edgetune-no-such.sock")
        #expect(outcome.code == 7)
        #expect(outcome.err.contains("edgetuned is not running"))
        #expect(outcome.err.contains("systemctl start edgetuned.socket"))
    }

    @Test func aSocketThatNobodyListensToSaysTheSame() throws {
        let path = temporaryDirectory() + "/d.sock"
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        let size = socklen_t(MemoryLayout<sockaddr_un>.size)
        let bound = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(descriptor, $0, size) }
        }
        close(descriptor)
        #expect(bound == 0)
        let outcome = try Edgetune.run(["jobs"], socket: path)
        #expect(outcome.code == 7)
        #expect(outcome.err.contains("edgetuned is not running"))
    }

    @Test func aSocketOfAnotherGroupNamesTheGroup() throws {
        let daemon = ScriptedDaemon { _ in .value(JobList(jobs: [])) }
        chmod(daemon.directory, 0o755)
        var prefix: [String] = []
        if getuid() == 0 {
            prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        } else {
            chmod(daemon.path, 0)
        }
        let outcome = try Edgetune.run(["jobs"], daemon: daemon, prefix: prefix)
        #expect(outcome.code == 4)
        #expect(outcome.err.contains("sudo usermod -aG edgetune $USER"))
    }

    @Test func aDaemonOfAnotherVersionIsNamed() throws {
        let daemon = ScriptedDaemon { _ in .versioned("2.0") }
        let outcome = try Edgetune.run(["jobs"], daemon: daemon)
        #expect(outcome.code == 1)
        #expect(outcome.err.contains("speaks API 2.0"))
    }

    @Test(arguments: [
        (Problem.Kind.notFound, Int32(5)), (.wrongState, 6), (.conflict, 6), (.notPermitted, 4),
        (.insufficientMemory, 8), (.insufficientDisk, 8), (.internalError, 1), (.invalidValue, 64),
    ])
    func aProblemIsItsExitCodeAndItsWords(_ kind: Problem.Kind, _ code: Int32) throws {
        let daemon = ScriptedDaemon { _ in .problem(kind, "the detail\u{1B}[31m") }
        let outcome = try Edgetune.run(["pause", "j-1"], daemon: daemon)
        #expect(outcome.code == code)
        #expect(outcome.err == "edgetune: the detail\nhint: the hint\n")
        #expect(outcome.out.isEmpty)
    }

    @Test(arguments: [["submit"], ["nonsense"], ["jobs", "--state", "asleep"], ["export", "a"]])
    func wrongUsageIs64(_ arguments: [String]) throws {
        #expect(try Edgetune.run(arguments).code == 64)
    }

    @Test func aJobFileWithAnUnknownKeyNamesTheLineAndTheKey() throws {
        let directory = temporaryDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        try "base_model: m\ndatasets: [{path: d}]\nlora_rank: 8\n"
            .write(toFile: directory + "/job.yaml", atomically: false, encoding: .utf8)
        let outcome = try Edgetune.run(["submit", directory + "/job.yaml"])
        #expect(outcome.code == 64)
        #expect(outcome.err.contains("line 3: unknown key \"lora_rank\"; did you mean \"lora_r\"?"))
    }
}

@Suite struct ListTests {
    @Test func jsonIsTheWiresOwn() throws {
        let list = JobList(jobs: [job(.running)])
        let daemon = ScriptedDaemon { _ in .value(list) }
        let outcome = try Edgetune.run(["jobs", "--json"], daemon: daemon)
        #expect(outcome.code == 0)
        #expect(try Wire.decoder().decode(JobList.self, from: Data(outcome.out.utf8)) == list)
        #expect(outcome.out.filter { $0 == "\n" }.count == 1)
    }

    @Test func jobsAreFilteredByState() throws {
        let daemon = ScriptedDaemon { _ in .value(JobList(jobs: [job(.running), job(.failed, name: "second")])) }
        let outcome = try Edgetune.run(["jobs", "--state", "failed"], daemon: daemon)
        #expect(outcome.out.contains("second") && !outcome.out.contains("first"))
    }

    @Test func namesCannotControlTheTerminal() throws {
        let name = "a\u{1B}]0;title\u{07}b\u{1B}[2Jc\u{9B}31md\re\u{202E}f"
        let daemon = ScriptedDaemon { _ in .value(JobList(jobs: [job(.running, name: name)])) }
        let outcome = try Edgetune.run(["jobs"], daemon: daemon)
        #expect(outcome.out.contains("abcdef"))
    }

    @Test func theSocketMayComeFromTheEnvironment() throws {
        let daemon = ScriptedDaemon { _ in .value(JobList(jobs: [])) }
        let outcome = try Edgetune.run(["jobs"], environment: ["EDGETUNE_SOCKET": daemon.path])
        withExtendedLifetime(daemon) {}
        #expect(outcome.code == 0 && outcome.out == "no jobs\n")
    }
}

@Suite struct WatchTests {
    @Test(arguments: [(JobState.succeeded, Int32(0)), (.failed, 3), (.cancelled, 10)])
    func theEndIsTheExitCode(_ end: JobState, _ code: Int32) throws {
        let daemon = followed([event(1, .end(end))], end: end)
        #expect(try Edgetune.run(["watch", "j-1"], daemon: daemon).code == code)
    }

    @Test func withoutATerminalThereAreFewPlainLines() throws {
        let evaluation = EvaluationReport(step: 3, loss: 2, perplexity: 7.39, tokens: 10, isBest: true)
        let events =
            (1...5).map { event($0, step($0)) } + [event(6, .evaluation(evaluation)), event(7, .end(.succeeded))]
        let outcome = try Edgetune.run(["watch", "j-1"], daemon: followed(events, end: .succeeded))
        #expect(
            outcome.out == """
                step 1/90, loss 2.2500, 512 tokens/s, memory 310/900 MiB, ETA 3m12s
                step 3: held-out loss 2.0000, perplexity 7.39, best so far
                j-1 succeeded: adapter first

                """)
        #expect(outcome.err.isEmpty)
    }

    @Test(arguments: [UInt16(40), 60, 80, 200]) func theBarFitsTheTerminal(_ columns: UInt16) throws {
        let daemon = followed([event(1, step(45)), event(2, .end(.succeeded))], end: .succeeded)
        let outcome = try Edgetune.run(
            onTerminalOf: columns, ["watch", "j-1"], daemon: daemon, environment: ["NO_COLOR": "1"])
        let drawn = outcome.out.split { $0 == "\r" || $0 == "\n" || $0 == "\r\n" }
        #expect(drawn.allSatisfy { $0.count < Int(columns) })
        #expect(outcome.out.contains("45/90  [#") && outcome.out.contains("loss 2.250"))
        #expect(outcome.out.contains("512 tok/s") == (columns >= 80))
        #expect(!outcome.out.contains("\u{1B}"))
    }

    @Test func colourIsUsedUnlessForbidden() throws {
        let daemon = followed([event(1, step(45)), event(2, .end(.succeeded))], end: .succeeded)
        #expect(try Edgetune.run(onTerminalOf: 80, ["watch", "j-1"], daemon: daemon).out.contains("\u{1B}[32m"))
    }

    @Test func eventsGoOnWhereTheyStoppedAndNoneIsShownTwice() throws {
        let calls = Mutex(0)
        let daemon = ScriptedDaemon { request in
            guard request.path.contains("/events") else { return .value(job(.succeeded)) }
            switch calls.withLock({ calls in
                calls += 1
                return calls
            }) {
            case 1: return .chunks([event(1, .log("one")), event(2, .log("two")), "{\"seq\":3,\"at"], isCut: true)
            case 2: return .drop
            case 3: return .chunks([event(2, .log("two")), event(3, .log("three"))], isCut: false)
            default: return .chunks([event(4, .heartbeat), event(4, .end(.succeeded))], isCut: false)
            }
        }
        let outcome = try Edgetune.run(["watch", "j-1"], daemon: daemon)
        #expect(outcome.code == 0)
        #expect(outcome.out == "one\ntwo\nthree\nj-1 succeeded\n")
        let cursors = daemon.routes.filter { $0.contains("/events") }.map { $0.split(separator: "=").last }
        #expect(cursors == ["0", "2", "2", "3"])
    }

    @Test func afterAnExpiredCursorTheOldestKeptEventIsNext() throws {
        let calls = Mutex(0)
        let daemon = ScriptedDaemon { request in
            guard request.path.contains("/events") else { return .value(job(.succeeded)) }
            if request.path.hasSuffix("after=1") { return .problem(.cursorExpired, "gone") }
            let number = calls.withLock { calls in
                calls += 1
                return calls
            }
            return number == 1
                ? .chunks([event(1, .log("one"))], isCut: true)
                : .chunks([event(900, .log("later")), event(901, .end(.succeeded))], isCut: false)
        }
        let outcome = try Edgetune.run(["watch", "j-1"], daemon: daemon)
        #expect(outcome.code == 0 && outcome.out == "one\nlater\nj-1 succeeded\n")
    }

    @Test func anEventOfALaterReleaseIsSkipped() throws {
        let later = #"{"at":"2025-10-09T08:53:20Z","seq":1,"type":"weather"}"# + "\n"
        let daemon = followed([later, event(2, .end(.succeeded))], end: .succeeded)
        #expect(try Edgetune.run(["watch", "j-1"], daemon: daemon).code == 0)
    }

    @Test func jsonIsOneEventALine() throws {
        let events = [event(1, step(1)), event(2, .end(.failed))]
        let outcome = try Edgetune.run(["watch", "j-1", "--json"], daemon: followed(events, end: .failed))
        #expect(outcome.code == 3 && outcome.out == events.joined())
    }

    @Test func interruptingDetachesWithAHint() throws {
        let daemon = ScriptedDaemon { $0.path.contains("/events") ? .hang : .value(job(.running)) }
        let outcome = try Edgetune.run(["watch", "j-1"], daemon: daemon, interruptAfter: 1)
        #expect(outcome.code == 130)
        #expect(outcome.err.contains("edgetune watch j-1"))
    }
}
