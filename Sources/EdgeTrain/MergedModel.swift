// A model that needs no adapter: the base's weights with scaling · B · A added to those that an adapter changes, in one format.
// Tensors that it does not change keep their bytes. Rows are decoded, changed and encoded some megabytes at a time and what was read
// is given back, so that the memory does not grow with the model.
//
//   base                            becomes, in a directory of its own
//   GGUF                            model.gguf: F16, BF16, Q8_0, Q4_1 or Q4_0; or the base's own blocks with their scales multiplied,
//                                   where the adapter does no more than that ((IA)³)
//   Hugging Face's, as imported     model.safetensors: BF16, what was quantised too; config.json and the tokenizer's files
import EdgeFormats
import EdgeModel
import EdgeTensor

package enum MergeError: Error, Equatable, CustomStringConvertible {
    case unsupportedFormat(String, supported: [String], isImported: Bool)
    case notWholeBlocks(tensor: String, columns: Int, format: String, block: Int)
    case outOfRange(tensor: String, format: String)
    /// The adapter adds to weights, or the base's blocks have no scales that can be changed.
    case notOfScales(module: String)
    case noBlockScales(tensor: String, format: String)
    /// The adapter changes a bias that the base does not have.
    case noBias(module: String)

    package var description: String {
        switch self {
        case .unsupportedFormat(let format, let supported, let isImported):
            "a merged model of this base can be \(supported.joined(separator: ", ")), not \(format)"
                + (isImported
                    ? ": the base came from Hugging Face's files, and so do those that are made; llama.cpp's convert_hf_to_gguf.py makes GGUF of them"
                    : "")
        case .notWholeBlocks(let tensor, let columns, let format, let block):
            "\(tensor) has rows of \(columns) values, which are not whole blocks of \(block) as \(format) needs; f16 and bf16 do not"
        case .notOfScales(let module):
            "the base's own blocks can be kept where an adapter does no more than scale a linear's outputs, or what down_proj gets, or train norms; this one changes \(module) "
                + "otherwise: use q8_0 or f16"
        case .noBlockScales(let tensor, let format):
            "\(tensor) is \(format), whose blocks have no scale that can be multiplied: use q8_0 or f16"
        case .outOfRange(let tensor, let format):
            "\(tensor) would have a value that \(format) cannot hold; bf16 can"
        case .noBias(let module):
            "the adapter adds a bias to \(module), which has none in the base, so no merged model of its architecture could hold it; "
                + "generate takes base and adapter as they are"
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
        /// The base's blocks, each row's values times its factor.
        case scaleRows([Float])
        /// A bias in f32, which something is added to: in the file's order.
        case shift([Float])
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
    /// Nil: the base's blocks.
    package let format: QuantFormat?
    private let adapter: LoadedAdapter
    /// In the order of the base.
    private let items: [Item]

    /// The formats that a merged model of this base can have, the most exact first.
    package static func formats(of base: BaseModel) -> [QuantFormat] {
        base.isImported ? [.bf16] : ggufFormats.map(\.format)
    }

    /// In the base's own blocks where these can have what the adapter does; else in `format`.
    ///
    /// - Throws: what `init` throws.
    package static func keepingBlocks(_ base: BaseModel, _ adapter: LoadedAdapter, or format: QuantFormat) throws -> MergedModel {
        do { return try MergedModel(base, adapter, format: nil) } catch MergeError.notOfScales {
            return try MergedModel(base, adapter, format: format)
        }
    }

    /// Reads the adapter, and nothing of the base but its header.
    ///
    /// - Parameter format: of the weights that the adapter changes; nil: the base's own blocks, whose scales are multiplied.
    /// - Throws: `MergeError`; `AdapterError.notOfWeights`; `AdapterMismatch` where the base has no such module, or one of another shape.
    package init(_ base: BaseModel, _ adapter: LoadedAdapter, format: QuantFormat?) throws {
        let possible = Self.formats(of: base)
        guard format.map(possible.contains) ?? !base.isImported else {
            throw MergeError.unsupportedFormat(
                format?.name ?? "the base's own blocks", supported: possible.map(\.name), isImported: base.isImported)
        }
        try adapter.requireWeights()
        self.base = base
        self.format = format
        self.adapter = adapter
        let vectors = adapter.vectors(of: base), rows = adapter.rows(of: base)
        guard let format else {
            if let name = rows.keys.min() { throw MergeError.notOfScales(module: name) }
            items = try Self.scaled(base, try RowScales(adapter.tensors(of: base.spec), base.spec), vectors)
            return
        }
        var changes = try adapter.tensors(of: base.spec)
        let biases = try RowScales(outputsOf: changes, base.spec)
        var shifts = changes.compactMapValues { $0.added.flatMap { $0.bias.isEmpty ? nil : $0.bias } }
        items = try base.storedTensors.map { tensor in
            if let values = vectors[tensor.name] { return Item(tensor: tensor, type: .f32, work: .values(values)) }
            if let bias = try Self.scaledBias(tensor, biases, base.spec) { return bias }
            if let id = tensor.biasOf, let shift = shifts.removeValue(forKey: id) {
                let order = base.spec.rowOrder(id.module)
                return Item(tensor: tensor, type: tensor.pieces[0].type, work: .shift(shift.indices.map { shift[order?[$0] ?? $0] }))
            }
            var change = tensor.linear.flatMap { changes.removeValue(forKey: $0) }
            if change?.added?.isBiasAlone == true { change = nil }
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
        if let id = shifts.keys.min(by: { ($0.layer, $0.module.rawValue) < ($1.layer, $1.module.rawValue) }) {
            throw MergeError.noBias(module: id.path(base.spec))
        }
        precondition(changes.isEmpty, "every module that the adapter changes has its weight")
    }

    // MARK: scales of rows

    /// What the rows of linears are multiplied by, in Hugging Face's order.
    private struct RowScales {
        private(set) var ofLinear: [ModuleID: [Float]] = [:]

        /// - Throws: `MergeError.notOfScales` where an adapter does anything else.
        init(_ changes: [ModuleID: LoRATensors], _ spec: DecoderSpec) throws {
            for (id, change) in changes {
                guard change.rank == 0, change.rotation == nil, change.magnitude == nil, change.added == nil,
                    change.inputScale == nil || id.module == .down else {
                    throw MergeError.notOfScales(module: change.modulePath)
                }
            }
            try self.init(outputsOf: changes, spec)
            // What down gets is activation(gate) ⊙ up.
            for (id, change) in changes {
                guard let scale = change.inputScale else { continue }
                let up = spec.linear(doing: .up)
                multiply(ModuleID(layer: id.layer, module: up.leader), of: up.outFeatures(spec), up.rows(of: .up, spec), by: scale)
            }
        }

        /// What is multiplied after the product: biases, too.
        init(outputsOf changes: [ModuleID: LoRATensors], _ spec: DecoderSpec) throws {
            for (id, change) in changes {
                guard let scale = change.outputScale else { continue }
                multiply(id, of: scale.count, 0..<scale.count, by: scale)
            }
        }

        private mutating func multiply(_ id: ModuleID, of rows: Int, _ range: Range<Int>, by scale: [Float]) {
            var all = ofLinear[id] ?? [Float](repeating: 1, count: rows)
            for (row, factor) in zip(range, scale) { all[row] *= factor }
            ofLinear[id] = all
        }

        /// In the order of the base's file.
        func inOrder(_ id: ModuleID, _ spec: DecoderSpec) -> [Float]? {
            guard let scales = ofLinear[id] else { return nil }
            return spec.rowOrder(id.module).map { order in order.map { scales[$0] } } ?? scales
        }
    }

    /// - Parameter vectors: that are others than the base's, by name.
    private static func scaled(_ base: BaseModel, _ scales: RowScales, _ vectors: [String: [Float]]) throws -> [Item] {
        try base.storedTensors.map { tensor in
            if let values = vectors[tensor.name] { return Item(tensor: tensor, type: .f32, work: .values(values)) }
            if let bias = try scaledBias(tensor, scales, base.spec) { return bias }
            let type = tensor.pieces[0].type
            guard let rows = tensor.linear.flatMap({ scales.inOrder($0, base.spec) }) else { return Item(tensor: tensor, type: type, work: .copy) }
            guard let format = QuantFormat(ggmlType: type.rawValue), format.hasBlockScales else {
                throw MergeError.noBlockScales(tensor: tensor.name, format: type.name)
            }
            return Item(tensor: tensor, type: type, work: .scaleRows(rows))
        }
    }

    /// Nil where the tensor is no bias whose linear is scaled.
    private static func scaledBias(_ tensor: StoredTensor, _ scales: RowScales, _ spec: DecoderSpec) throws -> Item? {
        guard let rows = tensor.biasOf.flatMap({ scales.inOrder($0, spec) }) else { return nil }
        let type = tensor.pieces[0].type
        guard let format = QuantFormat(ggmlType: type.rawValue), format.blockElements == 1, format.hasBlockScales else {
            throw MergeError.noBlockScales(tensor: tensor.name, format: type.name)
        }
        return Item(tensor: tensor, type: type, work: .scaleRows(rows))
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
        // The file's type is that of what was encoded, if anything was.
        let encoded = items.contains { if case .encode = $0.work { true } else { false } } ? format : nil
        for (index, key) in base.file.metadataKeys.enumerated() where key != Self.fileTypeKey || encoded == nil {
            try base.file.withEncodedKeyValue(index) { bytes throws(GGUFError) in try layout.add(key, encoded: bytes) }
        }
        if let encoded { try layout.add(Self.fileTypeKey, .uint32(Self.ggufFormats.first { $0.format == encoded }!.fileType)) }
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

        static func bytes(for tensors: [StoredTensor], _ format: QuantFormat?, threads: Int, _ adapter: LoadedAdapter) -> ByteCount {
            let (values, rows) = format == nil ? (0, 0) : largest(tensors)
            return WorkerPool.scratchBytes(threads: threads, scratchFloats: scratchFloats(adapter)) + .floats(values)
                + .floats(rows * adapter.rank) + .floats(rows) + .floats(adapter.largestRotation.elements)
                + .wholeLines(format.map { $0.byteCount(of: values + $0.blockElements) } ?? 0)
        }

        init(for tensors: [StoredTensor], _ format: QuantFormat?, kernels: KernelSet, threads: Int, _ adapter: LoadedAdapter) throws {
            let (values, rows) = format == nil ? (0, 0) : Self.largest(tensors)
            arena = try Arena(capacity: Self.bytes(for: tensors, format, threads: threads, adapter))
            pool = WorkerPool(kernels: kernels, threadCount: threads, scratchFloats: Self.scratchFloats(adapter), arena: arena)
            self.values = arena.floats(values)
            factors = arena.floats(rows * adapter.rank)
            rotation = arena.floats(adapter.largestRotation.elements)
            self.rows = arena.integers(rows)
            encoded = arena.bytes(.wholeLines(format.map { $0.byteCount(of: values + $0.blockElements) } ?? 0)).baseAddress!
            copied = .allocate(byteCount: copiedBytes, alignment: 64)
        }

        deinit { copied.deallocate() }
    }

    private func write(_ item: Item, _ scratch: Scratch, _ sink: Sink) throws {
        switch item.work {
        case .copy: try copy(item.tensor.pieces[0], scratch, sink) { _, _ in }
        case .values(let values): try values.withUnsafeBytes(sink)
        case .scaleRows(let factors):
            let piece = item.tensor.pieces[0], format = QuantFormat(ggmlType: item.type.rawValue)!
            let rowBytes = piece.byteCount / factors.count, columns = piece.shape.reduce(1, *) / factors.count
            try copy(piece, scratch, sink, wholes: rowBytes) { first, bytes in
                for start in stride(from: 0, to: bytes.count, by: rowBytes) {
                    guard format.scale(bytes.baseAddress! + start, values: columns, by: factors[(first + start) / rowBytes]) else {
                        throw MergeError.outOfRange(tensor: item.tensor.name, format: format.name)
                    }
                }
            }
        case .shift(let shift):
            // A base is opened with biases in F32 only.
            let shifted = item.tensor.pieces[0].withBytes { bytes in
                shift.enumerated().map { Float(bitPattern: bytes.loadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self)) + $1 }
            }
            try shifted.withUnsafeBytes(sink)
        case .encode(let change, let own):
            guard let format else { preconditionFailure("a tensor to encode without a format") }
            if let change { deriveRotation(of: change, scratch) }
            let order = item.tensor.linear.flatMap { base.spec.rowOrder($0.module) }
            var firstRow = 0
            for matrix in item.tensor.matrices {
                for first in stride(from: 0, to: matrix.outFeatures, by: Scratch.blockRows(matrix.inFeatures)) {
                    let rows = first..<min(first + Scratch.blockRows(matrix.inFeatures), matrix.outFeatures)
                    let places = rows.map { order?[firstRow + $0] ?? firstRow + $0 }
                    try write(matrix.rows(rows), change, own, places, as: format, named: item.tensor.name, scratch, sink)
                }
                firstRow += matrix.outFeatures
            }
        }
    }

    /// The bytes as they are, but for what `change` makes of them, which gets how many came before.
    ///
    /// - Parameter wholes: pieces are of a multiple of so many bytes.
    private func copy(
        _ piece: GGUFTensor, _ scratch: Scratch, _ sink: Sink, wholes: Int = 1,
        _ change: (_ first: Int, _ bytes: UnsafeMutableRawBufferPointer) throws -> Void
    ) throws {
        precondition(wholes <= scratch.copied.count, "a row of \(wholes) bytes")
        let most = scratch.copied.count / wholes * wholes
        for first in stride(from: 0, to: piece.byteCount, by: most) {
            let bytes = UnsafeMutableRawBufferPointer(rebasing: scratch.copied.prefix(min(most, piece.byteCount - first)))
            try piece.region.read(at: piece.fileOffset + first, count: bytes.count, into: bytes.baseAddress!)
            try change(first, bytes)
            try sink(UnsafeRawBufferPointer(bytes))
        }
    }

    /// - Parameter places: of the rows, in the adapter's B.
    private func write(
        _ matrix: QuantizedMatrix, _ change: LoRATensors?, _ own: [Int: [Float]], _ places: [Int], as format: QuantFormat, named name: String,
        _ scratch: Scratch, _ sink: Sink
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
        if let added = change?.added { added.add(to: values, places) }
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
