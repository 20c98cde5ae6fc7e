// Looking at a model or a data set that somebody uploaded: parsed here, in a process of its own, and never by `serve`.
import EdgeFormats
import EdgeModel
import EdgeWire

func modelReport(_ path: String) throws -> ModelReport {
    let model = try BaseModel.open(path: path)
    _ = try ModelText(model)  // a model whose text cannot be read is refused here, not at its first job
    return ModelReport(
        architecture: model.spec.architecture, title: model.file.metadata["general.name"]?.string,
        layers: model.spec.layerCount, hiddenSize: model.spec.hiddenSize, vocabulary: model.spec.vocabularySize,
        contextLength: model.spec.contextLength, parameters: model.parameterCount, quantisation: model.quantisation,
        fileBytes: UInt64(model.file.fileBytes), targetModules: model.spec.linears.map(\.name))
}

func datasetReport(_ path: String) throws -> DatasetReport {
    var reader = try DatasetReader.open(path: path)
    var kinds: [String: Int] = [:]
    while let sample = try reader.next() {
        let kind =
            switch sample {
            case .messages: "messages"
            case .promptCompletion: "prompt_completion"
            case .instruction: "instruction"
            case .text: "text"
            }
        kinds[kind, default: 0] += 1
    }
    let count = kinds.values.reduce(0, +)
    guard count > 0 else { throw Problem(.badDataset, "the data set has no lines") }
    return DatasetReport(samples: count, kinds: kinds)
}
