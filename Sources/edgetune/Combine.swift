// edgetune adapters combine
import ArgumentParser
import EdgeWire

extension Adapters {
    struct Combine: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make one adapter of several of the same model, or one of a lower rank.",
            discussion: """
                linear           the weighted sum of the matrices; of adapters of one rank
                cat              the weighted sum of what they change, exactly; the ranks add up
                svd              the nearest to that of --rank
                truncate         the first --rank ranks of one adapter: what a DyLoRA is trained for
                ties             TIES: the largest elements, the sign that most agree on, their mean
                dare_linear      DARE: a random part of the elements, grown by what is left out; dare_ties likewise
                magnitude_prune  the largest elements, summed

                As PEFT's add_weighted_adapter. A lower rank of one adapter: combine NAME --combination svd --rank 4 --name small
                """)
        @OptionGroup var daemon: DaemonOptions
        @OptionGroup var output: OutputOptions
        @Argument(help: "Names of adapters that the daemon holds.") var adapters: [String]
        @Option(help: "What to call the new one.") var name: String
        @Option(help: "Weights with commas, one an adapter. Default: 1 each.") var weights: String?
        @Option(help: "linear, cat, svd, truncate, ties, dare_linear, dare_ties or magnitude_prune.") var combination = CombinationKind.linear
        @Option(help: "The part of the elements that pruning leaves, above 0 to 1.") var density: Double?
        @Option(help: "Rank of svd and truncate.") var rank: Int?
        @Option(help: "Seed of dare_linear and dare_ties.") var seed: UInt64?

        func run() async throws {
            var request = CombinationRequest(
                name: name, adapters: zip(adapters, try parsedWeights()).map { .init(adapter: $0, weight: $1) }, combination: combination)
            (request.density, request.rank, request.seed) = (density, rank, seed)
            try request.validate()
            let record = try await daemon.client.post(AdapterRecord.self, Endpoint.combinations, request)
            try output.print(record) { "\(record.name): an adapter of \(record.baseModel)" }
        }

        private func parsedWeights() throws -> [Double] {
            guard let weights else { return [Double](repeating: 1, count: adapters.count) }
            let numbers = weights.split(separator: ",", omittingEmptySubsequences: false).map { Double($0) }
            guard numbers.count == adapters.count, numbers.allSatisfy({ $0?.isFinite == true }) else {
                throw CommandFailure(.usage, "--weights \(weights) is not \(adapters.count) numbers with commas, one an adapter")
            }
            return numbers.compactMap { $0 }
        }
    }
}

extension CombinationKind: ExpressibleByArgument {}
