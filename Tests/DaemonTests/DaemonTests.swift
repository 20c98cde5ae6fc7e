// The real binary on a real socket. Its workers are scripts, so that what is tested here is the daemon.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

/// SHA-256 of "abc".
let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

func upload(_ daemon: DaemonProcess) throws {
    _ = try daemon.call(
        "PATCH", Endpoint.blob(abc), headers: [Header.uploadOffset: "0", Header.uploadLength: "3"], body: Data("abc".utf8))
    #expect(try daemon.post(Endpoint.models, ImportRequest(name: "m", blob: abc)).status == 201)
    #expect(try daemon.post(Endpoint.datasets, ImportRequest(name: "d", blob: abc)).status == 201)
}

private func request(_ name: String) -> JobRequest {
    var request = JobRequest(baseModel: "m", datasets: [DatasetReference(path: "d")])
    request.name = name
    return request
}

func submit(_ name: String, to daemon: DaemonProcess) throws -> JobStatus {
    let answer = try daemon.post(Endpoint.jobs, request(name))
    #expect(answer.status == 201, "\(answer.text)")
    return try answer.decoded(JobStatus.self)
}

@Suite(.serialized) struct DaemonTests {
    @Test func healthAndStatusAnswer() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        let health = try daemon.call("GET", Endpoint.health)
        #expect(health.status == 200)
        #expect(health.headers["edgetune-api-version"] == Endpoint.version)
        #expect(try daemon.call("GET", Endpoint.status).decoded(HostStatus.self).cores >= 1)
        var status = stat()
        #expect(stat(daemon.socket, &status) == 0 && status.st_mode & 0o777 == 0o660)
    }

    @Test(arguments: [
        ("GET", "/v1/nothing", nil, 404, "not-found"),
        ("GET", "/v1/jobs/j-000000000000", nil, 404, "not-found"),
        ("PUT", "/v1/jobs", nil, 405, "bad-request"),
        ("POST", "/v1/jobs", "{", 400, "bad-request"),
        ("POST", "/v1/jobs", "{\"base_model\":1,\"datasets\":[]}", 400, "bad-request"),
        ("POST", "/v1/jobs", "{\"base_model\":\"m\",\"datasets\":[],\"lora_rr\":1}", 400, "unknown-key"),
        ("POST", "/v1/jobs", "{\"base_model\":\"m\",\"datasets\":[{\"path\":\"d\"}],\"lora_r\":0}", 422, "invalid-value"),
        ("POST", "/v1/jobs", "{\"base_model\":\"m\",\"datasets\":[{\"path\":\"d\"}]}", 404, "not-found"),
        ("GET", "/v1/jobs?state=lost", nil, 422, "invalid-value"),
        ("GET", "/v1/blobs/sha256:..%2f..%2fetc%2fpasswd", nil, 422, "invalid-value"),
        ("GET", "/v1/adapters/x/files/..%2f..%2fjobs.db", nil, 404, "not-found"),
    ] as [(String, String, String?, Int, String)])
    func everyErrorIsAProblem(method: String, path: String, body: String?, status: Int, type: String) throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        let answer = try daemon.call(method, path, body: body.map { Data($0.utf8) })
        #expect(answer.status == status)
        #expect(answer.headers["content-type"] == Header.problemType)
        let problem = try answer.decoded(Problem.self)
        #expect(problem.type == Problem.typePrefix + type)
        #expect(problem.status == status)
        if type == "unknown-key" { #expect(problem.hint == "did you mean \"lora_r\"?") }
    }

    @Test func aBodyOverTheLimitAndABrowserAreRefused() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        let large = Data(repeating: 32, count: WireLimit.bodyBytes + 1)
        #expect(try daemon.call("POST", Endpoint.jobs, body: large).status == 413)
        #expect(try daemon.call("GET", Endpoint.jobs, headers: ["Origin": "http://x"]).status == 403)
        #expect(try daemon.call("GET", Endpoint.jobs, headers: ["Referer": "http://x"]).status == 403)
    }

    @Test func anUploadGoesOnWhereItStoppedAlsoAfterARestart() throws {
        let directory = try TemporaryDirectory()
        let headers = { (offset: Int) in [Header.uploadOffset: "\(offset)", Header.uploadLength: "3"] }
        do {
            let daemon = try DaemonProcess(in: directory.path)
            let answer = try daemon.call("PATCH", Endpoint.blob(abc), headers: headers(0), body: Data("a".utf8))
            #expect(try answer.decoded(BlobStatus.self) == BlobStatus(digest: abc, receivedBytes: 1, complete: false))
            daemon.killNow()
        }
        let daemon = try DaemonProcess(in: directory.path)
        #expect(try daemon.call("GET", Endpoint.blob(abc)).decoded(BlobStatus.self).receivedBytes == 1)
        #expect(try daemon.call("PATCH", Endpoint.blob(abc), headers: headers(0), body: Data("a".utf8)).status == 409)
        let last = try daemon.call("PATCH", Endpoint.blob(abc), headers: headers(1), body: Data("bc".utf8))
        #expect(try last.decoded(BlobStatus.self).complete)
    }

    @Test func aJobRunsAndItsAdapterIsFetchedAndRemoved() throws {
        let directory = try TemporaryDirectory()
        let worker = try FakeWorker.write(in: directory.path, train: FakeWorker.succeed())
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        try upload(daemon)
        let job = try submit("a", to: daemon)
        let done = try daemon.wait(for: job.id) { $0.state.isFinal }
        #expect(done.state == .succeeded && done.adapter == "a")
        let record = try daemon.call("GET", Endpoint.adapter("a")).decoded(AdapterRecord.self)
        #expect(record.files.map(\.name) == ["adapter_model.safetensors.lz4"])
        #expect(try daemon.call("GET", Endpoint.adapterFile("a", "adapter_model.safetensors.lz4")).text == "tensors\n")
        #expect(try daemon.call("GET", Endpoint.adapterFile("a", "adapter.gguf")).text == "made\n")
        #expect(try daemon.post(Endpoint.jobs, request("a")).status == 409)
        // The job goes, the adapter stays; then the adapter goes.
        #expect(try daemon.call("DELETE", Endpoint.job(job.id)).status == 204)
        #expect(try daemon.call("GET", Endpoint.adapterFile("a", "adapter_model.safetensors.lz4")).status == 200)
        #expect(try daemon.call("DELETE", Endpoint.adapter("a")).status == 204)
        #expect(try daemon.call("GET", Endpoint.adapter("a")).status == 404)
        #expect(!FileManager.default.fileExists(atPath: directory.path + "/state/jobs/" + job.id))
    }

    @Test func eventsEndWithEndAndResumeFromACursor() throws {
        let directory = try TemporaryDirectory()
        let worker = try FakeWorker.write(in: directory.path, train: "sleep 0.3\n" + FakeWorker.succeed())
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        try upload(daemon)
        let job = try submit("a", to: daemon)
        // Follows the running job to its end.
        let answer = try daemon.call("GET", Endpoint.jobEvents(job.id) + "?after=0&follow=1")
        #expect(answer.headers["content-type"] == Header.jsonLines)
        let events = try answer.text.split(separator: "\n").map {
            try Wire.decoder().decode(JobEvent.self, from: Data($0.utf8))
        }
        #expect(events.map(\.seq) == Array(1...events.count))
        #expect(events.last?.event == .end(.succeeded))
        let rest = try daemon.call("GET", Endpoint.jobEvents(job.id) + "?after=\(events.count - 1)").text
        #expect(rest.split(separator: "\n").count == 1)
        let none = try daemon.call("GET", Endpoint.jobEvents(job.id) + "?after=\(events.count)").text
        #expect(none.contains("\"end\""))
    }

    @Test func aReaderWhoNeverReadsDoesNotHoldAnythingUp() throws {
        let directory = try TemporaryDirectory()
        let many = "i=0; while [ $i -lt 3000 ]; do echo '\(try FakeWorker.step(1))'; i=$((i+1)); done\n"
        let worker = try FakeWorker.write(in: directory.path, train: many + FakeWorker.succeed())
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        try upload(daemon)
        let job = try submit("a", to: daemon)
        let silent = try RawHTTP.connect(daemon.socket)
        defer { close(silent) }
        RawHTTP.send(RawHTTP.request("GET", Endpoint.jobEvents(job.id)), to: silent)
        #expect(try daemon.wait(for: job.id) { $0.state.isFinal }.state == .succeeded)
    }

    @Test func theSameKeyMakesOneJob() throws {
        let directory = try TemporaryDirectory()
        let worker = try FakeWorker.write(in: directory.path, train: FakeWorker.waitForStop())
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        try upload(daemon)
        let key = [Header.idempotencyKey: "k"]
        let first = try daemon.post(Endpoint.jobs, request("a"), headers: key)
        let again = try daemon.post(Endpoint.jobs, request("a"), headers: key)
        #expect(first.status == 201 && again.status == 200)
        #expect(try first.decoded(JobStatus.self).id == again.decoded(JobStatus.self).id)
        #expect(try daemon.post(Endpoint.jobs, request("b"), headers: key).status == 409)
        #expect(try daemon.call("GET", Endpoint.jobs).decoded(JobList.self).jobs.count == 1)
    }

    @Test func aJobThatCannotFitIsRefusedAtSubmitWithTheNumbers() throws {
        let directory = try TemporaryDirectory()
        let worker = try FakeWorker.write(in: directory.path, train: FakeWorker.succeed())
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        try upload(daemon)
        let answer = try daemon.post(Endpoint.jobs, request("toolarge"))
        #expect(answer.status == 422)
        #expect(try answer.decoded(Problem.self).requiredBytes == 9 << 20)
        #expect(try daemon.call("GET", Endpoint.jobs).decoded(JobList.self).jobs.isEmpty)
    }

    @Test func aSecondGenerationIsToldToWait() throws {
        let directory = try TemporaryDirectory()
        let worker = try FakeWorker.write(in: directory.path, train: FakeWorker.succeed())
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        try upload(daemon)
        let body = try Wire.encoder().encode(
            GenerateRequest(model: "m", adapter: nil, messages: [ChatMessage(role: "user", content: "hi")]))
        let first = try RawHTTP.connect(daemon.socket)
        defer { close(first) }
        RawHTTP.send(RawHTTP.request("POST", Endpoint.generate, body: body), to: first)
        usleep(150_000)
        #expect(try daemon.call("POST", Endpoint.generate, body: body).status == 429)
        let lines = try RawHTTP.answer(try RawHTTP.readAll(first)).text.split(separator: "\n")
        let events = try lines.map { try Wire.decoder().decode(GenerateEvent.self, from: Data($0.utf8)) }
        #expect(events.map(\.text) == ["hello", nil])
        #expect(events.last?.done == true && events.last?.problem == nil)
    }

    @Test func terminationPutsTheRunningJobBackAndTheNextStartResumesIt() throws {
        let directory = try TemporaryDirectory()
        let stop = try FakeWorker.write(in: directory.path, train: FakeWorker.waitForStop())
        let job: JobStatus
        do {
            let daemon = try DaemonProcess(in: directory.path, workerExecutable: stop)
            try upload(daemon)
            job = try submit("a", to: daemon)
            _ = try daemon.wait(for: job.id) { $0.progress != nil }
            #expect(daemon.terminate() == 0)
            #expect(!FileManager.default.fileExists(atPath: daemon.socket))
        }
        let finish = try FakeWorker.write(in: directory.path, train: FakeWorker.succeed())
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: finish)
        let done = try daemon.wait(for: job.id) { $0.state.isFinal }
        #expect(done.state == .succeeded && done.runs == 2)
    }

    @Test func aKilledDaemonResumesItsJobs() throws {
        let directory = try TemporaryDirectory()
        let worker = try FakeWorker.write(in: directory.path, train: "sleep 0.2\n" + FakeWorker.succeed())
        var jobs: [JobStatus] = []
        do {
            let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
            try upload(daemon)
            jobs = try (0..<3).map { try submit("a\($0)", to: daemon) }
            _ = try daemon.wait(for: jobs[0].id) { $0.state != .queued }
            daemon.killNow()
        }
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        for job in jobs { #expect(try daemon.wait(for: job.id) { $0.state.isFinal }.state == .succeeded) }
    }

    @Test func aConfigurationMistakeIsNamedWithItsLine() throws {
        let directory = try TemporaryDirectory()
        let file = directory.path + "/c.yaml"
        try "threads: 2\nmemory_bugdet: 50%\n".write(toFile: file, atomically: true, encoding: .utf8)
        let (code, text) = try Command.run(DaemonProcess.binary, ["serve", "--check-config", "--config", file])
        #expect(code == 78)
        #expect(text.contains("line 2") && text.contains("did you mean \"memory_budget\"?"))
    }
}
