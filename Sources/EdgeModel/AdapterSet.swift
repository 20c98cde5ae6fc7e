// What a job trains: every module's matrices, one after the other in one block of memory, and their gradients in another of the same
// layout, so that optimizer, clipping and checkpoint see plain vectors. What a method stores and does not train comes last.
import EdgeTensor

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
    /// The layer whose trained parameters are read where its gradients would be.
    private var perturbedLayer: Int?

    package var spec: AdapterSpec { layout.spec }
    package var slots: [Slot] { layout.slots }
    package var parameterCount: Int { layout.parameterCount }
    package var trainedCount: Int { layout.trainedCount }
    package var gradientCount: Int { layout.gradientCount(extent) }
    package var layerRanges: [Range<Int>] { layout.layerRanges }

    /// Gradients of which layers exist at once.
    package enum GradientExtent: String, Equatable, Sendable {
        case allLayers
        /// One layer's, used again by the next: each is applied before the next layer's are computed. And those that are no layer's.
        case oneLayer
        /// None, for there is no backward. In their place is what a layer at work has instead of its trained parameters
        /// (PerturbedAdapters.swift).
        case forwardOnly
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

    package var lowestLayer: Int { layout.lowestLayer }

    /// The slot of the linear that does `module`.
    package func slot(layer: Int, _ module: LinearModule) -> Slot? {
        slotOfModule[layer * LinearModule.allCases.count + module.rawValue].map { slots[$0] }
    }

    // MARK: matrices

    package func tensor(_ place: AdapterLayout.Place) -> Tensor {
        if let perturbedLayer, place.matrix.isTrained { return gradient(place, layer: perturbedLayer) }
        return Tensor(parameters + place.offset, rows: place.matrix.rows, columns: place.matrix.columns)
    }

    /// The same adapter with the layer's trained parameters as `perturb` has left them. What is derived from them has the place that it
    /// has with the adapter itself: `parametersChanged` is to be called between uses of the one and of the other.
    package func perturbed(layer: Int) -> AdapterSet {
        precondition(extent == .forwardOnly)
        var own = self
        own.perturbedLayer = layer
        return own
    }

    /// A module's matrices, as its method stores them; of a method with tasks those of one.
    package func stored(_ slot: Slot, task: Int? = nil) -> [Tensor] { places(slot, task).map(tensor) }
    private func places(_ slot: Slot, _ task: Int?) -> [AdapterLayout.Place] {
        guard let tasks = spec.method.tasks else { return slot.places }
        guard let task else { preconditionFailure("a sample without a task") }
        return tasks.matrices(of: task).map { slot.places[$0] }
    }
    package var shared: [Tensor] { layout.shared.map(tensor) }

    /// Of a trained matrix of a layer.
    package func gradient(_ place: AdapterLayout.Place, layer: Int) -> Tensor {
        Tensor(
            layerGradients(layer) + place.offset - layerRanges[layer].lowerBound, rows: place.matrix.rows, columns: place.matrix.columns)
    }

    /// Nil for what is not trained; of a method with tasks those of one.
    package func gradients(_ slot: Slot, task: Int? = nil) -> [Tensor?] {
        places(slot, task).map { $0.matrix.isTrained ? gradient($0, layer: slot.id.layer) : nil }
    }

    /// A layer's gradients, as long as its `layerRanges`; behind the last layer those that are no layer's.
    package func layerGradients(_ layer: Int) -> UnsafeMutablePointer<Float> {
        guard extent != .allLayers else { return gradients + layerRanges[layer].lowerBound }
        return layer + 1 == layerRanges.count ? gradients + layout.largestLayer : gradients
    }

    // MARK: parts

    package typealias PartMatrix = (matrix: Tensor, gradient: Tensor)

    /// Matrices of a part, and the gradients of those; none where the method has no such part.
    ///
    /// - Parameter layer: nil: the whole model's.
    package func part(_ site: AdapterSite, layer: Int?) -> [PartMatrix] {
        guard let placed = layout.parts.first(where: { $0.part.site == site && $0.part.layer == layer }) else { return [] }
        return placed.places.map { place in
            let gradient = gradient(place, layer: layer ?? layerRanges.count - 1)
            return (perturbedLayer == nil ? tensor(place) : gradient, gradient)
        }
    }

    // MARK: factors

    /// A and B; nil where the method has none. Derived ones are those of the last `derive` of this task.
    package func factors(_ slot: Slot, task: Int? = nil) -> AdapterFactors? {
        guard slot.factorRank > 0 else { return nil }
        if let stored = spec.method.storedFactors {
            return AdapterFactors(a: tensor(slot.places[stored.a]), b: tensor(slot.places[stored.b]))
        }
        return derived(slot, from: factorSpace + layout.factorStart(task: task))
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
    func derive(_ slots: [Slot], task: Int?, on pool: WorkerPool) {
        guard spec.method.derivesFactors(spec) else { return }
        pool.run(slots.count) { index, _ in
            let slot = slots[index]
            spec.method.derive(slot.shape, stored(slot, task: task), shared, rank: usedRank(slot), into: factors(slot, task: task)!)
        }
    }

    /// What a linear's input is changed by, and what is trained of it.
    enum InputChange {
        case scale(Tensor, gradient: Tensor)
        case rotation(skew: Tensor, matrix: Tensor, CayleyForm, gradient: Tensor)
    }

    func inputChange(_ slot: Slot) -> InputChange? {
        func part(_ index: Int) -> Tensor { tensor(slot.places[index]) }
        func gradient(_ index: Int) -> Tensor { self.gradient(slot.places[index], layer: slot.id.layer) }
        return switch spec.method.inputTransform(slot.shape) {
        case nil: nil
        case .scale(let index): .scale(part(index), gradient: gradient(index))
        case .rotation(let skew, let matrix, let form): .rotation(skew: part(skew), matrix: part(matrix), form, gradient: gradient(skew))
        }
    }

    /// What a linear's outputs are multiplied by.
    struct OutputScaling {
        let scale: Tensor
        /// What is trained of it, and the gradient of that.
        let trained: Tensor
        let gradient: Tensor
        /// Of DoRA: ‖W‖² of each row; nil: the scale is what is trained.
        let weightSquares: Tensor?
        var scalesBias: Bool { weightSquares == nil }
    }

    /// - Parameter outputs: of the linear: those of one product of a fused one.
    func outputScale(_ slot: Slot, _ outputs: Range<Int>) -> OutputScaling? {
        func part(_ vector: Tensor) -> Tensor { Tensor(vector.base + outputs.lowerBound, rows: 1, columns: outputs.count) }
        func scaling(_ trained: Int, scale: Int, weightSquares: Int?) -> OutputScaling {
            let places = slot.places
            return OutputScaling(
                scale: part(tensor(places[scale])), trained: part(tensor(places[trained])),
                gradient: part(gradient(places[trained], layer: slot.id.layer)), weightSquares: weightSquares.map { part(tensor(places[$0])) })
        }
        return switch spec.method.outputScale(slot.shape) {
        case nil: nil
        case .stored(let index): scaling(index, scale: index, weightSquares: nil)
        case .magnitude(let trained, let squares, let scale): scaling(trained, scale: scale, weightSquares: squares)
        }
    }

    /// Of what a linear's factors give, w and b of the gate; nil: there is none.
    func gate(_ slot: Slot) -> (weight: PartMatrix, bias: PartMatrix)? {
        func part(_ index: Int) -> PartMatrix { (tensor(slot.places[index]), gradient(slot.places[index], layer: slot.id.layer)) }
        return spec.method.gate(slot.shape).map { (part($0.weight), part($0.bias)) }
    }

    /// What a linear has added, and the gradient of what is trained of it.
    struct AddedParts {
        /// Left, of all outputs, and right.
        var rescaling: (left: Tensor, right: Tensor, dLeft: Tensor, dRight: Tensor)?
        var sparse: (matrix: SparseMatrix, gradient: Tensor)?
        var bias: (change: Tensor, gradient: Tensor)?
    }

    /// Nil where the method adds nothing.
    func addedParts(_ slot: Slot) -> AddedParts? {
        let terms = spec.method.addedTerms(slot.shape)
        guard !terms.isEmpty else { return nil }
        func part(_ index: Int) -> Tensor { tensor(slot.places[index]) }
        func gradient(_ index: Int) -> Tensor { self.gradient(slot.places[index], layer: slot.id.layer) }
        var parts = AddedParts()
        parts.rescaling = terms.rescaling.map { (part($0.left), part($0.right), gradient($0.left), gradient($0.right)) }
        parts.sparse = terms.sparse.map {
            let matrix = SparseMatrix(
                values: part($0.values), places: part($0.places), outFeatures: slot.outFeatures, inFeatures: slot.inFeatures)
            return (matrix, gradient($0.values))
        }
        parts.bias = terms.bias.map { (part($0), gradient($0)) }
        return parts
    }

    /// To be called when parameters have changed: what is derived from them and the weights is made again.
    package func parametersChanged() { state.fresh = [] }
    func isFresh(_ slot: Slot) -> Bool { state.fresh.contains(slot.id) }
    func becameFresh(_ slot: Slot) { state.fresh.insert(slot.id) }

    /// The first ranks, of a method that draws them; nil: all.
    package func use(rank: Int?) { state.rank = rank }

    /// Adds what the gradients of a slot's derived factors say of what is stored.
    func chain(_ slot: Slot, task: Int?) {
        spec.method.chain(
            slot.shape, stored(slot, task: task), shared, factorGradients(slot), rank: usedRank(slot), into: gradients(slot, task: task))
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
        for (index, placed) in layout.parts.enumerated() {
            initialize(placed.places, RandomSource(seed: seed, .adapterInit, UInt64(placed.part.layer ?? layerRanges.count), UInt64(partStream + index)))
        }
        initialize(layout.shared, RandomSource(seed: seed, .adapterInit))
    }

    /// Behind the modules' numbers.
    private var partStream: Int { LinearModule.allCases.count }

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
            case .places(let rows, let columns):
                fillPlaces(tensor, rows: rows, columns: columns) { random.uniform(drawn + $0) }
                drawn += tensor.columns
            case .measured, .orthogonal: break
            }
        }
        let together = places.filter { $0.matrix.start == .orthogonal }.map(tensor)
        if together.count == 2 { AdapterStart.fillOrthogonal(a: together[0], b: together[1], random) }
    }

    /// - Parameter uniform: of a number, one from 0 to below 1.
    private func fillPlaces(_ places: Tensor, rows: Int, columns: Int, _ uniform: (Int) -> Float) {
        let (entries, all) = (places.columns, rows * columns)
        for entry in 0..<entries {
            let first = all * entry / entries, end = all * (entry + 1) / entries
            let place = min(first + Int(uniform(entry) * Float(end - first)), end - 1)
            places.row(0)[entry] = Float(place / columns)
            places.row(1)[entry] = Float(place % columns)
        }
    }
}
