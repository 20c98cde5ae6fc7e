// LoKr (LyCORIS, arXiv:2309.14859 §3): W + alpha/r · W₁ ⊗ W₂, W₁ `[l, m]`, W₂ `[k, n]`, l·k outputs and m·n inputs; either may be a product
// of two matrices with r between them. Of W₁ = P₁ · Q₁ and W₂ = P₂ · Q₂ the change is (P₁ ⊗ P₂) · (Q₁ ⊗ Q₂): exactly a LoRA, whose
// rank is the product of theirs. A matrix that is stored whole is itself times the identity of its shorter side.
import EdgeFormats
import EdgeTensor

package struct LoKr: AdapterMethod {
    package let name = "lokr"
    package let defaultRank = 8
    package let peftType = "LOKR"
    package let configKeys = AdapterConfigKeys(rank: "r", alpha: "alpha", dropout: nil)
    /// W₁'s sizes, where they divide the linear's; nil (PEFT's -1): next below the roots. The factors' rank is a multiple of it, and so
    /// is what they cost, which is why a job has not PEFT's own.
    let factor: Int?
    /// Whether W₁ is a product, too, where r is small for it.
    let decomposesBoth: Bool

    package static let defaultFactor = 8

    package init(factor: Int? = defaultFactor, decomposesBoth: Bool = false) {
        self.factor = factor
        self.decomposesBoth = decomposesBoth
    }

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        [
            .init("alpha_pattern", .object([])), .init("decompose_both", .bool(decomposesBoth)),
            .init("decompose_factor", .number("\(factor ?? -1)")), .init("init_weights", .bool(true)),
            .init("module_dropout", .number("0.0")), .init("rank_dropout", .number("0.0")), .init("rank_dropout_scale", .bool(false)),
            .init("rank_pattern", .object([])), .init("use_effective_conv2d", .bool(false)),
        ]
    }

    package func configured(by config: JSONText) throws -> any AdapterMethod {
        let both = config["decompose_both"] ?? .null, factor = config["decompose_factor"] ?? .null
        guard both == .null || both.bool != nil else { throw AdapterSettingError(key: "decompose_both") }
        guard factor == .null || factor.integer.map({ $0 == -1 || $0 > 0 }) ?? false else { throw AdapterSettingError(key: "decompose_factor") }
        return LoKr(factor: factor.integer.flatMap { $0 > 0 ? $0 : nil }, decomposesBoth: both.bool ?? false)
    }

    /// Two factors of a size (peft, tuners/lokr/layer.py, `factorization`): `factor` and the rest, or the largest divisor that is not
    /// above `factor` and the root, and the rest.
    package static func divisors(of size: Int, factor: Int?) -> (Int, Int) {
        if let factor, size % factor == 0 { return (factor, size / factor) }
        var (divisor, next) = (1, 2)
        while next * next <= size, next <= factor ?? size {
            if size % next == 0 { divisor = next }
            next += 1
        }
        return (divisor, size / divisor)
    }

    /// The sizes of W₁ and W₂ of a linear, and which of them are products.
    struct Shape {
        let left: (rows: Int, columns: Int)
        let right: (rows: Int, columns: Int)
        let leftIsProduct: Bool
        let rightIsProduct: Bool
        /// Of P₁ and Q₁, and of P₂ and Q₂.
        let leftRank: Int
        let rightRank: Int
    }

    func shape(_ linear: LinearShape, rank: Int) -> Shape {
        let outputs = Self.divisors(of: linear.outFeatures, factor: factor), inputs = Self.divisors(of: linear.inFeatures, factor: factor)
        let leftIsProduct = decomposesBoth && 2 * rank < max(outputs.0, inputs.0)
        let rightIsProduct = 2 * rank < max(outputs.1, inputs.1)
        return Shape(
            left: (outputs.0, inputs.0), right: (outputs.1, inputs.1), leftIsProduct: leftIsProduct, rightIsProduct: rightIsProduct,
            leftRank: leftIsProduct ? rank : min(outputs.0, inputs.0), rightRank: rightIsProduct ? rank : min(outputs.1, inputs.1))
    }

    package func fileNames(_ spec: AdapterSpec) -> [String] {
        ["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"]
    }

    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        let shape = shape(linear, rank: spec.rank)
        func matrix(_ name: String, _ rows: Int, _ columns: Int, isZero: Bool = false) -> AdapterMatrix {
            AdapterMatrix(
                name: name, rows: rows, columns: columns, start: isZero ? .constant(0) : AdapterMatrix.kaiming(columns: columns))
        }
        func side(_ name: String, _ size: (rows: Int, columns: Int), isProduct: Bool, isZero: Bool) -> [AdapterMatrix] {
            isProduct
                ? [matrix(name + "_a", size.rows, spec.rank, isZero: isZero), matrix(name + "_b", spec.rank, size.columns)]
                : [matrix(name, size.rows, size.columns, isZero: isZero)]
        }
        return side("lokr_w1", shape.left, isProduct: shape.leftIsProduct, isZero: true)
            + side("lokr_w2", shape.right, isProduct: shape.rightIsProduct, isZero: false)
    }

    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int {
        let shape = shape(linear, rank: spec.rank)
        return shape.leftRank * shape.rightRank
    }

    package func derive(_ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], rank: Int, into factors: AdapterFactors) {
        let (left, right) = sides(shape(linear, rank: rank), stored, stored)
        fill(factors.b, left.p, right.p, linear.rowOrder)
        fill(factors.a, left.q, right.q, nil)
    }

    package func chain(
        _ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], _ dFactors: AdapterFactors, rank: Int, into gradients: [Tensor?]
    ) {
        let (left, right) = sides(shape(linear, rank: rank), stored, gradients)
        chain(dFactors.b, left.p, right.p, linear.rowOrder)
        chain(dFactors.a, left.q, right.q, nil)
    }
}

