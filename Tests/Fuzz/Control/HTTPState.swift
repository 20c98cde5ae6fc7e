// The state that the daemon of `http-head` answers from, with something of every kind in it, of two users; and what may become of it.
import EdgeJobs
import EdgeWire
import Foundation
import edgetuned

final class HTTPState: Sendable {
    enum Role {
        case stranger, user, admin
        var uid: UInt32 { self == .admin ? 0 : HTTPState.user }
        var groups: [UInt32] { self == .user ? [ServedDaemon.userGroup] : [] }
    }

    static let shared = Result { try HTTPState() }
    /// The user who connects, and another.
    static let (user, other): (UInt32, UInt32) = (7, 8)
    /// In all that the other one's is and he does not share.
    static let secret = "kQ7zVw3RpX"

    let daemon: ServedDaemon
    let socket: String
    private let root: String
    private let whole: String
    /// Paths below the root with their sizes and inodes, as the state was opened. One thread runs targets.
    nonisolated(unsafe) private var opened: [String: [UInt64]]?

    private static let (queued, finished) = ("j-0000000000bb", "j-0000000000aa")
    /// Of an adapter that was brought in, whose name is no secret.
    private static let brought = "j-0000000000ee"
    private static let (othersQueued, othersFinished) = ("j-0000000000dd", "j-0000000000cc")
    static let unfinished = [queued, othersQueued]
    private static let now = Date(timeIntervalSince1970: 1_900_000_000)

    private init() throws {
        root = ScratchDirectory.path + "/http"
        whole = ScratchDirectory.path + "/http-whole"
        socket = root + "/socket"
        try FileManager.default.createDirectory(atPath: root, withIntermediateDirectories: true)
        let whole = whole
        try FuzzTarget.waitFor { try await Self.make(whole) }
        daemon = try ServedDaemon(socket: socket)
    }

    private var state: String { root + "/state" }

    /// The state as it was made, unless it is.
    func putBack() throws {
        guard opened == nil else { return }
        try daemon.close()
        if FileManager.default.fileExists(atPath: state) { try FileManager.default.removeItem(atPath: state) }
        try FileManager.default.copyItem(atPath: whole, toPath: state)
        let (daemon, state) = (daemon, state)
        try FuzzTarget.waitFor { try await daemon.open(state: state) }
        opened = try listing()
    }

    /// Of a state that changed: is it one that may be?
    func check(after role: Role) throws {
        let (now, before) = (try listing(), opened)
        guard now != before else { return }
        opened = nil
        for path in now.keys where before?[path] == nil {
            try BrokenClaim.unless(Self.isOwnName(path), "a file appears: \(path)")
        }
        try daemon.close()
        let path = state + "/jobs.db"
        try FuzzTarget.waitFor {
            let store = try JobStore(path: path)
            let (queued, finished) = (try await store.job(Self.othersQueued), try await store.job(Self.othersFinished))
            let (models, adapters, datasets) = (try await store.models(), try await store.adapters(), try await store.datasets())
            try store.close()
            // The harness itself cancels what followers wait for.
            guard role != .admin else { return }
            try BrokenClaim.unless(
                queued != nil && finished != nil && models.contains { $0.name == "m" } && [Self.secret, "b"].allSatisfy { name in adapters.contains { $0.name == name } }
                    && datasets.contains { $0.name == "e" }, "what is another's stays")
            try BrokenClaim.unless(role == .user, "a stranger changes nothing")
        }
        guard role != .admin else { return }
        for path in before?.keys ?? [:].keys where path.contains(Self.othersFinished) || path.contains(Self.digest("a")) {
            try BrokenClaim.unless(now[path] == before?[path], "\(path) is another's")
        }
    }

    /// What the daemon may make: an upload or its part, an adapter's directory of exports, SQLite's files.
    private static func isOwnName(_ path: String) -> Bool {
        let parts = path.split(separator: "/")
        guard parts.first == "state" else { return false }
        switch (parts.count, parts[1]) {
        case (2, "jobs.db-wal"): return true
        case (3, "blobs"):
            let name = parts[2].hasSuffix(".part") ? parts[2].dropLast(5) : parts[2]
            return name.hasPrefix("sha256-") && (try? BlobDigest("sha256:" + name.dropFirst(7))) != nil
        case (4, "cache"): return parts[2] == "exports" && [finished, othersFinished, brought].contains(String(parts[3]))
        default: return false
        }
    }

