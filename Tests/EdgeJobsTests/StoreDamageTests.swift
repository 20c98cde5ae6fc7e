// Claims: a store with any bytes spoilt opens, or is refused with a typed error that names what to do, and never traps, in
// the daemon's calls neither; what can still be read of it is copied into a new one.
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import GRDB
import Testing

private let now = Date(timeIntervalSince1970: 1_800_000_000)

@Suite struct StoreDamageTests {
    /// A closed store with some pages of everything.
    static func sample(at path: String, jobs: Int = 40) async throws -> [UInt8] {
        let store = try JobStore(path: path)
        for number in 0..<jobs {
            let id = JobID.make(now: now.addingTimeInterval(Double(number)), random: UInt64(number))
            let key = IdempotencyKey(key: "k\(number)", bodyDigest: "b")
            _ = try await store.submit(makeJob(id), key: key, queueLimit: 1000, at: now)
            try await store.record((0..<20).map { .log("line \($0)") }, of: id, at: now)
            try await store.apply(.cancel, to: id, reason: "a test", at: now)
        }
        try await store.addBlob("sha256:" + String(repeating: "a", count: 64), bytes: 3, ownerUid: 7, at: now)
        try store.close()
        return [UInt8](try Data(contentsOf: URL(filePath: path)))
    }

    /// What the daemon asks of a store at its start and for its lists.
    private static func use(_ path: String) async throws {
        let store = try JobStore(path: path)
        defer { try? store.close() }
        _ = try await store.interruptedJobs()
        _ = try await store.queueEntries(with: nil, at: now)
        _ = try await store.imports()
        _ = try await store.sweepBlobs(present: [], before: now)
        for job in try await listed(store) {
            _ = try await store.job(job.id)
            _ = try await store.events(of: job.id, after: 0, limit: 1000)
        }
        _ = try await (store.models(), store.datasets(), store.adapters(), store.count(of: .queued))
    }

    @Test func noSpoiltByteTrapsAndEveryRefusalIsTyped() async throws {
        let directory = try TemporaryDirectory()
        let whole = try await Self.sample(at: directory.path + "/whole.db")
        let seed: UInt64 = 0x5707E
        var random = seed
        func next() -> Int {
            random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int(random >> 33)
        }
        var (worked, refused) = (0, 0)
        for round in 0..<400 {
            var bytes = whole
            switch round % 4 {
            // Headers of pages, the rest of them, whole stretches, and what a cut leaves.
            case 0: for _ in 0..<3 { bytes[next() % (bytes.count / 4096) * 4096 + next() % 64] ^= UInt8(1 << next() % 8) }
            case 1: for _ in 0..<8 { bytes[next() % bytes.count] = UInt8(truncatingIfNeeded: next()) }
            case 2:
                let start = next() % bytes.count
                for at in start..<min(start + 2000, bytes.count) { bytes[at] = 0 }
            default: bytes.removeSubrange((next() % bytes.count)...)
            }
            let path = directory.path + "/\(round).db"
            try Data(bytes).write(to: URL(filePath: path))
            do {
                try await Self.use(path)
                worked += 1
            } catch {
                let named = StoreError(error)
                #expect(named != nil || error is DatabaseError || error is DecodingError, "seed \(seed) round \(round): \(error)")
                refused += 1
            }
            for ending in ["", "-wal", "-shm"] { try? FileManager.default.removeItem(atPath: path + ending) }
        }
        #expect(worked > 40 && refused > 40, "seed \(seed): \(worked) worked, \(refused) refused")
    }

