// A local file to a blob of the daemon: digest first, then the pieces that it does not have yet.
import Crypto
import EdgeWire
import Foundation
import Glibc
import NIOCore
import NIOHTTP1

/// Bytes that can be read twice: once for their digest, once to be sent.
protocol UploadSource {
    var name: String { get }
    var bytes: UInt64 { get }
    func read(at offset: UInt64, count: Int) throws -> ByteBuffer
}

/// A small file that is in memory.
struct MemoryFile: UploadSource {
    let name: String
    let content: ByteBuffer
    var bytes: UInt64 { UInt64(content.readableBytes) }

    func read(at offset: UInt64, count: Int) throws -> ByteBuffer {
        guard let piece = content.getSlice(at: content.readerIndex + Int(offset), length: count) else {
            throw CommandFailure(.failure, "\(name) has no bytes \(offset) to \(offset + UInt64(count))")
        }
        return piece
    }
}

/// A regular file opened once: the bytes that were hashed are the bytes that are sent.
final class LocalFile: UploadSource {
    let path: String
    let bytes: UInt64
    private let descriptor: Int32

    /// Nil when there is no regular file at `path`.
    init?(path: String) throws {
        var status = stat()
        guard stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return nil }
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw CommandFailure(.permission, "cannot read \(path): \(String(cString: strerror(errno)))")
        }
        self.path = path
        self.descriptor = descriptor
        bytes = UInt64(status.st_size)
    }

    deinit { close(descriptor) }

    var name: String { String(path.split(separator: "/").last ?? "") }

    func read(at offset: UInt64, count: Int) throws -> ByteBuffer {
        var buffer = ByteBuffer()
        buffer.reserveCapacity(count)
        while buffer.readableBytes < count {
            let start = off_t(offset) + off_t(buffer.readableBytes)
            let missing = count - buffer.readableBytes
            let received = buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: missing) { space in
                max(0, pread(descriptor, space.baseAddress, missing, start))
            }
            guard received > 0 else { throw CommandFailure(.failure, "\(path) became shorter while it was read") }
        }
        return buffer
    }
}

extension UploadSource {
    /// `sha256:` and 64 hex digits.
    func digest(progress: (UInt64) -> Void) throws -> String {
        var hash = SHA256()
        var offset: UInt64 = 0
        while offset < bytes {
            let piece = try read(at: offset, count: Int(min(UInt64(BlobUpload.pieceBytes), bytes - offset)))
            piece.withUnsafeReadableBytes { hash.update(bufferPointer: $0) }
            offset += UInt64(piece.readableBytes)
            progress(offset)
        }
        return "sha256:" + HexText.of(hash.finalize())
    }
}

enum HexText {
    static func of(_ bytes: some Sequence<UInt8>) -> String {
        bytes.reduce(into: "") { text, byte in text += (byte < 16 ? "0" : "") + String(byte, radix: 16) }
    }
}

enum BlobUpload {
    static let pieceBytes = 4 << 20
    /// Lost connections in a row, without a byte arriving between them, after which the upload is given up.
    static let fruitlessTries = 8

    /// Returns the blob's digest once the daemon has all of it.
    static func send(_ file: LocalFile, to client: DaemonClient) async throws -> String {
        let digest = try digest(of: file)
        try await send(file, as: digest, to: client)
        return digest
    }

    /// Reads the whole file.
    static func digest(of file: LocalFile) throws -> String {
        guard file.bytes > 0 else { throw CommandFailure(.usage, "\(file.path) is empty") }
        guard file.bytes <= WireLimit.blobBytes else {
            throw CommandFailure(.usage, "\(file.path) is over \(Amount.bytes(WireLimit.blobBytes))")
        }
        let line = StatusLine()
        defer { line.clear() }
        return try file.digest { offset in
            line.draw("reading \(TerminalFilter.line(file.name)) " + Amount.bytes(offset, of: file.bytes))
        }
    }

    static func send(_ file: some UploadSource, as digest: String, to client: DaemonClient) async throws {
        let line = StatusLine()
        defer { line.clear() }
        var held = try await status(of: digest, on: client)
        var fruitless = 0
        // All bytes there and not complete: the daemon went away before it had verified them.
        while held.receivedBytes < file.bytes || !held.complete {
            let received = held.receivedBytes
            line.draw(ProgressLine.transfer("upload", file.name, done: received, of: file.bytes, width: line.width))
            let piece = try file.read(at: received, count: Int(min(UInt64(pieceBytes), file.bytes - received)))
            do {
                held = try await patch(digest, piece, at: received, of: file.bytes, on: client)
            } catch {
                guard error.isConnectionLoss || error.isOffsetConflict else { throw error }
                held = try await client.repeated { () async throws(DaemonError) in
                    try await status(of: digest, on: client)
                }
            }
            fruitless = held.receivedBytes > received ? 0 : fruitless + 1
            guard fruitless < fruitlessTries else {
                throw CommandFailure(
                    .unreachable,
                    "the upload of \(file.name) stopped at \(Amount.bytes(held.receivedBytes, of: file.bytes))",
                    hint: "the same command goes on from there")
            }
        }
    }

    static func status(of digest: String, on client: DaemonClient) async throws(DaemonError) -> BlobStatus {
        do {
            return try await client.get(BlobStatus.self, Endpoint.blob(digest))
        } catch .problem(let problem) where problem.kind == .notFound {
            return BlobStatus(digest: digest, receivedBytes: 0, complete: false)
        }
    }

    /// What the daemon has afterwards.
    static func patch(
        _ digest: String, _ piece: ByteBuffer, at offset: UInt64, of whole: UInt64, on client: DaemonClient
    ) async throws(DaemonError) -> BlobStatus {
        let call = Call(
            method: .PATCH, path: Endpoint.blob(digest),
            headers: [
                (Header.uploadOffset, "\(offset)"), (Header.uploadLength, "\(whole)"),
                ("Content-Type", "application/octet-stream"),
            ], body: piece, idleSeconds: 300)
        let answer = try await client.collect(call)
        return try client.decode(BlobStatus.self, answer)
    }
}

extension DaemonError {
    /// The daemon has another number of bytes than this client thought: ask it and go on from there.
    var isOffsetConflict: Bool {
        if case .problem(let problem) = self { problem.kind == .conflict } else { false }
    }
}

/// Names for what is uploaded.
enum ResourceName {
    /// The file's name without its last extension, in the characters that a name may have.
    static func stem(of fileName: String) -> String {
        allowed(fileName.lastIndex(of: ".").map { String(fileName[..<$0]) } ?? fileName)
    }

    /// The nearest name that is allowed.
    static func allowed(_ base: String) -> String {
        var name = String(base.map { $0.isASCII && ($0.isLetter || $0.isNumber || "._-".contains($0)) ? $0 : "-" })
        while name.first == "." || name.first == "-" { name.removeFirst() }
        name = String(name.prefix(55))
        return name.isEmpty ? "file" : name
    }

    /// `train-1a2b3c4d`: the stem and the first 8 digits of the content's digest.
    static func unique(_ fileName: String, digest: String) -> String {
        "\(stem(of: fileName))-\(digest.dropFirst("sha256:".count).prefix(8))"
    }
}
