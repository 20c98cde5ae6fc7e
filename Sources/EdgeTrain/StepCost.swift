// What a step costs in time: operations by arithmetic, and how fast this board does each kind, from a calibration.
import EdgeFormats
import EdgeModel
import EdgeTensor

/// Seconds of a product with a frozen weight: a part per weight, for decoding and packing it, and a part per weight and token.
package struct ProductCost: Codable, Equatable, Sendable {
    package var perWeight: Double
    package var perWeightAndToken: Double
    package init(perWeight: Double, perWeightAndToken: Double) {
        self.perWeight = perWeight
        self.perWeightAndToken = perWeightAndToken
    }
}

/// Seconds that this board needs for one unit of each kind of work, with a number of threads.
package struct Calibration: Codable, Equatable, Sendable {
    package var kernelSet: String
    package var compute: String
    package var threads: Int
    /// In models whose hidden size is below `narrowBelow`: panels are short there.
    package var narrow: ProductCost
    package var wide: ProductCost
    /// Of dense f32 products: adapters and attention.
    package var perAdapterMultiplyAdd: Double
    package var perAttentionMultiplyAdd: Double
    /// Of an activation's value; norms, rotations and losses are counted in these.
    package var perElement: Double
    /// Of AdamW, by how its moments are stored.
    package var perParameter: Double
    package var perParameter8Bit: Double
    /// Of copying bytes that are in the page cache.
    package var perCopiedByte: Double
    /// Of reading bytes that are not; nil when it could not be measured.
    package var perDiskByte: Double?

    package static let narrowBelow = 1024

    package init(
        kernelSet: String, compute: String, threads: Int, narrow: ProductCost, wide: ProductCost,
        perAdapterMultiplyAdd: Double, perAttentionMultiplyAdd: Double, perElement: Double, perParameter: Double,
        perParameter8Bit: Double, perCopiedByte: Double, perDiskByte: Double?
    ) {
        self.kernelSet = kernelSet
        self.compute = compute
        self.threads = threads
        self.narrow = narrow
        self.wide = wide
        self.perAdapterMultiplyAdd = perAdapterMultiplyAdd
        self.perAttentionMultiplyAdd = perAttentionMultiplyAdd
        self.perElement = perElement
        self.perParameter = perParameter
        self.perParameter8Bit = perParameter8Bit
        self.perCopiedByte = perCopiedByte
        self.perDiskByte = perDiskByte
    }

    /// Ratios of a common board, for choosing among plans where nothing was measured. Its seconds mean nothing.
    package static let nominal = Calibration(
        kernelSet: "", compute: "", threads: 1, narrow: ProductCost(perWeight: 60e-12, perWeightAndToken: 5e-12),
        wide: ProductCost(perWeight: 60e-12, perWeightAndToken: 4e-12), perAdapterMultiplyAdd: 8e-12,
        perAttentionMultiplyAdd: 7e-12, perElement: 0.3e-9, perParameter: 2e-9, perParameter8Bit: 10e-9, perCopiedByte: 0.15e-9, perDiskByte: 10e-9)
}

