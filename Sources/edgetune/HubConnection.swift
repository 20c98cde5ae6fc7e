// HTTPS to the hub and to where it sends us: proxies, redirects, the token to its own host alone, refusals in words.
// The only place of this program that opens a connection to another machine, and only for `models pull`.
import AsyncHTTPClient
import EdgeWire
import Foundation
import NIOCore
import NIOHTTP1
import NIOPosix
import NIOSSL

/// What may be over when it is tried again.
enum HubError: Error {
    case lost(String)
    /// 429 or 5xx. `waitSeconds`: how long the server asks us to wait.
    case busy(status: UInt, host: String, waitSeconds: Double?)

    var reason: String {
        switch self {
        case .lost(let reason): reason
        case .busy(429, let host, _): "\(host) takes no more requests of ours for now (status 429)"
        case .busy(let status, let host, _): "\(host) answers with status \(status)"
        }
    }
}

struct HubAnswer {
    enum Extent: Equatable {
        case whole(length: UInt64?)
        /// From `start`; `total` is the whole file's length, where it is told.
        case rest(start: UInt64, total: UInt64?)
    }
    let extent: Extent
    /// SHA-256 of a large file, as the hub says with the redirect to it.
    let linkedDigest: String?
    let body: HTTPClientResponse.Body
}

/// Used by one task.
final class HubConnection {
    let endpoint: HubEndpoint
    private let reference: HubReference
    private let token: HubToken?
    private let proxies: ProxyRules
    private let tls: TLSConfiguration
    private var clients: [ProxyRules.Proxy?: HTTPClient] = [:]

    private static let redirects = 10
    /// Longest silence, in seconds.
    private static let idleSeconds: Int64 = 60

    private init(
        _ reference: HubReference, _ endpoint: HubEndpoint, _ token: HubToken?, environment: [String: String]
    ) throws(CommandFailure) {
        self.reference = reference
        self.endpoint = endpoint
        self.token = token
        proxies = ProxyRules(environment: environment)
        var tls = TLSConfiguration.makeClientConfiguration()
        if let file = environment["SSL_CERT_FILE"], !file.isEmpty {
            guard access(file, R_OK) == 0 else {
                throw CommandFailure(.usage, "SSL_CERT_FILE: \(file) cannot be read")
            }
            tls.trustRoots = .file(file)
        }
        self.tls = tls
    }

    static func with<Value>(
        _ reference: HubReference, _ endpoint: HubEndpoint, _ token: HubToken?, environment: [String: String],
        _ body: (HubConnection) async throws -> Value
    ) async throws -> Value {
        let hub = try HubConnection(reference, endpoint, token, environment: environment)
        let outcome: Result<Value, any Error>
        do { outcome = .success(try await body(hub)) } catch { outcome = .failure(error) }
        // Not waited for: the program ends now, and an answer that was not read to its end must not hold it up.
        for client in hub.clients.values { client.shutdown { _ in } }
        return try outcome.get()
    }

    /// The file from `offset` on, or all of it where the server does not know how to do that.
    func open(_ start: URL, from offset: UInt64 = 0) async throws -> HubAnswer {
        var url = start
        var linkedDigest: String?
        for _ in 0...Self.redirects {
            let response = try await send(url, from: offset)
            if isOwn(url) { linkedDigest = linkedDigest ?? Self.digest(response.headers.first(name: "X-Linked-Etag")) }
            switch response.status.code {
            case 200:
                let length = response.headers.first(name: "Content-Length").flatMap { UInt64($0) }
                return HubAnswer(extent: .whole(length: length), linkedDigest: linkedDigest, body: response.body)
            case 206:
                guard let extent = Self.extent(response.headers.first(name: "Content-Range")) else {
                    throw CommandFailure(.failure, "\(url.host ?? "") answers with a part of the file, but not with which")
                }
                return HubAnswer(extent: extent, linkedDigest: linkedDigest, body: response.body)
            case 301, 302, 303, 307, 308:
                url = try Self.target(of: response, at: url)
            default:
                throw refusal(response, from: url)
            }
        }
        throw CommandFailure(.failure, "\(start.host ?? "") sends us on more than \(Self.redirects) times")
    }

