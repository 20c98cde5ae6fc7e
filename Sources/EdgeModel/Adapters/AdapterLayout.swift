// Where what a method stores lies in memory, and how much of everything there is: what plans are made of.
import EdgeTensor

/// Where the matrices of an adapter lie. Arithmetic alone: a plan is made of it.
package struct AdapterLayout {
    /// A matrix of a module, or of all, in the block.
    package struct Place: Equatable, Sendable {
        package let matrix: AdapterMatrix
        /// In elements.
        package let offset: Int
        package var elements: Range<Int> { offset..<offset + matrix.count }
    }

    package struct Slot: Equatable, Sendable {
        package let id: ModuleID
        package let linear: LinearGroup
        package let shape: LinearShape
        package var inFeatures: Int { shape.inFeatures }
        package var outFeatures: Int { shape.outFeatures }
        package let places: [Place]
        /// As stored, and of the factors; 0: it has none.
        package let rank: Int
        package let factorRank: Int
        package let scaling: Float
        /// Where its derived factors begin among those of the modules that work together, in elements.
        let factorOffset: Int
        /// Nil: its input is not rotated.
        let rotation: AdapterMatrix?
    }

    /// A part, and its matrices in the block.
    package struct PlacedPart: Equatable, Sendable {
        package let part: AdapterPart
        package let places: [Place]
    }

    package let spec: AdapterSpec
    package let slots: [Slot]
    package let parts: [PlacedPart]
    package let shared: [Place]
    /// Elements of the block, with the padding between matrices.
    package let parameterCount: Int
    /// The first so many are trained.
    package let trainedCount: Int
    /// Elements of each layer's trained matrices, by layer; empty where a layer has none. Then those that are no layer's.
    package let layerRanges: [Range<Int>]
    package var modelRange: Range<Int> { layerRanges.last! }
    /// The first that has anything.
    package let lowestLayer: Int
    /// The lowest of the base's that a backward goes through; the layer count where it goes through none.
    package let lowestBackwardLayer: Int
    /// Nil: nothing is beside the layers.
    package let side: SideShape?
    /// Of all matrices of a side network; and of those that read the base, whose inputs have no gradient.
    package let sideElements: Int
    package let sideReadElements: Int
    /// Rows and keys before each sample's own.
    package var virtualTokens: Int { spec.virtualTokens }
    /// Layers whose MLP is a mixture of experts.
    package var mixedLayers: Int { parts.filter { $0.part.site == .experts }.count }
    /// Of the two matrices of all bottlenecks.
    package var bottleneckElements: Int {
        parts.filter { [.afterAttention, .afterMLP].contains($0.part.site) }.flatMap(\.places).filter { !$0.matrix.isVector }
            .reduce(0) { $0 + $1.matrix.count }
    }
    /// Of a sample's tokens, by the keys before its own.
    package var positionShift: Int { spec.method.prefixShiftsPositions ? spec.prefixTokens : 0 }
    /// Whether what goes into a layer has a gradient that the method needs, and no layer below is trained.
    package func needsInputGradient(of layer: Int) -> Bool {
        parts.contains { placed in
            switch placed.part.site {
            case .prompt, .tokens: true
            case .norm(.attentionInput): placed.part.layer == layer
            default: false
            }
        }
    }
    /// Elements of the derived factors of the modules that work together.
    private let factorCount: Int
    /// The largest.
    package let factorRank: Int
    /// Of all factors that are multiplied by; and of those that have a gradient.
    package let factorElements: Int
    package let trainedFactorElements: Int
    /// Weights of the linears whose outputs the method scales.
    package let scaledWeights: Int
    /// Weights of the linears that have a product with a rescaled input, too; and entries of all sparse changes.
    package let rescaledWeights: Int
    package let sparseEntries: Int
    /// The most that a rescaled product's input and outputs have together, and the widest input of a sparse one; 0: there is none.
    private let widestRescaled: Int
    private let widestSparseInput: Int
    /// Widest input that the method transforms, and widest output that it scales; 0: none.
    private let widestTransformedInput: Int
    private let widestScaledOutput: Int
    private let magnitudeCount: Int
    /// Largest block of a rotation; 0: nothing is rotated.
    private let rotationBlock: Int
    /// Of all rotations, and multiplications in a product of each block with one of its size.
    package let rotationElements: Int
    package let rotationProducts: Int
    /// Whether a part of what is trained is measured by the first forward.
    package var hasMagnitudes: Bool { magnitudeCount > 0 }

    /// Each matrix starts at a cache line.
    ///
    /// - Parameter modules: by layer and then in the layer's order.
    package init(_ adapter: AdapterSpec, modules: [ModuleID], of spec: DecoderSpec) {
        precondition(zip(modules, modules.dropFirst()).allSatisfy { $0 < $1 }, "modules by layer")
        self.spec = adapter
        let method = adapter.method
        // Layers are alike: what their linears have is made once.
        let ofModule = Dictionary(Set(modules.map(\.module)).map { ($0, spec.shape($0)) }) { first, _ in first }
        let shapes = modules.map { ofModule[$0.module]! }
        let specs = modules.map { adapter.own($0.path(spec)) }
        let matrices = zip(shapes, specs).map { method.matrices($0, $1) }
        var count = 0
        func place(_ matrix: AdapterMatrix) -> Place {
            defer { count += Self.padded(matrix.count) }
            return Place(matrix: matrix, offset: count)
        }
        var places: [[Place?]] = []
        var ranges = [Range<Int>](repeating: 0..<0, count: spec.layerCount)
        let parts = adapter.parts(spec)
        var placedParts: [PlacedPart] = []
        func placeParts(of layer: Int?) {
            for part in parts where part.layer == layer { placedParts.append(PlacedPart(part: part, places: part.matrices.map { place($0.matrix) })) }
        }
        for layer in 0..<spec.layerCount {
            let first = count
            while places.count < modules.count, modules[places.count].layer == layer {
                places.append(matrices[places.count].map { $0.isTrained ? place($0) : nil })
            }
            placeParts(of: layer)
            if count > first { ranges[layer] = first..<count }
        }
        let firstOfModel = count
        placeParts(of: nil)
        layerRanges = ranges + [firstOfModel..<count]
        trainedCount = count
        // The last norm is above all layers, but a step goes through one layer at least.
        let isBelowLayers = parts.contains { $0.layer == nil && $0.site != .norm(.final) }
        lowestLayer = isBelowLayers ? 0 : ranges.firstIndex { !$0.isEmpty } ?? spec.layerCount - 1
        side = method.side(spec)
        lowestBackwardLayer = side == nil ? lowestLayer : spec.layerCount
        let ofSide = parts.filter { $0.site == .side }
        sideElements = ofSide.flatMap(\.matrices).map(\.matrix).filter { !$0.isVector }.reduce(0) { $0 + $1.count }
        sideReadElements = ofSide.count * spec.hiddenSize * (side?.width ?? 0)
        self.parts = placedParts
        for module in modules.indices {
            for (index, matrix) in matrices[module].enumerated() where places[module][index] == nil {
                places[module][index] = place(matrix)
            }
        }
        let widest = LinearShape(
            inFeatures: shapes.map(\.inFeatures).max() ?? 0, outFeatures: shapes.map(\.outFeatures).max() ?? 0, isDown: false)
        shared = method.shared(widest, adapter).map(place)
        parameterCount = count

        let isDerived = method.derivesFactors(adapter)
        var (slots, largest) = ([Slot](), 0)
        var together: (layer: Int, input: LinearModule, count: Int)?
        for (index, id) in modules.enumerated() {
            if together?.layer != id.layer || together?.input != id.module.sharesInputWith {
                together = (id.layer, id.module.sharesInputWith, 0)
            }
            let shape = shapes[index]
            let factorRank = method.factorRank(shape, specs[index])
            slots.append(
                Slot(
                    id: id, linear: spec.linear(doing: id.module), shape: shape, places: places[index].map { $0! }, rank: specs[index].rank,
                    factorRank: factorRank, scaling: specs[index].scaling, factorOffset: together!.count,
                    rotation: method.rotation(shape).map { matrices[index][$0.matrix] }))
            let rank = isDerived ? factorRank : 0
            together!.count += Self.padded(rank * shape.inFeatures) + Self.padded(rank * shape.outFeatures)
            largest = max(largest, together!.count)
        }
        self.slots = slots
        factorCount = largest
        factorRank = slots.map(\.factorRank).max() ?? 0
        let ofMixtures = parts.filter { $0.site == .experts }.count
            * (method.mixture.map { Self.elements(of: $0, rank: adapter.rank, spec) } ?? 0)
        factorElements = slots.reduce(ofMixtures) { $0 + $1.factorRank * ((method.foldsInputs ? 0 : $1.inFeatures) + $1.outFeatures) }
        trainedFactorElements = slots.reduce(ofMixtures) { sum, slot in
            let isTrained = method.storedFactors.map { slot.places[$0.a].matrix.isTrained } ?? !method.foldsInputs
            return sum + slot.factorRank * (slot.outFeatures + (isTrained ? slot.inFeatures : 0))
        }
        scaledWeights = shapes.reduce(0) { $0 + (method.outputScale($1) == nil ? 0 : $1.inFeatures * $1.outFeatures) }
        let added = shapes.map(method.addedTerms)
        let rescaled = zip(shapes, added).filter { $1.rescaling != nil }.map(\.0)
        rescaledWeights = rescaled.reduce(0) { $0 + $1.inFeatures * $1.outFeatures }
        widestRescaled = rescaled.map { $0.inFeatures + $0.outFeatures }.max() ?? 0
        widestSparseInput = zip(shapes, added).filter { $1.sparse != nil }.map(\.0.inFeatures).max() ?? 0
        sparseEntries = zip(slots, added).reduce(0) { sum, one in sum + (one.1.sparse.map { one.0.places[$0.values].matrix.count } ?? 0) }
        widestTransformedInput = shapes.filter { method.inputTransform($0) != nil }.map(\.inFeatures).max() ?? 0
        let rotations = slots.compactMap(\.rotation)
        rotationBlock = rotations.map(\.columns).max() ?? 0
        rotationElements = rotations.reduce(0) { $0 + $1.count }
        rotationProducts = rotations.reduce(0) { $0 + $1.count * $1.columns }
        widestScaledOutput = shapes.filter { method.outputScale($0) != nil }.map(\.outFeatures).max() ?? 0
        let hasMagnitude = shapes.contains { method.outputScale($0)?.isMagnitude ?? false }
        magnitudeCount = hasMagnitude ? factorRank * (widestScaledOutput + factorRank) : 0
    }

    /// What a token is multiplied by in a mixture: by the router, by its experts' factors, and by every expert's B of down.
    private static func elements(of mixture: ExpertMixture, rank: Int, _ spec: DecoderSpec) -> Int {
        let (hidden, intermediate) = (spec.hiddenSize, spec.intermediateSize)
        return mixture.experts * hidden * (1 + rank) + mixture.chosen * rank * (2 * hidden + 3 * intermediate)
    }

    static func padded(_ count: Int) -> Int { ByteCount.floats(count).bytes / 4 }

    /// In the block's order.
    package var trained: [TrainedMatrix] {
        (slots.flatMap(\.places) + parts.flatMap(\.places)).sorted { $0.offset < $1.offset }.filter(\.matrix.isTrained).map {
            TrainedMatrix(elements: $0.elements, learningRateFactor: $0.matrix.learningRateFactor)
        }
    }

    /// Parameters that are trained, without the padding between matrices.
    package var trainableCount: Int { trained.reduce(0) { $0 + $1.elements.count } }

    /// Of the tensors' file, without its header.
    package var fileBytes: Int {
        (slots.flatMap(\.places) + parts.flatMap(\.places) + shared).filter(\.matrix.isOnFile).reduce(0) { $0 + 4 * $1.matrix.count }
    }

    /// Elements of the layer that has most.
    var largestLayer: Int { layerRanges.dropLast().map(\.count).max() ?? 0 }

    /// Elements that the gradients take, or what is in their place.
    package func gradientCount(_ extent: AdapterSet.GradientExtent) -> Int {
        switch extent {
        case .allLayers: trainedCount
        case .oneLayer, .forwardOnly: largestLayer + modelRange.count
        }
    }

    package var modules: Set<LinearModule> { Set(slots.map(\.id.module)) }

    /// Elements of derived factors, of every task at once, and of one's gradients where there is training.
    package func factorCount(isTrained: Bool) -> Int { ((spec.method.tasks?.names.count ?? 1) + (isTrained ? 1 : 0)) * factorCount }
    /// Where a task's derived factors begin.
    func factorStart(task: Int?) -> Int { (task ?? 0) * factorCount }

    /// Elements for a scaled product's inputs or outputs, and for what a magnitude's scale is made of.
    package func scaledCount(tokens: Int, isTrained: Bool) -> Int {
        max(tokens * max(widestTransformedInput, widestRescaled, isTrained ? widestScaledOutput : 0), magnitudeCount)
    }

    /// Of a thread's scratch, for what its pieces make of the adapter.
    package var scratchFloats: Int {
        max(
            rotationBlock == 0 ? 0 : BlockRotation.scratchFloats(blockSize: rotationBlock),
            SparseMatrix.scratchFloats(inFeatures: widestSparseInput))
    }
}

extension DecoderSpec {
    /// Of the linear whose leader is `module`.
    package func shape(_ module: LinearModule) -> LinearShape {
        LinearShape(
            inFeatures: module.inFeatures(self), outFeatures: linear(doing: module).outFeatures(self), isDown: module == .down,
            rowOrder: rowOrder(module), hasBias: biases.contains(module))
    }
}

extension LinearModule {
    /// The first of those that read the same input.
    package var sharesInputWith: LinearModule {
        switch self {
        case .query, .key, .value: .query
        case .output: .output
        case .gate, .up: .gate
        case .down: .down
        }
    }
}

/// What the optimizer updates as one.
package struct TrainedMatrix: Equatable, Sendable {
    /// Of the adapters' block.
    package let elements: Range<Int>
    package let learningRateFactor: Double
    package init(elements: Range<Int>, learningRateFactor: Double = 1) {
        self.elements = elements
        self.learningRateFactor = learningRateFactor
    }
}
