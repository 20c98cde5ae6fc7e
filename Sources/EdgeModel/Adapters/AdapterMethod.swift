// What PEFT methods are to the layers, the memory plan and the files. All that are here change a linear to
//
//   y = o ⊙ (t(x) · Wᵀ + scaling · dropout(x) · Aᵀ · Bᵀ)
//
// A `[factorRank, in]` and B `[out, factorRank]` are the factors, o `[out]` the output's scale, and t multiplies the input by a vector or by a
// block-diagonal rotation. A method says which of these it has and how they come from the matrices that it stores; the products and their
// gradients are the layer's, once for all. A method has an input's transform or factors, not both; or it adds other terms to a linear that
// is left as it is (AddedTerms.swift). Beside the linears it may have parts (AdapterPart.swift).
// A method is one file, and one line in `AdapterMethods.all`.
import EdgeFormats
import EdgeTensor

package enum AdapterMethods {
    package static let lora = LoRA(name: "lora", trainsA: true)
    package static let loraFA = LoRA(name: "lora-fa", trainsA: false)
    package static let dora = DoRA()

    package static let all: [any AdapterMethod] = [
        lora, loraFA, dora, DyLoRA(), VeRA(), MiSS(), LoHa(), LoKr(), AdaLoRA(), IA3(), OFT(), RLRR(), SHiRA(), BitFit(), MTLoRA(), MixLoRA(),
        PrefixTuning(), PromptTuning(), NormTuning(), TrainableTokens(), HubAdapter.seqBn, HubAdapter.doubleSeqBn, HubAdapter.parBn,
        HubAdapter.mam, HubAdapter.unipelt, LadderSideTuning(),
    ]

    /// Those that a model can have whatever its linears are.
    package static var ofAnyModel: [any AdapterMethod] { all.filter { !$0.needsBias } }

    package static func named(_ name: String) -> (any AdapterMethod)? { all.first { $0.name == name } }
}

/// A linear, as far as a method asks.
package struct LinearShape: Equatable, Sendable {
    package let inFeatures: Int
    package let outFeatures: Int
    /// The MLP's last, whose input is what the activation gave.
    package let isDown: Bool
    /// Output i is Hugging Face's `rowOrder[i]`, which is what shared matrices go by; nil: the same order.
    package var rowOrder: [Int]?
    /// The base adds a bias.
    package let hasBias: Bool

    /// For what is the same of every linear.
    package static let smallest = LinearShape(inFeatures: 1, outFeatures: 1, isDown: false)

    package init(inFeatures: Int, outFeatures: Int, isDown: Bool, rowOrder: [Int]? = nil, hasBias: Bool = false) {
        self.inFeatures = inFeatures
        self.outFeatures = outFeatures
        self.hasBias = hasBias
        self.isDown = isDown
        self.rowOrder = rowOrder
    }
}

/// A matrix that a method stores.
package struct AdapterMatrix: Equatable, Sendable {
    package enum Start: Equatable, Sendable {
        case constant(Float)
        /// In ± bound.
        case uniform(bound: Float)
        case normal(deviation: Float)
        /// A and B of a LoRA together.
        case orthogonal
        /// Of a sparse matrix of this size: rows, then columns, of one random place in each of as many equal stretches as there are
        /// entries.
        case places(rows: Int, columns: Int)
        /// What the base's weights, or its activations, say, once they are in memory; zero until then.
        case measured
    }
    /// The axis that goes over the linear's outputs, whose order is the base file's.
    package enum OutputAxis: Sendable { case rows, columns }

    /// PEFT's: what follows a module's path, or the whole key of what all modules share.
    package let name: String
    package let rows: Int
    package let columns: Int
    /// On file a vector, and not a matrix of one row or column.
    package var isVector = false
    package var isTrained = true
    package var isOnFile = true
    /// Of whole numbers below 2^24: I32 on file, and exact in f32.
    package var isInteger = false
    package var outputs: OutputAxis?
    package let start: Start
    /// The learning rate is multiplied by it.
    package var learningRateFactor = 1.0

    package var count: Int { rows * columns }
    /// On file.
    package var shape: [Int] { isVector ? [count] : [rows, columns] }

    /// PyTorch's `kaiming_uniform_(a: √5)`: ±1/√columns.
    static func kaiming(columns: Int) -> Start { .uniform(bound: 1 / Float(columns).squareRoot()) }
}

/// How a method changes what a linear gets; numbers are of its matrices.
package enum InputTransform: Equatable, Sendable {
    /// By a stored vector, element by element.
    case scale(Int)
    /// By a block-diagonal matrix `[in, block size]`, which is made of a stored skew-symmetric one.
    case rotation(skew: Int, matrix: Int, CayleyForm)
}

