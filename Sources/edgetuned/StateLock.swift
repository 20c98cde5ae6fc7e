// One process at a time works on a state directory: the daemon, or a check of what it has stored.
import Foundation

/// Held until `release`, and by the kernel no longer than the process lives.
struct StateLock {
    private let descriptor: Int32

    /// Nil when another process holds it.
    init?(_ path: String) {
        descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { return nil }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            close(descriptor)
            return nil
        }
    }

    func release() { close(descriptor) }
}
