// Models, data sets and adapters by name; the files themselves are BlobStore's and the workers'.
import EdgeWire
import Foundation
import GRDB

/// An adapter's record without its files, which are on disk.
package struct StoredAdapter: Equatable, Sendable {
    package let name: String
    package let job: String
    package let baseModel: String
    package let modelBlob: String
    package let ownerUid: UInt32
    package let createdAt: Date

    /// - Parameter job: of an adapter that was brought in, an id that no job has: what its directory is called.
    package init(name: String, job: String, baseModel: String, modelBlob: String, ownerUid: UInt32, createdAt: Date) {
        self.name = name
        self.job = job
        self.baseModel = baseModel
        self.modelBlob = modelBlob
        self.ownerUid = ownerUid
        self.createdAt = createdAt
    }
}

extension JobStore {
    // MARK: models

    package func models() async throws -> [ModelRecord] {
        try await queue.read { db in try Row.fetchAll(db, sql: "SELECT * FROM models ORDER BY name").map(Self.model) }
    }

    package func modelCount() async throws -> Int {
        try await queue.read { db in try Int.fetchOne(db, sql: "SELECT count(*) FROM models") ?? 0 }
    }

    package func model(_ name: String) async throws -> ModelRecord? {
        try await queue.read { db in
            try Row.fetchOne(db, sql: "SELECT * FROM models WHERE name = ?", arguments: [name]).map(Self.model)
        }
    }

    package func add(_ model: ModelRecord) async throws {
        try await queue.write { db in
            guard try Self.modelImport(model.name, db) == nil else {
                throw Problem(
                    .conflict, "a model \"\(model.name)\" is being imported, or failed to be",
                    hint: "another name, or: edgetune models remove \(model.name)")
            }
            try Self.insert(model, db)
        }
    }

    static func insert(_ model: ModelRecord, _ db: Database) throws {
        try requireFree("models", "model", model.name, blob: model.blob, ownerUid: model.ownerUid, db)
        try db.execute(
            sql: """
                INSERT OR REPLACE INTO models (name, blob, owner_uid, created_at, report, files, source)
                VALUES (?, ?, ?, ?, ?, ?, ?)
                """,
            arguments: [
                model.name, model.blob, model.ownerUid, model.createdAt.timeIntervalSince1970,
                try Column.text(model.model), try model.files.map { try Column.text($0) }, model.source,
            ])
    }

    package func removeModel(_ name: String) async throws {
        try await queue.write { db in
            guard let row = try Row.fetchOne(db, sql: "SELECT blob FROM models WHERE name = ?", arguments: [name]) else {
                throw Problem(.notFound, "there is no model \"\(name)\"")
            }
            try Self.requireUnused(row.read("blob"), what: "model \"\(name)\"", db)
            try Self.requireUnnamed("original_model", name, what: "model \"\(name)\"", db)
            try db.execute(sql: "DELETE FROM models WHERE name = ?", arguments: [name])
        }
    }

    static func model(_ row: Row) throws(StoreError) -> ModelRecord {
        ModelRecord(
            name: try row.read("name"), blob: try row.read("blob"), ownerUid: try row.read("owner_uid"),
            createdAt: try row.readDate("created_at"), model: try row.readJSON("report"),
            files: try row.readJSONIfThere("files"), source: try row.readIfThere("source"))
    }

    // MARK: data sets

    package func datasets() async throws -> [DatasetRecord] {
        try await queue.read { db in
            try Row.fetchAll(db, sql: "SELECT * FROM datasets ORDER BY name").map(Self.dataset)
        }
    }

    package func dataset(_ name: String) async throws -> DatasetRecord? {
        try await queue.read { db in
            try Row.fetchOne(db, sql: "SELECT * FROM datasets WHERE name = ?", arguments: [name]).map(Self.dataset)
        }
    }

    package func add(_ dataset: DatasetRecord) async throws {
        try await queue.write { db in
            try Self.requireFree(
                "datasets", "data set", dataset.name, blob: dataset.blob, ownerUid: dataset.ownerUid, db)
            try db.execute(
                sql: """
                    INSERT OR REPLACE INTO datasets (name, blob, bytes, owner_uid, created_at, report)
                    VALUES (?, ?, ?, ?, ?, ?)
                    """,
                arguments: [
                    dataset.name, dataset.blob, Int64(dataset.bytes), dataset.ownerUid,
                    dataset.createdAt.timeIntervalSince1970, try Column.text(dataset.dataset),
                ])
        }
    }

    package func removeDataset(_ name: String) async throws {
        try await queue.write { db in
            guard let row = try Row.fetchOne(db, sql: "SELECT blob FROM datasets WHERE name = ?", arguments: [name]) else {
                throw Problem(.notFound, "there is no data set \"\(name)\"")
            }
            try Self.requireUnused(row.read("blob"), what: "data set \"\(name)\"", db)
            try db.execute(sql: "DELETE FROM datasets WHERE name = ?", arguments: [name])
        }
    }

    static func dataset(_ row: Row) throws(StoreError) -> DatasetRecord {
        DatasetRecord(
            name: try row.read("name"), blob: try row.read("blob"), bytes: try row.readBytes("bytes"),
            ownerUid: try row.read("owner_uid"), createdAt: try row.readDate("created_at"),
            dataset: try row.readJSON("report"))
    }

