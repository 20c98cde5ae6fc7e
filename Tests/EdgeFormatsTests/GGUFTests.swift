// Claims: a valid file reads back as written; every corruption of every header field, every truncation and every
// mutation either parses or throws GGUFError, and never traps or reads outside the file.
import EdgeFormats
import Testing

/// SplitMix64 (Steele, Lea & Flood 2014), and the mutations that parsers get wrong.
struct Mutator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    mutating func mutate(_ bytes: [UInt8]) -> [UInt8] {
        var mutant = bytes
        for _ in 0...(next() % 3) where !mutant.isEmpty {
            let at = Int(next() % UInt64(mutant.count))
            switch next() % 6 {
            case 0: mutant[at] ^= 1 << UInt8(next() % 8)
            case 1: mutant[at] = [0, 1, 0x7F, 0x80, 0xFF][Int(next() % 5)]
            case 2: mutant.removeSubrange(at...)
            case 3: mutant.remove(at: at)
            case 4: mutant.insert(UInt8(truncatingIfNeeded: next()), at: at)
            default: for i in at..<min(at + 8, mutant.count) { mutant[i] = 0xFF }
            }
        }
        return mutant
    }
}

/// A GGUF header as a list of fields, so that a test can corrupt one by name.
private struct Fields {
    struct Field {
        let name: String
        var bytes: [UInt8]
    }
    var fields: [Field] = []

    mutating func add<T: FixedWidthInteger>(_ name: String, _ value: T) {
        fields.append(Field(name: name, bytes: withUnsafeBytes(of: value.littleEndian) { Array($0) }))
    }

    mutating func add(_ name: String, text: String) {
        add(name + " length", UInt64(text.utf8.count))
        fields.append(Field(name: name + " text", bytes: Array(text.utf8)))
    }

    var bytes: [UInt8] { fields.flatMap(\.bytes) }

    func replacing(_ name: String, _ value: UInt64) -> Fields {
        var copy = self
        let index = copy.fields.firstIndex { $0.name == name }!
        let size = copy.fields[index].bytes.count
        copy.fields[index].bytes = withUnsafeBytes(of: value.littleEndian) { Array($0.prefix(size)) }
        return copy
    }

    static func sample(secondTensor: String = "b", secondKey: String = "tokens") -> Fields {
        var header = Fields()
        header.add("magic", 0x4655_4747 as UInt32)
        header.add("version", 3 as UInt32)
        header.add("tensor count", 2 as UInt64)
        header.add("kv count", 3 as UInt64)
        header.add("key 0", text: "general.alignment")
        header.add("key 0 type", 4 as UInt32)
        header.add("alignment", 32 as UInt32)
        header.add("key 1", text: secondKey)
        header.add("key 1 type", 9 as UInt32)
        header.add("element type", 8 as UInt32)
        header.add("element count", 2 as UInt64)
        header.add("token 0", text: "ab")
        header.add("token 1", text: "c")
        header.add("key 2", text: "flag")
        header.add("key 2 type", 7 as UInt32)
        header.add("flag", 1 as UInt8)
        for (name, type, offset) in [("a", 0, 0), (secondTensor, 3, 256)] as [(String, UInt32, UInt64)] {
            header.add("tensor \(offset)", text: name)
            header.add("dimensions \(offset)", 2 as UInt32)
            header.add("dimension 0 of \(offset)", 32 as UInt64)
            header.add("dimension 1 of \(offset)", 2 as UInt64)
            header.add("type \(offset)", type)
            header.add("offset \(offset)", offset)
        }
        return header
    }

    /// The header, padded, and 296 bytes of data: 256 for "a", 2 * 20 for "b".
    var file: [UInt8] {
        let header = bytes
        return header + [UInt8](repeating: 0, count: (32 - header.count % 32) % 32 + 296)
    }
}

struct GGUFTests {
    private static func open(_ bytes: [UInt8]) throws -> GGUFFile { try GGUFFile(ByteRegion.copy(of: bytes)) }

    /// Everything a caller can touch.
    private static func readAll(_ file: GGUFFile) {
        for value in file.metadata.values {
            _ = (value.integer, value.float, value.bool, value.string, value.stringBytes)
            _ = (value.integerArray, value.floatArray, value.boolArray, value.stringBytesArray, value.stringArray)
        }
        for tensor in file.tensors {
            #expect(tensor.withBytes { $0.count } == tensor.byteCount)
            _ = tensor.withBytes { $0.reduce(0, &+) }
        }
    }

