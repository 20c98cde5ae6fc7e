// Blocks of quantised weights: any bytes are legal blocks.
//
// Claims: no decoder of any kernel set reads or writes outside its operands (AddressSanitizer watches heap blocks of the exact
// size); each gives the portable decoder's values bit for bit, NaN for NaN; no operation is undefined (UBSan). Nothing is allocated by a decoder.
import CEdgeKernels

extension FuzzTarget {
    /// A byte that chooses the format, one that chooses where decoding begins, one that chooses how much, and blocks.
    static let blocks = FuzzTarget(
        name: "blocks", longestInput: 1024, heap: HeapClaim(bytesPerByte: 64, fixedBytes: 64 << 10), errors: []
    ) { bytes in
        guard bytes.count > 3 else { return }
        let format = Int(bytes[0]) % Int(EDGE_FORMAT_COUNT.rawValue)
        let entry = edge_quant_format(edge_format(UInt32(format)))!.pointee
        let blocks = (bytes.count - 3) / Int(entry.block_bytes)
        guard blocks > 0 else { return }
        let unit = Int(entry.unit_elements), units = blocks * Int(entry.block_elements) / unit
        let first = Int(bytes[1]) % units, count = 1 + Int(bytes[2]) % (units - first)
        // Exactly as long as the blocks.
        let source = UnsafeMutableRawBufferPointer.allocate(byteCount: blocks * Int(entry.block_bytes), alignment: 1)
        let portable = UnsafeMutableBufferPointer<Float>.allocate(capacity: count * unit)
        let values = UnsafeMutableBufferPointer<Float>.allocate(capacity: count * unit)
        defer {
            source.deallocate()
            portable.deallocate()
            values.deallocate()
        }
        source.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[3..<3 + source.count]))
        for (set, name) in KernelSets.decoders[format] {
            let target = name == "portable" ? portable : values
            set(source.baseAddress, first * unit, target.baseAddress, count * unit)
            guard name != "portable" else { continue }
            for index in portable.indices {
                let (expected, found) = (portable[index], values[index])
                try BrokenClaim.unless(
                    expected.bitPattern == found.bitPattern || (expected.isNaN && found.isNaN),
                    "\(String(cString: entry.name)) of \(name): value \(index) is \(found), portable \(expected)")
            }
        }
    }
}

private enum KernelSets {
    typealias Decode = @convention(c) (UnsafeRawPointer?, Int, UnsafeMutablePointer<Float>?, Int) -> Void

    /// By format, of the sets that this processor runs, the portable one first.
    static let decoders: [[(Decode, String)]] = {
        var byFormat = [[(Decode, String)]](repeating: [], count: Int(EDGE_FORMAT_COUNT.rawValue))
        for index in 0..<edge_kernel_set_count() where edge_kernel_set_supported(index) {
            var set = edge_kernel_set()
            edge_kernel_set_fill(index, &set)
            withUnsafeBytes(of: &set.decode) { bytes in
                let functions = bytes.bindMemory(to: Optional<Decode>.self)
                for format in byFormat.indices {
                    byFormat[format].append((functions[format]!, String(cString: edge_kernel_set_name(index))))
                }
            }
        }
        return byFormat
    }()
}
