// A file of a run that says what it is, whose it is, and whether it is whole:
//
//   magic 8 bytes | version u32 | reserved u32 | run fingerprint 32 bytes | header and blocks…
//   SHA-256 of everything before, 32 bytes
//
// Little-endian. A file under its final name is complete (AtomicFile). It is read a piece at a time, for a run
// that reads one back has no memory to spare.
import EdgeFormats

struct ByteWriter {
    private(set) var bytes: [UInt8] = []

    mutating func put(_ value: UInt64) { withUnsafeBytes(of: value.littleEndian) { bytes += $0 } }
}

enum SealedFile {
    /// Read at once.
    private static let pieceBytes = 64 << 10

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
        private var offset = 0
        private let end: Int

        fileprivate init(_ region: ByteRegion, path: String) {
            self.region = region
            self.path = path
            end = region.bytes.count - SHA256.byteCount
        }

        /// Bytes up to the checksum.
        var restBytes: Int { end - offset }

        mutating func next() throws -> UInt64 {
            UInt64(littleEndian: try take(8).withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) })
        }

        /// The next bytes, as many as `target` holds.
        mutating func copy(into target: UnsafeMutableRawBufferPointer) throws {
            guard restBytes >= target.count else { throw CheckpointError.truncated(path: path, bytes: region.bytes.count) }
            guard let base = target.baseAddress else { return }
            try region.read(at: offset, count: target.count, into: base)
            offset += target.count
        }

        fileprivate mutating func take(_ count: Int) throws -> [UInt8] {
            var bytes = [UInt8](repeating: 0, count: count)
            try bytes.withUnsafeMutableBytes { try copy(into: $0) }
            return bytes
        }
    }

    /// - Parameter runFingerprint: nil: any run's.
    /// - Throws: `CheckpointError` unless the file has its checksum, and this magic, version and fingerprint.
    static func withBytes<R>(
        _ path: String, magic: String, version: UInt32, runFingerprint: [UInt8]?, _ body: (inout Reader) throws -> R
    ) throws -> R {
        let region = try ByteRegion.map(path: path)
        let end = region.bytes.count - SHA256.byteCount
        guard end >= 0 else { throw CheckpointError.truncated(path: path, bytes: region.bytes.count) }
        var digest = SHA256()
        var piece = [UInt8](repeating: 0, count: pieceBytes)
        func read(_ range: Range<Int>) throws -> ArraySlice<UInt8> {
            try piece.withUnsafeMutableBytes { try region.read(at: range.lowerBound, count: range.count, into: $0.baseAddress!) }
            return piece[..<range.count]
        }
        for first in stride(from: 0, to: end, by: pieceBytes) {
            try read(first..<min(first + pieceBytes, end)).withUnsafeBytes { digest.update($0) }
        }
        guard digest.finalize().elementsEqual(try read(end..<end + SHA256.byteCount)) else {
            throw CheckpointError.damaged(path: path)
        }
        return try open(region, path, magic, version, runFingerprint, body)
    }

    /// The same without the checksum, which takes reading all of the file.
    static func withUncheckedBytes<R>(
        _ path: String, magic: String, version: UInt32, runFingerprint: [UInt8]?, _ body: (inout Reader) throws -> R
    ) throws -> R {
        try open(try ByteRegion.map(path: path), path, magic, version, runFingerprint, body)
    }

    private static func open<R>(
        _ region: ByteRegion, _ path: String, _ magic: String, _ version: UInt32, _ runFingerprint: [UInt8]?,
        _ body: (inout Reader) throws -> R
    ) throws -> R {
        var reader = Reader(region, path: path)
        guard try reader.take(magic.utf8.count).elementsEqual(magic.utf8) else { throw CheckpointError.damaged(path: path) }
        let foundVersion = UInt32(truncatingIfNeeded: try reader.next())
        guard foundVersion == version else {
            throw CheckpointError.wrongVersion(path: path, found: foundVersion, known: version)
        }
        let found = try reader.take(SHA256.byteCount)
        guard runFingerprint == nil || found == runFingerprint else { throw CheckpointError.otherRun(path: path) }
        return try body(&reader)
    }
}
