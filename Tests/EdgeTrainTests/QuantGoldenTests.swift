// Blocks and their values as the `gguf` package has them (Tests/Goldens/README.md), for every kernel set.
import CEdgeKernels
import EdgeFormats
import EdgeTensor
import EdgeTestSupport
import Glibc
import Testing

/// MXFP4 has denormal scales, and a worker pool of an earlier test may have had denormals flushed on this thread.
private func keepingDenormals(_ body: () -> Void) {
    var kept = fenv_t()
    fegetenv(&kept)
    fesetenv(UnsafePointer<fenv_t>(bitPattern: -1))  // FE_DFL_ENV
    body()
    fesetenv(&kept)
}

struct QuantGoldenTests {
    @Test("every kernel set decodes gguf's blocks to gguf's bits")
    func decode() throws {
        let golden = try Golden("quant-goldens.safetensors")
        for format in QuantFormat.all where !format.hasAbsmaxBeside {
            let blocks = try #require(golden.file.tensor(named: "\(format.name).blocks"))
            let expected = try golden.floats("\(format.name).values")
            for set in KernelSet.supported {
                let values = UnsafeMutablePointer<Float>.allocate(capacity: expected.count)
                defer { values.deallocate() }
                keepingDenormals {
                    blocks.withBytes { set.decoder(of: format)($0.baseAddress!, 0, values, expected.count) }
                }
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
            guard let encode = format.encoder, !format.hasAbsmaxBeside, format != .f32 else { continue }
            let expected = try #require(golden.file.tensor(named: "encode.\(format.name)"))
            var found = [UInt8](repeating: 0, count: format.byteCount(of: source.count))
            source.withUnsafeBufferPointer { values in
                found.withUnsafeMutableBytes {
                    encode(values.baseAddress!, $0.baseAddress!, source.count)
                }
            }
            let different = expected.withBytes { bytes in zip(bytes, found).reduce(0) { $0 + ($1.0 == $1.1 ? 0 : 1) } }
            #expect(different == 0, "\(format.name): \(different) of \(found.count) bytes differ")
        }
    }

    @Test("every kernel set decodes NF4 and FP4 to bitsandbytes' bits, with their absmax in 8 bits and plain")
    func scaled() throws {
        let cases = QuantFormat.all.filter(\.hasAbsmaxBeside).flatMap { [($0, false), ($0, true)] }
        for (format, isPlain) in cases {
            let isOfNF4 = format == .nf4 && !isPlain
            let golden = try Golden(isOfNF4 ? "nf4-goldens.safetensors" : "four-bit-goldens.safetensors")
            let part = isOfNF4 ? "" : "\(format.name).\(isPlain ? "plain" : "nested")."
            func bytes(_ name: String) throws -> [UInt8] {
                try #require(golden.file.tensor(named: part + name)).withBytes { Array($0) }
            }
            let codes = try bytes("codes")
            let absmax = try golden.floats(part + (isPlain ? "absmax" : "nested_absmax"))
            let absmaxCodes = isPlain ? [] : try bytes("absmax_codes")
            let offset = isPlain ? 0 : try golden.floats(part + "nested_offset")[0]
            let shape = try #require(golden.file.tensor(named: part + "values")).shape
            let expected = try golden.floats(part + "values")
            #expect(absmax.count == (isPlain ? expected.count / 64 : (expected.count / 64 + 255) / 256))
            for set in KernelSet.supported {
                let arena = try Arena(capacity: ByteCount(4 << 20))
                let pool = WorkerPool(kernels: set, threadCount: 1, scratchFloats: 0, arena: arena)
                let values = arena.tensor(shape[0], shape[1])
                codes.withUnsafeBufferPointer { codes in
                    absmax.withUnsafeBufferPointer { absmax in
                        absmaxCodes.withUnsafeBufferPointer { absmaxCodes in
                            let matrix = QuantizedMatrix(
                                codes.baseAddress!, format: format,
                                absmax: isPlain
                                    ? .plain(absmax.baseAddress!)
                                    : .nested(codes: absmaxCodes.baseAddress!, absmax: absmax.baseAddress!, offset: offset),
                                outFeatures: shape[0], inFeatures: shape[1])
                            decodeRows(matrix, (0..<Int32(shape[0])).map { $0 }, into: values, on: pool)
                        }
                    }
                }
                let different = expected.indices.count { values.base[$0].bitPattern != expected[$0].bitPattern }
                #expect(different == 0, "\(set.name) \(format.name), plain: \(isPlain): \(different) of \(expected.count) values differ")
            }
        }
    }

    @Test("a format's blocks are ggml's, and every format is some type's or has its scales beside its blocks")
    func geometry() throws {
        for format in QuantFormat.all {
            guard !format.hasAbsmaxBeside else {
                #expect(GGMLType(rawValue: format.ggmlType) == nil)
                continue
            }
            let type = try #require(GGMLType(rawValue: format.ggmlType))
            #expect(QuantFormat(ggmlType: type.rawValue) == format)
            #expect(type.name == format.name)
            #expect(type.blockElements == format.blockElements && type.blockBytes == format.blockBytes, "\(format.name)")
            #expect(format.blockElements % format.unitElements == 0)
        }
    }
}
