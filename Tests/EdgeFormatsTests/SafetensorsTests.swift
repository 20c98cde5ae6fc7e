// Claims: the writer gives the Rust library's bytes; every malformed header throws SafetensorsError and never traps.
import EdgeFormats
import Testing

struct SafetensorsTests {
    private static func open(_ bytes: [UInt8]) throws -> SafetensorsFile {
        try SafetensorsFile(ByteRegion.copy(of: bytes))
    }

    private static func file(_ json: String, data: Int) -> [UInt8] {
        withUnsafeBytes(of: UInt64(json.utf8.count).littleEndian) { Array($0) } + Array(json.utf8)
            + [UInt8](repeating: 0, count: data)
    }

    private static func sample() throws -> [UInt8] {
        var writer = SafetensorsWriter(metadata: ["format": "pt"])
        try writer.add("b", dtype: .f32, shape: [3], body: .floats([0, 1, 2]))
        try writer.add("a", dtype: .f32, shape: [2, 2], body: .floats([1, 1, 1, 1]))
        try writer.add("h", dtype: .f16, shape: [1], body: .bytes([0x00, 0x3C]))
        try writer.add("i", dtype: .i64, shape: [1], body: .bytes([UInt8](repeating: 0, count: 8)))
        return try writer.encoded()
    }

    /// The header is what safetensors 0.8.0 for Python writes for the same dictionary.
    @Test func headerIsTheRustLibrarys() throws {
        let expected = """
            {"__metadata__":{"format":"pt"},"i":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},\
            "a":{"dtype":"F32","shape":[2,2],"data_offsets":[8,24]},"b":{"dtype":"F32","shape":[3],\
            "data_offsets":[24,36]},"h":{"dtype":"F16","shape":[1],"data_offsets":[36,38]}}
            """
        let bytes = try Self.sample()
        let headerBytes = Int(bytes[0]) + Int(bytes[1]) << 8
        #expect(headerBytes % 8 == 0)
        let header = String(decoding: bytes[8..<8 + headerBytes], as: UTF8.self)
        #expect(header.prefix(expected.count) == expected)
        #expect(header.dropFirst(expected.count).allSatisfy { $0 == " " })
    }

    @Test func whatIsWrittenReadsBack() throws {
        let file = try Self.open(Self.sample())
        #expect(file.metadata == ["format": "pt"])
        #expect(file.tensors.map(\.name) == ["i", "a", "b", "h"])
        #expect(file.tensor(named: "b")?.floats() == [0, 1, 2])
        #expect(file.tensor(named: "h")?.floats() == [1])
        #expect(file.tensor(named: "i")?.floats() == nil)
        #expect(file.tensor(named: "a")?.shape == [2, 2])
    }

    @Test func oddNamesAndEmptyTensorsSurvive() throws {
        var writer = SafetensorsWriter(metadata: ["k\"\\\n\u{1}": "é\u{1F600}"])
        try writer.add("empty", dtype: .f32, shape: [0, 3], body: .floats([]))
        try writer.add("scalar", dtype: .f32, shape: [], body: .floats([4]))
        let file = try Self.open(writer.encoded())
        #expect(file.metadata == ["k\"\\\n\u{1}": "é\u{1F600}"])
        #expect(file.tensor(named: "scalar")?.floats() == [4])
        #expect(file.tensor(named: "empty")?.withBytes { $0.count } == 0)
    }

    @Test(arguments: [
        (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#, 4),
        (#"[]"#, 0),
        (#" {}"#, 0),
        (#"{"a":1}"#, 0),
        (#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#, 4),
        (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,3]}}"#, 3),
        (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4),
        (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 5),
        (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 3),
        (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8),
        (#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4),
        (#"{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}"#, 4),
        (#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0),
        (#"{"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}}"#, 4),
        (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8),
        (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4),
        (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#, 4),
        (#"{"__metadata__":{"a":1}}"#, 0),
        (#"{"__metadata__":{"a":"1","a":"2"}}"#, 0),
        (#"{"\ud800":1}"#, 0),
    ])
    func malformedHeadersAreRefused(json: String, data: Int) {
        #expect(throws: SafetensorsError.self) { try Self.open(Self.file(json, data: data)) }
    }

    @Test(arguments: [0, 1, .max, .max - 1, 1 << 63, 16 << 20 + 1, 58, 60] as [UInt64])
    func wrongHeaderLengthsAreRefused(length: UInt64) {
        var bytes = Self.file(#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, data: 4)
        bytes.replaceSubrange(0..<8, with: withUnsafeBytes(of: length.littleEndian) { Array($0) })
        #expect(throws: SafetensorsError.self) { try Self.open(bytes) }
    }

    @Test func deepNestingIsRefused() {
        let json = "{\"a\":" + String(repeating: "[", count: 100_000)
        #expect(throws: SafetensorsError.badJSON(.tooDeep(limit: 32))) { try Self.open(Self.file(json, data: 0)) }
    }

    @Test func everyTruncationIsRefused() throws {
        let bytes = try Self.sample()
        for count in 0..<bytes.count {
            #expect(throws: SafetensorsError.self, "first \(count) bytes") { try Self.open(Array(bytes[..<count])) }
        }
    }

    @Test func mutationsParseOrThrowSafetensorsError() throws {
        let bytes = try Self.sample()
        let seed: UInt64 = 0x5AFE
        var mutator = Mutator(seed: seed)
        for round in 0..<20_000 {
            do {
                for tensor in try Self.open(mutator.mutate(bytes)).tensors {
                    _ = (tensor.floats(), tensor.withBytes { $0.last })
                }
            } catch {
                #expect(error is SafetensorsError, "seed \(seed) round \(round): \(error)")
            }
        }
    }
}
