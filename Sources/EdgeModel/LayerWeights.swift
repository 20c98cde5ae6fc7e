// The frozen weights of a layer: views of the mapped file, or of a stream's memory.
import EdgeTensor

package struct LayerWeights {
    /// Of the attention's and the MLP's input; nil in models without.
    package var attentionInput: Norm?
    package var mlpInput: Norm?
    /// Of what attention and MLP add to the residual.
    package var attentionOutput: Norm?
    package var mlpOutput: Norm?
    /// Of queries and keys.
    package var query: Norm?
    package var key: Norm?
    /// In the order of `LinearModule.allCases`.
    private var linears: [QuantizedMatrix]
    private var biases: [UnsafePointer<Float>?]

    /// - Parameters:
    ///   - linears: in the order of `LinearModule.allCases`.
    ///   - biases: `[outFeatures]` each, in the same order.
    package init(linears: [QuantizedMatrix], biases: [UnsafePointer<Float>?]) {
        precondition(linears.count == LinearModule.allCases.count && biases.count == linears.count)
        self.linears = linears
        self.biases = biases
    }

    package subscript(module: LinearModule) -> QuantizedMatrix { linears[module.rawValue] }
    package func bias(_ module: LinearModule) -> UnsafePointer<Float>? { biases[module.rawValue] }

    /// The same weights, each being where `place` says.
    package func moved(_ place: (UnsafeRawPointer) -> UnsafeRawPointer) -> LayerWeights {
        func floats(_ pointer: UnsafePointer<Float>) -> UnsafePointer<Float> {
            place(UnsafeRawPointer(pointer)).assumingMemoryBound(to: Float.self)
        }
        var moved = LayerWeights(linears: linears.map { $0.moved(place) }, biases: biases.map { $0.map(floats) })
        moved.attentionInput = attentionInput?.moved(floats)
        moved.mlpInput = mlpInput?.moved(floats)
        moved.attentionOutput = attentionOutput?.moved(floats)
        moved.mlpOutput = mlpOutput?.moved(floats)
        moved.query = query?.moved(floats)
        moved.key = key?.moved(floats)
        return moved
    }
}
