// A Hugging Face model directory -> the container that the daemon keeps: a GGUF file of the architecture "huggingface" with the
// directory's JSON files as strings and its tensors under their names, rows in their order.
//
//   X        1-D: F32. Else F16 where the source has F16, BF16 where it has BF16 or F32
//   X.nf4    I8 [out][in / 2]: codes of the linear X, two to a byte, the first in the high half (X.fp4: bitsandbytes' FP4)
//   X.absmax I8 [blocks]: codes of the signed dynamic map, a block being 64 values; F32 [blocks] where X.nested is absent
//   X.nested F32 [⌈blocks / 256⌉ + 1]: their absmax values, then the offset
//
// Linears are those that transformers' BitsAndBytesConfig(load_in_4bit) quantises: inside the decoder layers, never the head.
import EdgeFormats
import EdgeTensor

struct HuggingFaceDirectory {
    static let configName = "config.json", indexName = "model.safetensors.index.json", weightsName = "model.safetensors"
    static let tokenizerName = "tokenizer.json", tokenizerConfigName = "tokenizer_config.json"
    static let chatTemplateName = "chat_template.jinja"

    private let source: SourceFiles
    private let config: JSONText

    init(_ source: SourceFiles) throws {
        self.source = source
        config = try source.json(Self.configName, neededBecause: "it says what the model is")
        guard case .object = config else {
            throw ImportError.badField(file: Self.configName, field: "the document", expected: "an object")
        }
    }

    func plan() throws -> ImportPlan {
        let isQuantised = try isQuantised()
        let shards = try SafetensorsShards(source), tensors = shards.tensors
        let quantised = try BitsAndBytesWeights(tensors)
        shards.releaseResident()
        guard isQuantised != quantised.weights.isEmpty else {
            throw ImportError.quantisationContradicts(
                config: isQuantised ? "bitsandbytes, 4 bits" : "nothing of quantisation",
                tensors: isQuantised ? "no tensor is quantised" : "\(quantised.weights[0].name) is quantised by bitsandbytes")
        }
        var plan = try ImportPlan(layout: metadata())
        let items = tensors.values.filter { !quantised.used.contains($0.name) }.map { ($0.name, Item.plain($0)) }
            + quantised.weights.map { ($0.name, Item.quantised($0)) }
        for (name, item) in items.map({ (NaturalName($0), $1) }).sorted(by: { $0.0 < $1.0 }).map({ ($0.name, $1) }) {
            do {
                switch item {
                case .quantised(let weight): try weight.add(to: &plan)
                case .plain(let tensor): try add(tensor, quantisingLinears: !isQuantised, to: &plan)
                }
            } catch let error as GGUFError {
                throw ImportError.badGGUF(file: name, error)
            }
        }
        return plan
    }

    private enum Item {
        case plain(SafetensorsTensor)
        case quantised(BitsAndBytesWeights.Weight)
    }

    // MARK: Metadata

    private func metadata() throws -> GGUFLayout {
        let verbatim = [Self.configName, Self.tokenizerConfigName, Self.tokenizerName]
        let template = try chatTemplate()
        let bytes = verbatim.reduce(0) { $0 + source.byteCount($1) } + (template?.utf8.count ?? 0)
        var layout = GGUFLayout(metadataBytes: bytes + 4096)
        try layout.add("general.architecture", .string(BaseModel.importedArchitecture))
        if let template { try layout.add("tokenizer.chat_template", .string(template)) }
        for name in verbatim where source.contains(name) {
            let text = try source.map(name, neededBecause: "it was there")
            try checkString(name, bytes: text.bytes.count)
            try layout.add("edgetune." + name, textOf: text)
        }
        return layout
    }

