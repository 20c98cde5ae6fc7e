// config.json -> the shape of a model.
//
// Claims: nothing traps; every refusal is a ModelError; a shape that is accepted can be reckoned with: its memory, its modules and
// its row orders; the heap holds at most 128 bytes for each byte of the file, and what 1,024 layers take.
import EdgeFormats
import EdgeModel
import EdgeTensor

extension FuzzTarget {
    static let config = FuzzTarget(
        name: "config", longestInput: 4096, heap: HeapClaim(bytesPerByte: 128, fixedBytes: 48 << 20), errors: [ModelError.self]
    ) { bytes in
        let spec = try Architectures.spec(config: Array(bytes))
        try BrokenClaim.unless(spec.layerKinds.count == spec.layerCount, "each layer is of a kind")
        let lora = AdapterSpec(rank: 8, alpha: 8, dropout: 0, targets: .allLinear, layers: nil)
        let modules = try lora.modules(of: spec)
        try BrokenClaim.unless(AdapterLayout(lora, modules: modules, of: spec).parameterCount > 0, "its linears can be adapted")
        for module in [LinearModule.query, .key] {
            let rows = spec.ggufRowOrder(module)?.count ?? 0
            try BrokenClaim.unless(rows <= 1024 * 1024, "\(rows) rows")
        }
        _ = LayerActivations.bytes(tokens: 1 << 16, mlpTokens: 1 << 16, rank: 256, adapted: Set(LinearModule.allCases), .none, spec)
    }
}
