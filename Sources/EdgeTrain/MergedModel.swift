// A model that needs no adapter: the base's weights with scaling · B · A added to those that an adapter changes, in one format.
// Tensors that it does not change keep their bytes. Rows are decoded, changed and encoded some megabytes at a time and what was read
// is given back, so that the memory does not grow with the model.
//
//   base                            becomes, in a directory of its own
//   GGUF                            model.gguf: F16, BF16, Q8_0, Q4_1 or Q4_0
//   Hugging Face's, as imported     model.safetensors: BF16, what was quantised too; config.json and the tokenizer's files
import EdgeFormats
import EdgeModel
import EdgeTensor

package enum MergeError: Error, Equatable, CustomStringConvertible {
    case unsupportedFormat(String, supported: [String], isImported: Bool)
    case notWholeBlocks(tensor: String, columns: Int, format: String, block: Int)
    case outOfRange(tensor: String, format: String)

    package var description: String {
        switch self {
        case .unsupportedFormat(let format, let supported, let isImported):
            "a merged model of this base can be \(supported.joined(separator: ", ")), not \(format)"
                + (isImported
                    ? ": the base came from Hugging Face's files, and so do those that are made; llama.cpp's convert_hf_to_gguf.py makes GGUF of them"
                    : "")
        case .notWholeBlocks(let tensor, let columns, let format, let block):
            "\(tensor) has rows of \(columns) values, which are not whole blocks of \(block) as \(format) needs; f16 and bf16 do not"
        case .outOfRange(let tensor, let format):
            "\(tensor) would have a value that \(format) cannot hold; bf16 can"
        }
    }
}

package struct MergedModel {
    package static let ggufName = "model.gguf", safetensorsName = "model.safetensors"
    private static let fileTypeKey = "general.file_type", versionKey = "general.quantization_version"
    /// Values that are decoded at once, if a row is not longer.
    private static let blockValues = 1 << 20
    /// Pages of the base and of the program that are resident by chance.
    private static let fixedBytes = 8 << 20
    private static let copiedBytes = 1 << 20

    /// With `general.file_type` of llama.cpp (llama_ftype in include/llama.h).
    private static let ggufFormats: [(format: QuantFormat, fileType: UInt32)] = [
        (.f16, 1), (.bf16, 32), (.q8_0, 7), (.q4_1, 3), (.q4_0, 2),
    ]

    private enum Work {
        /// The bytes as they are.
        case copy
        /// With these rows instead of its own.
        case encode(change: LoRATensors?, rows: [Int: [Float]])
        /// These values, in f32.
        case values([Float])
    }

    private struct Item {
        let tensor: StoredTensor
        /// In the file that is made.
        let type: GGMLType
        let work: Work

        var byteCount: Int { tensor.shape.reduce(1, *) / type.blockElements * type.blockBytes }
    }

    private let base: BaseModel
    private let format: QuantFormat
    private let adapter: LoadedAdapter
    /// In the order of the base.
    private let items: [Item]

    /// The formats that a merged model of this base can have, the most exact first.
    package static func formats(of base: BaseModel) -> [QuantFormat] {
        base.isImported ? [.bf16] : ggufFormats.map(\.format)
    }

    /// Reads the adapter, and nothing of the base but its header.
    ///
    /// - Throws: `MergeError`; `AdapterError.notOfWeights`; `AdapterMismatch` where the base has no such module, or one of another shape.
    package init(_ base: BaseModel, _ adapter: LoadedAdapter, format: QuantFormat) throws {
        let possible = Self.formats(of: base)
        guard possible.contains(format) else {
            throw MergeError.unsupportedFormat(
                format.name, supported: possible.map(\.name), isImported: base.isImported)
        }
        try adapter.requireWeights()
        self.base = base
        self.format = format
        self.adapter = adapter
        var changes = try adapter.tensors(of: base.spec)
        let vectors = adapter.vectors(of: base), rows = adapter.rows(of: base)
        items = try base.storedTensors.map { tensor in
            if let values = vectors[tensor.name] { return Item(tensor: tensor, type: .f32, work: .values(values)) }
            let change = tensor.linear.flatMap { changes.removeValue(forKey: $0) }
            // No other program reads the container's 4 bits.
            let rows = rows[tensor.name] ?? [:]
            guard change != nil || !rows.isEmpty || !tensor.isWhole else {
                return Item(tensor: tensor, type: tensor.pieces[0].type, work: .copy)
            }
            guard tensor.shape[1] % format.blockElements == 0 else {
                throw MergeError.notWholeBlocks(
                    tensor: tensor.name, columns: tensor.shape[1], format: format.name, block: format.blockElements)
            }
            return Item(tensor: tensor, type: GGMLType(rawValue: format.ggmlType)!, work: .encode(change: change, rows: rows))
        }
        precondition(changes.isEmpty, "every module that the adapter changes has its weight")
    }

    /// Of the largest file.
    package var fileBytes: Int { get throws { base.isImported ? try safetensorsLayout().fileBytes : try ggufLayout().fileBytes } }

    /// What `init` and `write` hold, beside the program: the adapter as it was read, and the block that is being changed.
    package func peakBytes(threads: Int) -> ByteCount {
        adapter.byteCount + adapter.byteCount + Scratch.bytes(for: items.map(\.tensor), format, threads: threads, adapter)
            + ByteCount(Self.fixedBytes + Self.copiedBytes)
    }

    /// Makes the directory; what was there is replaced when all is written.
    ///
    /// - Parameter progress: gets the bytes of the largest file that are done; what it throws interrupts.
    /// - Throws: `MergeError.outOfRange`, `FileError`, and what `progress` throws.
    package func write(
        to directory: String, kernels: KernelSet, threads: Int, progress: @escaping (Int) throws -> Void
    ) throws {
        let scratch = try Scratch(for: items.map(\.tensor), format, kernels: kernels, threads: threads, adapter)
        try DirectoryPublish.publish(to: directory) { staging in
            if base.isImported {
                for (name, bytes) in try hubFiles() { try staging.write(name, bytes) }
            }
            try staging.write(base.isImported ? Self.safetensorsName : Self.ggufName) { file in
                var done = 0
                let sink: (UnsafeRawBufferPointer) throws -> Void = { bytes in
                    try file.write(bytes)
                    done += bytes.count
                    try progress(done)
                }
                if base.isImported { try writeSafetensors(scratch, sink) } else { try writeGGUF(scratch, sink) }
            }
        }
    }

    /// What `write` has made, as a model to compute with.
    package static func open(_ directory: String, madeFrom base: BaseModel) throws -> BaseModel {
        guard base.isImported else { return try BaseModel.open(path: "\(directory)/\(ggufName)") }
        return try BaseModel.open(
            try GGUFFile(
                metadataOf: base.file, tensorsOf: try SafetensorsFile.open(path: "\(directory)/\(safetensorsName)")))
    }
}

