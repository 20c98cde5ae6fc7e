// The job store: one SQLite file, one connection, one process. The connection and migrations live here; how a file is opened,
// jobs, events and resources each have their file. Everything that was answered to a client was committed before.
// One DatabaseQueue and never a pool: SQLite before 3.51.3 can corrupt a WAL with two writers.
import EdgeWire
import Foundation
import GRDB

package enum StoreError: Error, Equatable, Sendable, CustomStringConvertible {
    /// Written by a later release: its migrations are not known here.
    case newerSchema(unknown: [String])
    case damaged(String)
    /// The upgrade of an older schema was not begun, or was undone; the file is as it was.
    case notUpgraded(from: String, reason: String)

    package var description: String {
        switch self {
        case .newerSchema(let unknown):
            "the job store was written by a newer edgetuned (\(unknown.joined(separator: ", "))); install that release"
        case .damaged(let what):
            "the job store is damaged: \(what); stop edgetuned and run: edgetuned check, then edgetuned check --repair"
        case .notUpgraded(let from, let reason):
            "the job store has the schema \"\(from)\" and could not be upgraded: \(reason); it is as it was"
        }
    }

    /// SQLite's own words for damage, wherever they come up; nil for any other error.
    package init?(_ error: any Error) {
        switch error {
        case let error as StoreError: self = error
        case let error as DatabaseError
        where [.SQLITE_CORRUPT, .SQLITE_NOTADB].contains(error.resultCode) || error.message == "malformed JSON":
            self = .damaged(error.message ?? "SQLite error \(error.resultCode.rawValue)")
        case let error as RowDecodingError: self = .damaged("\(error)")
        default: return nil
        }
    }
}

package final class JobStore: Sendable {
    let queue: DatabaseQueue
    package let changes = EventChanges()

    /// Opens or creates the store and brings its schema up to date.
    package init(path: String) throws {
        do { queue = try JobStore.opened(path) } catch { throw StoreError(error) ?? error }
    }

    /// Answers when the store can be read. Writes nothing.
    package func ping() async throws {
        _ = try await queue.read { db in try Bool.fetchOne(db, sql: "SELECT EXISTS (SELECT 1 FROM jobs)") }
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
        // What a store of 10,000 jobs is asked often, without reading their rows.
        Migration(
            name: "4 indices",
            sql: """
                CREATE INDEX jobs_by_name ON jobs (name);
                CREATE INDEX jobs_by_blobs ON jobs (model_blob, dataset_blobs);
                CREATE INDEX jobs_by_adapter ON jobs (adapter) WHERE adapter IS NOT NULL;
                """),
    ]
}

extension Date {
    /// Whole seconds, as on the wire: what was stored and what is read are equal.
    package var inWholeSeconds: Date { Date(timeIntervalSince1970: timeIntervalSince1970.rounded(.down)) }
}
