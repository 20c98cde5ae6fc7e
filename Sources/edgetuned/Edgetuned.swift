// The executable: `serve`, the daemon; `work`, which serve starts; `check`, which looks at what a stopped daemon has stored.
import ArgumentParser

@main struct Edgetuned: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "edgetuned", abstract: "Fine-tunes language models on this machine, within its memory.",
        version: "edgetuned \(Edgetuned.version)", subcommands: [Serve.self, Work.self, Check.self],
        defaultSubcommand: Serve.self)

    static let version = "0.1.0"
}
