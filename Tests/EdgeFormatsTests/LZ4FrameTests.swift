// Claims: what is compressed comes back; no prefix and no mutation of a frame traps, passes its checksum with other
// content, or decodes past the caller's limit.
import EdgeFormats
import Testing

struct LZ4FrameTests {
    private static let content = (0..<300_000).map { UInt8(truncatingIfNeeded: ($0 * $0) >> 7) }

    private static func decompress(_ frame: [UInt8], limitBytes: Int = 1 << 20) throws -> [UInt8] {
        try frame.withUnsafeBytes { try LZ4Frame.decompress($0, limitBytes: limitBytes) }
    }

    @Test(arguments: [0, 1, 1000, 262_144, 262_145, 300_000])
    func contentComesBack(count: Int) throws {
        let content = Array(Self.content[..<count])
        #expect(try Self.decompress(LZ4Frame.compress(content)) == content)
    }

    @Test func piecesDoNotChangeTheFrame() throws {
        var frame: [UInt8] = []
        try LZ4Frame.compress(contentBytes: Self.content.count, to: { frame.append(contentsOf: $0) }) { write in
            for start in stride(from: 0, to: Self.content.count, by: 777) {
                try Array(Self.content[start..<min(start + 777, Self.content.count)]).withUnsafeBytes(write)
            }
        }
        #expect(try Self.decompress(frame) == Self.content)
        #expect(try frame == LZ4Frame.compress(Self.content))
    }

    @Test func everyTruncationIsTyped() throws {
        let frame = try LZ4Frame.compress(Array(Self.content[..<500]))
        for count in 0..<frame.count {
            #expect(throws: LZ4FrameError.truncated(bytes: count)) { try Self.decompress(Array(frame[..<count])) }
        }
    }

    @Test func damageIsNamed() throws {
        var frame = try LZ4Frame.compress([1, 2, 3])
        #expect(throws: LZ4FrameError.trailingBytes(count: 1)) { try Self.decompress(frame + [0]) }
        frame[frame.count - 1] ^= 1
        #expect(throws: LZ4FrameError.contentChecksum) { try Self.decompress(frame) }
        frame[0] ^= 1
        #expect(throws: LZ4FrameError.notAFrame) { try Self.decompress(frame) }
    }

    @Test func theLimitHolds() throws {
        let frame = try LZ4Frame.compress([UInt8](repeating: 7, count: 1001))
        #expect(throws: LZ4FrameError.tooLarge(declaredBytes: 1001, limitBytes: 1000)) {
            try Self.decompress(frame, limitBytes: 1000)
        }
        #expect(try Self.decompress(frame, limitBytes: 1001).count == 1001)
    }

    @Test func announcedSizeMustBeGiven() {
        #expect(throws: LZ4FrameError.wrongContentSize(announced: 5, given: 3)) {
            try LZ4Frame.compress(contentBytes: 5, to: { _ in }) { write in
                try ([1, 2, 3] as [UInt8]).withUnsafeBytes(write)
            }
        }
    }

    @Test func mutationsNeverDecodeToOtherContent() throws {
        let content = Array(Self.content[..<2000])
        let frame = try LZ4Frame.compress(content)
        let seed: UInt64 = 0x1F4
        var mutator = Mutator(seed: seed)
        for round in 0..<20_000 {
            let mutant = mutator.mutate(frame)
            guard let decoded = try? Self.decompress(mutant, limitBytes: 4096) else { continue }
            // The bits that a mutation may change unseen: none. xxh32 misses one in 2^32.
            #expect(decoded == content, "seed \(seed) round \(round)")
        }
    }
}
