// GGUF files: the header, and everything that it leads to.
//
// Claims: no byte sequence traps or reads outside the file; every refusal is a GGUFError; each tensor lies inside the file
// and none overlaps another; the heap holds at most 32 bytes for each byte of the file; time is linear.
import EdgeFormats
import EdgeModel
import EdgeTensor

extension FuzzTarget {
    static let gguf = FuzzTarget(
        name: "gguf", longestInput: 4096, heap: HeapClaim(bytesPerByte: 32, fixedBytes: 64 << 10), errors: [GGUFError.self]
    ) { bytes in
        let file = try GGUFFile(ByteRegion.copy(of: Array(bytes)))
        try BrokenClaim.unless(file.fingerprint.utf8.count == 7 + 64, "a fingerprint is a SHA-256")
        try BrokenClaim.unless(file.metadataBytes <= bytes.count, "metadata lie inside the file")
        for (index, key) in file.metadataKeys.enumerated() {
            let value = file.metadata[key]!
            // One of them fits; the others must say so without a trap.
            let found: [Any?] = [
                value.integer, value.float, value.bool, value.string, value.stringBytes, value.integerArray, value.floatArray,
                value.boolArray, value.stringArray, value.stringBytesArray,
            ]
            // A string is its bytes too, and an array of nothing is one of anything.
            try BrokenClaim.unless(
                value.count == 0 || found.count { $0 != nil } <= 2, "a value of type \(value.typeName) is one thing")
            try BrokenClaim.unless(
                file.withEncodedKeyValue(index) { $0.count > key.utf8.count }, "a key and its value are in the file")
        }
        var end = 0
        for tensor in file.tensors.sorted(by: { $0.fileOffset < $1.fileOffset }) {
            try BrokenClaim.unless(tensor.fileOffset >= end, "\(tensor.name) overlaps another")
            end = tensor.fileOffset + tensor.byteCount
            try BrokenClaim.unless(end <= bytes.count, "\(tensor.name) ends at \(end)")
            let edges = tensor.withBytes { [$0.first, $0.last] }
            try BrokenClaim.unless(edges.allSatisfy { $0 != nil }, "\(tensor.name) has bytes")
            try BrokenClaim.unless(file.tensor(named: tensor.name)?.fileOffset == tensor.fileOffset, "found by its name")
        }
    }

    /// A GGUF file as a model. Beyond the claims of `gguf`: refusals are ModelError or GGUFError, and a model that opens has
    /// each of its layers.
    static let model = FuzzTarget(
        name: "model", longestInput: 8192, heap: HeapClaim(bytesPerByte: 64, fixedBytes: 256 << 10),
        errors: [GGUFError.self, ModelError.self]
    ) { bytes in
        let model = try BaseModel.open(path: ScratchDirectory.save(Array(bytes), to: "model.gguf"))
        try BrokenClaim.unless(model.layers.count == model.spec.layerCount, "each layer has weights")
        try BrokenClaim.unless(!model.quantisation.isEmpty && model.parameterCount > 0, "a model has parameters")
        for range in model.attentionRanges.joined() {
            try BrokenClaim.unless(range.upperBound <= bytes.count, "\(range) is outside the file")
        }
        let spec = model.spec
        for module in [LinearModule.query, .key] {
            let order = spec.ggufRowOrder(module) ?? []
            try BrokenClaim.unless(Set(order).count == order.count, "an order of rows is a permutation")
        }
    }
}
