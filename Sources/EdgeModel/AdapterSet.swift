// What a job trains: every module's matrices, one after the other in one block of memory, and their gradients in another of the same
// layout, so that optimizer, clipping and checkpoint see plain vectors. What a method stores and does not train comes last.
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
    }

    package let spec: AdapterSpec
    package let slots: [Slot]
    package let shared: [Place]
    /// Elements of the block, with the padding between matrices.
    package let parameterCount: Int
    /// The first so many are trained.
    package let trainedCount: Int
    /// Elements of each layer's trained matrices, by layer; empty where a layer has none.
    package let layerRanges: [Range<Int>]
    /// Elements of the derived factors of the modules that work together.
    private let factorCount: Int
    /// The largest.
    package let factorRank: Int
    /// Of all factors that are multiplied by; and of those that have a gradient.
    package let factorElements: Int
    package let trainedFactorElements: Int
    /// Weights of the linears whose outputs the method scales.
    package let scaledWeights: Int
    /// Widest input, and output, of a module that the method scales there; 0: none.
    private let widestScaledInput: Int
    private let widestScaledOutput: Int
    private let magnitudeCount: Int

    /// Each matrix starts at a cache line.
    package init(_ adapter: AdapterSpec, modules: [ModuleID], of spec: DecoderSpec) {
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
        for (id, matrices) in zip(modules, matrices) {
            let first = count
            places.append(matrices.map { $0.isTrained ? place($0) : nil })
            if count > first { ranges[id.layer] = (ranges[id.layer].isEmpty ? first : ranges[id.layer].lowerBound)..<count }
        }
        trainedCount = count
        layerRanges = ranges
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
            slots.append(
                Slot(
                    id: id, linear: spec.linear(doing: id.module), shape: shape, places: places[index].map { $0! }, rank: specs[index].rank,
                    factorRank: specs[index].factorRank, scaling: specs[index].scaling, factorOffset: together!.count))
            let rank = isDerived ? specs[index].factorRank : 0
            together!.count += Self.padded(rank * shape.inFeatures) + Self.padded(rank * shape.outFeatures)
            largest = max(largest, together!.count)
        }
        self.slots = slots
        factorCount = largest
        factorRank = slots.map(\.factorRank).max() ?? 0
        factorElements = slots.reduce(0) { $0 + $1.factorRank * ((method.foldsInputs ? 0 : $1.inFeatures) + $1.outFeatures) }
        trainedFactorElements = slots.reduce(0) { sum, slot in
            let isTrained = method.storedFactors.map { slot.places[$0.a].matrix.isTrained } ?? !method.foldsInputs
            return sum + slot.factorRank * (slot.outFeatures + (isTrained ? slot.inFeatures : 0))
        }
        scaledWeights = shapes.reduce(0) { $0 + (method.outputScale($1) == nil ? 0 : $1.inFeatures * $1.outFeatures) }
        widestScaledInput = shapes.filter { method.inputScale($0) != nil }.map(\.inFeatures).max() ?? 0
        widestScaledOutput = shapes.filter { method.outputScale($0) != nil }.map(\.outFeatures).max() ?? 0
        let hasMagnitude = shapes.contains { method.outputScale($0)?.isMagnitude ?? false }
        magnitudeCount = hasMagnitude ? factorRank * (widestScaledOutput + factorRank) : 0
    }

    static func padded(_ count: Int) -> Int { ByteCount.floats(count).bytes / 4 }

    /// In the block's order.
    package var trained: [TrainedMatrix] {
        slots.flatMap(\.places).filter(\.matrix.isTrained).map {
            TrainedMatrix(elements: $0.elements, learningRateFactor: $0.matrix.learningRateFactor)
        }
    }

    /// Parameters that are trained, without the padding between matrices.
    package var trainableCount: Int { trained.reduce(0) { $0 + $1.elements.count } }

    /// Of the tensors' file, without its header.
    package var fileBytes: Int {
        (slots.flatMap(\.places) + shared).filter(\.matrix.isOnFile).reduce(0) { $0 + 4 * $1.matrix.count }
    }

    /// Elements that the gradients take.
    package func gradientCount(_ extent: AdapterSet.GradientExtent) -> Int {
        switch extent {
        case .allLayers: trainedCount
        case .oneLayer: layerRanges.map(\.count).max() ?? 0
        }
    }

    package var modules: Set<LinearModule> { Set(slots.map(\.id.module)) }

    /// Elements of derived factors, and of their gradients where there is training.
    package func factorCount(isTrained: Bool) -> Int { isTrained ? 2 * factorCount : factorCount }

    /// Elements for a scaled product's inputs or outputs, and for what a magnitude's scale is made of.
    package func scaledCount(tokens: Int, isTrained: Bool) -> Int {
        max(tokens * max(widestScaledInput, isTrained ? widestScaledOutput : 0), magnitudeCount)
    }
}

