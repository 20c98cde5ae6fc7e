// `edgetune models pull` with the real client and the real daemon, from a hub on loopback that behaves as badly as it can.
import EdgeFormats
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import NIOSSL
import Testing

private let client = (DaemonProcess.binary as NSString).deletingLastPathComponent + "/edgetune"

@Suite(.serialized) struct PullTests {
    static func tinyModel() throws -> HubFile { HubFile(content: try TestModel.goldens("tiny-llama.gguf")) }

    /// 10,000 bytes that are no model: for pulls into a daemon whose workers are scripts.
    static let weights = HubFile(content: (0..<10_000).map { UInt8(truncatingIfNeeded: $0 &* 7 ^ $0 >> 8) })

    static let directory: [String: HubFile] = [
        "config.json": HubFile(content: Array("{\"model_type\":\"llama\"}".utf8), isLarge: false),
        "tokenizer.json": HubFile(content: Array("{}".utf8), isLarge: false),
        "chat_template.jinja": HubFile(content: Array("x".utf8), isLarge: false),
        "model.safetensors": weights,
        "pytorch_model.bin": HubFile(content: [1, 2, 3]),
        "README.md": HubFile(content: [35], isLarge: false),
        "onnx/model.onnx": HubFile(content: [4, 5]),
    ]

    static func pull(
        _ what: String, _ arguments: [String] = [], hub: HubServer, to daemon: DaemonProcess,
        environment: [String: String] = [:]
    ) throws -> (code: Int32, text: String) {
        // The hub goes when nobody holds it.
        defer { withExtendedLifetime(hub) {} }
        return try Command.run(
            client, ["models", "pull", what, "--socket", daemon.socket] + arguments,
            environment: ["PATH": "/usr/bin:/bin", "HOME": daemon.directory, "HF_ENDPOINT": hub.address]
                .merging(environment) { $1 })
    }

    static func models(_ daemon: DaemonProcess) throws -> [ModelRecord] {
        try daemon.call("GET", Endpoint.models).decoded(ModelList.self).models
    }

    static func scripted(_ directory: String) throws -> DaemonProcess {
        try DaemonProcess(in: directory, workerExecutable: try FakeWorker.write(in: directory))
    }

    // MARK: what is fetched

