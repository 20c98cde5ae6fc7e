// A repository of the hub as its API lists it, and small files of it, verified.
import Crypto
import EdgeWire
import Foundation
import NIOCore

struct HubFile: Equatable {
    var name: String
    var bytes: UInt64
    /// Of the content, 64 hex digits; the hub knows it of large files.
    var sha256: String?
    /// `git hash-object` of the content, 40 hex digits, where there is no `sha256`.
    var gitBlob: String?
}

struct HubRepository {
    let reference: HubReference
    /// The commit: what is fetched is of one moment, whatever is pushed meanwhile.
    let revision: String
    let files: [HubFile]

    /// Of the list of files: more than the largest repositories have.
    private static let listBytes = 32 << 20
    /// Of a file that is kept in memory. The hub stores larger ones by their SHA-256.
    static let smallBytes = 32 << 20

    static func open(_ reference: HubReference, revision: String, _ hub: HubConnection) async throws -> HubRepository {
        struct Answer: Decodable {
            struct File: Decodable {
                struct Large: Decodable {
                    var sha256: String?
                    var size: UInt64?
                }
                var rfilename: String
                var size: UInt64?
                var blobId: String?
                var lfs: Large?
            }
            var sha: String
            var siblings: [File]
        }
        let url = try hub.endpoint.url(
            ["api", "models", reference.owner, reference.name, "revision", revision], query: "blobs=true")
        let body = try await hub.collect(url, limit: listBytes, what: "the list of files of \(reference.repository)")
        let answer: Answer
        do { answer = try JSONDecoder().decode(Answer.self, from: Data(body.readableBytesView)) } catch {
            throw CommandFailure(.failure, "the list of files of \(reference.repository) cannot be read: it is not the hub's")
        }
        let files = answer.siblings.compactMap { file -> HubFile? in
            // One without its size cannot be checked, and is as if it were not there.
            guard let bytes = file.lfs?.size ?? file.size else { return nil }
            return HubFile(
                name: file.rfilename, bytes: bytes, sha256: hex(file.lfs?.sha256, digits: 64),
                gitBlob: hex(file.blobId, digits: 40))
        }
        guard !answer.sha.isEmpty, !files.isEmpty else {
            throw CommandFailure(.notFound, "\(reference.repository) has no files with their sizes")
        }
        return HubRepository(reference: reference, revision: answer.sha, files: files)
    }

    private static func hex(_ text: String?, digits: Int) -> String? {
        text.flatMap { $0.count == digits && $0.allSatisfy(\.isHexDigit) ? $0.lowercased() : nil }
    }

    func url(of file: HubFile, at endpoint: HubEndpoint) throws -> URL {
        try endpoint.url(
            [reference.owner, reference.name, "resolve", revision] + file.name.split(separator: "/").map(String.init))
    }

    /// All of a small file, when it is what the list says.
    func content(of file: HubFile, _ hub: HubConnection) async throws -> ByteBuffer {
        guard file.bytes <= Self.smallBytes else {
            throw CommandFailure(
                .failure, "the hub does not say the SHA-256 of \(file.name), \(Amount.bytes(file.bytes)): "
                    + "it could not be verified")
        }
        let body = try await hub.collect(
            try url(of: file, at: hub.endpoint), limit: Self.smallBytes, what: file.name)
        guard UInt64(body.readableBytes) == file.bytes else {
            throw CommandFailure(
                .failure, "\(file.name) has \(body.readableBytes) bytes, the hub's list says \(file.bytes)")
        }
        var found = sha256(body)
        var wanted = file.sha256
        if wanted == nil, let gitBlob = file.gitBlob {
            (found, wanted) = (gitDigest(body), gitBlob)
        }
        guard wanted == nil || found == wanted else {
            throw CommandFailure(.failure, "\(file.name) has the digest \(found), the hub's list says \(wanted ?? "")")
        }
        return body
    }

    private func sha256(_ body: ByteBuffer) -> String { HexText.of(SHA256.hash(data: Data(body.readableBytesView))) }

    /// SHA-1 of "blob LENGTH\0" and the bytes: git's name for them, which protects against damage and not against malice.
    private func gitDigest(_ body: ByteBuffer) -> String {
        var hash = Insecure.SHA1()
        hash.update(data: Array("blob \(body.readableBytes)\0".utf8))
        hash.update(data: Data(body.readableBytesView))
        return HexText.of(hash.finalize())
    }
}
