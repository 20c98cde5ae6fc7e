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
}