extension DecoderSpec {
    fileprivate func shape(_ module: LinearModule) -> LinearShape {
        LinearShape(
            inFeatures: module.inFeatures(self), outFeatures: linear(doing: module).outFeatures(self), isDown: module == .down,
            rowOrder: rowOrder(module))
    }
}

extension LinearModule {
    /// The first of those that read the same input.
    fileprivate var sharesInputWith: LinearModule {
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

package struct AdapterSet {
    package typealias Slot = AdapterLayout.Slot

    package let layout: AdapterLayout
    package let parameters: UnsafeMutablePointer<Float>
    package let gradients: UnsafeMutablePointer<Float>
    package let extent: GradientExtent
    /// Of derived factors, and then of their gradients.
    private let factorSpace: UnsafeMutablePointer<Float>
    /// `[layer · 7 + module]`, an index into `slots`.
    private let slotOfModule: [Int?]
    private let state = State()

    package var spec: AdapterSpec { layout.spec }
    package var slots: [Slot] { layout.slots }
    package var parameterCount: Int { layout.parameterCount }
    package var trainedCount: Int { layout.trainedCount }
    package var gradientCount: Int { layout.gradientCount(extent) }
    package var layerRanges: [Range<Int>] { layout.layerRanges }

    /// Gradients of which layers exist at once.
    package enum GradientExtent: String, Equatable, Sendable {
        case allLayers
        /// One layer's, used again by the next: each is applied before the next layer's are computed.
        case oneLayer
    }

    /// - Parameters:
    ///   - gradients: nil when nothing is trained; then `gradients` must not be touched.
    ///   - factorSpace: of `layout.factorCount` elements; nil when there are none.
    package init(
        _ layout: AdapterLayout, of spec: DecoderSpec, parameters: UnsafeMutablePointer<Float>,
        gradients: UnsafeMutablePointer<Float>?, factorSpace: UnsafeMutablePointer<Float>?, _ extent: GradientExtent = .allLayers
    ) {
        self.layout = layout
        self.extent = extent
        self.parameters = parameters
        self.gradients = gradients ?? parameters
        self.factorSpace = factorSpace ?? parameters
        var slotOfModule = [Int?](repeating: nil, count: spec.layerCount * LinearModule.allCases.count)
        for (index, slot) in layout.slots.enumerated() {
            for part in slot.linear.parts { slotOfModule[slot.id.layer * LinearModule.allCases.count + part.rawValue] = index }
        }
        self.slotOfModule = slotOfModule
    }

    package var lowestLayer: Int { slots.map(\.id.layer).min() ?? 0 }

    /// The slot of the linear that does `module`.
    package func slot(layer: Int, _ module: LinearModule) -> Slot? {
        slotOfModule[layer * LinearModule.allCases.count + module.rawValue].map { slots[$0] }
    }

    // MARK: matrices

    package func tensor(_ place: AdapterLayout.Place) -> Tensor {
        Tensor(parameters + place.offset, rows: place.matrix.rows, columns: place.matrix.columns)
    }

    /// A module's matrices, as its method stores them.
    package func stored(_ slot: Slot) -> [Tensor] { slot.places.map(tensor) }
    package var shared: [Tensor] { layout.shared.map(tensor) }

    /// Of a trained matrix of a layer.
    package func gradient(_ place: AdapterLayout.Place, layer: Int) -> Tensor {
        Tensor(
            layerGradients(layer) + place.offset - layerRanges[layer].lowerBound, rows: place.matrix.rows, columns: place.matrix.columns)
    }

    /// Nil for what is not trained.
    package func gradients(_ slot: Slot) -> [Tensor?] {
        slot.places.map { $0.matrix.isTrained ? gradient($0, layer: slot.id.layer) : nil }
    }

    /// A layer's gradients, as long as its `layerRanges`.
    package func layerGradients(_ layer: Int) -> UnsafeMutablePointer<Float> {
        extent == .oneLayer ? gradients : gradients + layerRanges[layer].lowerBound
    }

    // MARK: factors

    /// A and B; nil where the method has none. Derived ones are those of the last `derive`.
    package func factors(_ slot: Slot) -> AdapterFactors? {
        guard slot.factorRank > 0 else { return nil }
        if let stored = spec.method.storedFactors {
            return AdapterFactors(a: tensor(slot.places[stored.a]), b: tensor(slot.places[stored.b]))
        }
        return derived(slot, from: factorSpace)
    }

    /// Gradients of derived factors.
    func factorGradients(_ slot: Slot) -> AdapterFactors {
        derived(slot, from: factorSpace + layout.factorCount(isTrained: false))
    }

    private func derived(_ slot: Slot, from space: UnsafeMutablePointer<Float>) -> AdapterFactors {
        let (rank, first) = (slot.factorRank, space + slot.factorOffset)
        return AdapterFactors(
            a: Tensor(first, rows: rank, columns: slot.inFeatures),
            b: Tensor(first + AdapterLayout.padded(rank * slot.inFeatures), rows: slot.outFeatures, columns: rank))
    }

    /// To be called before `factors` of modules that work together, again when others have.
    func derive(_ slots: [Slot], on pool: WorkerPool) {
        guard spec.method.derivesFactors(spec) else { return }
        pool.run(slots.count) { index, _ in
            spec.method.derive(slots[index].shape, stored(slots[index]), shared, rank: usedRank(slots[index]), into: factors(slots[index])!)
        }
    }

    func inputScale(_ slot: Slot) -> (scale: Tensor, gradient: Tensor)? {
        spec.method.inputScale(slot.shape).map { (tensor(slot.places[$0]), gradient(slot.places[$0], layer: slot.id.layer)) }
    }

    /// What a linear's outputs are multiplied by.
    struct SlotScale {
        let scale: Tensor
        /// What is trained of it, and the gradient of that.
        let trained: Tensor
        let gradient: Tensor
        /// Of DoRA: ‖W‖² of each row; nil: the scale is what is trained.
        let weightSquares: Tensor?
    }

    func outputScale(_ slot: Slot) -> SlotScale? {
        func slotScale(_ trained: Int, scale: Int, weightSquares: Int?) -> SlotScale {
            let places = slot.places
            return SlotScale(
                scale: tensor(places[scale]), trained: tensor(places[trained]), gradient: gradient(places[trained], layer: slot.id.layer),
                weightSquares: weightSquares.map { tensor(places[$0]) })
        }
        return switch spec.method.outputScale(slot.shape) {
        case nil: nil
        case .stored(let index): slotScale(index, scale: index, weightSquares: nil)
        case .magnitude(let trained, let squares, let scale): slotScale(trained, scale: scale, weightSquares: squares)
        }
    }

    /// To be called when parameters have changed: what is derived from them and the weights is made again.
    package func parametersChanged() { state.fresh = [] }
    func isFresh(_ slot: Slot) -> Bool { state.fresh.contains(slot.id) }
    func becameFresh(_ slot: Slot) { state.fresh.insert(slot.id) }

    /// The first ranks, of a method that draws them; nil: all.
    package func use(rank: Int?) { state.rank = rank }

    /// Adds what the gradients of a slot's derived factors say of what is stored.
    func chain(_ slot: Slot) {
        spec.method.chain(
            slot.shape, stored(slot), shared, factorGradients(slot), rank: usedRank(slot), into: gradients(slot))
    }

    private func usedRank(_ slot: Slot) -> Int { min(state.rank ?? slot.rank, slot.rank) }

    /// What changes while the memory stays.
    private final class State {
        var fresh: Set<ModuleID> = []
        var rank: Int?
    }

    /// The method's own start: the adapted model begins as the base.
    package func initialize(seed: UInt64) {
        parameters.update(repeating: 0, count: parameterCount)
        parametersChanged()
        for slot in slots {
            let random = RandomSource(seed: seed, .adapterInit, UInt64(slot.id.layer), UInt64(slot.id.module.rawValue))
            initialize(slot.places, random)
        }
        initialize(layout.shared, RandomSource(seed: seed, .adapterInit))
    }

    private func initialize(_ places: [AdapterLayout.Place], _ random: RandomSource) {
        var drawn = 0
        for place in places {
            let tensor = tensor(place)
            switch place.matrix.start {
            case .constant(let value):
                for i in 0..<tensor.count { tensor.base[i] = value }
            case .uniform(let bound):
                for i in 0..<tensor.count { tensor.base[i] = (2 * random.uniform(drawn + i) - 1) * bound }
                drawn += tensor.count
            case .normal(let deviation):
                for i in 0..<tensor.count { tensor.base[i] = random.normal(drawn + i) * deviation }
                drawn += tensor.count
            case .measured, .orthogonal: break
            }
        }
        let together = places.filter { $0.matrix.start == .orthogonal }.map(tensor)
        if together.count == 2 { AdapterStart.fillOrthogonal(a: together[0], b: together[1], random) }
    }
}
