// Bugs that are planted, one of each kind that the harness claims to find. `run canary` fails unless it finds them all.
import CEdgeKernels
import EdgeFormats

extension FuzzTarget {
    static let canaries: [FuzzTarget] = [
        // A trap behind a whole GGUF header of the older version, which no seed is.
        canary("canary-trap") { bytes in
            let file = try GGUFFile(ByteRegion.copy(of: Array(bytes)))
            precondition(file.version != 2, "planted")
        },
        // An error that no caller knows.
        canary("canary-error") { bytes in
            if bytes.starts(with: "no".utf8) { throw BrokenClaim(claim: "planted") }
        },
        // Memory by what the input says, not by what it is.
        canary("canary-memory") { bytes in
            if bytes.count >= 4, bytes[1] == 7 { _ = [UInt8](repeating: 1, count: Int(bytes[0]) << 16) }
        },
        // A decoder that is asked for one block more than there is: AddressSanitizer in the C kernels.
        canary("canary-overread") { bytes in
            guard bytes.count >= 34, bytes[0] & 15 == 9 else { return }
            let block = UnsafeMutableRawBufferPointer.allocate(byteCount: 34, alignment: 1)
            block.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[..<34]))
            defer { block.deallocate() }
            let values = UnsafeMutableBufferPointer<Float>.allocate(capacity: 64)
            defer { values.deallocate() }
            edge_quant_format(EDGE_FORMAT_q8_0)!.pointee.decode(block.baseAddress, 0, values.baseAddress, 64)
        },
        // An input that the time is not linear in.
        canary("canary-time") { bytes in
            guard bytes.count > 16, bytes[0] == UInt8(ascii: "t") else { return }
            var sum: UInt64 = 0
            for step in 0..<UInt64.max { sum = sum &* 31 &+ step ^ UInt64(bytes[Int(step % 16)]) }
            try BrokenClaim.unless(sum != 0, "planted")
        },
    ]

    private static func canary(
        _ name: String, _ read: @escaping @Sendable (UnsafeRawBufferPointer) throws -> Void
    ) -> FuzzTarget {
        FuzzTarget(
            name: name, longestInput: 1024, heap: HeapClaim(bytesPerByte: 64, fixedBytes: 64 << 10), seconds: 2,
            errors: [GGUFError.self], read: read)
    }
}
