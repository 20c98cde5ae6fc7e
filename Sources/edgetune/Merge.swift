// edgetune merge: the base with an adapter in its weights, for programs that load no adapters.
import ArgumentParser
import EdgeWire
import Foundation

struct Merge: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Make one model of an adapter and its base.",
        discussion: """
            A base from a GGUF file becomes a GGUF file, one from Hugging Face's files a directory of such files in BF16. \
            Weights that the adapter does not change stay as they are. What the rounding of the others has cost is measured on \
            the samples that the job held back.
            """)
    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @Argument(help: "The adapter's name.") var adapter: String
    @Option(
        help: """
            Of the weights that change: f16, bf16, q8_0, q4_1 or q4_0; or base, its own blocks with their scales multiplied, for adapters that \
            do no more ((IA)³), and their default. Default: q8_0; bf16 for Hugging Face's files.
            """)
    var format: MergeFormat?
    @Option(help: "Of an adapter that has tasks: the one that is merged.") var task: String?
    @Option(name: [.customLong("output"), .customShort("o")], help: "Where to.") var destination: String
    @Flag(inversion: .prefixedNo, help: "Measure the held-out loss, with the adapter and merged.") var measure = true
    @Flag(help: "Replace what is there.") var force = false

    /// Of the loss; f16 and q8_0 stay far below.
    private static let tolerableChange = 1.05

    private struct Report: Encodable {
        let adapter: String
        let path: String
        let merged: MergeReport
    }

    func run() async throws {
        let copy = try LocalCopy(to: destination, replacing: force)
        let client = daemon.client
        let name = client.escaped(adapter)
        let status = StatusLine()
        defer { status.clear() }
        let report = try await made(client, name, status)
        let total = report.files.reduce(0) { $0 + $1.bytes }
        do {
            try await copy.make(
                of: report.files.map(\.name), inDirectory: report.files.count > 1, from: client,
                remote: { Endpoint.mergedFile(name, $0) },
                progress: { status.draw(ProgressLine.transfer("copy", adapter, done: UInt64($0), of: total, width: status.width)) })
        } catch {
            // The failure of the copy is what is told; the daemon's own is removed by the next merge at the latest.
            try? await client.delete(Endpoint.mergedModel(name))
            throw error
        }
        try await client.delete(Endpoint.mergedModel(name))
        status.clear()
        try output.print(Report(adapter: adapter, path: copy.path, merged: report)) {
            "\(TerminalFilter.line(copy.path)): \(report.format), \(Amount.bytes(total))\n\(Self.losses(report))"
        }
        if let losses = report.losses, losses.merged > losses.adapter * Self.tolerableChange {
            Terminal.complain(
                "hint: rounding took back much of what the adapter does, as it does where the base had so few bits already; q8_0 and f16 keep it")
        }
    }

    private func made(_ client: DaemonClient, _ name: String, _ status: StatusLine) async throws -> MergeReport {
        let request = MergeRequest(format: format, task: task, measure: measure)
        let call = Call(
            method: .POST, path: Endpoint.mergedModel(name), headers: [("Content-Type", "application/json")],
            body: try client.encode(request), idleSeconds: 900)
        var last: MergeEvent?
        try await client.lines(call) { line in
            let event = try client.decode(MergeEvent.self, from: line)
            if let phase = event.phase, let done = event.done, let total = event.total {
                status.draw(Self.progress(phase, adapter, done, total, width: status.width))
            }
            guard event.isLast else { return .more }
            last = event
            return .enough
        }
        if let problem = last?.problem { throw CommandFailure(problem) }
        guard let report = last?.report else { throw DaemonError.lost("the merge has no end") }
        return report
    }

    private static func progress(_ phase: MergeEvent.Phase, _ name: String, _ done: UInt64, _ total: UInt64, width: Int) -> String {
        switch phase {
        case .writing: ProgressLine.transfer("merge", name, done: done, of: total, width: width)
        case .measuring: "measure held-out loss: \(done)/\(total) tokens"
        }
    }

    private static func losses(_ report: MergeReport) -> String {
        guard let losses = report.losses else { return "held-out loss not measured: \(report.notMeasured ?? "no reason given")" }
        let change = (losses.merged / losses.adapter - 1) * 100
        return "held-out loss: \(Amount.fixed(losses.merged, 5)) merged, \(Amount.fixed(losses.adapter, 5)) with the adapter beside the "
            + "base (\(change < 0 ? "" : "+")\(Amount.fixed(change, 2)) %), \(losses.tokens) tokens"
    }
}

extension MergeFormat: ExpressibleByArgument {}
