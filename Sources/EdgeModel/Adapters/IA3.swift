// (IA)³ (arXiv:2205.05638): what a linear gives is multiplied by a vector, and of the MLP's last what it gets.
import EdgeFormats

package struct IA3: AdapterMethod {
    package let name = "ia3"
    package let peftType = "IA3"
    package let configKeys = AdapterConfigKeys(rank: nil, alpha: nil, dropout: nil)

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        [
            .init("fan_in_fan_out", .bool(false)), .init("feedforward_modules", .array(values.downTargets.map(JSONText.string))),
            .init("init_ia3_weights", .bool(true)),
        ]
    }

    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        // PEFT's shapes: [1, in] and [out, 1].
        [
            linear.isDown
                ? AdapterMatrix(name: "ia3_l", rows: 1, columns: linear.inFeatures, start: .constant(1))
                : AdapterMatrix(name: "ia3_l", rows: linear.outFeatures, columns: 1, outputs: .rows, start: .constant(1))
        ]
    }

    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { 0 }
    package func inputTransform(_ linear: LinearShape) -> InputTransform? { linear.isDown ? .scale(0) : nil }
    package func outputScale(_ linear: LinearShape) -> OutputScale? { linear.isDown ? nil : .stored(0) }
}
