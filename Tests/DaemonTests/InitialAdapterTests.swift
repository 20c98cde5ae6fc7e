// Adapters that were brought in: by the client's commands, through the real daemon and worker, to a job that begins from one.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct InitialAdapterTests {
    static let gguf = TestModel.repositoryRoot + "/Tests/Goldens/tiny-adapter.gguf"

    static func upload(_ daemon: DaemonProcess) throws -> String {
        try KillTests.upload(try Data(contentsOf: URL(filePath: gguf)), daemon)
    }

    static func add(_ name: String, to daemon: DaemonProcess) throws -> HTTPAnswer {
        try daemon.post(
            Endpoint.adapters,
            AdapterImportRequest(name: name, baseModel: "tiny", tensors: try upload(daemon), config: nil))
    }

    @Test func aJobBeginsFromAnAdapterThatWasBroughtIn() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        let added = try Self.add("mine", to: daemon)
        #expect(added.status == 201, "\(added.text)")
        #expect(try added.decoded(AdapterRecord.self).files.contains { $0.name == "adapter_model.safetensors.lz4" })
        #expect(try Self.add("mine", to: daemon).status == 409)
        // Its bytes are the daemon's own now.
        #expect(try daemon.call("GET", Endpoint.blob(Self.upload(daemon))).status == 200)

        var request = KillTests.request("further")
        request.loraAlpha = 8
        request.initFromAdapter = "mine"
        request.maxSteps = 60
        let submitted = try daemon.post(Endpoint.jobs, request)
        #expect(submitted.status == 201, "\(submitted.text)")
        let removal = try daemon.call("DELETE", Endpoint.adapter("mine"))
        #expect(removal.status == 409, "\(removal.text)")
        let job = try submitted.decoded(JobStatus.self)
        let ended = try daemon.wait(for: job.id) { $0.state.isFinal }
        #expect(ended.state == .succeeded)
        #expect(try daemon.call("DELETE", Endpoint.adapter("mine")).status == 204)
    }

    @Test func aJobThatAsksForAnotherShapeIsToldWhatToWrite() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        #expect(try Self.add("mine", to: daemon).status == 201)
        var request = KillTests.request("other")
        request.loraR = 8
        request.initFromAdapter = "mine"
        let problem = try daemon.post(Endpoint.jobs, request).decoded(Problem.self)
        #expect(problem.kind == .badAdapter && problem.hint == "lora_r: 4\nlora_alpha: 8", "\(problem)")
        request.initFromAdapter = "nobody"
        #expect(try daemon.post(Endpoint.jobs, request).status == 404)
    }

    @Test func whatIsNoAdapterIsRefusedAndLeavesNothing() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        let digest = try KillTests.upload(Data("GGUF, but no more of it".utf8), daemon)
        let answer = try daemon.post(
            Endpoint.adapters, AdapterImportRequest(name: "bad", baseModel: "tiny", tensors: digest, config: nil))
        #expect(answer.status == 422, "\(answer.text)")
        #expect(try daemon.call("GET", Endpoint.adapters).decoded(AdapterList.self).adapters.isEmpty)
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory.path + "/state/jobs").isEmpty)
    }
}
