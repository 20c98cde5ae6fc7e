// Writes a GGUF file whose values are at hand; where they lie is GGUFLayout's.

package struct GGUFWriter: Sendable {
    private var layout = GGUFLayout()
    private var bodies: [TensorBody] = []

    package init() {}

    package mutating func add(_ key: String, _ value: GGUFNewValue) throws(GGUFError) {
        try layout.add(key, value)
    }

    /// - Parameter shape: outermost dimension first, 1 to 4 positive dimensions.
    /// - Throws: `GGUFError`; the writer is of no use then.
    package mutating func addTensor(
        _ name: String, shape: [Int], type: GGMLType, body: TensorBody
    ) throws(GGUFError) {
        let needed = try layout.addTensor(name, shape: shape, type: type)
        guard body.byteCount == needed else {
            throw .wrongByteCount(tensor: name, needed: needed, given: body.byteCount)
        }
        bodies.append(body)
    }

    /// Hands the file to `sink` in order, piece by piece; tensor bodies are not copied.
    package func write(to sink: (UnsafeRawBufferPointer) throws -> Void) throws {
        try layout.writeHeader(to: sink)
        for body in bodies {
            try body.write(to: sink)
            try layout.writePadding(after: body.byteCount, to: sink)
        }
    }

    package func encoded() throws -> [UInt8] {
        var bytes: [UInt8] = []
        try write { bytes.append(contentsOf: $0) }
        return bytes
    }
}