    @Test func whatIsWrittenReadsBack() throws {
        var writer = GGUFWriter()
        try writer.add("general.architecture", .string("llama"))
        try writer.add("count", .uint32(.max))
        try writer.add("big", .uint64(1 << 40))
        try writer.add("scale", .float32(0.1))
        try writer.add("flag", .bool(true))
        try writer.add("types", .integers([-1, 2]))
        try writer.add("scores", .floats([0.5, -1]))
        try writer.add("tokens", .strings([[0xFF], Array("é".utf8), []]))
        try writer.addTensor("w", shape: [2, 3], type: .f32, body: .floats([1, 2, 3, 4, 5, 6]))
        try writer.addTensor("q", shape: [32], type: .q8_0, body: .bytes([UInt8](repeating: 9, count: 34)))
        let file = try Self.open(writer.encoded())

        #expect(try file.string("general.architecture") == "llama")
        #expect(try file.integer("count") == Int(UInt32.max))
        #expect(try file.integer("big") == 1 << 40)
        #expect(try Float(file.float("scale")) == 0.1)
        #expect(try file.bool("flag"))
        #expect(try file.integerArray("types") == [-1, 2])
        #expect(try file.floatArray("scores") == [0.5, -1])
        #expect(try file.stringBytesArray("tokens") == [[0xFF], Array("é".utf8), []])
        #expect(file.metadata["tokens"]?.stringArray == nil)
        #expect(throws: GGUFError.missingKey("none")) { try file.string("none") }
        #expect(throws: GGUFError.wrongType(key: "count", expected: "a UTF-8 string", found: "uint32")) {
            try file.string("count")
        }
        #expect(file.tensors.map(\.name) == ["w", "q"])
        let w = try #require(file.tensor(named: "w"))
        #expect(w.shape == [2, 3] && w.type == .f32 && w.byteCount == 24)
        #expect(w.withBytes { Array($0) } == [1, 2, 3, 4, 5, 6].flatMap { (x: Float) in withUnsafeBytes(of: x) { Array($0) } })
        #expect(file.tensor(named: "q")?.withBytes { $0.first } == 9)
        #expect(file.fingerprint.count == "sha256:".count + 64)
    }

    @Test func versionsTwoAndThreeOpen() throws {
        for version in [2, 3] as [UInt64] {
            let file = try Self.open(Fields.sample().replacing("version", version).file)
            #expect(file.version == UInt32(version) && file.tensors.count == 2)
        }
    }

    @Test func everyFieldCorruptionParsesOrThrowsItsOwnError() throws {
        let sample = Fields.sample()
        let total = UInt64(sample.file.count)
        var refused = 0
        for field in sample.fields where field.bytes.count <= 8 && !field.name.hasSuffix("text") {
            let bits = UInt64(field.bytes.count * 8)
            let most = bits == 64 ? UInt64.max : (1 << bits) - 1
            let signBit: UInt64 = 1 << (bits - 1)
            let values: [UInt64] = [0, 1, 2, most, most - 1, signBit, signBit - 1, total, total - 1, total + 1]
            for value in values {
                do {
                    Self.readAll(try Self.open(sample.replacing(field.name, value).file))
                } catch {
                    #expect(error is GGUFError, "\(field.name) = \(value): \(error)")
                    refused += 1
                }
            }
        }
        #expect(refused > 150)
    }

    @Test func everyTruncationIsRefused() throws {
        let file = Fields.sample().file
        for count in 0..<file.count {
            #expect(throws: GGUFError.self, "first \(count) bytes") { try Self.open(Array(file[..<count])) }
        }
        _ = try Self.open(file)
    }

    @Test func wrongPreamblesAreNamed() {
        let sample = Fields.sample()
        #expect(throws: GGUFError.notGGUF(magic: 7)) { try Self.open(sample.replacing("magic", 7).file) }
        #expect(throws: GGUFError.bigEndian) { try Self.open(sample.replacing("version", 3 << 24).file) }
        #expect(throws: GGUFError.unsupportedVersion(1)) { try Self.open(sample.replacing("version", 1).file) }
        #expect(throws: GGUFError.truncated(.magic, offset: 0, neededBytes: 4, remainingBytes: 0)) { try Self.open([]) }
    }

    @Test func overflowingCountsAreRefusedBeforeAllocation() throws {
        let sample = Fields.sample()
        for name in ["tensor count", "kv count", "element count"] {
            for value in [.max, 1 << 63, 1 << 61, (1 << 61) + 1, 1 << 32] as [UInt64] {
                let error = #expect(throws: GGUFError.self) { try Self.open(sample.replacing(name, value).file) }
                guard case .tooMany(_, value, _) = error else {
                    Issue.record("\(name) = \(value): \(String(describing: error))")
                    continue
                }
            }
        }
        #expect(throws: GGUFError.tooMany(.value, count: 1 << 60, limit: GGUFFile.stringLimitBytes)) {
            try Self.open(sample.replacing("token 0 length", 1 << 60).file)
        }
        // 2^32 * 2^32 wraps to 0 in 64 bits.
        let wrapped = sample.replacing("dimension 0 of 0", 1 << 32).replacing("dimension 1 of 0", 1 << 32)
        #expect(throws: GGUFError.tooLarge(tensor: "a", dimensions: [1 << 32, 1 << 32])) { try Self.open(wrapped.file) }
    }

    @Test func duplicatesAreRefused() {
        #expect(throws: GGUFError.duplicateTensor("a")) { try Self.open(Fields.sample(secondTensor: "a").file) }
        #expect(throws: GGUFError.duplicateKey("general.alignment")) {
            try Self.open(Fields.sample(secondKey: "general.alignment").file)
        }
    }

    @Test func tensorPlacementIsChecked() {
        let sample = Fields.sample()
        #expect(throws: GGUFError.overlap(tensor: "a", with: "b")) {
            try Self.open(sample.replacing("offset 256", 224).file)
        }
        #expect(throws: GGUFError.misaligned(tensor: "b", offset: 257, alignment: 32)) {
            try Self.open(sample.replacing("offset 256", 257).file)
        }
        #expect(throws: GGUFError.outsideFile(tensor: "b", offset: 288, byteCount: 40, dataBytes: 296)) {
            try Self.open(sample.replacing("offset 256", 288).file)
        }
        #expect(throws: GGUFError.self) { try Self.open(sample.replacing("offset 256", .max - 31).file) }
    }

    @Test func tensorDescriptionsAreChecked() {
        let sample = Fields.sample()
        #expect(throws: GGUFError.badDimensionCount(tensor: "a", count: 5)) {
            try Self.open(sample.replacing("dimensions 0", 5).file)
        }
        #expect(throws: GGUFError.zeroDimension(tensor: "a", index: 1)) {
            try Self.open(sample.replacing("dimension 1 of 0", 0).file)
        }
        #expect(throws: GGUFError.unknownTensorType(tensor: "a", raw: 4)) {
            try Self.open(sample.replacing("type 0", 4).file)
        }
        #expect(throws: GGUFError.partialBlock(tensor: "b", rowElements: 33, blockElements: 32)) {
            try Self.open(sample.replacing("dimension 0 of 256", 33).file)
        }
        #expect(throws: GGUFError.badAlignment(48)) { try Self.open(sample.replacing("alignment", 48).file) }
        #expect(throws: GGUFError.nestedArray(key: "tokens")) {
            try Self.open(sample.replacing("element type", 9).file)
        }
        #expect(throws: GGUFError.unknownValueType(key: "flag", raw: 13)) {
            try Self.open(sample.replacing("key 2 type", 13).file)
        }
        #expect(throws: GGUFError.invalidBool(key: "flag", byte: 2)) {
            try Self.open(sample.replacing("flag", 2).file)
        }
    }

    @Test func mutationsParseOrThrowGGUFError() {
        let file = Fields.sample().file
        let seed: UInt64 = 0x6707F
        var mutator = Mutator(seed: seed)
        var (opened, refused) = (0, 0)
        for round in 0..<20_000 {
            do {
                Self.readAll(try Self.open(mutator.mutate(file)))
                opened += 1
            } catch {
                #expect(error is GGUFError, "seed \(seed) round \(round): \(error)")
                refused += 1
            }
        }
        // Both happen, or the fuzzer reaches nothing.
        #expect(opened > 1000 && refused > 1000, "seed \(seed): \(opened) opened, \(refused) refused")
    }

    @Test func everyTypeHasWholeBlocks() {
        for type in GGMLType.allCases {
            #expect(type.blockElements > 0 && type.blockBytes > 0 && !type.name.isEmpty)
        }
        #expect(GGMLType.q4_1.blockBytes == 20 && GGMLType.q6_k.blockBytes == 210)
    }
}