    /// All of a small answer, with as many tries as may help.
    func collect(_ url: URL, limit: Int, what: String) async throws -> ByteBuffer {
        var patience = HubPatience()
        while true {
            do {
                let answer = try await open(url)
                do { return try await answer.body.collect(upTo: limit) } catch is NIOTooManyBytesError {
                    throw CommandFailure(.failure, "\(what) is over \(Amount.bytes(UInt64(limit)))")
                } catch { throw Self.lost(error, url) }
            } catch let error as HubError {
                try await patience.wait(after: error, during: what) { _ in }
            }
        }
    }

    /// Any error of the client library's, in words.
    static func lost(_ error: any Error, _ url: URL) -> any Error {
        let host = url.host ?? ""
        let text = "\(error)"
        switch error {
        case is HubError, is CommandFailure, is DaemonError, is CancellationError: return error
        case let error as HTTPClientError where error == .proxyAuthenticationRequired:
            return CommandFailure(
                .permission, "the proxy wants a user and a password", hint: "https_proxy=http://USER:PASSWORD@HOST:PORT")
        case is NIOConnectionError: return HubError.lost("\(host) cannot be reached: no address, or nobody listens there")
        case let error as IOError:
            return HubError.lost("\(host): \(String(cString: strerror(error.errnoCode)))")
        case _ where text.contains("CERTIFICATE_VERIFY_FAILED"):
            return CommandFailure(
                .failure, "the certificate of \(host) is not one that this machine trusts",
                hint: "is the clock right? Another authority's certificates: SSL_CERT_FILE=…")
        default: return HubError.lost("\(host): \(text.prefix(200))")
        }
    }

    // MARK: one request

    private func send(_ url: URL, from offset: UInt64) async throws -> HTTPClientResponse {
        var request = HTTPClientRequest(url: url.absoluteString)
        request.headers.add(name: "User-Agent", value: "edgetune/0.1.0")
        if offset > 0 { request.headers.add(name: "Range", value: "bytes=\(offset)-") }
        if let token, isOwn(url) { request.headers.add(name: "Authorization", value: "Bearer \(token.text)") }
        do {
            return try await client(for: url).execute(request, deadline: .distantFuture)
        } catch { throw Self.lost(error, url) }
    }

    private func client(for url: URL) throws -> HTTPClient {
        let proxy = try proxies.proxy(for: url)
        if let client = clients[proxy] { return client }
        var configuration = HTTPClient.Configuration(
            tlsConfiguration: tls, redirectConfiguration: .disallow,
            timeout: .init(connect: .seconds(15), read: .seconds(Self.idleSeconds)))
        configuration.httpVersion = .http1Only
        if let proxy {
            configuration.proxy =
                switch proxy.kind {
                case .socks: .socksServer(host: proxy.host, port: proxy.port)
                case .http:
                    .server(
                        host: proxy.host, port: proxy.port,
                        authorization: proxy.login.map { .basic(username: $0[0], password: $0[1]) })
                }
        }
        let client = HTTPClient(eventLoopGroupProvider: .singleton, configuration: configuration)
        clients[proxy] = client
        return client
    }

    /// The hub's own origin: what the token is for.
    private func isOwn(_ url: URL) -> Bool {
        func origin(_ url: URL) -> [String] {
            let scheme = url.scheme ?? ""
            return [scheme, url.host?.lowercased() ?? "", "\(url.port ?? (scheme == "https" ? 443 : 80))"]
        }
        return origin(url) == origin(endpoint.url)
    }

    private static func target(of response: HTTPClientResponse, at url: URL) throws -> URL {
        guard let location = response.headers.first(name: "Location"),
            let next = URL(string: location, relativeTo: url)?.absoluteURL, next.host?.isEmpty == false,
            next.scheme == "https" || next.scheme == "http"
        else { throw CommandFailure(.failure, "\(url.host ?? "") sends us on to no address") }
        guard next.scheme == "https" || url.scheme == "http" else {
            throw CommandFailure(.failure, "\(url.host ?? "") sends us from https to http, and we do not go")
        }
        return next
    }

    private static func extent(_ contentRange: String?) -> HubAnswer.Extent? {
        guard let match = contentRange?.wholeMatch(of: #/bytes (\d+)-\d+/(\d+|\*)/#), let start = UInt64(match.1) else {
            return nil
        }
        return .rest(start: start, total: UInt64(match.2))
    }

