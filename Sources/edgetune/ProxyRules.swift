// Which proxy a URL is fetched through: http_proxy, https_proxy, all_proxy and no_proxy, as curl reads them. No library
// here reads them by itself.
import Foundation

struct ProxyRules {
    struct Proxy: Hashable {
        enum Kind { case http, socks }
        var kind: Kind
        var host: String
        var port: Int
        /// User and password.
        var login: [String]?
    }

    private let environment: [String: String]

    init(environment: [String: String]) { self.environment = environment }

    /// Nil: fetched directly.
    func proxy(for url: URL) throws(CommandFailure) -> Proxy? {
        guard let scheme = url.scheme, let host = url.host, !isExcepted(host, port: url.port) else { return nil }
        // HTTP_PROXY in capitals could be a header of a CGI request: httpoxy.org.
        let capitals = scheme == "http" ? [] : [scheme.uppercased() + "_PROXY"]
        let names = [scheme + "_proxy"] + capitals + ["all_proxy", "ALL_PROXY"]
        guard let name = names.first(where: { environment[$0]?.isEmpty == false }), let text = environment[name] else {
            return nil
        }
        let parts = URLComponents(string: text.contains("://") ? text : "http://" + text)
        guard let parts, let proxyHost = parts.host, !proxyHost.isEmpty else {
            throw CommandFailure(.usage, "\(name) is no address of a proxy")
        }
        let login = parts.user.map { [$0, parts.password ?? ""] }
        switch parts.scheme {
        case "http": return Proxy(kind: .http, host: proxyHost, port: parts.port ?? 80, login: login)
        case "socks5", "socks5h": return Proxy(kind: .socks, host: proxyHost, port: parts.port ?? 1080, login: nil)
        default: throw CommandFailure(.usage, "\(name): proxies are spoken to by http or socks5, not \(parts.scheme ?? "")")
        }
    }

    /// `no_proxy`: hosts, domains with all below them, each perhaps with a port; `*` is all.
    private func isExcepted(_ host: String, port: Int?) -> Bool {
        let list = environment["no_proxy"] ?? environment["NO_PROXY"] ?? ""
        let host = host.lowercased()
        for entry in list.lowercased().split(whereSeparator: { $0 == "," || $0 == " " }) {
            if entry == "*" { return true }
            var name = entry
            if let colon = entry.lastIndex(of: ":"), let wanted = Int(entry[entry.index(after: colon)...]),
                entry.firstIndex(of: ":") == colon
            {
                guard wanted == port else { continue }
                name = entry[..<colon]
            }
            while name.first == "." { name = name.dropFirst() }
            if host == name || host.hasSuffix("." + name) { return true }
        }
        return false
    }
}
