// Loss and exact answers of a model, with or without an adapter, on lines of a data set.
import ArgumentParser
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTrain
import Foundation

struct AccuracyBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "accuracy", abstract: "How many answers of a data set a model would give word for word, and its loss on them.",
        discussion: "An answer counts when each of its tokens is the most likely one after those before it: what greedy generation gives.")

    @Option(help: "A GGUF model.") var model: String
    @Option(help: "A directory with an adapter; none: the model alone.") var adapter: String?
    @Option(help: "A data set (JSONL).") var data: String
    @Option(help: "Tokens that run at once; at least a line.") var tokens = 1024
    @Option(help: "Worker threads.") var threads = 2

    private struct Line: Encodable {
        let answers: Int, exact: Int
        let accuracy: Double, loss: Double
        let lossTokens: Int
    }

    func run() throws {
        let base = try BaseModel.open(path: model)
        let loaded = try adapter.map { try LoadedAdapter(directory: $0, of: base.spec) }
        let spec = loaded?.spec ?? AdapterSpec(rank: 1, alpha: 1, dropout: 0, targets: .allLinear, layers: nil)
        let samples = try samples(of: base).map { $0.behindVirtualTokens(spec.promptTokens) }
        let memory = MemoryModel(
            spec: base.spec, adapter: spec, modules: try loaded?.modules(of: base.spec) ?? spec.modules(of: base.spec), weights: WeightParts(base))
        let longest = samples.map(\.tokens.count).max() ?? 1
        let tokens = max(longest, tokens)
        let shape = StepShape(
            tokens: tokens, longestSample: longest, lossChunk: min(128, tokens), keptLayers: 0, threads: threads, compute: .f32)
        let step = try TrainStep(
            model: base, memory: memory, shape: shape, kernels: .strongest, arena: try Arena(capacity: memory.arena(shape)),
            spillDirectory: "/tmp")
        if let loaded { try loaded.load(into: step.adapters[0], base.spec) } else { step.adapters[0].initialize(seed: 1) }
        var (exact, loss, lossTokens) = (0, 0.0, 0)
        for samples in packed(samples, tokenBudget: tokens, tokens: \.tokens.count) {
            let batch = MicroBatch(samples)
            var isLikely: [Bool] = []
            try step.logits(of: batch, at: .carryingLoss) { first, logits in
                for row in 0..<logits.rows {
                    let values = logits.row(row), target = Int(batch.targets[first + row])
                    let likely = mostLikely(logits, row), most = Double(values[likely])
                    isLikely.append(likely == target)
                    let sum = (0..<logits.columns).reduce(0) { $0 + exp(Double(values[$1]) - most) }
                    loss += log(sum) + most - Double(values[target])
                }
            }
            lossTokens += isLikely.count
            for sample in samples {
                let answer = isLikely.prefix(Dataset.lossTokens([sample]))
                if answer.allSatisfy({ $0 }) { exact += 1 }
                isLikely.removeFirst(answer.count)
            }
        }
        try Measurement.printLine(
            Line(
                answers: samples.count, exact: exact, accuracy: Double(exact) / Double(max(1, samples.count)),
                loss: loss / Double(max(1, lossTokens)), lossTokens: lossTokens))
    }

    private func samples(of base: BaseModel) throws -> [TokenizedSample] {
        let tokenizer = try Tokenizer(try TokenizerSpec(gguf: base.file))
        let template = try ChatTemplate.compile(gguf: base.file)
        var reader = try DatasetReader.open(path: data)
        var samples: [TokenizedSample] = []
        while let line = try reader.next() {
            samples.append(
                try TrainingText(line, chatTemplate: template, tokenizer: tokenizer, lossScope: .completions).tokenized(by: tokenizer))
        }
        return samples
    }

    private func mostLikely(_ logits: Tensor, _ row: Int) -> Int {
        (1..<logits.columns).reduce(0) { logits.row(row)[$1] > logits.row(row)[$0] ? $1 : $0 }
    }
}