/// How a method scales what a linear gives; numbers are of its matrices.
package enum OutputScale: Equatable, Sendable {
    /// By a stored vector, bias included.
    case stored(Int)
    /// Each output by its trained magnitude over the length of its row of W + scaling · B · A, the bias not included.
    case magnitude(Int, weightSquares: Int, scale: Int)

    var isMagnitude: Bool { if case .magnitude = self { true } else { false } }
}

/// The factors of a linear's change, or their gradients.
package struct AdapterFactors {
    /// `[factorRank, inFeatures]`.
    package let a: Tensor
    /// `[outFeatures, factorRank]`; rows in the base file's order.
    package let b: Tensor

    package init(a: Tensor, b: Tensor) {
        self.a = a
        self.b = b
    }
}

/// Of a method whose samples belong to tasks: what is stored for a linear is the matrices that all tasks share, and then as many of each.
package struct AdapterTasks: Equatable, Sendable {
    package let names: [String]
    /// Matrices that all tasks share, and that each has for itself.
    let shared: Int
    let own: Int

    /// Numbers of the matrices that a sample of this task sees.
    package func matrices(of task: Int) -> [Int] { Array(0..<shared) + (0..<own).map { shared + task * own + $0 } }
}

/// What adapter_config.json says of an adapter, whatever its method.
package struct AdapterConfigValues: Equatable, Sendable {
    package var rank: Int
    package var usesRankStabilizedScaling: Bool
    /// Those of the targets that are the MLP's last.
    package var downTargets: [String]
    package var rankPattern: JSONText
    package var alphaPattern: JSONText
    /// Of a method that has virtual tokens.
    package var virtualTokens: VirtualTokenSizes?
    package init(
        rank: Int, usesRankStabilizedScaling: Bool, downTargets: [String], rankPattern: JSONText, alphaPattern: JSONText,
        virtualTokens: VirtualTokenSizes?
    ) {
        self.virtualTokens = virtualTokens
        self.rank = rank
        self.usesRankStabilizedScaling = usesRankStabilizedScaling
        self.downTargets = downTargets
        self.rankPattern = rankPattern
        self.alphaPattern = alphaPattern
    }
}

/// What PEFT's configurations of virtual tokens say of the model.
package struct VirtualTokenSizes: Equatable, Sendable {
    /// Of a token's row, and the heads that it has.
    package let tokenDim: Int
    package let heads: Int
    package let layers: Int
    package init(tokenDim: Int, heads: Int, layers: Int) {
        self.tokenDim = tokenDim
        self.heads = heads
        self.layers = layers
    }

    var configMembers: [JSONText.Member] {
        [
            .init("num_attention_heads", .number("\(heads)")), .init("num_layers", .number("\(layers)")),
            .init("num_transformer_submodules", .number("1")), .init("token_dim", .number("\(tokenDim)")),
        ]
    }
}

/// How PEFT's configuration class of a method calls what ours calls rank, alpha and dropout; nil: it has none.
package struct AdapterConfigKeys: Equatable, Sendable {
    package let rank: String?
    package let alpha: String?
    package let dropout: String?
}

/// A key of adapter_config.json whose value is none that PEFT has for it.
package struct AdapterSettingError: Error {
    package let key: String
}

