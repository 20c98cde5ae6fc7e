// The CLI's entry: the list of verbs, and errors to exit codes.
import ArgumentParser
import EdgeWire
import EdgeYAML
import Foundation

struct Edgetune: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "edgetune",
        abstract: "Fine-tunes language models on this machine's CPU, inside a memory budget.",
        discussion: """
            The work is done by edgetuned; this program talks to its socket.

            \(ExitCode.table)
            """,
        version: "edgetune 0.1.0 (API \(Endpoint.version))",
        subcommands: [
            Submit.self, Jobs.self, Show.self, Watch.self, Logs.self, Cancel.self, Pause.self, Resume.self, Models.self,
            Methods.self, Ranks.self, Datasets.self, Adapters.self, Export.self, Merge.self, Generate.self, Status.self,
        ])
}

@main enum Main {
    static func main() async {
        do {
            var command = try Edgetune.parseAsRoot()
            if var command = command as? any AsyncParsableCommand {
                try await command.run()
            } else {
                try command.run()
            }
        } catch let error as DaemonError {
            end(CommandFailure(error))
        } catch let error as CommandFailure {
            end(error)
        } catch let error as YAMLProblem {
            end(CommandFailure(.usage, error.description))
        } catch let error as InvalidRequest {
            end(CommandFailure(.usage, error.description))
        } catch {
            Edgetune.exit(withError: error)
        }
    }

    private static func end(_ failure: CommandFailure) -> Never {
        Terminal.complain("edgetune: " + TerminalFilter.text(failure.message))
        if let hint = failure.hint { Terminal.complain("hint: " + TerminalFilter.text(hint)) }
        exit(failure.code.rawValue)
    }
}
