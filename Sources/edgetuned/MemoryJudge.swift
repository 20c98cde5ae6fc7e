// What a worker does about the machine's memory: a pure function of samples over time, and the rule by which `serve` lets
// a job start. Who takes samples is in MemoryWatch. No clock, no file.

/// What a worker sees of its own memory and of the machine's, at one moment.
package struct MemorySample: Equatable, Sendable {
    /// Since the watch began.
    package var at: Duration
    package var residentBytes: UInt64
    /// Of this process, in swap.
    package var swapBytes: UInt64
    package var totalBytes: UInt64
    package var availableBytes: UInt64
    /// Of everything on the machine; nil without PSI.
    package var pressure: MemoryPressure?
    /// Of the worker's own cgroup; nil without one.
    package var groupPressure: MemoryPressure?
    /// Allocations that failed for the cgroup's limit (memory.events, `oom`).
    package var groupOOMs: UInt64

    package init(
        at: Duration, residentBytes: UInt64, swapBytes: UInt64, totalBytes: UInt64, availableBytes: UInt64,
        pressure: MemoryPressure?, groupPressure: MemoryPressure?, groupOOMs: UInt64
    ) {
        self.at = at
        self.residentBytes = residentBytes
        self.swapBytes = swapBytes
        self.totalBytes = totalBytes
        self.availableBytes = availableBytes
        self.pressure = pressure
        self.groupPressure = groupPressure
        self.groupOOMs = groupOOMs
    }

    /// The worse of the two, in percent.
    fileprivate var some: Double { max(pressure?.some.avg10 ?? 0, groupPressure?.some.avg10 ?? 0) }
    fileprivate var full: Double { max(pressure?.full.avg10 ?? 0, groupPressure?.full.avg10 ?? 0) }

    /// Percent of the time since `earlier` in which some task stood still, by the worse of the two.
    fileprivate func stalled(since earlier: MemorySample) -> Double {
        func lost(_ now: MemoryPressure?, _ then: MemoryPressure?) -> Double {
            guard let now, let then else { return 0 }
            return 100 * ((now.some.total - then.some.total) / (at - earlier.at))
        }
        return max(lost(pressure, earlier.pressure), lost(groupPressure, earlier.groupPressure))
    }
}

package enum MemoryLevel: Equatable, Sendable {
    case calm
    /// Weights go back to the kernel; they are read again as they are used.
    case giveBack(String)
    /// Giving back was not enough: a checkpoint, and out.
    case pause(String)
    /// This process holds more than was planned: the plan is wrong, and so is whatever else it promised.
    case planBroken(String)
}

package enum MemoryThreshold {
    /// Percent of time (PSI `some avg10`) from which weights are given back. An idle board shows 0 and one that swaps
    /// shows 30 and more; at 10 every task together has lost a second of the last ten.
    package static let someStall = 10.0
    /// Percent (`full avg10`) from which nothing on the machine gets on: leave at once.
    package static let fullStall = 10.0
    /// Percent (`some avg10`) below which a job may start: half of what would make it give back, so that a start does
    /// not meet its own threshold.
    package static let calmStall = 5.0
    /// Of the machine's memory: below a twentieth the kernel reclaims from everybody, and the next allocation stalls.
    package static func leastAvailable(of total: UInt64) -> UInt64 { total / 20 }
    /// What giving back may take to show. avg10 itself lags for longer than that, so what is asked then is the share
    /// of these seconds that was lost.
    package static let patience = Duration.seconds(5)
    /// Resident bytes at which a plan of `planned` is broken: 2 % more, for the kernel counts per thread and adds up late, and
    /// 8 MiB, for a heap that nobody plans to the byte. Less than the headroom of the run's cgroup, where there is one.
    package static func mostResident(planned: UInt64) -> UInt64 { planned + planned / 50 + 8 << 20 }
}

