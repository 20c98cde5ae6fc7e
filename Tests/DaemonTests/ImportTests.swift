// Models of several files in the real daemon, with workers that are scripts: what is kept, what is released, and what a
// kill at any moment leaves.
import EdgeFormats
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct ImportTests {
    /// Uploads each text and returns the files of a model with them.
    static func send(_ files: [(name: String, text: String)], to daemon: DaemonProcess) throws -> [ModelFile] {
        try files.map { name, text in
            let digest = "sha256:" + Array(text.utf8).withUnsafeBytes { SHA256.hex(SHA256.hash($0)) }
            let answer = try daemon.call(
                "PATCH", Endpoint.blob(digest),
                headers: [Header.uploadOffset: "0", Header.uploadLength: "\(text.utf8.count)"], body: Data(text.utf8))
            #expect(answer.status == 200, "\(answer.text)")
            return ModelFile(name: name, blob: digest)
        }
    }

    static let parts = [(name: "a-00001-of-00002.gguf", text: "one"), (name: "a-00002-of-00002.gguf", text: "two")]

    static func wait(
        for name: String, on daemon: DaemonProcess, until condition: (ModelImportStatus) -> Bool
    ) throws -> ModelImportStatus {
        let deadline = Date().addingTimeInterval(20)
        var last = ""
        while Date() < deadline {
            let answer = try daemon.call("GET", Endpoint.modelImport(name))
            let status = try answer.decoded(ModelImportStatus.self)
            if condition(status) { return status }
            last = answer.text
            usleep(20_000)
        }
        throw TestFailure("the import of \(name) stayed: \(last)\n\(daemon.log)")
    }

    static func isOver(_ status: ModelImportStatus) -> Bool { status.state == .done || status.state == .failed }

    static func entries(_ directory: String, of daemon: DaemonProcess) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: "\(daemon.directory)/state/\(directory)").sorted()
    }

    /// Whether a directory comes to hold so many: what is not needed any more goes after the answer.
    static func comes(to count: Int, _ directory: String, of daemon: DaemonProcess) throws -> Bool {
        let deadline = Date().addingTimeInterval(20)
        while try entries(directory, of: daemon).count != count {
            guard Date() < deadline else { return false }
            usleep(20_000)
        }
        return true
    }

    @Test func severalFilesBecomeOneModelAndAreReleased() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: try FakeWorker.write(in: directory.path))
        let files = try Self.send(Self.parts, to: daemon)
        let request = ModelRequest(name: "m", files: files, source: "hf:a/b@c")
        let answer = try daemon.post(Endpoint.models, request)
        #expect(answer.status == 202, "\(answer.text)")
        let done = try Self.wait(for: "m", on: daemon, until: Self.isOver)
        let record = try #require(done.record, "\(done)")
        #expect(record.files == files && record.source == "hf:a/b@c")
        // `echo made | sha256sum`
        #expect(record.blob == "sha256:9ccbd3f1b19a1cdfd8d7c6ae48e9e822e2345f5be1a6187b19e41486c6941004")
        #expect(try Self.comes(to: 1, "blobs", of: daemon))
        #expect(try Self.entries("blobs", of: daemon) == ["sha256-" + record.blob.dropFirst(7)])
        #expect(try Self.comes(to: 0, "imports", of: daemon))
        #expect(try daemon.call("GET", Endpoint.model("m")).decoded(ModelRecord.self) == record)
        #expect(try daemon.call("GET", Endpoint.models).decoded(ModelList.self).imports == nil)
        // The same request finds its model, without the files.
        let again = try daemon.post(Endpoint.models, request)
        #expect(again.status == 200)
        #expect(try again.decoded(ModelImportStatus.self).record == record)
        #expect(try daemon.call("DELETE", Endpoint.model("m")).status == 204)
        #expect(try Self.comes(to: 0, "blobs", of: daemon))
    }

    @Test(arguments: [
        "", ".", "..", "../a", "a/b", "/etc/passwd", "a\0b", "a\nb", "a..b", String(repeating: "x", count: 256),
    ])
    func aNameThatCouldBeAPathIsRefused(_ name: String) throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: try FakeWorker.write(in: directory.path))
        let file = try Self.send([("good", "one")], to: daemon)[0]
        let answer = try daemon.post(
            Endpoint.models, ModelRequest(name: "m", files: [file, ModelFile(name: name, blob: file.blob)]))
        #expect(answer.status == 422)
        #expect(try answer.decoded(Problem.self).kind == .invalidValue)
    }

    @Test func tooManyFilesDuplicatesAndMissingBlobsAreRefused() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: try FakeWorker.write(in: directory.path))
        let file = try Self.send([("a", "one")], to: daemon)[0]
        func status(_ files: [ModelFile]) throws -> Int {
            try daemon.post(Endpoint.models, ModelRequest(name: "m", files: files)).status
        }
        #expect(try status([]) == 422)
        #expect(try status([file, file]) == 422)
        #expect(try status((0...1000).map { ModelFile(name: "f\($0)", blob: file.blob) }) == 422)
        #expect(try status([ModelFile(name: "a", blob: "sha256:" + String(repeating: "0", count: 64))]) == 404)
        #expect(try status([ModelFile(name: "a", blob: "../a")]) == 422)
        let both = #"{"name":"m","blob":"\#(file.blob)","files":[]}"#
        #expect(try daemon.call("POST", Endpoint.models, body: Data(both.utf8)).status == 400)
        #expect(try daemon.call("POST", Endpoint.models, body: Data(#"{"name":"m"}"#.utf8)).status == 400)
        #expect(try daemon.call("GET", Endpoint.models).decoded(ModelList.self) == ModelList(models: []))
    }

    @Test func whatCannotBeAModelIsRefusedAtOnceAndItsFilesGo() throws {
        let directory = try TemporaryDirectory()
        let worker = try FakeWorker.write(
            in: directory.path, importPlan: .failure(Problem(.unsupportedModel, "architecture \"x\"")))
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        let files = try Self.send(Self.parts, to: daemon)
        let answer = try daemon.post(Endpoint.models, ModelRequest(name: "m", files: files))
        #expect(answer.status == 422)
        #expect(try answer.decoded(Problem.self).detail == "architecture \"x\"")
        #expect(try Self.comes(to: 0, "blobs", of: daemon))
        #expect(try daemon.call("GET", Endpoint.modelImport("m")).status == 404)
    }

    @Test(arguments: [
        (WorkMessage.plannedImport(outputBytes: 1 << 60, peakBytes: 1), Problem.Kind.insufficientDisk, UInt64(1 << 60)),
        (WorkMessage.plannedImport(outputBytes: 1, peakBytes: 1 << 50), .insufficientMemory, 1 << 50),
    ])
    func whatHasNoRoomIsRefusedWithTheNumbersAndKeepsItsFiles(
        _ plan: WorkMessage, _ kind: Problem.Kind, _ bytes: UInt64
    ) throws {
        let directory = try TemporaryDirectory()
        let worker = try FakeWorker.write(in: directory.path, importPlan: plan)
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        let files = try Self.send(Self.parts, to: daemon)
        let problem = try daemon.post(Endpoint.models, ModelRequest(name: "m", files: files)).decoded(Problem.self)
        #expect(problem.kind == kind)
        #expect((problem.requiredBytes ?? 0) >= bytes && (problem.budgetBytes ?? 0) < bytes)
        #expect(try Self.comes(to: 2, "blobs", of: daemon))
    }

    @Test func anImportThatFailsForGoodSaysWhyAndLeavesNoFile() throws {
        let directory = try TemporaryDirectory()
        let failure = try FakeWorker.line(.failure(Problem(.unsupportedModel, "tensor x is damaged")))
        let worker = try FakeWorker.write(in: directory.path, importing: "echo half > \"$out.part\"; echo '\(failure)'")
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        let files = try Self.send(Self.parts, to: daemon)
        #expect(try daemon.post(Endpoint.models, ModelRequest(name: "m", files: files)).status == 202)
        let failed = try Self.wait(for: "m", on: daemon, until: Self.isOver)
        #expect(failed.state == .failed && failed.problem?.detail == "tensor x is damaged")
        #expect(try Self.comes(to: 0, "blobs", of: daemon) && Self.comes(to: 0, "imports", of: daemon))
        #expect(try daemon.call("GET", Endpoint.models).decoded(ModelList.self).imports?.map(\.state) == [.failed])
        #expect(try daemon.call("DELETE", Endpoint.model("m")).status == 204)
        #expect(try daemon.call("GET", Endpoint.models).decoded(ModelList.self) == ModelList(models: []))
    }

    @Test func aKilledWorkerFailsTheImportAndTheNextTryGoesOn() throws {
        let directory = try TemporaryDirectory()
        // The first worker is killed in the middle; the second finds what the first wrote.
        let worker = try FakeWorker.write(
            in: directory.path,
            importing: "if [ ! -e \"$out.half\" ]; then echo half > \"$out.half\"; kill -9 $$; fi\n"
                + "rm \"$out.half\"\n" + FakeWorker.makeModel())
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        let files = try Self.send(Self.parts, to: daemon)
        let request = ModelRequest(name: "m", files: files)
        #expect(try daemon.post(Endpoint.models, request).status == 202)
        let failed = try Self.wait(for: "m", on: daemon, until: Self.isOver)
        #expect(failed.problem?.kind == .workerKilled)
        #expect(try Self.comes(to: 2, "blobs", of: daemon))
        #expect(try daemon.post(Endpoint.models, request).status == 202)
        #expect(try Self.wait(for: "m", on: daemon) { $0.state == .done }.record?.files == files)
        #expect(try Self.comes(to: 0, "imports", of: daemon) && Self.comes(to: 1, "blobs", of: daemon))
    }

    @Test func aKilledDaemonGoesOnWithTheImport() throws {
        let directory = try TemporaryDirectory()
        let slow = try FakeWorker.write(in: directory.path, importing: "echo half > \"$out.part\"; sleep 30")
        var files: [ModelFile] = []
        do {
            let daemon = try DaemonProcess(in: directory.path, workerExecutable: slow)
            files = try Self.send(Self.parts, to: daemon)
            #expect(try daemon.post(Endpoint.models, ModelRequest(name: "m", files: files)).status == 202)
            _ = try Self.wait(for: "m", on: daemon) { $0.state == .running }
            daemon.killNow()
        }
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: try FakeWorker.write(in: directory.path))
        #expect(try Self.wait(for: "m", on: daemon, until: Self.isOver).record?.files == files)
        #expect(try Self.comes(to: 0, "imports", of: daemon) && Self.comes(to: 1, "blobs", of: daemon))
    }

    @Test func aStoppedDaemonGoesOnWithTheImportToo() throws {
        let directory = try TemporaryDirectory()
        let slow = try FakeWorker.write(in: directory.path, importing: "sleep 30")
        do {
            let daemon = try DaemonProcess(in: directory.path, workerExecutable: slow)
            let files = try Self.send(Self.parts, to: daemon)
            #expect(try daemon.post(Endpoint.models, ModelRequest(name: "m", files: files)).status == 202)
            _ = try Self.wait(for: "m", on: daemon) { $0.state == .running }
            #expect(daemon.terminate() == 0)
        }
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: try FakeWorker.write(in: directory.path))
        #expect(try Self.wait(for: "m", on: daemon, until: Self.isOver).state == .done)
    }

    @Test func removingEndsAnImportAndTakesItsFiles() throws {
        let directory = try TemporaryDirectory()
        let slow = try FakeWorker.write(in: directory.path, importing: "echo half > \"$out.part\"; sleep 30")
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: slow)
        let files = try Self.send(Self.parts, to: daemon)
        #expect(try daemon.post(Endpoint.models, ModelRequest(name: "m", files: files)).status == 202)
        _ = try Self.wait(for: "m", on: daemon) { $0.state == .running }
        // Other files under its name are another model.
        let other = ModelRequest(name: "m", files: [files[0]])
        #expect(try daemon.post(Endpoint.models, other).status == 409)
        #expect(try daemon.post(Endpoint.models, ModelRequest(name: "m", blob: files[0].blob)).status == 409)
        #expect(try daemon.call("DELETE", Endpoint.model("m")).status == 204)
        #expect(try daemon.call("GET", Endpoint.modelImport("m")).status == 404)
        #expect(try Self.comes(to: 0, "imports", of: daemon) && Self.comes(to: 0, "blobs", of: daemon))
    }

    @Test func aStartRemovesWhatNobodyKnows() throws {
        let directory = try TemporaryDirectory()
        let worker = try FakeWorker.write(in: directory.path)
        let stray = "sha256-" + String(repeating: "0", count: 64)
        do {
            let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
            try upload(daemon)
            daemon.killNow()
        }
        let state = directory.path + "/state"
        try FileManager.default.createDirectory(atPath: state + "/imports/i-0", withIntermediateDirectories: true)
        try "half".write(toFile: state + "/imports/i-0/model.gguf", atomically: false, encoding: .utf8)
        try "stray".write(toFile: state + "/blobs/" + stray, atomically: false, encoding: .utf8)
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        #expect(try Self.comes(to: 0, "imports", of: daemon))
        #expect(try Self.comes(to: 1, "blobs", of: daemon))
        #expect(try daemon.call("GET", Endpoint.model("m")).status == 200)
    }
}
