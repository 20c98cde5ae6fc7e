// The store's file as `edgetuned check` looks at it: opened as it is, older schemas too, and never upgraded. What is wrong
// with it, what it names, and the few changes that lose nothing.
import EdgeWire
import Foundation
import GRDB

/// A row that does not decode.
package struct UnreadableRow: Sendable {
    package let table: String
    package let rowID: Int64
    package let reason: String
}

/// What the readable rows name.
package struct StoreContents: Sendable {
    package struct Use: Sendable {
        /// "import \"tiny\"", "job j-…"
        package let user: String
        package let blob: String
    }
    package var jobs: [String: JobState] = [:]
    package var adapters: [StoredAdapter] = []
    package var models: [ModelRecord] = []
    package var datasets: [DatasetRecord] = []
    package var imports: [StoredImport] = []
    /// Digest to size.
    package var blobs: [String: UInt64] = [:]
    /// What must be there, beside what models and data sets are: of imports, and of jobs that are not finished.
    package var uses: [Use] = []
    /// All that is named, by finished jobs too.
    package var named: Set<String> = []
    package init() {}
}

package final class StoreInspection {
    package enum Access: Sendable { case reading, repairing }

    private let queue: DatabaseQueue
    /// The newest migration that the file has had; nil: none.
    package let schema: String?

    /// - Throws: `StoreError` where the file is no store, damaged beyond opening, or of a newer release.
    package init(path: String, _ access: Access) throws {
        var configuration = JobStore.configuration
        // Not SQLite's read-only: that cannot take back a change that was cut off, and then reads nothing at all.
        if access == .reading {
            configuration.prepareDatabase { db in try db.execute(sql: "PRAGMA query_only = 1") }
        }
        do {
            let queue = try DatabaseQueue(path: path, configuration: configuration)
            let applied = try queue.read(JobStore.appliedMigrations)
            self.queue = queue
            schema = JobStore.migrations.map(\.name).last(where: applied.contains)
        } catch { throw StoreError(error) ?? error }
    }

    /// Whether there is a store that has had a migration: else a daemon makes a new one there.
    ///
    /// - Throws: as `init`.
    package static func isStore(_ path: String) throws -> Bool {
        guard JobStore.fileBytes(path) > 0 else { return false }
        let store = try StoreInspection(path: path, .reading)
        try store.close()
        return store.schema != nil
    }

    package static var newestSchema: String { JobStore.migrations.last?.name ?? "" }

    package func close() throws { try queue.close() }

    /// Damage that SQLite comes upon is the store's.
    private func read<Value>(_ body: (Database) throws -> Value) throws -> Value {
        do { return try queue.read(body) } catch { throw StoreError(error) ?? error }
    }

    private func write<Value>(_ body: (Database) throws -> Value) throws -> Value {
        do { return try queue.write(body) } catch { throw StoreError(error) ?? error }
    }

    // MARK: what is wrong

    /// Lines reported at most of each kind.
    private static let reported = 100

    /// What SQLite finds wrong with the file's structure. Empty: nothing.
    package func structuralDamage() throws -> [String] {
        try read { db in
            try String.fetchAll(db, sql: "PRAGMA integrity_check(\(Self.reported))").filter { $0 != "ok" }
        }
    }

    package func unreadableRows() throws -> [UnreadableRow] {
        try read { db in
            var unreadable: [UnreadableRow] = []
            func look(_ table: String, _ decode: (Row) throws -> Void) throws {
                guard try db.tableExists(table) else { return }
                let rows = try Row.fetchCursor(db, sql: "SELECT rowid AS row_number, * FROM \(table)")
                while let row = try rows.next() {
                    do { try decode(row) } catch let error as StoreError {
                        guard case .damaged(let what) = error else { throw error }
                        unreadable.append(UnreadableRow(table: table, rowID: try row.read("row_number"), reason: what))
                    }
                }
            }
            try look("jobs") { row in
                _ = try JobStore.job(row)
                _ = try row.readIfThere("priority") as Int?
            }
            try look("models") { _ = try JobStore.model($0) }
            try look("datasets") { _ = try JobStore.dataset($0) }
            try look("adapters") { _ = try JobStore.adapter($0) }
            try look("imports") { _ = try JobStore.modelImport($0) }
            try look("usage") { row in
                _ = try row.read("owner_uid") as UInt32
                _ = try JobStore.decayedUsage(row, at: Date())
            }
            try look("blobs") { row in
                let digest: String = try row.read("digest")
                guard (try? BlobDigest(digest)) != nil else { throw StoreError.damaged("\"\(digest.prefix(80))\" is no digest") }
                _ = try row.readBytes("bytes")
            }
            return unreadable
        }
    }

    private static let isBadEvent = """
        NOT json_valid(line) OR json_extract(CASE WHEN json_valid(line) THEN line ELSE '{}' END, '$.seq') IS NOT seq
        OR NOT EXISTS (SELECT 1 FROM jobs WHERE id = job)
        """

    /// Events that are no JSON, that say another number than their place, or that are of a job which is not there.
    package func badEvents() throws -> [String] {
        try read { db in
            try Row.fetchAll(
                db,
                sql: "SELECT job, seq FROM events WHERE \(Self.isBadEvent) LIMIT \(Self.reported)"
            ).map { "event \(try $0.read("seq") as Int64) of \(try $0.read("job") as String)" }
        }
    }

    // MARK: what it names

    /// Rows that do not decode are left out.
    package func contents() throws -> StoreContents {
        try read { db in
            var contents = StoreContents()
            func rows<Value>(_ table: String, _ decode: (Row) throws -> Value) throws -> [Value] {
                guard try db.tableExists(table) else { return [] }
                var values: [Value] = []
                let rows = try Row.fetchCursor(db, sql: "SELECT * FROM \(table)")
                while let row = try rows.next() { if let value = try? decode(row) { values.append(value) } }
                return values
            }
            contents.models = try rows("models", JobStore.model)
            contents.datasets = try rows("datasets", JobStore.dataset)
            contents.adapters = try rows("adapters", JobStore.adapter)
            contents.imports = try rows("imports", JobStore.modelImport)
            for (digest, bytes) in try rows("blobs", { (try $0.read("digest") as String, try $0.readBytes("bytes")) }) {
                contents.blobs[digest] = bytes
            }
            for one in contents.imports {
                contents.uses += one.files.map { .init(user: "import \"\(one.name)\"", blob: $0.blob) }
            }
            _ = try rows("jobs") { row in
                let job = try JobStore.job(row)
                contents.jobs[job.id] = job.state
                let blobs = [job.modelBlob] + job.datasetBlobs
                contents.named.formUnion(blobs)
                if !job.state.isFinal { contents.uses += Set(blobs).map { .init(user: "job \(job.id)", blob: $0) } }
            }
            contents.named.formUnion(contents.models.map(\.blob) + contents.datasets.map(\.blob) + contents.uses.map(\.blob))
            return contents
        }
    }

    // MARK: changes

    /// Builds the indices anew: they hold nothing that the tables do not.
    package func reindex() throws { try write { try $0.execute(sql: "REINDEX") } }

    /// Removes a row and returns it, for the quarantine. A job's events go with it, and are returned behind it.
    package func takeOut(_ row: UnreadableRow) throws -> [[String: String]] {
        try write { db in
            var taken = try Row.fetchAll(db, sql: "SELECT * FROM \(row.table) WHERE rowid = ?", arguments: [row.rowID])
            if row.table == "jobs", let id = taken.first?["id"] as (any DatabaseValueConvertible)? {
                taken += try Row.fetchAll(db, sql: "SELECT * FROM events WHERE job = ?", arguments: [id.databaseValue])
            }
            try db.execute(sql: "DELETE FROM \(row.table) WHERE rowid = ?", arguments: [row.rowID])
            return taken.map(Self.text)
        }
    }

    /// The record of a model, a data set or an adapter whose files are gone or damaged.
    package enum NamedRecord: Sendable {
        case model(String), dataset(String), adapter(String)
        var table: String {
            switch self {
            case .model: "models"
            case .dataset: "datasets"
            case .adapter: "adapters"
            }
        }
        var name: String {
            switch self {
            case .model(let name), .dataset(let name), .adapter(let name): name
            }
        }
    }

    /// The same for a record that is readable.
    package func takeOut(_ record: NamedRecord) throws -> [[String: String]] {
        try write { db in
            let taken = try Row.fetchAll(db, sql: "SELECT * FROM \(record.table) WHERE name = ?", arguments: [record.name])
            try db.execute(sql: "DELETE FROM \(record.table) WHERE name = ?", arguments: [record.name])
            if case .adapter(let name) = record {
                try db.execute(sql: "UPDATE jobs SET adapter = NULL WHERE adapter = ?", arguments: [name])
            }
            return taken.map(Self.text)
        }
    }

    /// Removes the events that `badEvents` names, and returns them.
    package func takeOutBadEvents() throws -> [[String: String]] {
        try write { db in
            let taken = try Row.fetchAll(db, sql: "SELECT * FROM events WHERE \(Self.isBadEvent)")
            try db.execute(sql: "DELETE FROM events WHERE \(Self.isBadEvent)")
            return taken.map(Self.text)
        }
    }

    /// Records a blob whose file is there and whole.
    package func addBlob(_ digest: String, bytes: UInt64, ownerUid: UInt32, at now: Date) throws {
        try write { db in
            try db.execute(
                sql: "INSERT OR IGNORE INTO blobs (digest, bytes, owner_uid, created_at) VALUES (?, ?, ?, ?)",
                arguments: [digest, Int64(bytes), ownerUid, now.timeIntervalSince1970])
        }
    }

    package func forgetBlob(_ digest: String) throws {
        try write { try $0.execute(sql: "DELETE FROM blobs WHERE digest = ?", arguments: [digest]) }
    }

    private static func text(_ row: Row) -> [String: String] {
        Dictionary(row.map { ($0, Self.text($1)) }) { first, _ in first }
    }

    private static func text(_ value: DatabaseValue) -> String {
        switch value.storage {
        case .null: "null"
        case .int64(let number): "\(number)"
        case .double(let number): "\(number)"
        case .string(let text): text
        case .blob(let bytes): "x'\(Hex.text(bytes))'"
        }
    }
}
