// edgetune show
import ArgumentParser
import EdgeWire

struct Show: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Show one job.")
    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @Argument(help: "The job's id.") var job: String

    func run() async throws {
        let client = daemon.client
        let status = try await client.get(JobStatus.self, Endpoint.job(client.escaped(job)))
        try output.print(status) { JobText.whole(status) }
    }
}

enum JobText {
    static func line(_ job: JobStatus) -> String {
        TerminalFilter.line("\(job.id) \(job.state.rawValue)" + (job.reason.map { ": \($0)" } ?? ""))
    }

    static func whole(_ job: JobStatus) -> String {
        var rows = [
            ("job", job.id), ("name", job.name),
            ("state", job.state.rawValue + (job.reason.map { " (\($0))" } ?? "")),
            ("base model", job.request.baseModel), ("method", job.request.adapter),
            ("data sets", job.request.datasets.map(\.path).joined(separator: ", ")),
            ("created", Amount.time(job.createdAt) + " by uid \(job.ownerUid)"),
        ]
        if let time = job.startedAt { rows.append(("started", Amount.time(time))) }
        if let time = job.finishedAt { rows.append(("finished", Amount.time(time))) }
        if job.runs > 1 { rows.append(("runs", "\(job.runs)")) }
        if let priority = job.request.priority { rows.append(("priority", "\(priority)")) }
        if let hours = job.request.runBetween { rows.append(("runs between", hours)) }
        if let seconds = job.runSeconds {
            rows.append(("ran for", Amount.duration(seconds) + (job.request.maxTime.map { ", at most \($0)" } ?? "")))
        }
        if let progress = job.progress {
            rows.append(
                ("step", "\(progress.step) of \(progress.totalSteps), epoch \(Amount.fixed(progress.epoch, 2))"))
            rows.append(("loss", Amount.fixed(progress.loss, 4)))
            if let loss = progress.evalLoss {
                let best = progress.bestEvalLoss.map { ", best \(Amount.fixed($0, 4))" } ?? ""
                rows.append(("held-out loss", Amount.fixed(loss, 4) + best))
            }
            rows.append(("speed", "\(Amount.fixed(progress.tokensPerSecond, 1)) tokens/s"))
            rows.append(("memory", Amount.bytes(progress.rssBytes, of: progress.budgetBytes)))
            if let seconds = progress.etaSeconds, !job.state.isFinal {
                rows.append(("time left", Amount.duration(seconds)))
            }
        }
        if let adapter = job.adapter { rows.append(("adapter", adapter)) }
        var text = Table.text(rows)
        if let problem = job.problem {
            let failure = CommandFailure(problem)
            text += "\n\nproblem: " + TerminalFilter.text(failure.message)
            if let hint = failure.hint { text += "\nhint: " + TerminalFilter.text(hint) }
        }
        if let plan = job.plan { text += "\n\n" + PlanText.whole(plan) }
        return text
    }
}

enum PlanText {
    static func whole(_ plan: PlanReport) -> String {
        let widest = plan.pools.map { Amount.bytes($0.bytes).count }.max() ?? 0
        func right(_ text: String) -> String {
            String(repeating: " ", count: max(0, max(widest, 8) - text.count)) + text
        }
        var parts = [Table.text(["POOL", right("SIZE")], plan.pools.map { [$0.name, right(Amount.bytes($0.bytes))] })]
        var rows = [
            (
                "peak",
                "\(Amount.bytes(plan.peakBytes)) of \(Amount.bytes(plan.budgetBytes)) allowed"
                    + (plan.budgetReason.map { " (\($0))" } ?? "")
                    + (plan.peakBytes > plan.budgetBytes ? ": does not fit" : "")
            ),
            ("precision", plan.precision?.rawValue ?? "f32"),
            ("trainable parameters", "\(plan.trainableParameters)"),
            ("samples", "\(plan.samples), held out \(plan.heldOutSamples)"),
            ("steps", "\(plan.totalSteps)"),
        ]
        if let tokens = plan.microBatchTokens { rows.append(("largest micro-batch", "\(tokens) tokens")) }
        if let spill = plan.spillBytes { rows.append(("disk beside the checkpoints", Amount.bytes(spill))) }
        if let speed = plan.tokensPerSecond, let seconds = plan.totalSeconds {
            rows.append(("predicted", "\(Int(speed.rounded())) tokens/s, \(Amount.duration(seconds)) in all"))
        }
        if plan.tooLongSamples > 0 {
            let shown = plan.tooLongLines.prefix(20).map(String.init).joined(separator: ", ")
            let more = plan.tooLongSamples > min(20, plan.tooLongLines.count) ? ", …" : ""
            rows.append(("left out, too long", "\(plan.tooLongSamples) (lines \(shown)\(more))"))
        }
        parts.append(Table.text(rows))
        if let trades = plan.trades, !trades.isEmpty {
            let lines = trades.map { trade in
                [
                    trade.what, right(Amount.bytes(trade.savesBytes)),
                    trade.costsTime.map { "+\(Int(($0 * 100).rounded())) %" } ?? "unknown",
                ]
            }
            parts.append(Table.text(["TRADED FOR MEMORY", right("SAVES"), "TIME"], lines))
        } else {
            parts.append("traded for memory: " + (plan.choices.isEmpty ? "nothing" : plan.choices.joined(separator: "; ")))
        }
        return parts.joined(separator: "\n\n")
    }
}
