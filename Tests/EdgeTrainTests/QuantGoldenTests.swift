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
        for format in QuantFormat.all where format != .nf4 {
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

    @Test("every kernel set decodes NF4 with double quantisation to bitsandbytes' bits")
    func nf4() throws {
        let golden = try Golden("nf4-goldens.safetensors")
        func bytes(_ name: String) throws -> [UInt8] { try #require(golden.file.tensor(named: name)).withBytes { Array($0) } }
        let codes = try bytes("codes"), absmaxCodes = try bytes("absmax_codes")
        let nested = try golden.floats("nested_absmax"), offset = try golden.floats("nested_offset")[0]
        let expected = try golden.floats("values")
        let columns = 192
        let rows = expected.count / columns
        let matrix = codes.withUnsafeBufferPointer { codes in
            absmaxCodes.withUnsafeBufferPointer { absmaxCodes in
                nested.withUnsafeBufferPointer { nested in
                    KernelSet.supported.map { set in
                        let matrix = QuantizedMatrix(
                            nf4: codes.baseAddress!, absmaxCodes: absmaxCodes.baseAddress!,
                            nestedAbsmax: nested.baseAddress!, nestedOffset: offset, outFeatures: rows, inFeatures: columns)
                        let arena = try! Arena(capacity: ByteCount(4 << 20))
                        let pool = WorkerPool(kernels: set, threadCount: 1, scratchFloats: 0, arena: arena)
                        let values = arena.tensor(rows, columns)
                        decodeRows(matrix, (0..<Int32(rows)).map { $0 }, into: values, on: pool)
                        return (set.name, (0..<values.count).map { values.base[$0].bitPattern })
                    }
                }
            }
        }
        for (set, bits) in matrix {
            let different = zip(bits, expected).reduce(0) { $0 + ($1.0 == $1.1.bitPattern ? 0 : 1) }
            #expect(different == 0, "\(set): \(different) of \(expected.count) values differ")
        }
    }
}
