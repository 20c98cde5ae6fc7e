// A data set that a command names: a file, which is sent first, or one that the daemon holds.
import EdgeWire

struct DatasetUpload {
    let client: DaemonClient

    /// - Parameters:
    ///   - value: as it was given, for messages and for names.
    ///   - path: where it would be as a file.
    /// - Returns: the name that the daemon knows it by, or its digest.
    func named(_ value: String, path: String) async throws -> String {
        guard let file = try LocalFile(path: path) else {
            try Self.requireName(value, what: "data set")
            return value
        }
        let digest = try await BlobUpload.send(file, to: client)
        let name = ResourceName.unique(file.name, digest: digest)
        do {
            let record = try await client.repeated { () async throws(DaemonError) in
                try await client.post(DatasetRecord.self, Endpoint.datasets, ImportRequest(name: name, blob: digest))
            }
            return record.name
        } catch DaemonError.problem(var problem) {
            // Another user has the same file under the same name. The bytes are there, and can be named by themselves.
            if problem.kind == .conflict { return digest }
            // The daemon knows lines, not files.
            if problem.kind == .badDataset { problem.detail = "\(value): \(problem.detail)" }
            throw DaemonError.problem(problem)
        }
    }

    static func requireName(_ value: String, what: String) throws {
        guard !value.contains("/"), Wire.isName(value) || value.hasPrefix("sha256:") else {
            throw CommandFailure(.notFound, "\(value) is neither a file nor the name of a \(what)")
        }
    }
}
