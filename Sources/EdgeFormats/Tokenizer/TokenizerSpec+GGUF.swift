// Reads a tokenizer and the chat template out of a GGUF header. The keys are llama.cpp's
// (gguf-py/gguf/constants.py, `Keys.Tokenizer`).

extension TokenizerSpec {
    /// Byte-level BPE is called "gpt2" there.
    private static let supportedModels = ["gpt2"]

    package init(gguf file: GGUFFile) throws {
        let model = try file.string("tokenizer.ggml.model")
        guard Self.supportedModels.contains(model) else {
            throw TokenizerError.unsupportedModel(model, supported: Self.supportedModels)
        }
        func optional<Value>(_ key: String, _ read: (String) throws -> Value) throws -> Value? {
            file.metadata[key] == nil ? nil : try read(key)
        }
        self.init(
            tokens: try file.stringBytesArray("tokenizer.ggml.tokens"),
            merges: try file.stringArray("tokenizer.ggml.merges"),
            // A type outside Int32 is refused with the unknown ones.
            tokenTypes: try file.integerArray("tokenizer.ggml.token_type").map { Int32(clamping: $0) },
            preTokenizer: try file.string("tokenizer.ggml.pre"),
            bosTokenID: try optional("tokenizer.ggml.bos_token_id", file.integer),
            eosTokenID: try optional("tokenizer.ggml.eos_token_id", file.integer),
            paddingTokenID: try optional("tokenizer.ggml.padding_token_id", file.integer),
            unknownTokenID: try optional("tokenizer.ggml.unknown_token_id", file.integer),
            addBOS: try optional("tokenizer.ggml.add_bos_token", file.bool) ?? false,
            addSpacePrefix: try optional("tokenizer.ggml.add_space_prefix", file.bool) ?? false)
    }
}

extension ChatTemplate {
    /// The template the model was trained with; `ChatTemplateError.missing` when its file holds none.
    package static func compile(gguf file: GGUFFile) throws -> ChatTemplate {
        guard file.metadata["tokenizer.chat_template"] != nil else { throw ChatTemplateError.missing }
        return try compile(try file.string("tokenizer.chat_template"))
    }
}
