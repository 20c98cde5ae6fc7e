// Claims: a source that is incomplete, contradictory or of a kind that is not read is refused with its reason before anything is
// written; whatever bytes it has, opening it throws ImportError or FileError and never traps.
import EdgeFormats
import EdgeModel
import EdgeTestSupport
import Glibc
import Testing

struct ImportRefusalTests {
    private static func refusal(_ source: ImportSource) -> ImportError? {
        #expect(throws: ImportError.self) { try source.opened() }
    }

    /// `weights` of F32 tensors beside an empty config.json.
    private static func directory(_ shapes: [String: [Int]]) throws -> ImportSource {
        try ImportSource(["config.json": Array("{}".utf8), "model.safetensors": weights(shapes)])
    }

    private static func weights(_ shapes: [String: [Int]], _ dtype: SafetensorsDType = .f32) throws -> [UInt8] {
        var writer = SafetensorsWriter(metadata: [:])
        for (name, shape) in shapes.sorted(by: { $0.key < $1.key }) {
            let count = shape.reduce(dtype.byteCount, *)
            try writer.add(name, dtype: dtype, shape: shape, body: .bytes([UInt8](repeating: 0, count: count)))
        }
        return try writer.encoded()
    }

    @Test("names that are paths, links, and directories")
    func names() throws {
        for name in ["", ".", "..", "a/b", "/etc/passwd", "../config.json", "a\u{0}b", "a\nb", String(repeating: "x", count: 256)] {
            #expect(throws: ImportError.badFileName(name)) { try ModelImport(files: [name: "/dev/null"]) }
        }
        let source = try Self.directory(["a": [1]])
        #expect(symlink(source.path("config.json"), source.path("link")) == 0)
        var files = source.files
        files["config.json"] = source.path("link")
        #expect(throws: ImportError.notARegularFile("config.json")) { try ModelImport(files: files) }
        files["config.json"] = source.scratch.path
        #expect(throws: ImportError.notARegularFile("config.json")) { try ModelImport(files: files) }
        files["config.json"] = "/tmp/edgetune-none/config.json"
        #expect(throws: FileError(operation: "lstat", path: "/tmp/edgetune-none/config.json", errno: ENOENT)) {
            try ModelImport(files: files)
        }
        let many = Dictionary(uniqueKeysWithValues: (0...4096).map { ("f\($0)", source.path("config.json")) })
        #expect(throws: ImportError.tooManyFiles(4097, limit: 4096)) { try ModelImport(files: many) }
    }

    @Test("missing files are named with what needs them")
    func missing() throws {
        for name in ["config.json", "model.safetensors.index.json", "model-00002-of-00002.safetensors"] {
            var source = try ImportSource(golden: "bf16")
            source.remove(name)
            guard case .missingFile(let missing, _)? = Self.refusal(source) else {
                Issue.record("\(name) is not missed")
                continue
            }
            #expect(missing == name)
        }
        var pickled = try ImportSource(["config.json": Array("{}".utf8)])
        #expect(Self.refusal(pickled).map { "\($0)" }?.hasPrefix("model.safetensors is missing") == true)
        try pickled.put("pytorch_model.bin", [0x80, 0x02])
        #expect(Self.refusal(pickled) == .pickledWeights(["pytorch_model.bin"]))
        #expect(Self.refusal(pickled).map { "\($0)" }?.contains("convert them to safetensors") == true)
        // Beside safetensors they are left alone.
        try pickled.put("model.safetensors", Self.weights(["a": [1]]))
        _ = try pickled.opened()
        try pickled.put("model.safetensors", text: "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
        #expect(Self.refusal(pickled) == .lfsPointer(file: "model.safetensors", bytes: 63))
    }

    @Test("an index and its shards that do not agree")
    func index() throws {
        let a = "model-00001-of-00002.safetensors", b = "model-00002-of-00002.safetensors"
        func source(_ map: String, _ first: [String: [Int]], _ second: [String: [Int]]) throws -> ImportSource {
            try ImportSource([
                "config.json": Array("{}".utf8), a: Self.weights(first), b: Self.weights(second),
                "model.safetensors.index.json": Array("{\"weight_map\": \(map)}".utf8),
            ])
        }
        let map = "{\"x\": \"\(a)\", \"y\": \"\(b)\"}"
        _ = try source(map, ["x": [1]], ["y": [1]]).opened()
        #expect(Self.refusal(try source(map, ["x": [1]], ["z": [1]])) == .tensorNotInIndex("z", shard: b))
        #expect(Self.refusal(try source(map, ["x": [1]], ["x": [1], "y": [1]])) == .tensorInTwoShards("x", a, b))
        #expect(Self.refusal(try source(map, ["y": [1]], ["x": [1]])) == .tensorMissingInShard("y", shard: b))
        #expect(Self.refusal(try source(map, ["x": [1]], [:])) == .tensorMissingInShard("y", shard: b))
        #expect(Self.refusal(try source("{\"x\": \"\(a)\"}", ["x": [1]], ["y": [1]])) == .ambiguousWeights([a, b]))
        #expect(Self.refusal(try source("{}", [:], [:])) == .ambiguousWeights([a, b]))
        #expect(Self.refusal(try source(#"{"x": "../x"}"#, [:], [:])) == .badFileName("../x"))
        #expect(Self.refusal(try source(#"{"x": 1}"#, [:], [:]))
            == .badField(file: "model.safetensors.index.json", field: "weight_map.x", expected: "a file name"))
        var both = try source(map, ["x": [1]], ["y": [1]])
        try both.put("model.safetensors", Self.weights(["x": [1]]))
        #expect(Self.refusal(both) == .ambiguousWeights([a, b, "model.safetensors"]))
    }

    @Test("tensors of types, shapes and names that are not read")
    func tensors() throws {
        #expect(Self.refusal(try Self.directory([:])) == .noTensors)
        #expect(Self.refusal(try Self.directory(["a": [0, 3]]))
            == .unsupportedShape(tensor: "a", shape: [0, 3], reason: "which holds nothing"))
        #expect(Self.refusal(try Self.directory(["a": [1, 1, 1, 1, 1]]))
            == .unsupportedShape(tensor: "a", shape: [1, 1, 1, 1, 1], reason: "of more than 4 dimensions"))
        for dtype in [SafetensorsDType.f8e4m3, .f8e5m2, .f64, .i64, .u8, .bool] {
            let source = try ImportSource(["config.json": Array("{}".utf8), "model.safetensors": Self.weights(["a": [1]], dtype)])
            #expect(Self.refusal(source) == .unsupportedDType(tensor: "a", dtype: dtype.rawValue))
        }
        let clash = try Self.directory(["model.layers.0.q.weight": [1, 64], "model.layers.0.q.weight.nf4": [1]])
        #expect(Self.refusal(clash)
            == .badGGUF(file: "model.layers.0.q.weight.nf4", .duplicateTensor("model.layers.0.q.weight.nf4")))
    }

    @Test("quantisation by others, and a config.json that contradicts the tensors", arguments: [
        (#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#, ImportError.unsupportedQuantisation(method: "gptq")),
        (#"{"quantization_config": {"quant_method": "awq"}}"#, .unsupportedQuantisation(method: "awq")),
        (#"{"quantization_config": {"quant_method": "fp8"}}"#, .unsupportedQuantisation(method: "fp8")),
        (#"{"quantization_config": {"load_in_8bit": true}}"#, .unsupportedQuantisation(method: "bitsandbytes to 8 bits")),
        (#"{"quantization_config": {}}"#, .unsupportedQuantisation(method: "an unnamed method")),
        (
            #"{"quantization_config": {"load_in_4bit": true}}"#,
            .quantisationContradicts(config: "bitsandbytes, 4 bits", tensors: "no tensor is quantised")
        ),
        ("[]", .badField(file: "config.json", field: "the document", expected: "an object")),
        ("{", .badJSON(file: "config.json", .unexpected(expected: "a key", offset: 1))),
    ])
    func quantisation(_ config: String, _ expected: ImportError) throws {
        var source = try Self.directory(["a": [1]])
        try source.put("config.json", text: config)
        #expect(Self.refusal(source) == expected)
    }

    @Test("quantised tensors where config.json does not speak of them")
    func undeclared() throws {
        var source = try ImportSource(golden: "nf4")
        try source.put("config.json", text: "{}")
        guard case .quantisationContradicts(config: "nothing of quantisation", _)? = Self.refusal(source) else {
            Issue.record("accepted")
            return
        }
    }

    // MARK: bitsandbytes

    private static let weight = "model.layers.0.mlp.down_proj.weight"
    private static let state = weight + ".quant_state.bitsandbytes__nf4"

    /// nf4/ with tensors replaced by, or left out for, what `change` says.
    private static func quantised(
        _ change: (_ name: String, _ bytes: [UInt8]) -> [UInt8]?
    ) throws -> ImportSource {
        var source = try ImportSource(golden: "nf4")
        let file = try SafetensorsFile.open(path: source.path("model.safetensors"))
        var writer = SafetensorsWriter(metadata: [:])
        for tensor in file.tensors {
            guard let bytes = change(tensor.name, tensor.withBytes { Array($0) }) else { continue }
            // A changed length makes another shape.
            let isSame = bytes.count == tensor.withBytes { $0.count }
            let shape = isSame ? tensor.shape : [bytes.count / tensor.dtype.byteCount]
            try writer.add(tensor.name, dtype: tensor.dtype, shape: shape, body: .bytes(bytes))
        }
        try source.put("model.safetensors", writer.encoded())
        return source
    }

    /// With `from` in the state of one weight replaced.
    private static func state(_ from: String, _ to: String) throws -> ImportSource {
        try quantised { name, bytes in
            guard name == state else { return bytes }
            let text = String(decoding: bytes, as: UTF8.self)
            #expect(text.contains(from), "\(text)")
            return Array(text.replacing(from, with: to, maxReplacements: 1).utf8)
        }
    }

    @Test("companions that are missing, or belong to nothing")
    func companions() throws {
        for suffix in [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"] {
            let source = try Self.quantised { $0 == Self.weight + suffix ? nil : $1 }
            #expect(Self.refusal(source) == .missingCompanion(tensor: Self.weight, companion: Self.weight + suffix))
        }
        #expect(Self.refusal(try Self.quantised { $0 == Self.state ? nil : $1 }) == .orphan(tensor: Self.weight + ".absmax"))
        #expect(Self.refusal(try Self.quantised { $0 == Self.weight ? nil : $1 }) == .orphan(tensor: Self.state))
    }

    @Test("block sizes, types and shapes of quantised weights that no kernel knows")
    func states() throws {
        #expect(Self.refusal(try Self.state(#""blocksize": 64"#, #""blocksize": 128"#))
            == .unsupportedBlock(tensor: Self.weight, field: "blocksize", elements: 128, supported: 64))
        #expect(Self.refusal(try Self.state(#""nested_blocksize": 256"#, #""nested_blocksize": 512"#))
            == .unsupportedBlock(tensor: Self.weight, field: "nested_blocksize", elements: 512, supported: 256))
        #expect(Self.refusal(try Self.state(#""quant_type": "nf4""#, #""quant_type": "fp4""#))
            == .badQuantState(tensor: Self.state, field: "quant_type", expected: "\"nf4\""))
        #expect(Self.refusal(try Self.state(#""nested_offset": "#, #""nested_offset": 1e999, "was": "#))
            == .badQuantState(tensor: Self.state, field: "nested_offset", expected: "a finite number"))
        #expect(Self.refusal(try Self.state("[64, 320]", "[64]"))
            == .badQuantState(tensor: Self.state, field: "shape", expected: "two positive integers"))
        #expect(Self.refusal(try Self.state("[64, 320]", "[640, 32]"))
            == .unsupportedShape(
                tensor: Self.weight, shape: [640, 32], reason: "whose rows are not whole blocks of 64 values"))
        #expect(Self.refusal(try Self.state("[64, 320]", "[65, 320]"))
            == .wrongCompanion(tensor: Self.weight, expected: "10400 U8 values", found: "10240 U8 values"))
        #expect(Self.refusal(try Self.state("{", "{{"))
            == .badJSON(file: Self.state, .unexpected(expected: "a key", offset: 1)))
    }

    @Test("codes with other values than bitsandbytes'; the last places may differ")
    func maps() throws {
        for (suffix, index) in [(".quant_map", 3), (".nested_quant_map", 200)] {
            func changed(byUlps ulps: Int32) throws -> ImportSource {
                try Self.quantised { name, bytes in
                    guard name == Self.weight + suffix else { return bytes }
                    var bytes = bytes
                    bytes.withUnsafeMutableBytes { raw in
                        let words = raw.bindMemory(to: Int32.self)
                        words[index] += ulps
                    }
                    return bytes
                }
            }
            _ = try changed(byUlps: 2).opened()
            guard case .unknownQuantMap(let tensor, index, _, _)? = Self.refusal(try changed(byUlps: 64)) else {
                Issue.record("\(suffix) is not checked")
                continue
            }
            #expect(tensor == Self.weight + suffix)
        }
    }

    // MARK: Split GGUF

    @Test("a split GGUF of which files are missing, or twice, or that is none")
    func splits() throws {
        var source = try ImportSource(golden: "split")
        #expect(Self.refusal(source) == .notSplit("whole.gguf"))
        var whole = source
        for name in source.names where name != "whole.gguf" { whole.remove(name) }
        #expect(Self.refusal(whole) == .notSplit("whole.gguf"))
        source.remove("whole.gguf")
        let names = source.names.sorted()
        try source.put("again.gguf", source.read(names[1]))
        #expect(Self.refusal(source) == .splitTwice(2, "again.gguf", names[1]))
        source.remove("again.gguf")
        source.remove(names[1])
        #expect(Self.refusal(source) == .splitsMissing([2], of: 3))
        source.remove(names[2])
        #expect(Self.refusal(source) == .splitsMissing([2, 3], of: 3))
        try source.put("model.safetensors", Self.weights(["a": [1]]))
        #expect(Self.refusal(source) == .mixedSources([names[0], "model.safetensors"]))
    }

    @Test("a split GGUF that says it has the least number of files that there is")
    func leastSplitCount() throws {
        var writer = GGUFWriter()
        try writer.add("split.count", .uint64(1 << 63))
        var file = try writer.encoded()
        // The type, after magic, version, counts and the key: an int64 of the same bits.
        file[24 + 8 + "split.count".utf8.count] = UInt8(GGUFValue.Kind.int64.rawValue)
        #expect(
            Self.refusal(try ImportSource(["a.gguf": file]))
                == .splitContradicts(file: "a.gguf", key: "split.no", value: "absent", expected: "0 or more, below \(Int.min)"))
    }

    // MARK: Any bytes

    @Test("mutated files are read or refused", arguments: [
        ("bf16", "model.safetensors.index.json"), ("bf16", "model-00001-of-00002.safetensors"), ("bf16", "config.json"),
        ("bf16", "tokenizer_config.json"), ("nf4", "model.safetensors"), ("split", "tiny-00001-of-00003.gguf"),
        ("split", "tiny-00002-of-00003.gguf"),
    ])
    func mutations(_ golden: String, _ name: String) throws {
        var source = try ImportSource(golden: golden)
        source.remove("whole.gguf")
        source.remove("chat_template.jinja")
        let original = try source.read(name)
        var random = RandomBytes(seed: 20_261_121)
        var refused = 0
        for _ in 0..<400 {
            var bytes = original
            for _ in 0...random.below(3) {
                // Headers are at the start, and short.
                let at = random.below(min(bytes.count, 8192))
                switch random.below(4) {
                case 0: bytes[at] ^= 1 << UInt8(random.below(8))
                case 1: bytes[at] = UInt8(random.below(256))
                case 2: bytes.remove(at: at)
                default: bytes.insert(UInt8(random.below(256)), at: at)
                }
            }
            try source.overwrite(name, bytes)
            do {
                _ = try source.opened()
            } catch let error as ImportError {
                #expect(!"\(error)".isEmpty)
                refused += 1
            }
        }
        #expect(refused > 20, "\(refused) of 400")
    }
}

/// SplitMix64.
private struct RandomBytes {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func below(_ limit: Int) -> Int {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return Int((z ^ (z >> 31)) % UInt64(limit))
    }
}
