// HTTP/1.1 on a Unix socket, handed over by systemd or bound here: one code path from accept on. Every connection is
// accepted here and not by NIO, for the peer's groups need the descriptor. Knows no routes.
import Foundation
import Hummingbird
import HummingbirdCore
import Logging
import NIOCore
import NIOPosix

struct ListeningSocket: Sendable {
    enum Origin: Sendable { case adopted, path(String) }
    let descriptor: Int32
    let origin: Origin

    static func adopted(_ descriptor: Int32) -> ListeningSocket {
        _ = fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK)
        return ListeningSocket(descriptor: descriptor, origin: .adopted)
    }

    /// Binds `path` with mode 0660. A socket file that nobody listens on is replaced; a live one is an error.
    static func bound(path: String, group: UInt32?) throws -> ListeningSocket {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else {
            throw ConfigError("the socket's path has \(bytes.count) bytes, Linux allows 107: \(path)")
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        try FileManager.default.createDirectory(
            atPath: (path as NSString).deletingLastPathComponent, withIntermediateDirectories: true)
        func withAddress(_ call: (UnsafePointer<sockaddr>, socklen_t) -> Int32) -> Int32 {
            withUnsafePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    call($0, socklen_t(MemoryLayout<sockaddr_un>.size))
                }
            }
        }
        let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        let probe = socket(AF_UNIX, type, 0)
        let isLive = withAddress { connect(probe, $0, $1) } == 0
        Glibc.close(probe)
        guard !isLive else { throw ConfigError("another edgetuned listens on \(path)") }
        unlink(path)
        let listener = socket(AF_UNIX, type | Int32(SOCK_NONBLOCK.rawValue), 0)
        guard listener >= 0, withAddress({ bind(listener, $0, $1) }) == 0 else {
            throw ConfigError("cannot bind \(path): \(String(cString: strerror(errno)))")
        }
        // Not being a member of the group is no error: then the socket is its owner's alone.
        if let group { _ = chown(path, uid_t.max, group) }
        guard chmod(path, 0o660) == 0, listen(listener, 128) == 0 else {
            throw ConfigError("cannot listen on \(path): \(String(cString: strerror(errno)))")
        }
        return ListeningSocket(descriptor: listener, origin: .path(path))
    }

    func close() {
        if case .path(let path) = origin { unlink(path) }
        Glibc.close(descriptor)
    }
}

struct UnixHTTPService: Sendable {
    let socket: ListeningSocket
    let group: any EventLoopGroup
    let logger: Logger
    let respond: @Sendable (Request, Peer, any Channel) async -> Response

    static let connectionLimit = 256
    /// A connection on which nothing moves is closed; streams send a heartbeat more often.
    static let idleSeconds: Int64 = 300

    /// Serves until the task is cancelled, then ends every connection.
    func run() async {
        let connections = accepted()
        await withTaskGroup(of: Void.self) { tasks in
            var open = 0
            for await descriptor in connections {
                if open >= Self.connectionLimit {
                    await tasks.next()
                    open -= 1
                }
                open += 1
                tasks.addTask { await serve(descriptor) }
            }
            tasks.cancelAll()
        }
    }

    /// Descriptors of new connections.
    private func accepted() -> AsyncStream<Int32> {
        AsyncStream(bufferingPolicy: .unbounded) { sink in
            let listener = socket.descriptor
            // A dispatch source may be cancelled from any thread.
            nonisolated(unsafe) let source = DispatchSource.makeReadSource(fileDescriptor: listener, queue: DispatchQueue(label: "accept"))
            source.setEventHandler {
                while true {
                    let descriptor = accept(listener, nil, nil)
                    if descriptor >= 0 {
                        _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
                        sink.yield(descriptor)
                    } else if errno == EMFILE || errno == ENFILE {
                        // Full: the connection stays in the backlog.
                        usleep(100_000)
                        return
                    } else if errno != EINTR && errno != ECONNABORTED {
                        return
                    }
                }
            }
            sink.onTermination = { _ in source.cancel() }
            source.resume()
        }
    }

    private func serve(_ descriptor: Int32) async {
        guard let peer = Peer(descriptor: descriptor) else {
            close(descriptor)
            return
        }
        let respond = respond
        let http = HTTP1Channel(
            responder: { request, writer, channel in
                var response = await respond(request, peer, channel)
                response.headers[.server] = "edgetuned"
                try await writer.write(response: response.head, body: response.body)
            }, configuration: .init(idleTimeout: .seconds(Self.idleSeconds)))
        do {
            let logger = logger
            let channel = try await ClientBootstrap(group: group)
                .channelOption(.allowRemoteHalfClosure, value: true)
                .withConnectedSocket(descriptor) { http.setup(channel: $0, logger: logger) }
            await http.handle(value: channel, logger: logger)
        } catch {
            logger.debug("connection of uid \(peer.uid): \(error)")
        }
    }
}
