// edgetune methods
import ArgumentParser
import EdgeWire

struct Methods: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "What each PEFT method would cost here, for one model.",
        discussion: """
            Computed as a job's plan is, for samples of one length; nothing is trained. `adapter:` in a job file takes a name of the
            first column; a method that the model's linears cannot have is left out. EXPORTS says who loads the adapter: peft where it
            has the method, adapters (AdapterHub's library) where that has, and gguf (llama.cpp) where it is exactly a LoRA; every one
            that is a change of weights alone can be merged. mtlora's row is of two tasks, each of which is exported by itself. FORWARD
            ONLY is the least memory of steps without a backward (zeroth_order: always). use_rslora and loraplus_lr_ratio change a
            LoRA's scaling and learning rate, and cost nothing.
            """)
    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @Argument(help: "A model that the daemon holds.") var model: String
    @Option(help: "Tokens of every sample.") var sequenceLen: Int?
    @Option(help: "Samples of a step.") var samplesPerStep: Int?
    @Option(help: "Names with commas, a regular expression, or all-linear.") var loraTargetModules: String?
    @Option(help: "900MiB, 2GB or 60%.") var memoryBudget: String?
    @Option(help: "Type of the products with frozen weights: auto, f32, bf16, f16 or int8.") var precision: Precision?

    func run() async throws {
        var request = MethodsRequest(baseModel: model)
        if let sequenceLen { request.sequenceLen = sequenceLen }
        if let samplesPerStep { request.samplesPerStep = samplesPerStep }
        if let loraTargetModules { request.loraTargetModules = JobFlags.targets(loraTargetModules) }
        request.memoryBudget = memoryBudget
        if let precision { request.precision = precision }
        let body = request
        let client = daemon.client
        let table = try await client.repeated { () async throws(DaemonError) in
            try await client.post(MethodTable.self, Endpoint.methods, body)
        }
        try output.print(table) { MethodText.whole(table) }
    }
}

private enum MethodText {
    static func whole(_ table: MethodTable) -> String {
        let rows = table.rows.map { row in
            [
                row.name, row.rank.map(String.init) ?? "-", "\(row.trainableParameters)",
                Amount.bytes(row.peakBytes) + (row.fits ? "" : " (does not fit)"),
                row.forwardOnlyPeakBytes.map(Amount.bytes) ?? "-",
                row.tokensPerSecond.map { "\(Int($0.rounded()))" } ?? "-", Amount.bytes(row.adapterBytes), row.exports.joined(separator: ", "),
            ]
        }
        return Table.text(["METHOD", "RANK", "TRAINABLE", "MEMORY", "FORWARD ONLY", "TOKENS/S", "ADAPTER", "EXPORTS"], rows)
            + "\n\nbudget: \(Amount.bytes(table.budgetBytes))" + (table.budgetReason.map { " (\($0))" } ?? "")
    }
}
