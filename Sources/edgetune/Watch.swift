// edgetune watch: a job's events as a bar, as plain lines, or as JSON lines.
import ArgumentParser
import EdgeWire
import Foundation

struct Watch: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Follow a job to its end. Ctrl-C detaches; the job goes on.")
    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @Argument(help: "The job's id.") var job: String

    func run() async throws {
        try await JobWatch.follow(job, on: daemon.client, json: output.json)
    }
}

/// What a follower shows of events. Plain lines: states and evaluations at once, steps every ten seconds.
private final class EventLines {
    private let isJSON: Bool
    private let status = StatusLine()
    private var lastStep = ContinuousClock.now - .seconds(60)

    init(isJSON: Bool) { self.isJSON = isJSON }

    func take(_ event: JobEvent, _ line: Substring) {
        if isJSON {
            Terminal.print(String(line))
            return
        }
        switch event.event {
        case .step(let progress): step(progress)
        case .evaluation(let evaluation):
            show(
                "step \(evaluation.step): held-out loss \(Amount.fixed(evaluation.loss, 4)), "
                    + "perplexity \(Amount.fixed(evaluation.perplexity, 2))"
                    + (evaluation.isBest ? ", best so far" : ""))
        case .state(let state, let reason): show(state.rawValue + (reason.map { ": \($0)" } ?? ""))
        case .plan(let plan):
            show(
                "plan: peak \(Amount.bytes(plan.peakBytes)) of \(Amount.bytes(plan.budgetBytes)), "
                    + "\(plan.samples) samples, \(plan.totalSteps) steps")
        case .log(let message): show(message)
        case .problem(let problem): complain(problem)
        case .checkpoint, .heartbeat, .end: break
        }
    }

    func interrupted() {
        status.clear()
        if !isJSON { Terminal.complain("connection to edgetuned lost; waiting for it") }
    }

    func finish() { status.clear() }

    private func step(_ progress: JobProgress) {
        if status.isDrawn {
            status.draw(ProgressLine.text(progress, width: status.width))
            return
        }
        let now = ContinuousClock.now
        guard now - lastStep >= .seconds(10) || progress.step == progress.totalSteps else { return }
        lastStep = now
        show(ProgressLine.plain(progress))
    }

    private func show(_ text: String) {
        status.clear()
        Terminal.print(TerminalFilter.line(text))
    }

    private func complain(_ problem: Problem) {
        status.clear()
        let failure = CommandFailure(problem)
        Terminal.complain("problem: " + TerminalFilter.text(failure.message))
        if let hint = failure.hint { Terminal.complain("hint: " + TerminalFilter.text(hint)) }
    }
}

enum JobWatch {
    /// Follows to the end and throws ArgumentParser's exit when that was no success.
    static func follow(_ job: String, on client: DaemonClient, json: Bool) async throws {
        let detach = InterruptExit(saying: "detached; the job goes on. `edgetune watch \(job)` follows it again")
        defer { detach.cancel() }
        let status = try await client.get(JobStatus.self, Endpoint.job(client.escaped(job)))
        let lines = EventLines(isJSON: json)
        let end = try await client.follow(
            status.id, interrupted: { lines.interrupted() }, take: { lines.take($0, $1) })
        lines.finish()
        if !json {
            let adapter =
                end == .cancelled
                ? nil : try await client.get(JobStatus.self, Endpoint.job(client.escaped(job))).adapter
            Terminal.print(
                TerminalFilter.line("\(status.id) \(end.rawValue)" + (adapter.map { ": adapter \($0)" } ?? "")))
        }
        if ExitCode(end) != .ok { throw ArgumentParser.ExitCode(ExitCode(end).rawValue) }
    }
}
