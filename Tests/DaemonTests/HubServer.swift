// A hub on loopback with the layout of Hugging Face's, which cuts, lies, throttles and sends away as it is told. It never
// listens to another address.
import EdgeFormats
import EdgeTestSupport
import Foundation
import NIOCore
import NIOHTTP1
import NIOPosix
import NIOSSL
import Synchronization
import Testing

struct HubFile: Sendable, CustomTestStringConvertible {
    var content: [UInt8]
    /// Stored by its SHA-256, as the hub stores large files.
    var isLarge = true
    /// What the list says, where that is not the truth.
    var listedBytes: Int?
    var listedDigest: String?

    /// Short: thousands of bytes would fill the log.
    var testDescription: String { "\(content.count) bytes, listed \(listedBytes ?? -1) \(listedDigest?.prefix(8) ?? "")" }

    static func digest(_ content: [UInt8]) -> String { content.withUnsafeBytes { SHA256.hex(SHA256.hash($0)) } }
}

final class HubServer: Sendable {
    struct Seen: Sendable {
        var path: String
        var host: String?
        var authorization: String?
        var range: String?
    }

    struct State: Sendable {
        var files: [String: HubFile] = [:]
        /// Of one request for a file after the other: the bytes that are sent before the connection is cut.
        var cuts: [Int] = []
        /// Requests still to be answered with 429, and the header that comes with it.
        var throttled = 0
        var retryAfter = "0"
        var token: String?
        /// With the right token, too.
        var isGated = false
        /// Where large files are kept; nil: here.
        var storage: String?
        var ignoresRanges = false
        /// X-Linked-Etag, where that is not the truth.
        var linkedEtag: String?
        /// Stops sending after so many bytes of a file, and keeps the connection.
        var stallsAfter: Int?
        var seen: [Seen] = []
    }

    let state: Mutex<State>
    let port: Int
    private let channel: any Channel

    static let commit = "0123456789abcdef0123456789abcdef01234567"

