// BitFit (arXiv:2106.10199): the biases of the linears that have one. The base's stay as they are: a change of each is trained, which is
// what PEFT's BEFT (arXiv:2509.15974) has in its files, so an adapter is one of that class.
import EdgeFormats

package struct BitFit: AdapterMethod {
    package let name = "bitfit"
    package let peftType = "BEFT"
    package let configKeys = AdapterConfigKeys(rank: nil, alpha: nil, dropout: nil)

    package init() {}

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] { [.init("init_weights", .bool(true))] }

    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        // PEFT's shape.
        [AdapterMatrix(name: "beft_bias", rows: 1, columns: linear.outFeatures, outputs: .columns, start: .constant(0))]
    }

    package let needsBias = true
    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { 0 }
    package func addedTerms(_ linear: LinearShape) -> AddedTerms { AddedTerms(bias: 0) }
}
