// Ranks for a job's linears by how much each matters to its data: what is said on the way, and what has come of it.

/// `POST /v1/ranks?samples=32&budget=900MiB`, with a job as its body; answers with lines of this. The last has a report or a problem.
package struct RankEvent: Codable, Equatable, Sendable {
    /// Samples that are done, and of how many.
    package var sample: Int?
    package var samples: Int?
    package var report: RankReport?
    package var problem: Problem?

    package init(sample: Int, of samples: Int) { (self.sample, self.samples) = (sample, samples) }
    package init(report: RankReport) { self.report = report }
    package init(problem: Problem) { self.problem = problem }

    package var isLast: Bool { report != nil || problem != nil }
}

package struct RankReport: Codable, Equatable, Sendable {
    package static let defaultSamples = 32, sampleLimit = 4096

    package struct Row: Codable, Equatable, Sendable {
        /// Its path, as in `rank_pattern`.
        package var linear: String
        /// The gradient's length, ‖dL/dW‖: the root mean square over the samples.
        package var importance: Double
        package var rank: Int

        package init(linear: String, importance: Double, rank: Int) {
            self.linear = linear
            self.importance = importance
            self.rank = rank
        }
    }

    /// By layer, and then in the layer's order.
    package var rows: [Row]
    /// For the job: those that differ from its `lora_r`, and the alphas that leave their scaling what it is.
    package var rankPattern: [String: Int]
    package var alphaPattern: [String: Double]
    /// Samples that were looked at, and their tokens that carry loss.
    package var samples: Int
    package var tokens: Int
    /// Elements of A and B with these ranks, and with the job's `lora_r` everywhere.
    package var parameters: Int
    package var uniformParameters: Int
    /// What the job was to fit with these ranks, and its plan's peak; nil: no budget was named.
    package var budgetBytes: UInt64?
    package var budgetReason: String?
    package var jobPeakBytes: UInt64?
    /// Of the measurement: what was planned, and the most that the worker has held.
    package var plannedPeakBytes: UInt64
    package var peakBytes: UInt64

    package init(
        rows: [Row], rankPattern: [String: Int], alphaPattern: [String: Double], samples: Int, tokens: Int, parameters: Int,
        uniformParameters: Int, plannedPeakBytes: UInt64, peakBytes: UInt64
    ) {
        self.rows = rows
        self.rankPattern = rankPattern
        self.alphaPattern = alphaPattern
        self.samples = samples
        self.tokens = tokens
        self.parameters = parameters
        self.uniformParameters = uniformParameters
        self.plannedPeakBytes = plannedPeakBytes
        self.peakBytes = peakBytes
    }
}
