// A new store out of what can still be read of a damaged one. Each table is read from its start until a page fails, and then
// from its end: only what lies between the failing pages is lost, and the damaged file is kept for who wants to try more.
import Foundation
import GRDB

package enum StoreSalvage {
    /// Jobs first: events and keys are of a job.
    private static let tables: [(name: String, order: [String])] = [
        ("jobs", ["rowid"]), ("models", ["rowid"]), ("datasets", ["rowid"]), ("adapters", ["rowid"]), ("blobs", ["rowid"]),
        ("imports", ["rowid"]), ("events", ["job", "seq"]), ("idempotency_keys", ["owner_uid", "key"]),
        ("usage", ["owner_uid"]),
    ]

    /// Writes a store of this release at `path`, where none may be.
    ///
    /// - Returns: rows copied of every table.
    package static func rebuild(_ damaged: String, as path: String) throws -> [(table: String, rows: Int)] {
        try JobStore(path: path).close()
        var configuration = JobStore.configuration
        configuration.foreignKeysEnabled = false
        let target = try DatabaseQueue(path: path, configuration: configuration)
        defer { try? target.close() }
        configuration.readonly = true
        // A file that SQLite does not take for a database has no rows to copy.
        guard let source = try? DatabaseQueue(path: damaged, configuration: configuration) else {
            return tables.map { ($0.name, 0) }
        }
        defer { try? source.close() }
        return try target.write { target in
            let copied: [(table: String, rows: Int)] = try tables.map { name, order in
                (name, try copy(name, order, source, target))
            }
            for table in ["events", "idempotency_keys"] {
                try target.execute(sql: "DELETE FROM \(table) WHERE job NOT IN (SELECT id FROM jobs)")
            }
            return copied
        }
    }

    private static func copy(_ table: String, _ order: [String], _ source: DatabaseQueue, _ target: Database) throws -> Int {
        let columns = Set(try target.columns(in: table).map(\.name))
        for direction in ["ASC", "DESC"] {
            let isWhole = try source.readingUntilFailure { db in
                let key = order.map { "\($0) \(direction)" }.joined(separator: ", ")
                let rows = try Row.fetchCursor(db, sql: "SELECT * FROM \(table) ORDER BY \(key)")
                return { try rows.next() }
            } each: { row in try insert(row, columns, table, target) }
            if isWhole { break }
        }
        return try Int.fetchOne(target, sql: "SELECT count(*) FROM \(table)") ?? 0
    }

    /// A row that breaks the table's rules, or that is there already, stays out.
    private static func insert(_ row: Row, _ columns: Set<String>, _ table: String, _ target: Database) throws {
        let kept = row.filter { columns.contains($0.0) }
        let names = kept.map(\.0.quotedDatabaseIdentifier).joined(separator: ", ")
        let places = kept.map { _ in "?" }.joined(separator: ", ")
        do {
            try target.execute(
                sql: "INSERT INTO \(table) (\(names)) VALUES (\(places))", arguments: StatementArguments(kept.map(\.1)))
        } catch let error as DatabaseError where [.SQLITE_CONSTRAINT, .SQLITE_MISMATCH].contains(error.resultCode) {}
    }
}

extension DatabaseQueue {
    /// False when a page could not be read: what `each` got until then is good. Throws what `each` does.
    fileprivate func readingUntilFailure(
        _ rows: (Database) throws -> () throws -> Row?, each: (Row) throws -> Void
    ) throws -> Bool {
        // Not in a transaction: one that has met a damaged page does not commit.
        try unsafeRead { db in
            guard let next = try? rows(db) else { return false }
            while true {
                let row: Row?
                do { row = try next() } catch { return false }
                guard let row else { return true }
                try each(row)
            }
        }
    }
}
