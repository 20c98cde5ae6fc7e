// The kernels of the instruction set in use. Chosen once, by name or as the strongest that this processor runs.
import CEdgeKernels

package enum KernelSetError: Error, Equatable, CustomStringConvertible {
    case unknown(String, known: [String])
    case unsupported(String, supported: [String])

    package var description: String {
        switch self {
        case .unknown(let name, let known): "no kernel set \"\(name)\"; known: \(known.joined(separator: ", "))"
        case .unsupported(let name, let supported):
            "this processor cannot run the kernel set \"\(name)\"; it can run: \(supported.joined(separator: ", "))"
        }
    }
}

package struct KernelSet: Sendable {
    package let index: Int
    // Function pointers and constants: immutable after `fill`, hence safe to share.
    nonisolated(unsafe) package let raw: edge_kernel_set

    private init(index: Int) {
        self.index = index
        var set = edge_kernel_set()
        edge_kernel_set_fill(index, &set)
        raw = set
    }

    package var name: String { String(cString: raw.name) }

    package static var known: [String] {
        (0..<edge_kernel_set_count()).map { String(cString: edge_kernel_set_name($0)) }
    }

    /// Sets that this processor can run, weakest first.
    package static var supported: [KernelSet] {
        (0..<edge_kernel_set_count()).filter { edge_kernel_set_supported($0) }.map { KernelSet(index: $0) }
    }

    package static var strongest: KernelSet { supported.last! }  // `portable` runs everywhere

    /// The set called `name`, or the strongest when `name` is nil.
    package static func choose(_ name: String?) throws -> KernelSet {
        guard let name else { return strongest }
        guard known.contains(name) else { throw KernelSetError.unknown(name, known: known) }
        guard let set = supported.first(where: { $0.name == name }) else {
            throw KernelSetError.unsupported(name, supported: supported.map(\.name))
        }
        return set
    }
}

extension KernelSet {
    /// FLOP of `rounds` rounds of register-only multiply-adds: the yardstick for shares of peak.
    package func peakLoop(rounds: Int, sink: UnsafeMutablePointer<Float>) -> Double {
        edge_peak_loop(index, rounds, sink)
    }
}
