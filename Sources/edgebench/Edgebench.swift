// `edgebench`: measures kernels, a training step and a plan, and prints JSON lines with the share of the machine's own
// peak, which a register-only loop measures in the same run.
import ArgumentParser

@main
struct Edgebench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "edgebench", abstract: "Measure kernels, a training step, or a memory plan.",
        subcommands: [
            KernelsBench.self, StepBench.self, PlanBench.self, CalibrateBench.self, ModelBench.self, ImportBench.self,
            PerplexityBench.self, AccuracyBench.self, TokenizeBench.self, RenderBench.self,
        ])
}
