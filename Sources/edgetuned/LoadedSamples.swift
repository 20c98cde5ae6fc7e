// Files of a job as tokens: data sets through a model's own tokenizer and chat template.
import EdgeFormats
import EdgeModel

/// The data sets of an order, tokenised.
struct LoadedSamples {
    var tokenized: [TokenizedSample] = []
    /// Counted over all data sets of the order, from 1.
    var tooLongLines: [Int] = []

    init(_ paths: [String], model: BaseModel, sequenceLength: Int, lossScope: LossScope) throws {
        let text = try ModelText(model)
        var number = 0
        for path in paths {
            var reader = try DatasetReader.open(path: path)
            while let sample = try reader.next() {
                number += 1
                let tokens = try TrainingText(
                    sample, chatTemplate: text.chatTemplate, tokenizer: text.tokenizer, lossScope: lossScope
                ).tokenized(by: text.tokenizer)
                // One token predicts nothing.
                if tokens.tokens.count > sequenceLength {
                    tooLongLines.append(number)
                } else if tokens.tokens.count > 1 {
                    tokenized.append(tokens)
                }
            }
        }
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
