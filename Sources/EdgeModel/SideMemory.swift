// The memory in which side networks work: the states between blocks, and what only the block at work needs, whose memory others may have
// between blocks of the forward, and before and after the backward.
import EdgeTensor

/// The largest of each among the jobs that train together.
package struct SideSizes: Equatable, Sendable {
    package private(set) var width = 0
    private(set) var headCount = 0
    package private(set) var queryWidth = 0
    private(set) var intermediateSize = 0

    /// - Returns: nil where no layout has a side network.
    package init?(_ layouts: [AdapterLayout]) {
        for side in layouts.compactMap(\.side) {
            width = max(width, side.width)
            headCount = max(headCount, side.headCount)
            queryWidth = max(queryWidth, side.queryWidth)
            intermediateSize = max(intermediateSize, side.intermediateSize)
        }
        if width == 0 { return nil }
    }
}

package struct SideMemory {
    package enum Use: Equatable, Sendable { case forwardOnly, training }

    private let sizes: SideSizes
    private let states: [UnsafeMutablePointer<Float>]
    private let places: [UnsafeMutablePointer<Float>]

    // MARK: sizes

    /// All of them for the backward; without one, what a block reads and what it leaves.
    private static func stateCount(layers: Int, _ use: Use) -> Int { use == .training ? layers + 1 : 2 }

    package static func stateBytes(_ sizes: SideSizes, tokens: Int, layers: Int, _ use: Use) -> ByteCount {
        ByteCount(stateCount(layers: layers, use) * ByteCount.floats(tokens * sizes.width).bytes)
    }

    /// Elements of a token in each place of the block at work.
    private static func widths(_ sizes: SideSizes, _ use: Use) -> [Int] {
        let (width, heads, intermediate) = (sizes.width, sizes.queryWidth, sizes.intermediateSize)
        // In the order of `Work`, and then of `Gradients` and `dState`.
        let forward = [width, width, width, 1, heads, heads, heads, heads, sizes.headCount, width, width, 1, intermediate, intermediate, intermediate]
        return use == .forwardOnly ? forward : forward + [intermediate, width, heads, heads, heads, heads, heads, heads, 1, width]
    }

    /// Of the block at work.
    package static func workBytes(_ sizes: SideSizes, tokens: Int, _ use: Use) -> ByteCount {
        widths(sizes, use).reduce(.zero) { $0 + .floats(tokens * $1) }
    }

    // MARK: memory

    package static func states(_ sizes: SideSizes, tokens: Int, layers: Int, _ use: Use, arena: Arena) -> [UnsafeMutablePointer<Float>] {
        (0..<stateCount(layers: layers, use)).map { _ in arena.floats(tokens * sizes.width) }
    }

    package static func work(_ sizes: SideSizes, tokens: Int, _ use: Use, arena: Arena) -> [UnsafeMutablePointer<Float>] {
        widths(sizes, use).map { arena.floats(tokens * $0) }
    }

    /// - Parameters: as `states` and `work` have made them.
    package init(_ sizes: SideSizes, states: [UnsafeMutablePointer<Float>], work: [UnsafeMutablePointer<Float>]) {
        self.sizes = sizes
        self.states = states
        places = work
    }

    // MARK: views

    /// - Parameter rows: of the batch.
    func state(_ index: Int, _ rows: Range<Int>, _ shape: SideShape) -> Tensor {
        Tensor(states[index % states.count] + rows.lowerBound * sizes.width, rows: rows.count, columns: shape.width)
    }

    /// What the forward of a block leaves for its backward.
    struct Work {
        /// The layer's output times D, and the block's input.
        let read: Tensor, x: Tensor
        let n1: Tensor
        let attentionInverse: UnsafeMutablePointer<Float>
        let q: Tensor, k: Tensor, v: Tensor, attended: Tensor, logSumExp: Tensor
        let middle: Tensor, n2: Tensor
        let mlpInverse: UnsafeMutablePointer<Float>
        let gate: Tensor, up: Tensor, activated: Tensor
    }

    func work(_ tokens: Int, _ shape: SideShape) -> Work {
        func place(_ index: Int, _ columns: Int) -> Tensor { Tensor(places[index], rows: tokens, columns: columns) }
        let (width, heads, intermediate) = (shape.width, shape.queryWidth, shape.intermediateSize)
        return Work(
            read: place(0, width), x: place(1, width), n1: place(2, width), attentionInverse: places[3], q: place(4, heads), k: place(5, heads),
            v: place(6, heads), attended: place(7, heads), logSumExp: place(8, shape.headCount), middle: place(9, width), n2: place(10, width),
            mlpInverse: places[11], gate: place(12, intermediate), up: place(13, intermediate), activated: place(14, intermediate))
    }

    struct Gradients {
        let dActivated: Tensor, dNormed: Tensor
        let dAttended: Tensor, dQ: Tensor, headDK: Tensor, headDV: Tensor, dK: Tensor, dV: Tensor
        /// Of each token.
        let rowSums: UnsafeMutablePointer<Float>
    }

    func gradients(_ tokens: Int, _ shape: SideShape) -> Gradients {
        precondition(places.count > Self.firstGradient, "a side network without room for gradients")
        func place(_ index: Int, _ columns: Int) -> Tensor { Tensor(places[Self.firstGradient + index], rows: tokens, columns: columns) }
        let heads = shape.queryWidth
        return Gradients(
            dActivated: place(0, shape.intermediateSize), dNormed: place(1, shape.width), dAttended: place(2, heads), dQ: place(3, heads),
            headDK: place(4, heads), headDV: place(5, heads), dK: place(6, heads), dV: place(7, heads),
            rowSums: places[Self.firstGradient + 8])
    }

    private static let firstGradient = 15

    /// The gradient of the state between blocks, which goes from block to block: every job's rows have their own place.
    func dState(_ rows: Range<Int>, _ shape: SideShape) -> Tensor {
        Tensor(places[places.count - 1] + rows.lowerBound * sizes.width, rows: rows.count, columns: shape.width)
    }
}
