// Files for entry points that take paths: in memory, one directory a process, the same names over and over.
import Foundation

enum ScratchDirectory {
    static let path: String = {
        let parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp"
        let path = "\(parent)/edgetune-fuzz-\(getpid())"
        guard mkdir(path, 0o700) == 0 || errno == EEXIST else { fatalError("mkdir \(path): errno \(errno)") }
        atexit { ScratchDirectory.remove() }
        return path
    }()

    /// Overwrites the file of that name.
    static func save(_ bytes: some ContiguousBytes, to name: String) -> String {
        let path = "\(path)/\(name)"
        let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { fatalError("open \(path): errno \(errno)") }
        defer { close(descriptor) }
        bytes.withUnsafeBytes { bytes in
            guard bytes.isEmpty || write(descriptor, bytes.baseAddress, bytes.count) == bytes.count else {
                fatalError("write \(path): errno \(errno)")
            }
        }
        return path
    }

    static func removeFile(_ name: String) { _ = unlink("\(path)/\(name)") }

    static func remove() {
        try? FileManager.default.removeItem(atPath: path)
    }
}
