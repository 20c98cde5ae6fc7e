// The job store: one SQLite file, one connection, one process. Opening and migrations live here; jobs, events and
// resources each have their file. Everything that was answered to a client was committed before.
// One DatabaseQueue and never a pool: SQLite before 3.51.3 can corrupt a WAL with two writers.
import EdgeWire
import Foundation
import GRDB

package enum StoreError: Error, Equatable, Sendable, CustomStringConvertible {
    /// Written by a later release: its migrations are not known here.
    case newerSchema(unknown: [String])
    case damaged(String)

    package var description: String {
        switch self {
        case .newerSchema(let unknown):
            "the job store was written by a newer edgetuned (\(unknown.joined(separator: ", "))); install that release"
        case .damaged(let what): "the job store is damaged: \(what)"
        }
    }
}

package final class JobStore: Sendable {
    let queue: DatabaseQueue
    package let changes = EventChanges()

    /// Opens or creates the store and brings its schema up to date.
    package init(path: String) throws {
        var configuration = Configuration()
        configuration.foreignKeysEnabled = true
        configuration.busyMode = .timeout(5)
        configuration.prepareDatabase { db in
            try db.execute(sql: "PRAGMA journal_mode = WAL")
            try db.execute(sql: "PRAGMA synchronous = FULL")
            try db.execute(sql: "PRAGMA mmap_size = 0")
        }
        queue = try DatabaseQueue(path: path, configuration: configuration)
        var migrator = DatabaseMigrator()
        for migration in Self.migrations {
            migrator.registerMigration(migration.name) { db in try db.execute(sql: migration.sql) }
        }
        let known = Set(Self.migrations.map(\.name))
        let complete = migrator
        try queue.read { db in
            let unknown = try complete.appliedIdentifiers(db).subtracting(known)
            guard unknown.isEmpty else { throw StoreError.newerSchema(unknown: unknown.sorted()) }
            let check = try String.fetchOne(db, sql: "PRAGMA quick_check(1)") ?? "no answer"
            guard check == "ok" else { throw StoreError.damaged(check) }
        }
        try complete.migrate(queue)
    }

    /// Answers when the store can be read. Writes nothing.
    package func ping() async throws {
        _ = try await queue.read { db in try Int.fetchOne(db, sql: "SELECT count(*) FROM jobs") }
    }

    package func close() throws { try queue.close() }

    package struct Migration: Sendable {
        package let name: String
        package let sql: String
    }

    /// Append only: a released migration is never edited.
    package static let migrations: [Migration] = [
        Migration(
            name: "1 jobs",
            sql: """
                CREATE TABLE jobs (
                    id TEXT PRIMARY KEY NOT NULL,
                    place INTEGER NOT NULL UNIQUE,
                    name TEXT NOT NULL,
                    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'pausing', 'paused', 'cancelling',
                        'cancelled', 'failed', 'succeeded')),
                    reason TEXT,
                    owner_uid INTEGER NOT NULL,
                    created_at REAL NOT NULL,
                    started_at REAL,
                    finished_at REAL,
                    runs INTEGER NOT NULL,
                    fruitless_runs INTEGER NOT NULL,
                    request TEXT NOT NULL,
                    model_blob TEXT NOT NULL,
                    dataset_blobs TEXT NOT NULL,
                    progress TEXT,
                    plan TEXT,
                    problem TEXT,
                    adapter TEXT
                );
                CREATE INDEX jobs_by_state ON jobs (state, place);
                CREATE TABLE events (
                    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
                    seq INTEGER NOT NULL,
                    line TEXT NOT NULL,
                    PRIMARY KEY (job, seq)
                ) WITHOUT ROWID;
                CREATE TABLE idempotency_keys (
                    owner_uid INTEGER NOT NULL,
                    key TEXT NOT NULL,
                    body_digest TEXT NOT NULL,
                    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
                    PRIMARY KEY (owner_uid, key)
                ) WITHOUT ROWID;
                CREATE INDEX idempotency_keys_by_job ON idempotency_keys (job);
                CREATE TABLE models (
                    name TEXT PRIMARY KEY NOT NULL, blob TEXT NOT NULL, owner_uid INTEGER NOT NULL,
                    created_at REAL NOT NULL, report TEXT NOT NULL
                );
                CREATE TABLE datasets (
                    name TEXT PRIMARY KEY NOT NULL, blob TEXT NOT NULL, bytes INTEGER NOT NULL,
                    owner_uid INTEGER NOT NULL, created_at REAL NOT NULL, report TEXT NOT NULL
                );
                CREATE TABLE adapters (
                    name TEXT PRIMARY KEY NOT NULL, job TEXT NOT NULL UNIQUE, base_model TEXT NOT NULL,
                    model_blob TEXT NOT NULL, owner_uid INTEGER NOT NULL, created_at REAL NOT NULL
                );
                CREATE TABLE blobs (
                    digest TEXT PRIMARY KEY NOT NULL, bytes INTEGER NOT NULL, owner_uid INTEGER NOT NULL,
                    created_at REAL NOT NULL
                );
                """),
        Migration(
            name: "2 imports",
            sql: """
                ALTER TABLE models ADD COLUMN files TEXT;
                ALTER TABLE models ADD COLUMN source TEXT;
                CREATE TABLE imports (
                    name TEXT PRIMARY KEY NOT NULL, id TEXT NOT NULL UNIQUE, place INTEGER NOT NULL UNIQUE,
                    owner_uid INTEGER NOT NULL, created_at REAL NOT NULL, files TEXT NOT NULL, source TEXT,
                    total_bytes INTEGER NOT NULL, peak_bytes INTEGER NOT NULL, problem TEXT
                );
                """),
        // Seconds of running: of a job, and of a user with their age taken off (FairShare).
        Migration(
            name: "3 priorities and running time",
            sql: """
                ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
                ALTER TABLE jobs ADD COLUMN run_seconds REAL NOT NULL DEFAULT 0;
                ALTER TABLE jobs ADD COLUMN interrupted_runs INTEGER NOT NULL DEFAULT 0;
                CREATE TABLE usage (
                    owner_uid INTEGER PRIMARY KEY NOT NULL, seconds REAL NOT NULL, counted_at REAL NOT NULL
                );
                """),
    ]
}

