// Why a start that is made of data or of weights cannot be.

package enum AdapterStartError: Error, Equatable, CustomStringConvertible {
    case rankAboveInputs(module: String, rank: Int, inputs: Int)
    case nonFiniteActivation
    case otherModel(what: String, base: String, original: String)
    case sameWeights
    case nonFiniteWeight(module: String)

    package var description: String {
        switch self {
        case .rankAboveInputs(let module, let rank, let inputs):
            "init_lora_weights: eva finds a direction for every rank; \(module) has the rank \(rank) and \(inputs) inputs only"
        case .nonFiniteActivation:
            "init_lora_weights: eva: the frozen model's own activations are not finite; is the model damaged?"
        case .otherModel(let what, let base, let original):
            "original_model is not what the base was quantised from: \(what): the base has \(base), original_model \(original)"
        case .sameWeights:
            "original_model has the base's own weights: there is nothing that init_lora_weights: loftq could make good"
        case .nonFiniteWeight(let module): "\(module) has weights that are not finite, in the base or in original_model"
        }
    }
}
