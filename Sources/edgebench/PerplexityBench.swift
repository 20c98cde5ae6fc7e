// Perplexity of a text under a base model, in windows of a fixed length, and the tokens it was measured on: what another program
// needs to measure the same.
import ArgumentParser
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTrain
import Foundation

struct PerplexityBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "perplexity", abstract: "Perplexity of a text under a GGUF model, without an adapter.")

    @Option(help: "A GGUF model.") var model: String
    @Option(help: "A text file in UTF-8.") var text: String
    @Option(help: "Tokens of the text, from its beginning.") var tokens = 20_000
    @Option(help: "Tokens of a window, a beginning-of-sequence token included where the model wants one.") var window = 512
    @Option(help: "Worker threads.") var threads = 2
    @Option(help: "Write the windows here, a JSON list of token ids a line.") var windows: String?

    private struct Line: Encodable {
        let tokens: Int, lossTokens: Int
        let negativeLogLikelihood: Double, perplexity: Double, secondsPerToken: Double
    }

    func run() throws {
        let base = try BaseModel.open(path: model)
        let tokenizer = try Tokenizer(try TokenizerSpec(gguf: base.file))
        let lead = tokenizer.addBOS ? [tokenizer.bosTokenID].compactMap { $0 } : []
        guard window > lead.count + 1 else { throw ValidationError("--window: at least \(lead.count + 2)") }
        let ids = tokenizer.encode(try String(contentsOfFile: text, encoding: .utf8), specialTokens: .asText).prefix(tokens)
        guard ids.count == tokens else { throw ValidationError("the text has \(ids.count) tokens, not \(tokens)") }
        let parts = stride(from: 0, to: ids.count, by: window - lead.count).map {
            lead + ids[$0..<min($0 + window - lead.count, ids.count)]
        }
        if let windows {
            let lines = parts.map { "[" + $0.map(String.init).joined(separator: ",") + "]\n" }.joined()
            try lines.write(toFile: windows, atomically: true, encoding: .utf8)
        }
        // Held-out loss is computed without an adapter while every B is zero.
        let lora = AdapterSpec(rank: 1, alpha: 1, dropout: 0, targets: .allLinear, layers: nil)
        let memory = try MemoryModel(base, adapter: lora)
        let shape = StepShape(
            tokens: window, longestSample: window, lossChunk: min(128, window), keptLayers: 0, threads: threads, compute: .f32)
        let step = try TrainStep(
            model: base, memory: memory, shape: shape, kernels: .strongest, arena: try Arena(capacity: memory.arena(shape)),
            spillDirectory: "/tmp")
        step.adapters[0].initialize(seed: 1)
        // Every full window is a micro-batch of its own.
        let samples = parts.filter { $0.count > 1 }.map { part in
            TokenizedSample(tokens: part, carriesLoss: part.indices.map { $0 > 0 })
        }
        let start = ContinuousClock.now
        let (mean, lossTokens) = try step.heldOutLoss(samples, tokenBudget: window)
        let seconds = (ContinuousClock.now - start) / .seconds(1)
        try Measurement.printLine(
            Line(
                tokens: ids.count, lossTokens: lossTokens, negativeLogLikelihood: mean,
                perplexity: exp(mean), secondsPerToken: seconds / Double(ids.count)))
    }
}
