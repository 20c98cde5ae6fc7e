// A run's own cgroup: on a captured tree, where a test plays the kernel, and on the real one where this process may make
// groups with the memory controller (root on a machine of cgroup v2).
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

import edgetuned

private let unitPath = "/sys/fs/cgroup/system.slice/edgetuned.service"

extension CapturedHost {
    /// systemd's `Delegate=memory`, as the kernel shows it.
    fileprivate func delegate(controllers: String = "cpu memory pids", processes: String = "") throws {
        try write("0::/system.slice/edgetuned.service\n", to: "/proc/self/cgroup")
        try write(controllers + "\n", to: unitPath + "/cgroup.controllers")
        try write("", to: unitPath + "/cgroup.subtree_control")
        try write(processes, to: unitPath + "/cgroup.procs")
    }
}

@Suite(.serialized) struct ControlGroupTests {
    @Test func theDaemonMovesIntoALeafBeforeItEnablesTheController() throws {
        let directory = try TemporaryDirectory()
        let host = try CapturedHost(in: directory.path)
        try host.delegate(processes: "42\n")
        _ = try ControlGroup.claim(HostFiles(root: host.root), pid: 42)
        #expect(host.read(unitPath + "/serve/cgroup.procs") == "42")
        #expect(host.read(unitPath + "/cgroup.subtree_control") == "+memory")
    }

