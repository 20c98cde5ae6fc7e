// DoRA (arXiv:2402.09353): the direction of each row of W + alpha/r · B · A, with a length that is trained by itself. The length of a row of
// the sum comes from what it is made of, so neither W nor B · A is ever a dense matrix:
//
//   ‖W + s·B·A‖² = ‖W‖² + 2s · B·(W·Aᵀ) + s² · B·(A·Aᵀ)·Bᵀ      row by row
//
// As in the paper's §4.3 and in PEFT it is a constant to the gradients.
import EdgeFormats
import EdgeTensor

package struct DoRA: AdapterMethod {
    package let name = "dora"
    package let peftType = "LORA"
    package let configKeys = AdapterConfigKeys(rank: "r", alpha: "lora_alpha", dropout: "lora_dropout")
    /// PEFT's gives the frozen product another mask than the base model's own.
    package let hasDropout = false

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        LoRA.members(values, isDoRA: true)
    }

    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        func row(_ name: String, isOnFile: Bool) -> AdapterMatrix {
            AdapterMatrix(
                name: name, rows: 1, columns: linear.outFeatures, isVector: true, isTrained: isOnFile, isOnFile: isOnFile, outputs: .columns,
                start: .measured)
        }
        return AdapterMethods.lora.matrices(linear, spec) + [
            row("lora_magnitude_vector", isOnFile: true), row("weight_squares", isOnFile: false), row("scale", isOnFile: false),
        ]
    }

    package func defaultAlpha(rank: Int) -> Double { 32 }
    package var storedFactors: (a: Int, b: Int)? { (0, 1) }
    package func outputScale(_ linear: LinearShape) -> OutputScale? { .magnitude(2, weightSquares: 3, scale: 4) }
}
