// What the daemon says of jobs: status, events, plan. Within 1.x fields are only added.
import Foundation

package enum JobState: String, Codable, CaseIterable, Sendable {
    case queued, running, pausing, paused, cancelling, cancelled, failed, succeeded

    package var isFinal: Bool { self == .cancelled || self == .failed || self == .succeeded }
}

package struct JobStatus: Codable, Equatable, Sendable {
    package var id: String
    package var name: String
    package var state: JobState
    /// Why it is in this state, for people: "waiting for j-…", "paused by request".
    package var reason: String?
    package var ownerUid: UInt32
    package var createdAt: Date
    package var startedAt: Date?
    package var finishedAt: Date?
    /// Times a worker was started for it.
    package var runs: Int
    package var request: JobRequest
    package var progress: JobProgress?
    package var plan: PlanReport?
    package var problem: Problem?
    /// Name of the adapter, once published.
    package var adapter: String?
    /// What `max_time` limits; nil before the first run.
    package var runSeconds: Double?

    package init(
        id: String, name: String, state: JobState, reason: String?, ownerUid: UInt32, createdAt: Date,
        startedAt: Date?, finishedAt: Date?, runs: Int, request: JobRequest, progress: JobProgress?,
        plan: PlanReport?, problem: Problem?, adapter: String?
    ) {
        self.id = id
        self.name = name
        self.state = state
        self.reason = reason
        self.ownerUid = ownerUid
        self.createdAt = createdAt
        self.startedAt = startedAt
        self.finishedAt = finishedAt
        self.runs = runs
        self.request = request
        self.progress = progress
        self.plan = plan
        self.problem = problem
        self.adapter = adapter
    }
}

/// Where a run stands. Every figure is of the last step, unless it says otherwise.
package struct JobProgress: Codable, Equatable, Sendable {
    package var step: Int
    package var totalSteps: Int
    package var epoch: Double
    package var loss: Double
    package var learningRate: Double
    package var gradNorm: Double
    package var tokensPerSecond: Double
    package var rssBytes: UInt64
    package var plannedPeakBytes: UInt64
    package var budgetBytes: UInt64
    package var etaSeconds: Double?
    package var evalLoss: Double?
    package var bestEvalLoss: Double?

    package init(
        step: Int, totalSteps: Int, epoch: Double, loss: Double, learningRate: Double, gradNorm: Double,
        tokensPerSecond: Double, rssBytes: UInt64, plannedPeakBytes: UInt64, budgetBytes: UInt64,
        etaSeconds: Double?, evalLoss: Double?, bestEvalLoss: Double?
    ) {
        self.step = step
        self.totalSteps = totalSteps
        self.epoch = epoch
        self.loss = loss
        self.learningRate = learningRate
        self.gradNorm = gradNorm
        self.tokensPerSecond = tokensPerSecond
        self.rssBytes = rssBytes
        self.plannedPeakBytes = plannedPeakBytes
        self.budgetBytes = budgetBytes
        self.etaSeconds = etaSeconds
        self.evalLoss = evalLoss
        self.bestEvalLoss = bestEvalLoss
    }
}

/// One line of `/v1/jobs/{id}/events`. `seq` counts from 1 per job and is stored before it is sent.
package struct JobEvent: Codable, Equatable, Sendable {
    package var seq: Int
    package var at: Date
    package var event: Kind

    package init(seq: Int, at: Date, event: Kind) {
        self.seq = seq
        self.at = at
        self.event = event
    }

    /// Encoded beside `seq` and `at` as `"type"` and that type's own object.
    package enum Kind: Equatable, Sendable {
        case state(JobState, reason: String?)
        case plan(PlanReport)
        case step(JobProgress)
        case evaluation(EvaluationReport)
        case checkpoint(step: Int)
        case log(String)
        case problem(Problem)
        /// Sent, never stored: the connection is alive.
        case heartbeat
        /// Always the last line of a finished job's events.
        case end(JobState)
    }

    /// Types of this release. A reader skips others: within 1.x some may be added.
    package static let knownTypes = [
        "state", "plan", "step", "evaluation", "checkpoint", "log", "problem", "heartbeat", "end",
    ]

    private enum CodingKeys: String, CodingKey {
        case seq, at, type, state, reason, plan, progress, evaluation, step, message, problem
    }

    package init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        seq = try values.decode(Int.self, forKey: .seq)
        at = try values.decode(Date.self, forKey: .at)
        let type = try values.decode(String.self, forKey: .type)
        switch type {
        case "state":
            event = .state(
                try values.decode(JobState.self, forKey: .state),
                reason: try values.decodeIfPresent(String.self, forKey: .reason))
        case "plan": event = .plan(try values.decode(PlanReport.self, forKey: .plan))
        case "step": event = .step(try values.decode(JobProgress.self, forKey: .progress))
        case "evaluation": event = .evaluation(try values.decode(EvaluationReport.self, forKey: .evaluation))
        case "checkpoint": event = .checkpoint(step: try values.decode(Int.self, forKey: .step))
        case "log": event = .log(try values.decode(String.self, forKey: .message))
        case "problem": event = .problem(try values.decode(Problem.self, forKey: .problem))
        case "heartbeat": event = .heartbeat
        case "end": event = .end(try values.decode(JobState.self, forKey: .state))
        default:
            throw DecodingError.dataCorruptedError(
                forKey: .type, in: values, debugDescription: "unknown event type \"\(type)\"")
        }
    }

    package func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: CodingKeys.self)
        try values.encode(seq, forKey: .seq)
        try values.encode(at, forKey: .at)
        try values.encode(event.type, forKey: .type)
        switch event {
        case .state(let state, let reason):
            try values.encode(state, forKey: .state)
            try values.encodeIfPresent(reason, forKey: .reason)
        case .plan(let plan): try values.encode(plan, forKey: .plan)
        case .step(let progress): try values.encode(progress, forKey: .progress)
        case .evaluation(let evaluation): try values.encode(evaluation, forKey: .evaluation)
        case .checkpoint(let step): try values.encode(step, forKey: .step)
        case .log(let message): try values.encode(message, forKey: .message)
        case .problem(let problem): try values.encode(problem, forKey: .problem)
        case .heartbeat: break
        case .end(let state): try values.encode(state, forKey: .state)
        }
    }
}

