// A new store out of what can still be read of a damaged one. Each table is read from its start until a page fails, and then
// from its end: only what lies between the failing pages is lost, and the damaged file is kept for who wants to try more.
import Foundation
import GRDB

package enum StoreSalvage {
    /// Jobs first: events and keys are of a job.
    private static let tables: [(name: String, order: [String])] = [
        ("jobs", ["rowid"]), ("models", ["rowid"]), ("datasets", ["rowid"]), ("adapters", ["rowid"]), ("blobs", ["rowid"]),
        ("imports", ["rowid"]), ("events", ["job", "seq"]), ("idempotency_keys", ["owner_uid", "key"]),
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
        guard let source = try? DatabaseQueue(path: damaged, configuration: configuration) else { return tables.map { ($0.name, 0) } }
        defer { try? source.close() }
        return try target.write { target in
            let copied: [(table: String, rows: Int)] = try tables.map { table in (table.name, try copy(table.name, table.order, source, target)) }
            for table in ["events", "idempotency_keys"] {
                try target.execute(sql: "DELETE FROM \(table) WHERE job NOT IN (SELECT id FROM jobs)")
            }
            return copied
        }
    }

    private static func copy(_ table: String, _ order: [String], _ source: DatabaseQueue, _ target: Database) throws -> Int {
        let columns = Set(try target.columns(in: table).map(\.name))
        for direction in ["ASC", "DESC"] {
            let isWhole = source.readingUntilFailure { db in
                let key = order.map { "\($0) \(direction)" }.joined(separator: ", ")
                let rows = try Row.fetchCursor(db, sql: "SELECT * FROM \(table) ORDER BY \(key)")
                while let row = try rows.next() { insert(row, columns, table, target) }
            }
            if isWhole { break }
        }
        return try Int.fetchOne(target, sql: "SELECT count(*) FROM \(table)") ?? 0
    }

    /// A row that breaks the table's rules, or that is there already, stays out.
    private static func insert(_ row: Row, _ columns: Set<String>, _ table: String, _ target: Database) {
        let kept = row.filter { columns.contains($0.0) }
        let names = kept.map(\.0.quotedDatabaseIdentifier).joined(separator: ", ")
        let places = kept.map { _ in "?" }.joined(separator: ", ")
        try? target.execute(
            sql: "INSERT INTO \(table) (\(names)) VALUES (\(places))", arguments: StatementArguments(kept.map(\.1)))
    }
}

extension DatabaseQueue {
    /// False when a page could not be read: what `body` got until then is good.
    fileprivate func readingUntilFailure(_ body: (Database) throws -> Void) -> Bool {
        do {
            try read(body)
            return true
        } catch {
            return false
        }
    }
}