// The two kinds of file.
extension MergedModel {
    private typealias Sink = (UnsafeRawBufferPointer) throws -> Void

    private func ggufLayout() throws -> GGUFLayout {
        var layout = GGUFLayout(alignment: base.file.alignment, metadataBytes: base.file.metadataBytes + 128)
        let isEncoded = items.contains { if case .encode = $0.work { true } else { false } }
        for (index, key) in base.file.metadataKeys.enumerated() where key != Self.fileTypeKey || !isEncoded {
            try base.file.withEncodedKeyValue(index) { bytes throws(GGUFError) in try layout.add(key, encoded: bytes) }
        }
        if isEncoded { try layout.add(Self.fileTypeKey, .uint32(Self.ggufFormats.first { $0.format == format }!.fileType)) }
        if base.file.metadata[Self.versionKey] == nil { try layout.add(Self.versionKey, .uint32(2)) }
        for item in items { try layout.addTensor(item.tensor.name, shape: item.tensor.shape, type: item.type) }
        return layout
    }

    private func writeGGUF(_ scratch: Scratch, _ sink: Sink) throws {
        let layout = try ggufLayout()
        try layout.writeHeader(to: sink)
        for item in items {
            try write(item, scratch, sink)
            try layout.writePadding(after: item.byteCount, to: sink)
        }
    }

    private func safetensorsLayout() throws -> SafetensorsLayout {
        var layout = SafetensorsLayout(metadata: ["format": "pt"])
        for item in items {
            guard let dtype = item.type.safetensorsDType else {
                throw ModelError.unsupportedFormat(
                    tensor: item.tensor.name, format: item.type.name, supported: ["F32", "F16", "BF16"])
            }
            try layout.add(item.tensor.name, dtype: dtype, shape: item.tensor.shape)
        }
        return layout
    }

    private func writeSafetensors(_ scratch: Scratch, _ sink: Sink) throws {
        let layout = try safetensorsLayout()
        try layout.header().withUnsafeBytes(sink)
        let byName = Dictionary(items.map { ($0.tensor.name, $0) }) { first, _ in first }
        for tensor in layout.tensors { try write(byName[tensor.name]!, scratch, sink) }
    }

