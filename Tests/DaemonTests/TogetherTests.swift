// Jobs that train together through the real daemon and worker: whatever ends the process, each has the bytes of a run alone.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct DaemonTogetherTests {
    /// Different in length, rank and method; long enough to be met.
    static func request(_ number: Int, maxSteps: Int = 300) -> JobRequest {
        var request = KillTests.request("job\(number)")
        request.gradientAccumulationSteps = 2
        request.loraR = 4 + number
        request.seed = UInt64(number)
        request.maxSteps = maxSteps - 20 * number
        if number == 2 { (request.adapter, request.loraDropout) = ("dora", 0) }
        return request
    }

    static func config(_ directory: String, isOpen: Bool, together: Int = 4) throws {
        let hour = (Calendar.current.component(.hour, from: Date()) + 12) % 24
        let hours = isOpen ? "" : String(format: "run_between: %02d:00-%02d:01\n", hour, hour)
        try (hours + "jobs_together: \(together)\n").write(toFile: directory + "/config.yaml", atomically: true, encoding: .utf8)
    }

    /// Submitted while runs are not allowed, so that all are there when they are.
    static func start(_ directory: String, together: Int, maxSteps: Int = 300) throws -> (daemon: DaemonProcess, jobs: [String]) {
        try config(directory, isOpen: false)
        let daemon = try DaemonProcess(in: directory, arguments: ["--config", directory + "/config.yaml"])
        try KillTests.prepare(daemon)
        let jobs = try (0..<3).map { number in
            let answer = try daemon.post(Endpoint.jobs, request(number, maxSteps: maxSteps))
            #expect(answer.status == 201, "\(answer.text)")
            return try answer.decoded(JobStatus.self).id
        }
        try makeDecodingSlow(directory)
        try config(directory, isOpen: true, together: together)
        kill(daemon.process.processIdentifier, SIGHUP)
        return (daemon, jobs)
    }

    /// In what plans predict times from, so that jobs end sooner together whatever this machine does beside.
    private static func makeDecodingSlow(_ directory: String) throws {
        let calibrations = URL(filePath: directory + "/state/cache/calibrations")
        for file in try FileManager.default.contentsOfDirectory(at: calibrations, includingPropertiesForKeys: nil) {
            var values = try #require(JSONSerialization.jsonObject(with: Data(contentsOf: file)) as? [String: Any])
            for width in ["narrow", "wide"] {
                var cost = try #require(values[width] as? [String: Any])
                cost["perWeight"] = 1e-7
                values[width] = cost
            }
            try JSONSerialization.data(withJSONObject: values).write(to: file)
        }
    }

    static func adapters(_ daemon: DaemonProcess) throws -> [[Data]] { try (0..<3).map { try KillTests.files(of: "job\($0)", daemon) } }

    static func log(_ job: String, _ daemon: DaemonProcess) throws -> String { try daemon.call("GET", Endpoint.jobLog(job)).text }

    static func wait(for jobs: [String], _ daemon: DaemonProcess) throws {
        for job in jobs {
            let ended = try daemon.wait(for: job) { $0.state.isFinal }
            #expect(ended.state == .succeeded, "\(ended) \(daemon.log)")
        }
    }

    @Test func eachHasTheBytesOfARunAloneWhateverHappens() throws {
        let alone = try TemporaryDirectory()
        let (first, own) = try Self.start(alone.path, together: 1)
        try Self.wait(for: own, first)
        let expected = try Self.adapters(first)
        for job in own { #expect(try !Self.log(job, first).contains("trains together")) }

        let together = try TemporaryDirectory()
        let (daemon, jobs) = try Self.start(together.path, together: 4)
        try Self.wait(for: jobs, daemon)
        for job in jobs {
            let log = try Self.log(job, daemon)
            #expect(log.contains("trains together with"), "\(log)")
        }
        #expect(try Self.adapters(daemon) == expected)

        // The worker is killed, and then the daemon; one is paused, and goes on alone.
        let disturbed = try TemporaryDirectory()
        let (victim, others) = try Self.start(disturbed.path, together: 4)
        _ = try victim.wait(for: others[1]) { $0.progress?.step ?? 0 > 5 }
        #expect(try victim.call("POST", Endpoint.jobAction(others[1], .pause)).status == 200)
        _ = try victim.wait(for: others[1]) { $0.state == .paused }
        #expect(try victim.call("GET", Endpoint.status).decoded(HostStatus.self).runningJobs == [others[0], others[2]])
        for worker in KillTests.children(of: victim.process.processIdentifier) { kill(worker, SIGKILL) }
        _ = try victim.wait(for: others[0]) { $0.runs > 1 && $0.state == .running }
        victim.killNow()
        let restarted = try DaemonProcess(in: disturbed.path, arguments: ["--config", disturbed.path + "/config.yaml"])
        #expect(try restarted.call("POST", Endpoint.jobAction(others[1], .resume)).status == 200)
        try Self.wait(for: others, restarted)
        #expect(try Self.adapters(restarted) == expected)
    }
}
