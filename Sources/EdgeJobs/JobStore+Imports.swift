// Imports of models: stored before anything is written, so that a start of the daemon goes on with them. An import that
// succeeds becomes a model in the same transaction in which its sources are released.
import EdgeWire
import Foundation
import GRDB

/// The import of one model of several files.
package struct StoredImport: Equatable, Sendable {
    package var name: String
    /// Names its directory.
    package var id: String
    package var ownerUid: UInt32
    package var createdAt: Date
    /// Empty when it failed for good: then the uploaded files are gone.
    package var files: [ModelFile]
    package var source: String?
    /// Of the file that is made.
    package var totalBytes: UInt64
    /// What its worker holds at most.
    package var peakBytes: UInt64
    /// Why it failed; nil: it waits or runs.
    package var problem: Problem?

    package init(
        name: String, id: String, ownerUid: UInt32, createdAt: Date, files: [ModelFile], source: String?,
        totalBytes: UInt64, peakBytes: UInt64, problem: Problem? = nil
    ) {
        self.name = name
        self.id = id
        self.ownerUid = ownerUid
        self.createdAt = createdAt
        self.files = files
        self.source = source
        self.totalBytes = totalBytes
        self.peakBytes = peakBytes
        self.problem = problem
    }
}

extension JobStore {
    /// The oldest first.
    package func imports() async throws -> [StoredImport] {
        try await queue.read { db in
            try Row.fetchAll(db, sql: "SELECT * FROM imports ORDER BY place").map(Self.modelImport)
        }
    }

    package func modelImport(_ name: String) async throws -> StoredImport? {
        try await queue.read { db in try Self.modelImport(name, db) }
    }

    static func modelImport(_ name: String, _ db: Database) throws -> StoredImport? {
        try Row.fetchOne(db, sql: "SELECT * FROM imports WHERE name = ?", arguments: [name]).map(modelImport)
    }

    /// The one that has waited longest.
    package func nextImport() async throws -> StoredImport? {
        try await queue.read { db in
            try Row.fetchOne(db, sql: "SELECT * FROM imports WHERE problem IS NULL ORDER BY place LIMIT 1")
                .map(Self.modelImport)
        }
    }

    /// Stores it to be run. One of the same name that failed is replaced, and keeps its id and with it what it has written
    /// when its files are the same.
    ///
    /// - Returns: blobs whose files may go: those of a replaced import.
    package func add(_ new: StoredImport) async throws -> (stored: StoredImport, released: [String]) {
        try await queue.write { db in
            guard try String.fetchOne(db, sql: "SELECT name FROM models WHERE name = ?", arguments: [new.name]) == nil else {
                throw Problem(
                    .conflict, "there is another model \"\(new.name)\"", hint: "another name, or remove it first")
            }
            var stored = new
            let held = try Self.modelImport(new.name, db)
            if let held {
                guard held.ownerUid == new.ownerUid else {
                    throw Problem(.conflict, "somebody else imports a model \"\(new.name)\"", hint: "another name")
                }
                if held.problem == nil {
                    guard held.files == new.files else {
                        throw Problem(
                            .conflict, "another model \"\(new.name)\" is being imported",
                            hint: "another name, or first: edgetune models remove \(new.name)")
                    }
                    return (held, [])
                }
                if held.files == new.files { stored.id = held.id }
                try db.execute(sql: "DELETE FROM imports WHERE name = ?", arguments: [new.name])
            }
            for file in new.files {
                let known = try String.fetchOne(db, sql: "SELECT digest FROM blobs WHERE digest = ?", arguments: [file.blob])
                guard known != nil else { throw Problem(.notFound, "there is no blob \(file.blob) for \"\(file.name)\"") }
            }
            let place = (try Int.fetchOne(db, sql: "SELECT max(place) FROM imports") ?? 0) + 1
            try db.execute(
                sql: """
                    INSERT INTO imports (name, id, place, owner_uid, created_at, files, source, total_bytes, peak_bytes)
                    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
                    """,
                arguments: [
                    stored.name, stored.id, place, stored.ownerUid, stored.createdAt.timeIntervalSince1970,
                    try Column.text(stored.files), stored.source, Int64(stored.totalBytes), Int64(stored.peakBytes),
                ])
            return (stored, try Self.release((held?.files ?? []).map(\.blob), db))
        }
    }

    /// The import is the model now.
    ///
    /// - Returns: blobs whose files may go: the sources. Nil when the import was removed meanwhile.
    package func finish(_ done: StoredImport, as model: ModelRecord) async throws -> [String]? {
        try await queue.write { db in
            try db.execute(sql: "DELETE FROM imports WHERE id = ?", arguments: [done.id])
            guard db.changesCount == 1 else { return nil }
            try Self.insert(model, db)
            return try Self.release(done.files.map(\.blob), db)
        }
    }

    package enum Sources: Sendable { case kept, released }

    /// - Returns: blobs whose files may go. Nil when the import was removed meanwhile.
    package func fail(_ failed: StoredImport, _ problem: Problem, sources: Sources) async throws -> [String]? {
        try await queue.write { db in
            let files = sources == .kept ? failed.files : []
            try db.execute(
                sql: "UPDATE imports SET problem = ?, files = ? WHERE id = ?",
                arguments: [try Column.text(problem), try Column.text(files), failed.id])
            guard db.changesCount == 1 else { return nil }
            return sources == .kept ? [] : try Self.release(failed.files.map(\.blob), db)
        }
    }

    /// - Returns: blobs whose files may go.
    package func removeImport(_ removed: StoredImport) async throws -> [String] {
        try await queue.write { db in
            try db.execute(sql: "DELETE FROM imports WHERE id = ?", arguments: [removed.id])
            return try Self.release(removed.files.map(\.blob), db)
        }
    }

    static func modelImport(_ row: Row) throws(StoreError) -> StoredImport {
        StoredImport(
            name: try row.read("name"), id: try row.read("id"), ownerUid: try row.read("owner_uid"),
            createdAt: try row.readDate("created_at"), files: try row.readJSON("files"),
            source: try row.readIfThere("source"), totalBytes: try row.readBytes("total_bytes"),
            peakBytes: try row.readBytes("peak_bytes"), problem: try row.readJSONIfThere("problem"))
    }
}
