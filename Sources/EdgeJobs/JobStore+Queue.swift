// What the order of the queue is made of: places, priorities, and how much of the machine each user has had.
import EdgeWire
import Foundation
import GRDB

extension JobStore {
    /// Queued jobs and one more, as far as their order goes, and what each user's running time counts now, in seconds.
    ///
    /// - Parameter running: included whatever its state is.
    package func queueEntries(
        with running: String?, at now: Date
    ) async throws -> (entries: [QueueEntry], usage: [UInt32: Double]) {
        try await queue.read { db in
            let entries = try Row.fetchAll(
                db, sql: "SELECT id, owner_uid, priority, place FROM jobs WHERE state = 'queued' OR id = ? ORDER BY place",
                arguments: [running]
            ).map { row in
                QueueEntry(
                    id: try row.read("id"), ownerUid: try row.read("owner_uid"), priority: try row.read("priority"),
                    place: try row.read("place"))
            }
            guard !entries.isEmpty else { return ([], [:]) }
            var usage: [UInt32: Double] = [:]
            for row in try Row.fetchAll(db, sql: "SELECT owner_uid, seconds, counted_at FROM usage") {
                usage[try row.read("owner_uid")] = try Self.decayedUsage(row, at: now)
            }
            return (entries, usage)
        }
    }

    // MARK: the other end

    /// Ids of finished jobs but the newest `kept`, the oldest first.
    package func finishedJobs(beyond kept: Int, limit: Int) async throws -> [String] {
        try await queue.read { db in
            try String.fetchAll(
                db,
                sql: "SELECT id FROM (\(Self.finished)) ORDER BY place LIMIT ?", arguments: [kept, limit])
        }
    }

    /// Those of them that still have events other than the last.
    package func finishedJobsWithEvents(beyond kept: Int, limit: Int) async throws -> [String] {
        try await queue.read { db in
            try String.fetchAll(
                db,
                sql: """
                    SELECT id FROM (\(Self.finished))
                    WHERE (SELECT min(seq) FROM events WHERE job = id) < (SELECT max(seq) FROM events WHERE job = id)
                    ORDER BY place LIMIT ?
                    """, arguments: [kept, limit])
        }
    }

    private static let finished = """
        SELECT id, place FROM jobs WHERE state IN ('cancelled', 'failed', 'succeeded') ORDER BY place DESC LIMIT -1 OFFSET ?
        """

    /// All but the last, which is its `end`: who asks from an older one is told that it is no longer kept.
    package func removeEvents(of job: String) async throws {
        try await queue.write { db in
            try db.execute(
                sql: "DELETE FROM events WHERE job = ? AND seq < (SELECT max(seq) FROM events WHERE job = ?)",
                arguments: [job, job])
        }
    }

    /// Adds to the running time of a job, and its share of that to its owner's: jobs that train together have the machine's time
    /// between them.
    static func count(_ seconds: Double, sharers: Int, of job: String, at now: Date, _ db: Database) throws {
        guard seconds > 0, let owner = try UInt32.fetchOne(db, sql: "SELECT owner_uid FROM jobs WHERE id = ?", arguments: [job])
        else { return }
        try db.execute(sql: "UPDATE jobs SET run_seconds = run_seconds + ? WHERE id = ?", arguments: [seconds, job])
        let row = try Row.fetchOne(db, sql: "SELECT seconds, counted_at FROM usage WHERE owner_uid = ?", arguments: [owner])
        let before = try row.map { try decayedUsage($0, at: now) } ?? 0
        try db.execute(
            sql: """
                INSERT INTO usage (owner_uid, seconds, counted_at) VALUES (?, ?, ?)
                ON CONFLICT (owner_uid) DO UPDATE SET seconds = excluded.seconds, counted_at = excluded.counted_at
                """,
            arguments: [owner, before + seconds / Double(max(1, sharers)), now.timeIntervalSince1970])
    }

    static func decayedUsage(_ row: Row, at now: Date) throws(StoreError) -> Double {
        let countedAt: Double = try row.read("counted_at")
        return FairShare.decayed(try row.read("seconds"), age: now.timeIntervalSince1970 - countedAt)
    }
}