    /// The same name for the same bytes is the same import made again; for other bytes, or another user, it is a conflict.
    private static func requireFree(
        _ table: String, _ what: String, _ name: String, blob: String, ownerUid: UInt32, _ db: Database
    ) throws {
        let other = try Bool.fetchOne(
            db, sql: "SELECT EXISTS (SELECT 1 FROM \(table) WHERE name = ? AND NOT (blob = ? AND owner_uid = ?))",
            arguments: [name, blob, ownerUid])
        guard other != true else {
            throw Problem(.conflict, "there is another \(what) \"\(name)\"", hint: "another name, or remove it first")
        }
    }

    /// No unfinished job may lose its bytes.
    private static func requireUnused(_ blob: String, what: String, _ db: Database) throws {
        let user = try String.fetchOne(
            db,
            sql: """
                SELECT id FROM jobs WHERE \(unfinished)
                AND (model_blob = ?1 OR EXISTS (SELECT 1 FROM json_each(dataset_blobs) WHERE value = ?1)) LIMIT 1
                """, arguments: [blob])
        if let user { throw inUse(what, by: user) }
    }

    /// No unfinished job may lose what a key of its request names.
    private static func requireUnnamed(_ key: String, _ name: String, what: String, _ db: Database) throws {
        let user = try String.fetchOne(
            db, sql: "SELECT id FROM jobs WHERE \(unfinished) AND json_extract(request, ?) = ? LIMIT 1", arguments: ["$.\(key)", name])
        if let user { throw inUse(what, by: user) }
    }

    private static func inUse(_ what: String, by job: String) -> Problem {
        Problem(.wrongState, "\(what) is in use by job \(job)", hint: "wait for the job, or cancel it")
    }

    // MARK: adapters

    package func adapters() async throws -> [StoredAdapter] {
        try await queue.read { db in
            try Row.fetchAll(db, sql: "SELECT * FROM adapters ORDER BY name").map(Self.adapter)
        }
    }

    package func adapterCount() async throws -> Int {
        try await queue.read { db in try Int.fetchOne(db, sql: "SELECT count(*) FROM adapters") ?? 0 }
    }

    package func adapter(_ name: String) async throws -> StoredAdapter? {
        try await queue.read { db in
            try Row.fetchOne(db, sql: "SELECT * FROM adapters WHERE name = ?", arguments: [name]).map(Self.adapter)
        }
    }

    package func adapter(ofJob id: String) async throws -> StoredAdapter? {
        try await queue.read { db in
            try Row.fetchOne(db, sql: "SELECT * FROM adapters WHERE job = ?", arguments: [id]).map(Self.adapter)
        }
    }

    /// What of a job's directory is needed.
    package enum KeptDirectory: Sendable { case withAdapter, withoutAdapter }

    /// Directories that are needed, by the id of their job. Of a job that has ended, an adapter only when it is listed.
    package func keptDirectories() async throws -> [String: KeptDirectory] {
        try await queue.read { db in
            let rows = try Row.fetchAll(
                db,
                sql: """
                    SELECT id, \(Self.unfinished)
                        OR EXISTS (SELECT 1 FROM adapters WHERE job = jobs.id) AS with_adapter FROM jobs
                    UNION SELECT job, TRUE FROM adapters
                    """)
            var kept: [String: KeptDirectory] = [:]
            for row in rows {
                let (id, withAdapter): (String, Bool) = (try row.read("id"), try row.read("with_adapter"))
                if withAdapter || kept[id] == nil { kept[id] = withAdapter ? .withAdapter : .withoutAdapter }
            }
            return kept
        }
    }

    package func add(_ adapter: StoredAdapter) async throws {
        try await queue.write { db in
            guard try String.fetchOne(db, sql: "SELECT name FROM adapters WHERE name = ?", arguments: [adapter.name]) == nil else {
                throw Problem(
                    .conflict, "there is another adapter \"\(adapter.name)\"", hint: "another name, or remove it first")
            }
            try Self.insert(adapter, db)
        }
    }

    package func removeAdapter(_ name: String) async throws {
        try await queue.write { db in
            try Self.requireUnnamed("init_from_adapter", name, what: "adapter \"\(name)\"", db)
            try db.execute(sql: "DELETE FROM adapters WHERE name = ?", arguments: [name])
            guard db.changesCount == 1 else { throw Problem(.notFound, "there is no adapter \"\(name)\"") }
            try db.execute(sql: "UPDATE jobs SET adapter = NULL WHERE adapter = ?", arguments: [name])
        }
    }

    static func insertAdapter(of job: Job, at now: Date, _ db: Database) throws {
        try insert(
            StoredAdapter(
                name: job.name, job: job.id, baseModel: job.request.baseModel, modelBlob: job.modelBlob, ownerUid: job.ownerUid,
                createdAt: now), db)
    }

    private static func insert(_ adapter: StoredAdapter, _ db: Database) throws {
        try db.execute(
            sql: """
                INSERT INTO adapters (name, job, base_model, model_blob, owner_uid, created_at) VALUES (?, ?, ?, ?, ?, ?)
                """,
            arguments: [
                adapter.name, adapter.job, adapter.baseModel, adapter.modelBlob, adapter.ownerUid,
                adapter.createdAt.timeIntervalSince1970,
            ])
    }

    static func adapter(_ row: Row) throws(StoreError) -> StoredAdapter {
        StoredAdapter(
            name: try row.read("name"), job: try row.read("job"), baseModel: try row.read("base_model"),
            modelBlob: try row.read("model_blob"), ownerUid: try row.read("owner_uid"),
            createdAt: try row.readDate("created_at"))
    }
}
