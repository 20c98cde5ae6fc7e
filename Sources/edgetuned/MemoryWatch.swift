// The thread of a training worker that samples memory. The training thread asks it after every micro-batch what to do,
// and says what it was told: this thread writes nothing.
import EdgeTrain
import EdgeWire
import Foundation
import Synchronization

final class MemoryWatch: Sendable {
    /// A quarter of a second: a small board can lose its last 100 MiB in less than one.
    private static let interval = Duration.milliseconds(250)

    private struct State {
        var judge: MemoryJudge
        /// Since the training thread last asked.
        var hasNewSample = false
        /// The giving back that is under way has been told.
        var isTold = false
    }

    private let state: Mutex<State>
    private let isOver = Atomic(false)
    private let reader: MemorySampleReader
    private let plannedPeakBytes: UInt64
    /// Stands still while the machine is suspended: patience is of running time.
    private let start = SuspendingClock.now

    /// - Parameter group: the cgroup that was made for this run; nil: whichever this process is in.
    init(_ files: HostFiles, plannedPeakBytes: UInt64, group: String?) {
        self.plannedPeakBytes = plannedPeakBytes
        reader = MemorySampleReader(files, group)
        state = Mutex(State(judge: MemoryJudge(plannedPeakBytes: plannedPeakBytes)))
        // Holds the watch: it ends with `end`, or with the process.
        Thread.detachNewThread { [self] in
            while !isOver.load(ordering: .acquiring) {
                take()
                Thread.sleep(forTimeInterval: Self.interval / .seconds(1))
            }
        }
    }

    func end() { isOver.store(true, ordering: .releasing) }

    private func take() {
        let sample = reader.sample(at: SuspendingClock.now - start)
        state.withLock { state in
            if state.judge.take(sample) == .calm { state.isTold = false }
            state.hasNewSample = true
        }
    }

    /// What the run does next, and what is to be said of it: one line for each time that memory becomes short.
    func direction() -> (RunDirection, note: String?) {
        state.withLock { state in
            defer { state.hasNewSample = false }
            switch state.judge.level {
            case .calm: return (.goOn, nil)
            case .giveBack(let reason):
                // Micro-batches can be shorter than the interval: once per sample is enough.
                guard state.hasNewSample else { return (.goOn, nil) }
                defer { state.isTold = true }
                return (.giveBack, state.isTold ? nil : "memory is short (\(reason)): weights are given back")
            case .pause, .planBroken: return (.stop, nil)
            }
        }
    }

    /// Why the run was stopped, if it was memory.
    enum Stop { case yield(String), failure(Problem) }

    var stop: Stop? {
        switch state.withLock(\.judge.level) {
        case .calm, .giveBack: nil
        case .pause(let reason): .yield(reason)
        case .planBroken(let figures):
            .failure(
                Problem(
                    .planExceeded, "the run held more than its plan: \(figures)",
                    hint: "report this with the job's plan; its checkpoint is kept", requiredBytes: nil,
                    budgetBytes: plannedPeakBytes))
        }
    }
}

/// Reads one sample. The process's own figures are the process's own, unless a captured tree holds some.
private struct MemorySampleReader: Sendable {
    private let files: HostFiles
    private let status: HostFiles
    /// Directory below the host's root; nil without cgroup v2.
    private let group: String?

    init(_ files: HostFiles, _ group: String?) {
        self.files = files
        status = files.text("/proc/self/status") == nil ? .machine : files
        self.group = group.map { String($0.dropFirst(files.root.count)) } ?? ControlGroup.own(files)
    }

    func sample(at: Duration) -> MemorySample {
        let own = status.figures("/proc/self/status")
        let meminfo = files.figures("/proc/meminfo")
        return MemorySample(
            at: at, residentBytes: (own["VmRSS"] ?? 0) * 1024, swapBytes: (own["VmSwap"] ?? 0) * 1024,
            totalBytes: (meminfo["MemTotal"] ?? 0) * 1024, availableBytes: (meminfo["MemAvailable"] ?? 0) * 1024,
            pressure: MemoryPressure(files.text("/proc/pressure/memory")),
            groupPressure: group.flatMap { MemoryPressure(files.text($0 + "/memory.pressure")) },
            groupOOMs: group.flatMap { files.figures($0 + "/memory.events")["oom"] } ?? 0)
    }
}
