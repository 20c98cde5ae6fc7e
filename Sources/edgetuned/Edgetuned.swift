// The executable: `serve`, the daemon; `work`, which serve starts; `check`, which looks at what a stopped daemon has stored.
import ArgumentParser
import Dispatch
import Foundation

@main enum Program {
    /// Not asynchronous: that would be on a pool's thread, and a worker is confined while it has one thread only.
    static func main() {
        let arguments = Array(CommandLine.arguments.dropFirst())
        if arguments.first == Work.name {
            Work.main(Array(arguments.dropFirst()))
        } else {
            Task {
                await Edgetuned.main(arguments)
                exit(EXIT_SUCCESS)
            }
            dispatchMain()
        }
    }
}

struct Edgetuned: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "edgetuned", abstract: "Fine-tunes language models on this machine, within its memory.",
        version: "edgetuned \(Edgetuned.version)", subcommands: [Serve.self, Check.self], defaultSubcommand: Serve.self)

    static let version = "0.1.0"
}