    @Test func aConnectionThatIsCutGoesOnWhereItWas() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        let hub = try HubServer(["tiny.gguf": try Self.tinyModel()])
        hub.state.withLock { $0.cuts = [1000, 0, 50_000] }
        let (code, text) = try Self.pull("hf:owner/name:tiny.gguf", hub: hub, to: daemon)
        #expect(code == 0, "\(text)")
        let record = try #require(try Self.models(daemon).first, "\(text)")
        #expect(record.name == "tiny" && record.model.architecture == "llama")
        #expect(record.blob == "sha256:" + HubFile.digest(try Self.tinyModel().content))
        #expect(record.source == "hf:owner/name@\(HubServer.commit):tiny.gguf")
        // Each try begins where the one before came to; the client's library may drop what it had not handed on at a cut.
        let starts = hub.ranges.map { $0.flatMap { Int($0.dropFirst("bytes=".count).dropLast()) } ?? 0 }
        #expect(starts.count == 4 && starts == starts.sorted() && (1...1000).contains(starts[1]), "\(starts)")
        #expect(starts[3] > starts[2] && starts[3] <= 51_000, "\(starts)")
        // What is there already is not fetched again.
        #expect(try Self.pull("hf:owner/name:tiny.gguf", hub: hub, to: daemon).code == 0)
        #expect(hub.ranges.count == 4 && hub.seen.count == 6)
    }

    @Test func aServerWithoutRangesIsReadFromTheStart() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        let hub = try HubServer(["tiny.gguf": try Self.tinyModel()])
        hub.state.withLock { state in
            state.ignoresRanges = true
            state.cuts = [60_000]
        }
        let (code, text) = try Self.pull("hf:owner/name", hub: hub, to: daemon)
        #expect(code == 0, "\(text)")
        #expect(hub.ranges.count == 2)
        #expect(try Self.models(daemon).count == 1)
    }

    @Test func aDirectoryIsPulledWithoutWhatNoModelNeeds() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.scripted(directory.path)
        let hub = try HubServer(Self.directory)
        let (code, text) = try Self.pull("hf:owner/name", ["--json"], hub: hub, to: daemon)
        #expect(code == 0, "\(text)")
        let record = try #require(try Self.models(daemon).first)
        let names = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
        #expect(record.name == "name" && record.files?.map(\.name).sorted() == names)
        #expect(record.files?.map(\.blob).sorted() == names.compactMap { Self.directory[$0] }.map {
            "sha256:" + HubFile.digest($0.content)
        }.sorted())
        #expect(try ImportTests.comes(to: 1, "blobs", of: daemon))
        #expect(try ImportTests.entries("blobs", of: daemon) == ["sha256-" + record.blob.dropFirst(7)])
        // Again: the list and the files whose digest it does not have.
        let before = hub.seen.count
        #expect(try Self.pull("hf:owner/name", hub: hub, to: daemon).code == 0)
        #expect(hub.seen.count == before + 4)
    }

    @Test func onlyWeightsThatTheIndexNamesArePulled() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.scripted(directory.path)
        let index =
            #"{"metadata":{},"weight_map":{"a":"model-00001-of-00002.safetensors","#
            + #""b":"model-00002-of-00002.safetensors"}}"#
        var files = Self.directory
        files["model.safetensors"] = nil
        files["model.safetensors.index.json"] = HubFile(content: Array(index.utf8), isLarge: false)
        files["model-00001-of-00002.safetensors"] = Self.weights
        files["model-00002-of-00002.safetensors"] = HubFile(content: [9, 9])
        files["consolidated.safetensors"] = HubFile(content: [8, 8, 8])
        let hub = try HubServer(files)
        #expect(try Self.pull("hf:owner/name", ["--name", "m"], hub: hub, to: daemon).code == 0)
        let names = try #require(try Self.models(daemon).first?.files).map(\.name).filter { $0.hasSuffix(".safetensors") }
        #expect(names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    }

    @Test func aRepositoryOfGGUFsIsListedAndOneOrItsPartsPulled() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.scripted(directory.path)
        let hub = try HubServer([
            "m-Q4_0.gguf": Self.weights, "q8/m-Q8_0-00001-of-00002.gguf": HubFile(content: [1]),
            "q8/m-Q8_0-00002-of-00002.gguf": HubFile(content: [2, 3]), "m-F16.gguf": HubFile(content: [4]),
        ])
        let (asked, list) = try Self.pull("hf:owner/name", hub: hub, to: daemon)
        #expect(asked == 64 && list.contains("m-Q4_0.gguf  9.8 KiB") && list.contains("m-F16.gguf  1 B"), "\(list)")
        let (wrong, others) = try Self.pull("hf:owner/name:m-Q5_0.gguf", hub: hub, to: daemon)
        #expect(wrong == 5 && others.contains("q8/m-Q8_0-00001-of-00002.gguf  3 B"), "\(others)")
        let (code, text) = try Self.pull("hf:owner/name:q8/m-Q8_0-00001-of-00002.gguf", hub: hub, to: daemon)
        #expect(code == 0, "\(text)")
        let record = try #require(try Self.models(daemon).first)
        #expect(record.name == "m-Q8_0")
        #expect(record.files?.map(\.name) == ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"])
        hub.state.withLock { $0.files["q8/m-Q8_0-00002-of-00002.gguf"] = nil }
        let (missing, why) = try Self.pull("hf:owner/name:q8/m-Q8_0-00001-of-00002.gguf", hub: hub, to: daemon)
        #expect(missing == 5 && why.contains("m-Q8_0-00002-of-00002.gguf is not in owner/name"), "\(why)")
    }

    // MARK: interruptions

    @Test func ctrlCStopsAndTheSameCommandGoesOn() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        let hub = try HubServer(["tiny.gguf": try Self.tinyModel()])
        // Less than the piece that is sent on at once: it is the cut that makes the client send it.
        hub.state.withLock { $0.cuts = [30_000] }
        let process = Process()
        process.executableURL = URL(fileURLWithPath: client)
        process.arguments = ["models", "pull", "hf:owner/name", "--socket", daemon.socket]
        process.environment = ["PATH": "/usr/bin:/bin", "HOME": directory.path, "HF_ENDPOINT": hub.address]
        let said = Pipe()
        process.standardError = said
        process.standardOutput = said
        try process.run()
        // The second request for the file hangs.
        try Self.wait { hub.ranges.count == 1 }
        hub.state.withLock { $0.stallsAfter = 10 }
        try Self.wait { hub.ranges.count == 2 }
        process.interrupt()
        process.waitUntilExit()
        let text = String(decoding: said.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        #expect(process.terminationStatus == 130 && text.contains("the same command goes on from here"), "\(text)")
        hub.state.withLock { $0.stallsAfter = nil }
        #expect(try Self.pull("hf:owner/name", hub: hub, to: daemon).code == 0)
        // Without what the library had not handed on at the cut.
        #expect(hub.ranges.count == 3 && hub.ranges[1] == hub.ranges[2])
        #expect(try Self.models(daemon).count == 1)
    }

    static func wait(until condition: () -> Bool) throws {
        let deadline = Date().addingTimeInterval(20)
        while !condition() {
            guard Date() < deadline else { throw TestFailure("it did not come to that") }
            usleep(5_000)
        }
    }

    @Test func aDaemonThatIsKilledAndComesBackHasTheRest() throws {
        let directory = try TemporaryDirectory()
        var daemon = try DaemonProcess(in: directory.path)
        let hub = try HubServer(["tiny.gguf": try Self.tinyModel()])
        hub.state.withLock { $0.cuts = [20_000] }
        let process = Process()
        process.executableURL = URL(fileURLWithPath: client)
        process.arguments = ["models", "pull", "hf:owner/name", "--socket", daemon.socket]
        process.environment = ["PATH": "/usr/bin:/bin", "HOME": directory.path, "HF_ENDPOINT": hub.address]
        process.standardError = FileHandle.nullDevice
        process.standardOutput = FileHandle.nullDevice
        try process.run()
        try Self.wait { hub.ranges.count == 1 }
        daemon.killNow()
        daemon = try DaemonProcess(in: directory.path)
        process.waitUntilExit()
        #expect(process.terminationStatus == 0)
        #expect(try Self.models(daemon).count == 1)
    }

    @Test func aBusyHubIsWaitedForAndALongWaitIsTold() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        let hub = try HubServer(["tiny.gguf": try Self.tinyModel()])
        hub.state.withLock { state in
            state.throttled = 2
            state.retryAfter = "1"
        }
        let start = ContinuousClock.now
        let (code, text) = try Self.pull("hf:owner/name", hub: hub, to: daemon)
        #expect(code == 0, "\(text)")
        #expect(ContinuousClock.now - start >= .seconds(2))
        hub.state.withLock { state in
            state.throttled = 1
            state.retryAfter = "4000"
        }
        let (refused, why) = try Self.pull("hf:owner/name", hub: hub, to: daemon)
        #expect(refused == 7 && why.contains("asks us to come back in 1h06m"), "\(why)")
    }

    // MARK: lies

    @Test(arguments: [
        (HubFile(content: weights.content, listedBytes: 9_999), "has 10000 bytes, the hub's list says 9999"),
        (HubFile(content: weights.content, listedBytes: 10_001), "has 10000 bytes, the hub's list says 10001"),
        (HubFile(content: weights.content, listedDigest: HubFile.digest([1])), "is not what the hub's list says"),
    ])
    func aLargeFileThatIsNotWhatTheListSaysIsRefused(_ file: HubFile, _ reason: String) throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.scripted(directory.path)
        var files = Self.directory
        files["model.safetensors"] = file
        let (code, text) = try Self.pull("hf:owner/name", hub: HubServer(files), to: daemon)
        #expect(code == 1 && text.contains("model.safetensors \(reason)"), "\(text)")
        #expect(try Self.models(daemon).isEmpty)
        let blobs = try ImportTests.entries("blobs", of: daemon)
        #expect(blobs.allSatisfy { !$0.hasPrefix("sha256-" + (file.listedDigest ?? HubFile.digest(file.content))) })
    }

    @Test(arguments: [
        (HubFile(content: [1, 2], isLarge: false, listedBytes: 3), "tokenizer.json has 2 bytes, the hub's list says 3"),
        (
            HubFile(content: [1, 2], isLarge: false, listedDigest: String(repeating: "a", count: 40)),
            "tokenizer.json has the digest"
        ),
        // `printf '\1\2' | git hash-object --stdin`
        (HubFile(content: [1, 2], isLarge: false, listedDigest: "71bd63e6202752b0f0052971c84168c139021759"), nil),
        (HubFile(content: [], isLarge: false), "tokenizer.json is empty"),
    ] as [(HubFile, String?)])
    func aSmallFileIsHeldToTheListToo(_ file: HubFile, _ reason: String?) throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.scripted(directory.path)
        var files = Self.directory
        files["tokenizer.json"] = file
        let (code, text) = try Self.pull("hf:owner/name", hub: try HubServer(files), to: daemon)
        #expect(code == (reason == nil ? 0 : 1) && text.contains(reason ?? "name: llama"), "\(text)")
        #expect(try Self.models(daemon).count == (reason == nil ? 1 : 0))
    }

    @Test func aLinkToOtherBytesThanTheListsIsRefused() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.scripted(directory.path)
        let storage = try HubServer(Self.directory)
        let hub = try HubServer(Self.directory)
        hub.state.withLock { state in
            state.storage = storage.address
            state.linkedEtag = HubFile.digest([7])
        }
        let (code, text) = try Self.pull("hf:owner/name", hub: hub, to: daemon)
        #expect(code == 1 && text.contains("has the digest \(HubFile.digest([7]))"), "\(text)")
    }

    // MARK: the token

    @Test func theTokenGoesToTheHubAndNotToWhereItSendsUs() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.scripted(directory.path)
        let storage = try HubServer(Self.directory)
        let hub = try HubServer(Self.directory)
        hub.state.withLock { state in
            state.token = "hf_secret"
            state.storage = storage.address
        }
        let file = directory.path + "/token"
        try "hf_secret\n".write(toFile: file, atomically: true, encoding: .utf8)
        let (code, text) = try Self.pull("hf:owner/name", ["--token-file", file], hub: hub, to: daemon)
        #expect(code == 0, "\(text)")
        #expect(hub.seen.allSatisfy { $0.authorization == "Bearer hf_secret" })
        #expect(storage.seen.map(\.path) == ["/storage/model.safetensors"])
        #expect(storage.seen.allSatisfy { $0.authorization == nil })
        #expect(!text.contains("hf_secret"))
    }

    @Test func refusalsSayWhatToDo() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.scripted(directory.path)
        let hub = try HubServer(Self.directory)
        hub.state.withLock { $0.token = "hf_secret" }
        func check(
            _ what: String, _ arguments: [String] = [], _ environment: [String: String] = [:], code: Int32,
            _ texts: [String], sourceLocation: SourceLocation = #_sourceLocation
        ) throws {
            let outcome = try Self.pull(what, arguments, hub: hub, to: daemon, environment: environment)
            #expect(outcome.code == code, "\(outcome.text)", sourceLocation: sourceLocation)
            for text in texts { #expect(outcome.text.contains(text), "\(outcome.text)", sourceLocation: sourceLocation) }
        }
        try check("hf:owner/name", code: 4, ["no token was given", "\(hub.address)/owner/name", "HF_TOKEN"])
        try check("hf:owner/name", [], ["HF_TOKEN": "hf_other"], code: 4, ["the token is not accepted"])
        let right = ["HF_TOKEN": "hf_secret"]
        hub.state.withLock { $0.isGated = true }
        try check("hf:owner/name", [], right, code: 4, ["is gated", "accept its conditions at \(hub.address)/owner/name"])
        hub.state.withLock { $0.isGated = false }
        try check("hf:owner/other", [], right, code: 5, ["there is no repository owner/other"])
        try check("hf:owner/name", ["--revision", "v2/x"], right, code: 5, ["has no such revision"])
        #expect(hub.seen.last?.path == "/api/models/owner/name/revision/v2%2Fx")
        // Neither readable on the way, nor a header of somebody else's making.
        try check("hf:owner/name", ["--mirror", "http://hub.invalid"], right, code: 64, ["a token would be readable"])
        try check("hf:owner/name", [], ["HF_TOKEN": "a\r\nb: c"], code: 64, ["HF_TOKEN holds no token"])
        for wrong in ["owner/name", "hf:name", "hf:../name", "hf:a/b/c", "hf:a/b:../c", "hf:a/b:"] {
            try check(wrong, code: 64, [])
        }
        // What a login stored is for the hub itself: not for this mirror.
        let cache = directory.path + "/.cache/huggingface"
        try FileManager.default.createDirectory(atPath: cache, withIntermediateDirectories: true)
        try "hf_secret".write(toFile: cache + "/token", atomically: true, encoding: .utf8)
        try check("hf:owner/name", code: 4, ["no token was given"])
        #expect(try Self.models(daemon).isEmpty)
    }

    // MARK: the way there

    @Test func aProxyIsUsedUnlessItIsExcepted() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        let hub = try HubServer(["tiny.gguf": try Self.tinyModel()])
        let proxy = try TunnelProxy(to: hub.port)
        defer { proxy.end() }
        let far = ["HF_ENDPOINT": "http://hub.invalid", "http_proxy": "127.0.0.1:\(proxy.port)"]
        let (code, text) = try Self.pull("hf:owner/name", hub: hub, to: daemon, environment: far)
        #expect(code == 0, "\(text)")
        // Of a proxy the client asks for tunnels, whatever goes through them.
        #expect(Set(proxy.asked) == ["CONNECT hub.invalid:80 HTTP/1.1"])
        #expect(hub.seen.allSatisfy { $0.host == "hub.invalid" })
        let broken = ["http_proxy": "http://127.0.0.1:1", "no_proxy": "example.org, 127.0.0.1"]
        #expect(try Self.pull("hf:owner/name", hub: hub, to: daemon, environment: broken).code == 0)
    }

    @Test func httpsThroughAProxyAndItsCertificateIsChecked() throws {
        let directory = try TemporaryDirectory()
        let (certificate, key) = (directory.path + "/c.pem", directory.path + "/k.pem")
        let made = try Command.run(
            "/usr/bin/openssl",
            [
                "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                "-subj", "/CN=hub.test", "-addext", "subjectAltName=DNS:hub.test", "-keyout", key, "-out", certificate,
            ])
        #expect(made.code == 0, "\(made.text)")
        let tls = try NIOSSLContext(
            configuration: .makeServerConfiguration(
                certificateChain: try NIOSSLCertificate.fromPEMFile(certificate).map { .certificate($0) },
                privateKey: .privateKey(try NIOSSLPrivateKey(file: key, format: .pem))))
        let hub = try HubServer(["tiny.gguf": try Self.tinyModel()], tls: tls)
        hub.state.withLock { $0.token = "hf_secret" }
        let proxy = try TunnelProxy(to: hub.port)
        defer { proxy.end() }
        let daemon = try DaemonProcess(in: directory.path)
        var environment = [
            "HF_ENDPOINT": "https://hub.test", "https_proxy": "127.0.0.1:\(proxy.port)", "HF_TOKEN": "hf_secret",
        ]
        let (refused, why) = try Self.pull("hf:owner/name", hub: hub, to: daemon, environment: environment)
        #expect(refused == 1 && why.contains("the certificate of hub.test is not one"), "\(why)")
        #expect(hub.seen.isEmpty)
        environment["SSL_CERT_FILE"] = certificate
        let (code, text) = try Self.pull("hf:owner/name", hub: hub, to: daemon, environment: environment)
        #expect(code == 0, "\(text)")
        #expect(Set(proxy.asked) == ["CONNECT hub.test:443 HTTP/1.1"])
        #expect(try Self.models(daemon).first?.name == "tiny")
        #expect(hub.seen.allSatisfy { $0.authorization == "Bearer hf_secret" })
    }
}
