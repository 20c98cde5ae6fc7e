// NF4 with double quantisation against real bitsandbytes (nf4-goldens.safetensors), bit for bit.
import EdgeTensor
import EdgeTestSupport
import Glibc
import Testing

/// What the quantiser makes of a matrix.
struct QuantisedNF4 {
    let codes: [UInt8], absmax: [Float], absmaxCodes: [UInt8], nested: [Float]

    /// Nil where a value is not finite.
    init?(_ values: [Float]) {
        let blocks = values.count / CheckpointConversion.nf4Block
        var absmax = [Float](repeating: 0, count: blocks), codes = [UInt8](repeating: 0, count: values.count / 2)
        guard CheckpointConversion.quantiseNF4(values, count: values.count, codes: &codes, absmax: &absmax) == .done else {
            return nil
        }
        var absmaxCodes = [UInt8](repeating: 0, count: blocks)
        var nested = [Float](repeating: 0, count: CheckpointConversion.nestedCount(blocks))
        CheckpointConversion.quantiseAbsmax(absmax, count: blocks, codes: &absmaxCodes, nested: &nested)
        (self.codes, self.absmax, self.absmaxCodes, self.nested) = (codes, absmax, absmaxCodes, nested)
    }
}

struct NF4QuantiserTests {
    @Test("codes, absmax codes, nested absmax and offset are bitsandbytes'")
    func golden() throws {
        let golden = try Golden("nf4-goldens.safetensors")
        let quantised = try #require(QuantisedNF4(try golden.floats("source")))
        func bytes(_ name: String) throws -> [UInt8] { try #require(golden.file.tensor(named: name)).withBytes { Array($0) } }
        #expect(quantised.codes == (try bytes("codes")))
        #expect(quantised.absmaxCodes == (try bytes("absmax_codes")))
        let expected = try golden.floats("nested_absmax") + golden.floats("nested_offset")
        #expect(quantised.nested.map(\.bitPattern) == expected.map(\.bitPattern))
    }

    @Test("a value on the border of two codes takes the lower one")
    func ties() throws {
        let map = CheckpointConversion.nf4Map
        for code in 0..<15 {
            let border = (map[code] + map[code + 1]) / 2
            var values = [Float](repeating: 0, count: 64)
            (values[0], values[1], values[2]) = (1, border, border.nextUp)
            let codes = try #require(QuantisedNF4(values)).codes
            #expect(codes[0] == 15 << 4 | UInt8(code))
            #expect(codes[1] >> 4 == UInt8(code + 1))
        }
    }

    @Test("zeros, the smallest and the largest values are blocks like others")
    func extremes() throws {
        // Training flushes denormals on the threads that it uses, and an import does not; this thread may be one of those.
        var kept = fenv_t()
        fegetenv(&kept)
        fesetenv(UnsafePointer(bitPattern: UInt.max))  // FE_DFL_ENV
        defer { fesetenv(&kept) }
        for magnitude in [0, .leastNonzeroMagnitude, 0x1p-130, .leastNormalMagnitude, .greatestFiniteMagnitude] as [Float] {
            var values = [Float](repeating: 0, count: 64)
            values[5] = -magnitude
            let quantised = try #require(QuantisedNF4(values))
            #expect(quantised.absmax == [magnitude])
            // One block: the mean is its own absmax, and the difference is nothing.
            #expect(quantised.nested == [0, magnitude] && quantised.absmaxCodes == [0])
            #expect(quantised.codes[0] == 0x77)
            // bitsandbytes divides by 1e-38 at least.
            #expect(quantised.codes[2] & 15 == (magnitude < 0x1p-130 ? 7 : magnitude < .leastNormalMagnitude ? 6 : 0))
        }
    }

    @Test("what is not finite is refused", arguments: [Float.infinity, -.infinity, .nan])
    func notFinite(_ value: Float) {
        var values = [Float](repeating: 1, count: 128)
        values[100] = value
        #expect(QuantisedNF4(values) == nil)
    }
}
