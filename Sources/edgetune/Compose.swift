// edgetune adapters compose: the weights of a mixture chosen by examples.
import ArgumentParser
import EdgeWire
import Foundation

extension Adapters {
    struct Compose: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make one adapter of several by weights that a few examples choose, without training.",
            discussion: """
                LoRAHub (arXiv:2307.13269): A and B of the new adapter are weighted sums of those of the others, and the weights, -1.5 to \
                1.5, are looked for by CMA-ES, so that the loss on the examples and 0.05 of the weights' mean size are least. The \
                adapters are LoRAs of one model, rank and choice of modules.

                Each step is one evaluation of all examples: the base, each adapter by itself, all alike, and then what \
                is tried. Ctrl-C ends it; \
                then there is no new adapter.
                """)
        @OptionGroup var daemon: DaemonOptions
        @OptionGroup var output: OutputOptions
        @Argument(help: "What to call the new one.") var name: String
        @Option(parsing: .upToNextOption, help: "Names of adapters that the daemon holds.") var adapters: [String]
        @Option(help: "The examples: a JSONL file, or the name of a data set; at most \(CompositionRequest.exampleLimit) lines.") var data: String
        @Option(help: "Evaluations of the examples.") var steps = CompositionRequest.defaultSteps
        @Option(help: "Seed of the search.") var seed = CompositionRequest.defaultSeed

        private struct Report: Encodable {
            let adapter: AdapterRecord
            let composed: CompositionReport
        }

        func run() async throws {
            var request = CompositionRequest(name: name, adapters: adapters, dataset: data, steps: steps, seed: seed)
            try request.validate()
            let client = daemon.client
            request.dataset = try await DatasetUpload(client: client).named(data, path: data)
            let (adapter, report) = try await composed(client, request)
            try output.print(Report(adapter: adapter, composed: report)) { text(adapter, report) }
        }

        private func composed(_ client: DaemonClient, _ request: CompositionRequest) async throws -> (AdapterRecord, CompositionReport) {
            let call = Call(
                method: .POST, path: Endpoint.compositions, headers: [("Content-Type", "application/json")],
                body: try client.encode(request), idleSeconds: 900)
            let status = StatusLine()
            defer { status.clear() }
            var last: CompositionEvent?
            try await client.lines(call) { line in
                let event = try client.decode(CompositionEvent.self, from: line)
                if let step = event.step, let steps = event.steps, let loss = event.bestLoss, let weights = event.bestWeights {
                    let text = "compose \(step)/\(steps)  best loss \(Amount.fixed(loss, 4))  weights "
                        + weights.map { Amount.fixed($0, 2) }.joined(separator: " ")
                    status.draw(String(text.prefix(status.width)))
                }
                guard event.isLast else { return .more }
                last = event
                return .enough
            }
            if let problem = last?.problem { throw CommandFailure(problem) }
            guard let report = last?.report, let adapter = last?.adapter else { throw DaemonError.lost("the composition has no end") }
            return (adapter, report)
        }

        private func text(_ adapter: AdapterRecord, _ report: CompositionReport) -> String {
            func loss(_ value: Double?) -> String { value.map { Amount.fixed($0, 4) } ?? "not finite" }
            let rows = [["base", "", loss(report.baseLoss)]]
                + zip(adapters, zip(report.weights, report.aloneLosses)).map { [$0, Amount.fixed($1.0, 4), loss($1.1)] }
                + [["all alike", "", loss(report.evenLoss)], [adapter.name, "", loss(report.loss)]]
            return "\(adapter.name): an adapter of \(adapter.baseModel), chosen by \(report.examples) examples (\(report.tokens) tokens)\n"
                + Table.text(["", "WEIGHT", "LOSS"], rows)
        }
    }
}
