// Blobs as the store knows them: whose they are, and what still needs them. Their files are BlobStore's.
import EdgeWire
import Foundation
import GRDB

extension JobStore {
    package func addBlob(_ digest: String, bytes: UInt64, ownerUid: UInt32, at now: Date) async throws {
        try await queue.write { db in
            try db.execute(
                sql: "INSERT OR IGNORE INTO blobs (digest, bytes, owner_uid, created_at) VALUES (?, ?, ?, ?)",
                arguments: [digest, Int64(bytes), ownerUid, now.timeIntervalSince1970])
        }
    }

    package func hasBlob(_ digest: String) async throws -> Bool {
        try await queue.read { db in
            try Bool.fetchOne(db, sql: "SELECT EXISTS (SELECT 1 FROM blobs WHERE digest = ?)", arguments: [digest]) == true
        }
    }

    /// Bytes that a user's blobs take, and those that his imports make: of an import that failed and may go on what it has
    /// written is kept.
    package func blobBytes(ofOwner uid: UInt32) async throws -> UInt64 {
        try await queue.read { db in
            // Two sums: a damaged one must not hide in the other.
            let stored = "SELECT sum(bytes) FROM blobs WHERE owner_uid = ?"
            let made = "SELECT sum(total_bytes) FROM imports WHERE owner_uid = ? AND files != '[]'"
            return try [stored, made].reduce(0) { try $0 + (UInt64.fetchOne(db, sql: $1, arguments: [uid]) ?? 0) }
        }
    }

    /// Forgets the blob when no model, data set, import or unfinished job names it. True: its file may go.
    package func releaseBlob(_ digest: String) async throws -> Bool {
        try await queue.write { db in try !Self.release([digest], db).isEmpty }
    }

    /// Forgets those that nothing needs, and returns them.
    static func release(_ digests: some Sequence<String>, _ db: Database) throws -> [String] {
        try digests.filter { digest in
            guard try !isNeeded(digest, db) else { return false }
            try db.execute(sql: "DELETE FROM blobs WHERE digest = ?", arguments: [digest])
            return true
        }
    }

    /// What a start of the daemon may remove: of the files in `present`, those that were never stored or were released
    /// already, and blobs of before `limit` that nothing ever used.
    package func sweepBlobs(present: [String], before limit: Date) async throws -> [String] {
        try await queue.write { db in
            let old = try String.fetchAll(
                db, sql: "SELECT digest FROM blobs WHERE created_at < ?", arguments: [limit.timeIntervalSince1970])
            let needed = try Self.needed(db)
            for digest in old where !needed.contains(digest) {
                try db.execute(sql: "DELETE FROM blobs WHERE digest = ?", arguments: [digest])
            }
            let known = needed.union(try String.fetchAll(db, sql: "SELECT digest FROM blobs"))
            return present.filter { !known.contains($0) }
        }
    }

    /// Every blob that anything names, finished jobs too.
    private static func needed(_ db: Database) throws -> Set<String> {
        try String.fetchSet(
            db,
            sql: """
                SELECT blob FROM models UNION SELECT blob FROM datasets
                UNION SELECT json_extract(file.value, '$.blob') FROM imports, json_each(imports.files) AS file
                UNION SELECT model_blob FROM jobs
                UNION SELECT value FROM (SELECT DISTINCT dataset_blobs FROM jobs) AS sets, json_each(sets.dataset_blobs)
                """)
    }

    /// By a model, a data set, an import, or a job that is not finished.
    private static func isNeeded(_ digest: String, _ db: Database) throws -> Bool {
        try Bool.fetchOne(
            db,
            sql: """
                SELECT EXISTS (SELECT 1 FROM models WHERE blob = ?1)
                    OR EXISTS (SELECT 1 FROM datasets WHERE blob = ?1)
                    OR EXISTS (SELECT 1 FROM imports, json_each(imports.files) AS file
                        WHERE json_extract(file.value, '$.blob') = ?1)
                    OR EXISTS (SELECT 1 FROM jobs WHERE \(unfinished) AND
                        (model_blob = ?1 OR EXISTS (SELECT 1 FROM json_each(dataset_blobs) WHERE value = ?1)))
                """, arguments: [digest]) == true
    }
}
