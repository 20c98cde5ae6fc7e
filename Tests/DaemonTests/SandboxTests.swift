// What a worker can do that a file has taken over: Tests/SandboxProbe, preloaded into the real `edgetuned work`, tries at the
// worker's first touch of a user's byte what an intruder would, and what honest work needs.
import CEdgeSandbox
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

private let landlockVersion = edge_landlock_abi()

@Suite(.serialized) struct SandboxTests {
    /// A state directory with two jobs and two models, of which an order names one each.
    struct State: ~Copyable {
        let directory: TemporaryDirectory
        var path: String { directory.path }
        var model: String { path + "/blobs/model" }
        var own: String { path + "/jobs/own" }

        init() throws { directory = try Self.filled() }

        private static func filled() throws -> TemporaryDirectory {
            let directory = try TemporaryDirectory()
            for name in ["jobs/own", "jobs/other", "blobs"] {
                try FileManager.default.createDirectory(
                    atPath: directory.path + "/" + name, withIntermediateDirectories: true)
            }
            let tiny = try TestModel.goldens("tiny-llama.gguf")
            let lines = (0..<8).map { "{\"text\":\"sample \($0) says what it has to\"}\n" }.joined()
            for (name, bytes) in [
                ("blobs/model", tiny), ("blobs/other", tiny), ("blobs/lines", Array(lines.utf8)), ("jobs.db", [1]),
                ("jobs/other/checkpoint", [1]), ("jobs/own/mine", [1]),
            ] {
                #expect(FileManager.default.createFile(atPath: directory.path + "/" + name, contents: Data(bytes)))
            }
            return directory
        }

        func training() -> WorkOrder {
            var request = KillTests.request("t")
            request.maxSteps = 2
            request.valSetSize = 0
            return .train(
                .init(
                    job: "j", request: request, modelPath: model, modelDigest: "sha256:0",
                    datasetPaths: [path + "/blobs/lines"], directory: own, budgetBytes: 500 << 20, budgetReason: nil,
                    defaultSaveSteps: 1))
        }
    }

    struct Taken {
        /// `VERB PATH` to what came of it.
        var answers: [String: String] = [:]
        var messages: [WorkMessage] = []
        var signal: Int32?
    }

    /// Runs the worker with a descriptor 9 that it should not have got.
    static func run(_ order: WorkOrder, attempts: [String], own: String = "") throws -> Taken {
        let built = try TemporaryDirectory()
        let library = built.path + "/probe.so"
        let (code, text) = try Command.run("/usr/bin/env", [
            "clang", "-O1", "-shared", "-fPIC", "-o", library, TestModel.repositoryRoot + "/Tests/SandboxProbe/probe.c",
        ])
        try #require(code == 0, "\(text)")
        let process = Process()
        process.executableURL = URL(filePath: "/bin/sh")
        process.arguments = ["-c", "exec 9</etc/passwd; LD_PRELOAD='\(library)' exec '\(DaemonProcess.binary)' work"]
        process.environment = ["PATH": "/usr/bin:/bin", "EDGE_PROBE": attempts.joined(separator: "\n"), "EDGE_PROBE_OWN": own]
        let (input, output, errors) = (Pipe(), Pipe(), built.path + "/stderr")
        _ = FileManager.default.createFile(atPath: errors, contents: nil)
        process.standardInput = input
        process.standardOutput = output
        process.standardError = FileHandle(forWritingAtPath: errors)
        try process.run()
        try input.fileHandleForWriting.write(contentsOf: Wire.encoder().encode(order) + Data("\n".utf8))
        let said = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        var taken = Taken()
        taken.messages = try said.split(separator: UInt8(ascii: "\n")).map {
            try Wire.decoder().decode(WorkMessage.self, from: $0)
        }
        taken.signal = process.terminationReason == .uncaughtSignal ? process.terminationStatus : nil
        for line in try String(contentsOfFile: errors, encoding: .utf8).split(separator: "\n") {
            guard line.hasPrefix("probe "), let colon = line.range(of: ": ", options: .backwards) else { continue }
            taken.answers[String(line[..<colon.lowerBound].dropFirst("probe ".count))] = String(line[colon.upperBound...])
        }
        return taken
    }

