// An adapter on this machine, made into one of the daemon's.
import EdgeWire
import Foundation

struct AdapterSource {
    static let configName = "adapter_config.json"
    private static let tensorNames = ["adapter_model.safetensors", "adapter_model.safetensors.lz4", "adapter.safetensors"]

    private let name: String
    private let tensors: LocalFile
    private let config: LocalFile?

    /// Nil when there is none at `path`.
    init?(path: String) throws {
        if let file = try LocalFile(path: path) {
            guard file.name.hasSuffix(".gguf") else { return nil }
            (name, tensors, config) = (file.name, file, nil)
            return
        }
        guard let config = try LocalFile(path: "\(path)/\(Self.configName)") else { return nil }
        let found = try Self.tensorNames.compactMap { try LocalFile(path: "\(path)/\($0)") }
        guard let tensors = found.first, found.count == 1 else {
            throw CommandFailure(
                .usage, "\(path) has \(found.isEmpty ? "none" : "several") of \(Self.tensorNames.joined(separator: ", "))",
                hint: found.isEmpty ? "the adapters library writes them with save_adapter(…, use_safetensors=True)" : nil)
        }
        (name, self.tensors, self.config) = (URL(fileURLWithPath: path).lastPathComponent + ".peft", tensors, config)
    }

    /// Uploads and names it. Without a name of its own it gets the file's, with digits of its digest.
    func add(name chosen: String?, baseModel: String, to client: DaemonClient) async throws -> AdapterRecord {
        let tensorsDigest = try await BlobUpload.send(tensors, to: client)
        var configDigest: String?
        if let config { configDigest = try await BlobUpload.send(config, to: client) }
        let name = chosen ?? ResourceName.unique(name, digest: tensorsDigest)
        if chosen == nil {
            let held = try await client.get(AdapterList.self, Endpoint.adapters).adapters
            if let same = held.first(where: { $0.name == name && $0.baseModel == baseModel }) { return same }
        }
        let request = AdapterImportRequest(name: name, baseModel: baseModel, tensors: tensorsDigest, config: configDigest)
        return try await client.repeated { () async throws(DaemonError) in
            try await client.post(AdapterRecord.self, Endpoint.adapters, request)
        }
    }
}
