// What a method stores beside the linears: before a layer's keys, before a sample's tokens.
import EdgeTensor

/// A place beside the linears.
package enum AdapterSite: Hashable, Sendable {
    /// Before a layer's keys and values, as they are attended to: matrices of keys and of values.
    case prefix
    /// Before the embeddings of a sample's own tokens: one matrix.
    case prompt
    /// Instead of a norm's own numbers: its weight, and of layer normalisation its bias.
    case norm(NormPlace)
    /// Instead of some tokens' embeddings: one matrix.
    case tokens
    /// Where a layer's attention, or its MLP, is added to the residual: a bottleneck's matrices (Bottleneck.swift).
    case afterAttention, afterMLP
    /// In a layer's MLP: the router's matrix, and those of each expert.
    case experts
    /// Beside the layers: a block's matrices, and the whole network's (LadderSideTuning.swift).
    case side
}

/// What a method stores for one such place.
package struct AdapterPart: Equatable, Sendable {
    package let site: AdapterSite
    /// Nil: the whole model's.
    package let layer: Int?
    package let matrices: [Stored]

    /// A matrix, and where it is on file.
    package struct Stored: Equatable, Sendable {
        package let matrix: AdapterMatrix
        /// The module whose matrix it is, as PEFT has it; nil: the matrix's own name is the whole key.
        package var path: String?
        /// Nil: the tensor is this matrix; else these of its columns are.
        package var columns: Range<Int>?
        /// Of the tensor that has such columns.
        package var fileColumns: Int?
        /// Column i is Hugging Face's `columnOrder[i]`; nil: the same order.
        package var columnOrder: [Int]?

        package init(
            _ matrix: AdapterMatrix, path: String? = nil, columns: Range<Int>? = nil, of fileColumns: Int? = nil, columnOrder: [Int]? = nil
        ) {
            precondition((columns == nil) == (fileColumns == nil))
            self.matrix = matrix
            self.path = path
            self.columns = columns
            self.fileColumns = fileColumns
            self.columnOrder = columnOrder
        }
    }

    package init(_ site: AdapterSite, layer: Int?, _ matrices: [Stored]) {
        self.site = site
        self.layer = layer
        self.matrices = matrices
    }
}
