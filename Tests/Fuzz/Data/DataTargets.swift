// The targets of the data plane.

extension FuzzTarget {
    static let data: [FuzzTarget] = [
        gguf, model, safetensors, tokenizerJSON, tokenizerGGUF, chatTemplate, dataset, adapter, lz4, checkpoint, config,
        modelImport, blocks,
    ]
}
