// edgetune ranks: ranks for a job's linears, as lines of its file.
import ArgumentParser
import EdgeWire
import EdgeYAML
import Foundation

struct Ranks: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Give a job's linears ranks by how much each matters to its data.",
        discussion: """
            One forward and one backward of some samples, without training, measures the length of the loss's gradient in each linear \
            (arXiv:2303.08566). Ranks are then given by it, from 1 to 4 times lora_r, in all as many parameters as with lora_r \
            everywhere; or, with --budget, as many as a plan within so much memory can have. The result is a rank_pattern, and an \
            alpha_pattern that leaves each linear's alpha / rank what it was: lines for the job file, or with --output a job file \
            that has them. Ctrl-C ends it; nothing is left behind.
            """)
    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @Argument(help: "Job file (YAML): of a lora, lora-fa or dora.") var file: String
    @Option(help: "Samples of the training part to look at, at most \(RankReport.sampleLimit).") var samples = RankReport.defaultSamples
    @Option(help: "900MiB, 2GB or 60%: the most ranks that fit.") var budget: String?
    @Option(name: [.customLong("output"), .customShort("o")], help: "Write the job file with the ranks in it here.") var destination: String?
    @Flag(help: "Replace the file that is there.") var force = false

    func validate() throws {
        guard (1...RankReport.sampleLimit).contains(samples) else {
            throw ValidationError("--samples \(samples) is not allowed; use 1 to \(RankReport.sampleLimit)")
        }
        if let budget, MemoryBudget(budget) == nil {
            throw ValidationError("--budget \(budget) is not allowed; use a size such as 900MiB or 2GB, or a share such as 60%")
        }
        if force, destination == nil { throw ValidationError("--force is for --output") }
    }

    func run() async throws {
        let source = try JobSource(file)
        try source.request.validate()
        let copy = try destination.map { try LocalCopy(to: $0, replacing: force) }
        if let destination { try requireSameDirectory(destination, source) }
        let report = try await found(try await uploaded(source))
        let lines = Self.lines(of: report, budget: source.request.memoryBudget == nil ? budget : nil)
        if let copy { try copy.make(of: try Self.text(of: source, with: lines, report, fileName: file)) }
        try output.print(report) { text(report, lines, written: copy?.path) }
    }

    /// Paths in a job file are relative to it: in another directory it would name other files.
    private func requireSameDirectory(_ destination: String, _ source: JobSource) throws {
        let request = source.request
        let named = request.datasets.map(\.path) + [request.baseModel]
        func resolved(_ directory: String) -> String { URL(filePath: directory.isEmpty ? "." : directory).standardizedFileURL.path }
        guard resolved(JobSource.directory(of: destination)) != resolved(source.directory) else { return }
        if let path = named.first(where: { !$0.hasPrefix("/") && FileManager.default.fileExists(atPath: source.directory + $0) }) {
            throw CommandFailure(
                .usage, "--output \(destination): the job's \(path) is a path from the directory of \(file)",
                hint: "write it there, or make the job's paths absolute")
        }
    }

    /// As the daemon's names have it.
    private func uploaded(_ source: JobSource) async throws -> JobRequest {
        let client = daemon.client, upload = JobUpload(client: client, directory: source.directory)
        var request = source.request
        let held = try await client.get(ModelList.self, Endpoint.models).models
        request.baseModel = try await upload.model(request.baseModel, isFlag: false, held: held)
        for index in request.datasets.indices {
            request.datasets[index].path = try await upload.dataset(request.datasets[index].path, isFlag: false)
        }
        return request
    }

    private func found(_ request: JobRequest) async throws -> RankReport {
        let client = daemon.client
        let path = Endpoint.ranks + "?samples=\(samples)" + (budget.map { "&budget=\(client.escaped($0))" } ?? "")
        let call = Call(
            method: .POST, path: path, headers: [("Content-Type", "application/json")], body: try client.encode(request), idleSeconds: 900)
        let status = StatusLine()
        defer { status.clear() }
        var last: RankEvent?
        try await client.lines(call) { line in
            let event = try client.decode(RankEvent.self, from: line)
            if let sample = event.sample, let samples = event.samples {
                status.draw(String("ranks: \(sample) of \(samples) samples".prefix(status.width)))
            }
            guard event.isLast else { return .more }
            last = event
            return .enough
        }
        if let problem = last?.problem { throw CommandFailure(problem) }
        guard let report = last?.report else { throw DaemonError.lost("looking for ranks has no end") }
        return report
    }

    // MARK: text

    /// - Parameter budget: that the job is to have, where it has none.
    static func lines(of report: RankReport, budget: String?) -> [String] {
        func block(_ key: String, _ values: [String: String]) -> [String] {
            values.isEmpty ? [] : ["\(key):"] + report.rows.compactMap { row in values[row.linear].map { "  \(row.linear): \($0)" } }
        }
        return block("rank_pattern", report.rankPattern.mapValues { "\($0)" })
            + block("alpha_pattern", report.alphaPattern.mapValues { value in Int(exactly: value).map { "\($0)" } ?? "\(value)" })
            + (budget.map { ["memory_budget: \($0)"] } ?? [])
    }

    /// The job file with the lines at its end.
    static func text(of source: JobSource, with lines: [String], _ report: RankReport, fileName: String) throws -> String {
        let text = source.text + (source.text.hasSuffix("\n") ? "" : "\n") + lines.map { $0 + "\n" }.joined()
        // One in braces, for example, cannot be gone on with.
        guard let made = try? JobFile.read(text: text, fileName: fileName), made.rankPattern ?? [:] == report.rankPattern,
            made.alphaPattern ?? [:] == report.alphaPattern
        else { throw CommandFailure(.usage, "\(fileName) is not a job file of lines that others can follow", hint: "without --output the lines are printed") }
        return text
    }

    private func text(_ report: RankReport, _ lines: [String], written: String?) -> String {
        let rows = report.rows.map { [$0.linear, String(format: "%.3g", $0.importance), "\($0.rank)"] }
        var about = "\(report.parameters) parameters in A and B (\(report.uniformParameters) with one rank), by \(report.samples) samples "
            + "(\(report.tokens) tokens with loss)"
        if let peak = report.jobPeakBytes, let budget = report.budgetBytes {
            about += "\nthe job's plan: \(Amount.bytes(peak)) of \(Amount.bytes(budget)) allowed" + (report.budgetReason.map { " (\($0))" } ?? "")
        }
        let end = written.map(TerminalFilter.line) ?? lines.map(TerminalFilter.line).joined(separator: "\n")
        return Table.text(["LINEAR", "IMPORTANCE", "RANK"], rows) + "\n\n" + about + "\n\n" + end
    }
}
