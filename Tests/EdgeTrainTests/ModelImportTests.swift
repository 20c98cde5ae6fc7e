// Imports of what transformers, bitsandbytes and gguf-py really write (Tests/Goldens/import): the container has their bytes.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import Glibc
import Testing

/// A directory to import from, whose files a test may change.
struct ImportSource {
    let scratch: ScratchDirectory
    private(set) var names: [String]

    init(_ files: [String: [UInt8]] = [:]) throws {
        scratch = try ScratchDirectory()
        names = []
        for (name, bytes) in files { try put(name, bytes) }
    }

    /// A copy of Tests/Goldens/import/`golden`.
    init(golden: String) throws {
        try self.init()
        let directory = TestModel.repositoryRoot + "/Tests/Goldens/import/" + golden
        for name in try AtomicDirectoryProbe.names(directory) {
            try put(name, try ByteRegion.map(path: directory + "/" + name).withBytes { Array($0) })
        }
    }

    mutating func put(_ name: String, _ bytes: [UInt8]) throws {
        try AtomicFile.write(to: path(name), bytes)
        if !names.contains(name) { names.append(name) }
    }

    /// In place: quicker than a new file, and nothing for one that is being imported.
    func overwrite(_ name: String, _ bytes: [UInt8]) throws {
        let descriptor = open(path(name), O_WRONLY | O_TRUNC | O_CLOEXEC)
        guard descriptor >= 0 else { throw FileError(operation: "open", path: path(name), errno: errno) }
        defer { close(descriptor) }
        guard write(descriptor, bytes, bytes.count) == bytes.count else {
            throw FileError(operation: "write", path: path(name), errno: errno)
        }
    }

    mutating func put(_ name: String, text: String) throws { try put(name, Array(text.utf8)) }

    mutating func remove(_ name: String) { names.removeAll { $0 == name } }

    func path(_ name: String) -> String { scratch.path + "/" + name }

    func read(_ name: String) throws -> [UInt8] { try scratch.read(name) }

    var files: [String: String] { Dictionary(uniqueKeysWithValues: names.map { ($0, path($0)) }) }

    func opened() throws -> ModelImport { try ModelImport(files: files) }

    func imported() throws -> [UInt8] {
        let model = try opened()
        try model.write(to: path("out.gguf")) { _ in }
        let bytes = try read("out.gguf")
        #expect(bytes.count == model.outputBytes.bytes)
        return bytes
    }
}

struct ModelImportTests {
    private static func container(_ source: ImportSource) throws -> GGUFFile {
        try GGUFFile(ByteRegion.copy(of: source.imported()))
    }

    private static func bytes(_ file: GGUFFile, _ name: String) throws -> [UInt8] {
        try #require(file.tensor(named: name), "\(name)").withBytes { Array($0) }
    }

    private static func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