    /// The text files beside the weights, as they came in; config.json says what the weights are now.
    private func hubFiles() throws -> [(name: String, bytes: [UInt8])] {
        let prefix = "edgetune.", templateKey = "tokenizer.chat_template"
        var files: [(String, [UInt8])] = []
        for key in base.file.metadataKeys {
            guard let bytes = base.file.metadata[key]?.stringBytes else { continue }
            if key == BaseModel.configKey {
                files.append(("config.json", try Self.config(Array(bytes))))
            } else if key.hasPrefix(prefix) {
                files.append((String(key.dropFirst(prefix.count)), Array(bytes)))
            } else if key == templateKey {
                files.append(("chat_template.jinja", Array(bytes)))
            }
        }
        return files
    }

    /// Without what it says of quantisation, and with the float type that the linears have now.
    private static func config(_ json: [UInt8]) throws -> [UInt8] {
        guard case .object(var members) = try json.withUnsafeBytes({ bytes throws(JSONTextError) in try JSONText(parsing: bytes) })
        else { throw ModelError.missingMetadata(BaseModel.configKey) }
        members.removeAll { ["quantization_config", "compression_config"].contains($0.key) }
        let key = members.contains { $0.key == "dtype" } ? "dtype" : "torch_dtype"
        members.removeAll { $0.key == key }
        return JSONText.object(members + [.init(key, .string("bfloat16"))]).indented()
    }
}

// The values.
extension MergedModel {
    /// Memory for every tensor of a model, allocated once.
    private final class Scratch {
        let pool: WorkerPool
        let values: UnsafeMutablePointer<Float>
        let factors: UnsafeMutablePointer<Float>
        let rotation: UnsafeMutablePointer<Float>
        let rows: UnsafeMutablePointer<Int32>
        let encoded: UnsafeMutableRawPointer
        let copied: UnsafeMutableRawBufferPointer
        private let arena: Arena

        static func blockRows(_ columns: Int) -> Int { max(1, blockValues / columns) }

        /// Values of the largest block, and its rows.
        private static func largest(_ tensors: [StoredTensor]) -> (values: Int, rows: Int) {
            let columns = tensors.filter { !$0.matrices.isEmpty }.map { $0.shape[1] }
            return (columns.map { blockRows($0) * $0 }.max() ?? 0, columns.map(blockRows).max() ?? 0)
        }

        private static func scratchFloats(_ adapter: LoadedAdapter) -> Int {
            BlockRotation.scratchFloats(blockSize: adapter.largestRotation.blockSize)
        }

        static func bytes(for tensors: [StoredTensor], _ format: QuantFormat, threads: Int, _ adapter: LoadedAdapter) -> ByteCount {
            let (values, rows) = largest(tensors)
            return WorkerPool.scratchBytes(threads: threads, scratchFloats: scratchFloats(adapter)) + .floats(values)
                + .floats(rows * adapter.rank) + .floats(rows) + .floats(adapter.largestRotation.elements)
                + .wholeLines(format.byteCount(of: values + format.blockElements))
        }

        init(for tensors: [StoredTensor], _ format: QuantFormat, kernels: KernelSet, threads: Int, _ adapter: LoadedAdapter) throws {
            let (values, rows) = Self.largest(tensors)
            arena = try Arena(capacity: Self.bytes(for: tensors, format, threads: threads, adapter))
            pool = WorkerPool(kernels: kernels, threadCount: threads, scratchFloats: Self.scratchFloats(adapter), arena: arena)
            self.values = arena.floats(values)
            factors = arena.floats(rows * adapter.rank)
            rotation = arena.floats(adapter.largestRotation.elements)
            self.rows = arena.integers(rows)
            encoded = arena.bytes(.wholeLines(format.byteCount(of: values + format.blockElements))).baseAddress!
            copied = .allocate(byteCount: copiedBytes, alignment: 64)
        }

        deinit { copied.deallocate() }
    }

