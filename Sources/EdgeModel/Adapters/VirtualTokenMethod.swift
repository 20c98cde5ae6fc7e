// Methods that train nothing but tokens that there are not: PEFT's prompt learning.
import EdgeFormats

/// What virtual tokens begin as.
package enum VirtualTokenStart: String, Equatable, Sendable, CaseIterable {
    /// What the model makes of the first tokens of the training samples: near what it knows.
    case samples
    /// Normal, of deviation 1: PEFT's.
    case random

    var matrixStart: AdapterMatrix.Start { self == .samples ? .measured : .normal(deviation: 1) }
}

package protocol VirtualTokenMethod: AdapterMethod {
    init(_ start: VirtualTokenStart)
    var start: VirtualTokenStart { get }
    /// That the other methods' adapter_config.json does not have.
    var ownMembers: [JSONText.Member] { get }
}

extension VirtualTokenMethod {
    package var configKeys: AdapterConfigKeys { AdapterConfigKeys(rank: "num_virtual_tokens", alpha: nil, dropout: nil) }
    package var defaultRank: Int { 20 }
    package var rankWord: String { "virtual tokens" }
    package var asOnFile: any AdapterMethod { Self(.samples) }
    package var adaptsLinears: Bool { false }
    package var hasLayers: Bool { false }
    package var changesWeightsOnly: Bool { false }
    package var beginsAsBase: Bool { false }
    package var virtualTokenStart: VirtualTokenStart? { start }
    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] { [] }
    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { 0 }

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        (values.virtualTokens?.configMembers ?? []) + ownMembers
    }

    package func configured(by config: JSONText) throws -> any AdapterMethod {
        guard config["num_transformer_submodules"]?.integer ?? 1 == 1 else { throw AdapterSettingError(key: "num_transformer_submodules") }
        return self
    }

    /// - Parameter columns: of a token's row.
    func rows(_ spec: AdapterSpec, columns: Int) -> AdapterMatrix {
        AdapterMatrix(name: "prompt_embeddings", rows: spec.rank, columns: columns, start: start.matrixStart)
    }
}