    private static func digest(_ etag: String?) -> String? {
        let text = etag?.filter { $0 != "\"" }.lowercased()
        return text.flatMap { $0.count == 64 && $0.allSatisfy(\.isHexDigit) ? $0 : nil }
    }

    // MARK: refusals

    private func refusal(_ response: HTTPClientResponse, from url: URL) -> any Error {
        let status = response.status.code
        let host = url.host ?? ""
        if status == 429 || status >= 500 {
            return HubError.busy(status: status, host: host, waitSeconds: Self.waitSeconds(response.headers))
        }
        guard isOwn(url) else {
            return CommandFailure(.failure, "\(host), where the hub keeps the file, answers with status \(status)")
        }
        let page = "\(endpoint.text)/\(reference.repository)"
        let said = response.headers.first(name: "X-Error-Message").map { ": \($0.prefix(300))" } ?? ""
        switch (status, response.headers.first(name: "X-Error-Code")) {
        case (401, _) where token == nil:
            return CommandFailure(
                .permission, "\(reference.repository) is private or gated, or is not there, and no token was given",
                hint: "accept its conditions at \(page), make a token at \(endpoint.text)/settings/tokens, "
                    + "and give it in HF_TOKEN or --token-file")
        case (401, _):
            return CommandFailure(.permission, "the token is not accepted\(said)", hint: "\(endpoint.text)/settings/tokens")
        case (403, _):
            return CommandFailure(
                .permission, "\(reference.repository) is gated, and "
                    + (token == nil ? "no token was given" : "the token's account was not let in") + said,
                hint: "accept its conditions at \(page)" + (token == nil ? ", then set HF_TOKEN" : ""))
        case (404, "RevisionNotFound"?):
            return CommandFailure(.notFound, "\(reference.repository) has no such revision\(said)")
        case (404, "EntryNotFound"?): return CommandFailure(.notFound, "\(reference.repository) has no such file\(said)")
        case (404, _):
            return CommandFailure(.notFound, "there is no repository \(reference.repository) at \(endpoint.text)\(said)")
        case (416, _): return CommandFailure(.failure, "\(host) has a shorter file than it says")
        default: return CommandFailure(.failure, "\(host) answers with status \(status)\(said)")
        }
    }

    /// Of `Retry-After` (RFC 9110 §10.2.3, seconds or a date), or of the hub's own `RateLimit: "api";r=0;t=55`.
    private static func waitSeconds(_ headers: HTTPHeaders) -> Double? {
        if let text = headers.first(name: "Retry-After") {
            if let seconds = Double(text), seconds.isFinite { return max(0, seconds) }
            let format = DateFormatter()
            format.locale = Locale(identifier: "en_US_POSIX")
            format.timeZone = TimeZone(secondsFromGMT: 0)
            format.dateFormat = "EEE, dd MMM yyyy HH:mm:ss 'GMT'"
            if let date = format.date(from: text) { return max(0, date.timeIntervalSinceNow) }
        }
        let limit = headers.first(name: "RateLimit") ?? ""
        return limit.firstMatch(of: #/;\s*t=(\d+)/#).flatMap { Double($0.1) }
    }
}

/// Tries in a row that brought nothing, and the waits between them: 61 s of our own, or what the server asks for.
struct HubPatience {
    private var fruitless = 0
    private static let longestWait = 300.0

    mutating func gotOn() { fruitless = 0 }

    /// - Parameter saying: told what is waited for.
    mutating func wait(after error: HubError, during what: String, saying: (String) -> Void) async throws {
        fruitless += 1
        guard fruitless < BlobUpload.fruitlessTries else {
            throw CommandFailure(
                .unreachable, "\(what): \(error.reason)", hint: "the same command goes on where this one stopped")
        }
        var seconds = min(30, 0.25 * Double(1 << fruitless))
        if case .busy(_, let host, let asked?) = error {
            guard asked <= Self.longestWait else {
                throw CommandFailure(
                    .unreachable, "\(host) asks us to come back in \(Amount.duration(asked))",
                    hint: "the same command then goes on where this one stopped")
            }
            seconds = max(seconds, asked)
        }
        saying("\(error.reason); again in \(Amount.duration(seconds))")
        try await Task.sleep(for: .seconds(seconds))
    }
}
