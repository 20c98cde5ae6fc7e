// The tables of a model's position embeddings, one for each kind of layer.
import EdgeTensor

extension RotaryEmbedding {
    package static func bytes(positions: Int, _ spec: DecoderSpec) -> ByteCount {
        spec.rotaries.reduce(.zero) { $0 + bytes(positions: positions, $1) }
    }

    /// - Parameter positions: tokens of the longest sample.
    package static func tables(positions: Int, _ spec: DecoderSpec, arena: Arena) -> [RotaryEmbedding] {
        spec.rotaries.map {
            RotaryEmbedding(positions: positions, headDim: spec.headDim, $0, pairing: spec.rotaryPairing, arena: arena)
        }
    }
}

extension [RotaryEmbedding] {
    /// The row of the tables for a token of a sample of `length` tokens. Only models with one kind have rows by length.
    package func row(position: Int, length: Int) -> Int32 {
        count == 1 ? self[0].tableRow(position: position, length: length) : Int32(position)
    }
}
