// Imports in the store: which blobs each of its transactions lets go, and that no other use of them loses its bytes.
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import GRDB
import Testing

private let now = Date(timeIntervalSince1970: 1_800_000_000)
private let report = ModelReport(
    architecture: "llama", title: nil, layers: 1, hiddenSize: 2, vocabulary: 3, contextLength: 4, parameters: 5,
    quantisation: "F32", fileBytes: 6, targetModules: [])

private func digest(_ digit: Character) -> String { "sha256:" + String(repeating: digit, count: 64) }

private func model(_ name: String, _ blob: String, files: [ModelFile]? = nil) -> ModelRecord {
    ModelRecord(name: name, blob: blob, ownerUid: 7, createdAt: now, model: report, files: files)
}

private func newImport(_ id: String, name: String = "m", _ blobs: [String], owner: UInt32 = 7) -> StoredImport {
    StoredImport(
        name: name, id: id, ownerUid: owner, createdAt: now,
        files: blobs.enumerated().map { ModelFile(name: "f\($0.offset)", blob: $0.element) }, source: "s",
        totalBytes: 10, peakBytes: 20)
}

@Suite struct ImportStoreTests {
    /// With the blobs a, b and c.
    private static func store(_ directory: String) async throws -> JobStore {
        let store = try JobStore(path: directory + "/jobs.db")
        for digit in "abc" { try await store.addBlob(digest(digit), bytes: 1, ownerUid: 7, at: now) }
        return store
    }

    @Test func aStoreOfTheFirstReleaseKeepsItsModels() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/jobs.db"
        let record = model("m", digest("a"))
        do {
            let store = try JobStore(path: path)
            try await store.add(record)
            try store.close()
        }
        let raw = try DatabaseQueue(path: path)
        try await raw.write { db in
            try db.execute(sql: "DROP TABLE imports; ALTER TABLE models DROP COLUMN files; ALTER TABLE models DROP COLUMN source;")
            try db.execute(sql: "DELETE FROM grdb_migrations WHERE identifier = '2 imports'")
        }
        try raw.close()
        #expect(try await JobStore(path: path).models() == [record])
    }

    @Test func whatIsFinishedIsAModelAndItsSourcesGoUnlessSomethingElseNeedsThem() async throws {
        let directory = try TemporaryDirectory()
        let store = try await Self.store(directory.path)
        try await store.add(model("single", digest("a")))
        let (stored, released) = try await store.add(newImport("i-1", [digest("a"), digest("b")]))
        #expect(released.isEmpty)
        #expect(try await store.nextImport() == stored)
        #expect(try await store.imports() == [stored])
        // As long as it runs nobody takes its sources away, not even the model that one of them is.
        #expect(try await store.releaseBlob(digest("b")) == false)
        try await store.removeModel("single")
        #expect(try await store.releaseBlob(digest("a")) == false)
        try await store.add(model("single", digest("a")))
        let done = model("m", digest("c"), files: stored.files)
        #expect(try await store.finish(stored, as: done) == [digest("b")])
        #expect(try await store.model("m") == done)
        #expect(try await store.imports().isEmpty)
        #expect(try await store.finish(stored, as: done) == nil)
    }

    @Test func aFailureKeepsOrReleasesTheSources() async throws {
        let directory = try TemporaryDirectory()
        let store = try await Self.store(directory.path)
        let problem = Problem(.insufficientMemory, "d")
        let (first, _) = try await store.add(newImport("i-1", [digest("a"), digest("b")]))
        #expect(try await store.fail(first, problem, sources: .kept) == [])
        #expect(try await store.nextImport() == nil)
        #expect(try await store.releaseBlob(digest("a")) == false)
        // The same files go on under the same id; others replace it, and what it alone needed goes.
        let (again, _) = try await store.add(newImport("i-2", [digest("a"), digest("b")]))
        #expect(again.id == "i-1" && again.problem == nil)
        #expect(try await store.fail(again, problem, sources: .kept) == [])
        let (other, released) = try await store.add(newImport("i-3", [digest("b"), digest("c")]))
        #expect(other.id == "i-3" && released == [digest("a")])
        #expect(try await store.fail(other, problem, sources: .released) == [digest("b"), digest("c")])
        let failed = try await store.modelImport("m")
        #expect(failed?.files == [] && failed?.problem == problem)
    }

    @Test func aNameIsTakenOnce() async throws {
        let directory = try TemporaryDirectory()
        let store = try await Self.store(directory.path)
        func conflict(_ new: StoredImport) async {
            await #expect { try await store.add(new) } throws: { ($0 as? Problem)?.kind == .conflict }
        }
        _ = try await store.add(newImport("i-1", [digest("a")]))
        #expect(try await store.add(newImport("i-2", [digest("a")])).stored.id == "i-1")
        await conflict(newImport("i-2", [digest("b")]))
        await conflict(newImport("i-2", [digest("a")], owner: 8))
        await #expect { try await store.add(model("m", digest("b"))) } throws: { ($0 as? Problem)?.kind == .conflict }
        try await store.add(model("other", digest("b")))
        await conflict(newImport("i-2", name: "other", [digest("a")]))
        await #expect { try await store.add(newImport("i-2", name: "new", [digest("d")])) } throws: {
            ($0 as? Problem)?.kind == .notFound
        }
    }

    @Test func aSweepFindsWhatNothingUsesAndNothingElse() async throws {
        let directory = try TemporaryDirectory()
        let store = try await Self.store(directory.path)
        try await store.add(model("m", digest("a")))
        _ = try await store.add(newImport("i-1", name: "n", [digest("b")]))
        let present = "abcd".map { digest($0) }
        // Not stored: at once. Stored and unused: when it is old.
        #expect(try await store.sweepBlobs(present: present, before: now) == [digest("d")])
        #expect(try await store.sweepBlobs(present: present, before: now + 1) == [digest("c"), digest("d")])
        // And the 10 that the import will make.
        #expect(try await store.blobBytes(ofOwner: 7) == 2 + 10)
    }
}
