// The daemon's cgroup, where systemd delegates it (cgroup v2): `serve` moves itself into a leaf, and every run gets a
// group of its own beside it, with a limit that the kernel holds. Nothing outside the delegated group is ever written.
import EdgeJobs
import Foundation

/// The delegated group, with this process in `serve` below it.
///
///     edgetuned.service      memory in cgroup.subtree_control; no process of its own, as v2 demands of inner groups
///       serve                the daemon, and workers with small orders
///       job-<id>             one run
package struct ControlGroup: Equatable, Sendable {
    private let files: HostFiles
    /// Below the host's root: "/sys/fs/cgroup/system.slice/edgetuned.service".
    private let directory: String

    private static let leaf = "serve"
    private static let jobPrefix = "job-"

    /// Beside the bytes of the plan, what the kernel charges to a group that no plan holds. 1/64 of it: page tables (8 bytes
    /// for each 4096 mapped, 1/512) and what the kernel keeps of cached pages. 16 MiB whatever the plan: stacks and file
    /// objects of the kernel's, and a window of page cache for what streams through, checkpoints on their way to the disk
    /// and data sets on theirs from it.
    package static func limit(planned: UInt64) -> UInt64 { planned + planned / 64 + 16 << 20 }

    /// Why there is no group to work with.
    package struct Unavailable: Error, Equatable, CustomStringConvertible {
        package let description: String
    }

    /// The directory of this process's group in v2's tree; nil where there is no v2.
    static func own(_ files: HostFiles) -> String? {
        guard let line = files.text("/proc/self/cgroup")?.split(separator: "\n").first(where: { $0.hasPrefix("0::/") })
        else { return nil }
        let path = line.dropFirst("0::".count)
        return path.contains("/..") ? nil : "/sys/fs/cgroup" + (path == "/" ? "" : path)
    }

    /// Takes over the group that this process was started in. Before any other process is started, and once.
    package static func claim(_ files: HostFiles, pid: Int32) throws(Unavailable) -> ControlGroup {
        guard let directory = own(files), let controllers = files.text(directory + "/cgroup.controllers") else {
            throw Unavailable(description: "this system has no cgroup v2")
        }
        guard Self.names(controllers).contains("memory") else {
            throw Unavailable(description: "the kernel gives \(directory) no memory controller")
        }
        guard access(files.root + directory + "/cgroup.subtree_control", W_OK) == 0,
            access(files.root + directory, W_OK) == 0
        else { throw Unavailable(description: "\(directory) is not delegated to this user") }
        // A shell's or a container's group: it is not this daemon's to rearrange, and the kernel would refuse.
        let others = (files.text(directory + "/cgroup.procs") ?? "").split(separator: "\n").filter { $0 != "\(pid)" }
        guard others.isEmpty else {
            throw Unavailable(description: "\(others.count) other processes are in \(directory)")
        }
        let group = ControlGroup(files: files, directory: directory)
        try group.enter(pid)
        return group
    }

    private static func names(_ controllers: String) -> Set<Substring> { Set(controllers.split(whereSeparator: \.isWhitespace)) }

    private func hasController(_ name: Substring) -> Bool {
        Self.names(files.text(directory + "/cgroup.controllers") ?? "").contains(name)
    }

    private func enter(_ pid: Int32) throws(Unavailable) {
        let serve = "\(directory)/\(Self.leaf)"
        try make(serve)
        // Out of the inner group first: it may not have both processes and controllers for its children.
        try write("\(pid)", to: serve + "/cgroup.procs")
        // For quotas. Without it workers hold themselves to theirs.
        if hasController("cpu") { _ = files.write("+cpu", to: directory + "/cgroup.subtree_control") }
        do { try write("+memory", to: directory + "/cgroup.subtree_control") } catch {
            _ = files.write("\(pid)", to: directory + "/cgroup.procs")
            _ = rmdir(files.root + serve)
            throw error
        }
    }

    /// Removes the groups of runs that an earlier daemon left, and returns those that stay.
    package func removeLeftovers() -> [String] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: files.root + directory)) ?? []
        return names.filter { $0.hasPrefix(Self.jobPrefix) }.sorted().compactMap { name in
            let job = "\(directory)/\(name)"
            // Since Linux 5.14. Whoever is still in it belonged to a daemon that is gone.
            if access(files.root + job + "/cgroup.kill", W_OK) == 0 { _ = files.write("1", to: job + "/cgroup.kill") }
            return remove(job).map { "\(name): \($0)" }
        }
    }

    // MARK: one run

    /// Microseconds; the kernel's own default for cpu.max, as systemd has it for CPUQuota=.
    private static let quotaPeriod = 100_000

    /// A group for one run, with its limits in force.
    ///
    /// - Parameter cpuQuota: cores' worth of time; nil: no limit.
    package func makeRun(_ job: String, planned: UInt64, cpuQuota: Double? = nil) throws(Unavailable) -> RunGroup {
        let run = "\(directory)/\(Self.jobPrefix)\(job)"
        let limit = Self.limit(planned: planned)
        try make(run)
        do { try write("\(limit)", to: run + "/memory.max") } catch {
            _ = remove(run)
            throw error
        }
        // A kernel without swap has no such file, and then nothing swaps.
        _ = files.write("0", to: run + "/memory.swap.max")
        // Threads of one process die together anyway; whatever else joins the group dies with them.
        _ = files.write("1", to: run + "/memory.oom.group")
        var holdsQuota = false
        if let cpuQuota {
            let quota = "\(Int(cpuQuota * Double(Self.quotaPeriod))) \(Self.quotaPeriod)"
            holdsQuota = hasController("cpu") && files.write(quota, to: run + "/cpu.max") == nil
        }
        return RunGroup(directory: files.root + run, holdsQuota: holdsQuota, end: { [self] in await end(run, limit) })
    }

    private func end(_ run: String, _ limit: UInt64) async -> RunGroupReport {
        var report = RunGroupReport(
            limitBytes: files.number(run + "/memory.max") ?? limit, peakBytes: files.number(run + "/memory.peak"),
            swapPeakBytes: files.number(run + "/memory.swap.peak"),
            oomKills: files.figures(run + "/memory.events")["oom_kill"] ?? 0)
        // A process that was waited for can hold its group for a moment more, while the kernel takes it apart.
        for attempt in 1...Self.removals {
            report.leftBehind = remove(run)
            if report.leftBehind == nil { break }
            if attempt < Self.removals { try? await Task.sleep(for: .milliseconds(20)) }
        }
        return report
    }

    /// Attempts, 20 ms apart: a second together.
    private static let removals = 50

    /// Moves the calling process into `directory`, a group of the machine.
    ///
    /// - Returns: why it could not.
    static func join(_ directory: String) -> String? {
        HostFiles.machine.write("\(getpid())", to: directory + "/cgroup.procs").map {
            "joining \(directory): \(String(cString: strerror($0)))"
        }
    }

    // MARK: the kernel's files

    private func make(_ path: String) throws(Unavailable) {
        guard mkdir(files.root + path, 0o755) == 0 || errno == EEXIST else {
            throw Unavailable(description: "mkdir \(path): \(String(cString: strerror(errno)))")
        }
    }

    private func write(_ text: String, to path: String) throws(Unavailable) {
        if let error = files.write(text, to: path) {
            throw Unavailable(description: "writing \(text) to \(path): \(String(cString: strerror(error)))")
        }
    }

    /// - Returns: why the group is still there.
    private func remove(_ path: String) -> String? {
        guard rmdir(files.root + path) != 0, errno != ENOENT else { return nil }
        // In the kernel's tree a group's files go with it; in a captured one they are files.
        if files != .machine, errno == ENOTEMPTY {
            return (try? FileManager.default.removeItem(atPath: files.root + path)) == nil ? "not removed" : nil
        }
        return String(cString: strerror(errno))
    }
}