    private func write(_ item: Item, _ scratch: Scratch, _ sink: Sink) throws {
        switch item.work {
        case .values(let values): try values.withUnsafeBytes(sink)
        case .copy:
            let piece = item.tensor.pieces[0]
            for first in stride(from: 0, to: piece.byteCount, by: scratch.copied.count) {
                let count = min(scratch.copied.count, piece.byteCount - first)
                try piece.region.read(at: piece.fileOffset + first, count: count, into: scratch.copied.baseAddress!)
                try sink(UnsafeRawBufferPointer(rebasing: scratch.copied.prefix(count)))
            }
        case .encode(let change, let own):
            if let change { deriveRotation(of: change, scratch) }
            let order = item.tensor.linear.flatMap { base.spec.rowOrder($0.module) }
            var firstRow = 0
            for matrix in item.tensor.matrices {
                for first in stride(from: 0, to: matrix.outFeatures, by: Scratch.blockRows(matrix.inFeatures)) {
                    let rows = first..<min(first + Scratch.blockRows(matrix.inFeatures), matrix.outFeatures)
                    let places = rows.map { order?[firstRow + $0] ?? firstRow + $0 }
                    try write(matrix.rows(rows), change, own, places, named: item.tensor.name, scratch, sink)
                }
                firstRow += matrix.outFeatures
            }
        }
    }

    /// - Parameter places: of the rows, in the adapter's B.
    private func write(
        _ matrix: QuantizedMatrix, _ change: LoRATensors?, _ own: [Int: [Float]], _ places: [Int], named name: String, _ scratch: Scratch,
        _ sink: Sink
    ) throws {
        let values = Tensor(scratch.values, rows: matrix.outFeatures, columns: matrix.inFeatures)
        for row in 0..<matrix.outFeatures { scratch.rows[row] = Int32(row) }
        decodeRows(matrix, scratch.rows, into: values, on: scratch.pool)
        for (row, place) in places.enumerated() where !own.isEmpty {
            if let replaced = own[place] { values.row(row).update(from: replaced, count: values.columns) }
        }
        if let change, change.rank > 0 {
            let b = Tensor(scratch.factors, rows: matrix.outFeatures, columns: change.rank)
            for (row, place) in places.enumerated() {
                for column in 0..<b.columns {
                    b.row(row)[column] = Float(adapter.scaling) * change.loraB[place * b.columns + column]
                }
            }
            change.loraA.withUnsafeBytes { a in
                let a = QuantizedMatrix(a.baseAddress!, format: .f32, outFeatures: change.rank, inFeatures: matrix.inFeatures)
                linearBackward(b, a, into: values, .add, on: scratch.pool)
            }
        }
        if let change, let rotation = rotation(of: change, scratch) { BlockRotation.applyTransposed(rotation, to: values, on: scratch.pool) }
        if let change { scale(values, change, places, scratch) }
        guard encodeRows(values, as: format, into: scratch.encoded, on: scratch.pool) else {
            throw MergeError.outOfRange(tensor: name, format: format.name)
        }
        base.releaseResidentWeights()
        try sink(UnsafeRawBufferPointer(start: scratch.encoded, count: matrix.outFeatures * format.byteCount(of: matrix.inFeatures)))
    }

    private func rotation(of change: LoRATensors, _ scratch: Scratch) -> Tensor? {
        change.rotation.map { Tensor(scratch.rotation, rows: change.inFeatures, columns: $0.blockSize) }
    }

    private func deriveRotation(of change: LoRATensors, _ scratch: Scratch) {
        guard let rotation = change.rotation, let matrix = self.rotation(of: change, scratch) else { return }
        var skew = rotation.skew
        skew.withUnsafeMutableBufferPointer { values in
            // Blocks of one have no values, and so no address.
            guard let base = values.baseAddress else { return }
            let blocks = change.inFeatures / rotation.blockSize
            BlockRotation.derive(
                Tensor(base, rows: blocks, columns: values.count / blocks), rotation.form, into: matrix, on: scratch.pool)
        }
    }

    /// What a linear gives is a factor of its row, as a magnitude is; what it gets, of its column.
    private func scale(_ values: Tensor, _ change: LoRATensors, _ places: [Int], _ scratch: Scratch) {
        if let magnitude = change.magnitude {
            for (row, place) in places.enumerated() {
                let length = sumOfSquares(values.row(row), count: values.columns, kernels: scratch.pool.kernels).squareRoot()
                let factor = magnitude[place] / Float(max(length, .leastNormalMagnitude))
                for column in 0..<values.columns { values.row(row)[column] *= factor }
            }
        }
        guard change.inputScale != nil || change.outputScale != nil else { return }
        for (row, place) in places.enumerated() {
            let ofRow = change.outputScale?[place] ?? 1
            for column in 0..<values.columns { values.row(row)[column] *= ofRow * (change.inputScale?[column] ?? 1) }
        }
    }
}