/// Values: of two that are equal, the settings are, too.
package protocol AdapterMethod: Equatable, Sendable {
    /// What a job's `adapter` says.
    var name: String { get }
    /// `peft_type` of its files.
    var peftType: String { get }
    /// Whether PEFT has a class of this type.
    var isPEFTs: Bool { get }
    var configKeys: AdapterConfigKeys { get }
    /// The method that its files are read as.
    var fileMethod: String { get }
    /// Without the settings that its files do not have.
    var asOnFile: any AdapterMethod { get }
    /// Whether a job can have dropout.
    var hasDropout: Bool { get }
    /// What adapter_config.json has beside the keys that every method's has and those of `configKeys`.
    func configMembers(_ values: AdapterConfigValues) -> [JSONText.Member]
    /// With the settings that adapter_config.json has of this method alone; absent ones are PEFT's defaults.
    ///
    /// - Throws: `AdapterSettingError`.
    func configured(by config: JSONText) throws -> any AdapterMethod
    /// The rank that a job has when it says none, and the alpha.
    var defaultRank: Int { get }
    func defaultAlpha(rank: Int) -> Double
    /// The largest rank that a job can ask for.
    var largestRank: Int { get }
    /// That this linear can have; nil: any.
    func largestRank(_ linear: LinearShape) -> Int?
    /// Whether a job can adapt only linears with a bias.
    var needsBias: Bool { get }

    /// What is stored for a linear.
    func matrices(_ linear: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix]
    /// What all modules share and nothing trains; `widest` has the largest sizes of the adapted linears.
    func shared(_ widest: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix]

    /// What follows a module's path in the names of its files' tensors: all that there can be.
    func fileNames(_ spec: AdapterSpec) -> [String]

    /// The tensor whose rows are a linear's rank on file, of a method whose files may have fewer ranks than their configuration says.
    var rankTensor: String? { get }

    func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int
    /// What is added to a rank that divides alpha.
    var rankMargin: Double { get }
    func scaling(_ spec: AdapterSpec) -> Float
    /// The stored matrices that are A and B themselves; nil: they are derived, or there are none.
    var storedFactors: (a: Int, b: Int)? { get }
    /// Fills the factors from what is stored and shared.
    ///
    /// - Parameter rank: of the stored ranks the first so many count: all, or what a step has drawn.
    func derive(_ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], rank: Int, into factors: AdapterFactors)
    /// Adds to the gradients of what is stored (nil: not trained), by the chain rule, from those of the factors.
    func chain(
        _ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], _ dFactors: AdapterFactors, rank: Int, into gradients: [Tensor?])
    /// Whether A sums the inputs whose number is the same modulo the rank: then no product with it is computed, and it has no gradient.
    var foldsInputs: Bool { get }
    /// Whether every step trains a number of ranks that it draws.
    var drawsRank: Bool { get }
    /// The tasks that its samples belong to, of a method that derives factors; nil: a sample belongs to none.
    var tasks: AdapterTasks? { get }

    /// Whether adapter_config.json can name layers.
    var hasLayers: Bool { get }
    func inputTransform(_ linear: LinearShape) -> InputTransform?
    func outputScale(_ linear: LinearShape) -> OutputScale?
    func addedTerms(_ linear: LinearShape) -> AddedTerms
    /// Matrices that are w and b of the gate of what a linear's factors give (SampleGate.swift); nil: it has none.
    func gate(_ linear: LinearShape) -> (weight: Int, bias: Int)?
    /// Whether what it adds to a token depends on all tokens of the sample: then MLPs and prompts are done whole.
    var isGated: Bool { get }

    /// Whether it changes linears, which a job's targets then name.
    var adaptsLinears: Bool { get }
    /// Whether a job's targets, and its layers, choose what it changes.
    var hasTargets: Bool { get }
    /// Of a method that has targets and changes no linears: whether the model has what they name.
    ///
    /// - Throws: `AdapterTargetError`.
    func checkTargets(_ model: DecoderSpec, _ spec: AdapterSpec) throws
    /// Of such a method: what adapter_config.json calls its modules.
    func targetNames(_ model: DecoderSpec, _ spec: AdapterSpec) -> [String]
    /// Whether a linear that a job's targets name is one that it changes.
    func adapts(_ module: LinearModule) -> Bool
    /// What a tensor of a linear is called on file; nil: as PEFT has it.
    func fileKey(_ modulePath: String, _ matrix: AdapterMatrix) -> String?
    /// Of the MLP; nil: it is the base's.
    var mixture: ExpertMixture? { get }
    /// Of the network that it trains beside the base's layers, through which no backward goes then; nil: it has none.
    func side(_ model: DecoderSpec) -> SideShape?
    /// What is stored beside the linears, those of a layer together.
    func parts(_ model: DecoderSpec, _ spec: AdapterSpec) -> [AdapterPart]
    /// Whether all that it does is another weight for each linear, so that a model can have it.
    var changesWeightsOnly: Bool { get }
    /// Whether a model's file has a place for all that it does, in linears or elsewhere.
    var canBeWeights: Bool { get }
    /// Whether the model is the base's before the first step.
    var beginsAsBase: Bool { get }
    /// What its virtual tokens begin as; nil: it has none.
    var virtualTokenStart: VirtualTokenStart? { get }
    func virtualTokenSizes(_ model: DecoderSpec) -> VirtualTokenSizes?
    /// Whose embeddings it trains.
    var trainedTokens: [TokenID] { get }
    /// What people call its rank.
    var rankWord: String { get }
    /// Rows before each sample's own.
    func promptTokens(_ spec: AdapterSpec) -> Int
    /// Keys before each sample's own, in every layer.
    func prefixTokens(_ spec: AdapterSpec) -> Int
    /// Whether keys before a sample's own make the positions of its tokens higher.
    var prefixShiftsPositions: Bool { get }
    /// Of its parts after attention and MLP; nil: it has none.
    var bottleneck: Bottleneck? { get }
}

