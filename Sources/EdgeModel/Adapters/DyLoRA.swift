// DyLoRA (arXiv:2210.07558): LoRA whose first ranks are an adapter by themselves. Every step trains the first b ranks with alpha/b, b
// drawn from 1 to r; measured and published is all of it, and `edgetune adapters combine --combination truncate` gives the first b.
import EdgeFormats
import EdgeTensor

package struct DyLoRA: AdapterMethod {
    package let name = "dylora"
    package let peftType = "LORA"
    package let configKeys = AdapterConfigKeys(rank: "r", alpha: "lora_alpha", dropout: "lora_dropout")
    package var fileMethod: String { "lora" }
    package let drawsRank = true

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] { LoRA.members(values, isDoRA: false) }
    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] { AdapterMethods.lora.matrices(linear, spec) }
    package func defaultAlpha(rank: Int) -> Double { 32 }

    /// Ranks beyond the drawn one are zero in both, and so are their gradients; B is larger by what alpha/b is than alpha/r.
    package func derive(_ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], rank: Int, into factors: AdapterFactors) {
        let (a, b) = (factors.a, factors.b)
        a.copy(from: stored[0])
        for row in rank..<max(rank, a.rows) { a.row(row).update(repeating: 0, count: a.columns) }
        let growth = Float(b.columns) / Float(rank)
        for row in 0..<b.rows {
            for column in 0..<b.columns { b.row(row)[column] = column < rank ? growth * stored[1].row(row)[column] : 0 }
        }
    }

    package func chain(
        _ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], _ dFactors: AdapterFactors, rank: Int, into gradients: [Tensor?]
    ) {
        let (a, b) = (gradients[0]!, gradients[1]!)
        for row in 0..<rank { for column in 0..<a.columns { a.row(row)[column] += dFactors.a.row(row)[column] } }
        let growth = Float(b.columns) / Float(rank)
        for row in 0..<b.rows { for column in 0..<rank { b.row(row)[column] += growth * dFactors.b.row(row)[column] } }
    }
}
