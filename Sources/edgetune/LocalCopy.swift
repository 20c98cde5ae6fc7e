// Files of the daemon's, copied to a directory or to one file that is complete under its final name or not there.
import EdgeWire
import Foundation
import Glibc
import NIOCore

struct LocalCopy {
    /// Without a slash at its end.
    let path: String

    /// - Throws: `CommandFailure` when there is something, and it is not to be replaced.
    init(to destination: String, replacing: Bool) throws {
        var path = destination
        while path.count > 1, path.last == "/" { path.removeLast() }
        self.path = path
        guard replacing || !Self.exists(path) else {
            throw CommandFailure(.conflict, "\(path) is there already", hint: "--force replaces it")
        }
    }

    /// - Parameters:
    ///   - files: names; one, where it is not to be a directory.
    ///   - remote: the path of a file in the API.
    ///   - progress: gets the bytes that have come, of all files together.
    func make(
        of files: [String], inDirectory: Bool, from client: DaemonClient, remote: (String) -> String,
        progress: (Int) -> Void = { _ in }
    ) async throws {
        // The names become paths here: one with a slash would leave the directory.
        for file in files where !Wire.isName(file) {
            throw DaemonError.unreadable("\"\(TerminalFilter.line(file))\" is not a file name")
        }
        let staging = path + ".edgetune-\(getpid())"
        let interrupt = InterruptExit(saying: "stopped; \(path) is as it was") { try? FileManager.default.removeItem(atPath: staging) }
        defer { interrupt.cancel() }
        var done = 0
        func count(_ bytes: Int) {
            done += bytes
            progress(done)
        }
        do {
            if inDirectory {
                guard mkdir(staging, 0o755) == 0 else { throw Self.failure("make", staging) }
                for file in files { try await fetch(remote(file), to: staging + "/" + file, from: client, count) }
                try Self.sync(staging)
            } else {
                for file in files { try await fetch(remote(file), to: staging, from: client, count) }
            }
            try Self.replace(path, with: staging)
        } catch {
            try? FileManager.default.removeItem(atPath: staging)
            throw error
        }
    }

    /// One file with this text.
    func make(of text: String) throws {
        let staging = path + ".edgetune-\(getpid())"
        let descriptor = open(staging, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else { throw Self.failure("write", staging) }
        defer { close(descriptor) }
        do {
            let isWritten = Array(text.utf8).withUnsafeBytes { Self.write($0, to: descriptor) }
            guard isWritten, fsync(descriptor) == 0 else { throw Self.failure("write", staging) }
            try Self.replace(path, with: staging)
        } catch {
            unlink(staging)
            throw error
        }
    }

    /// False: errno says why.
    private static func write(_ bytes: UnsafeRawBufferPointer, to descriptor: Int32) -> Bool {
        var rest = bytes
        while !rest.isEmpty {
            let count = Glibc.write(descriptor, rest.baseAddress, rest.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { return false }
            rest = UnsafeRawBufferPointer(rebasing: rest[count...])
        }
        return true
    }

    private func fetch(_ remote: String, to path: String, from client: DaemonClient, _ progress: (Int) -> Void) async throws {
        let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else { throw Self.failure("write", path) }
        defer { close(descriptor) }
        // Long: the daemon makes some files on demand.
        let call = Call(path: remote, idleSeconds: 900)
        var writeFailure: CommandFailure?
        try await client.stream(call) { piece in
            let isWritten = piece.withUnsafeReadableBytes { Self.write($0, to: descriptor) }
            if isWritten { progress(piece.readableBytes) } else { writeFailure = Self.failure("write", path) }
            return isWritten ? .more : .enough
        }
        if let writeFailure { throw writeFailure }
        guard fsync(descriptor) == 0 else { throw Self.failure("write", path) }
    }

    private static func exists(_ path: String) -> Bool {
        var status = stat()
        return lstat(path, &status) == 0
    }

    /// What was at `path` is set aside first: a directory cannot be renamed over one that is not empty.
    private static func replace(_ path: String, with staging: String) throws {
        let old = staging + ".old"
        let hadOld = exists(path)
        if hadOld, rename(path, old) != 0 { throw failure("replace", path) }
        guard rename(staging, path) == 0 else {
            let error = failure("make", path)
            if hadOld { rename(old, path) }
            throw error
        }
        try sync(path.lastIndex(of: "/").map { String(path[...$0]) } ?? ".")
        if hadOld { try FileManager.default.removeItem(atPath: old) }
    }

    private static func sync(_ directory: String) throws {
        let descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw failure("open", directory) }
        defer { close(descriptor) }
        guard fsync(descriptor) == 0 else { throw failure("write", directory) }
    }

    private static func failure(_ verb: String, _ path: String) -> CommandFailure {
        let code: ExitCode =
            switch errno {
            case EACCES, EPERM: .permission
            case ENOENT: .notFound
            case ENOSPC, EDQUOT: .doesNotFit
            default: .failure
            }
        return CommandFailure(code, "cannot \(verb) \(path): \(String(cString: strerror(errno)))")
    }
}
