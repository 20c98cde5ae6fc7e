// A file or directory under its final name is complete: temporary name in the same directory, write, fsync, rename,
// fsync the directory. After a failure only the temporary name is left to remove, and it is removed.
import Glibc

/// Writes one file front to back. Short writes and EINTR are handled here.
package final class FileWriter {
    private let path: String
    private let descriptor: Int32

    init(creating path: String) throws(FileError) {
        self.path = path
        descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o644)
        guard descriptor >= 0 else { throw FileError(operation: "open", path: path, errno: errno) }
    }

    /// Opens a file that may be there; `truncate` says where writing begins.
    init(continuing path: String) throws(FileError) {
        self.path = path
        descriptor = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o644)
        guard descriptor >= 0 else { throw FileError(operation: "open", path: path, errno: errno) }
    }

    /// Fails with EWOULDBLOCK while another writer of the file holds the lock.
    func lock() throws(FileError) {
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else { throw FileError(operation: "flock", path: path, errno: errno) }
    }

    /// Cuts the file off, and writes on from there.
    func truncate(to byteCount: Int) throws(FileError) {
        guard ftruncate(descriptor, off_t(byteCount)) == 0 else {
            throw FileError(operation: "ftruncate", path: path, errno: errno)
        }
        guard lseek(descriptor, off_t(byteCount), SEEK_SET) >= 0 else {
            throw FileError(operation: "lseek", path: path, errno: errno)
        }
    }

    deinit { close(descriptor) }

    package func write(_ bytes: UnsafeRawBufferPointer) throws(FileError) {
        var rest = bytes
        while !rest.isEmpty {
            let written = Glibc.write(descriptor, rest.baseAddress, rest.count)
            if written < 0 {
                guard errno == EINTR else { throw FileError(operation: "write", path: path, errno: errno) }
                continue
            }
            rest = UnsafeRawBufferPointer(rebasing: rest[written...])
        }
    }

    package func write(_ bytes: [UInt8]) throws {
        try bytes.withUnsafeBytes { try write($0) }
    }

    /// Not again after an error: the kernel has dropped the dirty pages then, and a second fsync would succeed
    /// without them (wiki.postgresql.org/wiki/Fsync_Errors).
    func sync() throws(FileError) {
        guard fsync(descriptor) == 0 else { throw FileError(operation: "fsync", path: path, errno: errno) }
    }
}

package enum AtomicFile {
    package static func write(to path: String, _ bytes: [UInt8]) throws {
        try write(to: path) { try $0.write(bytes) }
    }

    /// Replaces `path` by what `body` writes, or leaves it as it was and throws.
    package static func write(to path: String, _ body: (FileWriter) throws -> Void) throws {
        let temporary = TemporaryName.next(for: path)
        do {
            let writer = try FileWriter(creating: temporary)
            try body(writer)
            try writer.sync()
        } catch {
            unlink(temporary)
            throw error
        }
        guard rename(temporary, path) == 0 else {
            let error = FileError(operation: "rename", path: path, errno: errno)
            unlink(temporary)
            throw error
        }
        try syncDirectory(parent(of: path))
    }
}

package enum DirectoryPublish {
    /// The directory `path`, under a temporary name and being filled.
    package struct Staging {
        package let path: String

        package func write(_ name: String, _ body: (FileWriter) throws -> Void) throws {
            let writer = try FileWriter(creating: path + "/" + name)
            try body(writer)
            try writer.sync()
        }

        package func write(_ name: String, _ bytes: [UInt8]) throws {
            try write(name) { try $0.write(bytes) }
        }
    }

    /// Makes `path` a directory of what `body` writes. A directory already there is exchanged in one step and then
    /// removed; if anything fails it stays as it was.
    package static func publish(to path: String, _ body: (Staging) throws -> Void) throws {
        let path = withoutTrailingSlash(path)
        let temporary = TemporaryName.next(for: path)
        guard mkdir(temporary, 0o755) == 0 else {
            throw FileError(operation: "mkdir", path: temporary, errno: errno)
        }
        do {
            try body(Staging(path: temporary))
            try syncDirectory(temporary)
            try moveIntoPlace(temporary, path)
        } catch {
            try? removeTree(temporary)
            throw error
        }
        try syncDirectory(parent(of: path))
    }

    /// Removes what interrupted writes and publishes have left in `directory`. For when nothing is being published.
    ///
    /// - Returns: the names removed, sorted.
    @discardableResult
    package static func removeLeftovers(in directory: String) throws(FileError) -> [String] {
        let leftovers = try leftovers(in: directory)
        for name in leftovers { try removeTree(directory + "/" + name) }
        return leftovers
    }

    /// Names that interrupted writes and publishes have left in `directory`, sorted.
    package static func leftovers(in directory: String) throws(FileError) -> [String] {
        try entries(of: directory).filter(TemporaryName.isTemporary)
    }

    private static func moveIntoPlace(_ temporary: String, _ path: String) throws(FileError) {
        // rename replaces an empty directory or nothing.
        if rename(temporary, path) == 0 { return }
        guard errno == ENOTEMPTY || errno == EEXIST else {
            throw FileError(operation: "rename", path: path, errno: errno)
        }
        try exchange(temporary, path)
        try syncDirectory(parent(of: path))
        // Now the former content.
        try removeTree(temporary)
    }
}

