// Who may do what, with real users and groups of the kernel: another uid runs the real client. Needs root, which may
// become somebody else; CI has it.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

private let setpriv = "/usr/bin/setpriv"
private let canBecomeAnother = getuid() == 0 && FileManager.default.isExecutableFile(atPath: setpriv)

@Suite(.serialized, .enabled(if: canBecomeAnother)) struct RoleTests {
    /// Groups that every Debian has; they stand for `edgetune` and `edgetune-admin`.
    static let (userGroup, adminGroup) = ("games", "mail")

    /// A daemon of root's, whose socket lets everybody in: the roles are what holds.
    static func daemon(in directory: String) throws -> DaemonProcess {
        let config = directory + "/config.yaml"
        try "user_group: \(userGroup)\nadmin_group: \(adminGroup)\n".write(
            toFile: config, atomically: true, encoding: .utf8)
        let worker = try FakeWorker.write(in: directory, train: FakeWorker.waitForStop())
        let daemon = try DaemonProcess(in: directory, workerExecutable: worker, arguments: ["--config", config])
        chmod(directory, 0o755)
        chmod(daemon.socket, 0o666)
        return daemon
    }

    /// Runs the client as uid 12345 with one supplementary group; its exit code and what it printed.
    static func edgetune(_ arguments: [String], group: String?, socket: String) throws -> (code: Int32, text: String) {
        let identity = ["--reuid=12345", "--regid=12345"]
            + [group.map { "--groups=\(getgrnam($0)!.pointee.gr_gid)" } ?? "--clear-groups"]
        let client = (DaemonProcess.binary as NSString).deletingLastPathComponent + "/edgetune"
        return try Command.run(
            setpriv, identity + [client] + arguments,
            environment: ["PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "EDGETUNE_SOCKET": socket])
    }

    @Test func aStrangerIsRefused() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.daemon(in: directory.path)
        for arguments in [["status"], ["jobs"], ["models", "list"], ["show", "j-000000000000"]] {
            let (code, text) = try Self.edgetune(arguments, group: nil, socket: daemon.socket)
            #expect(code == 4, "\(arguments): \(text)")
        }
    }

    @Test func theGroupSubmitsAndSeesAndControlsItsOwnOnly() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.daemon(in: directory.path)
        try upload(daemon)
        let rootJob = try submit("roots", to: daemon)
        let (seen, list) = try Self.edgetune(["jobs", "--json"], group: Self.userGroup, socket: daemon.socket)
        #expect(seen == 0 && list.contains(rootJob.id), "\(list)")

        // The model is everybody's, the data set must be one's own.
        let (other, why403) = try Self.edgetune(
            ["submit", "--base-model", "m", "--dataset", "d"], group: Self.userGroup, socket: daemon.socket)
        #expect(other == 4, "\(why403)")
        let dataset = directory.path + "/own.jsonl"
        try "{\"text\":\"their own\"}\n".write(toFile: dataset, atomically: true, encoding: .utf8)
        let request = ["submit", "--base-model", "m", "--dataset", dataset, "--name", "theirs", "--json"]
        let (submitted, text) = try Self.edgetune(request, group: Self.userGroup, socket: daemon.socket)
        #expect(submitted == 0, "\(text)")
        let jobs = try daemon.call("GET", Endpoint.jobs).decoded(JobList.self).jobs
        let theirs = try #require(jobs.first { $0.name == "theirs" })
        #expect(theirs.ownerUid == 12345)

        let (refused, why) = try Self.edgetune(["cancel", rootJob.id], group: Self.userGroup, socket: daemon.socket)
        #expect(refused == 4, "\(why)")
        let (own, said) = try Self.edgetune(["cancel", theirs.id], group: Self.userGroup, socket: daemon.socket)
        #expect(own == 0, "\(said)")
        #expect(try daemon.wait(for: theirs.id) { $0.state.isFinal }.state == .cancelled)
        #expect(!(try daemon.wait(for: rootJob.id) { _ in true }).state.isFinal)
    }

    @Test func aPriorityAboveNoughtIsForAdministrators() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.daemon(in: directory.path)
        try upload(daemon)
        let dataset = directory.path + "/own.jsonl"
        try "{\"text\":\"their own\"}\n".write(toFile: dataset, atomically: true, encoding: .utf8)
        func submit(_ name: String, _ priority: String, as group: String) throws -> (code: Int32, text: String) {
            try Self.edgetune(
                ["submit", "--base-model", "m", "--dataset", dataset, "--name", name, "--priority=\(priority)"], group: group,
                socket: daemon.socket)
        }
        let (refused, why) = try submit("a", "1", as: Self.userGroup)
        #expect(refused == 4 && why.contains("priority 1 is above 0"), "\(why)")
        let (taken, said) = try submit("b", "-1", as: Self.userGroup)
        #expect(taken == 0, "\(said)")
        #expect(try submit("c", "10", as: Self.adminGroup).code == 0)
    }

    @Test func theAdminGroupControlsAll() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Self.daemon(in: directory.path)
        try upload(daemon)
        let job = try submit("roots", to: daemon)
        let (code, text) = try Self.edgetune(["cancel", job.id], group: Self.adminGroup, socket: daemon.socket)
        #expect(code == 0, "\(text)")
        #expect(try daemon.wait(for: job.id) { $0.state.isFinal }.state == .cancelled)
    }
}