extension JobEvent.Kind {
    package var type: String {
        switch self {
        case .state: "state"
        case .plan: "plan"
        case .step: "step"
        case .evaluation: "evaluation"
        case .checkpoint: "checkpoint"
        case .log: "log"
        case .problem: "problem"
        case .heartbeat: "heartbeat"
        case .end: "end"
        }
    }
}

package struct EvaluationReport: Codable, Equatable, Sendable {
    package var step: Int
    /// Mean negative log-likelihood per held-out token that carries loss, in nats.
    package var loss: Double
    package var perplexity: Double
    package var tokens: Int
    package var isBest: Bool

    package init(step: Int, loss: Double, perplexity: Double, tokens: Int, isBest: Bool) {
        self.step = step
        self.loss = loss
        self.perplexity = perplexity
        self.tokens = tokens
        self.isBest = isBest
    }
}

/// The memory plan of a job, before it starts.
/// One thing that a plan has traded for memory.
package struct PlanTrade: Codable, Equatable, Sendable {
    package var what: String
    /// How much larger the peak would be without it.
    package var savesBytes: UInt64
    /// How much longer a step is predicted to take than without it, as a share; nil where the board has not been measured.
    package var costsTime: Double?
    package init(what: String, savesBytes: UInt64, costsTime: Double?) {
        self.what = what
        self.savesBytes = savesBytes
        self.costsTime = costsTime
    }
}

package struct PlanReport: Codable, Equatable, Sendable {
    package struct Pool: Codable, Equatable, Sendable {
        package var name: String
        package var bytes: UInt64
        package init(name: String, bytes: UInt64) {
            self.name = name
            self.bytes = bytes
        }
    }
    package var pools: [Pool]
    package var peakBytes: UInt64
    package var budgetBytes: UInt64
    /// Which bound the budget is, the least of all: "MemAvailable less a tenth". Nil in a plan that was stored before it
    /// was told.
    package var budgetReason: String?
    /// What was traded for memory, in words, in the order in which it was taken.
    package var choices: [String]
    /// What products with frozen weights are computed in: the request's, or what `auto` has become. Nil in a plan that was
    /// stored before there was a choice.
    package var precision: Precision?
    package var trainableParameters: Int
    package var samples: Int
    package var heldOutSamples: Int
    /// Samples longer than `sequence_len`: left out, by line number (the first 100).
    package var tooLongSamples: Int
    package var tooLongLines: [Int]
    package var totalSteps: Int
    /// What the worker measured of itself before the run's own memory: the same job is planned with the same number again.
    package var processBytes: UInt64?
    /// Tokens of the largest micro-batch.
    package var microBatchTokens: Int?
    /// Disk for layer inputs that are not kept in memory.
    package var spillBytes: UInt64?
    /// `choices`, with their figures.
    package var trades: [PlanTrade]?
    /// Predicted from a measurement of this board; nil where there is none.
    package var tokensPerSecond: Double?
    package var totalSeconds: Double?

    package init(
        pools: [Pool], peakBytes: UInt64, budgetBytes: UInt64, choices: [String], precision: Precision?,
        trainableParameters: Int, samples: Int, heldOutSamples: Int, tooLongSamples: Int, tooLongLines: [Int], totalSteps: Int,
        budgetReason: String? = nil
    ) {
        self.budgetReason = budgetReason
        self.pools = pools
        self.peakBytes = peakBytes
        self.budgetBytes = budgetBytes
        self.choices = choices
        self.precision = precision
        self.trainableParameters = trainableParameters
        self.samples = samples
        self.heldOutSamples = heldOutSamples
        self.tooLongSamples = tooLongSamples
        self.tooLongLines = tooLongLines
        self.totalSteps = totalSteps
    }
}

/// `GET /v1/jobs`.
package struct JobList: Codable, Equatable, Sendable {
    package var jobs: [JobStatus]
    package init(jobs: [JobStatus]) { self.jobs = jobs }
}