/// `<path>.tmp-<process>-<attempt>`.
private enum TemporaryName {
    private static let mark = ".tmp-"

    /// The first such name that is free.
    static func next(for path: String) -> String {
        var attempt = 0
        while true {
            let name = "\(withoutTrailingSlash(path))\(mark)\(getpid())-\(attempt)"
            if access(name, F_OK) != 0 { return name }
            attempt += 1
        }
    }

    static func isTemporary(_ name: String) -> Bool {
        guard let start = name.indices.last(where: { name[$0...].hasPrefix(mark) }) else { return false }
        let suffix = name[start...].dropFirst(mark.count)
        return start != name.startIndex && !suffix.isEmpty && suffix.allSatisfy { $0.isNumber || $0 == "-" }
    }
}

private func withoutTrailingSlash(_ path: String) -> String {
    path.count > 1 && path.hasSuffix("/") ? withoutTrailingSlash(String(path.dropLast())) : path
}

/// Without the last name: "." of a bare name.
package func parent(of path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
}

/// Names in it that are there now stay there.
package func syncDirectory(_ path: String) throws(FileError) {
    let descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard descriptor >= 0 else { throw FileError(operation: "open", path: path, errno: errno) }
    defer { close(descriptor) }
    guard fsync(descriptor) == 0 else { throw FileError(operation: "fsync", path: path, errno: errno) }
}

/// renameat2(2) with RENAME_EXCHANGE, which the Glibc module does not show: it is behind _GNU_SOURCE.
private func exchange(_ left: String, _ right: String) throws(FileError) {
    typealias RenameAt2 = @convention(c) (CInt, UnsafePointer<CChar>, CInt, UnsafePointer<CChar>, CUnsignedInt) -> CInt
    let exchangeFlag: CUnsignedInt = 1 << 1
    guard let symbol = dlsym(nil, "renameat2") else {
        throw FileError(operation: "renameat2", path: right, errno: ENOSYS)
    }
    guard unsafeBitCast(symbol, to: RenameAt2.self)(AT_FDCWD, left, AT_FDCWD, right, exchangeFlag) == 0 else {
        throw FileError(operation: "renameat2", path: right, errno: errno)
    }
}

/// Names in a directory without "." and "..", sorted.
package func entries(of directory: String) throws(FileError) -> [String] {
    guard let stream = opendir(directory) else {
        throw FileError(operation: "opendir", path: directory, errno: errno)
    }
    defer { closedir(stream) }
    var names: [String] = []
    while let entry = readdir(stream) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) {
            $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        }
        if name != "." && name != ".." { names.append(name) }
    }
    return names.sorted()
}

/// Removes a file, or a directory with all it holds. Links are removed, not followed.
private func removeTree(_ path: String) throws(FileError) {
    var status = stat()
    guard lstat(path, &status) == 0 else { throw FileError(operation: "lstat", path: path, errno: errno) }
    guard status.st_mode & S_IFMT == S_IFDIR else {
        guard unlink(path) == 0 else { throw FileError(operation: "unlink", path: path, errno: errno) }
        return
    }
    for name in try entries(of: path) { try removeTree(path + "/" + name) }
    guard rmdir(path) == 0 else { throw FileError(operation: "rmdir", path: path, errno: errno) }
}
