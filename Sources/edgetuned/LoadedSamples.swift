// Files of a job as tokens: data sets through a model's own tokenizer and chat template.
import EdgeFormats
import EdgeModel
import EdgeTrain

/// The data sets of an order, tokenised.
struct LoadedSamples {
    /// Where a sample stands.
    struct Origin {
        /// Index among the order's data sets.
        let dataset: Int32
        /// From 1.
        let line: Int32
    }

    var tokenized: [TokenizedSample] = []
    /// What int8 products are smoothed by.
    let smoothing: [TokenizedSample]
    /// Of every sample in `tokenized`.
    var origins: [Origin] = []
    /// Counted over all data sets of the order, from 1.
    var tooLongLines: [Int] = []

    /// - Parameter tasks: of the job, one of which each line must have; none: what lines say of tasks is not looked at.
    /// - Throws: `DatasetError`, `TrainingTextError`, and what is wrong with the model's tokenizer or template.
    init(_ paths: [String], model: BaseModel, sequenceLength: Int, lossScope: LossScope, tasks: [String] = []) throws {
        let text = try ModelText(model)
        smoothing = try SmoothingText.pieces(tokenizer: text.tokenizer, chatTemplate: text.chatTemplate)
        var linesBefore = 0
        for (dataset, path) in paths.enumerated() {
            var reader = try DatasetReader.open(path: path)
            while let sample = try reader.next() {
                let task = try Self.number(of: reader.task, among: tasks, line: reader.lineNumber)
                var tokens = try TrainingText(
                    sample, chatTemplate: text.chatTemplate, tokenizer: text.tokenizer, lossScope: lossScope
                ).tokenized(by: text.tokenizer)
                tokens.task = task
                // One token predicts nothing.
                if tokens.tokens.count > sequenceLength {
                    tooLongLines.append(linesBefore + reader.lineNumber)
                } else if tokens.tokens.count > 1 {
                    tokenized.append(tokens)
                    origins.append(Origin(dataset: Int32(dataset), line: Int32(clamping: reader.lineNumber)))
                }
            }
            linesBefore += reader.lineNumber
        }
        let used = Set(tokenized.compactMap(\.task))
        if let unused = tasks.indices.first(where: { !used.contains($0) }) {
            throw DatasetError(line: nil, reason: .unusedTask(tasks[unused]))
        }
    }

    private static func number(of task: String?, among tasks: [String], line: Int) throws(DatasetError) -> Int? {
        guard !tasks.isEmpty else { return nil }
        guard let task else { throw DatasetError(line: line, reason: .noTask(known: tasks)) }
        guard let number = tasks.firstIndex(of: task) else {
            throw DatasetError(line: line, reason: .unknownTask(task, known: tasks))
        }
        return number
    }
}

/// A model's tokenizer and, if it has one, its chat template.
struct ModelText {
    let tokenizer: Tokenizer
    let chatTemplate: ChatTemplate?

    init(_ model: BaseModel) throws {
        tokenizer = try Tokenizer(try TokenizerSpec(gguf: model.file))
        chatTemplate =
            model.file.metadata["tokenizer.chat_template"] == nil ? nil : try ChatTemplate.compile(gguf: model.file)
        guard tokenizer.vocabularySize <= model.spec.vocabularySize else {
            throw ModelError.noTokenizer(
                "\(tokenizer.vocabularySize) tokens, and embeddings for \(model.spec.vocabularySize)")
        }
    }
}
