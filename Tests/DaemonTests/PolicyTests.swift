// The real daemon and the real worker on captured boards: heat, power, hours, disk, time limits and priorities while jobs run.
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct PolicyTests {
    /// A daemon that looks at the machine every 50 ms.
    private final class Board {
        let host: CapturedHost
        let daemon: DaemonProcess
        private let config: String

        init(_ board: CapturedBoard, in directory: String, config text: String = "") throws {
            host = try CapturedHost(board, in: directory)
            config = directory + "/edgetuned.yaml"
            try text.write(toFile: config, atomically: true, encoding: .utf8)
            daemon = try DaemonProcess(
                in: directory, environment: ["TZ": "UTC0"],
                arguments: ["--host-root", host.root, "--config", config, "--look-milliseconds", "50"])
            try KillTests.prepare(daemon)
        }

        /// SIGHUP, as `systemctl reload` sends it.
        func reload(_ text: String) throws {
            try text.write(toFile: config, atomically: true, encoding: .utf8)
            kill(daemon.process.processIdentifier, SIGHUP)
        }

        func submit(_ name: String, _ change: (inout JobRequest) -> Void = { _ in }) throws -> String {
            var request = KillTests.request(name)
            request.maxSteps = 300
            change(&request)
            let answer = try daemon.post(Endpoint.jobs, request)
            #expect(answer.status == 201, "\(answer.text)")
            return try answer.decoded(JobStatus.self).id
        }

        func submitAndRun(_ name: String, _ change: (inout JobRequest) -> Void = { _ in }) throws -> String {
            let job = try submit(name, change)
            _ = try daemon.wait(for: job) { ($0.progress?.step ?? 0) >= 3 }
            return job
        }

        func finish(_ job: String) throws {
            let status = try daemon.wait(for: job) { $0.state.isFinal }
            #expect(status.state == .succeeded, "\(status)\n\(daemon.log)")
        }

        func waiting(_ job: String, for opening: String) throws -> JobStatus {
            try daemon.wait(for: job) { $0.state == .queued && $0.reason?.hasPrefix("waits for \(opening)") == true }
        }

        var status: HostStatus { get throws { try daemon.call("GET", Endpoint.status).decoded(HostStatus.self) } }

        func log(_ job: String) throws -> String { try daemon.call("GET", Endpoint.jobLog(job)).text }

        /// Fields of a stat file from the third on.
        private func stat(_ path: String) throws -> [Substring] {
            let stat = try String(contentsOfFile: path, encoding: .utf8)
            return try #require(stat.split(separator: ")").last).split(separator: " ")
        }

        private func worker() throws -> String {
            "/proc/\(try #require(KillTests.children(of: daemon.process.processIdentifier).first))"
        }

        /// Seconds of user and system time: the 14th and 15th field.
        func workerSeconds() throws -> Double {
            try stat(worker() + "/stat")[11...12].reduce(0) { $0 + (Double($1) ?? 0) } / Double(sysconf(Int32(_SC_CLK_TCK)))
        }

        /// Nice (the 19th field) and policy (the 41st) of the thread that computes most.
        func workerScheduling() throws -> [Substring] {
            let tasks = try worker() + "/task"
            let threads = try FileManager.default.contentsOfDirectory(atPath: tasks).map { try stat("\(tasks)/\($0)/stat") }
            let busiest = try #require(threads.max { (Int($0[11]) ?? 0) < (Int($1[11]) ?? 0) })
            return [busiest[16], busiest[38]]
        }
    }

    /// HH:MM, `minutes` from now, in UTC.
    private static func clock(_ minutes: Int) -> String {
        let now = Int(Date().timeIntervalSince1970) / 60 % 1440
        return DayWindow.clock((now + minutes + 1440) % 1440)
    }

    @Test(arguments: CapturedBoard.allCases)
    func aHotBoardPausesTheRunWhichGoesOnWhenItIsCoolWithTheSameBytes(_ board: CapturedBoard) throws {
        let directory = try TemporaryDirectory()
        let rig = try Board(board, in: directory.path)
        try rig.finish(try rig.submit("undisturbed"))
        let job = try rig.submitAndRun("disturbed")
        let (zone, limit) = (board.hottest.index, board.hottest.pausesAt * 1000)
        try rig.host.setTemperature(limit + 1200, zone: zone)
        let waiting = try rig.waiting(job, for: "a cooler board")
        let step = try #require(waiting.progress?.step)
        #expect(
            waiting.reason
                == "waits for a cooler board: \(board.hottest.name) is at \(board.hottest.pausesAt + 1).2 °C, runs pause at "
                + "\(board.hottest.pausesAt) °C (\(board.hottest.throttling)) and start below \(board.hottest.pausesAt - 8) °C; "
                + "goes on from step \(step)")
        // Cooler than what ended the run, and not cool enough to start one.
        try rig.host.setTemperature(limit - 5000, zone: zone)
        usleep(300_000)
        #expect(try rig.daemon.wait(for: job) { _ in true }.runs == 1)
        let status = try rig.status
        #expect(status.waits?.contains("\(board.hottest.name) is at \(board.hottest.pausesAt - 5) °C") == true, "\(status)")
        #expect(status.policies?.first { $0.name == "heat" }?.allows == false)
        #expect(status.temperatures.first { $0.zone == board.hottest.name }?.limitCelsius == Double(board.hottest.pausesAt))
        try rig.host.setTemperature(45_000, zone: zone)
        try rig.finish(job)
        #expect(try rig.daemon.wait(for: job) { _ in true }.runs == 2)
        #expect(try rig.log(job).contains("resumed after step \(step)"))
        #expect(try rig.status.waits == nil)
        #expect(try KillTests.files(of: "disturbed", rig.daemon) == KillTests.files(of: "undisturbed", rig.daemon))
    }

    @Test func anUnpluggedLaptopPausesAndOneThatIsPluggedInGoesOn() throws {
        let directory = try TemporaryDirectory()
        let rig = try Board(.laptop, in: directory.path)
        let job = try rig.submitAndRun("a")
        try rig.host.unplug(percent: 70)
        let waiting = try rig.waiting(job, for: "mains power")
        #expect(waiting.reason?.hasPrefix("waits for mains power: on battery, 70 %; goes on from step ") == true)
        #expect(try rig.status.policies?.first { $0.name == "power" } == .init(name: "power", allows: false, text: "on battery, 70 %"))
        // Allowed by the configuration, to a level.
        try rig.reload("on_battery: 40%\n")
        _ = try rig.daemon.wait(for: job) { $0.state == .running && $0.runs == 2 }
        try rig.host.unplug(percent: 39)
        _ = try rig.daemon.wait(for: job) { $0.state == .queued && $0.reason?.contains("on battery, 39 %, runs pause below 40 %") == true }
        try rig.host.plugIn(percent: 39)
        try rig.finish(job)
    }

    @Test func aRunLeavesWhenTheDaemonsHoursEndAndGoesOnWhenTheyBegin() throws {
        let directory = try TemporaryDirectory()
        let rig = try Board(.n100, in: directory.path)
        try rig.finish(try rig.submit("undisturbed"))
        let job = try rig.submitAndRun("disturbed")
        let closed = "\(Self.clock(120))-\(Self.clock(180))"
        try rig.reload("run_between: \(closed)\n")
        let waiting = try rig.waiting(job, for: "its hours")
        #expect(waiting.reason?.hasPrefix("waits for its hours: the daemon's run_between is \(closed); goes on from") == true)
        #expect(try rig.status.policies?.first { $0.name == "hours" }?.allows == false)
        // Over midnight or not, as it is now.
        try rig.reload("run_between: \(Self.clock(-120))-\(Self.clock(120))\n")
        try rig.finish(job)
        #expect(try KillTests.files(of: "disturbed", rig.daemon) == KillTests.files(of: "undisturbed", rig.daemon))
    }

    @Test func aJobsOwnHoursHoldItBackAndNoOther() throws {
        let directory = try TemporaryDirectory()
        let rig = try Board(.n100, in: directory.path)
        let closed = "\(Self.clock(120))-\(Self.clock(180))"
        let job = try rig.submit("later") { $0.runBetween = closed }
        let other = try rig.submit("now") { $0.maxSteps = 10 }
        try rig.finish(other)
        #expect(try rig.waiting(job, for: "its hours").reason == "waits for its hours: the job's run_between is \(closed)")
        var request = KillTests.request("x")
        request.runBetween = "1-6"
        let answer = try rig.daemon.post(Endpoint.jobs, request)
        #expect(try answer.decoded(Problem.self).detail.contains("run_between: \"1-6\" is not allowed"), "\(answer.text)")
    }

    @Test func aFullDiskPausesRunsUntilThereIsRoom() throws {
        let directory = try TemporaryDirectory()
        let rig = try Board(.rk3588, in: directory.path)
        let job = try rig.submitAndRun("a")
        // No disk has so much.
        try rig.reload("min_free_disk: 500000TB\n")
        let waiting = try rig.waiting(job, for: "disk space")
        #expect(waiting.reason?.contains(" MiB are free, runs pause below 476837158203 MiB and start from ") == true, "\(waiting)")
        try rig.reload("min_free_disk: off\n")
        try rig.finish(job)
        #expect(try rig.daemon.wait(for: job) { _ in true }.runs == 2)
    }

    @Test func whenItsTimeIsOverAJobPublishesAnAdapterThatCanBeUsed() throws {
        let directory = try TemporaryDirectory()
        let rig = try Board(.raspberryPi5, in: directory.path)
        let job = try rig.submit("short") {
            $0.maxSteps = 1_000_000
            $0.maxTime = "2s"
            $0.evalSteps = 1_000_000
        }
        let status = try rig.daemon.wait(for: job) { $0.state.isFinal }
        #expect(status.state == .succeeded, "\(status)")
        #expect((2.0..<30).contains(status.runSeconds ?? 0), "\(status)")
        let steps = try #require(status.progress?.step)
        #expect(steps > 3 && steps < 1_000_000)
        let record = try rig.daemon.call("GET", Endpoint.adapterFile("short", "training.json")).text
        #expect(record.contains("\"ended_early\" : true"), "\(record)")
        // Evaluated at its end, and that is what was kept.
        #expect(record.contains("\"kept_step\" : \(steps)"), "\(record)")
        #expect(try rig.log(job).contains("max_time 2s is over: the run ends with what it has"))
        // It is an adapter: another job begins from it.
        let next = try rig.submit("next") {
            $0.maxSteps = 3
            $0.initFromAdapter = "short"
        }
        try rig.finish(next)
    }

    @Test func theTimeIsCountedOverKilledRuns() throws {
        let directory = try TemporaryDirectory()
        let rig = try Board(.raspberryPi5, in: directory.path)
        let job = try rig.submitAndRun("short") {
            $0.maxSteps = 1_000_000
            $0.maxTime = "4s"
        }
        usleep(1_500_000)
        for worker in KillTests.children(of: rig.daemon.process.processIdentifier) { kill(worker, SIGKILL) }
        let status = try rig.daemon.wait(for: job) { $0.state.isFinal }
        #expect(status.state == .succeeded && status.runs == 2, "\(status)")
        #expect((4.0..<30).contains(status.runSeconds ?? 0), "\(status)")
    }

    @Test func aWorkerIsAsNiceAndAsSlowAsConfigured() throws {
        let directory = try TemporaryDirectory()
        // The lowest: whatever the tests themselves run at, a worker may go there.
        let rig = try Board(.n100, in: directory.path, config: "nice: 19\ncpu_quota: 40%\n")
        let job = try rig.submitAndRun("nice") { $0.maxSteps = 1_000_000 }
        #expect(try rig.workerScheduling() == ["19", "0"])
        // Without a cgroup it rests by itself.
        let (before, start) = (try rig.workerSeconds(), ContinuousClock.now)
        usleep(3_000_000)
        let share = (try rig.workerSeconds() - before) / ((ContinuousClock.now - start) / .seconds(1))
        // At nice 19 it is the others that say how little it gets.
        #expect(share > 0 && share < 0.5, "\(share) cores")
        print("a worker held to 0.4 cores used \(share)")
        #expect(try rig.daemon.call("POST", Endpoint.jobAction(job, .cancel)).status == 200)
        _ = try rig.daemon.wait(for: job) { $0.state.isFinal }

        try rig.reload("nice: idle\n")
        usleep(200_000)
        let idle = try rig.submitAndRun("idle") { $0.maxSteps = 1_000_000 }
        #expect(try rig.workerScheduling()[1] == "5", "SCHED_IDLE")
        #expect(try rig.daemon.call("POST", Endpoint.jobAction(idle, .cancel)).status == 200)
        _ = try rig.daemon.wait(for: idle) { $0.state.isFinal }
    }

    @Test func aHigherPriorityTakesOverAndBothEndWithTheSameBytes() throws {
        let directory = try TemporaryDirectory()
        let rig = try Board(.n100, in: directory.path)
        try rig.finish(try rig.submit("undisturbed"))
        let low = try rig.submitAndRun("low") { $0.priority = -3 }
        let high = try rig.submit("high")
        try rig.finish(high)
        try rig.finish(low)
        #expect(try rig.daemon.wait(for: low) { _ in true }.runs == 2)
        #expect(try rig.log(low).contains("waits for its turn: \(high) has priority 0, this has -3; goes on from step"))
        for name in ["low", "high"] {
            #expect(try KillTests.files(of: name, rig.daemon) == KillTests.files(of: "undisturbed", rig.daemon), "\(name)")
        }
    }

    /// Stopped by a debugger's signal, a worker says nothing and is not in the way of a cancel.
    @Test func aFrozenWorkerDoesNotHoldTheQueue() throws {
        let directory = try TemporaryDirectory()
        let rig = try Board(.n100, in: directory.path, config: "stop_timeout_seconds: 1\n")
        let frozen = try rig.submitAndRun("frozen") { $0.maxSteps = 1_000_000 }
        for worker in KillTests.children(of: rig.daemon.process.processIdentifier) { kill(worker, SIGSTOP) }
        let next = try rig.submit("next") { $0.maxSteps = 10 }
        #expect(try rig.daemon.call("POST", Endpoint.jobAction(frozen, .pause)).status == 200)
        #expect(try rig.daemon.wait(for: frozen) { $0.state == .paused }.reason == "paused by request")
        try rig.finish(next)
    }

    private static func check(_ file: String) throws -> (code: Int32, text: String) {
        try Command.run(DaemonProcess.binary, ["serve", "--check-config", "--config", file])
    }

    @Test func theShippedConfigurationIsValid() throws {
        let (code, text) = try Self.check(TestModel.repositoryRoot + "/configs/edgetuned.yaml")
        #expect(code == 0, "\(text)")
    }

    @Test(arguments: [
        "max_temperature: hot", "max_temperature: 200", "temperature_hysteresis: 0", "on_battery: 40", "run_between: 1-6",
        "min_free_disk: much", "nice: 20", "nice: -1", "cpu_quota: 150", "cpu_quota: 0%", "turn: 1", "retry_after: off", "keep_jobs: 0",
        "keep_logs: -1",
    ])
    func aValueThatIsNoneIsRefusedWithWhatIsOne(_ line: String) throws {
        let directory = try TemporaryDirectory()
        let file = directory.path + "/c.yaml"
        try (line + "\n").write(toFile: file, atomically: true, encoding: .utf8)
        let (code, text) = try Self.check(file)
        #expect(code == 78 && text.contains(line.prefix { $0 != ":" } + ": use "), "\(text)")
    }

    @Test(arguments: [
        "max_temperature: 72.5", "max_temperature: off", "on_battery: 40%", "run_between: 22:00-06:00", "min_free_disk: 5%", "nice: idle",
        "nice: 0", "cpu_quota: 150%", "turn: off", "turn: 90m", "retry_after: 1m", "keep_logs: 0",
    ])
    func valuesAsTheyAreWritten(_ line: String) throws {
        let directory = try TemporaryDirectory()
        let file = directory.path + "/c.yaml"
        try (line + "\n").write(toFile: file, atomically: true, encoding: .utf8)
        let (code, text) = try Self.check(file)
        #expect(code == 0, "\(text)")
    }

    @Test func onlyTheNewestFinishedJobsAndLogsAreKept() throws {
        let directory = try TemporaryDirectory()
        let worker = try FakeWorker.write(
            in: directory.path, train: "mkdir -p \"$out/checkpoints\"; " + FakeWorker.succeed())
        var daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        try upload(daemon)
        var jobs: [String] = []
        for name in ["a", "b", "c", "d"] {
            jobs.append(try submit(name, to: daemon).id)
            _ = try daemon.wait(for: jobs[jobs.count - 1]) { $0.state.isFinal }
        }
        #expect(daemon.terminate() == 0)
        let config = directory.path + "/edgetuned.yaml"
        try "keep_jobs: 3\nkeep_logs: 1\n".write(toFile: config, atomically: true, encoding: .utf8)
        daemon = try DaemonProcess(in: directory.path, workerExecutable: worker, arguments: ["--config", config])
        let deadline = Date().addingTimeInterval(20)
        while !daemon.log.contains("1 old jobs deleted, events and logs of 2"), Date() < deadline { usleep(20_000) }
        #expect(daemon.log.contains("1 old jobs deleted, events and logs of 2"), "\(daemon.log)")
        let left = try daemon.call("GET", Endpoint.jobs).decoded(JobList.self).jobs.map(\.id)
        #expect(left == [jobs[3], jobs[2], jobs[1]])
        func lines(_ job: String) throws -> Int {
            try daemon.call("GET", Endpoint.jobEvents(job) + "?follow=0").text.split(separator: "\n").count
        }
        #expect(try lines(jobs[1]) == 1 && lines(jobs[2]) == 1 && lines(jobs[3]) > 3)
        let files = FileManager.default
        let directories = jobs.map { "\(directory.path)/state/jobs/\($0)" }
        // Its adapter is still held, and goes when somebody removes it.
        #expect(try daemon.call("GET", Endpoint.adapter("a")).status == 200)
        #expect(directories.allSatisfy { files.fileExists(atPath: $0 + "/adapter") })
        #expect(directories.map { files.fileExists(atPath: $0 + "/checkpoints") } == [false, false, false, true])
    }
}