    private func listing() throws -> [String: [UInt64]] {
        var found: [String: [UInt64]] = [:]
        func add(_ directory: String) throws {
            guard let stream = opendir(root + directory) else { throw BrokenClaim(claim: "\(directory) can be read: errno \(errno)") }
            defer { closedir(stream) }
            while let entry = readdir(stream) {
                let name = withUnsafeBytes(of: entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
                // Where readers of the store meet: SQLite's.
                guard name != ".", name != "..", name != "jobs.db-shm" else { continue }
                let path = directory + "/" + name
                var status = stat()
                guard lstat(root + path, &status) == 0 else { continue }
                let isDirectory = status.st_mode & S_IFMT == S_IFDIR
                found[String(path.dropFirst())] = [isDirectory ? 0 : UInt64(status.st_size), UInt64(status.st_ino)]
                if isDirectory { try add(path) }
            }
        }
        try add("")
        return found
    }

    // MARK: the state as it is made

    private static func digest(_ digit: Character) -> String { String(repeating: digit, count: 64) }

    private static func make(_ path: String) async throws {
        if FileManager.default.fileExists(atPath: path) { try FileManager.default.removeItem(atPath: path) }
        func save(_ text: String, _ name: String) throws {
            let file = URL(filePath: "\(path)/\(name)")
            try FileManager.default.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
            try Data(text.utf8).write(to: file)
        }
        for digit: Character in ["a", "d", "e", "f"] { try save("blob \(digit)", "blobs/sha256-" + digest(digit)) }
        for (job, word) in [(finished, "own"), (othersFinished, secret), (brought, secret)] {
            try save("{}", "jobs/\(job)/adapter/adapter_config.json")
            try save(word, "jobs/\(job)/adapter/adapter_model.safetensors.lz4")
            try save(secret, "jobs/\(job)/beside")
            try save(word, "logs/\(job).log")
            try save(word, "cache/exports/\(job)/adapter.gguf")
        }
        let store = try JobStore(path: path + "/jobs.db")
        try await fill(store)
        try store.close()
    }

    private static func fill(_ store: JobStore) async throws {
        for (digit, owner) in [("a", other), ("d", user), ("e", other), ("f", user)] as [(Character, UInt32)] {
            try await store.addBlob("sha256:" + digest(digit), bytes: 6, ownerUid: owner, at: now)
        }
        try await store.add(
            ModelRecord(
                name: "m", blob: "sha256:" + digest("a"), ownerUid: other, createdAt: now,
                model: ModelReport(
                    architecture: "llama", title: nil, layers: 2, hiddenSize: 8, vocabulary: 9, contextLength: 64,
                    parameters: 100, quantisation: "Q4_1 100 %", fileBytes: 100, targetModules: ["q_proj"])))
        for (name, digit, owner) in [("d", "d", user), ("e", "e", other)] as [(String, Character, UInt32)] {
            try await store.add(
                DatasetRecord(
                    name: name, blob: "sha256:" + digest(digit), bytes: 6, ownerUid: owner, createdAt: now,
                    dataset: DatasetReport(samples: 1, kinds: [:])))
        }
        let jobs = [
            (finished, "own", user), (othersFinished, secret, other), (queued, "next", user), (othersQueued, secret + "2", other),
        ]
        for (id, name, owner) in jobs {
            let job = Job(
                id: id, name: name, ownerUid: owner, createdAt: now,
                request: JobRequest(baseModel: "m", datasets: [DatasetReference(path: owner == user ? "d" : secret)]),
                modelBlob: "sha256:" + digest("a"), datasetBlobs: ["sha256:" + digest(owner == user ? "d" : "e")], plan: nil)
            _ = try await store.submit(job, key: IdempotencyKey(key: id, request: job.request), queueLimit: 9, at: now)
            try await store.record([.log(name)], of: id, at: now)
        }
        for id in [finished, othersFinished] {
            for transition in [JobTransition.start, .trained] {
                try await store.apply(transition, to: id, reason: id == finished ? "own" : secret, at: now)
            }
        }
        try await store.add(
            StoredAdapter(
                name: "b", job: brought, baseModel: "m", modelBlob: "sha256:" + digest("a"), ownerUid: other, createdAt: now))
        _ = try await store.add(
            StoredImport(
                name: "i", id: "i-1", ownerUid: user, createdAt: now,
                files: [ModelFile(name: "config.json", blob: "sha256:" + digest("f"))], source: "s", totalBytes: 9, peakBytes: 9))
    }
}
