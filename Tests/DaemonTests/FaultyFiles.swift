// The daemon and its workers above a layer that fails, cuts or records their file operations, or kills them there: the
// library of Tests/FaultyFiles, and the memory that it shares with the tests.
import EdgeTestSupport
import Foundation

final class FaultyFiles {
    enum Action {
        /// The operation is not done and returns this errno.
        case fail(Int32)
        /// A write takes half of its bytes; other operations go on.
        case shortWrite
        /// SIGKILL before the operation is done.
        case kill(Victim)
        /// The same once `release` is called. Meanwhile `isHeld`.
        case holdAndKill(Victim)
    }
    enum Victim: UInt32 { case ownProcess, both }
    /// Which operations are counted: all, or those alone after which the disk is another, or of these a worker's.
    enum Scope: UInt32 { case all, changes, workersChanges }
    enum Recording: UInt32 { case names, bytes, nothing }

    let directory: String
    var state: String { directory + "/state" }
    private let control: UnsafeMutableRawPointer

    /// Of `struct control` in faulty_files.c.
    private enum Field {
        static let logged = 0, count = 8, at = 16, action = 24, error = 28, scope = 32, victim = 36, recording = 40, doomed = 44
        static let struck = 48, held = 52, released = 56, role = 60, point = 64, only = 384, end = 512
        static let log = 4096, logBytes = 256 << 20
    }

    /// What the daemon is told in all tests of faults.
    private static let configuration = """
        # Two walks side by side, on two cores, are faster than one with two threads.
        threads: 1
        # A run that came to nothing is soon tried again.
        retry_after: 1s
        """

