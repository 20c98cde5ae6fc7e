// edgetune models add, list, remove
import ArgumentParser
import EdgeWire

struct Models: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "The base models that the daemon holds.", subcommands: [Add.self, List.self, Remove.self],
        defaultSubcommand: List.self)

    struct Add: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Upload a GGUF file.")
        @OptionGroup var daemon: DaemonOptions
        @OptionGroup var output: OutputOptions
        @Argument(help: "A .gguf file.") var file: String
        @Option(help: "Name to give it; default: the file's name without .gguf.") var name: String?

        func run() async throws {
            if let name, !Wire.isName(name) { throw ValidationError("a name is 1 to 64 of A-Z a-z 0-9 . _ -") }
            guard let local = try LocalFile(path: file) else {
                throw CommandFailure(.notFound, "there is no file \(file)")
            }
            let record = try await ModelImport.add(local, name: name, to: daemon.client)
            try output.print(record) {
                TerminalFilter.line(
                    "\(record.name): \(record.model.architecture), \(record.model.parameters) parameters, "
                        + "\(record.model.quantisation)")
            }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List models.")
        @OptionGroup var daemon: DaemonOptions
        @OptionGroup var output: OutputOptions

        func run() async throws {
            let list = try await daemon.client.get(ModelList.self, Endpoint.models)
            try output.print(list) {
                guard !list.models.isEmpty else { return "no models; add one with `edgetune models add FILE.gguf`" }
                return Table.text(
                    ["NAME", "ARCHITECTURE", "LAYERS", "CONTEXT", "SIZE", "WEIGHTS"],
                    list.models.map {
                        [
                            $0.name, $0.model.architecture, "\($0.model.layers)", "\($0.model.contextLength)",
                            Amount.bytes($0.model.fileBytes), $0.model.quantisation,
                        ]
                    })
            }
        }
    }

    struct Remove: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Remove a model.")
        @OptionGroup var daemon: DaemonOptions
        @Argument(help: "The model's name.") var name: String

        func run() async throws {
            let client = daemon.client
            try await client.delete(Endpoint.model(client.escaped(name)))
        }
    }
}

enum ModelImport {
    /// Uploads and names it. When `name` is nil and the file's own name is taken by another model, digits of the digest
    /// are added.
    static func add(_ file: LocalFile, name: String?, to client: DaemonClient) async throws -> ModelRecord {
        let held = try await client.get(ModelList.self, Endpoint.models).models
        let digest = try await BlobUpload.send(file, to: client)
        if name == nil, let same = held.first(where: { $0.blob == digest }) { return same }
        let stem = ResourceName.stem(of: file.name)
        let isTaken = held.contains { $0.name == stem && $0.blob != digest }
        let chosen = name ?? (isTaken ? ResourceName.unique(file.name, digest: digest) : stem)
        return try await client.repeated { () async throws(DaemonError) in
            try await client.post(ModelRecord.self, Endpoint.models, ImportRequest(name: chosen, blob: digest))
        }
    }
}
