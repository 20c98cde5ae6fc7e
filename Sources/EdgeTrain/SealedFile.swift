// A file of a run that says what it is, whose it is, and whether it is whole:
//
//   magic 8 bytes | version u32 | reserved u32 | run fingerprint 32 bytes | header and blocks…
//   SHA-256 of everything before, 32 bytes
//
// Little-endian. A file under its final name is complete (AtomicFile). It is read through a mapping, a piece at
// a time.
import EdgeFormats

struct ByteWriter {
    private(set) var bytes: [UInt8] = []

    mutating func put(_ value: UInt64) { withUnsafeBytes(of: value.littleEndian) { bytes += $0 } }
}

enum SealedFile {
    /// Read at once.
    private static let pieceBytes = 1 << 20

    static func write(
        to path: String, magic: String, version: UInt32, runFingerprint: [UInt8], header: [UInt8],
        _ blocks: [UnsafeRawBufferPointer]
    ) throws {
        var start = ByteWriter()
        start.put(UInt64(version))  // version in the low half, reserved zero in the high half
        try AtomicFile.write(to: path) { file in
            var digest = SHA256()
            func put(_ bytes: UnsafeRawBufferPointer) throws {
                digest.update(bytes)
                try file.write(bytes)
            }
            try (Array(magic.utf8) + start.bytes + runFingerprint + header).withUnsafeBytes(put)
            for block in blocks { try put(block) }
            try file.write(digest.finalize())
        }
    }

    /// Reads on from the header.
    struct Reader {
        let path: String
        fileprivate let region: ByteRegion
        fileprivate let fileBytes: Int
        fileprivate(set) var rest: UnsafeRawBufferPointer

        mutating func next() throws -> UInt64 {
            UInt64(littleEndian: try take(8).loadUnaligned(as: UInt64.self))
        }

        /// Copies the next bytes, as many as `target` holds, and lets go of their pages: the plan has no room for both.
        mutating func copy(into target: UnsafeMutableRawBufferPointer) throws {
            for first in stride(from: 0, to: target.count, by: SealedFile.pieceBytes) {
                let piece = try take(min(SealedFile.pieceBytes, target.count - first))
                UnsafeMutableRawBufferPointer(rebasing: target[first..<first + piece.count]).copyMemory(from: piece)
                region.release(0..<fileBytes - rest.count - SHA256.byteCount)
            }
        }

        fileprivate mutating func take(_ count: Int) throws -> UnsafeRawBufferPointer {
            guard rest.count >= count else { throw CheckpointError.truncated(path: path, bytes: fileBytes) }
            defer { rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(count)) }
            return UnsafeRawBufferPointer(rebasing: rest.prefix(count))
        }
    }

    /// - Throws: `CheckpointError` unless the file has its checksum, and this magic, version and fingerprint.
    static func withBytes<R>(
        _ path: String, magic: String, version: UInt32, runFingerprint: [UInt8], _ body: (inout Reader) throws -> R
    ) throws -> R {
        let region = try ByteRegion.map(path: path)
        return try region.withBytes { bytes in
            let end = bytes.count - SHA256.byteCount
            guard end >= 0 else { throw CheckpointError.truncated(path: path, bytes: bytes.count) }
            var digest = SHA256()
            for first in stride(from: 0, to: end, by: pieceBytes) {
                digest.update(UnsafeRawBufferPointer(rebasing: bytes[first..<min(first + pieceBytes, end)]))
                region.release(0..<first)
            }
            guard digest.finalize() == Array(bytes[end...]) else { throw CheckpointError.damaged(path: path) }
            return try read(region, path, magic, version, runFingerprint, body)
        }
    }

    /// The same without the checksum, which takes reading all of the file.
    static func withUncheckedBytes<R>(
        _ path: String, magic: String, version: UInt32, runFingerprint: [UInt8], _ body: (inout Reader) throws -> R
    ) throws -> R {
        try read(try ByteRegion.map(path: path), path, magic, version, runFingerprint, body)
    }

    private static func read<R>(
        _ region: ByteRegion, _ path: String, _ magic: String, _ version: UInt32, _ runFingerprint: [UInt8],
        _ body: (inout Reader) throws -> R
    ) throws -> R {
        defer { withExtendedLifetime(region) {} }
        var reader = Reader(
            path: path, region: region, fileBytes: region.bytes.count,
            rest: UnsafeRawBufferPointer(rebasing: region.bytes.dropLast(SHA256.byteCount)))
        guard try reader.take(magic.utf8.count).elementsEqual(magic.utf8) else { throw CheckpointError.damaged(path: path) }
        let found = UInt32(truncatingIfNeeded: try reader.next())
        guard found == version else { throw CheckpointError.wrongVersion(path: path, found: found, known: version) }
        guard try reader.take(SHA256.byteCount).elementsEqual(runFingerprint) else {
            throw CheckpointError.otherRun(path: path)
        }
        return try body(&reader)
    }
}
