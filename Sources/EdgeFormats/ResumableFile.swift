// A large file that is written front to back and survives interruptions: `<path>.part` until it is complete, and beside it
//
//   <path>.part-sums   identity, 32 bytes | per mark: end u64, SHA-256 of the bytes since the mark before, 32 bytes
//
// Little-endian. Bytes are on the disk before the mark that vouches for them is written; who goes on reads them back and
// compares. Under its final name the file is complete.
import Glibc

package final class ResumableFile {
    private static let identityBytes = SHA256.byteCount
    private static let recordBytes = 8 + SHA256.byteCount
    /// A mark costs an fsync, and without it as much has to be written again.
    package static let usualMarkBytes = 32 << 20
    /// Read at once while verifying.
    private static let pieceBytes = 64 << 10

    private let path: String
    private let markBytes: Int
    private let file: FileWriter
    private let sums: FileWriter
    /// Of the bytes since the last mark.
    private var digest = SHA256()
    private var markedBytes: Int
    /// Where `write` goes on: at first 0, or the last mark that holds.
    package private(set) var offset: Int

    package static func partPath(of path: String) -> String { path + ".part" }
    package static func sumsPath(of path: String) -> String { path + ".part-sums" }

    /// Begins the file, or goes on with one of the same identity.
    ///
    /// - Parameters:
    ///   - identity: 32 bytes that say what will be written; what was begun with others is thrown away.
    ///   - markBytes: at least so much lies between two marks.
    /// - Throws: `FileError`; with EWOULDBLOCK when somebody else is writing the same file.
    package init(_ path: String, identity: [UInt8], markBytes: Int = usualMarkBytes) throws {
        precondition(identity.count == Self.identityBytes)
        self.path = path
        self.markBytes = markBytes
        file = try FileWriter(continuing: Self.partPath(of: path))
        try file.lock()
        sums = try FileWriter(continuing: Self.sumsPath(of: path))
        let marks = try Self.verifiedMarks(of: path, identity)
        offset = marks.last ?? 0
        markedBytes = offset
        try file.truncate(to: offset)
        if marks.isEmpty {
            try sums.truncate(to: 0)
            try sums.write(identity)
        } else {
            try sums.truncate(to: Self.identityBytes + marks.count * Self.recordBytes)
        }
    }

    package func write(_ bytes: UnsafeRawBufferPointer) throws {
        try file.write(bytes)
        digest.update(bytes)
        offset += bytes.count
    }

    /// Writing could go on from here. Not every such place is remembered.
    package func mark() throws {
        guard offset - markedBytes >= markBytes else { return }
        try file.sync()
        let finished = digest
        digest = SHA256()
        // Not synced: a lost record means some bytes again, and one that is torn does not hold.
        try sums.write(withUnsafeBytes(of: UInt64(offset).littleEndian) { Array($0) } + finished.finalize())
        markedBytes = offset
    }

    /// The file is complete and gets its name. Nothing may be written after this.
    package func publish() throws(FileError) {
        try file.sync()
        let part = Self.partPath(of: path)
        guard rename(part, path) == 0 else { throw FileError(operation: "rename", path: path, errno: errno) }
        try syncDirectory(parent(of: path))
        try Self.remove(Self.sumsPath(of: path))
    }

    /// Removes what an interrupted writer of `path` has left, if there is anything.
    package static func discard(_ path: String) throws(FileError) {
        try remove(partPath(of: path))
        try remove(sumsPath(of: path))
    }

    private static func remove(_ path: String) throws(FileError) {
        guard unlink(path) == 0 || errno == ENOENT else { throw FileError(operation: "unlink", path: path, errno: errno) }
    }

    /// Ends of the marks up to the first that does not hold.
    private static func verifiedMarks(of path: String, _ identity: [UInt8]) throws(FileError) -> [Int] {
        let sums = try ByteRegion.map(path: sumsPath(of: path)).withBytes { Array($0) }
        let part = try ByteRegion.map(path: partPath(of: path))
        guard sums.starts(with: identity) else { return [] }
        let piece = UnsafeMutableRawPointer.allocate(byteCount: pieceBytes, alignment: 16)
        defer { piece.deallocate() }
        var marks: [Int] = []
        for record in stride(from: identityBytes, through: sums.count - recordBytes, by: recordBytes) {
            let begin = marks.last ?? 0
            let end = sums.withUnsafeBytes {
                Int(clamping: UInt64(littleEndian: $0.loadUnaligned(fromByteOffset: record, as: UInt64.self)))
            }
            guard begin < end, end <= part.bytes.count else { break }
            var digest = SHA256()
            for first in stride(from: begin, to: end, by: pieceBytes) {
                let count = min(pieceBytes, end - first)
                try part.read(at: first, count: count, into: piece)
                digest.update(UnsafeRawBufferPointer(start: piece, count: count))
            }
            guard sums[record + 8..<record + recordBytes].elementsEqual(digest.finalize()) else { break }
            marks.append(end)
        }
        return marks
    }
}