    @Test("a worker that was taken over reaches the files of its order and no others", .enabled(if: landlockVersion > 0))
    func filesOfTheOrderOnly() throws {
        let state = try State()
        let (path, own) = (state.path, state.own)
        let expected = [
            "read \(state.model)": "done", "read \(path)/blobs/lines": "done", "write \(own)/new": "done",
            "list \(own)": "done", "read /proc/self/status": "done",
            "read \(path)/blobs/other": "EACCES", "read \(path)/jobs.db": "EACCES",
            "read \(path)/jobs/other/checkpoint": "EACCES", "read /etc/passwd": "EACCES", "read /proc/1/status": "EACCES",
            "read /proc/\(getpid())/status": "EACCES", "read \(own)/../other/checkpoint": "EACCES",
            "write \(state.model)": "EACCES", "write \(path)/blobs/new": "EACCES", "write /tmp/edge-probe": "EACCES",
            "write /proc/self/oom_score_adj": "EACCES", "list \(path)/jobs": "EACCES", "list /": "EACCES",
            "remove \(path)/jobs/other/checkpoint": "EACCES", "remove \(state.model)": "EACCES",
            "move-to \(path)/jobs/other/mine": "EACCES",
            // Not Landlock's: a link would have the daemon read for it, a mode would shut the daemon out.
            "symlink \(own)/link": "EPERM", "link \(own)/link": "EPERM", "fifo \(own)/fifo": "EPERM",
            "chmod \(path)/jobs.db": "EPERM", "truncate \(path)/jobs.db": "EPERM",
            // The shell had opened it.
            "descriptor 9": "EBADF",
        ]
        let taken = try Self.run(state.training(), attempts: expected.keys.sorted(), own: own + "/mine")
        for (attempt, answer) in expected { #expect(taken.answers[attempt] == answer, "\(attempt)") }
        // And after all that the order is done.
        guard case .trained = taken.messages.last else { throw TestFailure("\(taken.messages)") }
        #expect(FileManager.default.fileExists(atPath: own + "/adapter/adapter_model.safetensors.lz4"))
        let isLogged = taken.messages.contains { message in
            if case .log(let text) = message { text.contains("Landlock \(landlockVersion)") } else { false }
        }
        #expect(isLogged, "\(taken.messages)")
    }

    @Test func aWorkerThatWasTakenOverReachesNoNetworkAndNoProcess() throws {
        let state = try State()
        let expected = [
            "unix-socket": "EPERM", "inet-socket": "EPERM", "fork": "EPERM", "clone3": "ENOSYS", "signal-parent": "EPERM",
            "limit-parent": "EPERM", "outlive-parent": "EPERM", "executable-memory": "EPERM", "core": "EPERM",
            "unknown-call": "ENOSYS", "thread": "done",
        ]
        let taken = try Self.run(.inspectModel(path: state.model), attempts: expected.keys.sorted())
        for (attempt, answer) in expected { #expect(taken.answers[attempt] == answer, "\(attempt)") }
        guard case .inspectedModel = taken.messages.last else { throw TestFailure("\(taken.messages)") }
    }

    @Test(arguments: ["exec", "ptrace", "peek", "io_uring", "bpf", "mount", "namespace", "keys"])
    func whatOnlyAnIntruderAsksForEndsTheWorker(_ attempt: String) throws {
        let state = try State()
        let taken = try Self.run(.inspectModel(path: state.model), attempts: [attempt])
        #expect(taken.signal == SIGSYS && taken.answers.isEmpty && taken.messages.isEmpty, "\(taken)")
        let problem = WorkerEnd.signalled(SIGSYS).problem(last: nil, stderr: "")
        #expect(problem?.kind == .workerCrashed && problem?.detail.contains("system call") == true)
    }

    @Test func everyThreadOfARunIsConfinedAndItsDescriptorsAreItsOwn() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        var request = KillTests.request("long")
        request.maxSteps = 100_000
        request.threads = 2
        let job = try daemon.post(Endpoint.jobs, request).decoded(JobStatus.self)
        _ = try daemon.wait(for: job.id) { $0.progress != nil }
        let worker = try #require(KillTests.children(of: daemon.process.processIdentifier).first)
        let tasks = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(worker)/task")
        #expect(tasks.count >= 4)  // itself, the reader of stdin, the memory watch, a thread of products
        for task in tasks {
            let status = try String(contentsOfFile: "/proc/\(worker)/task/\(task)/status", encoding: .utf8)
            #expect(status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n"), "\(status)")
        }
        let limits = try String(contentsOfFile: "/proc/\(worker)/limits", encoding: .utf8)
        let core = limits.split(separator: "\n").first { $0.hasPrefix("Max core file size") }
        #expect(core?.split(separator: " ").suffix(3).first == "0", "\(limits)")
        let files = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(worker)/fd").compactMap { name in
            try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(worker)/fd/\(name)")
        }
        let state = directory.path + "/state/"
        for file in files {
            let isExpected = ["pipe:", "/proc/"].contains { file.hasPrefix($0) }
                || ["blobs/", "jobs/\(job.id)"].contains { file.hasPrefix(state + $0) }
            #expect(isExpected, "\(file)")
        }
        let log = try daemon.call("GET", Endpoint.jobLog(job.id)).text
        #expect(log.contains("sandbox: "), "\(log)")
        #expect(try daemon.call("POST", Endpoint.jobAction(job.id, .cancel)).status == 200)
    }
}