extension AdapterMethod {
    package var adaptsLinears: Bool { true }
    package func adapts(_ module: LinearModule) -> Bool { true }
    package func fileKey(_ modulePath: String, _ matrix: AdapterMatrix) -> String? { nil }
    package var mixture: ExpertMixture? { nil }
    package func side(_ model: DecoderSpec) -> SideShape? { nil }
    package func parts(_ model: DecoderSpec, _ spec: AdapterSpec) -> [AdapterPart] { [] }
    package var hasTargets: Bool { adaptsLinears }
    package func checkTargets(_ model: DecoderSpec, _ spec: AdapterSpec) throws {}
    package func targetNames(_ model: DecoderSpec, _ spec: AdapterSpec) -> [String] { [] }
    package var changesWeightsOnly: Bool { true }
    package var canBeWeights: Bool { changesWeightsOnly }
    package var beginsAsBase: Bool { true }
    package var virtualTokenStart: VirtualTokenStart? { nil }
    package func virtualTokenSizes(_ model: DecoderSpec) -> VirtualTokenSizes? { nil }
    package var trainedTokens: [TokenID] { [] }
    package var rankWord: String { "rank" }
    package func promptTokens(_ spec: AdapterSpec) -> Int { 0 }
    package func prefixTokens(_ spec: AdapterSpec) -> Int { 0 }
    package var bottleneck: Bottleneck? { nil }
    package var prefixShiftsPositions: Bool { true }
    package var defaultRank: Int { 16 }
    package func defaultAlpha(rank: Int) -> Double { Double(rank) }
    package var largestRank: Int { 512 }
    package func largestRank(_ linear: LinearShape) -> Int? { nil }
    package var needsBias: Bool { false }
    package var isPEFTs: Bool { true }
    package func shared(_ widest: LinearShape, _ spec: AdapterSpec) -> [AdapterMatrix] { [] }
    package func configured(by config: JSONText) throws -> any AdapterMethod { self }
    package func fileNames(_ spec: AdapterSpec) -> [String] { matrices(.smallest, spec).filter(\.isOnFile).map(\.name) }
    package func factorRank(_ linear: LinearShape, _ spec: AdapterSpec) -> Int { spec.rank }
    package var rankTensor: String? { nil }
    package var rankMargin: Double { 0 }
    package func scaling(_ spec: AdapterSpec) -> Float { configKeys.alpha == nil ? 1 : spec.alphaOverRank }
    package var storedFactors: (a: Int, b: Int)? { nil }
    package func derive(_ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], rank: Int, into factors: AdapterFactors) {}
    package func chain(
        _ linear: LinearShape, _ stored: [Tensor], _ shared: [Tensor], _ dFactors: AdapterFactors, rank: Int, into gradients: [Tensor?]
    ) {}
    package var foldsInputs: Bool { false }
    package var drawsRank: Bool { false }
    package var tasks: AdapterTasks? { nil }
    /// PEFT's class for (IA)³, which has no rank, has no layers either.
    package var hasLayers: Bool { configKeys.rank != nil }
    package func inputTransform(_ linear: LinearShape) -> InputTransform? { nil }
    package func outputScale(_ linear: LinearShape) -> OutputScale? { nil }
    package func addedTerms(_ linear: LinearShape) -> AddedTerms { .none }
    package func gate(_ linear: LinearShape) -> (weight: Int, bias: Int)? { nil }
    package var isGated: Bool { false }
    package var fileMethod: String { name }
    package var asOnFile: any AdapterMethod { self }
    package var hasDropout: Bool { configKeys.dropout != nil }

    /// What a job calls its rank.
    package var rankKey: String { self is any VirtualTokenMethod ? "num_virtual_tokens" : "lora_r" }

    /// Whether what it makes of a linear is a plain LoRA, exactly: of tasks each is one.
    package func isLoRA(_ spec: AdapterSpec) -> Bool {
        tasks == nil && adaptsLinears && changesWeightsOnly && spec.saved.isEmpty && hasFactors(spec)
            && [true, false].allSatisfy { isDown in
                let linear = LinearShape(inFeatures: 1, outFeatures: 1, isDown: isDown)
                return inputTransform(linear) == nil && outputScale(linear) == nil && addedTerms(linear).isEmpty
            }
    }

    package func rotation(_ linear: LinearShape) -> (skew: Int, matrix: Int, form: CayleyForm)? {
        guard case .rotation(let skew, let matrix, let form) = inputTransform(linear) else { return nil }
        return (skew, matrix, form)
    }

    private func hasFactors(_ spec: AdapterSpec) -> Bool { factorRank(.smallest, spec) > 0 }

    /// Whether factors exist only while a layer works.
    package func derivesFactors(_ spec: AdapterSpec) -> Bool { hasFactors(spec) && storedFactors == nil }

    package func equals(_ other: any AdapterMethod) -> Bool { self == other as? Self }
}
