// From the float types of checkpoints to those of frozen weights; for models on their way in, not for training.
import CEdgeKernels

package enum CheckpointConversion {
    /// Values that share an absmax in NF4, and absmax values that share a nested one.
    package static let nf4Block = 64, nestedBlock = Int(EDGE_NESTED_BLOCK)

    /// What bitsandbytes stores with a matrix as `quant_map` and as `nested_quant_map`.
    package static var nf4Map: [Float] { Array(UnsafeBufferPointer(start: edge_nf4_quant_map(), count: 16)) }
    package static var absmaxMap: [Float] { Array(UnsafeBufferPointer(start: edge_absmax_quant_map(), count: 256)) }

    package enum Outcome { case done, notFinite }

    /// NF4 as bitsandbytes rounds it.
    ///
    /// - Parameters:
    ///   - count: a multiple of `nf4Block`.
    ///   - codes: `count / 2` bytes.
    ///   - absmax: `count / nf4Block` values, or none of use where one of `values` is not finite.
    package static func quantiseNF4(
        _ values: UnsafePointer<Float>, count: Int, codes: UnsafeMutablePointer<UInt8>, absmax: UnsafeMutablePointer<Float>
    ) -> Outcome {
        edge_quantise_nf4(values, count, codes, absmax) ? .done : .notFinite
    }

    /// bitsandbytes' double quantisation of all absmax values of a matrix.
    ///
    /// - Parameters:
    ///   - codes: `count` bytes.
    ///   - nested: `nestedCount(count)` values: one for each `nestedBlock` of `absmax`, and the offset.
    package static func quantiseAbsmax(
        _ absmax: UnsafePointer<Float>, count: Int, codes: UnsafeMutablePointer<UInt8>, nested: UnsafeMutablePointer<Float>
    ) {
        edge_quantise_absmax(absmax, count, codes, nested)
    }

    package static func nestedCount(_ absmaxCount: Int) -> Int { (absmaxCount + nestedBlock - 1) / nestedBlock + 1 }

    package static func floats(ofHalves halves: UnsafePointer<UInt16>, count: Int, into values: UnsafeMutablePointer<Float>) {
        edge_floats_of_halves(halves, values, count)
    }

    package static func floats(ofBFloats bfloats: UnsafePointer<UInt16>, count: Int, into values: UnsafeMutablePointer<Float>) {
        edge_floats_of_bfloats(bfloats, values, count)
    }

    /// To nearest even.
    package static func bfloats(of values: UnsafePointer<Float>, count: Int, into bfloats: UnsafeMutablePointer<UInt16>) {
        edge_bfloats_of_floats(values, bfloats, count)
    }
}
