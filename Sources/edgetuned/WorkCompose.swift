// A composition order: adapters and examples read, weights looked for within the budget, the mixture published.
import EdgeFormats
import EdgeJobs
import EdgeModel
import EdgeTensor
import EdgeTrain
import EdgeWire
import Foundation

func compose(_ order: WorkOrder.ComposeOrder, _ channel: WorkChannel) throws -> CompositionReport {
    let request = order.request
    let lines = try datasetReport(order.datasetPath).samples
    guard lines <= CompositionRequest.exampleLimit else {
        throw Problem(
            .badDataset, "the data set has \(lines) examples, and every evaluation goes through all of them; "
                + "use 1 to \(CompositionRequest.exampleLimit)", hint: "head -n 16 FILE > examples.jsonl")
    }
    let model = try BaseModel.open(path: order.modelPath)
    let examples = try examples(order.datasetPath, model)
    model.file.releaseHeader()
    let composition = try adapters(order, model)
    let kernels = try ProcessFacts.kernelSet(), spill = parent(of: order.outputDirectory)
    let spec = TrainingSpec(adapter: composition.spec, samplesPerStep: examples.count, maxSteps: 1)
    // Nothing is trained: of what only a step of training needs, the plan has the least.
    let limits = PlanLimits(
        budget: ByteCount(Int(clamping: order.budgetBytes)), threads: ProcessFacts.coreCount, compute: .f32, optimizer: .eightBit,
        spill: ByteCount(Int(clamping: BlobStore.freeBytes(spill) / 2)), appliesLayerByLayer: true, calibration: nil,
        weightsAreCached: false)
    let heldOut: HeldOutLoss
    do {
        heldOut = try HeldOutLoss(
            of: model, filling: composition.spec, modules: composition.modules, on: examples, spec: spec,
            process: try ProcessFacts.processMemory(), limits: limits)
    } catch PlanError.doesNotFit(let needed, let budget, _) {
        throw insufficient(UInt64(needed.bytes), UInt64(budget.bytes))
    }
    let outcome = try composition.search(
        heldOut, steps: request.steps, seed: request.seed, kernels: kernels, spillDirectory: spill,
        proceed: { guard !channel.isStopRequested else { throw Problem(.wrongState, "the composition was stopped") } },
        tried: { number, trial, best in
            channel.send(
                .composing(
                    CompositionEvent(
                        step: number, steps: request.steps, loss: trial.loss.isFinite ? trial.loss : nil, bestLoss: best.loss,
                        bestWeights: best.weights)))
        })
    let record = try CompositionRecord(order, outcome, examples: examples.count)
    let encoder = Wire.encoder()
    encoder.outputFormatting.insert(.prettyPrinted)
    try composition.publish(
        outcome.best.weights, to: order.outputDirectory, baseModel: order.baseModel,
        provenance: ["source": "composed", "base_fingerprint": order.modelDigest, "examples": order.datasetDigest],
        trainingJSON: Array(try encoder.encode(record)), modelCard: record.modelCard)
    return CompositionReport(
        weights: outcome.best.weights, examples: examples.count, tokens: outcome.tokens, loss: outcome.best.loss, baseLoss: outcome.base,
        aloneLosses: record.aloneLosses, evenLoss: record.evenLoss, steps: request.steps, plannedPeakBytes: UInt64(heldOut.plannedPeak.bytes),
        peakBytes: ProcessFacts.residentBytes().peak)
}

private func insufficient(_ needed: UInt64, _ budget: UInt64) -> Problem {
    Problem(
        .insufficientMemory, "composing needs \((needed + 1 << 20 - 1) >> 20) MiB, the budget is \(budget >> 20) MiB",
        hint: "fewer adapters at once, shorter examples, or when no job runs", requiredBytes: needed, budgetBytes: budget)
}

/// None is left out: each was chosen for what it shows.
private func examples(_ path: String, _ model: BaseModel) throws -> [TokenizedSample] {
    let samples = try LoadedSamples([path], model: model, sequenceLength: model.spec.contextLength, lossScope: .completions)
    guard samples.tooLongLines.isEmpty else {
        throw Problem(
            .badDataset, "longer than the model's context of \(model.spec.contextLength) tokens: lines "
                + samples.tooLongLines.map(String.init).joined(separator: ", "))
    }
    guard Dataset.lossTokens(samples.tokenized) > 0 else {
        throw Problem(.badDataset, "no token of the examples carries loss: an example needs an answer")
    }
    return samples.tokenized
}

private func adapters(_ order: WorkOrder.ComposeOrder, _ model: BaseModel) throws -> AdapterComposition {
    let largest = try order.adapterDirectories.map { try AdapterArtifact.tensorFileBytes($0) }.max()!
    func require(_ bytes: ByteCount) throws {
        let needed = ProcessFacts.idleBytes + UInt64(bytes.bytes)
        guard needed <= order.budgetBytes else { throw insufficient(needed, order.budgetBytes) }
    }
    // Before the first is read; then for all of them, with one that is being read.
    try require(LoadedAdapter.loadingBytes(largest))
    return try AdapterComposition(
        order.adapterDirectories.count, of: model.spec, reserve: { try require($0 + LoadedAdapter.loadingBytes(largest)) },
        read: { try LoadedAdapter(directory: order.adapterDirectories[$0], of: model.spec) })
}

/// `training.json` of a composition, and its card. The same order gives the same bytes.
private struct CompositionRecord: Encodable {
    struct Part: Encodable {
        let adapter: String
        let weight: Double
        /// sha256 of its `adapter_model.safetensors.lz4`.
        let sha256: String
    }
    let method = "lorahub"
    let baseModel: String
    let baseFingerprint: String
    let parts: [Part]
    /// `sha256:` of the data set.
    let examples: String
    let exampleCount: Int
    let lossTokens: Int
    let steps: Int
    let seed: UInt64
    /// On the examples, in nats per token; of a part nil where it was no number.
    let loss: Double
    let baseLoss: Double
    let aloneLosses: [Double?]
    let evenLoss: Double?

    init(_ order: WorkOrder.ComposeOrder, _ outcome: AdapterComposition.Outcome, examples count: Int) throws {
        baseModel = order.baseModel
        baseFingerprint = order.modelDigest
        parts = try zip(zip(order.request.adapters, order.adapterDirectories), outcome.best.weights).map { adapter, weight in
            Part(adapter: adapter.0, weight: weight, sha256: SHA256.hex(try AdapterArtifact.tensorDigest(adapter.1)))
        }
        examples = order.datasetDigest
        exampleCount = count
        lossTokens = outcome.tokens
        (steps, seed) = (order.request.steps, order.request.seed)
        (loss, baseLoss) = (outcome.best.loss, outcome.base)
        aloneLosses = outcome.alone.map { $0.isFinite ? $0 : nil }
        evenLoss = outcome.even.isFinite ? outcome.even : nil
    }

    var modelCard: String {
        let rows = zip(parts, aloneLosses).map { part, loss in
            "| \(part.adapter) | \(part.weight) | \(loss.map { "\($0)" } ?? "not finite") |"
        }
        return ([
            "# An adapter for \(baseModel)", "",
            "Composed by LoRAHub (arXiv:2307.13269): the weighted sums of A and of B of these adapters, by weights that \(exampleCount) "
                + "examples (\(examples)) chose in \(steps) evaluations, seed \(seed).", "",
            "| adapter | weight | loss by itself |", "|---|---|---|",
        ] + rows + ["", "Loss on the examples: \(loss), of the base \(baseLoss). Everything else is in `training.json`.", ""])
            .joined(separator: "\n")
    }
}
