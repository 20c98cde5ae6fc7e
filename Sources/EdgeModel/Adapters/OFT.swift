// OFT (arXiv:2306.07280; block-diagonal and by the Cayley transform as PEFT's, arXiv:2506.19847): (x · R) · Wᵀ, where R turns each block of
// the inputs by itself. What is trained of a block is the upper triangle of a skew-symmetric matrix, which begins as zero: R as the
// identity. A linear has its own R, so linears that read the same input are multiplied one by one.
import EdgeFormats
import EdgeTensor

package struct OFT: AdapterMethod {
    package let name = "oft"
    package let peftType = "OFT"
    package let configKeys = AdapterConfigKeys(rank: nil, alpha: nil, dropout: nil)
    package let hasLayers = true

    /// How a linear's inputs are parted.
    package enum Blocks: Equatable, Sendable {
        /// Of this size, PEFT's `oft_block_size`.
        case size(Int)
        /// So many, PEFT's `r`.
        case count(Int)
    }

    let blocks: Blocks
    let form: CayleyForm

    package static let defaultBlockSize = 32
    /// PEFT's `num_cayley_neumann_terms`; and the most that are read.
    package static let defaultTerms = 5
    private static let mostTerms = 64
    /// The first PEFT that has the series as it is here, and says in a file which it was.
    private static let firstVersion = "0.18.0"

    package init(_ blocks: Blocks = .size(defaultBlockSize), _ form: CayleyForm = .neumann(terms: defaultTerms)) {
        self.blocks = blocks
        self.form = form
    }

    package func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member] {
        let (size, count) = switch blocks {
        case .size(let size): (size, 0)
        case .count(let count): (0, count)
        }
        let (isSeries, terms) = switch form {
        case .exact: (false, Self.defaultTerms)
        case .neumann(let terms): (true, terms)
        }
        return [
            .init("bias", .string("none")), .init("block_share", .bool(false)), .init("coft", .bool(false)), .init("eps", .number("6e-05")),
            .init("fan_in_fan_out", .bool(false)), .init("init_weights", .bool(true)), .init("module_dropout", .number("0.0")),
            .init("num_cayley_neumann_terms", .number("\(terms)")), .init("oft_block_size", .number("\(size)")),
            .init("peft_version", .string(Self.firstVersion)), .init("r", .number("\(count)")), .init("use_cayley_neumann", .bool(isSeries)),
        ]
    }

    package func configured(by config: JSONText) throws -> any AdapterMethod {
        func read<Value>(_ key: String, default: Value, _ decode: (JSONText) -> Value?) throws -> Value {
            guard let found = config[key], found != .null else { return `default` }
            guard let value = decode(found) else { throw AdapterSettingError(key: key) }
            return value
        }
        func count(_ key: String) throws -> Int { try read(key, default: 0) { $0.integer.flatMap { $0 >= 0 ? $0 : nil } } }
        let size = try count("oft_block_size"), number = try count("r")
        // PEFT has no default for a file that says neither, or both.
        guard (size == 0) != (number == 0) else { throw AdapterSettingError(key: "oft_block_size") }
        let terms = try read("num_cayley_neumann_terms", default: Self.defaultTerms) {
            $0.integer.flatMap { (2...Self.mostTerms).contains($0) ? $0 : nil }
        }
        let isSeries = try read("use_cayley_neumann", default: true) { $0.bool }
        // Older ones sum the series in another way, and so do files that do not say.
        if isSeries, !Self.isFromFirstVersionOn(config["peft_version"]?.string ?? "") { throw AdapterSettingError(key: "peft_version") }
        return OFT(size > 0 ? .size(size) : .count(number), isSeries ? .neumann(terms: terms) : .exact)
    }

    /// - Parameter version: "0.21.2", "0.18.1.dev0@a1b2c3".
    private static func isFromFirstVersionOn(_ version: String) -> Bool {
        let numbers = version.split(separator: ".").prefix(2).map { Int($0) ?? -1 }
        return numbers.count == 2 && (numbers[0] > 0 || numbers[0] == 0 && numbers[1] >= 18)
    }

    /// Of a linear with so many inputs.
    package func blockSize(inFeatures: Int) -> Int {
        switch blocks {
        case .size(let size): Self.divisor(of: inFeatures, near: size)
        case .count(let count): inFeatures / Self.divisor(of: inFeatures, near: count)
        }
    }

    /// The divisor that is nearest, of two as near the smaller one (peft, tuners/oft/layer.py, `adjust_oft_parameters`).
    package static func divisor(of size: Int, near asked: Int) -> Int {
        guard asked < size else { return size }
        var (lower, higher) = (asked, asked)
        while size % higher != 0 { higher += 1 }
        while size % lower != 0 { lower -= 1 }
        return asked - lower <= higher - asked ? lower : higher
    }

    package func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] {
        let size = blockSize(inFeatures: linear.inFeatures)
        return [
            AdapterMatrix(
                name: "oft_R.weight", rows: linear.inFeatures / size, columns: BlockRotation.skewCount(blockSize: size), start: .constant(0)),
            AdapterMatrix(name: "rotation", rows: linear.inFeatures, columns: size, isTrained: false, isOnFile: false, start: .measured),
        ]
    }

    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { 0 }
    package func inputTransform(_ linear: LinearShape) -> InputTransform? { .rotation(skew: 0, matrix: 1, form) }
}
