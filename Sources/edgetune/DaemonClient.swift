// HTTP/1.1 on the daemon's Unix socket: one connection a call, bodies streamed both ways, silence timed out.
// Knows no verbs: DaemonClient+Calls has the API's calls.
import EdgeWire
import Foundation
import NIOCore
import NIOHTTP1
import NIOPosix

enum DaemonError: Error {
    case noSocket(path: String)
    case refused(path: String)
    case notPermitted(path: String)
    case badSocketPath(String)
    /// The connection ended before the answer did.
    case lost(String)
    case timedOut(seconds: Int64)
    case otherVersion(daemon: String)
    case problem(Problem)
    case unreadable(String)

    /// The same call may be made again once the daemon is back.
    var isConnectionLoss: Bool {
        switch self {
        case .noSocket, .refused, .lost, .timedOut: true
        case .notPermitted, .badSocketPath, .otherVersion, .problem, .unreadable: false
        }
    }
}

/// One request. `idleSeconds`: longest silence of the daemon before the call is given up.
struct Call: Sendable {
    var method: HTTPMethod = .GET
    var path: String
    var headers: [(String, String)] = []
    var body: ByteBuffer?
    var idleSeconds: Int64 = 60
}

enum StreamDemand { case more, enough }

struct DaemonClient: Sendable {
    let socketPath: String

    /// Largest body that is kept whole, in bytes: a thousand jobs with their plans.
    static let collectedBytes = 64 << 20

    func collect(_ call: Call) async throws(DaemonError) -> ByteBuffer {
        var body = ByteBuffer()
        try await stream(call) { piece in
            guard body.readableBytes + piece.readableBytes <= Self.collectedBytes else {
                throw DaemonError.unreadable("over \(Amount.bytes(UInt64(Self.collectedBytes)))")
            }
            body.writeImmutableBuffer(piece)
            return .more
        }
        return body
    }

    /// Hands the pieces of a 2xx body to `take`, in order; any other answer is thrown as its problem.
    func stream(_ call: Call, take: (ByteBuffer) throws -> StreamDemand) async throws(DaemonError) {
        do {
            let channel = try await connect(idleSeconds: call.idleSeconds)
            try await channel.executeThenClose { inbound, outbound in
                var writeError: (any Error)?
                do { try await send(call, to: outbound) } catch { writeError = error }
                // A daemon that refuses a body answers and closes before it was all written: the answer counts.
                do { try await receive(inbound, take) } catch DaemonError.lost(let reason) {
                    throw DaemonError.lost(writeError.map { "\($0)" } ?? reason)
                }
            }
        } catch let error as DaemonError {
            throw error
        } catch let error as IOError {
            throw .lost(String(cString: strerror(error.errnoCode)))
        } catch {
            throw .lost("\(error)")
        }
    }

    private typealias Connection = NIOAsyncChannel<HTTPClientResponsePart, HTTPClientRequestPart>

    private func connect(idleSeconds: Int64) async throws -> Connection {
        do {
            return try await ClientBootstrap(group: .singletonMultiThreadedEventLoopGroup)
                .connectTimeout(.seconds(10))
                .connect(unixDomainSocketPath: socketPath) { channel in
                    channel.eventLoop.makeCompletedFuture {
                        let pipeline = channel.pipeline.syncOperations
                        try pipeline.addHandler(IdleStateHandler(readTimeout: .seconds(idleSeconds)))
                        try pipeline.addHandler(SilenceLimit(seconds: idleSeconds))
                        try pipeline.addHTTPClientHandlers()
                        return try Connection(wrappingChannelSynchronously: channel)
                    }
                }
        } catch let error as IOError {
            switch error.errnoCode {
            case ENOENT, ENOTDIR: throw DaemonError.noSocket(path: socketPath)
            case EACCES, EPERM: throw DaemonError.notPermitted(path: socketPath)
            case ECONNREFUSED: throw DaemonError.refused(path: socketPath)
            default: throw error
            }
        } catch SocketAddressError.unixDomainSocketPathTooLong {
            throw DaemonError.badSocketPath(socketPath)
        }
    }

    private func send(
        _ call: Call, to outbound: NIOAsyncChannelOutboundWriter<HTTPClientRequestPart>
    ) async throws {
        var head = HTTPRequestHead(version: .http1_1, method: call.method, uri: call.path)
        head.headers.add(name: "Host", value: "localhost")
        head.headers.add(name: "Connection", value: "close")
        head.headers.add(name: Header.apiVersion, value: Endpoint.version)
        for (name, value) in call.headers { head.headers.add(name: name, value: value) }
        if call.method != .GET || call.body != nil {
            head.headers.add(name: "Content-Length", value: "\(call.body?.readableBytes ?? 0)")
        }
        try await outbound.write(.head(head))
        if let body = call.body { try await outbound.write(.body(.byteBuffer(body))) }
        try await outbound.write(.end(nil))
    }

    private func receive(
        _ inbound: NIOAsyncChannelInboundStream<HTTPClientResponsePart>, _ take: (ByteBuffer) throws -> StreamDemand
    ) async throws {
        var refusal: (head: HTTPResponseHead, body: ByteBuffer)?
        for try await part in inbound {
            switch part {
            case .head(let head):
                // 1xx are not the answer.
                if head.status.code < 200 { continue }
                try checkVersion(head)
                if !(200..<300).contains(head.status.code) { refusal = (head, ByteBuffer()) }
            case .body(let piece):
                if var refused = refusal {
                    guard refused.body.readableBytes < WireLimit.bodyBytes else { continue }
                    refused.body.writeImmutableBuffer(piece)
                    refusal = refused
                } else if try take(piece) == .enough {
                    return
                }
            case .end:
                if let refusal { throw Self.error(of: refusal.head, refusal.body) }
                return
            }
        }
        throw DaemonError.lost("edgetuned closed it")
    }

    private func checkVersion(_ head: HTTPResponseHead) throws {
        guard let daemon = head.headers.first(name: Header.apiVersion) else { return }
        guard daemon.split(separator: ".").first == Endpoint.version.split(separator: ".").first else {
            throw DaemonError.otherVersion(daemon: TerminalFilter.line(daemon))
        }
    }

    private static func error(of head: HTTPResponseHead, _ body: ByteBuffer) -> DaemonError {
        if let problem = try? Wire.decoder().decode(Problem.self, from: Data(body.readableBytesView)) {
            return .problem(problem)
        }
        let text = TerminalFilter.line(String(buffer: body)).prefix(200)
        return .unreadable("status \(head.status.code)" + (text.isEmpty ? "" : ": \(text)"))
    }
}

/// Ends the connection when the daemon has been silent for as long as IdleStateHandler waits.
private final class SilenceLimit: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    private let seconds: Int64
    init(seconds: Int64) { self.seconds = seconds }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if event is IdleStateHandler.IdleStateEvent {
            context.fireErrorCaught(DaemonError.timedOut(seconds: seconds))
            context.close(promise: nil)
        } else {
            context.fireUserInboundEventTriggered(event)
        }
    }
}
