// Claims: whatever interrupts a writer, the next one ends with the same bytes; it goes on from a mark only when all bytes up to it are
// what they were; under its final name a file is complete.
import EdgeFormats
import Glibc
import Testing

struct ResumableFileTests {
    private static let identity = [UInt8](repeating: 7, count: 32)
    private static let pieces = (0..<20).map { piece in (0..<1000).map { UInt8(truncatingIfNeeded: $0 * 31 + piece) } }

    private static func open(_ path: String, _ identity: [UInt8] = identity) throws -> ResumableFile {
        try ResumableFile(path, identity: identity, markBytes: 2500)
    }

    /// Writes pieces from where the file is, up to `end`; returns where that was.
    @discardableResult
    private static func write(_ file: ResumableFile, upTo end: Int = 20) throws -> Int {
        let first = file.offset / 1000
        for piece in pieces[first..<end] {
            try piece.withUnsafeBytes { try file.write($0) }
            try file.mark()
        }
        return first
    }

    @Test("every interruption goes on from the last mark and ends with the same bytes")
    func interruptions() throws {
        for stop in 0...20 {
            let scratch = try ScratchDirectory(), path = scratch.path + "/f"
            try Self.write(Self.open(path), upTo: stop)
            let again = try Self.open(path)
            // A mark at every third piece.
            #expect(try Self.write(again) == stop / 3 * 3)
            #expect(try scratch.names() == ["f.part", "f.part-sums"])
            try again.publish()
            #expect(try scratch.read("f") == Self.pieces.flatMap { $0 })
            #expect(try scratch.names() == ["f"])
        }
    }

    @Test("a changed byte, and whatever comes after it, is written again")
    func damage() throws {
        for at in [0, 2999, 3000, 7500, 17_999, 18_500] {
            let scratch = try ScratchDirectory(), path = scratch.path + "/f"
            try Self.write(Self.open(path), upTo: 19)
            var bytes = try scratch.read("f.part")
            bytes[at] ^= 1
            try AtomicFile.write(to: path + ".part", bytes)
            let again = try Self.open(path)
            #expect(try Self.write(again) == min(at / 3000, 6) * 3)
            try again.publish()
            #expect(try scratch.read("f") == Self.pieces.flatMap { $0 })
        }
    }

    @Test("a lost end of either file costs the marks that it held")
    func truncation() throws {
        for (name, length, expected) in [
            ("f.part", 0, 0), ("f.part", 2999, 0), ("f.part", 3000, 3), ("f.part", 11_000, 9), ("f.part-sums", 0, 0),
            ("f.part-sums", 31, 0), ("f.part-sums", 32, 0), ("f.part-sums", 71, 0), ("f.part-sums", 72, 3),
            ("f.part-sums", 32 + 40 * 5 + 39, 15),
        ] {
            let scratch = try ScratchDirectory(), path = scratch.path + "/f"
            try Self.write(Self.open(path), upTo: 19)
            #expect(truncate(scratch.path + "/" + name, off_t(length)) == 0)
            let again = try Self.open(path)
            #expect(try Self.write(again) == expected, "\(name) \(length)")
            try again.publish()
            #expect(try scratch.read("f") == Self.pieces.flatMap { $0 })
        }
    }

    @Test("what was begun with another identity is thrown away")
    func identities() throws {
        let scratch = try ScratchDirectory(), path = scratch.path + "/f"
        try Self.write(Self.open(path), upTo: 19)
        #expect(try Self.open(path, [UInt8](repeating: 8, count: 32)).offset == 0)
        #expect(try Self.open(path).offset == 0)
    }

    @Test("two writers of one file exclude each other")
    func lock() throws {
        let scratch = try ScratchDirectory(), path = scratch.path + "/f"
        let file = try Self.open(path)
        #expect(throws: FileError(operation: "flock", path: path + ".part", errno: EWOULDBLOCK)) { try Self.open(path) }
        #expect(try Self.write(file, upTo: 1) == 0)
    }

    @Test("a link where the unfinished file should be is not followed")
    func links() throws {
        let scratch = try ScratchDirectory(), path = scratch.path + "/f"
        try AtomicFile.write(to: scratch.path + "/elsewhere", [1])
        #expect(symlink(scratch.path + "/elsewhere", path + ".part") == 0)
        #expect(throws: FileError(operation: "open", path: path + ".part", errno: ELOOP)) { try Self.open(path) }
        #expect(try scratch.read("elsewhere") == [1])
    }

    @Test("what is discarded is gone, and nothing else")
    func discard() throws {
        let scratch = try ScratchDirectory(), path = scratch.path + "/f"
        try AtomicFile.write(to: path, [1])
        try Self.write(Self.open(path), upTo: 5)
        try ResumableFile.discard(path)
        try ResumableFile.discard(path)
        #expect(try scratch.names() == ["f"])
    }
}