    /// The file, else what tokenizer_config.json has: as in transformers.
    private func chatTemplate() throws -> String? {
        if source.contains(Self.chatTemplateName) {
            let text = try source.map(Self.chatTemplateName, neededBecause: "it was there")
            try checkString(Self.chatTemplateName, bytes: text.bytes.count)
            guard let template = text.withBytes({ String(validating: $0, as: UTF8.self) }) else {
                throw ImportError.badField(file: Self.chatTemplateName, field: "the text", expected: "UTF-8")
            }
            return template
        }
        guard source.contains(Self.tokenizerConfigName) else { return nil }
        let config = try source.json(Self.tokenizerConfigName, neededBecause: "it was there")
        func bad() -> ImportError {
            .badField(
                file: Self.tokenizerConfigName, field: "chat_template", expected: "a template or a list of them by name")
        }
        switch config["chat_template"] {
        case nil, .null: return nil
        case .string(let template): return template
        case .array(let named):
            for each in named {
                guard let name = each["name"]?.string, let template = each["template"]?.string else { throw bad() }
                if name == "default" { return template }
            }
            return nil
        default: throw bad()
        }
    }

    private func checkString(_ name: String, bytes: Int) throws {
        guard bytes <= GGUFFile.stringLimitBytes else {
            throw ImportError.fileTooLarge(name, bytes: bytes, limitBytes: GGUFFile.stringLimitBytes)
        }
    }

    // MARK: Quantisation

    /// Whether config.json says that bitsandbytes has quantised the weights to 4 bits.
    private func isQuantised() throws -> Bool {
        let field = ["quantization_config", "compression_config"].first { config[$0] != nil && config[$0] != .null }
        guard let field, let quantisation = config[field] else { return false }
        // Configurations of early 2023 name no method.
        let is4Bit = quantisation["load_in_4bit"]?.bool == true, is8Bit = quantisation["load_in_8bit"]?.bool == true
        let method = quantisation["quant_method"]?.string ?? (is4Bit || is8Bit ? "bitsandbytes" : "an unnamed method")
        guard method == "bitsandbytes" else { throw ImportError.unsupportedQuantisation(method: method) }
        guard is4Bit else { throw ImportError.unsupportedQuantisation(method: "bitsandbytes to 8 bits") }
        return true
    }

    // MARK: Tensors

    private func add(_ tensor: SafetensorsTensor, quantisingLinears: Bool, to plan: inout ImportPlan) throws {
        let name = tensor.name, bytes = SourceBytes(tensor)
        guard let type = SourceFloat(tensor.dtype) else {
            throw ImportError.unsupportedDType(tensor: name, dtype: tensor.dtype.rawValue)
        }
        let shape = tensor.shape.isEmpty ? [1] : tensor.shape
        guard shape.count <= 4 else {
            throw ImportError.unsupportedShape(tensor: name, shape: shape, reason: "of more than 4 dimensions")
        }
        guard shape.allSatisfy({ $0 > 0 }) else {
            throw ImportError.unsupportedShape(tensor: name, shape: shape, reason: "which holds nothing")
        }
        if shape.count == 1 {
            try plan.add(name, type == .f32 ? .copy(bytes, tail: []) : .widen(bytes, type), as: [(name, shape, .f32)])
        } else if quantisingLinears && Self.isQuantisableLinear(name, shape) {
            let blocks = shape[0] * shape[1] / CheckpointConversion.nf4Block
            try plan.add(
                name, .quantise(bytes, type),
                as: [
                    (BlockwiseParts.codes(name, .nf4), [shape[0], shape[1] / 2], .i8),
                    (BlockwiseParts.absmax(name), [blocks], .i8),
                    (BlockwiseParts.nested(name), [CheckpointConversion.nestedCount(blocks)], .f32),
                ])
        } else {
            try plan.add(
                name, type == .f32 ? .round(bytes) : .copy(bytes, tail: []),
                as: [(name, shape, type == .f16 ? .f16 : .bf16)])
        }
    }

    /// A weight of two dimensions inside a layer is a linear's: norms have one dimension, and embeddings and the head are not inside.
    /// bitsandbytes' blocks of a matrix whose rows are not whole blocks run on from row to row, which no kernel here decodes.
    private static func isQuantisableLinear(_ name: String, _ shape: [Int]) -> Bool {
        let parts = name.split(separator: ".", omittingEmptySubsequences: false)
        guard shape.count == 2, shape[1] % CheckpointConversion.nf4Block == 0, parts.last == "weight" else { return false }
        return zip(parts, parts.dropFirst()).contains { part, next in
            part == "layers" && !next.isEmpty && next.utf8.allSatisfy { (0x30...0x39).contains($0) }
        }
    }
}
