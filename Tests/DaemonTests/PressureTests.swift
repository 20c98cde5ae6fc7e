// The real daemon and the real worker on a captured machine whose memory a test makes short while a job runs.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct PressureTests {
    private static func start(_ directory: borrowing TemporaryDirectory) throws -> (CapturedHost, DaemonProcess) {
        let host = try CapturedHost(in: directory.path)
        let daemon = try DaemonProcess(in: directory.path, arguments: ["--host-root", host.root])
        try KillTests.prepare(daemon)
        return (host, daemon)
    }

    private static func jobLog(_ job: String, _ daemon: DaemonProcess) throws -> String {
        try daemon.call("GET", Endpoint.jobLog(job)).text
    }

    private static func finish(_ job: String, _ daemon: DaemonProcess) throws {
        let status = try daemon.wait(for: job) { $0.state.isFinal }
        #expect(status.state == .succeeded, "\(status)\n\(daemon.log)")
    }

    @Test func aJobUnderPressureYieldsWaitsAndEndsWithTheSameBytes() throws {
        let directory = try TemporaryDirectory()
        let (host, daemon) = try Self.start(directory)
        let undisturbed = try KillTests.submit("undisturbed", to: daemon)
        try Self.finish(undisturbed, daemon)

        let job = try KillTests.submit("disturbed", to: daemon)
        _ = try daemon.wait(for: job) { ($0.progress?.step ?? 0) >= 3 }
        try host.setPressure(some: 60, full: 40)
        let waiting = try daemon.wait(for: job) { $0.state == .queued && $0.reason != nil }
        let step = try #require(waiting.progress?.step)
        #expect(waiting.reason == "waits for memory: pressure, full avg10 40.0 %; goes on from step \(step)", "\(waiting)")
        #expect(waiting.runs == 1)
        // More than one look of the queue's: it stays where it is.
        usleep(3_500_000)
        #expect(try daemon.wait(for: job) { _ in true }.runs == 1)

        try host.setPressure()
        try Self.finish(job, daemon)
        #expect(try daemon.wait(for: job) { _ in true }.runs == 2)
        #expect(try Self.jobLog(job, daemon).contains("resumed after step \(step)"))
        #expect(try KillTests.files(of: "disturbed", daemon) == KillTests.files(of: "undisturbed", daemon))
    }

    @Test func weightsGivenBackChangeNothingAndAreToldOnce() throws {
        let directory = try TemporaryDirectory()
        let (host, daemon) = try Self.start(directory)
        let undisturbed = try KillTests.submit("undisturbed", to: daemon)
        try Self.finish(undisturbed, daemon)

        let job = try KillTests.submit("disturbed", to: daemon)
        _ = try daemon.wait(for: job) { ($0.progress?.step ?? 0) >= 3 }
        // The average is high, but no time is lost: never a reason to leave.
        try host.setPressure(some: 20)
        try Self.finish(job, daemon)
        let told = try Self.jobLog(job, daemon).components(separatedBy: "weights are given back").count - 1
        #expect(told == 1)
        #expect(try daemon.wait(for: job) { _ in true }.runs == 1)
        #expect(try KillTests.files(of: "disturbed", daemon) == KillTests.files(of: "undisturbed", daemon))
    }

    @Test func aJobWhoseMemoryIsNotThereWaitsWithTheNumbersAndCanBeCancelled() throws {
        let directory = try TemporaryDirectory()
        let (host, daemon) = try Self.start(directory)
        let running = try KillTests.submit("a", to: daemon)
        let job = try KillTests.submit("b", to: daemon)
        try host.setMemory(totalMiB: 4096, availableMiB: 20)
        _ = try daemon.wait(for: running) { $0.state.isFinal || $0.reason?.hasPrefix("waits for memory") == true }
        let waiting = try daemon.wait(for: job) { $0.reason != nil }
        #expect(waiting.state == .queued)
        let peak = try #require(waiting.plan?.peakBytes) >> 20
        #expect(waiting.reason == "waits for memory: needs \(peak) MiB, MemAvailable is 20 MiB", "\(waiting)")
        #expect(try daemon.call("POST", Endpoint.jobAction(job, .cancel)).decoded(JobStatus.self).state == .cancelled)
        try host.setMemory(totalMiB: 4096, availableMiB: 3000)
        try Self.finish(running, daemon)
    }

    @Test func aRunThatHoldsMoreThanItsPlanFailsWithTheNumbers() throws {
        let directory = try TemporaryDirectory()
        let (host, daemon) = try Self.start(directory)
        let job = try KillTests.submit("a", to: daemon)
        _ = try daemon.wait(for: job) { ($0.progress?.step ?? 0) >= 3 }
        // The watch of a run reads this process's own figures, until a captured tree has some.
        try host.write("VmRSS:\t 900000 kB\nVmSwap:\t 0 kB\n", to: "/proc/self/status")
        let second = try KillTests.submit("b", to: daemon)
        let failed = try daemon.wait(for: second) { $0.state.isFinal }
        #expect(failed.problem?.kind == .planExceeded, "\(failed)")
        let peak = try #require(failed.plan?.peakBytes)
        #expect(failed.problem?.detail == "the run held more than its plan: 878 MiB are resident, \(peak >> 20) MiB were planned")
    }

    @Test func thePlanSaysWhichBoundItsBudgetIs() throws {
        let directory = try TemporaryDirectory()
        let (host, daemon) = try Self.start(directory)
        var request = KillTests.request("a")
        request.memoryBudget = nil
        try host.setMemory(totalMiB: 4096, availableMiB: 900)
        let plan = try daemon.post(Endpoint.plan, request).decoded(PlanReport.self)
        #expect(plan.budgetReason == "MemAvailable less a tenth")
        #expect(plan.budgetBytes >> 20 == 810)
        try host.setMemory(totalMiB: 4096, availableMiB: 9)
        let problem = try daemon.post(Endpoint.plan, request).decoded(Problem.self)
        #expect(problem.kind == .insufficientMemory)
        #expect(problem.detail.hasSuffix("; the budget is MemAvailable less a tenth"), "\(problem)")
    }
}