    @Test func whatIsNotDelegatedIsLeftAlone() throws {
        func refusal(_ prepare: (CapturedHost) throws -> Void) throws -> String {
            let directory = try TemporaryDirectory()
            let host = try CapturedHost(in: directory.path)
            try prepare(host)
            defer { #expect(host.read(unitPath + "/serve/cgroup.procs") == nil) }
            do { _ = try ControlGroup.claim(HostFiles(root: host.root), pid: 42) } catch { return error.description }
            return "claimed"
        }
        #expect(try refusal { try $0.write("4:memory:/x\n", to: "/proc/self/cgroup") } == "this system has no cgroup v2")
        #expect(try refusal { _ in } == "this system has no cgroup v2")
        // Raspberry Pi OS: cgroup v2 without the memory controller.
        #expect(
            try refusal { try $0.delegate(controllers: "cpu pids") } == "the kernel gives \(unitPath) no memory controller")
        #expect(try refusal { try $0.delegate(processes: "42\n7\n8\n") } == "2 other processes are in \(unitPath)")
        #expect(
            try refusal {
                try $0.delegate()
                try FileManager.default.removeItem(atPath: $0.root + unitPath + "/cgroup.subtree_control")
            } == "\(unitPath) is not delegated to this user")
    }

    @Test func theLimitIsThePlanAndAWrittenHeadroom() {
        #expect(ControlGroup.limit(planned: 64 << 20) == 81 << 20)
    }

    @Test func aRunIsInItsOwnGroupWhichIsReadAndRemoved() throws {
        let directory = try TemporaryDirectory()
        let host = try CapturedHost(in: directory.path)
        try host.delegate()
        try host.write("1\n", to: unitPath + "/job-left/memory.max")
        let daemon = try DaemonProcess(in: directory.path, arguments: ["--host-root", host.root])
        #expect(host.read(unitPath + "/job-left/memory.max") == nil)
        try KillTests.prepare(daemon)
        // Of the plan that the job was taken with: a run plans again, and what it held until then may be a little more.
        let submitted = try daemon.post(Endpoint.jobs, KillTests.request("a")).decoded(JobStatus.self)
        let job = submitted.id
        _ = try daemon.wait(for: job) { ($0.progress?.step ?? 0) >= 3 }
        let group = "\(unitPath)/job-\(job)"
        let peak = try #require(submitted.plan?.peakBytes)
        let limit = peak + peak / 64 + 16 << 20
        #expect(host.read(group + "/memory.max") == "\(limit)")
        #expect(host.read(group + "/memory.swap.max") == "0")
        #expect(host.read(group + "/memory.oom.group") == "1")
        #expect(
            host.read(group + "/cgroup.procs") == KillTests.children(of: daemon.process.processIdentifier).first.map { "\($0)" })
        try host.write("\(30 << 20)\n", to: group + "/memory.peak")
        try host.write("low 0\nmax 7\noom 0\noom_kill 0\n", to: group + "/memory.events")
        #expect(try daemon.wait(for: job) { $0.state.isFinal }.state == .succeeded)
        let log = try daemon.call("GET", Endpoint.jobLog(job)).text
        #expect(log.contains("cgroup of the run: limit \(limit >> 20) MiB, peak 30 MiB, oom_kill 0"), "\(log)")
        #expect(!FileManager.default.fileExists(atPath: host.root + group))
    }

    @Test func aQuotaIsTheGroupsWhereThereIsAController() throws {
        let directory = try TemporaryDirectory()
        let host = try CapturedHost(in: directory.path)
        for (controllers, holds) in [("cpu memory pids", true), ("memory pids", false)] {
            try host.delegate(controllers: controllers, processes: "42\n")
            let group = try ControlGroup.claim(HostFiles(root: host.root), pid: 42)
            let run = try group.makeRun("j-\(holds)", planned: 1, cpuQuota: 1.5)
            #expect(run.holdsQuota == holds)
            #expect(host.read("\(unitPath)/job-j-\(holds)/cpu.max") == (holds ? "150000 100000" : nil))
            #expect(try !group.makeRun("j-free", planned: 1).holdsQuota)
            #expect(host.read("\(unitPath)/job-j-free/cpu.max") == nil)
        }
    }

    @Test func aKillByTheLimitIsToldWithTheNumbersAndTheRunGoesOn() throws {
        let directory = try TemporaryDirectory()
        let host = try CapturedHost(in: directory.path)
        try host.delegate()
        let daemon = try DaemonProcess(in: directory.path, arguments: ["--host-root", host.root])
        try KillTests.prepare(daemon)
        let job = try KillTests.submit("a", to: daemon)
        _ = try daemon.wait(for: job) { ($0.progress?.step ?? 0) >= 3 }
        try host.write("oom 1\noom_kill 1\n", to: "\(unitPath)/job-\(job)/memory.events")
        for worker in KillTests.children(of: daemon.process.processIdentifier) { kill(worker, SIGKILL) }
        #expect(try daemon.wait(for: job) { $0.state.isFinal }.state == .succeeded)
        let log = try daemon.call("GET", Endpoint.jobLog(job)).text
        #expect(log.contains("the worker was killed by its cgroup's memory limit (limit "), "\(log)")
    }

    @Test func aWorkerThatCannotJoinSaysSoAndRuns() throws {
        let directory = try TemporaryDirectory()
        let host = try CapturedHost(in: directory.path)
        try host.delegate()
        let daemon = try DaemonProcess(in: directory.path, arguments: ["--host-root", host.root])
        try KillTests.prepare(daemon)
        let first = try KillTests.submit("a", to: daemon)
        let second = try KillTests.submit("b", to: daemon)
        _ = try daemon.wait(for: first) { ($0.progress?.step ?? 0) >= 3 }
        // What is there already cannot be written to as a file.
        try host.write("", to: "\(unitPath)/job-\(second)/cgroup.procs/taken")
        #expect(try daemon.wait(for: second) { $0.state.isFinal }.state == .succeeded)
        let log = try daemon.call("GET", Endpoint.jobLog(second)).text
        #expect(log.contains("the run has no memory limit of the kernel's: joining "), "\(log)")
    }

    // MARK: the kernel's own

    private static let canMakeGroups =
        getuid() == 0
        && (try? String(contentsOfFile: "/sys/fs/cgroup/cgroup.subtree_control", encoding: .utf8))?.contains("memory") == true

    /// A group of the root's children stands for the unit's; a shell enters it and becomes the daemon.
    @Test(.enabled(if: canMakeGroups)) func theKernelHoldsARunToItsLimit() throws {
        let directory = try TemporaryDirectory()
        let unit = "/sys/fs/cgroup/edge-test-\(getpid())"
        try FileManager.default.createDirectory(atPath: unit, withIntermediateDirectories: false)
        defer {
            for group in ["/serve", ""] { rmdir(unit + group) }
        }
        // Joins as the real one does, and takes far more than the limit of a plan of one byte.
        let worker = try FakeWorker.write(
            in: directory.path,
            train: """
                echo '\(try FakeWorker.step(1))'
                group=$(echo "$order" | sed 's/.*"control_group":"\\([^"]*\\)".*/\\1/')
                echo $$ > "$group/cgroup.procs"
                # tail keeps all of it, for it cannot know before the end where the last so many bytes begin.
                head -c 400000000 /dev/zero | tail -c 400000000 | wc -c >&2
                """)
        let enter = directory.path + "/enter"
        try "#!/bin/sh\necho $$ > \(unit)/cgroup.procs\nexec \(DaemonProcess.binary) \"$@\"\n".write(
            toFile: enter, atomically: true, encoding: .utf8)
        chmod(enter, 0o755)
        let config = directory.path + "/edgetuned.yaml"
        try "retry_after: 1s\n".write(toFile: config, atomically: true, encoding: .utf8)
        let daemon = try DaemonProcess(
            in: directory.path, executable: enter, workerExecutable: worker, arguments: ["--config", config])
        try upload(daemon)
        let job = try submit("a", to: daemon)
        let failed = try daemon.wait(for: job.id) { $0.state.isFinal }
        #expect(failed.problem?.kind == .workerKilled)
        #expect(failed.problem?.detail.contains("killed by its cgroup's memory limit (limit 16 MiB") == true, "\(failed)")
        #expect(!FileManager.default.fileExists(atPath: unit + "/job-" + job.id))
        daemon.killNow()
    }
}
