// edgetune logs
import ArgumentParser
import EdgeWire
import NIOCore

struct Logs: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Print a job's log.")
    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @Flag(name: .shortAndLong, help: "Go on printing until the job ends.") var follow = false
    @Argument(help: "The job's id.") var job: String

    func run() async throws {
        let client = daemon.client
        let call = Call(path: Endpoint.jobLog(client.escaped(job)))
        var filter = TerminalFilter()
        var printed = try await client.collect(call)
        try show(String(buffer: printed), &filter)
        while follow {
            // Asked before the log: what a finished job wrote is then all there.
            let isFinal = try await client.repeated { () async throws(DaemonError) in
                try await client.get(JobStatus.self, Endpoint.job(client.escaped(job)))
            }.state.isFinal
            let log = try await client.repeated { () async throws(DaemonError) in try await client.collect(call) }
            try show(String(buffer: Self.news(log, after: printed)), &filter)
            printed = log
            if isFinal { return }
            try await Task.sleep(for: .seconds(1))
        }
    }

    private struct Line: Encodable { let line: String }

    private func show(_ text: String, _ filter: inout TerminalFilter) throws {
        guard output.json else { return Terminal.print(filter.pass(text), terminator: "") }
        for line in text.split(separator: "\n") { Terminal.print(try JSONText.line(Line(line: String(line)))) }
    }

    /// What stands in `log` past `printed`. A log over its limit loses its start: then the whole is new.
    private static func news(_ log: ByteBuffer, after printed: ByteBuffer) -> ByteBuffer {
        let old = printed.readableBytes
        guard log.readableBytes >= old, log.getSlice(at: log.readerIndex, length: old) == printed else { return log }
        return log.getSlice(at: log.readerIndex + old, length: log.readableBytes - old) ?? ByteBuffer()
    }
}
