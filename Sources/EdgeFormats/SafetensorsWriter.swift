// safetensors files, written: the bytes of the Rust library, except that `__metadata__` is sorted, whose order there is a hash map's.

/// A file to be written, without the values of its tensors: its header, and the order in which they follow it.
package struct SafetensorsLayout: Sendable {
    package struct Tensor: Equatable, Sendable {
        package let name: String
        package let dtype: SafetensorsDType
        package let shape: [Int]
        package var byteCount: Int { shape.reduce(dtype.byteCount, *) }
    }

    private let metadata: [String: String]
    private var added: [String: Tensor] = [:]

    package init(metadata: [String: String]) { self.metadata = metadata }

    package mutating func add(_ name: String, dtype: SafetensorsDType, shape: [Int]) throws(SafetensorsError) {
        guard added.updateValue(Tensor(name: name, dtype: dtype, shape: shape), forKey: name) == nil else {
            throw .duplicateTensor(name)
        }
    }

    /// In the file's order. serialize() in safetensors' tensor.rs: dtype descending, then name by bytes.
    package var tensors: [Tensor] {
        added.values.sorted {
            $0.dtype == $1.dtype
                ? $0.name.utf8.lexicographicallyPrecedes($1.name.utf8) : $0.dtype.rank > $1.dtype.rank
        }
    }

    /// Of the whole file.
    package var fileBytes: Int { added.values.reduce(header().count) { $0 + $1.byteCount } }

    /// The length field, the JSON and its padding.
    package func header() -> [UInt8] {
        var members: [String] = []
        if !metadata.isEmpty {
            let entries = metadata.sorted { $0.key.utf8.lexicographicallyPrecedes($1.key.utf8) }
                .map { JSONText.quoted($0.key, .required) + ":" + JSONText.quoted($0.value, .required) }
            members.append("\"__metadata__\":{" + entries.joined(separator: ",") + "}")
        }
        var offset = 0
        for tensor in tensors {
            let end = offset + tensor.byteCount
            let shape = tensor.shape.map(String.init).joined(separator: ",")
            let dtype = JSONText.quoted(tensor.dtype.rawValue, .required)
            members.append(
                JSONText.quoted(tensor.name, .required)
                    + ":{\"dtype\":\(dtype),\"shape\":[\(shape)],\"data_offsets\":[\(offset),\(end)]}")
            offset = end
        }
        var json = Array(("{" + members.joined(separator: ",") + "}").utf8)
        while json.count % 8 != 0 { json.append(UInt8(ascii: " ")) }
        return withUnsafeBytes(of: UInt64(json.count).littleEndian) { Array($0) } + json
    }
}

/// A file whose values are at hand.
package struct SafetensorsWriter: Sendable {
    private var layout: SafetensorsLayout
    private var bodies: [String: TensorBody] = [:]

    package init(metadata: [String: String]) { layout = SafetensorsLayout(metadata: metadata) }

    package mutating func add(
        _ name: String, dtype: SafetensorsDType, shape: [Int], body: TensorBody
    ) throws(SafetensorsError) {
        let needed = shape.reduce(dtype.byteCount, *)
        guard body.byteCount == needed else {
            throw .wrongRange(tensor: name, neededBytes: needed, begin: 0, end: body.byteCount)
        }
        try layout.add(name, dtype: dtype, shape: shape)
        bodies[name] = body
    }

    /// Of the whole file.
    package var byteCount: Int { layout.fileBytes }

    /// Hands the file to `sink` in order, piece by piece; tensor bodies are not copied.
    package func write(to sink: (UnsafeRawBufferPointer) throws -> Void) throws {
        try layout.header().withUnsafeBytes(sink)
        for tensor in layout.tensors { try bodies[tensor.name]!.write(to: sink) }
    }

    package func encoded() throws -> [UInt8] {
        var bytes: [UInt8] = []
        try write { bytes.append(contentsOf: $0) }
        return bytes
    }
}
