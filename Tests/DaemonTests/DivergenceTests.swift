// Training that goes wrong, by the real daemon and worker: the job fails, says at which step and in which lines, and keeps
// the best adapter that it had.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct DivergenceTests {
    /// Saturated by its learning rate and scaling; its gradients are nothing then, and moments divided by nothing have no end.
    static func request(_ name: String) -> JobRequest {
        var request = KillTests.request(name)
        request.loraDropout = 0
        request.loraR = 1
        request.loraAlpha = 65536
        request.learningRate = 1
        request.adamBeta2 = 0
        request.adamEpsilon = 1e-30
        request.warmupSteps = 0
        request.lrScheduler = .constant
        request.maxGradNorm = 0
        request.gradientAccumulationSteps = 1
        request.evalSteps = 1
        request.precision = .f32
        return request
    }

    private static func run(_ request: JobRequest, on daemon: DaemonProcess) throws -> JobStatus {
        let answer = try daemon.post(Endpoint.jobs, request)
        #expect(answer.status == 201, "\(answer.text)")
        return try daemon.wait(for: try answer.decoded(JobStatus.self).id) { $0.state.isFinal }
    }

    @Test func aDivergedRunNamesStepAndLinesAndKeepsItsBestAdapter() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        let job = try Self.run(Self.request("wild"), on: daemon)
        let problem = try #require(job.problem, "\(job)")
        #expect(job.state == .failed && problem.kind == .nonFinite && job.adapter == "wild", "\(job)")
        #expect(job.reason == problem.detail)
        #expect(problem.detail.contains("the adapter of step "), "\(problem.detail)")
        #expect(problem.detail.contains("of \"lines\"") || problem.detail.contains("the held-out loss is"), "\(problem.detail)")
        let record = try daemon.call("GET", Endpoint.adapter("wild")).decoded(AdapterRecord.self)
        #expect(record.files.map(\.name).contains("adapter_model.safetensors.lz4"))
        let training = try daemon.call("GET", Endpoint.adapterFile("wild", "training.json")).text
        #expect(training.contains("\"problem\""), "\(training)")
        let log = try daemon.call("GET", Endpoint.jobLog(job.id)).text
        #expect(log.contains(problem.detail), "\(log)")
        let events = try daemon.call("GET", Endpoint.jobEvents(job.id)).text
        #expect(events.contains("urn:edgetune:problem:non-finite") && events.contains("\"end\""))
        #expect(daemon.terminate() == 0)
        #expect(try CheckTests.check(directory.path).code == 0)
    }

    @Test func withoutHeldOutSamplesThereIsNothingToKeep() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        var request = Self.request("wild")
        request.valSetSize = 0
        request.evalSteps = nil
        let job = try Self.run(request, on: daemon)
        let problem = try #require(job.problem, "\(job)")
        #expect(job.state == .failed && problem.kind == .nonFinite && job.adapter == nil)
        // The micro-batch has two samples: their lines, and no others.
        let said = /step (\d+): .*; lines (\d+), (\d+) of "lines"/
        let lines = try #require(problem.detail.firstMatch(of: said), "\(problem.detail)")
        #expect((1...24).contains(Int(lines.2) ?? 0) && (1...24).contains(Int(lines.3) ?? 0))
        #expect(problem.detail.contains("no adapter was measured before that"))
        #expect(try daemon.call("GET", Endpoint.adapter("wild")).status == 404)
    }
}