/// Samples in, level out. `pause` and `planBroken` are final.
package struct MemoryJudge: Equatable, Sendable {
    private let plannedPeakBytes: UInt64
    package private(set) var level = MemoryLevel.calm
    /// The sample with which the present giving back began, or its last stretch of `patience`.
    private var since: MemorySample?
    /// Swap that was seen and waited out: cold pages, which cost nothing while they stay there.
    private var settledSwapBytes: UInt64 = 0
    private var firstGroupOOMs: UInt64?

    package init(plannedPeakBytes: UInt64) { self.plannedPeakBytes = plannedPeakBytes }

    package mutating func take(_ sample: MemorySample) -> MemoryLevel {
        switch level {
        case .pause, .planBroken: break
        case .calm, .giveBack: level = next(sample)
        }
        return level
    }

    private mutating func next(_ sample: MemorySample) -> MemoryLevel {
        let mostResident = MemoryThreshold.mostResident(planned: plannedPeakBytes)
        if sample.residentBytes > mostResident {
            return .planBroken(
                "\(sample.residentBytes.mebibytes) MiB are resident, \(plannedPeakBytes.mebibytes) MiB were planned")
        }
        let oomsBefore = firstGroupOOMs ?? sample.groupOOMs
        firstGroupOOMs = oomsBefore
        if sample.groupOOMs > oomsBefore { return .pause("the cgroup refused memory at its limit") }
        if sample.full >= MemoryThreshold.fullStall { return .pause("pressure, full avg10 \(sample.full) %") }
        guard let since else {
            guard let shortage = shortage(sample) else { return .calm }
            self.since = sample
            return .giveBack(shortage)
        }
        guard sample.at - since.at >= MemoryThreshold.patience else { return level }
        if let shortage = lastingShortage(sample, since: since) {
            return .pause("\(shortage), \(Int(MemoryThreshold.patience / .seconds(1))) s after weights were given back")
        }
        settledSwapBytes = sample.swapBytes
        // Still above the threshold, though nothing is lost any more: another stretch shows which is true.
        if let shortage = shortage(sample) {
            self.since = sample
            return .giveBack(shortage)
        }
        self.since = nil
        return .calm
    }

    private func shortage(_ sample: MemorySample) -> String? {
        if sample.some >= MemoryThreshold.someStall { return "pressure, some avg10 \(sample.some) %" }
        if let low = lowAvailable(sample) { return low }
        if sample.swapBytes > settledSwapBytes { return swapped(sample) }
        return nil
    }

    private func lastingShortage(_ sample: MemorySample, since: MemorySample) -> String? {
        let stalled = sample.stalled(since: since)
        if stalled >= MemoryThreshold.someStall { return "pressure, some task stood still \(Int(stalled)) % of the time" }
        if let low = lowAvailable(sample) { return low }
        if sample.swapBytes > since.swapBytes { return swapped(sample) }
        return nil
    }

    private func swapped(_ sample: MemorySample) -> String { "\(sample.swapBytes >> 10) KiB of the worker are in swap" }

    private func lowAvailable(_ sample: MemorySample) -> String? {
        let least = MemoryThreshold.leastAvailable(of: sample.totalBytes)
        guard sample.availableBytes < least else { return nil }
        return "MemAvailable is \(sample.availableBytes.mebibytes) MiB of \(sample.totalBytes.mebibytes) MiB"
    }
}

/// Why a job that is planned to hold `planned` bytes cannot start now; nil: it can.
package func startObstacle(planned: UInt64, memory: HostMemory, pressure: MemoryPressure?) -> String? {
    if let pressure, pressure.some.avg10 >= MemoryThreshold.calmStall {
        return "pressure, some avg10 \(pressure.some.avg10) %, starts below \(MemoryThreshold.calmStall) %"
    }
    guard memory.available.bytes < planned else { return nil }
    return "needs \(planned.mebibytes) MiB, \(memory.available.name) is \(memory.available.bytes.mebibytes) MiB"
}

extension UInt64 {
    fileprivate var mebibytes: UInt64 { self >> 20 }
}
