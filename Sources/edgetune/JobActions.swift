// edgetune cancel, pause, resume: one call each.
import ArgumentParser
import EdgeWire

struct Cancel: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Cancel a job.")
    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @Argument(help: "The job's id.") var job: String

    func run() async throws {
        let status = try await daemon.client.act(.cancel, on: job)
        try output.print(status) { JobText.line(status) }
    }
}

struct Pause: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Pause a job: it writes a checkpoint and gives its memory back.")
    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @Argument(help: "The job's id.") var job: String

    func run() async throws {
        let status = try await daemon.client.act(.pause, on: job)
        try output.print(status) { JobText.line(status) }
    }
}

struct Resume: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Let a paused job go on.")
    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @Argument(help: "The job's id.") var job: String

    func run() async throws {
        let status = try await daemon.client.act(.resume, on: job)
        try output.print(status) { JobText.line(status) }
    }
}
