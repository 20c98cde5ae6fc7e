// What is whose. Jobs, data sets and adapters belong to who made them: what is in them or says what is in them is for their
// owner and admins. Of other users' jobs everybody sees that they are there and how far they are, for the machine is shared;
// base models are shared for use, and removed by their owner. A blob is for who can name its digest: to know the SHA-256 of
// bytes is to have them, and no answer tells the digests of other users' data sets.
import EdgeJobs
import EdgeFormats
import EdgeWire
import Foundation

extension Caller {
    func owns(_ uid: UInt32) -> Bool { role == .admin || role == .user && self.uid == uid }

    func require(ownerOf what: String, uid owner: UInt32) throws {
        guard owns(owner) else {
            throw Problem(
                .notPermitted, "\(what) belongs to uid \(owner), you are uid \(uid)",
                hint: "ask its owner, or a member of the admin group")
        }
    }
}

extension JobStatus {
    /// The job as `caller` may see it.
    init(_ job: Job, for caller: Caller) {
        self = caller.owns(job.ownerUid) ? JobStatus(job) : JobStatus(job).forOthers
    }
}

/// A file that a worker has written, and how many bytes it has. Nil for whatever is none: the worker read a stranger's bytes,
/// and what it leaves must not lead the daemon to another place. Neither the file nor its directory may be a link.
func openedRegularFile(_ path: String) -> (bytes: UInt64, file: FileHandle)? {
    let directory = open(parent(of: path), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    guard directory >= 0 else { return nil }
    defer { close(directory) }
    // Not waiting: for a writer of a pipe, say.
    let name = String(path.split(separator: "/").last ?? "")
    let descriptor = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
    guard descriptor >= 0 else { return nil }
    let file = FileHandle(fileDescriptor: descriptor, closeOnDealloc: true)
    var status = stat()
    guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return nil }
    return (UInt64(status.st_size), file)
}
