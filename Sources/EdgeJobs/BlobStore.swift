// Uploaded bytes by their SHA-256: `sha256-<hex>`, and `sha256-<hex>.part` while they arrive. A file under its final
// name is complete, has its digest, and is read-only. A digest is the only thing of a client that names a file here.
import Crypto
import EdgeWire
import Foundation

#if canImport(Glibc)
import Glibc
#endif

/// `sha256:` and 64 lower-case hex digits.
package struct BlobDigest: Hashable, Sendable {
    package let hex: String
    package var text: String { "sha256:" + hex }

    package init(_ text: String) throws {
        let hex = text.hasPrefix("sha256:") ? text.dropFirst(7) : ""
        guard hex.utf8.count == 64, hex.utf8.allSatisfy({ (48...57).contains($0) || (97...102).contains($0) }) else {
            throw Problem(
                .invalidValue, "\"\(text.prefix(80))\" is not a digest", hint: "sha256: and 64 lower-case hex digits")
        }
        self.hex = String(hex)
    }
}

package actor BlobStore {
    package nonisolated let directory: String
    private var uploading: Set<BlobDigest> = []
    /// Of blobs that are not stored as anybody's yet: who sent bytes last, and the whole length that he announced. A restart
    /// forgets them, and their parts go after `ModelImports.keptDays`.
    private var announced: [BlobDigest: (uid: UInt32, length: UInt64)] = [:]

    package init(directory: String) throws {
        self.directory = directory
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        try DurableDirectory.make(directory)
    }

    package nonisolated func path(_ digest: BlobDigest) -> String { "\(directory)/sha256-\(digest.hex)" }
    nonisolated func partPath(_ digest: BlobDigest) -> String { path(digest) + ".part" }

    package nonisolated func status(_ digest: BlobDigest) -> BlobStatus {
        if let bytes = Self.size(path(digest)) {
            return BlobStatus(digest: digest.text, receivedBytes: bytes, complete: true)
        }
        return BlobStatus(digest: digest.text, receivedBytes: Self.size(partPath(digest)) ?? 0, complete: false)
    }

    /// Opens the partial file for the next bytes. Nil when the blob is complete already.
    ///
    /// - Parameters:
    ///   - offset: must be what has arrived so far.
    ///   - length: of the whole blob, in bytes.
    ///   - uid: whose upload it is from now on.
    ///   - allowance: bytes that all his uploads may come to; nil: any.
    package func upload(
        _ digest: BlobDigest, offset: UInt64, length: UInt64, by uid: UInt32, allowance: UInt64? = nil
    ) throws -> sending BlobUpload? {
        guard length > 0 else { throw Problem(.invalidValue, "an empty blob is of no use") }
        guard length <= WireLimit.blobBytes else {
            throw Problem(.tooLarge, "\(length) bytes, the limit of a blob is \(WireLimit.blobBytes)")
        }
        let status = status(digest)
        if status.complete { return nil }
        guard !uploading.contains(digest) else {
            throw Problem(.conflict, "another upload of \(digest.text) is under way", hint: "try again when it ends")
        }
        guard status.receivedBytes == offset else {
            throw Problem(
                .conflict, "the upload is at byte \(status.receivedBytes), not \(offset)",
                hint: "send the next bytes from \(status.receivedBytes)")
        }
        let others = announcedLengths(by: uid, except: digest)
        guard others.count < Self.uploadsPerUser else {
            throw Problem(
                .tooLarge, "\(others.count) uploads of yours have begun and not ended, the limit is \(Self.uploadsPerUser)",
                hint: "end one of them")
        }
        let otherBytes = others.reduce(0, +)
        if let allowance, otherBytes + length > allowance {
            throw Problem(
                .tooLarge, "\(length) bytes, and \(otherBytes) of your other uploads: \(allowance) are left of your limit",
                hint: "remove models or data sets that are not needed")
        }
        try requireFree(length - min(offset, length), what: "are to come")
        let file = open(partPath(digest), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard file >= 0 else { throw Self.failure("open", partPath(digest)) }
        announced[digest] = (uid, length)
        uploading.insert(digest)
        return BlobUpload(store: self, digest: digest, file: file, received: offset, length: length)
    }

    /// A client sends the files of a model one after the other; each that it leaves is a file here.
    package static let uploadsPerUser = 256

    /// Bytes of a user's uploads that the store does not count yet.
    package func announcedBytes(by uid: UInt32) -> UInt64 { announcedLengths(by: uid, except: nil).reduce(0, +) }

    private func announcedLengths(by uid: UInt32, except digest: BlobDigest?) -> [UInt64] {
        // A part that was thrown away takes no room.
        announced = announced.filter { Self.size(partPath($0.key)) != nil || Self.size(path($0.key)) != nil }
        return announced.filter { $0.key != digest && $0.value.uid == uid }.map(\.value.length)
    }

    /// The store counts it now.
    package func isStored(_ digest: BlobDigest) { announced[digest] = nil }

    /// - Parameter what: the sentence's verb: "are to come".
    package nonisolated func requireFree(_ bytes: UInt64, what: String) throws(Problem) {
        try Self.requireFree(bytes, on: directory, what: what)
    }

    /// - Parameter path: on the file system that they are to be on.
    package static func requireFree(_ bytes: UInt64, on path: String, what: String) throws(Problem) {
        let free = freeBytes(path)
        guard bytes + reservedBytes <= free else {
            throw Problem(
                .insufficientDisk, "\(bytes) bytes \(what), \(free) are free on the disk",
                requiredBytes: bytes + reservedBytes, budgetBytes: free)
        }
    }

    /// Left free for the job store and checkpoints.
    private static let reservedBytes: UInt64 = 64 << 20

    /// The digest of a file that a worker has made.
    package static func digest(ofFile path: String) async throws -> BlobDigest {
        try BlobDigest("sha256:" + (try await BlobUpload.sha256(ofFile: path)))
    }

    /// The file a piece at a time, on the calling thread.
    package static func sha256(ofFile path: String) throws -> String {
        let handle = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
        defer { try? handle.close() }
        var hash = SHA256()
        while let piece = try handle.read(upToCount: 1 << 20), !piece.isEmpty { hash.update(data: piece) }
        return Hex.text(hash.finalize())
    }

    /// Takes a complete and synced file of this file system under its digest, which the caller has computed.
    package func adopt(_ file: String, as digest: BlobDigest) throws {
        chmod(file, 0o400)
        // The same bytes may be there already, mapped by a running job.
        if Self.size(path(digest)) != nil {
            unlink(file)
            return
        }
        guard rename(file, path(digest)) == 0 else { throw Self.failure("rename", file) }
        try syncNames()
    }

    /// Complete blobs keep their names from here on. Before a client is told of one that was there already, too: whoever
    /// published it may have been cut off before this.
    package nonisolated func syncNames() throws { try DurableDirectory.sync(directory) }

    /// Digests of all complete blobs.
    package nonisolated func present() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: directory).compactMap { name in
            guard name.hasPrefix("sha256-") else { return nil }
            return try? BlobDigest("sha256:" + name.dropFirst("sha256-".count)).text
        }
    }

    fileprivate func ended(_ digest: BlobDigest) { uploading.remove(digest) }

    package func remove(_ digest: BlobDigest) {
        unlink(path(digest))
        if !uploading.contains(digest) { unlink(partPath(digest)) }
    }

    /// Removes uploads that nobody went on with.
    package func removeAbandoned(olderThan limit: Date) {
        for name in (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? [] where name.hasSuffix(".part") {
            var status = stat()
            let path = "\(directory)/\(name)"
            guard stat(path, &status) == 0, Double(status.st_mtim.tv_sec) < limit.timeIntervalSince1970 else { continue }
            unlink(path)
        }
    }

    package static func freeBytes(_ path: String) -> UInt64 {
        var status = statvfs()
        guard statvfs(path, &status) == 0 else { return 0 }
        return UInt64(status.f_bavail) * UInt64(status.f_frsize)
    }

    /// Of a regular file; a link is none, wherever it leads.
    private static func size(_ path: String) -> UInt64? {
        var status = stat()
        guard lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return nil }
        return UInt64(status.st_size)
    }

    static func failure(_ what: String, _ path: String) -> Problem {
        let code = errno
        return Problem(
            code == ENOSPC || code == EDQUOT ? .insufficientDisk : .internalError,
            "\(what) of \(path.split(separator: "/").last ?? ""): \(String(cString: strerror(code)))")
    }
}

