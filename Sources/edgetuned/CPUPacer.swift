// A worker that holds itself to a CPU quota, where no cgroup does: between micro-batches it rests until what it used is what it
// may use. Less even than the kernel's 100 ms periods, and the same on average.
import Foundation

struct CPUPacer {
    /// Cores' worth of time.
    private let quota: Double
    private var last: (wall: SuspendingClock.Instant, cpu: Double)
    /// Seconds of processor time over the quota so far.
    private var debt = 0.0

    /// What was left unused is not saved up for longer than this, in seconds.
    private static let mostCredit = 0.1

    init(quota: Double) {
        self.quota = quota
        last = (.now, Self.processSeconds())
    }

    /// Rests for as long as is owed, or until `isInterrupted`.
    mutating func rest(until isInterrupted: () -> Bool) {
        account()
        while debt > 0, !isInterrupted() {
            Thread.sleep(forTimeInterval: min(0.1, debt / quota))
            account()
        }
    }

    private mutating func account() {
        let now = (wall: SuspendingClock.now, cpu: Self.processSeconds())
        debt = max(
            -Self.mostCredit * quota,
            Self.debt(debt, used: now.cpu - last.cpu, elapsed: (now.wall - last.wall) / .seconds(1), quota: quota))
        last = now
    }

    static func debt(_ before: Double, used: Double, elapsed: Double, quota: Double) -> Double {
        before + used - elapsed * quota
    }

    /// Of all threads.
    private static func processSeconds() -> Double {
        var time = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }
}