    init(_ files: [String: HubFile] = [:], tls: NIOSSLContext? = nil) throws {
        var initial = State()
        initial.files = files
        state = Mutex(initial)
        let answers = Answers()
        channel = try ServerBootstrap(group: .singletonMultiThreadedEventLoopGroup)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let pipeline = channel.pipeline.syncOperations
                    if let tls { try pipeline.addHandler(NIOSSLServerHandler(context: tls)) }
                    try pipeline.configureHTTPServerPipeline()
                    try pipeline.addHandler(RequestHandler(answers))
                }
            }
            .bind(host: "127.0.0.1", port: 0).wait()
        port = channel.localAddress?.port ?? 0
        answers.come(from: self)
    }

    deinit { channel.close(promise: nil) }

    var address: String { "http://127.0.0.1:\(port)" }
    var seen: [Seen] { state.withLock { $0.seen } }
    /// Of the requests for files, in their order.
    var ranges: [String?] { seen.filter { !$0.path.hasPrefix("/api/") }.map(\.range) }

    fileprivate struct Reply {
        var status: HTTPResponseStatus
        var headers: [(String, String)] = []
        var body: [UInt8] = []
        /// Bytes of the body after which something happens.
        var sent: Int?
        var isStalled = false
    }

    fileprivate func answer(_ head: HTTPRequestHead) -> Reply {
        state.withLock { state in
            // A proxy gets the whole address.
            let uri = head.uri.hasPrefix("http://") ? "/" + head.uri.dropFirst(7).drop { $0 != "/" }.dropFirst() : head.uri
            let path = String(uri.split(separator: "?")[0])
            state.seen.append(
                Seen(
                    path: path, host: head.headers.first(name: "Host"),
                    authorization: head.headers.first(name: "Authorization"), range: head.headers.first(name: "Range")))
            if state.throttled > 0 {
                state.throttled -= 1
                return Reply(status: .tooManyRequests, headers: [("Retry-After", state.retryAfter)])
            }
            if let token = state.token, !path.hasPrefix("/storage/"),
                head.headers.first(name: "Authorization") != "Bearer \(token)"
            {
                return Reply(status: .unauthorized, headers: [("X-Error-Code", "GatedRepo")])
            }
            if state.isGated { return Reply(status: .forbidden, headers: [("X-Error-Code", "GatedRepo")]) }
            let parts = path.split(separator: "/").map { String($0).removingPercentEncoding ?? "" }
            if parts.starts(with: ["api", "models", "owner", "name", "revision"]) {
                guard parts.count == 6, parts[5] == "main" else {
                    return Reply(status: .notFound, headers: [("X-Error-Code", "RevisionNotFound")])
                }
                return Reply(status: .ok, body: Self.list(state.files))
            }
            if parts.first == "storage" { return Self.content(parts.dropFirst().joined(separator: "/"), head, &state) }
            guard parts.starts(with: ["owner", "name", "resolve", Self.commit]) else {
                return Reply(status: .notFound, headers: [("X-Error-Code", "RepoNotFound")])
            }
            let name = parts.dropFirst(4).joined(separator: "/")
            guard let file = state.files[name] else {
                return Reply(status: .notFound, headers: [("X-Error-Code", "EntryNotFound")])
            }
            guard let storage = state.storage, file.isLarge else { return Self.content(name, head, &state) }
            let etag = state.linkedEtag ?? HubFile.digest(file.content)
            return Reply(
                status: .found,
                headers: [("Location", "\(storage)/storage/\(name)"), ("X-Linked-Etag", "\"\(etag)\"")])
        }
    }

    private static func content(_ name: String, _ head: HTTPRequestHead, _ state: inout State) -> Reply {
        guard let file = state.files[name] else { return Reply(status: .notFound) }
        var reply = Reply(status: .ok, body: file.content)
        if !state.ignoresRanges, let range = head.headers.first(name: "Range"),
            let start = Int(range.dropFirst("bytes=".count).dropLast())
        {
            guard start < file.content.count else { return Reply(status: .rangeNotSatisfiable) }
            let total = file.content.count
            reply = Reply(
                status: .partialContent, headers: [("Content-Range", "bytes \(start)-\(total - 1)/\(total)")],
                body: Array(file.content[start...]))
        }
        if !state.cuts.isEmpty { reply.sent = state.cuts.removeFirst() }
        if let stall = state.stallsAfter {
            reply.sent = stall
            reply.isStalled = true
        }
        return reply
    }

    private static func list(_ files: [String: HubFile]) -> [UInt8] {
        let siblings = files.sorted { $0.key < $1.key }.map { name, file -> [String: Any] in
            let bytes = file.listedBytes ?? file.content.count
            var entry: [String: Any] = ["rfilename": name, "size": bytes]
            if file.isLarge {
                let digest = file.listedDigest ?? HubFile.digest(file.content)
                entry["lfs"] = ["sha256": digest, "size": bytes, "pointerSize": 130]
            } else if let digest = file.listedDigest {
                entry["blobId"] = digest
            }
            return entry
        }
        let list: [String: Any] = ["id": "owner/name", "sha": commit, "siblings": siblings]
        return Array((try? JSONSerialization.data(withJSONObject: list)) ?? Data())
    }

    /// The server to the handlers that its bootstrap made before it was there. Does not hold it.
    fileprivate final class Answers: Sendable {
        private struct Reference: Sendable { weak var server: HubServer? }
        private let reference = Mutex(Reference())
        func come(from server: HubServer) { reference.withLock { $0.server = server } }
        var server: HubServer? { reference.withLock { $0.server } }
    }

    private final class RequestHandler: ChannelInboundHandler {
        typealias InboundIn = HTTPServerRequestPart
        typealias OutboundOut = HTTPServerResponsePart
        private let answers: Answers
        private var head: HTTPRequestHead?

        init(_ answers: Answers) { self.answers = answers }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            switch unwrapInboundIn(data) {
            case .head(let head): self.head = head
            case .body: break
            case .end:
                guard let head, let server = answers.server else { return context.close(promise: nil) }
                reply(server.answer(head), context)
            }
        }

        private func reply(_ reply: Reply, _ context: ChannelHandlerContext) {
            var head = HTTPResponseHead(version: .http1_1, status: reply.status)
            for (name, value) in reply.headers { head.headers.add(name: name, value: value) }
            head.headers.add(name: "Content-Length", value: "\(reply.body.count)")
            context.write(wrapOutboundOut(.head(head)), promise: nil)
            let sent = ByteBuffer(bytes: reply.body.prefix(reply.sent ?? reply.body.count))
            let body = context.writeAndFlush(wrapOutboundOut(.body(.byteBuffer(sent))))
            if reply.isStalled { return }
            guard reply.sent == nil else {
                let channel = context.channel
                return body.whenComplete { _ in channel.close(promise: nil) }
            }
            context.writeAndFlush(wrapOutboundOut(.end(nil)), promise: nil)
        }
    }
}
