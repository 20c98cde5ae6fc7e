// What an artifact says of how it was made: `training.json` and the model card.
import EdgeTrain
import EdgeWire

/// `training.json`. No times and no host: the same job gives the same bytes.
struct TrainingRecord: Encodable {
    let baseFingerprint: String
    let baseModel: String
    let quantisation: String
    let kernelSet: String
    let precision: String
    let request: JobRequest
    /// Its name, and what there is to it: "rank 16, alpha 32".
    let method: String
    let adapter: String
    let plan: PlanReport
    let evaluations: [EvaluationReport]
    let keptStep: Int
    let steps: Int
    let lastLoss: Double
    let endedEarly: Bool
    /// What training ended by, when that was no end that was asked for.
    let problem: String?

    var modelCard: String {
        var lines = [
            "---", "base_model: \(baseModel)", "library_name: peft", "tags: [\(method), edgetune]", "---", "",
            "# Adapter (\(method)) for \(baseModel)", "",
            "Trained by edgetune on frozen \(quantisation) weights, \(adapter), "
                + "\(plan.trainableParameters) trainable parameters.", "",
            "| | |", "|---|---|",
            "| training samples | \(plan.samples) |", "| held-out samples | \(plan.heldOutSamples) |",
            "| steps | \(steps)\(endedEarly ? " (ended early)" : "") |", "| adapter of step | \(keptStep) |",
            "| learning rate | \(request.learningRate), \(request.lrScheduler.rawValue) |",
            "| seed | \(request.seed) |",
        ]
        if let problem { lines.append("| training failed | \(problem.replacing("|", with: "/")) |") }
        if let first = evaluations.first, let kept = evaluations.first(where: { $0.step == keptStep }) {
            lines.append("| held-out loss, base | \(first.loss) |")
            lines.append("| held-out loss, this adapter | \(kept.loss) |")
        }
        lines += [
            "", "```python", "from peft import PeftModel",
            "model = PeftModel.from_pretrained(base, \"path/to/this/directory\")  # after `edgetune export --format peft`",
            "```", "", "Base fingerprint: `\(baseFingerprint)`. Everything else is in `training.json`.", "",
        ]
        return lines.joined(separator: "\n")
    }
}

extension EvaluationReport {
    init(_ evaluation: Evaluation, isBest: Bool) {
        self.init(
            // JSON has no infinity, and e^710 is one.
            step: evaluation.step, loss: evaluation.loss, perplexity: min(evaluation.perplexity, .greatestFiniteMagnitude),
            tokens: evaluation.tokens, isBest: isBest)
    }
}
