// Opening the store's file: is it whole, is it of this release or an older one, and a copy of it before it is upgraded.
// Nothing is written to a file that is refused.
import Foundation
import GRDB

#if canImport(Glibc)
import Glibc
#endif

extension JobStore {
    static var configuration: Configuration {
        var configuration = Configuration()
        configuration.foreignKeysEnabled = true
        configuration.busyMode = .timeout(5)
        return configuration
    }

    static func opened(_ path: String) throws -> DatabaseQueue {
        // A store that was closed has no log of changes beside it.
        let wasCutOff = fileBytes(path + "-wal") > 0
        var configuration = configuration
        configuration.prepareDatabase { db in
            try db.execute(sql: "PRAGMA journal_mode = WAL")
            try db.execute(sql: "PRAGMA synchronous = FULL")
            try db.execute(sql: "PRAGMA mmap_size = 0")
        }
        let queue = try DatabaseQueue(path: path, configuration: configuration)
        let applied = try queue.read { db in
            let applied = try appliedMigrations(db)
            if wasCutOff { try requireSound(db) }
            return applied
        }
        let pending = migrations.map(\.name).filter { !applied.contains($0) }
        guard let first = pending.first else { return queue }
        guard let last = migrations.map(\.name).last(where: applied.contains) else {
            try migrator.migrate(queue)
            return queue
        }
        do {
            try back(up: queue, to: backupPath(of: path, before: first))
            try migrator.migrate(queue)
        } catch {
            throw StoreError(error) ?? StoreError.notUpgraded(from: last, reason: Self.reason(error))
        }
        return queue
    }

    /// A copy of the store as it was before a migration: `<store>.before-<the migration's number>`.
    package static func backupPath(of path: String, before migration: String) -> String {
        "\(path).before-\(migration.prefix { $0.isNumber })"
    }

    static var migrator: DatabaseMigrator {
        var migrator = DatabaseMigrator()
        for migration in migrations {
            migrator.registerMigration(migration.name) { db in try db.execute(sql: migration.sql) }
        }
        return migrator
    }

    /// Names of the migrations that the file has had.
    ///
    /// - Throws: `StoreError.newerSchema` when this release does not know one; `damaged` when there is a job table that none of
    ///   them made.
    static func appliedMigrations(_ db: Database) throws -> Set<String> {
        let applied = try migrator.appliedIdentifiers(db)
        let unknown = applied.subtracting(migrations.map(\.name))
        guard unknown.isEmpty else { throw StoreError.newerSchema(unknown: unknown.sorted()) }
        guard try !applied.isEmpty || !db.tableExists("jobs") else {
            throw StoreError.damaged("it has a table of jobs, and no record of its schema")
        }
        return applied
    }

    /// Looks at every table but the events', which can be most of the file and are looked at by `edgetuned check`.
    private static func requireSound(_ db: Database) throws {
        let tables = try String.fetchAll(
            db, sql: "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'events' ORDER BY name")
        for table in tables {
            let found = try String.fetchOne(db, sql: "PRAGMA quick_check(\(table.quotedDatabaseIdentifier))") ?? "no answer"
            guard found == "ok" else { throw StoreError.damaged(found) }
        }
    }

    /// Complete under its name, or not there: a copy that was cut off has another one, and is written again.
    private static func back(up queue: DatabaseQueue, to path: String) throws {
        let unfinished = path + ".part"
        try? FileManager.default.removeItem(atPath: unfinished)
        try queue.writeWithoutTransaction { try $0.execute(sql: "VACUUM INTO ?", arguments: [unfinished]) }
        let descriptor = open(unfinished, O_RDWR | O_CLOEXEC)
        guard descriptor >= 0 else { throw BlobStore.failure("open", unfinished) }
        defer { Glibc.close(descriptor) }
        guard fsync(descriptor) == 0 else { throw BlobStore.failure("fsync", unfinished) }
        guard rename(unfinished, path) == 0 else { throw BlobStore.failure("rename", unfinished) }
        try DurableDirectory.sync((path as NSString).deletingLastPathComponent)
    }

    private static func reason(_ error: any Error) -> String {
        switch error {
        case let error as DatabaseError where error.resultCode == .SQLITE_FULL:
            "the disk is full; an upgrade needs room for a copy of the store"
        case let error as DatabaseError: error.message ?? "SQLite error \(error.resultCode.rawValue)"
        default: "\(error)"
        }
    }

    static func fileBytes(_ path: String) -> UInt64 {
        var status = stat()
        return stat(path, &status) == 0 ? UInt64(status.st_size) : 0
    }
}
