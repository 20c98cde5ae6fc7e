// SHiRA (arXiv:2406.13175): a sparse change of each linear, with as many values as a LoRA of rank r has, r · (in + out), at places that are
// drawn once: one in each of as many stretches of W, row after row, so that the places come sorted and every row has about as many. PEFT's
// mask functions may choose any places, and its files say which they are.
import EdgeFormats

package struct SHiRA: AdapterMethod {
    package let name = "shira"
    package let peftType = "SHIRA"
    package let configKeys = AdapterConfigKeys(rank: "r", alpha: nil, dropout: nil)
    /// PEFT's class has no layers_to_transform.
    package let hasLayers = false
    /// PEFT's.
    package let defaultRank = 32

    package init() {}

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        [
            .init("fan_in_fan_out", .bool(false)), .init("init_weights", .bool(true)), .init("mask_type", .string("random")),
            .init("random_seed", .null),
        ]
    }

    private static func entries(_ linear: LinearShape, rank: Int) -> Int { rank * (linear.inFeatures + linear.outFeatures) }

    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        let entries = Self.entries(linear, rank: spec.rank)
        var places = AdapterMatrix(
            name: "shira_indices", rows: 2, columns: entries, isTrained: false,
            start: .places(rows: linear.outFeatures, columns: linear.inFeatures))
        places.isInteger = true
        return [AdapterMatrix(name: "shira_weight", rows: 1, columns: entries, isVector: true, start: .constant(0)), places]
    }

    /// As PEFT's: no more values than the linear has.
    package func largestRank(_ linear: LinearShape) -> Int? {
        linear.inFeatures * linear.outFeatures / (linear.inFeatures + linear.outFeatures)
    }

    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { 0 }
    package func addedTerms(_ linear: LinearShape) -> AddedTerms { AddedTerms(sparse: .init(values: 0, places: 1)) }
}
