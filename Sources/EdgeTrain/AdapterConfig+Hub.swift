// adapter_config.json as the adapters library reads and writes it (loading.py, `save_weights_config`): of the methods that PEFT has not.
import EdgeFormats
import EdgeModel

extension AdapterConfig {
    /// What such a file says beside the method.
    struct HubFile: Equatable {
        /// The adapter's, which is a part of its tensors' names.
        var name: String
        let hiddenSize: Int
        let modelType: String

        static func of(_ model: DecoderSpec) -> HubFile {
            HubFile(name: HubAdapter.adapterName, hiddenSize: model.hiddenSize, modelType: model.architecture)
        }
    }

    func hubJSON(_ hub: HubAdapter, _ file: HubFile) -> [UInt8] {
        JSONText.object([
            .init("config", hub.hubConfig(rank: rank)),
            .init("hidden_size", .number("\(file.hiddenSize)")), .init("model_class", .null),
            .init("model_name", baseModelNameOrPath.map(JSONText.string) ?? .null), .init("model_type", .string(file.modelType)),
            .init("name", .string(file.name)), .init("version", .string("adapters.1.3.0")),
        ]).indented()
    }

    /// Nil for a file of PEFT's.
    ///
    /// - Throws: `AdapterError.badConfig`, and `unsupported` for a setting of the library's that is none here.
    static func hub(
        _ document: JSONText
    ) throws(AdapterError) -> (method: HubAdapter, rank: Int?, file: HubFile, baseModel: String?)? {
        guard document["peft_type"] == nil, let config = document["config"] else { return nil }
        guard let name = document["name"]?.string, !name.isEmpty else { throw .badConfig(key: "name", value: text(document["name"])) }
        let file = HubFile(
            name: name, hiddenSize: try positive("hidden_size", document), modelType: document["model_type"]?.string ?? "")
        do {
            return (try HubAdapter(hubConfig: config), try HubAdapter.rank(hubConfig: config), file, document["model_name"]?.string)
        } catch {
            // In a union's, of the last that has it: its bottleneck.
            let value = config[error.key] ?? config["configs"]?.array?.compactMap { $0[error.key] }.last
            throw .unsupported(key: "config: " + error.key, value: text(value))
        }
    }
}

extension AdapterTensor {
    /// With the adapter's name that this program has, and not the one that it had in the library.
    func renamed(from name: String) -> AdapterTensor {
        guard name != HubAdapter.adapterName else { return self }
        return AdapterTensor(
            name: self.name.split(separator: ".", omittingEmptySubsequences: false).map { $0 == name ? HubAdapter.adapterName : String($0) }
                .joined(separator: "."),
            shape: shape, values: values, start: start)
    }
}
