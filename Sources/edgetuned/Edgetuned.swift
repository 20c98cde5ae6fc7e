// The executable: `serve`, the daemon, and `work`, which serve starts.
import ArgumentParser

@main struct Edgetuned: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "edgetuned", abstract: "Fine-tunes language models on this machine, within its memory.",
        version: "edgetuned \(Edgetuned.version)", subcommands: [Serve.self, Work.self], defaultSubcommand: Serve.self)

    static let version = "0.1.0"
}
