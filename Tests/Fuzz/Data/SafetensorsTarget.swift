// safetensors files.
//
// Claims: no byte sequence traps or reads outside the file; every refusal is a SafetensorsError; the tensors of a file that
// opens fill it without gap or overlap; the heap holds at most 96 bytes for each byte of the file; time is linear.
import EdgeFormats

extension FuzzTarget {
    static let safetensors = FuzzTarget(
        name: "safetensors", longestInput: 4096, heap: HeapClaim(bytesPerByte: 96, fixedBytes: 64 << 10),
        errors: [SafetensorsError.self]
    ) { bytes in
        let file = try SafetensorsFile(ByteRegion.copy(of: Array(bytes)))
        var end = file.tensors.first?.range.lowerBound ?? bytes.count
        for tensor in file.tensors {
            try BrokenClaim.unless(tensor.range.lowerBound == end, "\(tensor.name) begins at \(tensor.range.lowerBound), not \(end)")
            end = tensor.range.upperBound
            try BrokenClaim.unless(tensor.withBytes { $0.count } == tensor.range.count, "\(tensor.name) has its bytes")
            if let values = tensor.floats() {
                try BrokenClaim.unless(values.count * tensor.dtype.byteCount == tensor.range.count, "\(tensor.name) has its values")
            }
            try BrokenClaim.unless(file.tensor(named: tensor.name)?.range == tensor.range, "found by its name")
        }
        try BrokenClaim.unless(end == bytes.count, "the tensors end at \(end) of \(bytes.count)")
    }
}
