// Weights that bitsandbytes has quantised to 4 bits and transformers has saved (bitsandbytes 0.50.2, functional.QuantState): of a
// weight X the tensors
//
//   X                                    U8, two codes to a byte
//   X.absmax                             U8 codes, or F32 values
//   X.quant_map                          F32 [16]
//   X.nested_absmax, X.nested_quant_map  F32, where absmax has codes
//   X.quant_state.bitsandbytes__nf4      U8, JSON: shape, block sizes, offset (or …__fp4)
//
// They are stored as they are. What the kernels take for granted is checked here: block sizes, and the values of the codes.
import EdgeFormats
import EdgeTensor

struct BitsAndBytesWeights {
    struct Weight {
        let name: String
        fileprivate let dataType: DataType
        fileprivate let rows: Int, columns: Int
        fileprivate let codes: SafetensorsTensor, absmax: SafetensorsTensor
        fileprivate let nested: (absmax: SafetensorsTensor, offset: Float)?

        private var blocks: Int { rows * columns / CheckpointConversion.nf4Block }

        /// - Throws: `GGUFError`.
        func add(to plan: inout ImportPlan) throws {
            try plan.add(
                name, .copy(SourceBytes(codes), tail: []), as: [(BlockwiseParts.codes(name, dataType.format), [rows, columns / 2], .i8)])
            try plan.add(
                name, .copy(SourceBytes(absmax), tail: []), as: [(BlockwiseParts.absmax(name), [blocks], nested == nil ? .f32 : .i8)])
            guard let nested else { return }
            let offset = withUnsafeBytes(of: nested.offset.bitPattern.littleEndian) { Array($0) }
            try plan.add(
                name, .copy(SourceBytes(nested.absmax), tail: offset),
                as: [(BlockwiseParts.nested(name), [CheckpointConversion.nestedCount(blocks)], .f32)])
        }
    }

    fileprivate enum DataType: String, CaseIterable {
        case nf4, fp4

        var format: QuantFormat { self == .nf4 ? .nf4 : .fp4 }
        var stateSuffix: String { ".quant_state.bitsandbytes__" + rawValue }

        var map: [Float] {
            switch self {
            case .nf4: return CheckpointConversion.nf4Map
            case .fp4:
                // get_4bit_type in bitsandbytes' functional.py: sign, two bits of exponent, one of mantissa, divided by the largest.
                let magnitudes: [Float] = [0, 0.0625, 8, 12, 4, 6, 2, 3].map { $0 / 12 }
                return magnitudes + magnitudes.map { -$0 }
            }
        }
    }

    fileprivate static let stateLimitBytes = 64 << 10
    private static let companionSuffixes = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"]

    /// In no particular order.
    private(set) var weights: [Weight] = []
    /// Names of all tensors that belong to them.
    private(set) var used: Set<String> = []
    private let tensors: [String: SafetensorsTensor]

    /// - Parameter tensors: all of the model, by name; those that are not quantised are left alone.
    init(_ tensors: [String: SafetensorsTensor]) throws {
        self.tensors = tensors
        for name in tensors.keys.sorted() {
            for dataType in DataType.allCases where name.hasSuffix(dataType.stateSuffix) {
                let weight = try makeWeight(String(name.dropLast(dataType.stateSuffix.count)), dataType, state: tensors[name]!)
                weights.append(weight)
            }
        }
        let orphans = tensors.keys.filter { name in
            !used.contains(name)
                && (name.contains(".quant_state.") || Self.companionSuffixes.contains { name.hasSuffix($0) })
        }
        if let orphan = orphans.min() { throw ImportError.orphan(tensor: orphan) }
    }

