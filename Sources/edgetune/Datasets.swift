// edgetune datasets list, remove
import ArgumentParser
import EdgeWire

struct Datasets: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "The data sets that the daemon holds.", subcommands: [List.self, Remove.self],
        defaultSubcommand: List.self)

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List data sets.")
        @OptionGroup var daemon: DaemonOptions
        @OptionGroup var output: OutputOptions

        func run() async throws {
            let list = try await daemon.client.get(DatasetList.self, Endpoint.datasets)
            try output.print(list) {
                guard !list.datasets.isEmpty else { return "no data sets; `edgetune submit` uploads them" }
                return Table.text(
                    ["NAME", "SAMPLES", "KIND", "SIZE", "CREATED"],
                    list.datasets.map { record in
                        let kinds = record.dataset.kinds.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }
                        return [
                            record.name, "\(record.dataset.samples)", kinds.joined(separator: ", "),
                            Amount.bytes(record.bytes), Amount.time(record.createdAt),
                        ]
                    })
            }
        }
    }

    struct Remove: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Remove a data set.")
        @OptionGroup var daemon: DaemonOptions
        @Argument(help: "The data set's name.") var name: String

        func run() async throws {
            let client = daemon.client
            try await client.delete(Endpoint.dataset(client.escaped(name)))
        }
    }
}
