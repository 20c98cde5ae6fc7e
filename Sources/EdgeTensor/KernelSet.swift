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
    // Function pointers and constants: immutable after `fill`, and never freed, hence safe to share.
    nonisolated(unsafe) let pointer: UnsafePointer<edge_kernel_set>
    package var raw: edge_kernel_set { pointer.pointee }

    private init(index: Int) {
        self.index = index
        let set = UnsafeMutablePointer<edge_kernel_set>.allocate(capacity: 1)
        edge_kernel_set_fill(index, set)
        pointer = UnsafePointer(set)
    }

    private static let all = (0..<edge_kernel_set_count()).map { KernelSet(index: $0) }

    package var name: String { String(cString: raw.name) }

    package static var known: [String] {
        (0..<edge_kernel_set_count()).map { String(cString: edge_kernel_set_name($0)) }
    }

    /// Sets that this processor can run, weakest first.
    package static var supported: [KernelSet] {
        all.filter { edge_kernel_set_supported($0.index) }
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
    /// The types that the set has instructions for.
    package var computeTypes: [ComputeType] {
        ComputeType.allCases.filter { type in
            withUnsafeBytes(of: pointer.pointee.fast) { $0[Int(type.raw.rawValue)] != 0 }
        }
    }

    /// What a job computes in when it does not say.
    package var preferredComputeType: ComputeType { ComputeType(pointer.pointee.preferred) }

    /// Operations of `rounds` rounds of register-only multiply-adds, a multiplication and an addition counted as two:
    /// the yardstick for shares of peak. 0 when the set has no instructions for `type`.
    package func peakLoop(_ type: ComputeType, rounds: Int, sink: UnsafeMutablePointer<Float>) -> Double {
        edge_peak_loop(index, type.raw, rounds, sink)
    }

    // C's arrays of function pointers are tuples in Swift, hence the bytes.
    func roundRows(_ type: ComputeType) -> RoundRows {
        withUnsafeBytes(of: pointer.pointee.round_rows) { $0.bindMemory(to: RoundRows.self)[Int(type.raw.rawValue)] }
    }

    /// The set's decoder of one format.
    package func decoder(of format: QuantFormat) -> edge_decode_fn {
        withUnsafeBytes(of: pointer.pointee.decode) { $0.bindMemory(to: edge_decode_fn.self)[Int(format.raw.rawValue)] }
    }

    typealias RoundRows = @convention(c) (
        UnsafePointer<Float>?, Int, Int, Int, UnsafeMutableRawPointer?, Int, UnsafeMutablePointer<Float>?,
        UnsafeMutablePointer<Int32>?, Int, UnsafePointer<Float>?
    ) -> Void

    package func scale(_ x: UnsafeMutablePointer<Float>, count: Int, by factor: Float) {
        for i in 0..<count { x[i] *= factor }
    }
}
