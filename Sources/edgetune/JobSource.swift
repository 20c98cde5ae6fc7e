// A job file and what it names: read, and sent to the daemon.
import EdgeWire
import EdgeYAML
import Foundation

struct JobSource {
    let text: String
    let request: JobRequest
    /// With its final slash; "" for the current directory.
    let directory: String

    init(_ file: String) throws {
        guard let local = try LocalFile(path: file) else {
            throw CommandFailure(.notFound, "there is no job file \(file)")
        }
        guard local.bytes <= YAMLLimit.bytes else {
            throw CommandFailure(.usage, "\(file) is over \(Amount.bytes(UInt64(YAMLLimit.bytes))): not a job file")
        }
        text = local.bytes == 0 ? "" : String(buffer: try local.read(at: 0, count: Int(local.bytes)))
        request = try JobFile.read(text: text, fileName: local.name)
        directory = Self.directory(of: file)
    }

    static func directory(of file: String) -> String {
        file.lastIndex(of: "/").map { String(file[...$0]) } ?? ""
    }
}

/// What a request names, made into what the daemon holds.
struct JobUpload {
    let client: DaemonClient
    /// Paths in the job file are relative to it; paths in flags to the current directory.
    let directory: String

    private func path(_ value: String, isFlag: Bool) -> String {
        isFlag || value.hasPrefix("/") ? value : directory + value
    }

    func dataset(_ value: String, isFlag: Bool) async throws -> String {
        try await DatasetUpload(client: client).named(value, path: path(value, isFlag: isFlag))
    }

    func model(_ value: String, isFlag: Bool, held: [ModelRecord]) async throws -> String {
        if held.contains(where: { $0.name == value }) { return value }
        guard let source = try ModelSource(path: path(value, isFlag: isFlag)) else {
            try DatasetUpload.requireName(value, what: "model")
            return value
        }
        return try await ModelUpload.add(source, name: nil, to: client).name
    }

    func adapter(_ value: String, isFlag: Bool, baseModel: String) async throws -> String {
        guard let source = try AdapterSource(path: path(value, isFlag: isFlag)) else {
            try DatasetUpload.requireName(value, what: "adapter")
            return value
        }
        return try await source.add(name: nil, baseModel: baseModel, to: client).name
    }
}
