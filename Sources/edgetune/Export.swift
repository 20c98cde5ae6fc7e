// edgetune export: an adapter's files, for PEFT, the adapters library, llama.cpp, or as stored.
import ArgumentParser
import EdgeWire

struct Export: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Copy an adapter out, for PEFT, the adapters library, llama.cpp, or as stored.")
    enum Format: String, ExpressibleByArgument, CaseIterable { case peft, adapters, gguf, artifact }

    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @Argument(help: "The adapter's name.") var adapter: String
    @Option(help: "Of an adapter that has tasks: the one whose LoRA is exported.") var task: String?
    @Option(help: "peft, adapters: a directory. gguf: one file. artifact: the directory as stored.") var format: Format
    @Option(name: [.customLong("output"), .customShort("o")], help: "Where to.") var destination: String
    @Flag(help: "Replace what is there.") var force = false

    private struct Report: Encodable {
        let adapter: String
        let format: String
        let path: String
        let files: [String]
    }

    func run() async throws {
        guard task == nil || format != .artifact else {
            throw ValidationError("an artifact as stored has all of its tasks: leave --task out, or use another --format")
        }
        let copy = try LocalCopy(to: destination, replacing: force)
        let client = daemon.client
        let record = try await client.get(AdapterRecord.self, Endpoint.adapter(client.escaped(adapter)))
        let files =
            switch format {
            case .peft: ["adapter_config.json", "adapter_model.safetensors", "README.md", "training.json"]
            case .adapters: ["adapter_config.json", "adapter.safetensors", "README.md", "training.json"]
            case .gguf: ["adapter.gguf"]
            case .artifact: record.files.map(\.name)
            }
        try await copy.make(of: files, inDirectory: format != .gguf, from: client) {
            guard let task, format != .artifact, !["README.md", "training.json"].contains($0) else {
                return Endpoint.adapterFile(client.escaped(adapter), $0)
            }
            return Endpoint.adapterFile(client.escaped(adapter), task: client.escaped(task), $0)
        }
        try output.print(Report(adapter: adapter, format: format.rawValue, path: copy.path, files: files)) {
            TerminalFilter.line(copy.path)
        }
    }
}
