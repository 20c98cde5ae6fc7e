// Stores of every released schema are upgraded, with a copy of them beside; those of a later release and damaged ones are
// refused with a sentence, and are not written to.
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import GRDB
import Testing

/// A store as a release left it: Tests/Goldens/make_store_goldens.py.
func writeStore(_ schema: Int, at path: String) throws {
    var configuration = Configuration()
    configuration.foreignKeysEnabled = false
    let raw = try DatabaseQueue(path: path, configuration: configuration)
    let sql = String(decoding: try TestModel.goldens("stores/\(schema).sql"), as: UTF8.self)
    try raw.writeWithoutTransaction { db in
        try db.execute(sql: sql)
        try db.execute(sql: "PRAGMA journal_mode = WAL")
    }
    try raw.close()
}

/// Everything that is in a store, as text.
private func dump(_ path: String) throws -> [String] {
    let raw = try DatabaseQueue(path: path)
    defer { try? raw.close() }
    return try raw.read { db in
        try String.fetchAll(db, sql: "SELECT coalesce(sql, name) FROM sqlite_master ORDER BY name")
            + String.fetchAll(db, sql: "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").flatMap { table in
                try Row.fetchAll(db, sql: "SELECT * FROM \(table)").map { "\(table) \($0)" }.sorted()
            }
    }
}

@Suite struct StoreUpgradeTests {
    static let released = [1, 2, 3]

    private static func number(_ migration: JobStore.Migration) -> Int { Int(migration.name.prefix { $0.isNumber }) ?? 0 }

    @Test func everyReleasedSchemaButTheNewestHasAStoreHere() {
        #expect(JobStore.migrations.dropLast().map(Self.number) == Self.released)
        #expect(JobStore.backupPath(of: "/s/jobs.db", before: "2 imports") == "/s/jobs.db.before-2")
    }

    @Test(arguments: released)
    func aStoreOfAnOlderReleaseIsUpgradedWithNothingLost(schema: Int) async throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/jobs.db"
        try writeStore(schema, at: path)
        let store = try JobStore(path: path)
        let jobs = try await listed(store).sorted { $0.id < $1.id }
        #expect(jobs.map(\.state) == JobState.allCases)
        for (place, job) in zip(1..., jobs) {
            #expect(job.request.name == job.name && job.request.optimizer == .auto && job.request.seed == 42)
            #expect(job.plan?.totalSteps == 9 && job.ownerUid == 1000 + UInt32(place % 2))
            #expect(try await store.job(job.id).map { JobStatus($0) } == job)
            let events = try await store.events(of: job.id, after: 0, limit: 100)
            #expect(events.count >= 2 && events.map(\.seq) == Array(1...events.count))
            for event in events { _ = try Wire.decoder().decode(JobEvent.self, from: Data(event.line.utf8)) }
            let key = IdempotencyKey(key: "key \(place)", bodyDigest: String(repeating: "0", count: 64))
            #expect(try await store.submitted(key, ownerUid: job.ownerUid)?.id == job.id)
        }
        #expect(jobs.first { $0.state == .failed }?.problem?.kind == .nonFinite)
        #expect(try await store.adapter("a-succeeded")?.job == jobs.last?.id)
        #expect(try await store.models().map(\.name) == ["smol"])
        let (entries, usage) = try await store.queueEntries(with: nil, at: Date(timeIntervalSince1970: 1.7e9))
        #expect(entries.map(\.priority) == [schema >= 3 ? -1 : 0] && usage == (schema >= 3 ? [1000: 119] : [:]))
        #expect(try await store.datasets().map(\.name) == ["chats"])
        #expect(try await store.imports().count == (schema == 1 ? 0 : 1))
        #expect(try await store.blobBytes(ofOwner: 1000) == (schema == 1 ? 27 : 27 + 18))
        try store.close()
    }

    @Test func anUpgradedStoreHasTheSchemaOfANewOne() throws {
        let directory = try TemporaryDirectory()
        func schema(_ path: String) throws -> [String] {
            let raw = try DatabaseQueue(path: path)
            defer { try? raw.close() }
            return try raw.read {
                try String.fetchAll($0, sql: "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_master ORDER BY 1")
            }
        }
        try JobStore(path: directory.path + "/new.db").close()
        let new = try schema(directory.path + "/new.db")
        for release in Self.released {
            let path = directory.path + "/\(release).db"
            try writeStore(release, at: path)
            try JobStore(path: path).close()
            #expect(try schema(path) == new)
        }
    }

    @Test(arguments: released)
    func beforeAnUpgradeThereIsACopyThatIsWhole(schema: Int) throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/jobs.db"
        try writeStore(schema, at: path)
        let before = try dump(path)
        let next = try #require(JobStore.migrations.first { Self.number($0) > schema })
        let backup = JobStore.backupPath(of: path, before: next.name)
        let both = ["jobs.db", (backup as NSString).lastPathComponent]
        // What a copy that was cut off has left, and a copy of an upgrade that was cut off behind it.
        try Data("torn".utf8).write(to: URL(filePath: backup + ".part"))
        try Data("old".utf8).write(to: URL(filePath: backup))
        try JobStore(path: path).close()
        #expect(try dump(backup) == before)
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory.path).sorted() == both)
        // Opened again there is nothing to upgrade, and no other copy.
        try FileManager.default.removeItem(atPath: backup)
        try JobStore(path: path).close()
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory.path) == ["jobs.db"])
    }

    @Test func anUpgradeThatFailsLeavesTheStoreAsItWas() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/jobs.db"
        try writeStore(1, at: path)
        // Stands in the way of the second migration.
        let raw = try DatabaseQueue(path: path)
        try raw.write { try $0.execute(sql: "CREATE TABLE imports (a)") }
        try raw.close()
        let before = try dump(path)
        #expect(throws: StoreError.notUpgraded(from: "1 jobs", reason: "table imports already exists")) { try JobStore(path: path) }
        #expect(try dump(path) == before)
        #expect(try dump(path + ".before-2") == before)
    }

    @Test func aNewerStoreIsRefusedAndNotWrittenTo() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/jobs.db"
        try JobStore(path: path).close()
        let raw = try DatabaseQueue(path: path)
        try raw.write { try $0.execute(sql: "INSERT INTO grdb_migrations VALUES ('99 future')") }
        try raw.close()
        let before = try dump(path)
        let error = #expect(throws: StoreError.self) { try JobStore(path: path) }
        #expect(error == .newerSchema(unknown: ["99 future"]))
        #expect(error?.description == "the job store was written by a newer edgetuned (99 future); install that release")
        #expect(try dump(path) == before)
    }
}