    @Test("a bf16 directory in shards becomes what bitsandbytes makes of it, to the byte")
    func quantised() throws {
        let source = try ImportSource(golden: "bf16")
        let ours = try Self.container(source), theirs = try Self.container(try ImportSource(golden: "nf4"))
        #expect(ours.tensors.map(\.name) == theirs.tensors.map(\.name))
        for tensor in ours.tensors {
            let other = try #require(theirs.tensor(named: tensor.name))
            #expect(tensor.shape == other.shape && tensor.type == other.type, "\(tensor.name)")
            #expect(try Self.bytes(ours, tensor.name) == Self.bytes(theirs, tensor.name), "\(tensor.name)")
        }
        let gate = "model.layers.0.mlp.gate_proj.weight"
        #expect(ours.tensor(named: gate + ".nf4")?.shape == [320, 32])
        #expect(ours.tensor(named: gate + ".absmax")?.shape == [320])
        // 320 blocks are two nested ones; then the offset.
        #expect(ours.tensor(named: gate + ".nested")?.shape == [3])
        #expect(ours.tensor(named: "model.embed_tokens.weight")?.type == .bf16)
        #expect(ours.tensor(named: "model.norm.weight")?.type == .f32)

        #expect(try ours.string("general.architecture") == "huggingface")
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            #expect(try ours.string("edgetune." + name) == Self.text(source.read(name)))
        }
        #expect(try ours.string("tokenizer.chat_template") == Self.text(source.read("chat_template.jinja")))
        // nf4/ was saved without a tokenizer.
        #expect(theirs.metadata["edgetune.tokenizer.json"] == nil && theirs.metadata["tokenizer.chat_template"] == nil)
    }

    @Test("what bitsandbytes has quantised is stored as it is", arguments: [("nf4", "nf4"), ("nf4-plain", "nf4"), ("fp4", "fp4")])
    func repacked(_ golden: String, _ codes: String) throws {
        let source = try ImportSource(golden: golden)
        let file = try Self.container(source)
        let weights = try SafetensorsFile.open(path: source.path("model.safetensors"))
        func original(_ name: String) throws -> [UInt8] { try #require(weights.tensor(named: name)).withBytes { Array($0) } }
        let linears = weights.tensors.map(\.name).filter { $0.hasSuffix("_proj.weight") }
        #expect(linears.count == 7)
        for linear in linears {
            #expect(try Self.bytes(file, linear + "." + codes) == original(linear))
            #expect(try Self.bytes(file, linear + ".absmax") == original(linear + ".absmax"))
            guard golden != "nf4-plain" else {
                #expect(file.tensor(named: linear + ".absmax")?.type == .f32)
                #expect(file.tensor(named: linear + ".nested") == nil)
                continue
            }
            #expect(file.tensor(named: linear + ".absmax")?.type == .i8)
            let state = try original(linear + ".quant_state.bitsandbytes__" + codes)
            let offset = try #require(try state.withUnsafeBytes { try JSONText(parsing: $0) }["nested_offset"]?.double)
            let nested = try Self.bytes(file, linear + ".nested")
            #expect(try Array(nested.dropLast(4)) == original(linear + ".nested_absmax"))
            #expect(nested.suffix(4).elementsEqual(withUnsafeBytes(of: Float(offset)) { Array($0) }))
        }
        // Codes, absmax and nested absmax of each; embedding and three norms.
        #expect(file.tensors.count == 7 * (golden == "nf4-plain" ? 2 : 3) + 4)
    }

    @Test("a split GGUF becomes the GGUF that was not split, to the byte")
    func split() throws {
        var source = try ImportSource(golden: "split")
        let whole = try source.read("whole.gguf")
        source.remove("whole.gguf")
        #expect(source.names.count == 3)
        #expect(try source.imported() == whole)
    }

    @Test("float types: 1-D widened, 2-D in 16 bits, and rows that are not whole blocks stay")
    func floatTypes() throws {
        let values: [Float] = [1, 1.00390625, 1.01171875, Float(bitPattern: 0x8020_AAB5), .infinity, 0.1, -1e30, 65504]
        let halves: [UInt16] = [0x3C00, 0x0001, 0x8400, 0x7BFF], bfloats: [UInt16] = [0x3F80, 0x0001, 0xFF7F, 0xC000]
        func body(_ words: [UInt16]) -> TensorBody { .bytes(words.flatMap { [UInt8($0 & 255), UInt8($0 >> 8)] }) }
        var weights = SafetensorsWriter(metadata: [:])
        try weights.add("f32", dtype: .f32, shape: [8], body: .floats(values))
        try weights.add("f32.matrix", dtype: .f32, shape: [2, 4], body: .floats(values))
        try weights.add("f16", dtype: .f16, shape: [4], body: body(halves))
        try weights.add("f16.matrix", dtype: .f16, shape: [2, 2], body: body(halves))
        try weights.add("bf16", dtype: .bf16, shape: [4], body: body(bfloats))
        try weights.add("bf16.cube", dtype: .bf16, shape: [2, 2, 1], body: body(bfloats))
        try weights.add("scalar", dtype: .f32, shape: [], body: .floats([2]))
        try weights.add("model.layers.10.x_proj.weight", dtype: .f32, shape: [2, 4], body: .floats(values))
        try weights.add("model.layers.9.x_proj.weight", dtype: .f32, shape: [2, 4], body: .floats(values))
        try weights.add(
            "layers.0.lm_head.bias", dtype: .f32, shape: [1, 64], body: .floats([Float](repeating: 1, count: 64)))
        let file = try Self.container(
            ImportSource(["config.json": Array("{}".utf8), "model.safetensors": try weights.encoded()]))

        #expect(file.tensors.map(\.name) == [
            "bf16", "bf16.cube", "f16", "f16.matrix", "f32", "f32.matrix", "layers.0.lm_head.bias",
            "model.layers.9.x_proj.weight", "model.layers.10.x_proj.weight", "scalar",
        ])
        func floats(_ name: String) throws -> [UInt32] {
            let tensor = try #require(file.tensor(named: name))
            #expect(tensor.type == .f32)
            return try Self.bytes(file, name).withUnsafeBytes { bytes in
                (0..<bytes.count / 4).map { bytes.loadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self) }
            }
        }
        #expect(try floats("f32") == values.map(\.bitPattern))
        #expect(try floats("f16") == halves.map { Float(Float16(bitPattern: $0)).bitPattern })
        #expect(try floats("bf16") == bfloats.map { UInt32($0) << 16 })
        #expect(try floats("scalar") == [Float(2).bitPattern])
        #expect(file.tensor(named: "f16.matrix")?.type == .f16)
        #expect(body(halves) == .bytes(try Self.bytes(file, "f16.matrix")))
        #expect(file.tensor(named: "bf16.cube")?.shape == [2, 2, 1])
        // Ties to even: 1 + 1/256 is half way between 1 and the next, 1 + 3/256 half way to an even one above.
        let rounded: [UInt16] = [0x3F80, 0x3F80, 0x3F82, 0x8021, 0x7F80, 0x3DCD, 0xF14A, 0x4780]
        for name in ["f32.matrix", "model.layers.9.x_proj.weight"] {
            #expect(file.tensor(named: name)?.type == .bf16)
            #expect(body(rounded) == .bytes(try Self.bytes(file, name)), "\(name)")
        }
    }

    @Test("a chat template comes from its file, else from tokenizer_config.json, there from the list's default")
    func chatTemplates() throws {
        let weights = try ImportSource(golden: "bf16")
        for (config, expected) in [
            (#"{"chat_template": "one"}"#, "one"), (#"{"chat_template": null}"#, nil), ("{}", nil),
            (#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#, "d"),
            (#"{"chat_template": [{"name": "rag", "template": "r"}]}"#, nil),
        ] {
            var source = weights
            source.remove("chat_template.jinja")
            try source.put("tokenizer_config.json", text: config)
            #expect(try Self.container(source).metadata["tokenizer.chat_template"]?.string == expected)
        }
    }
}

private struct Interruption: Error {}

struct ImportContinuationTests {
    /// Stops after `calls` reports of progress; returns where it went on from, and whether it came to its end.
    private static func write(_ source: ImportSource, stoppingAfter calls: Int) throws -> (from: Int, isComplete: Bool) {
        var reports = 0, from = 0
        do {
            try source.opened().write(to: source.path("out.gguf"), markBytes: 4096) { done in
                if reports == 0 { from = done }
                reports += 1
                if reports > calls { throw Interruption() }
            }
            return (from, true)
        } catch is Interruption {
            return (from, false)
        }
    }

    @Test("interrupted anywhere, and continued, the file has the same bytes", arguments: ["bf16", "nf4", "split"])
    func interruptedAnywhere(_ golden: String) throws {
        var source = try ImportSource(golden: golden)
        if golden == "split" { source.remove("whole.gguf") }
        let expected = try source.imported()
        var stop = 0, continued = 0
        while true {
            #expect(unlink(source.path("out.gguf")) == 0)
            stop += 1
            guard try !Self.write(source, stoppingAfter: stop).isComplete else { break }
            #expect(try !source.scratch.names().contains("out.gguf"))
            let rest = try Self.write(source, stoppingAfter: .max)
            #expect(rest.isComplete)
            continued += rest.from > 0 ? 1 : 0
            #expect(try source.read("out.gguf") == expected, "stopped after \(stop)")
        }
        #expect(stop > 20)
        // split/ is smaller than what lies between two marks.
        #expect(golden == "split" || continued > 10, "\(continued) of \(stop)")
    }

    @Test("many interruptions in a row come to the end")
    func interruptedAgainAndAgain() throws {
        let source = try ImportSource(golden: "bf16")
        let expected = try source.imported()
        #expect(unlink(source.path("out.gguf")) == 0)
        var calls = 0, from = 0
        while true {
            // Enough for the longest way between two marks, and a bit.
            let part = try Self.write(source, stoppingAfter: 14)
            #expect(part.from >= from)
            from = part.from
            calls += 1
            if part.isComplete { break }
            #expect(calls < 100)
        }
        #expect(calls > 2)
        #expect(try source.read("out.gguf") == expected)
    }

    @Test("a source that has changed is imported from the start")
    func changedSource() throws {
        var source = try ImportSource(golden: "bf16")
        #expect(try !Self.write(source, stoppingAfter: 25).isComplete)
        // The same bytes in a new file: it cannot be known that they are the same.
        try source.put("model-00001-of-00002.safetensors", source.read("model-00001-of-00002.safetensors"))
        #expect(try Self.write(source, stoppingAfter: 25).from == 0)
        #expect(try Self.write(source, stoppingAfter: 25).from > 0)
    }

    @Test("a value that is not finite stops the import and is named")
    func notFinite() throws {
        var values = [Float](repeating: 1, count: 128)
        values[77] = .nan
        var weights = SafetensorsWriter(metadata: [:])
        try weights.add("model.layers.0.q_proj.weight", dtype: .f32, shape: [2, 64], body: .floats(values))
        let source = try ImportSource(["config.json": Array("{}".utf8), "model.safetensors": try weights.encoded()])
        #expect(throws: ImportError.notFinite(tensor: "model.layers.0.q_proj.weight", index: 77)) { try source.imported() }
        #expect(try !source.scratch.names().contains("out.gguf"))
        try ModelImport.discard(source.path("out.gguf"))
        #expect(try source.scratch.names() == ["config.json", "model.safetensors"])
    }
}
