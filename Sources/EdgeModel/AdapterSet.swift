// The trainable parameters of a job: every module's A and B, one after the other in one block of memory, and their
// gradients in another of the same layout, so that optimizer, clipping and checkpoint see plain vectors.
import EdgeTensor

package struct AdapterSet {
    /// Where a module's matrices begin in the block, in elements.
    package struct Slot: Equatable, Sendable {
        package let id: ModuleID
        package let linear: LinearGroup
        package let inFeatures: Int
        package let outFeatures: Int
        package let offsetA: Int
        package let offsetB: Int
    }

    package let spec: LoRASpec
    package let slots: [Slot]
    package let parameterCount: Int
    package let parameters: UnsafeMutablePointer<Float>
    package let gradients: UnsafeMutablePointer<Float>
    package let extent: GradientExtent
    package var gradientCount: Int {
        Self.gradientCount(extent, parameterCount: parameterCount, layerRanges)
    }
    /// Elements of each layer's matrices in the block.
    package let layerRanges: [Range<Int>]
    /// `[layer · 7 + module]`, an index into `slots`.
    private let slotOfModule: [Int?]

    /// Gradients of which layers exist at once.
    package enum GradientExtent: String, Equatable, Sendable {
        case allLayers
        /// One layer's, used again by the next: each is applied before the next layer's are computed.
        case oneLayer
    }

    /// Elements of each layer in the block, by layer; empty where a layer has no adapter.
    package static func layerRanges(_ slots: [Slot], count: Int, of spec: DecoderSpec) -> [Range<Int>] {
        var end = count
        var ranges = [Range<Int>](repeating: 0..<0, count: spec.layerCount)
        for slot in slots.reversed() {
            let layer = slot.id.layer
            if ranges[layer].isEmpty { ranges[layer] = slot.offsetA..<end }
            ranges[layer] = slot.offsetA..<ranges[layer].upperBound
            end = slot.offsetA
        }
        return ranges
    }

    /// Elements that the gradients take.
    package static func gradientCount(_ modules: [ModuleID], rank: Int, of spec: DecoderSpec, _ extent: GradientExtent) -> Int {
        let (slots, count) = layout(modules, rank: rank, of: spec)
        return gradientCount(extent, parameterCount: count, layerRanges(slots, count: count, of: spec))
    }

    private static func gradientCount(_ extent: GradientExtent, parameterCount: Int, _ layerRanges: [Range<Int>]) -> Int {
        switch extent {
        case .allLayers: parameterCount
        case .oneLayer: layerRanges.map(\.count).max() ?? 0
        }
    }

    /// Each matrix starts at a cache line.
    package static func layout(_ modules: [ModuleID], rank: Int, of spec: DecoderSpec) -> (slots: [Slot], count: Int) {
        func padded(_ count: Int) -> Int { ByteCount.floats(count).bytes / 4 }
        var count = 0
        let slots = modules.map { id in
            let linear = spec.linear(doing: id.module)
            let (inFeatures, outFeatures) = (linear.inFeatures(spec), linear.outFeatures(spec))
            let offsetA = count
            let offsetB = offsetA + padded(rank * inFeatures)
            count = offsetB + padded(outFeatures * rank)
            return Slot(
                id: id, linear: linear, inFeatures: inFeatures, outFeatures: outFeatures, offsetA: offsetA, offsetB: offsetB)
        }
        return (slots, count)
    }

    /// The elements of each matrix in the block, without padding: A then B of each slot.
    package static func matrices(of slots: [Slot], rank: Int) -> [Range<Int>] {
        slots.flatMap {
            [$0.offsetA..<$0.offsetA + rank * $0.inFeatures, $0.offsetB..<$0.offsetB + $0.outFeatures * rank]
        }
    }

    /// - Parameter gradients: nil when nothing is trained; then `gradients` must not be touched.
    package init(
        _ lora: LoRASpec, modules: [ModuleID], of spec: DecoderSpec, parameters: UnsafeMutablePointer<Float>,
        gradients: UnsafeMutablePointer<Float>?, _ extent: GradientExtent = .allLayers
    ) {
        self.spec = lora
        self.extent = extent
        (slots, parameterCount) = Self.layout(modules, rank: lora.rank, of: spec)
        layerRanges = Self.layerRanges(slots, count: parameterCount, of: spec)
        self.parameters = parameters
        self.gradients = gradients ?? parameters
        var slotOfModule = [Int?](repeating: nil, count: spec.layerCount * LinearModule.allCases.count)
        for (index, slot) in slots.enumerated() {
            for part in slot.linear.parts { slotOfModule[slot.id.layer * LinearModule.allCases.count + part.rawValue] = index }
        }
        self.slotOfModule = slotOfModule
    }

    /// Parameters that are trained, without the padding between matrices.
    package var trainableCount: Int {
        slots.reduce(0) { $0 + spec.rank * ($1.inFeatures + $1.outFeatures) }
    }

    package var lowestLayer: Int { slots.map(\.id.layer).min() ?? 0 }

    /// The slot of the linear that does `module`.
    package func slot(layer: Int, _ module: LinearModule) -> Slot? {
        slotOfModule[layer * LinearModule.allCases.count + module.rawValue].map { slots[$0] }
    }

    /// `[rank, inFeatures]`, PEFT's orientation.
    package func loraA(_ slot: Slot) -> Tensor {
        Tensor(parameters + slot.offsetA, rows: spec.rank, columns: slot.inFeatures)
    }
    /// `[outFeatures, rank]`; rows in the base file's order.
    package func loraB(_ slot: Slot) -> Tensor {
        Tensor(parameters + slot.offsetB, rows: slot.outFeatures, columns: spec.rank)
    }
    package func gradientA(_ slot: Slot) -> Tensor {
        Tensor(layerGradients(slot.id.layer) + slot.offsetA - layerRanges[slot.id.layer].lowerBound, rows: spec.rank, columns: slot.inFeatures)
    }
    package func gradientB(_ slot: Slot) -> Tensor {
        Tensor(layerGradients(slot.id.layer) + slot.offsetB - layerRanges[slot.id.layer].lowerBound, rows: slot.outFeatures, columns: spec.rank)
    }

    /// A layer's slots.
    package func slotRange(_ layer: Int) -> Range<Int> {
        let first = slots.firstIndex { $0.id.layer == layer } ?? 0
        return first..<first + slots[first...].prefix { $0.id.layer == layer }.count
    }

    /// A layer's gradients, as long as its `layerRanges`.
    package func layerGradients(_ layer: Int) -> UnsafeMutablePointer<Float> {
        extent == .oneLayer ? gradients : gradients + layerRanges[layer].lowerBound
    }

    /// PEFT's default start: A uniform in ±1/√inFeatures (Kaiming with a = √5), B zero, so that the adapted model
    /// begins as the base.
    package func initialize(seed: UInt64) {
        parameters.update(repeating: 0, count: parameterCount)
        for slot in slots {
            let random = RandomSource(seed: seed, .adapterInit, UInt64(slot.id.layer), UInt64(slot.id.module.rawValue))
            let bound = 1 / Float(slot.inFeatures).squareRoot()
            let a = loraA(slot)
            for i in 0..<a.count { a.base[i] = (2 * random.uniform(i) - 1) * bound }
        }
    }
}
