// LoRA (arXiv:2106.09685): W + alpha/r · B · A. LoRA-FA (arXiv:2308.03303) leaves A as it began, which saves its gradient, its
// moments and the product for its gradient.
import EdgeFormats
import EdgeTensor

package struct LoRA: AdapterMethod {
    package let name: String
    let trainsA: Bool
    /// Whatever was trained of it.
    package var fileMethod: String { "lora" }
    package func defaultAlpha(rank: Int) -> Double { 32 }
    package let peftType = "LORA"
    package let configKeys = AdapterConfigKeys(rank: "r", alpha: "lora_alpha", dropout: "lora_dropout")

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] { Self.members(values, isDoRA: false) }

    static func members(_ values: AdapterConfigValues, isDoRA: Bool) -> [JSONText.Member] {
        [
            .init("alpha_pattern", values.alphaPattern), .init("bias", .string("none")), .init("fan_in_fan_out", .bool(false)),
            .init("init_lora_weights", .bool(true)), .init("rank_pattern", values.rankPattern), .init("use_dora", .bool(isDoRA)),
            .init("use_rslora", .bool(values.usesRankStabilizedScaling)),
        ]
    }

    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        // The adapted model begins as the base.
        let (a, b): (AdapterMatrix.Start, AdapterMatrix.Start) =
            switch spec.start {
            case .kaiming, .loftq: (AdapterMatrix.kaiming(columns: linear.inFeatures), .constant(0))
            case .gaussian: (.normal(deviation: 1 / Float(spec.rank)), .constant(0))
            case .orthogonal: (.orthogonal, .orthogonal)
            case .eva: (.measured, .constant(0))
            }
        return [
            AdapterMatrix(name: "lora_A.weight", rows: spec.rank, columns: linear.inFeatures, isTrained: trainsA, start: a),
            AdapterMatrix(
                name: "lora_B.weight", rows: linear.outFeatures, columns: spec.rank, outputs: .rows, start: b,
                learningRateFactor: spec.learningRateRatio ?? 1),
        ]
    }

    package var storedFactors: (a: Int, b: Int)? { (0, 1) }
}
