// A client that sends whatever it is given on one connection of a Unix socket, and reads to the end.
import Foundation

final class HTTPClient {
    private var descriptor: Int32
    private(set) var received: [UInt8] = []

    init(socket path: String) throws {
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        let connected = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try BrokenClaim.unless(descriptor >= 0 && connected == 0, "connect to \(path): errno \(errno)")
    }

    deinit { leave() }

    func leave() {
        if descriptor >= 0 { close(descriptor) }
        descriptor = -1
    }

    /// Small enough for the socket's buffer. A daemon that has closed already takes nothing.
    func send(_ bytes: UnsafeRawBufferPointer) {
        guard !bytes.isEmpty else { return }
        _ = Glibc.send(descriptor, bytes.baseAddress, bytes.count, Int32(MSG_NOSIGNAL))
    }

    /// Until the other end has read what was sent, for 5 ms at most.
    func waitUntilRead() {
        for _ in 0..<100 {
            var left: Int32 = 0
            guard ioctl(descriptor, UInt(TIOCOUTQ), &left) == 0, left > 0 else { return }
            usleep(50)
        }
    }

    func endSending() { _ = shutdown(descriptor, Int32(SHUT_WR)) }

    enum Arrival { case bytes, end, nothing }

    func receive(within milliseconds: Int32) -> Arrival {
        var wait = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&wait, 1, milliseconds) > 0 else { return .nothing }
        var page = [UInt8](repeating: 0, count: 16384)
        let got = recv(descriptor, &page, page.count, 0)
        // A reset is an end: bytes that the daemon did not want were on their way.
        guard got > 0 else { return .end }
        received += page[..<got]
        return .bytes
    }
}
