// Weights and layer inputs that are not all in memory at once: what is resident, and what goes wrong.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Foundation
import Testing

@Suite(.serialized)
struct StreamingTests {
    @Test("whatever part is in use has the file's bytes, in the memory that the plan has")
    func streamedWeights() throws {
        let model = try BaseModel.open(path: TestModel.path)
        let parts = WeightParts(model)
        #expect(parts.streamBytes.bytes < 4 << 20 && parts.headSlices.count > 10)
        let arena = try Arena(capacity: parts.streamBytes)
        let stream = WeightStream(model, .streamed, arena: arena)
        #expect(arena.used == arena.capacity)
        func isTheFiles(_ matrix: QuantizedMatrix) -> Bool {
            let moved = stream.inMemory(matrix)
            return moved.blocks != matrix.blocks && memcmp(moved.blocks, matrix.blocks, matrix.byteCount) == 0
        }
        let last = model.spec.layerCount - 1
        for layer in 0...last {
            try stream.use(.attention(layer), next: .mlp(layer))
            for module in LinearModule.allCases where !module.isOfMLP { #expect(isTheFiles(model.layers[layer][module])) }
            try stream.use(.mlp(layer), next: layer < last ? .attention(layer + 1) : .headSlice(0))
            for module in LinearModule.allCases where module.isOfMLP { #expect(isTheFiles(model.layers[layer][module])) }
            let moved = stream.inMemory(model.layers[layer])
            let norm = try #require(moved.mlpInput), mapped = try #require(model.layers[layer].mlpInput)
            for i in 0..<model.spec.hiddenSize { #expect(norm.weight[i] == mapped.weight[i]) }
        }
        for (index, rows) in parts.headSlices.enumerated() {
            try stream.use(.headSlice(index), next: index + 1 < parts.headSlices.count ? .headSlice(index + 1) : .attention(last))
            #expect(isTheFiles(model.head.rows(rows)))
        }
        for layer in (0...last).reversed() {
            try stream.use(.attention(layer), next: .mlp(layer))
            try stream.use(.mlp(layer), next: .attention(layer))
            for module in LinearModule.allCases { #expect(isTheFiles(model.layers[layer][module])) }
            // One that was not announced.
            try stream.use(.attention(layer), next: layer % 2 == 0 ? nil : .attention(layer - 1))
            #expect(isTheFiles(model.layers[layer][.query]))
        }
    }

    @Test("a disk without room for layer inputs is told before the first step")
    func noRoomToSpill() throws {
        let model = try BaseModel.open(path: TinyRun.modelPath)
        let arena = try Arena(capacity: ByteCount(1 << 20))
        #expect(throws: FileError.self) {
            try LayerCheckpoints(.file, tokens: 8, lowest: 0, model.spec, directory: "/nowhere", arena: arena)
        }
        // /proc takes no files.
        #expect(throws: FileError.self) {
            try LayerCheckpoints(.file, tokens: 8, lowest: 0, model.spec, directory: "/proc", arena: arena)
        }
    }

    @Test("work in the background keeps its order, and its first error reaches whoever waits")
    func backgroundThread() throws {
        struct Broken: Error {}
        final class Log: @unchecked Sendable { var entries: [Int] = [] }
        let log = Log()
        let thread = BackgroundThread()
        var last = 0
        for i in 0..<100 { last = thread.submit { log.entries.append(i) } }
        try thread.wait(last)
        #expect(log.entries == Array(0..<100))
        let broken = thread.submit { throw Broken() }
        let after = thread.submit { log.entries.append(100) }
        #expect(throws: Broken.self) { try thread.wait(broken) }
        #expect(throws: Broken.self) { try thread.wait(after) }
        #expect(log.entries.count == 101)
    }
}
