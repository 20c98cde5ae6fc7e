// LZ4 frames.
//
// Claims: no frame traps or makes liblz4 read or write outside its buffers; every refusal is an LZ4FrameError; the content is at
// most what the caller allows and 255 times the frame; what was decompressed compresses and comes back.
import EdgeFormats

extension FuzzTarget {
    static let lz4 = FuzzTarget(
        name: "lz4", longestInput: 4096,
        // liblz4's own buffers take up to two blocks of 4 MiB; the round trip takes the content twice.
        heap: HeapClaim(bytesPerByte: 6 * 255, fixedBytes: 10 << 20), errors: [LZ4FrameError.self]
    ) { bytes in
        let content = try LZ4Frame.decompress(bytes, limitBytes: limitBytes)
        try BrokenClaim.unless(content.count <= min(limitBytes, 255 * bytes.count), "\(content.count) bytes of content")
        var pieces = 0
        try LZ4Frame.decompress(bytes, limitBytes: limitBytes) { piece, consumed, _ in pieces += piece.count }
        try BrokenClaim.unless(pieces == content.count, "by pieces \(pieces), as a whole \(content.count)")
        let again = try LZ4Frame.compress(content)
        try BrokenClaim.unless(
            try again.withUnsafeBytes { frame throws(LZ4FrameError) in try LZ4Frame.decompress(frame, limitBytes: limitBytes) }
                == content, "a frame gives back what went in")
    }

    private static let limitBytes = 256 << 10
}
