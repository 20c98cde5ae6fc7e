// Bytes in and out: uploads that survive a bad connection, exports that are whole or not there, streamed text.
import EdgeWire
import Foundation
import Synchronization
import Testing

private let moment = Date(timeIntervalSince1970: 1_760_000_000)

private func withDirectory(_ body: (String) throws -> Void) throws {
    let directory = temporaryDirectory()
    defer { try? FileManager.default.removeItem(atPath: directory) }
    try body(directory)
}

/// Holds what was uploaded, loses the first connections, and answers the rest of a submit.
private final class UploadDaemon: Sendable {
    let blob = Mutex<[UInt8]>([])
    let patches = Mutex(0)
    let posts = Mutex(0)

    func answer(_ request: Request) -> Reply {
        let digest = request.path.split(separator: "/").last.map(String.init) ?? ""
        switch request.method + " " + request.path.split(separator: "/").prefix(2).joined(separator: "/") {
        case "GET v1/models": return .value(ModelList(models: []))
        case "GET v1/blobs":
            let count = blob.withLock { $0.count }
            guard count > 0 else { return .problem(.notFound, "no blob") }
            return .value(BlobStatus(digest: digest, receivedBytes: UInt64(count), complete: false))
        case "PATCH v1/blobs":
            let number = patches.withLock { patches in
                patches += 1
                return patches
            }
            if number == 1 {
                // A part arrived, the answer did not.
                blob.withLock { $0 += request.body.prefix(1000) }
                return .drop
            }
            let count = blob.withLock { blob in
                guard request.headers["upload-offset"] == "\(blob.count)" else { return -1 }
                blob += request.body
                return blob.count
            }
            guard count >= 0 else { return .problem(.conflict, "wrong offset") }
            return .value(BlobStatus(digest: digest, receivedBytes: UInt64(count), complete: true))
        case "POST v1/datasets":
            guard let order = try? Wire.decoder().decode(ImportRequest.self, from: Data(request.body)) else {
                return .drop
            }
            return .value(
                DatasetRecord(
                    name: order.name, blob: order.blob, bytes: 1, ownerUid: 1, createdAt: moment,
                    dataset: DatasetReport(samples: 1, kinds: [:])))
        case "POST v1/jobs":
            if posts.withLock({ posts in
                posts += 1
                return posts
            }) == 1 {
                return .drop
            }
            guard let asked = try? Wire.decoder().decode(JobRequest.self, from: Data(request.body)) else {
                return .drop
            }
            return .value(
                JobStatus(
                    id: "j-1", name: "n", state: .queued, reason: nil, ownerUid: 1, createdAt: moment, startedAt: nil,
                    finishedAt: nil, runs: 0, request: asked, progress: nil, plan: nil, problem: nil, adapter: nil))
        case "POST v1/plan":
            return .value(
                PlanReport(
                    pools: [.init(name: "adapters", bytes: 5 << 20), .init(name: "panels", bytes: 3 << 30)],
                    peakBytes: 300 << 20, budgetBytes: 900 << 20, choices: ["recompute every layer"], precision: .int8,
                    trainableParameters: 7, samples: 90, heldOutSamples: 10, tooLongSamples: 2, tooLongLines: [4, 8],
                    totalSteps: 33))
        default: return .problem(.notFound, request.route)
        }
    }
}

@Suite struct SubmitTests {
    @Test func anUploadGoesOnAfterALostConnectionAndTheJobIsSubmittedOnce() throws {
        try withDirectory { directory in
            // Two pieces and a bit, with no period that the pieces have.
            let content = (0..<(9 << 20)).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 11) }
            try Data(content).write(to: URL(fileURLWithPath: directory + "/my train.jsonl"))
            try "base_model: m\ndatasets:\n  - path: my train.jsonl\nlora_r: 4\n"
                .write(toFile: directory + "/job.yaml", atomically: false, encoding: .utf8)
            let state = UploadDaemon()
            let daemon = ScriptedDaemon { state.answer($0) }
            let outcome = try Edgetune.run(
                ["submit", directory + "/job.yaml", "--lora-r", "8", "--json"], daemon: daemon)
            #expect(outcome.code == 0, "\(outcome.err)")
            #expect(state.blob.withLock { $0 } == content)

            let sum = Process()
            let pipe = Pipe()
            sum.executableURL = URL(fileURLWithPath: "/usr/bin/sha256sum")
            sum.arguments = [directory + "/my train.jsonl"]
            sum.standardOutput = pipe
            try sum.run()
            let digest = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile().prefix(64), as: UTF8.self)
            sum.waitUntilExit()
            #expect(daemon.routes.contains("GET /v1/blobs/sha256:\(digest)"))

            let asked = try Wire.decoder().decode(JobStatus.self, from: Data(outcome.out.utf8)).request
            #expect(asked.loraR == 8)
            #expect(asked.datasets.map(\.path) == ["my-train-\(digest.prefix(8))"])
            let keys = daemon.requests.filter { $0.route == "POST /v1/jobs" }.map { $0.headers["idempotency-key"] }
            #expect(keys.count == 2 && keys[0] == keys[1] && keys[0] != nil)
            #expect(daemon.requests.allSatisfy { $0.body.count <= 4 << 20 })
        }
    }

    @Test func aDryRunShowsThePlanAndSubmitsNothing() throws {
        let state = UploadDaemon()
        let daemon = ScriptedDaemon { state.answer($0) }
        let outcome = try Edgetune.run(
            ["submit", "--base-model", "m", "--dataset", "held", "--dry-run"], daemon: daemon)
        #expect(outcome.code == 0)
        for text in ["5.0 MiB", "3.00 GiB", "300.0 MiB of 900.0 MiB allowed", "recompute every layer", "lines 4, 8"] {
            #expect(outcome.out.contains(text))
        }
        #expect(!daemon.routes.contains("POST /v1/jobs"))
    }

    @Test func aPathThatIsNotThereIsNotTakenForAName() throws {
        let state = UploadDaemon()
        let daemon = ScriptedDaemon { state.answer($0) }
        let outcome = try Edgetune.run(
            ["submit", "--base-model", "m", "--dataset", "no/such.jsonl"], daemon: daemon)
        #expect(outcome.code == 5)
        #expect(outcome.err.contains("no/such.jsonl is neither a file nor the name of a data set"))
    }
}

