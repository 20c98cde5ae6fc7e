// Why a start that is made of data or of weights cannot be.

package enum AdapterStartError: Error, Equatable, CustomStringConvertible {
    case rankAboveInputs(module: String, rank: Int, inputs: Int)
    case nonFiniteActivation

    package var description: String {
        switch self {
        case .rankAboveInputs(let module, let rank, let inputs):
            "init_lora_weights: eva finds a direction for every rank; \(module) has the rank \(rank) and \(inputs) inputs only"
        case .nonFiniteActivation:
            "init_lora_weights: eva: the frozen model's own activations are not finite; is the model damaged?"
        }
    }
}
