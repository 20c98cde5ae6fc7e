// The bar: a pure function of progress and width, and the one line of the terminal that it is drawn on.
import EdgeWire
import Foundation

enum ProgressLine {
    /// At most `width` columns. Fields are left out, least wanted first, until the bar has 8 columns or more.
    static func text(_ progress: JobProgress, width: Int) -> String {
        let share = progress.totalSteps > 0 ? Double(progress.step) / Double(progress.totalSteps) : 0
        let loss = "loss \(Amount.fixed(progress.loss, 3))"
        let speed = "\(Amount.fixed(progress.tokensPerSecond, 0)) tok/s"
        let memory = Amount.bytes(progress.rssBytes, of: progress.budgetBytes)
        let eta = "ETA " + (progress.etaSeconds.map(Amount.duration) ?? "?")
        let steps = "\(progress.step)/\(progress.totalSteps)"
        let choices = [
            [loss, speed, memory, eta], [loss, memory, eta], [loss, eta], [loss], [],
        ]
        for fields in choices {
            let rest = ([steps] + fields).joined(separator: "  ").count
            let barWidth = min(40, width - rest - 4)
            if barWidth >= 8 {
                return "\(steps)  \(bar(share, width: barWidth))  " + fields.joined(separator: "  ")
            }
        }
        return String("\(steps) \(loss)".prefix(width))
    }

    static func plain(_ progress: JobProgress) -> String {
        let eta = progress.etaSeconds.map { ", ETA " + Amount.duration($0) } ?? ""
        return "step \(progress.step)/\(progress.totalSteps), loss \(Amount.fixed(progress.loss, 4)), "
            + "\(Amount.fixed(progress.tokensPerSecond, 0)) tokens/s, "
            + "memory \(Amount.bytes(progress.rssBytes, of: progress.budgetBytes))\(eta)"
    }

    /// `upload model.gguf  [####----]  310/900 MiB`
    static func transfer(_ verb: String, _ name: String, done: UInt64, of whole: UInt64, width: Int) -> String {
        let share = whole > 0 ? Double(done) / Double(whole) : 1
        let size = Amount.bytes(done, of: whole)
        let label = String("\(verb) \(TerminalFilter.line(name))".prefix(max(0, width - size.count - 16)))
        let barWidth = min(40, width - label.count - size.count - 4)
        guard barWidth >= 4 else { return String(size.prefix(width)) }
        return "\(label)  \(bar(share, width: barWidth))  \(size)"
    }

    /// Of `width` columns with its brackets.
    private static func bar(_ share: Double, width: Int) -> String {
        let inner = max(1, width - 2)
        let full = Int((Double(inner) * min(1, max(0, share))).rounded(.down))
        return "[" + String(repeating: "#", count: full) + String(repeating: "-", count: inner - full) + "]"
    }
}

/// One line on stderr that is drawn over. Not drawn at all when the outputs are not a terminal.
final class StatusLine {
    private var drawnColumns = 0
    let isDrawn = Terminal.isInteractive

    /// One column less than the terminal has: a full line would wrap.
    var width: Int { max(8, Terminal.width - 1) }

    func draw(_ text: String) {
        guard isDrawn else { return }
        let shown = String(text.prefix(width))
        let blanks = String(repeating: " ", count: max(0, min(drawnColumns, width) - shown.count))
        let (green, plain) = Terminal.hasColor ? ("\u{1B}[32m", "\u{1B}[0m") : ("", "")
        Terminal.write("\r" + green + shown + plain + blanks, to: STDERR_FILENO)
        drawnColumns = shown.count
    }

    func clear() {
        guard isDrawn, drawnColumns > 0 else { return }
        Terminal.write("\r" + String(repeating: " ", count: min(drawnColumns, width)) + "\r", to: STDERR_FILENO)
        drawnColumns = 0
    }
}
