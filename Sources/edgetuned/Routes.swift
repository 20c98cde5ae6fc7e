// The table of routes, and the way of a request through it: browser defence, role, path, method, handler, problem.
// A new route is one row.
import EdgeJobs
import EdgeWire
import Foundation
import HTTPTypes
import HummingbirdCore

/// A request with what the table found out about it.
struct Call: Sendable {
    let request: Request
    let caller: Caller
    /// Values of the `{…}` of its path, in order, percent-decoded.
    let parameters: [String]
    let bodies: BodyMemory

    func query(_ name: String) -> String? {
        request.uri.queryParameters[Substring(name)].map(String.init)
    }

    func header(_ name: String) -> String? {
        HTTPField.Name(name).flatMap { request.headers[$0] }
    }

    func number(_ name: String, default value: Int, in range: ClosedRange<Int>) throws -> Int {
        guard let text = query(name) else { return value }
        guard let number = Int(text), range.contains(number) else {
            throw Problem(
                .invalidValue, "\(name)=\(text.prefix(32)) is not allowed; use \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }
}

struct Route: Sendable {
    let method: HTTPRequest.Method
    /// Segments; `{}` matches any one.
    let path: [Substring]
    let role: Role
    let handler: @Sendable (Daemon, Call) async throws -> Response

    init(
        _ method: HTTPRequest.Method, _ path: String, _ role: Role,
        _ handler: @escaping @Sendable (Daemon, Call) async throws -> Response
    ) {
        self.method = method
        self.path = path.split(separator: "/")
        self.role = role
        self.handler = handler
    }

    static let table: [Route] = [
        Route(.get, Endpoint.health, .stranger) { try await $0.health($1) },
        Route(.get, Endpoint.status, .user) { try await $0.status($1) },
        Route(.post, Endpoint.plan, .user) { try await $0.plan($1) },
        Route(.post, Endpoint.methods, .user) { try await $0.methods($1) },
        Route(.post, Endpoint.ranks, .user) { try await $0.ranks($1) },

        Route(.post, Endpoint.jobs, .user) { try await $0.submit($1) },
        Route(.get, Endpoint.jobs, .user) { try await $0.listJobs($1) },
        Route(.get, Endpoint.job("{}"), .user) { try await $0.showJob($1) },
        Route(.delete, Endpoint.job("{}"), .user) { try await $0.deleteJob($1) },
        Route(.post, Endpoint.jobAction("{}", .cancel), .user) { try await $0.act(.cancel, $1) },
        Route(.post, Endpoint.jobAction("{}", .pause), .user) { try await $0.act(.pause, $1) },
        Route(.post, Endpoint.jobAction("{}", .resume), .user) { try await $0.act(.resume, $1) },
        Route(.get, Endpoint.jobEvents("{}"), .user) { try await $0.events($1) },
        Route(.get, Endpoint.jobLog("{}"), .user) { try await $0.jobLog($1) },

        Route(.get, Endpoint.blob("{}"), .user) { try await $0.blobStatus($1) },
        Route(.patch, Endpoint.blob("{}"), .user) { try await $0.uploadBlob($1) },

        Route(.post, Endpoint.models, .user) { try await $0.addModel($1) },
        Route(.get, Endpoint.models, .user) { try await $0.listModels($1) },
        Route(.get, Endpoint.model("{}"), .user) { try await $0.showModel($1) },
        Route(.delete, Endpoint.model("{}"), .user) { try await $0.removeModel($1) },
        Route(.get, Endpoint.modelImport("{}"), .user) { try await $0.showImport($1) },
        Route(.post, Endpoint.datasets, .user) { try await $0.importDataset($1) },
        Route(.get, Endpoint.datasets, .user) { try await $0.listDatasets($1) },
        Route(.get, Endpoint.dataset("{}"), .user) { try await $0.showDataset($1) },
        Route(.delete, Endpoint.dataset("{}"), .user) { try await $0.removeDataset($1) },

        Route(.post, Endpoint.adapters, .user) { try await $0.addAdapter($1) },
        Route(.post, Endpoint.combinations, .user) { try await $0.combineAdapters($1) },
        Route(.post, Endpoint.compositions, .user) { try await $0.composeAdapters($1) },
        Route(.get, Endpoint.adapters, .user) { try await $0.listAdapters($1) },
        Route(.get, Endpoint.adapter("{}"), .user) { try await $0.showAdapter($1) },
        Route(.delete, Endpoint.adapter("{}"), .user) { try await $0.removeAdapter($1) },
        Route(.get, Endpoint.adapterFile("{}", "{}"), .user) { try await $0.adapterFile($1) },
        Route(.post, Endpoint.mergedModel("{}"), .user) { try await $0.mergeAdapter($1) },
        Route(.get, Endpoint.mergedFile("{}", "{}"), .user) { try await $0.mergedFile($1) },
        Route(.delete, Endpoint.mergedModel("{}"), .user) { try await $0.removeMerged($1) },

        Route(.post, Endpoint.generate, .user) { try await $0.generate($1) },
    ]

    /// The parameters when the path fits, else nil.
    func match(_ segments: [Substring]) -> [String]? {
        guard segments.count == path.count else { return nil }
        var parameters: [String] = []
        for (pattern, segment) in zip(path, segments) {
            if pattern == "{}" {
                guard let value = String(segment).removingPercentEncoding else { return nil }
                parameters.append(value)
            } else if pattern != segment {
                return nil
            }
        }
        return parameters
    }
}

extension Daemon {
    func respond(to request: Request, from peer: Peer) async -> Response {
        var response: Response
        do { response = try await routed(request, peer) } catch {
            let problem = Problem(apiError: error)
            if problem.kind == .internalError { logger.error("\(request.method) \(request.uri.path): \(error)") }
            response = Response(problem)
        }
        if let version = HTTPField.Name(Header.apiVersion) { response.headers[version] = Endpoint.version }
        return response
    }

    private func routed(_ request: Request, _ peer: Peer) async throws -> Response {
        // A browser that was led here by a bridge to TCP sends these; no client of ours does.
        for name in ["Origin", "Referer"] {
            guard HTTPField.Name(name).flatMap({ request.headers[$0] }) == nil else {
                throw Problem(.notPermitted, "requests with \(name) are refused: this API is not for browsers")
            }
        }
        let caller = Caller(uid: peer.uid, role: access.role(of: peer))
        let segments = request.uri.path.split(separator: "/", omittingEmptySubsequences: true)
        var allowed: [String] = []
        for route in Route.table {
            guard let parameters = route.match(segments) else { continue }
            guard route.method == request.method else {
                allowed.append(route.method.rawValue)
                continue
            }
            guard caller.role >= route.role else {
                throw Problem(
                    .notPermitted, "uid \(peer.uid) is not in the group \(config.now.userGroup)",
                    hint: "sudo usermod -aG \(config.now.userGroup) USER, then log in again")
            }
            return try await route.handler(
                self, Call(request: request, caller: caller, parameters: parameters, bodies: bodies))
        }
        guard !allowed.isEmpty else { throw Problem(.notFound, "there is no \(request.uri.path.prefix(200))") }
        var problem = Problem(
            .badRequest, "\(request.method.rawValue) is not possible here", hint: "use \(allowed.joined(separator: ", "))")
        problem.status = 405
        return Response(problem, headers: [.allow: allowed.joined(separator: ", ")])
    }
}
