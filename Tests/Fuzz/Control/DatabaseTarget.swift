// The job store opened from a damaged file. SQLite's own checks are SQLite's; what is tried is that the store refuses, or that
// every row that it then reads is a value or an error.
//
// Claims: no damaged file traps the daemon; refusals are StoreError, or of GRDB DatabaseError and RowDecodingError;
// the heap holds at most 8 MiB, SQLite's page cache included.
import EdgeJobs
import EdgeWire
import Foundation
import GRDB

extension FuzzTarget {
    /// Edits of a whole store of every kind of row: each a page, an offset in it (two bytes) and a new byte.
    static let database = FuzzTarget(
        name: "database", longestInput: 64, heap: HeapClaim(bytesPerByte: 0, fixedBytes: 8 << 20), seconds: 10,
        errors: [StoreError.self, DatabaseError.self, RowDecodingError.self]
    ) { bytes in
        var file = try whole.get()
        for edit in 0..<bytes.count / 4 {
            let at = bytes[(4 * edit)...]
            let place = Int(at[at.startIndex]) << 12 | (Int(at[at.startIndex + 1]) | Int(at[at.startIndex + 2]) << 8) & 4095
            file[place % file.count] = at[at.startIndex + 3]
        }
        for name in ["jobs.db-wal", "jobs.db-shm"] { ScratchDirectory.removeFile(name) }
        let path = ScratchDirectory.save(file, to: "jobs.db")
        try waitFor { try await readAll(path) }
    }

    private static let now = Date(timeIntervalSince1970: 1_800_000_000)

    private static func readAll(_ path: String) async throws {
        let store = try JobStore(path: path)
        let result: Result<Void, any Error>
        do {
            // Of both kinds: j-1's owner sees it, and j-2's is another user.
            _ = try await store.listing(in: nil, limit: 100) { $0 == 7 }
            for id in ["j-1", "j-2"] {
                if let job = try await store.job(id) { _ = try Wire.encoder().encode(JobStatus(job)) }
                _ = try await store.events(of: id, after: 0, limit: 100)
            }
            _ = try await (store.queueEntries(with: "j-1", at: now), store.interruptedJobs())
            _ = try Wire.encoder().encode(try await store.models())
            _ = try Wire.encoder().encode(try await store.datasets())
            _ = try await (store.adapters(), store.imports(), store.nextImport())
            _ = try await store.blobBytes(ofOwner: 7)
            _ = try await store.sweepBlobs(present: ["sha256:a"], before: now)
            try await store.record([.log("x")], of: "j-1", at: now)
            result = .success(())
        } catch { result = .failure(error) }
        try store.close()
        try result.get()
    }

    private static let whole = Result { () throws -> [UInt8] in
        let path = ScratchDirectory.path + "/whole.db"
        ScratchDirectory.removeFile("whole.db")
        try waitFor {
            let store = try JobStore(path: path)
            for id in ["j-1", "j-2"] {
                let job = Job(
                    id: id, name: id, ownerUid: id == "j-1" ? 7 : 8, createdAt: now,
                    request: JobRequest(baseModel: "m", datasets: [DatasetReference(path: "d")]), modelBlob: "sha256:m",
                    datasetBlobs: ["sha256:d"], plan: nil)
                _ = try await store.submit(job, key: IdempotencyKey(key: id, bodyDigest: "a"), queueLimit: 9, at: now)
            }
            try await store.add(
                DatasetRecord(
                    name: "d", blob: "sha256:d", bytes: 1, ownerUid: 7, createdAt: now, dataset: .init(samples: 1, kinds: [:])))
            try await store.add(
                ModelRecord(
                    name: "m", blob: "sha256:m", ownerUid: 7, createdAt: now,
                    model: ModelReport(
                        architecture: "llama", title: nil, layers: 2, hiddenSize: 8, vocabulary: 9, contextLength: 64,
                        parameters: 100, quantisation: "Q4_1 100 %", fileBytes: 100, targetModules: ["q_proj"])))
            try await store.addBlob("sha256:a", bytes: 5, ownerUid: 7, at: now)
            _ = try await store.add(
                StoredImport(
                    name: "i", id: "i-1", ownerUid: 7, createdAt: now,
                    files: [ModelFile(name: "config.json", blob: "sha256:a")], source: "s", totalBytes: 9, peakBytes: 9))
            for transition in [JobTransition.start, .trained] {
                try await store.apply(transition, to: "j-1", reason: nil, at: now)
            }
            try store.close()
        }
        return Array(try Data(contentsOf: URL(filePath: path)))
    }
}
