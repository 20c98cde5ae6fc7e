// Jobs that begin from what the data or another model says, through the real daemon and worker.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct DaemonStartTests {
    static func finish(_ request: JobRequest, _ daemon: DaemonProcess) throws -> (status: JobStatus, log: String) {
        let answer = try daemon.post(Endpoint.jobs, request)
        #expect(answer.status == 201, "\(answer.text)")
        let ended = try daemon.wait(for: try answer.decoded(JobStatus.self).id) { $0.state.isFinal }
        return (ended, try daemon.call("GET", Endpoint.jobLog(ended.id)).text)
    }

    @Test func aJobBeginsWithTheDirectionsOfItsData() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        var request = KillTests.request("directed")
        (request.initLoraWeights, request.evaWhiten, request.maxSteps) = (.eva, true, 6)
        let (ended, log) = try Self.finish(request, daemon)
        #expect(ended.state == .succeeded, "\(log)")
        #expect(log.contains("eva: the directions of "), "\(log)")
        request.initFromAdapter = "directed"
        let problem = try daemon.post(Endpoint.plan, request).decoded(Problem.self)
        #expect(problem.detail.hasPrefix("init_lora_weights: eva is not allowed: init_from_adapter begins"), "\(problem)")
        let gguf = try daemon.call("GET", Endpoint.adapterFile("directed", "adapter.gguf"))
        #expect(gguf.status == 200, "\(gguf.text)")
    }

    @Test func aJobMakesGoodWhatQuantisationTook() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        let original = try Data(contentsOf: URL(filePath: TestModel.repositoryRoot + "/Tests/Goldens/tiny-original.gguf"))
        try KillTests.importBlob(original, as: "whole", at: Endpoint.models, daemon)
        var request = KillTests.request("made-good")
        (request.initLoraWeights, request.loraDropout, request.maxSteps) = (.loftq, 0, 60)
        func refusal(_ change: (inout JobRequest) -> Void) throws -> String {
            var changed = request
            change(&changed)
            return try daemon.post(Endpoint.plan, changed).decoded(Problem.self).detail
        }
        #expect(try refusal { _ in }.hasPrefix("original_model: missing; init_lora_weights: loftq compares the base"))
        #expect(try refusal { $0.originalModel = "nobody" }.hasPrefix("there is no model \"nobody\""))
        #expect(try refusal { $0.originalModel = "tiny" }.hasPrefix("original_model has the base's own weights"))
        #expect(try refusal { ($0.originalModel, $0.initLoraWeights) = ("whole", nil) }.hasPrefix("original_model: nothing asks for it"))
        #expect(try refusal { ($0.originalModel, $0.adapter) = ("whole", "dora") }.hasPrefix("init_lora_weights: loftq: dora has no such start"))

        request.originalModel = "whole"
        let answer = try daemon.post(Endpoint.jobs, request)
        #expect(answer.status == 201, "\(answer.text)")
        let removal = try daemon.call("DELETE", Endpoint.model("whole"))
        #expect(removal.status == 409 && removal.text.contains("in use by job"), "\(removal.text)")
        let ended = try daemon.wait(for: try answer.decoded(JobStatus.self).id) { $0.state.isFinal }
        let log = try daemon.call("GET", Endpoint.jobLog(ended.id)).text
        #expect(ended.state == .succeeded && log.contains("loftq: the distance of 14 linears from the original's is "), "\(log)")
        #expect(try daemon.call("DELETE", Endpoint.model("whole")).status == 204)
        #expect(try daemon.call("GET", Endpoint.adapterFile("made-good", "adapter.gguf")).status == 200)
    }
}