/// JSON columns hold values as the API writes them.
enum Column {
    static func text(_ value: some Encodable) throws -> String {
        String(decoding: try Wire.encoder().encode(value), as: UTF8.self)
    }

    static func value<Value: Decodable>(_ type: Value.Type, _ text: String) throws(StoreError) -> Value {
        do { return try Wire.decoder().decode(type, from: Data(text.utf8)) } catch { throw .damaged("a \(type): \(error)") }
    }
}

/// A row as it was stored. SQLite's own checks leave values of other types and ranges through, and GRDB's `row["name"]` would
/// trap on one.
struct StoredRow {
    private let row: Row

    init(_ row: Row) { self.row = row }

    subscript<Value: DatabaseValueConvertible>(column: String) -> Value {
        get throws(StoreError) {
            do { return try row.decode(Value.self, forColumn: column) } catch { throw .damaged("\(column): \(error)") }
        }
    }

    /// Of 1970 to 9999: Foundation traps when it writes a date that is far outside.
    static func date(_ seconds: Double) throws(StoreError) -> Date {
        guard (0..<253_402_300_800).contains(seconds) else { throw .damaged("a date of \(seconds) seconds") }
        return Date(timeIntervalSince1970: seconds)
    }
}

extension Date {
    /// Whole seconds, as on the wire: what was stored and what is read are equal.
    package var inWholeSeconds: Date { Date(timeIntervalSince1970: timeIntervalSince1970.rounded(.down)) }
}
