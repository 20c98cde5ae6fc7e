// Between an AdapterSet, whose rows lie as the base file's do, and the tensors of an adapter file, whose rows lie as
// Hugging Face's do.
import EdgeModel
import EdgeTensor

package enum AdapterMismatch: Error, Equatable, CustomStringConvertible {
    case noSuchModule(String)
    case wrongShape(module: String, found: [Int], expected: [Int])
    case missingModule(String)

    package var description: String {
        switch self {
        case .noSuchModule(let path): "the adapter changes \(path), which the base model does not have"
        case .wrongShape(let module, let found, let expected):
            "the adapter's \(module) is [rank, in, out] \(found); the base model has \(expected)"
        case .missingModule(let path): "the adapter lacks \(path)"
        }
    }
}

extension AdapterSet {
    /// A copy of every module's matrices, in the layers' order.
    package func tensors(_ model: DecoderSpec) -> [LoRATensors] {
        slots.map { slot in
            let (a, b) = (loraA(slot), loraB(slot))
            let order = model.rowOrder(slot.id.module)
            var rows = [Float](repeating: 0, count: b.count)
            for row in 0..<b.rows {
                let place = (order?[row] ?? row) * b.columns
                for column in 0..<b.columns { rows[place + column] = b.row(row)[column] }
            }
            return LoRATensors(
                modulePath: slot.id.path(model), ggufName: slot.id.ggufName(model), rank: spec.rank, inFeatures: slot.inFeatures,
                outFeatures: slot.outFeatures, loraA: Array(UnsafeBufferPointer(start: a.base, count: a.count)),
                loraB: rows, ggufRowOrder: model.ggufRowOrder(slot.id.module))
        }
    }

    /// Fills every module from `tensors`; each must be there, once, with the base model's shape.
    package func load(_ tensors: [LoRATensors], _ model: DecoderSpec) throws {
        let byPath = Dictionary(tensors.map { ($0.modulePath, $0) }, uniquingKeysWith: { first, _ in first })
        for slot in slots {
            let path = slot.id.path(model)
            guard let tensor = byPath[path] else { throw AdapterMismatch.missingModule(path) }
            let expected = [spec.rank, slot.inFeatures, slot.outFeatures]
            guard [tensor.rank, tensor.inFeatures, tensor.outFeatures] == expected else {
                throw AdapterMismatch.wrongShape(
                    module: path, found: [tensor.rank, tensor.inFeatures, tensor.outFeatures],
                    expected: expected)
            }
            let (a, b) = (loraA(slot), loraB(slot))
            for i in 0..<a.count { a.base[i] = tensor.loraA[i] }
            let order = model.rowOrder(slot.id.module)
            for row in 0..<b.rows {
                let place = (order?[row] ?? row) * b.columns
                for column in 0..<b.columns { b.row(row)[column] = tensor.loraB[place + column] }
            }
        }
    }
}

extension ModuleID {
    /// The module that `path` names in a model of this shape.
    package init(path: String, in spec: DecoderSpec) throws {
        for layer in 0..<spec.layerCount where path.hasPrefix("model.layers.\(layer).") {
            for linear in spec.linears where path == "model.layers.\(layer).\(linear.path)" {
                self.init(layer: layer, module: linear.leader)
                return
            }
        }
        throw AdapterMismatch.noSuchModule(path)
    }
}
