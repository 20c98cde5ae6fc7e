// What a LoRA trains beside the linears, as PEFT's `modules_to_save` and `trainable_token_indices`: norms, and some tokens' embeddings.
import EdgeFormats

package struct SavedModules: Equatable, Sendable {
    /// Ends of norms' paths. PEFT asks for no dot before them (`_set_trainable`): "norm" is every norm of a Llama.
    package var names: [String] = []
    /// In the order of the rows on file.
    package var tokens: [TokenID] = []

    package init(names: [String] = [], tokens: [TokenID] = []) {
        self.names = names
        self.tokens = tokens
    }

    package var isEmpty: Bool { names.isEmpty && tokens.isEmpty }

    package func parts(_ model: DecoderSpec) -> [AdapterPart] {
        let norms = model.norms.filter { norm in names.contains { norm.path(model).hasSuffix($0) } }
        let ofNorms = norms.map { NormTuning.part($0, model, names: ["weight", "bias"]) }
        return tokens.isEmpty ? ofNorms : ofNorms + [TrainableTokens.part(tokens, model, name: "token_adapter.\(TrainableTokens.tensorName)")]
    }

    /// - Throws: `AdapterTargetError`.
    package func check(_ model: DecoderSpec) throws {
        let paths = model.norms.map { $0.path(model) }
        if let name = names.first(where: { name in !paths.contains { $0.hasSuffix(name) } }) {
            throw AdapterTargetError.notSaved(name, available: Set(paths.map(AdapterSpec.lastName)).sorted())
        }
        try TrainableTokens.check(tokens, model)
    }
}