/// Bytes of one request on their way into the partial file. Used by one task.
package final class BlobUpload {
    private let store: BlobStore
    private let digest: BlobDigest
    private var file: Int32
    package private(set) var received: UInt64
    private let length: UInt64

    init(store: BlobStore, digest: BlobDigest, file: Int32, received: UInt64, length: UInt64) {
        self.store = store
        self.digest = digest
        self.file = file
        self.received = received
        self.length = length
    }

    package func write(_ bytes: UnsafeRawBufferPointer) throws {
        guard received + UInt64(bytes.count) <= length else {
            throw Problem(.tooLarge, "more than the \(length) bytes that \(Header.uploadLength) announced")
        }
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = Glibc.write(file, UnsafeRawBufferPointer(rebasing: rest).baseAddress, rest.count)
            guard count > 0 else {
                if count < 0 && errno == EINTR { continue }
                throw BlobStore.failure("write", store.partPath(digest))
            }
            rest = rest.dropFirst(count)
            received += UInt64(count)
        }
    }

    /// Ends this request's part. When all bytes are there: verifies the digest and publishes the file.
    package func finish() async throws -> BlobStatus {
        do {
            let isLast = received == length
            // fsync once: after it failed, what the disk has is unknown, and the part is thrown away.
            if isLast, fsync(file) != 0 {
                let problem = BlobStore.failure("fsync", store.partPath(digest))
                unlink(store.partPath(digest))
                throw problem
            }
            Glibc.close(file)
            file = -1
            if isLast { try await publish() }
        } catch {
            await abandon()
            throw error
        }
        await store.ended(digest)
        return store.status(digest)
    }

    /// Keeps what has arrived for a later request.
    package func abandon() async {
        if file >= 0 { Glibc.close(file) }
        file = -1
        if received == 0 { unlink(store.partPath(digest)) }
        await store.ended(digest)
    }

    private func publish() async throws {
        let part = store.partPath(digest)
        let found = try await Self.sha256(ofFile: part)
        guard found == digest.hex else {
            unlink(part)
            throw Problem(
                .digestMismatch, "the \(length) bytes have the digest sha256:\(found), not \(digest.text)",
                hint: "the upload starts again from 0")
        }
        chmod(part, 0o400)
        guard rename(part, store.path(digest)) == 0 else { throw BlobStore.failure("rename", part) }
        try store.syncNames()
    }

    /// Off the tasks' threads: a gigabyte takes seconds.
    fileprivate static func sha256(ofFile path: String) async throws -> String {
        try await withCheckedThrowingContinuation { continuation in
            DispatchQueue.global().async {
                continuation.resume(with: Result { try BlobStore.sha256(ofFile: path) })
            }
        }
    }
}

package enum Hex {
    package static func text(_ bytes: some Sequence<UInt8>) -> String {
        let digits = Array("0123456789abcdef")
        return bytes.reduce(into: "") { text, byte in
            text.append(digits[Int(byte >> 4)])
            text.append(digits[Int(byte & 15)])
        }
    }
}

extension IdempotencyKey {
    /// The digest is over the request as decoded and written again: spaces and key order do not matter.
    package init(key: String, request: JobRequest) throws {
        self.init(key: key, bodyDigest: Hex.text(SHA256.hash(data: try Wire.encoder().encode(request))))
    }
}
