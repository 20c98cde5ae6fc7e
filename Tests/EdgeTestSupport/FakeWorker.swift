// A worker that follows a script: a shell program that answers orders with the protocol's lines.
import EdgeJobs
import EdgeWire
import Foundation

package enum FakeWorker {
    /// Writes the executable and returns its path.
    ///
    /// - Parameters:
    ///   - train: shell commands for a train order; `$order` is its line, `$dir` a place to remember things.
    ///   - together: for an order to train jobs together.
    ///   - togetherPlan: the answer to the order to plan that.
    ///   - importPlan: the answer to the order to plan an import.
    ///   - importing: shell commands for an import order; `$out` is the file to make.
    package static func write(
        in directory: String, train: String = "", together: String = "", togetherPlan: TogetherPlan? = nil,
        importPlan: WorkMessage = .plannedImport(outputBytes: 5, peakBytes: 1 << 20), importing: String? = nil
    ) throws -> String {
        let path = directory + "/worker-\(UInt32.random(in: 0 ... .max))"
        let model = try line(
            .inspectedModel(
                ModelReport(
                    architecture: "llama", title: nil, layers: 1, hiddenSize: 8, vocabulary: 8, contextLength: 8,
                    parameters: 8, quantisation: "F32", fileBytes: 8, targetModules: ["q_proj"])))
        let dataset = try line(.inspectedDataset(DatasetReport(samples: 1, kinds: ["text": 1])))
        let plan = try line(.planned(self.plan))
        let refusal = try line(
            .failure(Problem(.insufficientMemory, "needs 9 MiB", requiredBytes: 9 << 20, budgetBytes: 1 << 20)))
        let script = """
            #!/bin/sh
            dir='\(directory)'
            read -r order
            case "$order" in
            '{"plan"'*) case "$order" in *toolarge*) echo '\(refusal)';; *) echo '\(plan)';; esac ;;
            '{"plan_together"'*) echo "$order" >> "$dir/asked"; echo '\(try line(.plannedTogether(togetherPlan)))' ;;
            '{"train_together"'*)
            \(together)
            ;;
            '{"plan_import"'*) echo '\(try line(importPlan))' ;;
            '{"import_model"'*) out=$(echo "$order" | sed 's/.*"output_path":"\\([^"]*\\)".*/\\1/')
            \(try importing ?? makeModel())
            ;;
            '{"inspect_model"'*) echo '\(model)' ;;
            '{"inspect_dataset"'*) echo '\(dataset)' ;;
            '{"generate"'*) echo '\(try line(.generated(GenerateEvent(text: "hello"))))'
                sleep 0.3
                echo '\(try line(.generated(GenerateEvent(done: true, generatedTokens: 1))))' ;;
            '{"export"'*) out=$(echo "$order" | sed 's/.*"output_path":"\\([^"]*\\)".*/\\1/'); echo made > "$out"
                echo '\(try line(.exported(path: "x")))' ;;
            '{"train"'*)
            out=$(echo "$order" | sed 's/.*"directory":"\\([^"]*\\)".*/\\1/')
            \(train)
            ;;
            esac
            """
        try script.write(toFile: path, atomically: true, encoding: .utf8)
        chmod(path, 0o755)
        return path
    }

    /// Makes the file of an import, under its final name only when it is complete.
    package static func makeModel() throws -> String {
        """
        echo '\(try line(.imported(bytes: 2)))'
        echo made > "$out.part"; mv "$out.part" "$out"
        echo '\(try line(.importedModel))'
        """
    }

    package static let plan = PlanReport(
        pools: [], peakBytes: 1, budgetBytes: 2, choices: [], precision: .int8, trainableParameters: 1, samples: 1, heldOutSamples: 0,
        tooLongSamples: 0, tooLongLines: [], totalSteps: 3)

    package static func line(_ message: WorkMessage) throws -> String {
        String(decoding: try Wire.encoder().encode(message), as: UTF8.self)
    }

    package static func step(_ step: Int) throws -> String {
        try line(
            .step(
                JobProgress(
                    step: step, totalSteps: 3, epoch: 0, loss: 1, learningRate: 1, gradNorm: 1, tokensPerSecond: 1,
                    rssBytes: 7 << 20, plannedPeakBytes: 8 << 20, budgetBytes: 9 << 20, etaSeconds: nil, evalLoss: nil,
                    bestEvalLoss: nil)))
    }

    /// Steps, then an adapter.
    package static func succeed() throws -> String {
        """
        echo '\(try step(1))'
        mkdir -p "$out/adapter"; echo tensors > "$out/adapter/adapter_model.safetensors.lz4"
        echo '\(try line(.trained))'
        """
    }

    /// One step, then waits for `stop` and answers it.
    package static func waitForStop() throws -> String {
        """
        echo '\(try step(1))'
        read -r signal && echo '\(try line(.stopped(step: 1)))'
        """
    }
}
