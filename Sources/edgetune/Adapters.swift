// edgetune adapters list, remove
import ArgumentParser
import EdgeWire

struct Adapters: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "The adapters that jobs have made.", subcommands: [List.self, Remove.self],
        defaultSubcommand: List.self)

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
