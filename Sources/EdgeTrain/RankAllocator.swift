// What AdaLoRA (arXiv:2303.10512) does to a step beside the loss's gradients: it keeps P and Q close to orthogonal, measures how much each
// parameter matters, and sets Λ to zero where it matters least, as PEFT's `AdaLoraModel` and `RankAllocator` do (peft,
// tuners/adalora). A rank that was taken away may come back while allocations go on. All its memory is the arena's; all that outlives a
// step is in a checkpoint.
import EdgeModel
import EdgeTensor

package enum RankAllocationError: Error, Equatable, CustomStringConvertible {
    case noStepsBetween(initial: Int, final: Int, total: Int)

    package var description: String {
        switch self {
        case .noStepsBetween(let initial, let final, let total):
            "tinit: \(initial) and tfinal: \(final) leave none of the run's \(total) steps in which ranks are taken away; use less of both "
                + "together than there are steps"
        }
    }
}

package struct RankAllocator {
    /// What a checkpoint saves: of every trained element its sensitivity and uncertainty, and of every rank whether it stays (1) when
    /// the last allocation has been made. Zero bytes are those of a run that begins.
    package let state: UnsafeMutableRawBufferPointer
    private let adapters: AdapterSet
    private let allocation: RankAllocation
    private let totalSteps: Int
    private let ranks: Ranks
    private let sensitivity: UnsafeMutablePointer<Float>
    private let uncertainty: UnsafeMutablePointer<Float>
    private let stays: UnsafeMutablePointer<Float>
    private let scores: UnsafeMutablePointer<Float>
    private let ordered: UnsafeMutablePointer<Float>
    private let gram: UnsafeMutablePointer<Float>

    /// Of all slots together.
    private struct Ranks {
        let count: Int
        let largest: Int
        init(_ layout: AdapterLayout) {
            count = layout.slots.reduce(0) { $0 + $1.rank }
            largest = layout.slots.map(\.rank).max() ?? 0
        }
    }

    /// Zero for other methods.
    package static func bytes(_ layout: AdapterLayout) -> ByteCount {
        guard layout.spec.method is AdaLoRA else { return .zero }
        let ranks = Ranks(layout)
        return stateBytes(layout, ranks) + .floats(ranks.count) + .floats(ranks.count) + .floats(ranks.largest * ranks.largest)
    }

    private static func stateBytes(_ layout: AdapterLayout, _ ranks: Ranks) -> ByteCount {
        .floats(2 * layout.trainedCount + ranks.count)
    }

    /// - Throws: `RankAllocationError` where a run of so many steps has none for its allocations.
    package static func check(_ adapter: AdapterSpec, totalSteps: Int) throws(RankAllocationError) {
        guard let allocation = (adapter.method as? AdaLoRA)?.allocation else { return }
        guard allocation.initialSteps + allocation.finalSteps < totalSteps else {
            throw .noStepsBetween(initial: allocation.initialSteps, final: allocation.finalSteps, total: totalSteps)
        }
    }

    /// Nil for other methods, which take no memory here.
    ///
    /// - Throws: `RankAllocationError`.
    package init?(_ adapters: AdapterSet, totalSteps: Int, arena: Arena) throws(RankAllocationError) {
        let layout = adapters.layout
        guard let method = layout.spec.method as? AdaLoRA else { return nil }
        try Self.check(layout.spec, totalSteps: totalSteps)
        self.adapters = adapters
        self.totalSteps = totalSteps
        allocation = method.allocation
        ranks = Ranks(layout)
        state = arena.bytes(Self.stateBytes(layout, ranks))
        sensitivity = state.baseAddress!.assumingMemoryBound(to: Float.self)
        uncertainty = sensitivity + layout.trainedCount
        stays = uncertainty + layout.trainedCount
        scores = arena.floats(ranks.count)
        ordered = arena.floats(ranks.count)
        gram = arena.floats(ranks.largest * ranks.largest)
    }

    /// The step whose allocation is the last; one at the run's end or behind it is never reached.
    private var lastAllocation: Int { totalSteps - allocation.finalSteps }

    private func slots(_ elements: Range<Int>) -> [AdapterSet.Slot] {
        adapters.slots.filter { elements.contains($0.places[0].offset) }
    }

    // MARK: orthogonality

    /// Adds the gradient of orthogonality · mean over all P and Q of ‖Q · Qᵀ - 1‖, ‖Pᵀ · P - 1‖ (Frobenius' norm): with M such a
    /// difference, 2 · M/‖M‖ · Q and 2 · P · M/‖M‖ of it. The loss that is reported has no part in this.
    ///
    /// - Parameters:
    ///   - elements: of the block: all that is trained, or one layer's.
    ///   - gradients: those of these elements alone.
    package func addOrthogonality(_ elements: Range<Int>, to gradients: UnsafeMutablePointer<Float>, on pool: WorkerPool) {
        guard allocation.orthogonality > 0 else { return }
        for slot in slots(elements) {
            let gram = Tensor(gram, rows: slot.rank, columns: slot.rank)
            func gradient(_ place: AdapterLayout.Place) -> Tensor {
                Tensor(gradients + (place.offset - elements.lowerBound), rows: place.matrix.rows, columns: place.matrix.columns)
            }
            let q = adapters.tensor(slot.places[0]), p = adapters.tensor(slot.places[2])
            linear(q, QuantizedMatrix(q), into: gram, on: pool)
            if normalizeDifference(gram) { linearBackward(gram, QuantizedMatrix(q), into: gradient(slot.places[0]), .add, on: pool) }
            gram.clear()
            addOuterProduct(p, p, [SamplePart(rows: 0..<p.rows, sample: 0, firstToken: 0)], into: gram, on: pool)
            if normalizeDifference(gram) { linear(p, QuantizedMatrix(gram), into: gradient(slot.places[2]), .add, on: pool) }
        }
    }

    /// Makes of a matrix's products with itself M/‖M‖ with what it weighs; false where M is zero, and there is no gradient.
    private func normalizeDifference(_ gram: Tensor) -> Bool {
        for i in 0..<gram.rows { gram.row(i)[i] -= 1 }
        var squares = 0.0
        for i in 0..<gram.count { squares += Double(gram.base[i]) * Double(gram.base[i]) }
        guard squares > 0 else { return false }
        let weight = Float(2 * allocation.orthogonality / (Double(2 * adapters.slots.count) * squares.squareRoot()))
        for i in 0..<gram.count { gram.base[i] *= weight }
        return true
    }

    // MARK: importance

    /// Takes a step's |parameter · gradient| into the means, after the update.
    ///
    /// - Parameters:
    ///   - gradients: those of `elements` alone.
    ///   - gradientScale: what they were multiplied by for the update.
    package func measure(
        _ elements: Range<Int>, gradients: UnsafePointer<Float>, gradientScale: Double, step: Int, on pool: WorkerPool
    ) {
        guard step < lastAllocation else { return }
        let (beta1, beta2) = (Float(allocation.beta1), Float(allocation.beta2))
        let (rate1, rate2, scale) = (Float(1 - allocation.beta1), Float(1 - allocation.beta2), Float(gradientScale))
        let places = slots(elements).flatMap(\.places)
        let parameters = adapters.parameters
        pool.run(places.count) { index, _ in
            for i in places[index].elements {
                let importance = abs(parameters[i] * (gradients[i - elements.lowerBound] * scale))
                sensitivity[i] = beta1 * sensitivity[i] + rate1 * importance
                uncertainty[i] = beta2 * uncertainty[i] + rate2 * abs(importance - sensitivity[i])
            }
        }
    }

    // MARK: allocation

    /// Ranks that all linears have together after a step; nil where a step takes none away.
    package func budget(step: Int) -> Int? {
        let target = Double(allocation.target(of: adapters.spec.rank) * adapters.slots.count)
        guard step > allocation.initialSteps, step <= lastAllocation, step == lastAllocation || step % allocation.interval == 0 else {
            return nil
        }
        let rest = 1 - Double(step - allocation.initialSteps) / Double(lastAllocation - allocation.initialSteps)
        return Int((Double(ranks.count) - target) * (rest * rest * rest) + target)
    }

    /// Ends a step, whose parameters have been updated and measured: sets Λ of the ranks that matter least to zero.
    package func allocate(step: Int, on pool: WorkerPool) {
        if step > lastAllocation {
            forEachRank { index, lambda in if stays[index] == 0 { lambda.pointee = 0 } }
        } else if let budget = budget(step: step) {
            score(on: pool)
            let leaving = ranks.count - budget
            guard leaving > 0 else { return }
            ordered.update(from: scores, count: ranks.count)
            let threshold = Self.smallest(leaving, of: ordered, count: ranks.count)
            forEachRank { index, lambda in
                let leaves = scores[index] <= threshold
                if leaves { lambda.pointee = 0 }
                if step == lastAllocation { stays[index] = leaves ? 0 : 1 }
            }
            if step == lastAllocation { sensitivity.update(repeating: 0, count: 2 * adapters.trainedCount) }
        }
        adapters.parametersChanged()
    }

    private func forEachRank(_ body: (_ index: Int, _ lambda: UnsafeMutablePointer<Float>) -> Void) {
        var index = 0
        for slot in adapters.slots {
            let lambda = adapters.tensor(slot.places[1]).base
            for rank in 0..<slot.rank {
                body(index, lambda + rank)
                index += 1
            }
        }
    }

    /// Of each rank: what its λ matters, and what its row of Q and its column of P do in the mean.
    private func score(on pool: WorkerPool) {
        let slots = adapters.slots
        pool.run(slots.count) { number, _ in
            let slot = slots[number], first = slots[..<number].reduce(0) { $0 + $1.rank }
            func importance(_ place: AdapterLayout.Place, _ element: Int) -> Double {
                Double(sensitivity[place.offset + element] * uncertainty[place.offset + element])
            }
            for rank in 0..<slot.rank {
                var (ofQ, ofP) = (0.0, 0.0)
                for column in 0..<slot.inFeatures { ofQ += importance(slot.places[0], rank * slot.inFeatures + column) }
                for row in 0..<slot.outFeatures { ofP += importance(slot.places[2], row * slot.rank + rank) }
                let vectors = Float(ofQ / Double(slot.inFeatures)) + Float(ofP / Double(slot.outFeatures))
                scores[first + rank] = Float(importance(slot.places[1], rank)) + vectors
            }
        }
    }

    /// The value that is number `place`, from 1, in ascending order; turns the values round. Hoare's selection, in Lomuto's parts.
    package static func smallest(_ place: Int, of values: UnsafeMutablePointer<Float>, count: Int) -> Float {
        precondition((1...count).contains(place))
        let values = UnsafeMutableBufferPointer(start: values, count: count)
        var (low, high) = (0, count - 1)
        while low < high {
            values.swapAt((low + high) / 2, high)
            var border = low
            for i in low..<high where values[i] < values[high] {
                values.swapAt(i, border)
                border += 1
            }
            values.swapAt(border, high)
            if border == place - 1 { break }
            if border < place - 1 { low = border + 1 } else { high = border - 1 }
        }
        return values[place - 1]
    }
}

extension AdapterSpec {
    /// As its files say it, of a run of so many steps.
    package func lasting(_ totalSteps: Int) -> AdapterSpec {
        guard var method = method as? AdaLoRA else { return self }
        method.allocation.totalSteps = totalSteps
        method.allocation.targetRank = method.allocation.target(of: rank)
        var own = self
        own.method = method
        return own
    }
}
