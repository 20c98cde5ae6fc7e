// A job's events: stored, then told. A follower reads the store from its cursor; nothing is queued for it in memory,
// so a slow one costs nothing and loses nothing that is still kept.
import EdgeWire
import Foundation
import GRDB
import Synchronization

/// A stored event, as the line that goes to clients.
package struct StoredEvent: Equatable, Sendable {
    package let seq: Int
    package let line: String
}

extension JobStore {
    /// Stores what a worker said, in one transaction, and what follows from it for the job's own record.
    ///
    /// - Parameter ran: seconds that the job has run since the last call.
    package func record(_ events: [JobEvent.Kind], of id: String, ran: Double = 0, sharers: Int = 1, at now: Date) async throws {
        guard !events.isEmpty || ran > 0 else { return }
        let lastStep = events.lastIndex { if case .step = $0 { true } else { false } }
        try await queue.write { db in
            for (index, event) in events.enumerated() {
                switch event {
                case .step(let progress):
                    // One write for a batch: only the last one counts.
                    guard index == lastStep else { continue }
                    try db.execute(
                        sql: "UPDATE jobs SET progress = ? WHERE id = ?", arguments: [try Column.text(progress), id])
                case .plan(let plan):
                    try db.execute(sql: "UPDATE jobs SET plan = ? WHERE id = ?", arguments: [try Column.text(plan), id])
                case .checkpoint:
                    try db.execute(
                        sql: "UPDATE jobs SET fruitless_runs = 0, interrupted_runs = 0 WHERE id = ?", arguments: [id])
                case .evaluation(let evaluation):
                    // A step's record is of before its evaluation, and the last one has no step after it.
                    let keys = evaluation.isBest ? ["eval_loss", "best_eval_loss"] : ["eval_loss"]
                    for key in keys {
                        try db.execute(
                            sql: "UPDATE jobs SET progress = json_set(progress, ?, ?) WHERE id = ?",
                            arguments: ["$.\(key)", evaluation.loss, id])
                    }
                case .state, .log, .problem, .heartbeat, .end: break
                }
            }
            try Self.count(ran, sharers: sharers, of: id, at: now, db)
            try Self.append(events, to: id, at: now, db)
        }
        if !events.isEmpty { changes.announce(id) }
    }

    static func append(_ events: [JobEvent.Kind], to id: String, at now: Date, _ db: Database) throws {
        var seq = try Int.fetchOne(db, sql: "SELECT max(seq) FROM events WHERE job = ?", arguments: [id]) ?? 0
        for event in events {
            seq += 1
            try db.execute(
                sql: "INSERT INTO events (job, seq, line) VALUES (?, ?, ?)",
                arguments: [id, seq, try Column.text(JobEvent(seq: seq, at: now, event: event))])
        }
        try db.execute(
            sql: "DELETE FROM events WHERE job = ? AND seq <= ?", arguments: [id, seq - WireLimit.eventsPerJob])
    }

    /// Events past `after`, oldest first. A cursor of 0 has seen nothing and starts at the oldest that is kept; any
    /// other that points before it is refused, for events between the two would be missing unseen.
    package func events(of id: String, after: Int, limit: Int) async throws -> [StoredEvent] {
        try await queue.read { db in
            let oldest = try Int.fetchOne(db, sql: "SELECT min(seq) FROM events WHERE job = ?", arguments: [id])
            if let oldest, after > 0, after < oldest - 1 {
                let state = try String.fetchOne(db, sql: "SELECT state FROM jobs WHERE id = ?", arguments: [id]) ?? "gone"
                throw Problem(
                    .cursorExpired, "events up to \(oldest - 1) of \(id) are no longer kept; the job is \(state)",
                    hint: "start again from ?after=0")
            }
            return try Row.fetchAll(
                db, sql: "SELECT seq, line FROM events WHERE job = ? AND seq > ? ORDER BY seq LIMIT ?",
                arguments: [id, after, limit]
            ).map { StoredEvent(seq: try $0.read("seq"), line: try $0.read("line")) }
        }
    }
}

/// Tells followers that a job has new events. A waiter that is told twice reads once.
package final class EventChanges: Sendable {
    private struct Waiter {
        let job: String
        let wake: AsyncStream<Void>.Continuation
    }
    private let waiters = Mutex<(next: Int, all: [Int: Waiter])>((0, [:]))

    /// Yields at least once after every change that happens from now on.
    package func watch(_ job: String) -> AsyncStream<Void> {
        let (stream, wake) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
        let key = waiters.withLock { state in
            state.next += 1
            state.all[state.next] = Waiter(job: job, wake: wake)
            return state.next
        }
        wake.onTermination = { [weak self] _ in
            _ = self?.waiters.withLock { $0.all.removeValue(forKey: key) }
        }
        return stream
    }

    func announce(_ job: String) {
        for wake in waiters.withLock({ state in state.all.values.filter { $0.job == job }.map(\.wake) }) { wake.yield() }
    }
}