// Kronecker products.
extension LoKr {
    /// P or Q of W₁ or W₂.
    private struct Side {
        let rows: Int
        let columns: Int
        /// Nil: the identity.
        let matrix: (values: Tensor, gradient: Tensor)?
    }

    private func sides(_ shape: Shape, _ stored: [Tensor], _ gradients: [Tensor?]) -> (left: (p: Side, q: Side), right: (p: Side, q: Side)) {
        func matrix(_ index: Int) -> Side {
            Side(rows: stored[index].rows, columns: stored[index].columns, matrix: (stored[index], gradients[index]!))
        }
        func side(_ first: Int, isProduct: Bool) -> (p: Side, q: Side) {
            let one = matrix(first)
            if isProduct { return (one, matrix(first + 1)) }
            func identity(_ size: Int) -> Side { Side(rows: size, columns: size, matrix: nil) }
            return one.rows <= one.columns ? (identity(one.rows), one) : (one, identity(one.columns))
        }
        return (side(0, isProduct: shape.leftIsProduct), side(shape.leftIsProduct ? 2 : 1, isProduct: shape.rightIsProduct))
    }

    /// Calls `body` with every block x[i, j] · y[p, _] of x ⊗ y: its part of a row of `product`, whose row g is row `order[g]`.
    private func forEachBlock(
        _ product: Tensor, _ x: Side, _ y: Side, _ order: [Int]?,
        _ body: (_ block: UnsafeMutablePointer<Float>, _ i: Int, _ j: Int, _ p: Int) -> Void
    ) {
        precondition(product.rows == x.rows * y.rows && product.columns == x.columns * y.columns)
        for row in 0..<product.rows {
            let (i, p) = (order?[row] ?? row).quotientAndRemainder(dividingBy: y.rows)
            for j in 0..<x.columns { body(product.row(row) + j * y.columns, i, j, p) }
        }
    }

    private func fill(_ product: Tensor, _ x: Side, _ y: Side, _ order: [Int]?) {
        forEachBlock(product, x, y, order) { block, i, j, p in
            let scale = x.matrix.map { $0.values.row(i)[j] } ?? (i == j ? 1 : 0)
            if let values = y.matrix?.values.row(p) {
                for q in 0..<y.columns { block[q] = scale * values[q] }
            } else {
                block.update(repeating: 0, count: y.columns)
                block[p] = scale
            }
        }
    }

    private func chain(_ dProduct: Tensor, _ x: Side, _ y: Side, _ order: [Int]?) {
        forEachBlock(dProduct, x, y, order) { block, i, j, p in
            if let x = x.matrix {
                var sum: Float = 0
                if let values = y.matrix?.values.row(p) {
                    for q in 0..<y.columns { sum += block[q] * values[q] }
                } else {
                    sum = block[p]
                }
                x.gradient.row(i)[j] += sum
            }
            guard let y = y.matrix, x.matrix != nil || i == j else { return }
            let scale = x.matrix.map { $0.values.row(i)[j] } ?? 1
            let gradient = y.gradient.row(p)
            for q in 0..<y.values.columns { gradient[q] += scale * block[q] }
        }
    }
}
