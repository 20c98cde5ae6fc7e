// RLRR (arXiv:2403.19067): W + s_left ⊙ W ⊙ s_right, and a change f of the bias where the linear has one, as in the authors' code, so that
// every adapted model has a form without an adapter. Rows and columns of W are never scaled: the change is the product with W of a scaled
// input, whose outputs are scaled.
//
// The authors draw both vectors, with which a model does not begin as its base; here s_left begins as 0 and s_right as 1: by the gradients,
// the first step scales outputs, and the others both sides.
import EdgeFormats

package struct RLRR: AdapterMethod {
    package let name = "rlrr"
    /// PEFT has no such class.
    package let peftType = "RLRR"
    package let isPEFTs = false
    package let configKeys = AdapterConfigKeys(rank: nil, alpha: nil, dropout: nil)

    package init() {}

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] { [.init("fan_in_fan_out", .bool(false))] }

    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        func vector(_ name: String, _ count: Int, outputs: AdapterMatrix.OutputAxis?, start: Float) -> AdapterMatrix {
            AdapterMatrix(name: name, rows: 1, columns: count, isVector: true, outputs: outputs, start: .constant(start))
        }
        return [
            vector("rlrr_left", linear.outFeatures, outputs: .columns, start: 0),
            vector("rlrr_right", linear.inFeatures, outputs: nil, start: 1),
        ] + (linear.hasBias ? [vector("rlrr_bias", linear.outFeatures, outputs: .columns, start: 0)] : [])
    }

    package func fileNames(_ spec: AdapterSpec) -> [String] { ["rlrr_left", "rlrr_right", "rlrr_bias"] }
    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { 0 }
    package func addedTerms(_ linear: LinearShape) -> AddedTerms {
        AddedTerms(rescaling: .init(left: 0, right: 1), bias: linear.hasBias ? 2 : nil)
    }
}
