// A base and an adapter made one model: what is asked, what is said meanwhile, and what has come of it.

/// `POST /v1/adapters/{name}/merged`; answers with `MergeEvent` lines.
package struct MergeRequest: Codable, Equatable, Sendable {
    /// Of the weights that the adapter changes; nil: the base's own blocks where the adapter does no more than scale them, else Q8_0, or BF16
    /// where the base came from Hugging Face's files.
    package var format: MergeFormat?
    /// Of an adapter that has tasks, the one that is merged.
    package var task: String?
    /// Whether the held-out loss of the job is measured, with the adapter and merged.
    package var measure: Bool

    package init(format: MergeFormat? = nil, task: String? = nil, measure: Bool = true) {
        self.format = format
        self.task = task
        self.measure = measure
    }

    private enum CodingKeys: String, CodingKey { case format, task, measure }

    package init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        self.init(
            format: try values.decodeIfPresent(MergeFormat.self, forKey: .format),
            task: try values.decodeIfPresent(String.self, forKey: .task),
            measure: try values.decodeIfPresent(Bool.self, forKey: .measure) ?? true)
    }
}

package enum MergeFormat: String, CaseIterable, Codable, Sendable {
    case f16, bf16
    /// The base's own blocks, whose scales are multiplied: of adapters that do no more.
    case base
    case q8 = "q8_0", q4WithMinimum = "q4_1", q4 = "q4_0"
}

/// One line of a merge. The last has a report, or a problem.
package struct MergeEvent: Codable, Equatable, Sendable {
    package enum Phase: String, Codable, Sendable {
        /// Counted in bytes.
        case writing
        /// Counted in tokens.
        case measuring
    }
    package var phase: Phase?
    package var done: UInt64?
    package var total: UInt64?
    package var report: MergeReport?
    package var problem: Problem?

    package init(phase: Phase, done: UInt64, total: UInt64) {
        (self.phase, self.done, self.total) = (phase, done, total)
    }
    package init(report: MergeReport) { self.report = report }
    package init(problem: Problem) { self.problem = problem }

    package var isLast: Bool { report != nil || problem != nil }
}

package struct MergeReport: Codable, Equatable, Sendable {
    package struct Losses: Codable, Equatable, Sendable {
        /// Held-out tokens that carry loss.
        package var tokens: Int
        /// In nats per token, with the adapter beside the base.
        package var adapter: Double
        /// The same of the merged model.
        package var merged: Double
        package init(tokens: Int, adapter: Double, merged: Double) {
            self.tokens = tokens
            self.adapter = adapter
            self.merged = merged
        }
    }
    /// Of the weights that were changed: "Q8_0".
    package var format: String
    /// One file, or those of a directory; fetched one by one.
    package var files: [AdapterRecord.File]
    package var losses: Losses?
    /// Why there are no losses.
    package var notMeasured: String?

    package init(format: String, files: [AdapterRecord.File], losses: Losses? = nil, notMeasured: String? = nil) {
        self.format = format
        self.files = files
        self.losses = losses
        self.notMeasured = notMeasured
    }
}
