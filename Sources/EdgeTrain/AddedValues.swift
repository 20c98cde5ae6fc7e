// The values of what an adapter adds to a linear beside factors (EdgeModel/Adapters/AddedTerms.swift), as files have them: rows in Hugging
// Face's order; and what a weight becomes with them.
import EdgeModel
import EdgeTensor

/// Entries of a sparse matrix.
package struct SparseValues: Equatable, Sendable {
    /// Whole numbers.
    package var rows: [Float]
    package var columns: [Float]
    package var values: [Float]

    /// - Returns: the entries' numbers, sorted by row and then by column.
    static func sorted(rows: [Float], columns: some Collection<Float>) -> [Int] {
        let columns = Array(columns)
        func isBefore(_ a: Int, _ b: Int) -> Bool { (rows[a], columns[a], a) < (rows[b], columns[b], b) }
        // As files are that were made here, or by PEFT.
        let isSorted = rows.indices.dropFirst().allSatisfy { isBefore($0 - 1, $0) }
        return isSorted ? Array(rows.indices) : rows.indices.sorted(by: isBefore)
    }

    static func sorted(rows: [Float], columns: UnsafePointer<Float>) -> [Int] {
        sorted(rows: rows, columns: UnsafeBufferPointer(start: columns, count: rows.count))
    }

    /// Sorted by row and then by column.
    var sorted: SparseValues {
        let order = Self.sorted(rows: rows, columns: columns)
        return SparseValues(rows: order.map { rows[$0] }, columns: order.map { columns[$0] }, values: order.map { values[$0] })
    }
}

/// Of one linear. What a method does not have is empty.
package struct AddedValues: Equatable, Sendable {
    /// `[outFeatures]` and `[inFeatures]`.
    package var left: [Float] = []
    package var right: [Float] = []
    /// Sorted.
    package var sparse = SparseValues(rows: [], columns: [], values: [])
    /// `[outFeatures]`.
    package var bias: [Float] = []

    /// The linear's weight stays as it is.
    var isBiasAlone: Bool { left.isEmpty && sparse.values.isEmpty }

    var count: Int { left.count + right.count + 3 * sparse.values.count + bias.count }

    /// Nil where there are no such terms.
    ///
    /// - Parameter tensors: what is stored for the linear, in the method's order and of its shapes.
    /// - Throws: `AdapterError.badPlace`.
    init?(_ terms: AddedTerms, _ tensors: [AdapterTensor], _ linear: LinearShape) throws(AdapterError) {
        guard !terms.isEmpty else { return nil }
        if let rescaling = terms.rescaling { (left, right) = (tensors[rescaling.left].values, tensors[rescaling.right].values) }
        if let bias = terms.bias { self.bias = tensors[bias].values }
        guard let places = terms.sparse else { return }
        let (values, found) = (tensors[places.values].values, tensors[places.places])
        for (index, value) in found.values.enumerated() {
            let end = index < values.count ? linear.outFeatures : linear.inFeatures
            guard value >= 0, value < Float(end), value == value.rounded() else { throw .badPlace(tensor: found.name, index: index) }
        }
        sparse = SparseValues(
            rows: Array(found.values.prefix(values.count)), columns: Array(found.values.dropFirst(values.count)), values: values
        ).sorted
    }

    /// As a file has them, of the module with this path.
    func stored(_ spec: AdapterSpec, _ linear: LinearShape, _ path: String) -> [AdapterTensor] {
        let terms = spec.method.addedTerms(linear)
        return spec.method.matrices(linear, spec).enumerated().map { index, matrix in
            let values = switch index {
            case terms.rescaling?.left: left
            case terms.rescaling?.right: right
            case terms.sparse?.values: sparse.values
            case terms.sparse?.places: sparse.rows + sparse.columns
            default: bias
            }
            return AdapterTensor(
                name: "\(AdapterArtifact.keyPrefix)\(path).\(matrix.name)", shape: matrix.shape, values: values,
                start: matrix.constantStart, isInteger: matrix.isInteger)
        }
    }

    /// W + l ⊙ W ⊙ r + ΔW.
    ///
    /// - Parameters:
    ///   - weights: rows of W, which become those of the sum.
    ///   - places: of the rows, in a file's order.
    func add(to weights: Tensor, _ places: [Int]) {
        for (row, place) in places.enumerated() {
            let values = weights.row(row)
            if !left.isEmpty {
                for column in 0..<weights.columns { values[column] += left[place] * (values[column] * right[column]) }
            }
            for entry in entries(ofRow: place) { values[Int(sparse.columns[entry])] += sparse.values[entry] }
        }
    }

    private func entries(ofRow row: Int) -> Range<Int> {
        func first(_ row: Int) -> Int {
            var (low, high) = (0, sparse.rows.count)
            while low < high {
                let middle = (low + high) / 2
                if Int(sparse.rows[middle]) < row { low = middle + 1 } else { high = middle }
            }
            return low
        }
        return first(row)..<first(row + 1)
    }
}
