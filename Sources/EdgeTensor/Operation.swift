// What a step spends its time on, for whoever measures: the kinds of operations, and what one call of each costs.

package enum Operation: String, CaseIterable, Sendable {
    case frozenProduct, headProduct, adapterProduct, adapterGradient, attention, attentionBackward, rounding
    case norm, rotary, activation, loss, elementwise, optimizer
}

/// Work of one operation.
package struct OperationCost: Sendable {
    /// A multiplication and an addition count as two.
    package var flop: Double
    /// Read and written, if every operand came from memory once.
    package var bytes: Double

    package init(flop: Double, bytes: Double) {
        self.flop = flop
        self.bytes = bytes
    }

    /// Of an element-wise pass over `count` values that reads and writes `streams` tensors.
    static func pass(_ count: Int, streams: Int, flopEach: Int) -> OperationCost {
        OperationCost(flop: Double(count * flopEach), bytes: Double(4 * count * streams))
    }
}

extension [OperationCost] {
    var sum: OperationCost {
        OperationCost(flop: reduce(0) { $0 + $1.flop }, bytes: reduce(0) { $0 + $1.bytes })
    }
}

/// Called around every operation of a pool; must call `run` once. The data plane reads no clock: the observer does.
package typealias OperationObserver = (_ operation: Operation, _ cost: OperationCost, _ run: () -> Void) -> Void