    private static let library = Result<Data, any Error> {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/faulty_files.so"
        let (code, text) = try Command.run(
            "/usr/bin/env",
            ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", path,
             TestModel.repositoryRoot + "/Tests/FaultyFiles/faulty_files.c", "-ldl"])
        guard code == 0 else { throw TestFailure("faulty_files.c does not compile:\n\(text)") }
        return try Data(contentsOf: URL(filePath: path))
    }

    /// By name: what a first job has measured of this machine. Each state gets it, for measuring takes seconds.
    private static let calibrations = Result<[String: Data], any Error> {
        let directory = try TemporaryDirectory()
        try configuration.write(toFile: directory.path + "/edgetuned.yaml", atomically: true, encoding: .utf8)
        let daemon = try DaemonProcess(in: directory.path, arguments: ["--config", directory.path + "/edgetuned.yaml"])
        try KillTests.prepare(daemon)
        _ = try KillTests.submit("first", to: daemon)
        let made = directory.path + "/state/cache/calibrations"
        let names = try FileManager.default.contentsOfDirectory(atPath: made)
        return try Dictionary(uniqueKeysWithValues: names.map { ($0, try Data(contentsOf: URL(filePath: "\(made)/\($0)"))) })
    }

    /// - Parameter directory: holds the state, the socket and the log of the operations, which is sparse.
    init(in directory: String) throws {
        self.directory = directory
        try Self.library.get().write(to: URL(filePath: directory + "/faulty_files.so"))
        let calibrations = directory + "/state/cache/calibrations"
        try FileManager.default.createDirectory(
            atPath: calibrations, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        for (name, bytes) in try Self.calibrations.get() { try bytes.write(to: URL(filePath: "\(calibrations)/\(name)")) }
        try Self.configuration.write(toFile: directory + "/edgetuned.yaml", atomically: true, encoding: .utf8)
        let bytes = Field.log + Field.logBytes
        let file = open(directory + "/shared", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        defer { close(file) }
        guard file >= 0, ftruncate(file, bytes) == 0,
            let map = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0), map != MAP_FAILED
        else { throw TestFailure("the shared file cannot be mapped: errno \(errno)") }
        control = map
    }

    deinit { munmap(control, Field.log + Field.logBytes) }

    func startDaemon() throws -> DaemonProcess {
        put(UInt32(0), at: Field.doomed)
        let worker = directory + "/worker"
        if !FileManager.default.fileExists(atPath: worker) {
            let exports = environment(role: 1).map { "export \($0.key)='\($0.value)'\n" }.joined()
            try "#!/bin/sh\n\(exports)exec \(DaemonProcess.binary) \"$@\"\n".write(toFile: worker, atomically: true, encoding: .utf8)
            chmod(worker, 0o755)
        }
        return try DaemonProcess(
            in: directory, workerExecutable: worker, environment: environment(role: 0),
            arguments: ["--config", directory + "/edgetuned.yaml"])
    }

    private func environment(role: Int) -> [String: String] {
        [
            "LD_PRELOAD": directory + "/faulty_files.so", "EDGE_FAULTY_SHARED": directory + "/shared", "EDGE_FAULTY_ROOT": state,
            "EDGE_FAULTY_ROLE": "\(role)",
        ]
    }

    // MARK: what is to happen

    /// Counts from one again, and acts at operation `count`.
    ///
    /// - Parameter only: counts those alone whose name and path begin with this: "sync blobs".
    func arm(_ action: Action, at count: Int, scope: Scope = .all, only: String = "") {
        disarm()
        precondition(only.utf8.count < Field.end - Field.only)
        (control + Field.only).copyMemory(from: Array(only.utf8) + [0], byteCount: only.utf8.count + 1)
        put(scope.rawValue, at: Field.scope)
        put(UInt64(count), at: Field.at)
        put(UInt64(0), at: Field.count)
        for offset in [Field.struck, Field.held, Field.released, Field.doomed] { put(UInt32(0), at: offset) }
        let number: UInt32
        switch action {
        case .fail(let error):
            put(error, at: Field.error)
            number = 1
        case .shortWrite: number = 2
        case .kill(let victim):
            put(victim.rawValue, at: Field.victim)
            number = 3
        case .holdAndKill(let victim):
            put(victim.rawValue, at: Field.victim)
            number = 4
        }
        put(number, at: Field.action)
    }

    func disarm() { put(UInt32(0), at: Field.action) }
    /// Those that are held die.
    func release() { put(UInt32(1), at: Field.released) }
    func record(_ recording: Recording) { put(recording.rawValue, at: Field.recording) }

    var hasStruck: Bool { word(UInt32.self, at: Field.struck) == 1 }
    var isHeld: Bool { hasStruck && word(UInt32.self, at: Field.held) == 1 && word(UInt32.self, at: Field.released) == 0 }
    /// Of the last operation that was recorded: where its record ends.
    var sequence: Int { Int(word(UInt64.self, at: Field.logged)) }
    /// Operations since `arm`.
    var count: Int { Int(word(UInt64.self, at: Field.count)) }

    /// Who was struck, at which operation, on which kind of path.
    var point: String { (word(Int32.self, at: Field.role) == 0 ? "daemon " : "worker ") + operation }

    /// The operation that was struck, and the kind of its path.
    var operation: String {
        let text = String(cString: (control + Field.point).assumingMemoryBound(to: CChar.self))
        let words = text.split(separator: " ", maxSplits: 1)
        return words.count == 2 ? "\(words[0]) \(Self.kind(ofPath: String(words[1])))" : text
    }

    /// Steps, digests, ids and process numbers go.
    static func kind(ofPath path: String) -> String {
        path.split(separator: "/").map { part -> String in
            var part = String(part)
            if let mark = part.range(of: ".tmp-") { part = String(part[..<mark.lowerBound]) + ".tmp" }
            if part.hasPrefix("sha256-") { return "sha256-#" + part.dropFirst("sha256-".count + 64) }
            if part.hasPrefix("j-") { return "j-#" + part.dropFirst(14) }
            if part.hasPrefix("i-") { return "i-#" }
            if part.hasPrefix(".dat.nosync") { return ".dat.nosync#" }
            if part.hasPrefix("."), let end = part.firstIndex(of: "-") { return ".#" + part[end...] }
            return part.replacing(/[0-9]+/, with: "#")
        }.joined(separator: "/")
    }

    // MARK: what happened

    struct Operation {
        enum Kind: UInt32 {
            case open, create, write, sync, truncate, rename, exchange, unlink, rmdir, mkdir, link, chmod, close, list, allocate
        }
        let sequence: Int
        let kind: Kind
        let isWorker: Bool
        /// Below the state directory; "." is that itself.
        let path: String
        /// Where a rename leads.
        let second: String
        let offset: Int
        let bytes: [UInt8]
    }

    /// All that was recorded, in order.
    func operations() throws -> [Operation] {
        var (found, place) = ([Operation](), control + Field.log)
        let end = place + sequence
        while place < end {
            let whole = Int(place.load(as: UInt64.self))
            // A process that was killed in the middle of a record.
            guard whole > 0, let kind = Operation.Kind(rawValue: place.load(fromByteOffset: 16, as: UInt32.self)) else {
                throw TestFailure("no record \(end - place) bytes before the end of the log")
            }
            var start = 40
            let parts = [24, 28, 32].map { offset in
                let length = Int(place.load(fromByteOffset: offset, as: UInt32.self))
                defer { start += length }
                return Array(UnsafeRawBufferPointer(start: place + start, count: length))
            }
            found.append(
                Operation(
                    sequence: place + whole - (control + Field.log), kind: kind,
                    isWorker: place.load(fromByteOffset: 20, as: UInt32.self) == 1, path: String(decoding: parts[0], as: UTF8.self),
                    second: String(decoding: parts[1], as: UTF8.self),
                    offset: Int(place.load(fromByteOffset: 8, as: Int64.self)), bytes: parts[2]))
            place += whole
        }
        return found
    }

    private func put<Number: FixedWidthInteger>(_ value: Number, at offset: Int) {
        control.storeBytes(of: value, toByteOffset: offset, as: Number.self)
    }

    private func word<Number: FixedWidthInteger>(_ type: Number.Type, at offset: Int) -> Number {
        control.load(fromByteOffset: offset, as: type)
    }
}
