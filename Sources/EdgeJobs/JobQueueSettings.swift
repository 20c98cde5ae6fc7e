// What the queue needs of the daemon: where things are, what the machine allows, and the calendar's clock. Lengths of time it
// measures itself: CLOCK_MONOTONIC for what must not run on while the machine is suspended (a run's time, its silence, the
// time to a checkpoint), CLOCK_BOOTTIME for what should (back-off). Neither can be set.
import EdgeWire
import Foundation

package struct JobQueueSettings: Sendable {
    package var worker: WorkerLaunch
    /// `<state>/jobs`: one directory per job, in which only its worker writes.
    package var jobsDirectory: String
    /// A blob's digest to its file.
    package var blobPath: @Sendable (String) -> String
    /// Bytes that a job may use now, and which bound that is.
    package var budget: @Sendable (JobRequest) -> (bytes: UInt64, reason: String)
    package var defaultSaveSteps: @Sendable () -> Int
    /// Where the board's measurement for a request is, if it was measured.
    package var calibrationPath: @Sendable (JobRequest) -> String? = { _ in nil }
    /// MemAvailable.
    package var availableBytes: @Sendable () -> UInt64? = { nil }
    /// Looks at the machine, and says what is in a job's way as it is now; nil: nothing.
    package var look: @Sendable () -> @Sendable (Job, RunPhase) -> Obstacle? = { { _, _ in nil } }
    /// Most jobs of one user that train together on one base; 1: each alone.
    package var mostTogether: @Sendable () -> Int = { 1 }
    /// A run that has so much left is begun again with a job that was queued after it began.
    package var worthJoining: Duration = .seconds(60)
    /// Between two looks at the machine, for jobs that wait and for the one that runs.
    package var obstacleInterval: Duration = .seconds(3)
    /// How long one user's run goes on while another user's job of the same priority waits; nil: to its end.
    package var turn: @Sendable () -> Duration? = { nil }
    /// Before the third run after two without a new checkpoint; four times longer with each more.
    package var retryAfter: @Sendable () -> Duration = { .seconds(4) }
    /// How long a worker may say nothing before it is taken for hanging.
    package var patience: @Sendable (Job) -> Duration = { _ in .seconds(3600) }
    package var scheduling: @Sendable () -> WorkerScheduling = { WorkerScheduling() }
    /// A cgroup for one run; nil: none is to be had. Gets the job's id and the bytes that it is planned to hold.
    package var runGroup: @Sendable (_ job: String, _ plannedBytes: UInt64) -> RunGroup? = { _, _ in nil }
    /// The calendar's: for stamps, and never for lengths.
    package var now: @Sendable () -> Date
    /// How long a worker may take from `stop` to its checkpoint before it is killed.
    package var stopTimeout: Duration
    /// Between the commits of what a worker says.
    package var commitInterval: Duration = .milliseconds(200)
    /// Something is wrong that no client can be told.
    package var report: @Sendable (String) -> Void

    package init(
        worker: WorkerLaunch, jobsDirectory: String, blobPath: @escaping @Sendable (String) -> String,
        budget: @escaping @Sendable (JobRequest) -> (bytes: UInt64, reason: String),
        defaultSaveSteps: @escaping @Sendable () -> Int, now: @escaping @Sendable () -> Date, stopTimeout: Duration,
        report: @escaping @Sendable (String) -> Void
    ) {
        self.worker = worker
        self.jobsDirectory = jobsDirectory
        self.blobPath = blobPath
        self.budget = budget
        self.defaultSaveSteps = defaultSaveSteps
        self.now = now
        self.stopTimeout = stopTimeout
        self.report = report
    }
}

/// Back-off after runs that came to nothing.
package enum Retry {
    private static let most = Duration.seconds(600)

    /// What a job waits for before its next run: nothing after one that crashed, for that may have been the machine; then
    /// `base`, and four times longer with each more. A run that ended with the daemon or the machine is most likely not the job's
    /// fault, so it takes three of those in a row.
    ///
    /// - Parameters:
    ///   - crashed: runs in a row that ended without an answer and without a new checkpoint.
    ///   - interrupted: runs in a row that ended with the daemon, without a new checkpoint.
    package static func delay(crashed: Int, interrupted: Int, base: Duration) -> Duration {
        let count = max(crashed, interrupted - 1)
        guard count >= 2 else { return .zero }
        return min(most, base * (1 << (2 * min(count - 2, 10))))
    }
}
