// How AdamW's moments are stored between steps, and how many bytes that takes. Each matrix has its moments in one piece, so
// that a group of neighbouring matrices has too:
//
//   f32        moment1 f32… | moment2 f32…             each padded to a cache line
//   bf16       moment1 bf16… | moment2 bf16…           together padded to a cache line
//   eightBit   absmax1 f32 per block | absmax2 | codes1 u8… | codes2 u8…      together padded to a cache line
import CEdgeKernels
import EdgeTensor

/// Arithmetic is f32 in all of them. The raw value is the number in a checkpoint.
package enum OptimizerState: UInt64, CaseIterable, Sendable {
    case f32 = 0
    /// bfloat16, rounded to nearest even.
    case bf16 = 1
    /// Blocks of 256 elements in bitsandbytes' dynamic 8-bit type (arXiv:2110.02861).
    case eightBit = 2

    package var name: String {
        switch self {
        case .f32: "f32"
        case .bf16: "bf16"
        case .eightBit: "8-bit"
        }
    }

    /// A matrix of fewer elements keeps f32 moments in `eightBit`: bitsandbytes' `min_8bit_size`.
    static let fewest8BitElements = 4096

    /// What a matrix of `count` elements is stored as.
    func stored(count: Int) -> Self { self == .eightBit && count < Self.fewest8BitElements ? .f32 : self }

    static func blocks(_ count: Int) -> Int { (count + Int(EDGE_MOMENT_BLOCK) - 1) / Int(EDGE_MOMENT_BLOCK) }

    /// Of both moments of a matrix of `count` elements.
    func bytes(count: Int) -> ByteCount {
        switch stored(count: count) {
        case .f32: .floats(count) + .floats(count)
        case .bf16: .wholeLines(2 * count * 2)
        case .eightBit: .wholeLines(2 * Self.blocks(count) * 4 + 2 * count)
        }
    }
}