@Suite struct ExportTests {
    private func daemon(files: [String] = ["training.json"]) -> ScriptedDaemon {
        let record = AdapterRecord(
            name: "a", job: "j", baseModel: "m", ownerUid: 1, createdAt: moment, path: "/p",
            files: files.map { AdapterRecord.File(name: $0, bytes: 1) })
        return ScriptedDaemon { request in
            request.path == "/v1/adapters/a" ? .value(record) : .bytes(Array("<\(request.path)>".utf8))
        }
    }

    @Test func peftIsADirectoryWithItsFourFiles() throws {
        try withDirectory { directory in
            let path = directory + "/out"
            let outcome = try Edgetune.run(["export", "a", "--format", "peft", "--output", path], daemon: daemon())
            #expect(outcome.code == 0)
            #expect(
                try FileManager.default.contentsOfDirectory(atPath: path).sorted()
                    == ["README.md", "adapter_config.json", "adapter_model.safetensors", "training.json"])
            #expect(
                try String(contentsOfFile: path + "/training.json", encoding: .utf8)
                    == "</v1/adapters/a/files/training.json>")
            #expect(try FileManager.default.contentsOfDirectory(atPath: directory) == ["out"])
        }
    }

    @Test func whatIsThereIsReplacedOnlyByForce() throws {
        try withDirectory { directory in
            let path = directory + "/a.gguf"
            try "old".write(toFile: path, atomically: false, encoding: .utf8)
            let arguments = ["export", "a", "--format", "gguf", "-o", path]
            let refused = try Edgetune.run(arguments, daemon: daemon())
            #expect(refused.code == 6)
            #expect(try String(contentsOfFile: path, encoding: .utf8) == "old")
            #expect(try Edgetune.run(arguments + ["--force"], daemon: daemon()).code == 0)
            #expect(try String(contentsOfFile: path, encoding: .utf8) == "</v1/adapters/a/files/adapter.gguf>")
            #expect(try FileManager.default.contentsOfDirectory(atPath: directory) == ["a.gguf"])
        }
    }

    @Test(arguments: ["../escaped", "/tmp/escaped", ".."]) func aFileNameCannotLeaveTheDirectory(_ name: String) throws
    {
        try withDirectory { directory in
            let outcome = try Edgetune.run(
                ["export", "a", "--format", "artifact", "-o", directory + "/out"], daemon: daemon(files: [name]))
            #expect(outcome.code == 1)
            #expect(try FileManager.default.contentsOfDirectory(atPath: directory).isEmpty)
        }
    }

    @Test func aBrokenTransferLeavesNothing() throws {
        try withDirectory { directory in
            let record = AdapterRecord(
                name: "a", job: "j", baseModel: "m", ownerUid: 1, createdAt: moment, path: "/p", files: [])
            let daemon = ScriptedDaemon {
                $0.path == "/v1/adapters/a" ? .value(record) : .chunks(["half"], isCut: true)
            }
            let outcome = try Edgetune.run(
                ["export", "a", "--format", "peft", "-o", directory + "/out"], daemon: daemon)
            #expect(outcome.code == 7)
            #expect(try FileManager.default.contentsOfDirectory(atPath: directory).isEmpty)
        }
    }
}

@Suite struct GenerateTests {
    private func line(_ event: GenerateEvent) -> String {
        String(decoding: (try? Wire.encoder().encode(event)) ?? Data(), as: UTF8.self) + "\n"
    }

    @Test func textIsStreamedAndCannotControlTheTerminal() throws {
        let lines = [
            line(GenerateEvent(text: "Hel\u{1B}[3")), line(GenerateEvent(text: "1mlo\n\tü\u{8}")),
            line(GenerateEvent(done: true, generatedTokens: 3)),
        ]
        let daemon = ScriptedDaemon { _ in .chunks(lines, isCut: false) }
        let outcome = try Edgetune.run(
            ["generate", "--model", "m", "--system", "s", "--max-tokens", "9"], daemon: daemon, input: "question\n")
        #expect(outcome.code == 0 && outcome.out == "Hello\n\tü\n")
        let asked = try Wire.decoder().decode(GenerateRequest.self, from: Data(daemon.requests[0].body))
        #expect(
            asked.messages == [
                ChatMessage(role: "system", content: "s"), ChatMessage(role: "user", content: "question"),
            ])
        #expect(asked.maxTokens == 9)
    }

    @Test func aProblemInTheStreamIsAFailure() throws {
        let lines = [
            line(GenerateEvent(text: "a")),
            line(GenerateEvent(done: true, problem: Problem(.insufficientMemory, "full"))),
        ]
        let daemon = ScriptedDaemon { _ in .chunks(lines, isCut: false) }
        #expect(try Edgetune.run(["generate", "--model", "m", "--prompt", "p"], daemon: daemon).code == 8)
    }

    @Test func textWithoutItsEndIsALostConnection() throws {
        let daemon = ScriptedDaemon { _ in .chunks(["{\"done\":false,\"text\":\"a\"}\n"], isCut: true) }
        #expect(try Edgetune.run(["generate", "--model", "m", "--prompt", "p"], daemon: daemon).code == 7)
    }
}
