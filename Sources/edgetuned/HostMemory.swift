// What this machine, and every cgroup around the daemon, has and leaves of memory, and which of them is the least. Reads
// through HostFiles, decides nothing but the budget.
import EdgeWire
import Foundation

/// A number of bytes, and what says so.
package struct MemoryBound: Equatable, Sendable {
    package let bytes: UInt64
    package let name: String

    package init(bytes: UInt64, name: String) {
        self.bytes = bytes
        self.name = name
    }
}

package struct HostMemory: Equatable, Sendable {
    /// Of the machine, or of the cgroup where that is less.
    package let total: MemoryBound
    /// What could be taken now without swapping.
    package let available: MemoryBound

    package init(total: MemoryBound, available: MemoryBound) {
        self.total = total
        self.available = available
    }

    package init(_ files: HostFiles) {
        let meminfo = files.figures("/proc/meminfo")
        var total = MemoryBound(bytes: (meminfo["MemTotal"] ?? 0) * 1024, name: "MemTotal")
        var available = MemoryBound(bytes: (meminfo["MemAvailable"] ?? 0) * 1024, name: "MemAvailable")
        for limit in CgroupMemory.limits(files) {
            if limit.bytes < total.bytes { total = MemoryBound(bytes: limit.bytes, name: limit.name) }
            if limit.left < available.bytes {
                available = MemoryBound(bytes: limit.left, name: "what \(limit.name) leaves")
            }
        }
        self.init(total: total, available: available)
    }

    /// Bytes that a job may plan for: what it asked, what the configuration allows, and what is there, whichever is
    /// least. A tenth of what is available stays free for everything else on the board.
    ///
    /// - Parameter running: what a running job holds: it will be gone when this one starts.
    package func budget(asked: String?, allowed: String, running: UInt64 = 0) -> MemoryBound {
        let bytes = available.bytes + running
        func wanted(_ text: String?, _ name: String) -> MemoryBound? {
            guard let text, let budget = MemoryBudget(text) else { return nil }
            return MemoryBound(
                bytes: budget.resolved(machineBytes: total.bytes),
                name: "\(name), \(text)" + (text.hasSuffix("%") ? " of \(total.name)" : ""))
        }
        let bounds = [
            wanted(asked, "the job's memory_budget"), wanted(allowed, "the daemon's memory_budget"),
            MemoryBound(bytes: bytes - bytes / 10, name: "\(available.name) less a tenth"),
        ].compactMap { $0 }
        // The last of them is always there. `min` takes the first of equals.
        return bounds.min { $0.bytes < $1.bytes } ?? bounds[bounds.count - 1]
    }
}

/// The limits of the cgroups from ours to the root: v2's one tree, and v1's tree of the memory controller.
enum CgroupMemory {
    struct Limit: Equatable {
        let bytes: UInt64
        let name: String
        /// Of `bytes`, what can still be charged.
        let left: UInt64
    }

    /// v1 writes "no limit" as the largest number of whole pages in 63 bits, which depends on the page size.
    private static let unlimitedFrom: UInt64 = 1 << 62

    static func limits(_ files: HostFiles) -> [Limit] {
        var limits: [Limit] = []
        for line in (files.text("/proc/self/cgroup") ?? "").split(separator: "\n") {
            // "0::/path" is v2, "4:memory:/path" v1's memory controller.
            let fields = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
            guard fields.count == 3 else { continue }
            if fields[0] == "0", fields[1].isEmpty {
                for path in ancestors(fields[2]) { limits += v2(path, files) }
            } else if fields[1].split(separator: ",").contains("memory") {
                for path in ancestors(fields[2]) { limits += v1(path, files) }
            }
        }
        return limits
    }

    /// From the innermost to "/". A path that leaves this process's namespace ("/../x") has only the root that is mounted.
    private static func ancestors(_ path: Substring) -> [String] {
        var parts = path.split(separator: "/")
        if parts.contains("..") { parts = [] }
        var paths: [String] = []
        while !parts.isEmpty {
            paths.append("/" + parts.joined(separator: "/"))
            parts.removeLast()
        }
        return paths + ["/"]
    }

    private static func v2(_ path: String, _ files: HostFiles) -> [Limit] {
        let directory = "/sys/fs/cgroup" + (path == "/" ? "" : path)
        return limits(
            ["memory.max", "memory.high"], usage: "memory.current", fileKeys: ["inactive_file", "active_file"],
            of: path, in: directory, files)
    }

    private static func v1(_ path: String, _ files: HostFiles) -> [Limit] {
        let directory = "/sys/fs/cgroup/memory" + (path == "/" ? "" : path)
        return limits(
            ["memory.limit_in_bytes"], usage: "memory.usage_in_bytes",
            fileKeys: ["total_inactive_file", "total_active_file"], of: path, in: directory, files)
    }

    private static func limits(
        _ names: [String], usage: String, fileKeys: [String], of path: String, in directory: String, _ files: HostFiles
    ) -> [Limit] {
        names.compactMap { name in
            guard let bytes = files.number("\(directory)/\(name)"), bytes < unlimitedFrom else { return nil }
            let charged = files.number("\(directory)/\(usage)") ?? 0
            // The page cache that the group was charged for goes before anything of the group is refused or killed.
            let statistics = files.figures("\(directory)/memory.stat")
            let reclaimable = fileKeys.reduce(0) { $0 + (statistics[$1] ?? 0) }
            let used = charged - min(charged, reclaimable)
            return Limit(bytes: bytes, name: "\(name) of \(path)", left: bytes - min(bytes, used))
        }
    }
}
