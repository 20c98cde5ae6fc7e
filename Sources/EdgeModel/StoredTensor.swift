// The tensors of a model by their own names, whether its file is GGUF or the container of Hugging Face's files.
import EdgeFormats
import EdgeTensor

/// A tensor as the model's own files have it, however many of the container's hold its values.
package struct StoredTensor {
    package let name: String
    package let shape: [Int]
    /// Of a matrix, its rows in order: all, or those of the products that a fused linear does. Empty for norms and biases.
    package let matrices: [QuantizedMatrix]
    /// The linear whose weight it is; nil outside the layers.
    package let linear: ModuleID?
    /// The linear whose bias it is; nil: it is none.
    package let biasOf: ModuleID?
    /// In the model's file.
    package fileprivate(set) var pieces: [GGUFTensor]

    package var byteCount: Int { pieces.reduce(0) { $0 + $1.byteCount } }
    /// Its values are one tensor of the model's file.
    package var isWhole: Bool { pieces.count == 1 }
    var formatName: String { isWhole ? pieces[0].type.name : matrices[0].format.name }
}

extension BaseModel {
    /// In the order of the file.
    package var storedTensors: [StoredTensor] {
        var matrices: [String: (linear: ModuleID?, parts: [QuantizedMatrix])] = [:]
        matrices["\(names.head).weight"] = (nil, [head])
        matrices["\(names.embedding).weight"] = (nil, [embedding])
        var biases: [String: ModuleID] = [:]
        for (layer, weights) in layers.enumerated() {
            for linear in spec.linears {
                let id = ModuleID(layer: layer, module: linear.leader), name = names.linear(linear, layer: layer)
                matrices["\(name).weight"] = (id, linear.parts.map { weights[$0] })
                biases["\(name).bias"] = id
            }
        }
        var stored: [StoredTensor] = []
        var place: [String: Int] = [:]
        for tensor in file.tensors {
            let name = BlockwiseParts.weight(of: tensor.name) ?? tensor.name
            if let index = place[name] {
                stored[index].pieces.append(tensor)
                continue
            }
            let matrix = matrices[name]
            let shape = matrix.map { [$0.parts.reduce(0) { $0 + $1.outFeatures }, $0.parts[0].inFeatures] } ?? tensor.shape
            place[name] = stored.count
            stored.append(
                StoredTensor(
                    name: name, shape: shape, matrices: matrix?.parts ?? [], linear: matrix?.linear, biasOf: biases[name],
                    pieces: [tensor]))
        }
        return stored
    }
}
