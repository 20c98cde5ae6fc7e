// What one run says, stored in batches: a commit costs an fsync, and an SD card has few of those in a second. With every batch
// goes the time that the run has taken since the last.
import EdgeWire
import Foundation

actor WorkerTranscript {
    private let job: String
    private let store: JobStore
    private let log: JobLog
    private let settings: JobQueueSettings
    private var pending: [JobEvent.Kind] = []
    private(set) var lastProgress: JobProgress?
    private var committing: Task<Void, any Error>?
    private var storedUntil: SuspendingClock.Instant
    /// Jobs that the run's time is of, this one among them.
    private var sharers = 1
    private var isOver = false
    /// When the worker was last heard.
    private var heardAt = SuspendingClock.now

    /// Messages that may wait for a commit; then the worker waits.
    private static let pendingLimit = 1024

    /// - Parameter start: when the run began, of which the time is counted.
    init(job: String, since start: SuspendingClock.Instant, store: JobStore, log: JobLog, settings: JobQueueSettings) {
        storedUntil = start
        self.job = job
        self.store = store
        self.log = log
        self.settings = settings
    }

    var silence: Duration { SuspendingClock.now - heardAt }

    func take(_ message: WorkMessage) async throws {
        heardAt = .now
        let event: JobEvent.Kind
        switch message {
        case .plan(let plan): event = .plan(plan)
        case .step(let progress):
            lastProgress = progress
            event = .step(progress)
        case .evaluation(let evaluation): event = .evaluation(evaluation)
        case .checkpoint(let step): event = .checkpoint(step: step)
        case .log(let text):
            let text = String(text.prefix(WireLimit.eventLineBytes / 8))
            // The log is a convenience: what ails it must not end the run.
            do { try log.append(text, to: job, at: settings.now()) } catch { settings.report("log of \(job): \(error)") }
            event = .log(text)
        case .ofJob, .alive, .generated, .merging, .composing, .ranking, .stopped, .yielded, .trained, .salvaged, .planned, .plannedTogether, .jobsEnded,
            .comparedMethods, .calibrated, .inspectedModel, .plannedImport, .imported, .importedModel, .inspectedDataset, .importedAdapter,
            .composed, .ranked, .exported, .failure:
            return
        }
        pending.append(event)
        if pending.count >= Self.pendingLimit { try await commit() }
    }

    func commit() async throws { if !pending.isEmpty { try await put(.now) } }

    /// From now on the machine's time is of so many jobs.
    func share(with sharers: Int) async throws {
        guard !isOver, sharers != self.sharers else { return }
        try await put(.now)
        self.sharers = sharers
    }

    /// The worker was heard, if not about this job.
    func hear() { heardAt = .now }

    /// What is left, and the time to the end of the run, once.
    func end() async throws {
        guard !isOver else { return }
        isOver = true
        try await put(.now)
    }

    private func put(_ moment: SuspendingClock.Instant) async throws {
        let events = pending
        pending = []
        let ran = max(0, (moment - storedUntil) / .seconds(1))
        storedUntil = moment
        let (store, job, now, sharers) = (store, job, settings.now(), sharers)
        // In a task of its own: the end of the run cancels the committing loop, and must not roll this back. After the
        // one before it: events keep their order.
        let previous = committing
        let task = Task {
            try await previous?.value
            try await store.record(events, of: job, ran: ran, sharers: sharers, at: now)
        }
        committing = task
        try await task.value
    }
}
