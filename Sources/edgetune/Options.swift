// Flags that verbs share: where the daemon is, and JSON.
import ArgumentParser
import EdgeWire
import Foundation

struct DaemonOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "The daemon's socket.",
            discussion: "Default: EDGETUNE_SOCKET, else the system's, the user session's, or the one in /tmp."))
    var socket: String?

    var client: DaemonClient { DaemonClient(socketPath: socket ?? Self.defaultSocket) }

    private static var defaultSocket: String {
        if let path = Terminal.variable("EDGETUNE_SOCKET"), !path.isEmpty { return path }
        let system = "/run/edgetuned/edgetuned.sock"
        if access(system, F_OK) == 0 { return system }
        if let directory = Terminal.variable("XDG_RUNTIME_DIR"), !directory.isEmpty {
            return directory + "/edgetuned/edgetuned.sock"
        }
        return "/tmp/edgetuned-\(getuid())/edgetuned.sock"
    }
}

struct OutputOptions: ParsableArguments {
    @Flag(help: "Print JSON: one value, or one a line when following.")
    var json = false

    /// Prints the value as JSON when asked to, else the text.
    func print<Value: Encodable>(_ value: Value, orText text: () -> String) throws {
        Terminal.print(json ? try JSONText.line(value) : text())
    }
}
