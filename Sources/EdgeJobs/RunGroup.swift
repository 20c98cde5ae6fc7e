// A cgroup around one run, as the queue sees it: a directory for the worker to join, and what the kernel counted in it.
// How it is made and removed is handed in by `edgetuned`.

package struct RunGroup: Sendable {
    /// Of the machine's file system.
    package let directory: String
    /// The kernel holds the run to the CPU quota that is configured.
    package let holdsQuota: Bool
    /// Reads the counters and removes the group. Once, after the worker was waited for.
    package let end: @Sendable () async -> RunGroupReport

    package init(directory: String, holdsQuota: Bool = false, end: @escaping @Sendable () async -> RunGroupReport) {
        self.directory = directory
        self.holdsQuota = holdsQuota
        self.end = end
    }
}

package struct RunGroupReport: Equatable, Sendable {
    /// memory.max, as it was at the end.
    package var limitBytes: UInt64
    /// memory.peak; nil before Linux 5.19.
    package var peakBytes: UInt64?
    /// memory.swap.peak; nil before Linux 6.5.
    package var swapPeakBytes: UInt64?
    /// memory.events, `oom_kill`: kills for the group's limit. A process that dies with its group is counted twice.
    package var oomKills: UInt64
    /// Why the group is still there.
    package var leftBehind: String?

    package init(
        limitBytes: UInt64, peakBytes: UInt64?, swapPeakBytes: UInt64?, oomKills: UInt64, leftBehind: String? = nil
    ) {
        self.limitBytes = limitBytes
        self.peakBytes = peakBytes
        self.swapPeakBytes = swapPeakBytes
        self.oomKills = oomKills
        self.leftBehind = leftBehind
    }

    package var figures: String {
        var parts = ["limit \(limitBytes >> 20) MiB"]
        if let peakBytes { parts.append("peak \(peakBytes >> 20) MiB") }
        if let swapPeakBytes { parts.append("swap peak \(swapPeakBytes >> 20) MiB") }
        parts.append("oom_kill \(oomKills)")
        if let leftBehind { parts.append("not removed: \(leftBehind)") }
        return parts.joined(separator: ", ")
    }
}
