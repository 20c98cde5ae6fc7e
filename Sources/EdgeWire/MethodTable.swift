// What every PEFT method would cost on this machine, for one model and budget: what is asked, and the table.

/// `POST /v1/methods`; answers with a `MethodTable`.
package struct MethodsRequest: Codable, Equatable, Sendable {
    package var baseModel: String
    /// Tokens of every sample.
    package var sequenceLen = 512
    package var samplesPerStep = 8
    package var loraTargetModules: TargetModules = .pattern("all-linear")
    package var memoryBudget: String?
    package var precision: Precision = .auto

    package init(baseModel: String) { self.baseModel = baseModel }

    package enum CodingKeys: String, CodingKey, CaseIterable {
        case baseModel, sequenceLen, samplesPerStep, loraTargetModules, memoryBudget, precision
    }

    /// Absent keys take their defaults.
    package init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        self.init(baseModel: try values.decode(String.self, forKey: .baseModel))
        sequenceLen = try values.decodeIfPresent(Int.self, forKey: .sequenceLen) ?? sequenceLen
        samplesPerStep = try values.decodeIfPresent(Int.self, forKey: .samplesPerStep) ?? samplesPerStep
        loraTargetModules = try values.decodeIfPresent(TargetModules.self, forKey: .loraTargetModules) ?? loraTargetModules
        memoryBudget = try values.decodeIfPresent(String.self, forKey: .memoryBudget)
        precision = try values.decodeIfPresent(Precision.self, forKey: .precision) ?? precision
    }

    /// The job that a method's row is the plan of.
    package func job(adapter: String) -> JobRequest {
        var job = JobRequest(baseModel: baseModel, datasets: [DatasetReference(path: "samples")])
        job.adapter = adapter
        if adapter == "mtlora" { job.tasks = ["a", "b"] }
        job.sequenceLen = sequenceLen
        (job.microBatchSize, job.gradientAccumulationSteps) = (1, samplesPerStep)
        job.loraTargetModules = loraTargetModules
        job.memoryBudget = memoryBudget
        job.precision = precision
        return job
    }
}

package struct MethodTable: Codable, Equatable, Sendable {
    package struct Row: Codable, Equatable, Sendable {
        /// For a job's `adapter`.
        package var name: String
        /// The method's own; nil: it has none.
        package var rank: Int?
        package var trainableParameters: Int
        /// Of the plan; of a method that does not fit, the least that it needs.
        package var peakBytes: UInt64
        package var fits: Bool
        /// The least that it needs with `zeroth_order: always`; nil: it has no steps without a backward.
        package var forwardOnlyPeakBytes: UInt64?
        /// Predicted; nil: the board is not measured yet, or it does not fit.
        package var tokensPerSecond: Double?
        /// Of the tensors' file before it is compressed.
        package var adapterBytes: UInt64
        /// Who else loads the adapter: `peft` or `adapters` where it has the method, and `gguf` where it is exactly a LoRA.
        package var exports: [String]

        package init(
            name: String, rank: Int?, trainableParameters: Int, peakBytes: UInt64, fits: Bool, tokensPerSecond: Double?,
            adapterBytes: UInt64, exports: [String], forwardOnlyPeakBytes: UInt64? = nil
        ) {
            self.forwardOnlyPeakBytes = forwardOnlyPeakBytes
            self.name = name
            self.rank = rank
            self.trainableParameters = trainableParameters
            self.peakBytes = peakBytes
            self.fits = fits
            self.tokensPerSecond = tokensPerSecond
            self.adapterBytes = adapterBytes
            self.exports = exports
        }
    }

    package var rows: [Row]
    package var budgetBytes: UInt64
    package var budgetReason: String?
    package init(rows: [Row], budgetBytes: UInt64, budgetReason: String?) {
        self.rows = rows
        self.budgetBytes = budgetBytes
        self.budgetReason = budgetReason
    }
}
