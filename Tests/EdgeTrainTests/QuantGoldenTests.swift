// Blocks and their values as the `gguf` package has them (Tests/Goldens/README.md), for every kernel set.
import CEdgeKernels
import EdgeFormats
import EdgeTensor
import EdgeTestSupport
import Testing

struct QuantGoldenTests {
    @Test("every kernel set decodes gguf's blocks to gguf's bits")
    func decode() throws {
        let golden = try Golden("quant-goldens.safetensors")
        for format in QuantFormat.all {
            let blocks = try #require(golden.file.tensor(named: "\(format.name).blocks"))
            let expected = try golden.floats("\(format.name).values")
            for set in KernelSet.supported {
                let values = UnsafeMutablePointer<Float>.allocate(capacity: expected.count)
                defer { values.deallocate() }
                blocks.withBytes { set.decoder(of: format)($0.baseAddress!, values, expected.count) }
                var different = 0
                for i in expected.indices where values[i].bitPattern != expected[i].bitPattern { different += 1 }
                #expect(different == 0, "\(set.name) \(format.name): \(different) of \(expected.count) values differ")
            }
        }
    }

    @Test("the encoders round as gguf's do")
    func encode() throws {
        let golden = try Golden("quant-goldens.safetensors")
        let source = try golden.floats("encode.source")
        for format in QuantFormat.all {
            guard let expected = golden.file.tensor(named: "encode.\(format.name)") else { continue }
            var found = [UInt8](repeating: 0, count: format.byteCount(of: source.count))
            source.withUnsafeBufferPointer { values in
                found.withUnsafeMutableBytes {
                    edge_quant_format(format.raw).pointee.encode(values.baseAddress!, $0.baseAddress!, source.count)
                }
            }
            let different = expected.withBytes { bytes in zip(bytes, found).reduce(0) { $0 + ($1.0 == $1.1 ? 0 : 1) } }
            #expect(different == 0, "\(format.name): \(different) of \(found.count) bytes differ")
        }
    }
}
