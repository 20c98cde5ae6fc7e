// edgetune models add, list, show, remove
import ArgumentParser
import EdgeWire

struct Models: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "The base models that the daemon holds.",
        subcommands: [Add.self, Pull.self, List.self, Show.self, Remove.self], defaultSubcommand: List.self)

    struct Add: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Upload a model.")
        @OptionGroup var daemon: DaemonOptions
        @OptionGroup var output: OutputOptions
        @Argument(
            help: "A .gguf file, the first part of a split one (-00001-of-…), or a directory as Hugging Face has it.")
        var path: String
        @Option(help: "Name to give it; default: the file's name without .gguf, or the directory's.") var name: String?

        func validate() throws { try ModelText.validate(name) }

        func run() async throws {
            guard let source = try ModelSource(path: path) else {
                throw CommandFailure(.notFound, "there is no file or directory \(path)")
            }
            let record = try await ModelUpload.add(source, name: name, to: daemon.client)
            try output.print(record) { ModelText.line(record) }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List models.")
        @OptionGroup var daemon: DaemonOptions
        @OptionGroup var output: OutputOptions

        func run() async throws {
            let list = try await daemon.client.get(ModelList.self, Endpoint.models)
            try output.print(list) { ModelText.list(list) }
        }
    }

    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show one model.")
        @OptionGroup var daemon: DaemonOptions
        @OptionGroup var output: OutputOptions
        @Argument(help: "The model's name.") var name: String

        func run() async throws {
            let client = daemon.client
            let record = try await client.get(ModelRecord.self, Endpoint.model(client.escaped(name)))
            try output.print(record) { ModelText.whole(record) }
        }
    }

    struct Remove: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Remove a model, or end its import.")
        @OptionGroup var daemon: DaemonOptions
        @Argument(help: "The model's name.") var name: String

        func run() async throws {
            let client = daemon.client
            try await client.delete(Endpoint.model(client.escaped(name)))
        }
    }
}

enum ModelText {
    static func validate(_ name: String?) throws {
        if let name, !Wire.isName(name) { throw ValidationError("a name is 1 to 64 of A-Z a-z 0-9 . _ -") }
    }

    static func line(_ record: ModelRecord) -> String {
        TerminalFilter.line(
            "\(record.name): \(record.model.architecture), \(record.model.parameters) parameters, "
                + "\(record.model.quantisation)")
    }

    static func list(_ list: ModelList) -> String {
        let imports = (list.imports ?? []).map { TerminalFilter.line(line($0)) }
        guard !list.models.isEmpty else {
            return imports.isEmpty
                ? "no models; add one with `edgetune models add PATH` or `edgetune models pull hf:OWNER/NAME`"
                : imports.joined(separator: "\n")
        }
        let table = Table.text(
            ["NAME", "ARCHITECTURE", "LAYERS", "CONTEXT", "SIZE", "WEIGHTS"],
            list.models.map {
                [
                    $0.name, $0.model.architecture, "\($0.model.layers)", "\($0.model.contextLength)",
                    Amount.bytes($0.model.fileBytes), $0.model.quantisation,
                ]
            })
        return ([table] + imports).joined(separator: "\n")
    }

    private static func line(_ status: ModelImportStatus) -> String {
        switch status.state {
        case .waiting: "\(status.name): waits for another import"
        case .running: "\(status.name): import, " + Amount.bytes(status.writtenBytes, of: status.totalBytes)
        case .failed: "\(status.name): the import failed: " + (status.problem?.detail ?? "no reason")
        case .done: "\(status.name): imported"
        }
    }

    static func whole(_ record: ModelRecord) -> String {
        var rows = [
            ("model", record.name), ("title", record.model.title ?? "none"), ("architecture", record.model.architecture),
            ("layers", "\(record.model.layers) of \(record.model.hiddenSize)"),
            ("vocabulary", "\(record.model.vocabulary)"), ("context", "\(record.model.contextLength) tokens"),
            ("parameters", "\(record.model.parameters)"), ("weights", record.model.quantisation),
            ("size", Amount.bytes(record.model.fileBytes)), ("digest", record.blob),
            ("added", Amount.time(record.createdAt) + " by uid \(record.ownerUid)"),
        ]
        if let source = record.source { rows.append(("source", source)) }
        if let files = record.files { rows.append(("made from", "\(files.count) files")) }
        var text = Table.text(rows)
        if let files = record.files {
            text += "\n\n" + Table.text(["FILE", "DIGEST"], files.map { [$0.name, $0.blob] })
        }
        return text
    }
}
