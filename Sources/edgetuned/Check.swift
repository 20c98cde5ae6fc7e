// `edgetuned check`: looks at all that a stopped daemon has stored, and with --repair mends what can be mended without loss
// and moves aside what is damaged. Its exit code: 0 nothing is damaged, 1 something was, 2 the check could not be made.
import ArgumentParser
import EdgeJobs
import EdgeWire
import Foundation

struct Check: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Verify the job store, models, data sets, checkpoints and adapters of a stopped daemon.",
        discussion: """
            Exits with 0 when nothing is damaged, with 1 when something was (also when --repair has seen to it), and with \
            2 when the check could not be made. What is damaged is moved to STATE/quarantine, with a note, and never deleted.
            """)

    @Option(help: "The configuration file (default: \(DaemonConfig.defaultPath), if it is there).")
    var config: String?
    @Option(help: "The daemon's state directory.")
    var stateDir: String?
    @Flag(help: "Mend what can be mended without loss, and move aside what is damaged.")
    var repair = false
    @Flag(help: "Print one JSON object.")
    var json = false

    func run() throws {
        let report: CheckReport
        do { report = try checked() } catch {
            FileHandle.standardError.write(Data("edgetuned check: \((StoreError(error) ?? error) as any Error)\n".utf8))
            throw ExitCode(2)
        }
        print(json ? try report.json : report.text)
        if report.damaged > 0 { throw ExitCode(1) }
    }

    private func checked() throws -> CheckReport {
        let places = Places(
            config: try DaemonConfig.read(pathOrDefault: config), socketOption: nil, stateOption: stateDir,
            environment: ProcessInfo.processInfo.environment, uid: getuid())
        try becomeOwner(of: places.state)
        umask(0o077)
        guard let lock = StateLock(places.lock) else {
            throw ConfigError(
                "edgetuned is running on \(places.state); stop it first (systemctl stop edgetuned.socket edgetuned.service)")
        }
        defer { lock.release() }
        var check = StateCheck(places: places, mode: repair ? .repair : .look, now: Date().inWholeSeconds)
        return try check.run()
    }

    /// Root becomes the user that the state is of: what it leaves there has to be the daemon's.
    private func becomeOwner(of path: String) throws {
        var status = stat()
        guard stat(path, &status) == 0 else {
            throw ConfigError("\(path): \(String(cString: strerror(errno)))")
        }
        guard getuid() == 0, status.st_uid != 0 else { return }
        guard setgroups(0, nil) == 0, setgid(status.st_gid) == 0, setuid(status.st_uid) == 0 else {
            throw ConfigError("cannot become uid \(status.st_uid), whose \(path) is: \(String(cString: strerror(errno)))")
        }
    }
}
