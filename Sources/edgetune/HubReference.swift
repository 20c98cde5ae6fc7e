// What a pull is asked for: `hf:OWNER/NAME[:FILE]`, where the hub is, and as whom it is asked.
import EdgeWire
import Foundation

struct HubReference: Equatable {
    let owner: String
    let name: String
    /// A GGUF file of it, with the directories that it is in.
    let file: String?

    /// Nil when the text is none.
    init?(_ text: String) {
        guard text.hasPrefix("hf:") else { return nil }
        let parts = text.dropFirst(3).split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
        let path = parts[0].split(separator: "/", omittingEmptySubsequences: false).map(String.init)
        guard path.count == 2, path.allSatisfy(Self.isPart) else { return nil }
        (owner, name) = (path[0], path[1])
        guard parts.count == 2 else {
            file = nil
            return
        }
        let components = parts[1].split(separator: "/", omittingEmptySubsequences: false)
        guard components.allSatisfy({ ModelFile.isName(String($0)) }) else { return nil }
        file = String(parts[1])
    }

    private static func isPart(_ text: String) -> Bool {
        (1...96).contains(text.utf8.count) && text.first != "." && !text.contains("..")
            && text.utf8.allSatisfy { byte in
                switch byte {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                    UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "-"):
                    true
                default: false
                }
            }
    }

    var repository: String { "\(owner)/\(name)" }
}

/// The hub's address.
struct HubEndpoint: Equatable {
    static let own = "https://huggingface.co"
    /// Without a slash at the end.
    let text: String
    let url: URL

    /// `--mirror`, else HF_ENDPOINT, else the hub itself.
    init(mirror: String?, environment: [String: String]) throws(CommandFailure) {
        let named = environment["HF_ENDPOINT"].flatMap { $0.isEmpty ? nil : $0 }
        var text = mirror ?? named ?? Self.own
        while text.hasSuffix("/") { text.removeLast() }
        guard let url = URL(string: text), ["http", "https"].contains(url.scheme ?? ""), url.host?.isEmpty == false,
            url.query == nil, url.fragment == nil, url.user == nil
        else { throw CommandFailure(.usage, "\(text) is no address of a hub; https://HOST is wanted") }
        self.text = text
        self.url = url
    }

    var isOwn: Bool { text == Self.own }

    /// - Parameter path: its parts, as they are: each is encoded, a slash in one too.
    func url(_ path: [String], query: String? = nil) throws(CommandFailure) -> URL {
        let encoded = path.map { $0.addingPercentEncoding(withAllowedCharacters: Self.plain) ?? "-" }
        let whole = ([text] + encoded).joined(separator: "/") + (query.map { "?" + $0 } ?? "")
        guard let url = URL(string: whole) else { throw CommandFailure(.usage, "\(whole) is no address") }
        return url
    }

    /// RFC 3986 §2.3.
    private static let plain = CharacterSet(
        charactersIn: "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
}

/// A token of the hub. Never shown.
struct HubToken {
    let text: String

    /// `--token-file`, HF_TOKEN, the file HF_TOKEN_PATH, or what `hf auth login` stored. The last is for the hub itself and
    /// goes to no mirror; and none goes over a line that can be read, unless it ends in this machine.
    static func find(
        file: String?, environment: [String: String], endpoint: HubEndpoint
    ) throws(CommandFailure) -> HubToken? {
        var found = try named(file, environment)
        if found == nil, endpoint.isOwn { found = try stored(environment) }
        guard let token = found else { return nil }
        guard endpoint.url.scheme == "https" || ["127.0.0.1", "localhost", "::1", "[::1]"].contains(endpoint.url.host ?? "")
        else {
            throw CommandFailure(
                .usage, "\(endpoint.text) is not https: a token would be readable on the way",
                hint: "unset HF_TOKEN, or name an https address")
        }
        return token
    }

    private static func named(_ file: String?, _ environment: [String: String]) throws(CommandFailure) -> HubToken? {
        if let file { return try HubToken(readFrom: file) }
        if let text = environment["HF_TOKEN"], !text.isEmpty { return try HubToken(text, from: "HF_TOKEN") }
        guard let path = environment["HF_TOKEN_PATH"], !path.isEmpty else { return nil }
        return try HubToken(readFrom: path)
    }

    private static func stored(_ environment: [String: String]) throws(CommandFailure) -> HubToken? {
        let home = environment["HF_HOME"] ?? environment["XDG_CACHE_HOME"].map { $0 + "/huggingface" }
            ?? environment["HOME"].map { $0 + "/.cache/huggingface" }
        guard let path = home.map({ $0 + "/token" }), FileManager.default.fileExists(atPath: path) else { return nil }
        return try HubToken(readFrom: path)
    }

    private init(readFrom path: String) throws(CommandFailure) {
        guard let data = FileManager.default.contents(atPath: path), data.count <= 4096 else {
            throw CommandFailure(.permission, "the token file \(path) cannot be read")
        }
        try self.init(String(decoding: data, as: UTF8.self), from: path)
    }

    private init(_ text: String, from place: String) throws(CommandFailure) {
        let text = text.trimmingCharacters(in: .whitespacesAndNewlines)
        // It becomes a header: nothing in it may end that.
        guard !text.isEmpty, text.utf8.allSatisfy({ (0x21...0x7E).contains($0) }) else {
            throw CommandFailure(.usage, "\(place) holds no token")
        }
        self.text = text
    }
}
