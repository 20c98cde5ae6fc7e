// HTTP/1.1 on a Unix socket, handed over by systemd or bound here: one code path from accept on. Every connection is
// accepted here and not by NIO, for the peer's groups need the descriptor. Knows no routes.
import EdgeWire
import Foundation
import HTTPTypes
import Hummingbird
import HummingbirdCore
import Logging
import NIOCore
import NIOPosix
import Synchronization

struct ListeningSocket: Sendable {
    enum Origin: Sendable { case adopted, path(String) }
    let descriptor: Int32
    let origin: Origin

    /// As the socket unit has it. A client that does not wait is told EAGAIN when so many do.
    private static let backlog: Int32 = 1024

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
        guard chmod(path, 0o660) == 0, listen(listener, Self.backlog) == 0 else {
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
    let connections: OpenConnections
    let patience: ClientPatience
    /// Admins are let in when others are not.
    let isAdmin: @Sendable (Peer) -> Bool
    let respond: @Sendable (Request, Peer) async -> Response

    init(
        socket: ListeningSocket, group: any EventLoopGroup, logger: Logger, patience: ClientPatience,
        isAdmin: @escaping @Sendable (Peer) -> Bool,
        respond: @escaping @Sendable (Request, Peer) async -> Response
    ) {
        self.socket = socket
        self.group = group
        self.logger = logger
        self.patience = patience
        self.isAdmin = isAdmin
        self.respond = respond
        connections = OpenConnections()
    }

    private struct Accepted: Sendable {
        let descriptor: Int32
        let peer: Peer
        /// In the table.
        let id: Int
    }

    /// Serves until the task is cancelled, then ends every connection.
    func run() async {
        let connections = accepted()
        await withDiscardingTaskGroup { tasks in
            for await connection in connections { tasks.addTask { await serve(connection) } }
            tasks.cancelAll()
        }
    }

    /// New connections that were let in: as many as the table allows.
    private func accepted() -> AsyncStream<Accepted> {
        AsyncStream(bufferingPolicy: .unbounded) { sink in
            let listener = socket.descriptor
            // A dispatch source may be cancelled from any thread.
            nonisolated(unsafe) let source = DispatchSource.makeReadSource(
                fileDescriptor: listener, queue: DispatchQueue(label: "accept"))
            source.setEventHandler {
                while true {
                    let descriptor = accept(listener, nil, nil)
                    if descriptor >= 0 {
                        _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
                        if let connection = admitted(descriptor) { sink.yield(connection) }
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

    /// Nil when it was refused and closed.
    private func admitted(_ descriptor: Int32) -> Accepted? {
        guard let peer = Peer(descriptor: descriptor) else {
            close(descriptor)
            return nil
        }
        switch connections.admit(peer.uid, isAdmin: isAdmin(peer)) {
        case .admitted(let id, _): return Accepted(descriptor: descriptor, peer: peer, id: id)
        case .refused(let why):
            let problem = Problem(.queueFull, why, hint: "close some, or try again in a moment")
            let body = (try? Wire.encoder().encode(problem)) ?? Data()
            let head = "HTTP/1.1 \(problem.status) Too Many Requests\r\nContent-Type: \(Header.problemType)\r\nRetry-After: 1\r\n"
                + "Content-Length: \(body.count)\r\nConnection: close\r\n\r\n"
            // A new socket's buffer is empty: it takes this whole, or the client learns of it by the end.
            _ = (Data(head.utf8) + body).withUnsafeBytes {
                send(descriptor, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
            }
            close(descriptor)
            return nil
        }
    }

    private func serve(_ connection: Accepted) async {
        defer { connections.closed(connection.id) }
        let (respond, peer, connections, patience) = (respond, connection.peer, connections, patience)
        let hasAnsweredLast = Mutex(false)
        let http = HTTP1Channel(
            responder: { request, writer, channel in
                guard !hasAnsweredLast.withLock({ $0 }) else { throw ConnectionHasEnded() }
                var response = await respond(request, peer)
                response.headers[.server] = "edgetuned"
                if request.endsConnection { response.headers[.connection] = "close" }
                let isLast = response.headers[.connection] == "close"
                hasAnsweredLast.withLock { $0 = isLast }
                try await writer.write(
                    response: response.head, body: request.method == .head ? ResponseBody() : response.body)
                // What the client still sends is taken and thrown away for as long as StallGuard lets it, or it would not come to
                // reading the answer; another request is not.
                if isLast { try await channel.close(mode: .output) }
            },
            configuration: .init(
                additionalChannelHandlers: [StallGuard(patience) { connections.note($0, of: connection.id) }]))
        do {
            let logger = logger
            let channel = try await ClientBootstrap(group: group)
                .channelOption(.allowRemoteHalfClosure, value: true)
                .withConnectedSocket(connection.descriptor) { http.setup(channel: $0, logger: logger) }
            connections.opened(connection.id, channel.channel)
            await http.handle(value: channel, logger: logger)
        } catch {
            logger.debug("connection of uid \(peer.uid): \(error)")
        }
    }
}

/// A request came after an answer that said `Connection: close`.
private struct ConnectionHasEnded: Error {}

extension Request {
    /// In any case, and beside other words.
    fileprivate var endsConnection: Bool {
        headers[values: .connection].contains { value in
            value.split(separator: ",").contains { $0.trimmingCharacters(in: .whitespaces).lowercased() == "close" }
        }
    }
}

/// The table with the channels of its connections; asked by the accepting thread and by the event loop.
final class OpenConnections: Sendable {
    private struct State {
        var table = ConnectionTable()
        var channels: [Int: any Channel] = [:]
    }
    private let state = Mutex(State())

    var count: Int { state.withLock(\.table.count) }

    func admit(_ uid: UInt32, isAdmin: Bool) -> ConnectionTable.Admission {
        let (admission, evicted) = state.withLock { state in
            let admission = state.table.admit(uid, isAdmin: isAdmin)
            guard case .admitted(_, let id?) = admission else { return (admission, nil as (any Channel)?) }
            return (admission, state.channels.removeValue(forKey: id))
        }
        evicted?.close(promise: nil)
        return admission
    }

    func opened(_ id: Int, _ channel: any Channel) {
        let isEvicted = state.withLock { state in
            guard state.table.contains(id) else { return true }
            state.channels[id] = channel
            return false
        }
        if isEvicted { channel.close(promise: nil) }
    }

    func note(_ phase: StallGuard.Phase, of id: Int) {
        state.withLock { state in
            switch phase {
            case .began: state.table.began(id)
            case .ended: state.table.ended(id)
            }
        }
    }

    func closed(_ id: Int) {
        state.withLock { state in
            state.table.closed(id)
            state.channels[id] = nil
        }
    }
}