    private mutating func makeWeight(_ name: String, _ dataType: DataType, state: SafetensorsTensor) throws -> Weight {
        guard let codes = tensors[name] else { throw ImportError.orphan(tensor: state.name) }
        used.formUnion([name, state.name])
        let fields = try QuantState(state)
        try fields.require("quant_type", is: dataType.rawValue)
        try fields.require("blocksize", of: name, CheckpointConversion.nf4Block)
        let (rows, columns) = try fields.shape()
        let (elements, overflow) = rows.multipliedReportingOverflow(by: columns)
        guard !overflow, columns % CheckpointConversion.nf4Block == 0 else {
            throw ImportError.unsupportedShape(
                tensor: name, shape: [rows, columns],
                reason: "whose rows are not whole blocks of \(CheckpointConversion.nf4Block) values")
        }
        try Self.check(codes, .u8, count: elements / 2)
        try checkMap(try companion(name, ".quant_map"), dataType.map)

        let blocks = elements / CheckpointConversion.nf4Block
        let absmax = try companion(name, ".absmax")
        guard tensors[name + ".nested_absmax"] != nil || fields.has("nested_offset") else {
            try Self.check(absmax, .f32, count: blocks)
            return Weight(
                name: name, dataType: dataType, rows: rows, columns: columns, codes: codes, absmax: absmax, nested: nil)
        }
        try Self.check(absmax, .u8, count: blocks)
        try fields.require("nested_blocksize", of: name, CheckpointConversion.nestedBlock)
        let nestedAbsmax = try companion(name, ".nested_absmax")
        try Self.check(nestedAbsmax, .f32, count: CheckpointConversion.nestedCount(blocks) - 1)
        try checkMap(try companion(name, ".nested_quant_map"), CheckpointConversion.absmaxMap)
        return Weight(
            name: name, dataType: dataType, rows: rows, columns: columns, codes: codes, absmax: absmax,
            nested: (nestedAbsmax, try fields.offset()))
    }

    private mutating func companion(_ weight: String, _ suffix: String) throws -> SafetensorsTensor {
        guard let tensor = tensors[weight + suffix] else {
            throw ImportError.missingCompanion(tensor: weight, companion: weight + suffix)
        }
        used.insert(tensor.name)
        return tensor
    }

    private static func check(_ tensor: SafetensorsTensor, _ dtype: SafetensorsDType, count: Int) throws {
        let found = tensor.range.count / tensor.dtype.byteCount
        guard tensor.dtype == dtype, found == count else {
            throw ImportError.wrongCompanion(
                tensor: tensor.name, expected: "\(count) \(dtype.rawValue) values",
                found: "\(found) \(tensor.dtype.rawValue) values")
        }
    }

    /// Equal but for the last places, which depend on the version of torch that computed the map.
    private func checkMap(_ tensor: SafetensorsTensor, _ expected: [Float]) throws {
        try Self.check(tensor, .f32, count: expected.count)
        for (index, (value, known)) in zip(tensor.floats()!, expected).enumerated() {
            guard abs(value - known) <= 4 * known.ulp else {
                throw ImportError.unknownQuantMap(tensor: tensor.name, index: index, value: value, expected: known)
            }
        }
    }

    /// The JSON that a tensor's bytes are.
    private struct QuantState {
        let name: String
        let fields: JSONText

        init(_ tensor: SafetensorsTensor) throws {
            name = tensor.name
            guard tensor.dtype == .u8, tensor.range.count <= BitsAndBytesWeights.stateLimitBytes else {
                throw ImportError.wrongCompanion(
                    tensor: tensor.name, expected: "at most \(BitsAndBytesWeights.stateLimitBytes) U8 values",
                    found: "\(tensor.range.count) bytes of \(tensor.dtype.rawValue)")
            }
            do {
                fields = try tensor.withBytes { bytes throws(JSONTextError) in try JSONText(parsing: bytes) }
            } catch {
                throw ImportError.badJSON(file: tensor.name, error)
            }
        }

        func has(_ field: String) -> Bool { fields[field] != nil }

        func require(_ field: String, is value: String) throws {
            guard fields[field]?.string == value else {
                throw ImportError.badQuantState(tensor: name, field: field, expected: "\"\(value)\"")
            }
        }

        func require(_ field: String, of weight: String, _ supported: Int) throws {
            guard let elements = fields[field]?.integer else {
                throw ImportError.badQuantState(tensor: name, field: field, expected: "an integer")
            }
            guard elements == supported else {
                throw ImportError.unsupportedBlock(tensor: weight, field: field, elements: elements, supported: supported)
            }
        }

        func shape() throws -> (rows: Int, columns: Int) {
            let extents = fields["shape"]?.array?.compactMap(\.integer) ?? []
            guard extents.count == 2, fields["shape"]?.array?.count == 2, extents.allSatisfy({ $0 > 0 }) else {
                throw ImportError.badQuantState(tensor: name, field: "shape", expected: "two positive integers")
            }
            return (extents[0], extents[1])
        }

        /// Written as the shortest decimal of a binary64 that an F32 value is exactly.
        func offset() throws -> Float {
            guard let offset = fields["nested_offset"]?.double.map(Float.init), offset.isFinite else {
                throw ImportError.badQuantState(tensor: name, field: "nested_offset", expected: "a finite number")
            }
            return offset
        }
    }
}
