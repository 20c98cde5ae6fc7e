// One thread that does what is handed to it in order, beside the computation: reading ahead, writing behind.
import Glibc

/// Not for use from several threads at once: one owner submits and waits.
///
/// `@unchecked Sendable`: everything mutable is guarded by `mutex`.
package final class BackgroundThread: @unchecked Sendable {
    /// Counts what was submitted; a ticket is done when that many are.
    package typealias Ticket = Int

    private var waiting: [() throws -> Void] = []
    private var submitted = 0
    private var done = 0
    private var failure: (any Error)?
    private var isStopping = false
    private var thread = pthread_t()
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let changed: UnsafeMutablePointer<pthread_cond_t>

    package init() {
        mutex = .allocate(capacity: 1)
        changed = .allocate(capacity: 1)
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(changed, nil)
        thread = startThread(Unmanaged.passUnretained(self).toOpaque()) { argument in
            Unmanaged<BackgroundThread>.fromOpaque(argument!).takeUnretainedValue().serve()
            return nil
        }
    }

    deinit {
        locked {
            isStopping = true
            pthread_cond_broadcast(changed)
        }
        pthread_join(thread, nil)
        pthread_mutex_destroy(mutex)
        pthread_cond_destroy(changed)
        mutex.deallocate()
        changed.deallocate()
    }

    package func submit(_ work: @escaping () throws -> Void) -> Ticket {
        locked {
            waiting.append(work)
            submitted += 1
            pthread_cond_broadcast(changed)
            return submitted
        }
    }

    /// Returns when the ticket's work is done.
    /// - Throws: the first error of any work so far.
    package func wait(_ ticket: Ticket) throws {
        try locked {
            while done < ticket { pthread_cond_wait(changed, mutex) }
            if let failure { throw failure }
        }
    }

    private func serve() {
        while let work = next() {
            var thrown: (any Error)?
            do { try work() } catch { thrown = error }
            locked {
                done += 1
                failure = failure ?? thrown
                pthread_cond_broadcast(changed)
            }
        }
    }

    private func next() -> (() throws -> Void)? {
        locked {
            while waiting.isEmpty && !isStopping { pthread_cond_wait(changed, mutex) }
            return waiting.isEmpty ? nil : waiting.removeFirst()
        }
    }

    private func locked<R>(_ body: () throws -> R) rethrows -> R {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return try body()
    }
}

/// Of a thread of ours. The kernels' frames are small; 256 KiB is what glibc and a signal frame need with room.
package let threadStackBytes = 256 * 1024

/// Traps when the system has no thread to give: nothing could be done without.
func startThread(
    _ argument: UnsafeMutableRawPointer,
    _ body: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer?
) -> pthread_t {
    var attributes = pthread_attr_t()
    pthread_attr_init(&attributes)
    defer { pthread_attr_destroy(&attributes) }
    pthread_attr_setstacksize(&attributes, threadStackBytes)
    var handle = pthread_t()
    let status = pthread_create(&handle, &attributes, body, argument)
    precondition(status == 0, "pthread_create: \(String(cString: strerror(status)))")
    return handle
}
