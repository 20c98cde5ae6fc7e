// What is whose: two users of the group and the real daemon, route by route. A user sees of another's work that it is there,
// and nothing that is in it.
import EdgeFormats
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized, .enabled(if: OtherUser.isPossible)) struct OwnershipTests {
    static let (anna, ben) = (OtherUser(uid: 12345, group: "games"), OtherUser(uid: 12346, group: "games"))

    static func daemon(in directory: String, config more: String = "", worker: String? = nil) throws -> DaemonProcess {
        let config = directory + "/config.yaml"
        try "user_group: games\nadmin_group: mail\n\(more)".write(toFile: config, atomically: true, encoding: .utf8)
        let daemon = try DaemonProcess(in: directory, workerExecutable: worker, arguments: ["--config", config])
        chmod(directory, 0o755)
        chmod(daemon.socket, 0o666)
        return daemon
    }

    static func send(_ bytes: Data, _ daemon: DaemonProcess, as user: OtherUser) throws -> (digest: String, HTTPAnswer) {
        let digest = "sha256:" + bytes.withUnsafeBytes { SHA256.hex(SHA256.hash($0)) }
        return (
            digest,
            try daemon.call(
                as: user, "PATCH", Endpoint.blob(digest),
                headers: [Header.uploadOffset: "0", Header.uploadLength: "\(bytes.count)"], body: bytes)
        )
    }

    /// Anna has a model, a data set with a secret in it, a job with all of its names, and an adapter.
    static func prepare(_ daemon: DaemonProcess) throws -> JobStatus {
        let model = try send(Data(TestModel.goldens("tiny-llama.gguf")), daemon, as: anna).digest
        #expect(try daemon.post(as: anna, Endpoint.models, ImportRequest(name: "tiny", blob: model)).status == 201)
        let lines = (0..<24).map { "{\"text\":\"xylophone \($0) says what it has to\"}\n" }.joined()
        let dataset = try send(Data(lines.utf8), daemon, as: anna).digest
        #expect(try daemon.post(as: anna, Endpoint.datasets, ImportRequest(name: "lines", blob: dataset)).status == 201)
        var request = KillTests.request("annas-secret-name")
        request.maxSteps = 3
        let submitted = try daemon.post(as: anna, Endpoint.jobs, request)
        #expect(submitted.status == 201, "\(submitted.text)")
        return try daemon.wait(for: submitted.decoded(JobStatus.self).id) { $0.state.isFinal }
    }

    @Test func nothingThatIsAnothersCanBeReadOrUsed() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.daemon(in: directory.path)
        let job = try Self.prepare(daemon)
        #expect(job.state == .succeeded)
        let adapter = try #require(job.adapter)
        let refused: [(String, String)] = [
            ("GET", Endpoint.jobEvents(job.id) + "?follow=0"), ("GET", Endpoint.jobLog(job.id)),
            ("DELETE", Endpoint.job(job.id)), ("POST", Endpoint.jobAction(job.id, .cancel)),
            ("POST", Endpoint.jobAction(job.id, .pause)), ("POST", Endpoint.jobAction(job.id, .resume)),
            ("GET", Endpoint.adapter(adapter)), ("DELETE", Endpoint.adapter(adapter)),
            ("GET", Endpoint.adapterFile(adapter, "adapter_model.safetensors.lz4")),
            ("GET", Endpoint.adapterFile(adapter, "adapter_model.safetensors")),
            ("GET", Endpoint.adapterFile(adapter, "adapter.gguf")),
            ("GET", Endpoint.adapterFile(adapter, "training.json")), ("GET", Endpoint.dataset("lines")),
            ("DELETE", Endpoint.dataset("lines")), ("DELETE", Endpoint.model("tiny")),
        ]
        for (method, path) in refused {
            let answer = try daemon.call(as: Self.ben, method, path)
            #expect(answer.status == 403, "\(method) \(path): \(answer.status) \(answer.text)")
        }
        var request = KillTests.request("bens")
        for path in [Endpoint.plan, Endpoint.jobs] {
            #expect(try daemon.post(as: Self.ben, path, request).status == 403, "\(path) with another's data set")
        }
        let own = try Self.send(Data("{\"text\":\"of ben's own\"}\n{\"text\":\"and more\"}\n".utf8), daemon, as: Self.ben)
        request.datasets = [DatasetReference(path: own.digest)]
        request.valSetSize = 0
        #expect(try daemon.post(as: Self.ben, Endpoint.plan, request).status == 200)
        request.initFromAdapter = adapter
        for path in [Endpoint.plan, Endpoint.jobs] {
            #expect(try daemon.post(as: Self.ben, path, request).status == 403, "\(path) from another's adapter")
        }
        let generation = GenerateRequest(
            model: "tiny", adapter: adapter, messages: [ChatMessage(role: "user", content: "x")])
        #expect(try daemon.post(as: Self.ben, Endpoint.generate, generation).status == 403)
        // All of which is its owner's to do, and an admin's.
        for (method, path) in refused where method == "GET" {
            #expect(try daemon.call(as: Self.anna, method, path).status == 200, "\(path)")
            #expect(try daemon.call("GET", path).status == 200, "\(path)")
        }
    }

    @Test func whatIsSeenOfAnothersJobTellsNoNameAndNoText() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.daemon(in: directory.path)
        let job = try Self.prepare(daemon)
        // A problem that would quote what was asked for.
        let secret = ["annas-secret-name", "lines", "xylophone"]
        for path in [
            Endpoint.jobs, Endpoint.job(job.id), Endpoint.adapters, Endpoint.datasets, Endpoint.status,
            Endpoint.jobs + "?state=succeeded",
        ] {
            let text = try daemon.call(as: Self.ben, "GET", path).text
            for word in secret { #expect(!text.contains(word), "\(path): \(text)") }
        }
        let seen = try daemon.call(as: Self.ben, "GET", Endpoint.job(job.id)).decoded(JobStatus.self)
        #expect(seen.state == .succeeded && seen.ownerUid == Self.anna.uid && seen.progress?.step == 3)
        #expect(try daemon.call(as: Self.anna, "GET", Endpoint.job(job.id)).decoded(JobStatus.self) == job)
        // The model is there for all.
        #expect(try daemon.call(as: Self.ben, "GET", Endpoint.models).text.contains("tiny"))
        // The same data set under the same name does not become his.
        let lines = (0..<24).map { "{\"text\":\"xylophone \($0) says what it has to\"}\n" }.joined()
        let digest = try Self.send(Data(lines.utf8), daemon, as: Self.ben).digest
        #expect(try daemon.post(as: Self.ben, Endpoint.datasets, ImportRequest(name: "lines", blob: digest)).status == 409)
        #expect(try daemon.call(as: Self.anna, "GET", Endpoint.dataset("lines")).status == 200)
    }

    @Test func aUserHasAShareOfTheQueue() throws {
        let directory = try TemporaryDirectory()
        let worker = try FakeWorker.write(in: directory.path, train: FakeWorker.waitForStop())
        let daemon = try Self.daemon(in: directory.path, config: "queued_jobs_per_user: 2\n", worker: worker)
        try upload(daemon)
        func submit(_ name: String, as user: OtherUser) throws -> HTTPAnswer {
            let digest = try Self.send(Data("x".utf8), daemon, as: user).digest
            var request = JobRequest(baseModel: "m", datasets: [DatasetReference(path: digest)])
            request.name = name
            return try daemon.post(as: user, Endpoint.jobs, request)
        }
        #expect(try submit("a1", as: Self.anna).status == 201)
        let second = try submit("a2", as: Self.anna)
        let third = try submit("a3", as: Self.anna)
        #expect(second.status == 201 && third.status == 429 && third.text.contains("limit of a user is 2"), "\(third.text)")
        #expect(try submit("b1", as: Self.ben).status == 201)
        let id = try second.decoded(JobStatus.self).id
        #expect(try daemon.call(as: Self.anna, "POST", Endpoint.jobAction(id, .cancel)).status == 200)
        #expect(try submit("a3", as: Self.anna).status == 201)
    }

    @Test func bytesOfAUserAreCountedBeforeTheyAreThere() throws {
        let directory = try TemporaryDirectory()
        let worker = try FakeWorker.write(
            in: directory.path, importPlan: .plannedImport(outputBytes: 60, peakBytes: 1 << 20))
        let daemon = try Self.daemon(in: directory.path, config: "blob_bytes_per_user: 100\n", worker: worker)
        // Announced, and left after a byte: they count with all that they will have.
        func begin(_ digit: Character, length: Int, as user: OtherUser) throws -> HTTPAnswer {
            try daemon.call(
                as: user, "PATCH", Endpoint.blob("sha256:" + String(repeating: digit, count: 64)),
                headers: [Header.uploadOffset: "0", Header.uploadLength: "\(length)"], body: Data("x".utf8))
        }
        #expect(try begin("a", length: 70, as: Self.anna).status == 200)
        let refused = try begin("b", length: 31, as: Self.anna)
        #expect(refused.status == 413, "\(refused.text)")
        #expect(try begin("b", length: 31, as: Self.ben).status == 200)

        let file = try Self.send(Data(repeating: 7, count: 10), daemon, as: Self.ben).digest
        let answer = try daemon.post(
            as: Self.ben, Endpoint.models, ModelRequest(name: "made", files: [ModelFile(name: "x.safetensors", blob: file)]))
        // 31 announced, 10 stored, 60 to be made.
        let problem = try answer.decoded(Problem.self)
        #expect(problem.kind == .tooLarge && problem.requiredBytes == 60, "\(answer.text)")
        let carla = OtherUser(uid: 12347, group: "games")
        let third = try Self.send(Data(repeating: 8, count: 10), daemon, as: carla).digest
        let accepted = try daemon.post(
            as: carla, Endpoint.models, ModelRequest(name: "made", files: [ModelFile(name: "x.safetensors", blob: third)]))
        #expect(accepted.status == 202, "\(accepted.text)")
    }

    @Test func aStrangerHasNoRouteButTheOneThatTellsThatTheDaemonLives() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.daemon(in: directory.path)
        let stranger = OtherUser(uid: 12399, group: "nogroup")
        let id = "j-000000000000"
        let routes: [(String, String)] = [
            ("GET", Endpoint.status), ("POST", Endpoint.plan), ("POST", Endpoint.methods), ("POST", Endpoint.jobs), ("GET", Endpoint.jobs),
            ("GET", Endpoint.job(id)), ("DELETE", Endpoint.job(id)), ("POST", Endpoint.jobAction(id, .cancel)),
            ("POST", Endpoint.jobAction(id, .pause)), ("POST", Endpoint.jobAction(id, .resume)),
            ("GET", Endpoint.jobEvents(id)), ("GET", Endpoint.jobLog(id)), ("GET", Endpoint.blob(abc)),
            ("PATCH", Endpoint.blob(abc)), ("POST", Endpoint.models), ("GET", Endpoint.models), ("GET", Endpoint.model("m")),
            ("DELETE", Endpoint.model("m")), ("GET", Endpoint.modelImport("m")), ("POST", Endpoint.datasets),
            ("GET", Endpoint.datasets), ("GET", Endpoint.dataset("d")), ("DELETE", Endpoint.dataset("d")),
            ("POST", Endpoint.adapters), ("GET", Endpoint.adapters), ("GET", Endpoint.adapter("a")),
            ("DELETE", Endpoint.adapter("a")), ("GET", Endpoint.adapterFile("a", "adapter.gguf")), ("POST", Endpoint.generate),
            ("POST", Endpoint.combinations), ("POST", Endpoint.compositions), ("POST", Endpoint.ranks),
        ]
        for (method, path) in routes {
            let answer = try daemon.call(as: stranger, method, path)
            #expect(answer.status == 403 && answer.text.contains("not in the group"), "\(method) \(path): \(answer.text)")
        }
        #expect(try daemon.call(as: stranger, "GET", Endpoint.health).status == 200)
    }

    @Test func noNameAndNoLinkLeadsOutOfAnAdapter() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.daemon(in: directory.path)
        let adapter = try #require(try Self.prepare(daemon).adapter)
        func status(_ name: String) throws -> Int {
            try daemon.call(as: Self.anna, "GET", Endpoint.adapterFile(adapter, name)).status
        }
        for name in ["..", ".", "%2e%2e", "..%2F..%2F..%2Fjobs.db", "%2Fetc%2Fpasswd", "training.json%00", "-x", "%2F", "a%2Fb"] {
            #expect(try status(name) == 404, "\(name)")
        }
        let record = try daemon.call(as: Self.anna, "GET", Endpoint.adapter(adapter)).decoded(AdapterRecord.self)
        // What a worker that was taken over would leave, if it could.
        #expect(symlink("/etc/passwd", record.path + "/passwd") == 0 && mkfifo(record.path + "/pipe", 0o600) == 0)
        #expect(try status("passwd") == 404 && status("pipe") == 404 && status("training.json") == 200)
        #expect(rename(record.path, record.path + "-moved") == 0 && symlink(record.path + "-moved", record.path) == 0)
        #expect(try status("training.json") == 404)
    }
}
