// Adapters from elsewhere: PEFT's two files, the tensors LZ4-framed or not, and llama.cpp's one; read, compared with a base of
// a known shape, and loaded where they fit.
//
// Claims: nothing traps; refusals are the typed errors of each part; an adapter that is loaded has finite values only; the heap
// holds at most 160 bytes for each byte of the files, and a frame's content besides.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTrain

extension FuzzTarget {
    /// adapter_config.json, a zero byte, and the file of tensors.
    static let adapter = FuzzTarget(
        name: "adapter", longestInput: 8192,
        // LZ4's densest content is 255 times its block; it is read as values besides.
        heap: HeapClaim(bytesPerByte: 160 + 3 * 255, fixedBytes: 512 << 10),
        errors: [
            LoadedAdapterError.self, AdapterMismatch.self, AdapterError.self, SafetensorsError.self, JSONTextError.self,
            LZ4FrameError.self, GGUFError.self,
        ]
    ) { bytes in
        let parts = Parts.ofText(bytes, most: 2)
        let spec = try SmallModel.spec.get()
        let config = ScratchDirectory.save(parts[0], to: "adapter_config.json")
        let tensors = ScratchDirectory.save(parts.count > 1 ? parts[1] : [], to: "adapter.tensors")
        let adapter = try LoadedAdapter(
            tensors: tensors, config: parts[0].isEmpty ? nil : config, spec: spec, limitBytes: max(8192, 300 * bytes.count))
        // As it is generated with, whatever its method.
        let layout = AdapterLayout(adapter.spec, modules: try adapter.modules(of: spec), of: spec)
        let own = try Arena(capacity: .floats(layout.parameterCount))
        try withExtendedLifetime(own) {
            let set = AdapterSet(layout, of: spec, parameters: own.floats(layout.parameterCount), gradients: nil, factorSpace: nil)
            try adapter.load(into: set, spec)
        }
        let lora = SmallModel.lora, modules = try lora.modules(of: spec)
        try adapter.check(lora, modules: modules, spec: spec)
        let (adapters, arena) = try SmallModel.adapters()
        try adapter.load(into: adapters, spec)
        try withExtendedLifetime(arena) {
            let values = UnsafeBufferPointer(start: adapters.parameters, count: adapters.parameterCount)
            try BrokenClaim.unless(values.allSatisfy(\.isFinite), "values are finite")
        }
    }
}

/// A decoder of 2 layers and hiddenSize 8, and an adapter of rank 2 for its q and v.
enum SmallModel {
    static let spec = Result {
        try Architectures.spec(
            config: Array(
                """
                {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
                 "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
                 "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}
                """.utf8))
    }

    static let lora = AdapterSpec(rank: 2, alpha: 4, dropout: 0, targets: .names(["q_proj", "v_proj"]), layers: nil)

    /// The arena holds the set's memory.
    static func adapters() throws -> (AdapterSet, Arena) {
        let spec = try spec.get()
        let layout = AdapterLayout(lora, modules: try lora.modules(of: spec), of: spec)
        let arena = try Arena(capacity: .floats(layout.parameterCount))
        let parameters = arena.floats(layout.parameterCount)
        return (AdapterSet(layout, of: spec, parameters: parameters, gradients: nil, factorSpace: nil), arena)
    }
}
