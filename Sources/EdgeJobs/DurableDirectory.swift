// Directories whose names a power cut does not take away: a directory's own fsync keeps what is in it, and only its parent's
// keeps the directory.
import EdgeWire

#if canImport(Glibc)
import Glibc
#endif

package enum DurableDirectory {
    /// Makes it, for its owner alone, unless it is there. Its parent is.
    package static func make(_ path: String) throws(Problem) {
        guard mkdir(path, 0o700) == 0 || errno == EEXIST else { throw BlobStore.failure("mkdir", path) }
        // Also when it was there: whoever made it may have been cut off here.
        try sync(path.split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(separator: "/"))
    }

    package static func sync(_ path: String) throws(Problem) {
        let descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw BlobStore.failure("open", path) }
        defer { close(descriptor) }
        guard fsync(descriptor) == 0 else { throw BlobStore.failure("fsync", path) }
    }
}
