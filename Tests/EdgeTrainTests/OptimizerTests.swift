// AdamW's steps against torch's and bitsandbytes' (Tests/Goldens/make_optimizer_goldens.py has the formulas).
import EdgeModel
import EdgeTensor
import EdgeTestSupport
import EdgeTrain
import Testing

/// The golden's three matrices and one that stays zero, so that there are two slots; stepped a slot at a time.
private struct Stepped {
    static let names = ["small", "exact", "odd"]
    static let steps = 20
    let matrices: [TrainedMatrix]
    let parameters: UnsafeMutablePointer<Float>
    let optimizer: AdamW
    private let gradients: UnsafeMutablePointer<Float>
    private let noise: [Float]
    private let arena: Arena
    private let spec: TrainingSpec
    private let pool: WorkerPool

    init(_ golden: Golden, _ kind: OptimizerState, _ kernels: KernelSet) throws {
        let poolArena = try Arena(capacity: ByteCount(8 << 20))
        pool = WorkerPool(kernels: kernels, threadCount: 2, scratchFloats: 16, arena: poolArena)
        noise = try golden.floats("noise")
        let initial = try Self.names.map { try golden.floats("initial.\($0)") } + [[Float](repeating: 0, count: 5)]
        var count = 0
        matrices = initial.map { values in
            defer { count += ByteCount.floats(values.count).bytes / 4 }
            return TrainedMatrix(elements: count..<count + values.count)
        }
        arena = try Arena(capacity: .floats(count) + .floats(count) + AdamW.bytes(matrices, kind))
        parameters = arena.floats(count)
        gradients = arena.floats(count)
        optimizer = AdamW(matrices, kind, arena: arena)
        precondition(arena.used == arena.capacity)
        for (matrix, values) in zip(matrices, initial) {
            for (index, value) in zip(matrix.elements, values) { parameters[index] = value }
        }
        var spec = Trainee.spec(learningRate: 0)
        spec.weightDecay = 0.05
        self.spec = spec
    }

    func learningRate(_ step: Int) -> Double { 2e-3 * Double(Self.steps - step) / Double(Self.steps) }

    func step(_ step: Int) {
        for (k, matrix) in matrices.prefix(3).enumerated() {
            for i in 0..<matrix.elements.count {
                gradients[matrix.elements.lowerBound + i] = noise[(i + 257 * step + 1000 * k) % noise.count] / Float(1 << (step % 4))
            }
        }
        // In two parts, as a run does that applies a layer's gradients at once.
        for part in [matrices[..<2], matrices[2...]] {
            let elements = part.first!.elements.lowerBound..<part.last!.elements.upperBound
            optimizer.update(
                elements: elements, parameters: parameters, gradients: gradients + elements.lowerBound,
                gradientScale: 1, step: step, learningRate: learningRate(step), spec, on: pool)
        }
    }
}

struct OptimizerTests {
    static let goldenNames: [OptimizerState: String] = [.f32: "f32", .bf16: "bf16", .eightBit: "8bit"]

    /// The two arithmetics differ in what is contracted to a multiply-add, which moves an update by a few of its own units in
    /// the last place; that turns the rounding of the sum with the larger parameter at most once a step.
    @Test("parameters after each step are torch's and bitsandbytes' to a unit in the last place a step",
        arguments: OptimizerState.allCases)
    func parametersAreTheReferences(_ kind: OptimizerState) throws {
        let golden = try Golden("optimizer-goldens.safetensors")
        for kernels in KernelSet.supported {
            let stepped = try Stepped(golden, kind, kernels)
            var compared = 0
            for step in 1...Stepped.steps {
                stepped.step(step - 1)
                for (name, matrix) in zip(Stepped.names, stepped.matrices) {
                    let tensor = golden.file.tensor(named: "\(Self.goldenNames[kind]!).\(step).\(name)")
                    guard let expected = tensor?.floats() else { continue }
                    compared += 1
                    let tolerance = Float(step) * expected.map(abs).max()!.ulp
                    let worst = zip(matrix.elements, expected).map { abs(stepped.parameters[$0] - $1) }.max()!
                    #expect(worst <= tolerance, "\(kernels.name), \(name), step \(step)")
                }
            }
            #expect(compared == (kind == .eightBit ? 30 : 20))
        }
    }

    @Test("8-bit codes are bitsandbytes', and so are their scales to 20 units in the last place")
    func codesAreTheReferences() throws {
        let golden = try Golden("optimizer-goldens.safetensors")
        let stepped = try Stepped(golden, .eightBit, .strongest)
        var compared = 0
        for step in 1...Stepped.steps {
            stepped.step(step - 1)
            for (index, name) in Stepped.names.enumerated() {
                func expected(_ part: String) -> [UInt8]? {
                    golden.file.tensor(named: "8bit.\(step).\(name).\(part)").map { $0.withBytes { Array($0) } }
                }
                guard let codes1 = expected("state1"), let codes2 = expected("state2") else { continue }
                compared += 1
                let count = codes1.count, blocks = (count + 255) / 256
                let offset = AdamW.bytes(Array(stepped.matrices.prefix(index)), .eightBit).bytes
                let moments = UnsafeRawBufferPointer(rebasing: stepped.optimizer.state.dropFirst(offset))
                let codes = moments.dropFirst(2 * blocks * 4)
                #expect(codes.prefix(count).elementsEqual(codes1), "moment1 of \(name), step \(step)")
                #expect(codes.dropFirst(count).prefix(count).elementsEqual(codes2), "moment2 of \(name), step \(step)")
                let scales = try golden.floats("8bit.\(step).\(name).absmax1") + golden.floats("8bit.\(step).\(name).absmax2")
                for (block, scale) in scales.enumerated() {
                    let found = moments.loadUnaligned(fromByteOffset: 4 * block, as: Float.self)
                    // Two roundings a step, and a scale decays with the moment it came from.
                    #expect(abs(found - scale) <= Float(Stepped.steps) * scale.ulp, "block \(block) of \(name), step \(step)")
                }
            }
        }
        #expect(compared == 10)
    }

    @Test("8-bit moments take a quarter of the bytes, bfloat16 half, and small matrices stay f32")
    func bytes() {
        func matrix(_ count: Int) -> [TrainedMatrix] { [TrainedMatrix(elements: 0..<count)] }
        let large = matrix(1 << 20)
        #expect(AdamW.bytes(large, .f32).bytes == 8 << 20)
        #expect(AdamW.bytes(large, .bf16).bytes == 4 << 20)
        #expect(AdamW.bytes(large, .eightBit).bytes == 2 << 20 + 2 * 4 * (1 << 12))
        #expect(AdamW.bytes(matrix(4095), .eightBit) == AdamW.bytes(matrix(4095), .f32))
        #expect(AdamW.bytes(matrix(4096), .eightBit).bytes == 2 * 4096 + 2 * 16 * 4)
    }
}
