// What a method adds to what a linear gives, beside factors:
//
//   y += l ⊙ ((r ⊙ x) · Wᵀ) + x · ΔWᵀ + f
//
// with W frozen, l `[out]`, r `[in]` and f `[out]` vectors, and ΔW `[out, in]` sparse. The products and their gradients are the layer's
// (AddedProducts.swift).

/// Numbers are of the method's matrices; nil: it has no such term.
package struct AddedTerms: Equatable, Sendable {
    package struct Rescaling: Equatable, Sendable {
        package let left: Int
        package let right: Int
    }

    package struct Sparse: Equatable, Sendable {
        /// `[1, entries]`.
        package let values: Int
        /// `[2, entries]`: rows and columns, sorted by row and then by column.
        package let places: Int
    }

    package var rescaling: Rescaling?
    package var sparse: Sparse?
    package var bias: Int?

    package static let none = AddedTerms()
    package var isEmpty: Bool { self == .none }
}
