// Chat templates over JSON lines.
import ArgumentParser

struct RenderBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "render", abstract: "Render chat templates; one JSON line in, one out.",
        discussion: "benchmarks/compare_templates.py compares the answers with transformers'.")

    func run() throws { try TemplateLines.run() }
}
