// What systemd and the daemon tell each other: the socket, readiness, status, watchdog. Without systemd all of it is
// silent and succeeds.
import CSystemd
import Dispatch
import Foundation

enum Systemd {
    /// SD_LISTEN_FDS_START
    private static let firstDescriptor: Int32 = 3

    /// The listening Unix stream socket that systemd handed over; the environment is cleared so that workers get none.
    static func adoptedSocket() -> Int32? {
        let count = sd_listen_fds(1)
        guard count > 0 else { return nil }
        return (firstDescriptor..<firstDescriptor + count).first { sd_is_socket_unix($0, 1 /* SOCK_STREAM */, 1, nil, 0) > 0 }
    }

    static func ready(_ status: String) { sd_notify(0, "READY=1\nSTATUS=\(line(status))") }
    static func status(_ text: String) { sd_notify(0, "STATUS=\(line(text))") }
    static func stopping() { sd_notify(0, "STOPPING=1\nSTATUS=stopping") }
    static func watchdog() { sd_notify(0, "WATCHDOG=1") }
    static func extendTimeout(seconds: Int) { sd_notify(0, "EXTEND_TIMEOUT_USEC=\(seconds * 1_000_000)") }

    /// systemd 253 wants the time with it.
    static func reloading() {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        sd_notify(0, "RELOADING=1\nMONOTONIC_USEC=\(now.tv_sec * 1_000_000 + now.tv_nsec / 1000)")
    }

    /// Nil when no watchdog waits for this process.
    static func watchdogInterval() -> Duration? {
        var microseconds: UInt64 = 0
        return sd_watchdog_enabled(0, &microseconds) > 0 ? .microseconds(Int64(microseconds)) : nil
    }

    /// A status is one line, whatever a job is called.
    private static func line(_ text: String) -> String { String(text.map { $0.isNewline ? " " : $0 }.prefix(200)) }
}

/// SIGTERM, SIGINT and SIGHUP as a stream.
final class Signals {
    let stream: AsyncStream<Int32>
    private let sources: [any DispatchSourceSignal]

    init() {
        let (stream, sink) = AsyncStream.makeStream(of: Int32.self)
        self.stream = stream
        signal(SIGPIPE, SIG_IGN)
        sources = [SIGTERM, SIGINT, SIGHUP].map { number in
            signal(number, SIG_IGN)
            let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
            source.setEventHandler { sink.yield(number) }
            source.resume()
            return source
        }
    }
}