    @Test(arguments: ["not a database at all, and long enough to be looked at as one by SQLite", ""])
    func aFileThatIsNoStoreSaysWhatToDo(content: String) throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/jobs.db"
        try Data(String(repeating: content, count: 100).utf8).write(to: URL(filePath: path))
        guard !content.isEmpty else {
            // An empty file is a new store to SQLite.
            try JobStore(path: path).close()
            return
        }
        let error = #expect(throws: StoreError.self) { try JobStore(path: path) }
        #expect(error?.description.contains("edgetuned check") == true)
        #expect(throws: StoreError.self) { try StoreInspection(path: path, .reading) }
    }

    @Test func aStoreThatWasCutOffIsLookedAtBeforeItIsUsed() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/jobs.db"
        var bytes = try await Self.sample(at: path)
        // The root page of `jobs`, whose cells are then nowhere.
        let raw = try DatabaseQueue(path: path)
        let root = try #require(
            try await raw.read { try Int.fetchOne($0, sql: "SELECT rootpage FROM sqlite_master WHERE name = 'jobs'") })
        try raw.close()
        for at in (root - 1) * 4096 + 8..<root * 4096 { bytes[at] = 0xFF }
        try Data(bytes).write(to: URL(filePath: path))
        // As a daemon that was killed leaves it; SQLite takes no frame from it.
        try Data(repeating: 0, count: 32).write(to: URL(filePath: path + "-wal"))
        #expect(throws: StoreError.self) { try JobStore(path: path) }
    }

    @Test func rowsThatNoLongerDecodeAreFoundAndTakenOut() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/jobs.db"
        _ = try await Self.sample(at: path, jobs: 4)
        let raw = try DatabaseQueue(path: path)
        try await raw.write { db in
            try db.execute(sql: "UPDATE jobs SET request = '{' WHERE place = 1")
            try db.execute(sql: "UPDATE jobs SET owner_uid = -1 WHERE place = 2")
            try db.execute(sql: "UPDATE jobs SET created_at = 1e300 WHERE place = 3")
            try db.execute(sql: "UPDATE blobs SET bytes = -1")
            try db.execute(sql: "UPDATE events SET line = 'x' WHERE seq = 5 AND job = (SELECT id FROM jobs WHERE place = 4)")
            try db.execute(sql: "INSERT INTO adapters VALUES ('a', 'j', 'm', 'b', 'nobody', 0)")
        }
        try raw.close()
        let store = try StoreInspection(path: path, .repairing)
        #expect(try store.structuralDamage().isEmpty)
        let rows = try store.unreadableRows()
        #expect(rows.map(\.table) == ["jobs", "jobs", "jobs", "adapters", "blobs"])
        #expect(try store.badEvents().count == 1)
        #expect(try store.contents().jobs.count == 1)
        let taken = try rows.map { try store.takeOut($0) }
        // A job with what it had to tell.
        #expect(taken[0].count == 1 + 23 && taken[0][0]["request"] == "{" && taken[3][0]["owner_uid"] == "nobody")
        #expect(try store.takeOutBadEvents().count == 1)
        #expect(try store.unreadableRows().isEmpty && store.badEvents().isEmpty && store.structuralDamage().isEmpty)
        try store.close()
        let opened = try JobStore(path: path)
        #expect(try await listed(opened).count == 1)
    }

    @Test func brokenIndicesAreBuiltAnew() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/jobs.db"
        _ = try await Self.sample(at: path)
        let raw = try DatabaseQueue(path: path)
        try await raw.writeWithoutTransaction { db in
            // The index of names loses its entries: it is made to look at another page, an empty one.
            try db.execute(sql: "CREATE TABLE hollow (a); CREATE INDEX hollow_index ON hollow (a)")
            try db.execute(sql: "PRAGMA writable_schema = ON")
            try db.execute(
                sql: """
                    UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'hollow_index')
                    WHERE name = 'jobs_by_name'
                    """)
            try db.execute(sql: "DELETE FROM sqlite_master WHERE name LIKE 'hollow%'")
        }
        try raw.close()
        let store = try StoreInspection(path: path, .repairing)
        #expect(try store.structuralDamage().contains { $0.contains("jobs_by_name") })
        try store.reindex()
        #expect(try !store.structuralDamage().contains { $0.contains("missing from index") })
        try store.close()
    }

    @Test func aStoreIsMadeAnewOfWhatCanBeRead() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/jobs.db"
        var bytes = try await Self.sample(at: path, jobs: 200)
        let raw = try DatabaseQueue(path: path)
        // A leaf in the middle of the jobs.
        let leaf = try #require(
            try await raw.read {
                try Int.fetchOne(
                    $0, sql: "SELECT pageno FROM dbstat WHERE name = 'jobs' AND pagetype = 'leaf' ORDER BY path LIMIT 1 OFFSET 5")
            })
        try raw.close()
        for at in (leaf - 1) * 4096..<leaf * 4096 { bytes[at] = 0xEE }
        try Data(bytes).write(to: URL(filePath: path))
        let copied = try StoreSalvage.rebuild(path, as: directory.path + "/new.db")
        let jobs = try #require(copied.first { $0.table == "jobs" }).rows
        #expect(jobs > 150 && jobs < 200, "\(copied)")
        let store = try StoreInspection(path: directory.path + "/new.db", .reading)
        #expect(try store.structuralDamage().isEmpty && store.unreadableRows().isEmpty && store.badEvents().isEmpty)
        #expect(try store.contents().jobs.count == jobs)
        #expect(try store.contents().blobs.count == 1)
        try store.close()
    }
}