/// Work of one micro-batch.
package struct StepCost: Equatable, Sendable {
    /// Weights decoded, head included, over all passes.
    package var weights = 0.0
    package var weightTokens = 0.0
    package var adapterMultiplyAdds = 0.0
    package var attentionMultiplyAdds = 0.0
    package var elements = 0.0
    private var isNarrow = false
    /// Normal numbers.
    private var drawn = 0.0
    /// Brought in for streamed weights.
    package var streamedBytes = 0.0
    /// Written and read for layer inputs in a file.
    package var spilledBytes = 0.0
    /// Read from the activation cache.
    package var cachedBytes = 0.0

    /// - Parameters:
    ///   - tokens: of the micro-batch.
    ///   - lossTokens: those that carry loss.
    ///   - sampleTokens: of a typical sample: what attention is quadratic in.
    ///   - cachedShare: of the tokens, those for which the layers below the adapted ones are not run.
    ///   - layouts: of the jobs that have a part in it; nil: of all.
    package init(
        _ memory: MemoryModel, _ shape: StepShape, layouts: [AdapterLayout]? = nil, tokens: Double, lossTokens: Double, sampleTokens: Double,
        cachedShare: Double = 0
    ) {
        let spec = memory.spec
        // What has a backward; and how often everything is done.
        let trained = shape.hasBackward ? Double(memory.trainedLayers) : 0
        let forwards = shape.hasBackward ? 1.0 : 2.0
        let frozen = Double(spec.layerCount - memory.trainedLayers) * (1 - cachedShare)
        let layers = frozen + Double(memory.trainedLayers)
        let again = trained - (shape.hasBackward ? Double(shape.keptLayers) : 0)
        let headPasses = shape.hasBackward ? 2.0 : 1.0
        var ofLayer = 0.0, ofDown = 0.0, ofMLP = 0.0
        for module in LinearModule.allCases {
            let weights = Double(module.inFeatures(spec)) * Double(module.outFeatures(spec))
            ofLayer += weights
            if module == .down { ofDown = weights }
            if module.isOfMLP { ofMLP += weights }
        }
        // Forward, what is computed again (all but the last product, if no bottleneck reads what it gives), and the gradient of the input.
        let spared = memory.partMemory.keepsAfterMLP ? 0 : ofDown
        let passes = layers * ofLayer + again * (ofLayer - spared) + trained * ofLayer
        let head = Double(spec.vocabularySize * spec.hiddenSize)
        let chunks = max(1, (lossTokens / Double(max(1, shape.lossChunk))).rounded(.up))
        // An MLP's are decoded again for each run of tokens.
        let runs = max(1, (tokens / Double(shape.mlpTokens)).rounded(.up))
        weights = passes + headPasses * chunks * head + (runs - 1) * ((layers + again + trained) * ofMLP - again * spared)
        weightTokens = passes * tokens + headPasses * head * lossTokens
        // Jobs that train together have about as many of the tokens each.
        let layouts = layouts ?? memory.layouts
        let ofJob = tokens / Double(layouts.count)
        for layout in layouts {
            let ofEntries = ofJob * Double(layout.sparseEntries) * Self.multiplyAddsPerEntry
            guard shape.hasBackward else {
                let dense = layout.factorElements + layout.rotationElements + layout.sideElements + layout.bottleneckElements
                adapterMultiplyAdds += ofJob * Double(dense) + ofEntries
                weights += Double(layout.rescaledWeights)
                weightTokens += Double(layout.rescaledWeights) * ofJob
                drawn += Double(layout.trainedCount)
                continue
            }
            adapterMultiplyAdds += ofJob * Double(layout.factorElements) * (2 + (trained > 0 ? again / trained : 0))
                + ofJob * Double(layout.trainedFactorElements)
            // Of a bottleneck both products, and in the backward five of half as much.
            adapterMultiplyAdds += ofJob * Double(layout.bottleneckElements) * (3.5 + (trained > 0 ? again / trained : 0))
            // Of a side network a forward, the same again, and two products more; what reads the base has no gradient of its input.
            adapterMultiplyAdds += ofJob * Double(4 * layout.sideElements - layout.sideReadElements)
            // Turned, turned back, and the products of both; for each run of tokens the gradient goes through some ten products of blocks.
            let runs = max(1, ofJob / min(Double(outerProductTokens), sampleTokens))
            adapterMultiplyAdds += ofJob * Double(layout.rotationElements) * (3 + (trained > 0 ? again / trained : 0))
                + 10 * runs * Double(layout.rotationProducts)
            // A rescaled product is one more in each forward and two in the backward; of a sparse one, inputs and values have gradients.
            let rescaled = Double(layout.rescaledWeights) * (3 + (trained > 0 ? again / trained : 0))
            weights += rescaled
            weightTokens += rescaled * ofJob
            adapterMultiplyAdds += ofEntries * (3 + (trained > 0 ? again / trained : 0))
            // What is scaled is computed once more for the scale's gradient.
            weights += Double(layout.scaledWeights)
            weightTokens += Double(layout.scaledWeights) * ofJob
        }
        // Two products in the forward, five in the backward.
        let keys = spec.layerKinds.reduce(0) { $0 + CausalAttention.meanKeys(sampleTokens, window: $1.window) }
            / Double(spec.layerCount)
            + layouts.reduce(0) { $0 + Double($1.spec.prefixTokens) } / Double(layouts.count)
        attentionMultiplyAdds = (2 * layers + 2 * again + 5 * trained) * tokens * keys * Double(spec.queryWidth)
        // Norms and rotations of a layer take as long as so many activations; a backward, as two forwards.
        elements =
            tokens * Double(spec.intermediateSize + spec.hiddenSize) * (layers + again + 2 * trained)
            + lossTokens * Double(spec.vocabularySize)
        for side in layouts.compactMap(\.side) {
            let blocks = ofJob * Double(spec.layerCount)
            attentionMultiplyAdds += blocks * keys * Double(side.queryWidth) * (shape.hasBackward ? 2 + 2 + 5 : 2)
            elements += blocks * Double(side.intermediateSize + side.width) * (shape.hasBackward ? 4 : 1)
        }
        isNarrow = spec.hiddenSize < Calibration.narrowBelow
        if shape.weights == .streamed {
            let layerBytes = memory.weights.layerBytes
            streamedBytes =
                Double(layerBytes.dropLast(memory.trainedLayers).reduce(0, +)) * (1 - cachedShare)
                + headPasses * Double(layerBytes.suffix(memory.trainedLayers).reduce(0, +))
                + headPasses * chunks * Double(memory.weights.headBytes)
        }
        if let cache = memory.cache { cachedBytes = cachedShare * tokens * Double(cache.format.rowBytes(spec.hiddenSize)) }
        if shape.checkpoints == .file { spilledBytes = 2 * Double(memory.keptInputs) * tokens * 4 * Double(spec.hiddenSize) }
        weights *= forwards
        weightTokens *= forwards
        adapterMultiplyAdds *= forwards
        attentionMultiplyAdds *= forwards
        drawn *= forwards
        elements = elements * forwards + drawn * Self.elementsPerDraw
        streamedBytes *= forwards
        cachedBytes *= forwards
    }

    /// A normal number takes about as long as so many activations: an estimate, which no run has been compared with.
    static let elementsPerDraw = 20.0

    /// What an entry of a sparse matrix is multiplied with is fetched for it alone: SHiRA's steps on models of 135M and 1.1B took as if
    /// each were 3 to 4.5 dense ones.
    private static let multiplyAddsPerEntry = 4.0

    /// Threads that wait for each other, small operations, caches that are colder than in a measurement: real steps of four
    /// models took 1.1 to 1.2 times the sum of their parts.
    private static let between = 1.15

    /// - Parameter weightsAreCached: whether the model's file stays in the page cache beside everything else.
    package func seconds(_ board: Calibration, weightsAreCached: Bool) -> Double {
        let product = isNarrow ? board.narrow : board.wide
        var seconds = weights * product.perWeight
        seconds += weightTokens * product.perWeightAndToken
        seconds += adapterMultiplyAdds * board.perAdapterMultiplyAdd
        seconds += attentionMultiplyAdds * board.perAttentionMultiplyAdd
        seconds += elements * board.perElement
        // Copying takes a core's time; the disk works beside the computation, and only what it is longer is waited for.
        seconds += (streamedBytes + cachedBytes) * board.perCopiedByte
        let perDiskByte = board.perDiskByte ?? Calibration.nominal.perDiskByte!
        let disk = (weightsAreCached ? 0 : streamedBytes) * perDiskByte + spilledBytes * perDiskByte
        return max(seconds * Self.between, disk)
    }
}
