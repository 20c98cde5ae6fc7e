// An adapter a little way along a random direction, and steps along it: what training without a backward does to the parameters. The
// direction is a function of a stream and of an element's place in the adapter's block, so it is drawn again and never stored; of the
// perturbed parameters those of the layer at work exist. The adapter's own are only read until a step is taken: nothing is to be undone.
import EdgeTensor

/// z ~ N(0, 1) for every trained element, and how far along it.
package struct Perturbation {
    /// The stream of z.
    package let direction: RandomSource
    /// ε, with its sign.
    package let distance: Float

    package init(_ direction: RandomSource, distance: Float) {
        self.direction = direction
        self.distance = distance
    }
}

extension RandomSource {
    /// Calls `body` with z of every element of the range. Matrices begin at cache lines, so no pair is parted.
    @inline(__always)
    fileprivate func forEachNormal(_ elements: Range<Int>, _ body: (_ element: Int, _ z: Float) -> Void) {
        precondition(elements.lowerBound % 2 == 0)
        for element in stride(from: elements.lowerBound, to: elements.upperBound, by: 2) {
            let (first, second) = normals(pair: element / 2)
            body(element, first)
            if element + 1 < elements.upperBound { body(element + 1, second) }
        }
    }
}

extension AdapterSet {
    /// Elements of a piece: some tens of microseconds.
    private static let elementsTogether = 4096

    /// A logarithm, a root, a sine and a cosine for two elements; one is read and one written.
    private static func cost(_ count: Int) -> OperationCost { OperationCost(flop: Double(30 * count), bytes: Double(8 * count)) }

    /// Parts of a trained range, alike for any number of threads.
    private static func pieces(_ elements: Range<Int>) -> [Range<Int>] {
        stride(from: elements.lowerBound, to: elements.upperBound, by: elementsTogether).map {
            $0..<Swift.min($0 + elementsTogether, elements.upperBound)
        }
    }

    /// Leaves θ + ε · z of the layer's trained parameters θ for `perturbed(layer:)`.
    package func perturb(layer: Int, _ perturbation: Perturbation, on pool: WorkerPool) {
        precondition(extent == .forwardOnly)
        let range = layerRanges[layer], pieces = Self.pieces(range)
        let (direction, distance, parameters, place) = (perturbation.direction, perturbation.distance, parameters, layerGradients(layer))
        pool.run(pieces.count, as: .optimizer, Self.cost(range.count)) { piece, _ in
            direction.forEachNormal(pieces[piece]) { element, z in
                place[element - range.lowerBound] = parameters[element] + distance * z
            }
        }
    }

    /// θ ← decay · θ - step · z of every trained matrix.
    ///
    /// - Parameter factors: by what a matrix's learning rate is multiplied by.
    package func move(
        along direction: RandomSource, on pool: WorkerPool, _ factors: (_ learningRateFactor: Double) -> (decay: Float, step: Float)
    ) {
        let pieces = layout.trained.flatMap { matrix in
            let (decay, step) = factors(matrix.learningRateFactor)
            return Self.pieces(matrix.elements).map { (elements: $0, decay: decay, step: step) }
        }
        let parameters = parameters
        pool.run(pieces.count, as: .optimizer, Self.cost(trainedCount)) { index, _ in
            let piece = pieces[index]
            direction.forEachNormal(piece.elements) { element, z in
                parameters[element] = piece.decay * parameters[element] - piece.step * z
            }
        }
        parametersChanged()
    }
}
