// edgetune adapters add, list, remove; combine is in Combine.swift, compose in Compose.swift
import ArgumentParser
import EdgeWire

struct Adapters: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "The adapters that jobs have made, or that were brought in.",
        subcommands: [Add.self, Combine.self, Compose.self, List.self, Remove.self],
        defaultSubcommand: List.self)

    struct Add: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Bring in an adapter: a PEFT directory, or a GGUF adapter.")
        @OptionGroup var daemon: DaemonOptions
        @OptionGroup var output: OutputOptions
        @Argument(help: "A directory with adapter_config.json, or a .gguf file.") var path: String
        @Option(help: "The model that it belongs to.") var baseModel: String
        @Option(help: "What to call it. Default: the file's name.") var name: String?

        func run() async throws {
            guard let source = try AdapterSource(path: path) else {
                throw CommandFailure(
                    .notFound, "\(path) is neither a .gguf file nor a directory with \(AdapterSource.configName)")
            }
            let record = try await source.add(name: name, baseModel: baseModel, to: daemon.client)
            try output.print(record) { "\(record.name): an adapter of \(record.baseModel)" }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List adapters.")
        @OptionGroup var daemon: DaemonOptions
        @OptionGroup var output: OutputOptions

        func run() async throws {
            let list = try await daemon.client.get(AdapterList.self, Endpoint.adapters)
            try output.print(list) {
                guard !list.adapters.isEmpty else { return "no adapters" }
                return Table.text(
                    ["NAME", "BASE MODEL", "JOB", "SIZE", "CREATED"],
                    list.adapters.map { record in
                        [
                            record.name, record.baseModel, record.job,
                            Amount.bytes(record.files.reduce(0) { $0 &+ $1.bytes }), Amount.time(record.createdAt),
                        ]
                    })
            }
        }
    }

    struct Remove: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Remove an adapter.")
        @OptionGroup var daemon: DaemonOptions
        @Argument(help: "The adapter's name.") var name: String

        func run() async throws {
            let client = daemon.client
            try await client.delete(Endpoint.adapter(client.escaped(name)))
        }
    }
}
