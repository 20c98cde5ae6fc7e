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
    /// A copy of all that is stored, in the block's order.
    package func tensors(_ model: DecoderSpec) -> [AdapterTensor] {
        let ofModules = slots.flatMap { slot in
            slot.places.filter(\.matrix.isOnFile).map { place in
                AdapterTensor(
                    name: name(place, of: slot, model), shape: place.matrix.shape,
                    values: values(place, of: slot), start: place.matrix.constantStart, isInteger: place.matrix.isInteger)
            }
        }
        return ofModules + partTensors() + layout.shared.map { AdapterTensor(name: $0.matrix.name, shape: $0.matrix.shape, values: values($0, nil)) }
    }

    /// Fills the factors and scales of every module; each must be there, once, with the base model's shape.
    package func load(_ tensors: [LoRATensors], _ model: DecoderSpec) throws {
        let byPath = Dictionary(tensors.map { ($0.modulePath, $0) }, uniquingKeysWith: { first, _ in first })
        for slot in slots {
            let path = slot.id.path(model)
            guard let tensor = byPath[path] else { throw AdapterMismatch.missingModule(path) }
            let expected = [slot.factorRank, slot.inFeatures, slot.outFeatures]
            guard [tensor.rank, tensor.inFeatures, tensor.outFeatures] == expected else {
                throw AdapterMismatch.wrongShape(
                    module: path, found: [tensor.rank, tensor.inFeatures, tensor.outFeatures],
                    expected: expected)
            }
            let method = spec.method
            if let stored = method.storedFactors {
                fill(slot.places[stored.a], tensor.loraA, slot.shape.rowOrder)
                fill(slot.places[stored.b], tensor.loraB, slot.shape.rowOrder)
            }
            switch method.inputTransform(slot.shape) {
            case nil: break
            case .scale(let index): fill(slot.places[index], tensor.inputScale!, slot.shape.rowOrder)
            case .rotation(let index, _, _): fill(slot.places[index], tensor.rotation!.skew, slot.shape.rowOrder)
            }
            switch method.outputScale(slot.shape) {
            case nil: break
            case .stored(let index): fill(slot.places[index], tensor.outputScale!, slot.shape.rowOrder)
            case .magnitude(let index, _, _): fill(slot.places[index], tensor.magnitude!, slot.shape.rowOrder)
            }
            if let added = tensor.added { fill(slot, added) }
        }
        parametersChanged()
    }

    /// Fills all that is stored from an adapter of the same method; each tensor must be there, with the base model's shape.
    package func load(_ tensors: [AdapterTensor], _ model: DecoderSpec) throws {
        let byName = Dictionary(tensors.map { ($0.name, $0) }) { first, _ in first }
        func fill(_ place: AdapterLayout.Place, _ name: String, _ order: [Int]?) throws {
            guard let tensor = byName[name] else { throw AdapterError.missingTensor(name) }
            guard tensor.shape == place.matrix.shape else {
                throw AdapterError.unexpectedShape(tensor: name, shape: tensor.shape, expected: place.matrix.shape)
            }
            self.fill(place, tensor.values, order)
        }
        for slot in slots {
            for place in slot.places where place.matrix.isOnFile { try fill(place, name(place, of: slot, model), slot.shape.rowOrder) }
            sortEntries(of: slot)
        }
        for place in layout.shared { try fill(place, place.matrix.name, nil) }
        try loadParts(tensors)
    }

    /// Fills what is stored beside the linears.
    package func loadParts(_ tensors: [AdapterTensor]) throws {
        let byName = Dictionary(tensors.map { ($0.name, $0) }) { first, _ in first }
        for (name, pieces) in partsByName {
            guard let tensor = byName[name] else { throw AdapterError.missingTensor(name) }
            guard tensor.shape == pieces[0].shape else {
                throw AdapterError.unexpectedShape(tensor: name, shape: tensor.shape, expected: pieces[0].shape)
            }
            for piece in pieces {
                let own = self.tensor(piece.place)
                piece.forEach { own.base[$0] = tensor.values[$1] }
            }
        }
        parametersChanged()
    }

    // MARK: parts

    /// A matrix of a part, and where it lies in a tensor on file.
    private struct Piece {
        let stored: AdapterPart.Stored
        let place: AdapterLayout.Place

        var shape: [Int] {
            guard let columns = stored.fileColumns else { return place.matrix.shape }
            return place.matrix.isVector ? [place.matrix.rows * columns] : [place.matrix.rows, columns]
        }

        /// Calls `body` with each element's place in the block's matrix, and in the file's tensor.
        func forEach(_ body: (_ own: Int, _ onFile: Int) -> Void) {
            let matrix = place.matrix, fileColumns = stored.fileColumns ?? matrix.columns, first = stored.columns?.lowerBound ?? 0
            for row in 0..<matrix.rows {
                for column in 0..<matrix.columns {
                    body(row * matrix.columns + column, row * fileColumns + first + (stored.columnOrder?[column] ?? column))
                }
            }
        }
    }

    /// By the tensors that they are of, in the block's order.
    private var partsByName: [(name: String, pieces: [Piece])] {
        var found: [(name: String, pieces: [Piece])] = []
        for part in layout.parts {
            for (stored, place) in zip(part.part.matrices, part.places) where place.matrix.isOnFile {
                let name = stored.fileName, piece = Piece(stored: stored, place: place)
                if let index = found.firstIndex(where: { $0.name == name }) {
                    found[index].pieces.append(piece)
                } else {
                    found.append((name, [piece]))
                }
            }
        }
        return found
    }

    /// Names and shapes of all tensors on file.
    static func fileTensors(_ layout: AdapterLayout, _ model: DecoderSpec) -> [String: [Int]] {
        var shapes: [String: [Int]] = [:]
        for slot in layout.slots {
            for place in slot.places where place.matrix.isOnFile {
                shapes[name(place.matrix, of: slot, layout.spec.method, model)] = place.matrix.shape
            }
        }
        for part in layout.parts {
            for (stored, place) in zip(part.part.matrices, part.places) where place.matrix.isOnFile {
                shapes[stored.fileName] = Piece(stored: stored, place: place).shape
            }
        }
        for place in layout.shared { shapes[place.matrix.name] = place.matrix.shape }
        return shapes
    }

    private func partTensors() -> [AdapterTensor] {
        partsByName.map { name, pieces in
            var values = [Float](repeating: 0, count: pieces[0].shape.reduce(1, *))
            for piece in pieces {
                let own = tensor(piece.place)
                piece.forEach { values[$1] = own.base[$0] }
            }
            return AdapterTensor(name: name, shape: pieces[0].shape, values: values, start: pieces[0].place.matrix.constantStart)
        }
    }

    private func name(_ place: AdapterLayout.Place, of slot: Slot, _ model: DecoderSpec) -> String {
        Self.name(place.matrix, of: slot, spec.method, model)
    }

    private static func name(_ matrix: AdapterMatrix, of slot: Slot, _ method: any AdapterMethod, _ model: DecoderSpec) -> String {
        let path = slot.id.path(model)
        return method.fileKey(path, matrix) ?? AdapterArtifact.keyPrefix + "\(path).\(matrix.name)"
    }

    private func values(_ place: AdapterLayout.Place, _ order: [Int]?) -> [Float] {
        var values = [Float](repeating: 0, count: place.matrix.count)
        let tensor = tensor(place)
        forEach(place.matrix, order) { values[$1] = tensor.base[$0] }
        return values
    }

    /// As a file has them: those of a sparse change are in the order of a file's rows.
    private func values(_ place: AdapterLayout.Place, of slot: Slot) -> [Float] {
        let values = values(place, slot.shape.rowOrder)
        guard let sparse = spec.method.addedTerms(slot.shape).sparse, let order = slot.shape.rowOrder,
            [sparse.values, sparse.places].contains(where: { slot.places[$0] == place })
        else { return values }
        let places = tensor(slot.places[sparse.places]), count = places.columns
        let entries = SparseValues.sorted(rows: (0..<count).map { Float(order[Int(places.row(0)[$0])]) }, columns: places.row(1))
        guard place == slot.places[sparse.places] else { return entries.map { values[$0] } }
        return entries.map { Float(order[Int(places.row(0)[$0])]) } + entries.map { places.row(1)[$0] }
    }

    /// Rows of a sparse change become the base's own, in their order.
    private func sortEntries(of slot: Slot) {
        guard let sparse = spec.method.addedTerms(slot.shape).sparse else { return }
        let values = tensor(slot.places[sparse.values]), places = tensor(slot.places[sparse.places])
        func copy(_ row: UnsafePointer<Float>) -> [Float] { Array(UnsafeBufferPointer(start: row, count: values.count)) }
        fill(sparse, slot, SparseValues(rows: copy(places.row(0)), columns: copy(places.row(1)), values: copy(values.base)))
    }

    private func fill(_ slot: Slot, _ added: AddedValues) {
        let terms = spec.method.addedTerms(slot.shape), order = slot.shape.rowOrder
        if let rescaling = terms.rescaling {
            fill(slot.places[rescaling.left], added.left, order)
            fill(slot.places[rescaling.right], added.right, order)
        }
        if let sparse = terms.sparse { fill(sparse, slot, added.sparse) }
        if let bias = terms.bias { fill(slot.places[bias], added.bias, order) }
    }

    /// - Parameter entries: with a file's rows, in any order.
    private func fill(_ sparse: AddedTerms.Sparse, _ slot: Slot, _ entries: SparseValues) {
        let values = tensor(slot.places[sparse.values]), places = tensor(slot.places[sparse.places])
        var rows = entries.rows
        if let order = slot.shape.rowOrder {
            var own = [Float](repeating: 0, count: order.count)
            for (row, ofFile) in order.enumerated() { own[ofFile] = Float(row) }
            rows = rows.map { own[Int($0)] }
        }
        for (entry, place) in SparseValues.sorted(rows: rows, columns: entries.columns).enumerated() {
            (values.base[entry], places.row(0)[entry], places.row(1)[entry]) = (entries.values[place], rows[place], entries.columns[place])
        }
    }

    private func fill(_ place: AdapterLayout.Place, _ values: [Float], _ order: [Int]?) {
        let tensor = tensor(place)
        forEach(place.matrix, order) { tensor.base[$0] = values[$1] }
    }

    /// Calls `body` with each element's place in the block's matrix, and in that of a file.
    private func forEach(_ matrix: AdapterMatrix, _ order: [Int]?, _ body: (_ own: Int, _ onFile: Int) -> Void) {
        for row in 0..<matrix.rows {
            let fileRow = matrix.outputs == .rows ? order?[row] ?? row : row
            for column in 0..<matrix.columns {
                let fileColumn = matrix.outputs == .columns ? order?[column] ?? column : column
                body(row * matrix.columns + column, fileRow * matrix.columns + fileColumn)
            }
        }
    }
}

extension AdapterPart.Stored {
    /// The whole key on file.
    var fileName: String { path.map { AdapterArtifact.keyPrefix + $0 + "." + matrix.name } ?? matrix.name }
}

extension AdapterMatrix {
    var constantStart: Float? { if case .constant(let value) = start { value } else { nil } }
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
