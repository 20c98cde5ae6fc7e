// llama.cpp's form of an adapter: written, and read to begin from (src/llama-adapter.cpp, convert_lora_to_gguf.py).
import EdgeFormats
import EdgeModel

extension AdapterArtifact {
    /// A linear of the base, as llama.cpp has it.
    package struct GGUFTarget {
        /// "blk.0.attn_q.weight"
        package let name: String
        /// Row i of the GGUF's matrix is Hugging Face's row `rowOrder[i]`; nil: the same order.
        package let rowOrder: [Int]?
        package let inFeatures: Int
        package let outFeatures: Int
        package init(name: String, rowOrder: [Int]?, inFeatures: Int, outFeatures: Int) {
            self.name = name
            self.rowOrder = rowOrder
            self.inFeatures = inFeatures
            self.outFeatures = outFeatures
        }
    }

    /// A llama.cpp adapter, of any method that is exactly a plain LoRA, or of one task of a method that has tasks.
    package static func exportGGUF(
        _ directory: String, task: String? = nil, architecture: String, to path: String, target: (_ modulePath: String) -> GGUFTarget?
    ) throws {
        let artifact = try open(directory: directory).task(task)
        let method = artifact.config.method
        guard method.canBeWeights else { throw AdapterError.notOfWeights(method: method.name) }
        guard artifact.config.saved.isEmpty else { throw AdapterError.savedForGGUF }
        guard method.isLoRA(artifact.config.spec) else {
            throw AdapterError.notForGGUF(method: method.name)
        }
        let tensors = try artifact.lora { module in target(module).map { ($0.inFeatures, $0.outFeatures, false) } }.map { tensors in
            guard let found = target(tensors.modulePath) else {
                throw AdapterError.noGGUFName(module: tensors.modulePath)
            }
            return (tensors, found)
        }
        let file = try gguf(tensors, artifact.config, architecture: architecture)
        try AtomicFile.write(to: path) { writer in try file.write { try writer.write($0) } }
    }

    /// llama.cpp src/llama-adapter.cpp: `ne` of A is [in, r], of B [r, out], which is PEFT's row-major layout.
    private static func gguf(
        _ tensors: [(change: LoRATensors, target: GGUFTarget)], _ config: AdapterConfig, architecture: String
    ) throws -> GGUFWriter {
        var file = GGUFWriter()
        try file.add("general.type", .string("adapter"))
        try file.add("general.architecture", .string(architecture))
        try file.add("adapter.type", .string("lora"))
        // llama.cpp scales by alpha/r, whatever the adapter was trained with: what a module's own scaling makes of that is in its B.
        let scalings = try config.scalings(of: tensors.map(\.change))
        let alphas = tensors.map { scalings[$0.change.modulePath]! * Double($0.change.rank) }
        let alpha = alphas.contains(config.loraAlpha) ? config.loraAlpha : alphas.first { $0 != 0 } ?? 1
        try file.add(alphaKey, .float32(Float(alpha)))
        for ((change, target), own) in zip(tensors, alphas) {
            let rows = try rows(of: change, in: target.rowOrder)
            try file.addTensor(
                target.name + ".lora_a", shape: [change.rank, change.inFeatures], type: .f32, body: .floats(change.loraA))
            try file.addTensor(
                target.name + ".lora_b", shape: [change.outFeatures, change.rank], type: .f32,
                body: .floats(own == alpha ? rows : rows.map { $0 * Float(own / alpha) }))
        }
        return file
    }

    private static func rows(of change: LoRATensors, in order: [Int]?) throws(AdapterError) -> [Float] {
        guard let order else { return change.loraB }
        guard order.count == change.outFeatures, Set(order).count == order.count,
            order.allSatisfy((0..<change.outFeatures).contains)
        else { throw .badRowOrder(module: change.modulePath) }
        return order.flatMap { change.loraB[$0 * change.rank..<($0 + 1) * change.rank] }
    }

    private static let alphaKey = "adapter.lora.alpha"

    /// An adapter for a base of this shape. Its tensors keep the GGUF's names to themselves: rows are in Hugging Face's order.
    ///
    /// - Returns: the adapter's alpha, and its tensors as `open(directory:)` gives them.
    /// - Throws: `GGUFError` and `AdapterError`.
    package static func openGGUF(_ region: ByteRegion, for spec: DecoderSpec) throws -> (alpha: Double, tensors: [LoRATensors]) {
        let file = try GGUFFile(region)
        func require(_ key: String, _ value: String) throws(AdapterError) {
            let found = file.metadata[key]?.string
            guard found == value else { throw .badMetadata(key: key, found: found ?? "missing", expected: value) }
        }
        try require("general.type", "adapter")
        try require("adapter.type", "lora")
        try require("general.architecture", spec.ggufArchitecture)
        let alpha = try file.float(alphaKey)
        guard alpha.isFinite, alpha > 0 else {
            throw AdapterError.badMetadata(key: alphaKey, found: "\(alpha)", expected: "a number above 0")
        }
        var used: Set<String> = []
        var found: [LoRATensors] = []
        for layer in 0..<spec.layerCount {
            for linear in spec.linears {
                let id = ModuleID(layer: layer, module: linear.leader)
                let name = id.ggufName(spec)
                guard file.tensor(named: name + ".lora_a") != nil || file.tensor(named: name + ".lora_b") != nil else { continue }
                let (a, aShape) = try matrix(name + ".lora_a", in: file), (b, bShape) = try matrix(name + ".lora_b", in: file)
                guard aShape[0] == bShape[1] else {
                    throw AdapterError.rankMismatch(module: name, loraA: aShape[0], loraB: bShape[1])
                }
                used.formUnion([name + ".lora_a", name + ".lora_b"])
                found.append(
                    LoRATensors(
                        modulePath: id.path(spec), rank: aShape[0], inFeatures: aShape[1], outFeatures: bShape[0],
                        loraA: a, loraB: rowsFromGGUF(b, rank: bShape[1], spec.ggufRowOrder(id.module))))
            }
        }
        if let unused = file.tensors.first(where: { !used.contains($0.name) }) { throw AdapterError.unknownTensor(unused.name) }
        guard !found.isEmpty else { throw AdapterError.noTensors }
        return (alpha, found)
    }

    private static func rowsFromGGUF(_ values: [Float], rank: Int, _ order: [Int]?) -> [Float] {
        // A matrix of another shape is refused where it meets its base.
        guard let order, order.count * rank == values.count else { return values }
        var rows = [Float](repeating: 0, count: values.count)
        for (row, place) in order.enumerated() {
            for column in 0..<rank { rows[place * rank + column] = values[row * rank + column] }
        }
        return rows
    }

    private static func matrix(_ name: String, in file: GGUFFile) throws(AdapterError) -> (values: [Float], shape: [Int]) {
        guard let tensor = file.tensor(named: name) else { throw .missingTensor(name) }
        guard tensor.shape.count == 2 else { throw .badShape(tensor: name, shape: tensor.shape) }
        guard let dtype = tensor.type.safetensorsDType, let values = tensor.withBytes({ dtype.floats(in: $0) }) else {
            throw .badDType(tensor: name, dtype: tensor.type.name)
        }
        if let index = values.firstIndex(where: { !$0.isFinite }) { throw .nonFinite(tensor: name, index: index) }
        return (values, tensor.shape)
    }
}
