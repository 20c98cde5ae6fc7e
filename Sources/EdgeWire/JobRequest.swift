// What a user asks for. The key names on the wire are PEFT's and axolotl's, in snake case; a job file in YAML
// has the same keys. Values are checked by `validate()`, which knows ranges but neither models nor memory.
import Foundation

/// One fine-tuning job as asked for. Everything but the model and the data set has a default.
package struct JobRequest: Codable, Equatable, Sendable {
    /// A name for people: 1 to 64 of `[A-Za-z0-9._-]`. It also names the adapter. Default: the job's id.
    package var name: String?
    /// Name of a model that the daemon holds (`edgetune models add`).
    package var baseModel: String
    /// Names or `sha256:` digests of data sets that the daemon holds. In a job file these are paths that the
    /// client uploads; the daemon never opens a path that a client named.
    package var datasets: [DatasetReference]
    /// Held-out part: below 1 a fraction of the samples, else a count. 0: no evaluation.
    package var valSetSize: Double = 0.1

    /// The PEFT method; `edgetune methods` lists them. What a model can have of them is checked when it is planned.
    package var adapter: String = "lora"
    /// Nil: the method's own, for LoRA 16.
    package var loraR: Int?
    /// Nil: the method's own, for LoRA 32.
    package var loraAlpha: Double?
    /// Ranks, and alphas, of modules whose path ends in what an expression matches; the first in the order of the expressions counts.
    package var rankPattern: [String: Int]?
    package var alphaPattern: [String: Double]?
    /// What a LoRA's A and B begin as.
    package var initLoraWeights: LoRAStart?
    /// Of the eva start: each direction is divided by the square root of its singular value.
    package var evaWhiten: Bool?
    /// Of the loftq start: name of the model that the base was quantised from.
    package var originalModel: String?
    /// alpha is divided by the square root of the rank, and not by the rank.
    package var useRslora: Bool?
    /// LoKr: the sizes of its first matrix, where they divide the linear's, -1: next below their roots; nil: 8. And whether that matrix is a
    /// product, too, where the rank is small for it.
    package var decomposeFactor: Int?
    package var decomposeBoth: Bool?
    /// OFT: the size of its blocks, or the linear's next divisor; nil: 32. And whether they are the Cayley transform's series (nil: yes), or it.
    package var oftBlockSize: Int?
    package var useCayleyNeumann: Bool?
    /// MixLoRA: how many experts an MLP has (nil: 8), how many of them a token (nil: 2), and what their balance weighs in the loss (nil: 0.01).
    package var numExperts: Int?
    package var topK: Int?
    package var routerAuxLossCoef: Double?
    /// Prefix and prompt tuning: how many tokens there are before each sample's own; nil: 20. And what they begin as; nil: samples.
    package var numVirtualTokens: Int?
    package var promptTuningInit: PromptStart?
    /// MTLoRA: what the samples' `task` may be, and the rank of what a task has for itself; nil: lora_r.
    package var tasks: [String]?
    package var taskR: Int?
    /// LoRA and DoRA: norms that are trained, too, by the ends of their names, as PEFT's.
    package var modulesToSave: [String]?
    /// Trainable tokens, and LoRA's and DoRA's beside the linears: their numbers, and others as text, each of which is one token.
    package var tokenIndices: [Int]?
    package var trainableTokens: [String]?
    /// Ladder side-tuning: the hidden size over the side network's, which it divides; nil: 8. Bottleneck adapters: the hidden size over the
    /// bottleneck's (nil: the library's default of the method), what is between the two matrices, what the result is multiplied by, and whether
    /// a layer has one after attention, and one after the MLP.
    package var reductionFactor: Double?
    package var nonLinearity: BottleneckNonLinearity?
    package var adapterScaling: Double?
    package var mhAdapter: Bool?
    package var outputAdapter: Bool?
    /// AdaLoRA, whose first rank is `lora_r`: the rank that a linear is left with in the mean (nil: two thirds), and the steps before the
    /// first rank is taken away, after the last, and from one time to the next.
    package var targetR: Int?
    package var tinit: Int?
    package var tfinal: Int?
    package var deltaT: Int?
    /// AdaLoRA: of the moving means of a parameter's importance, and of how much that varies; not the optimizer's.
    package var beta1: Double?
    package var beta2: Double?
    /// AdaLoRA: what the distance of its matrices from orthogonal ones weighs in the loss.
    package var orthRegWeight: Double?
    /// LoRA+: what the learning rate of every B is multiplied by.
    package var loraplusLrRatio: Double?
    package var loraDropout: Double = 0
    /// Module names, one regular expression that must match the whole module path, or `all-linear`.
    package var loraTargetModules: TargetModules = .pattern("all-linear")
    /// Layers that get an adapter; nil: all. The backward pass stops at the lowest.
    package var layersToTransform: [Int]?
    /// What the layers below those make of each sample is rounded to this and kept on disk from the first epoch on.
    package var activationCache: ActivationCacheFormat?

    /// An adapter that the daemon holds, whose weights training begins from; nil: PEFT's start. In a job file it may be a path: of a
    /// PEFT directory or a GGUF adapter.
    package var initFromAdapter: String?

    /// Longest sample in tokens. A longer one is left out and reported, never cut.
    package var sequenceLen: Int = 512
    /// Samples per micro-batch, packed without padding.
    package var microBatchSize: Int = 1
    /// Micro-batches per optimizer step.
    package var gradientAccumulationSteps: Int = 8
    package var numEpochs: Double = 3
    /// Optimizer steps; overrides `num_epochs`.
    package var maxSteps: Int?
    package var learningRate: Double = 2e-4
    package var lrScheduler: LearningRateSchedule = .cosine
    package var warmupSteps: Int?
    package var warmupRatio: Double?
    package var weightDecay: Double = 0
    /// AdamW, by how its moments are stored.
    package var optimizer: Optimizer = .auto
    package var adamBeta1: Double = 0.9
    package var adamBeta2: Double = 0.999
    package var adamEpsilon: Double = 1e-8
    /// Whether steps may do without a backward (MeZO, arXiv:2305.17333); nil: never.
    package var zerothOrder: ZerothOrderSteps?
    /// How far from the adapter such steps compare losses; nil: 0.001.
    package var mezoEps: Double?
    /// Global norm that gradients are clipped to; 0: no clipping. Without a backward: the gradient along a step's direction.
    package var maxGradNorm: Double = 1
    package var seed: UInt64 = 42
    /// The type that products with the frozen weights are computed in.
    package var precision: Precision = .auto
    /// Loss on every token instead of on the assistant's answers only.
    package var trainOnInputs: Bool = false
    /// Steps between evaluations; nil: once an epoch.
    package var evalSteps: Int?
    /// Steps between checkpoints; nil: the daemon's default.
    package var saveSteps: Int?
    /// Evaluations without improvement after which the run ends; nil: never.
    package var earlyStoppingPatience: Int?
    /// `"900MiB"`, `"2GB"` or `"60%"` of the machine; nil: the daemon's default.
    package var memoryBudget: String?
    /// Worker threads; nil: all cores.
    package var threads: Int?

    /// Of two jobs that wait, the one with more runs first, and takes over from a running one with less. Above 0: for
    /// administrators. Nil: 0.
    package var priority: Int?
    /// `"6h"`, `"1d12h"` or Lightning's `"00:06:00:00"` of running, all runs together, waiting and suspension not counted: the run
    /// then ends as an early-stopped one does. Nil: no limit.
    package var maxTime: String?
    /// `"01:00-06:00"`, local time: it runs only then. Nil: whenever the daemon lets it.
    package var runBetween: String?

    package init(baseModel: String, datasets: [DatasetReference]) {
        self.baseModel = baseModel
        self.datasets = datasets
    }

    package enum CodingKeys: String, CodingKey, CaseIterable {
        case name, baseModel, datasets, valSetSize
        case adapter, loraR, loraAlpha, rankPattern, alphaPattern, initLoraWeights, useRslora, loraplusLrRatio, loraDropout, loraTargetModules, layersToTransform, activationCache
        case decomposeFactor, decomposeBoth, oftBlockSize, useCayleyNeumann, tasks, taskR, targetR, tinit, tfinal, deltaT, beta1, beta2, orthRegWeight
        case evaWhiten, originalModel
        case numVirtualTokens, promptTuningInit
        case modulesToSave, tokenIndices, trainableTokens
        case reductionFactor, nonLinearity, adapterScaling, mhAdapter, outputAdapter
        case numExperts, topK, routerAuxLossCoef
        case initFromAdapter
        case sequenceLen, microBatchSize, gradientAccumulationSteps, numEpochs, maxSteps
        case learningRate, lrScheduler, warmupSteps, warmupRatio, weightDecay
        case zerothOrder, mezoEps
        case optimizer, adamBeta1, adamBeta2, adamEpsilon, maxGradNorm, seed, precision, trainOnInputs
        case evalSteps, saveSteps, earlyStoppingPatience, memoryBudget, threads
        case priority, maxTime, runBetween
    }

    /// Absent keys take their defaults.
    package init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        self.init(
            baseModel: try values.decode(String.self, forKey: .baseModel),
            datasets: try values.decode([DatasetReference].self, forKey: .datasets))
        func read<Value: Decodable>(_ key: CodingKeys, into value: inout Value) throws {
            if let found = try values.decodeIfPresent(Value.self, forKey: key) { value = found }
        }
        func read<Value: Decodable>(_ key: CodingKeys, into value: inout Value?) throws {
            value = try values.decodeIfPresent(Value.self, forKey: key)
        }
        try read(.name, into: &name)
        try read(.valSetSize, into: &valSetSize)
        try read(.adapter, into: &adapter)
        try read(.loraR, into: &loraR)
        try read(.loraAlpha, into: &loraAlpha)
        try read(.rankPattern, into: &rankPattern)
        try read(.alphaPattern, into: &alphaPattern)
        try read(.initLoraWeights, into: &initLoraWeights)
        try read(.evaWhiten, into: &evaWhiten)
        try read(.originalModel, into: &originalModel)
        try read(.useRslora, into: &useRslora)
        try read(.loraplusLrRatio, into: &loraplusLrRatio)
        try read(.decomposeFactor, into: &decomposeFactor)
        try read(.decomposeBoth, into: &decomposeBoth)
        try read(.oftBlockSize, into: &oftBlockSize)
        try read(.useCayleyNeumann, into: &useCayleyNeumann)
        try read(.numExperts, into: &numExperts)
        try read(.topK, into: &topK)
        try read(.routerAuxLossCoef, into: &routerAuxLossCoef)
        try read(.numVirtualTokens, into: &numVirtualTokens)
        try read(.promptTuningInit, into: &promptTuningInit)
        try read(.tasks, into: &tasks)
        try read(.taskR, into: &taskR)
        try read(.modulesToSave, into: &modulesToSave)
        try read(.tokenIndices, into: &tokenIndices)
        try read(.trainableTokens, into: &trainableTokens)
        try read(.reductionFactor, into: &reductionFactor)
        try read(.nonLinearity, into: &nonLinearity)
        try read(.adapterScaling, into: &adapterScaling)
        try read(.mhAdapter, into: &mhAdapter)
        try read(.outputAdapter, into: &outputAdapter)
        try read(.targetR, into: &targetR)
        try read(.tinit, into: &tinit)
        try read(.tfinal, into: &tfinal)
        try read(.deltaT, into: &deltaT)
        try read(.beta1, into: &beta1)
        try read(.beta2, into: &beta2)
        try read(.orthRegWeight, into: &orthRegWeight)
        try read(.loraDropout, into: &loraDropout)
        try read(.loraTargetModules, into: &loraTargetModules)
        try read(.layersToTransform, into: &layersToTransform)
        try read(.activationCache, into: &activationCache)
        try read(.initFromAdapter, into: &initFromAdapter)
        try read(.sequenceLen, into: &sequenceLen)
        try read(.microBatchSize, into: &microBatchSize)
        try read(.gradientAccumulationSteps, into: &gradientAccumulationSteps)
        try read(.numEpochs, into: &numEpochs)
        try read(.maxSteps, into: &maxSteps)
        try read(.learningRate, into: &learningRate)
        try read(.lrScheduler, into: &lrScheduler)
        try read(.warmupSteps, into: &warmupSteps)
        try read(.warmupRatio, into: &warmupRatio)
        try read(.weightDecay, into: &weightDecay)
        try read(.optimizer, into: &optimizer)
        try read(.adamBeta1, into: &adamBeta1)
        try read(.adamBeta2, into: &adamBeta2)
        try read(.adamEpsilon, into: &adamEpsilon)
        try read(.zerothOrder, into: &zerothOrder)
        try read(.mezoEps, into: &mezoEps)
        try read(.maxGradNorm, into: &maxGradNorm)
        try read(.seed, into: &seed)
        try read(.precision, into: &precision)
        try read(.trainOnInputs, into: &trainOnInputs)
        try read(.evalSteps, into: &evalSteps)
        try read(.saveSteps, into: &saveSteps)
        try read(.earlyStoppingPatience, into: &earlyStoppingPatience)
        try read(.memoryBudget, into: &memoryBudget)
        try read(.threads, into: &threads)
        try read(.priority, into: &priority)
        try read(.maxTime, into: &maxTime)
        try read(.runBetween, into: &runBetween)
    }
}

package struct DatasetReference: Codable, Equatable, Sendable {
    /// In a job file: a path on the client. On the wire: a data set's name or `sha256:` digest.
    package var path: String
    package init(path: String) { self.path = path }
}

/// `["q_proj", "v_proj"]` or `"all-linear"` or a regular expression, as in PEFT.
package enum TargetModules: Codable, Equatable, Sendable {
    case names([String])
    case pattern(String)

    package init(from decoder: any Decoder) throws {
        let value = try decoder.singleValueContainer()
        if let pattern = try? value.decode(String.self) {
            self = .pattern(pattern)
        } else {
            self = .names(try value.decode([String].self))
        }
    }

    package func encode(to encoder: any Encoder) throws {
        var value = encoder.singleValueContainer()
        switch self {
        case .names(let names): try value.encode(names)
        case .pattern(let pattern): try value.encode(pattern)
        }
    }
}

package enum LearningRateSchedule: String, Codable, CaseIterable, Sendable {
    case linear, cosine, constant
}

/// PEFT's words for `init_lora_weights`; its `true` is kaiming.
package enum LoRAStart: String, Codable, CaseIterable, Sendable {
    case kaiming, gaussian, orthogonal, eva, loftq
}

/// What virtual tokens begin as: what the model makes of the first tokens of the training samples, or normal numbers.
package enum PromptStart: String, Codable, CaseIterable, Sendable { case samples, random }

/// transformers' names; `gelu` by the error function, `gelu_new` by a hyperbolic tangent.
package enum BottleneckNonLinearity: String, Codable, CaseIterable, Sendable {
    case relu, swish, gelu, tanh
    case geluNew = "gelu_new"
}

package enum ActivationCacheFormat: String, Codable, CaseIterable, Sendable { case bf16, int8 }

package enum Optimizer: String, Codable, CaseIterable, Sendable {
    /// adamw, or adamw_8bit where nothing else fits the budget.
    case auto
    case adamw
    /// bitsandbytes' block-wise 8-bit moments: a quarter of the bytes.
    case adamw8Bit = "adamw_8bit"
    /// Half of the bytes.
    case adamwBF16 = "adamw_bf16"

    /// What axolotl and transformers call two of these.
    private static let aliases: [String: Self] = ["adamw_torch": .adamw, "adamw_bnb_8bit": .adamw8Bit]

    package init?(name: String) {
        guard let found = Self(rawValue: name) ?? Self.aliases[name] else { return nil }
        self = found
    }

    package init(from decoder: any Decoder) throws {
        let name = try decoder.singleValueContainer().decode(String.self)
        guard let found = Self(name: name) else {
            throw DecodingError.dataCorrupted(
                .init(
                    codingPath: decoder.codingPath,
                    debugDescription: "\(name) is none of " + Self.allCases.map(\.rawValue).joined(separator: ", ")))
        }
        self = found
    }
}

package enum ZerothOrderSteps: String, Codable, CaseIterable, Sendable {
    case never
    /// Where nothing else fits the budget.
    case auto
    case always
}

package enum Precision: String, Codable, CaseIterable, Sendable {
    /// What trains fastest on the processor among the types that have been shown to train as well as f32.
    case auto
    case f32, bf16, f16, int8
}

/// A value outside its range: which key, what was given, what is allowed.
package struct InvalidRequest: Error, Equatable, Sendable {
    package let key: String
    package let given: String
    package let allowed: String
    package var description: String { "\(key): \(given) is not allowed; use \(allowed)" }
}

extension JobRequest {
    /// Of `rank_pattern` and `alpha_pattern`: seven linears of 146 layers have one each.
    package static let patternCounts = 1...1024

    /// Of `token_indices` and `trainable_tokens` together.
    package static let tokenCounts = 1...4096

    /// Every limit of a request that needs no model to check.
    package func validate() throws {
        func require(_ condition: Bool, _ key: CodingKeys, _ given: Any, _ allowed: String) throws {
            guard condition else {
                throw InvalidRequest(key: Wire.snakeCase(key.rawValue), given: "\(given)", allowed: allowed)
            }
        }
        if let name { try require(Wire.isName(name), .name, "\"\(name)\"", "1 to 64 of A-Z a-z 0-9 . _ -") }
        try require((1...64).contains(datasets.count), .datasets, "\(datasets.count) entries", "1 to 64 data sets")
        try require(valSetSize >= 0 && valSetSize.isFinite, .valSetSize, valSetSize, "0 or more")
        try require(Wire.isName(adapter), .adapter, "\"\(adapter)\"", "the name of a method, such as lora")
        if let loraR { try require((1...512).contains(loraR), .loraR, loraR, "1 to 512") }
        if let loraAlpha { try require(loraAlpha > 0 && loraAlpha <= 65536, .loraAlpha, loraAlpha, "above 0, to 65536") }
        if let rankPattern {
            try require(
                Self.patternCounts.contains(rankPattern.count) && rankPattern.allSatisfy { (1...512).contains($0.value) && $0.key.utf8.count <= 1024 },
                .rankPattern, "\(rankPattern.count) entries", "1 to \(Self.patternCounts.upperBound) expressions, each with a rank of 1 to 512")
        }
        if let alphaPattern {
            try require(
                Self.patternCounts.contains(alphaPattern.count)
                    && alphaPattern.allSatisfy { $0.value > 0 && $0.value <= 65536 && $0.key.utf8.count <= 1024 },
                .alphaPattern, "\(alphaPattern.count) entries", "1 to \(Self.patternCounts.upperBound) expressions, each with an alpha above 0, to 65536")
        }
        if let ratio = loraplusLrRatio {
            try require(ratio >= 1 && ratio <= 1024, .loraplusLrRatio, ratio, "1 to 1024")
        }
        if let decomposeFactor {
            try require(decomposeFactor == -1 || (1...1024).contains(decomposeFactor), .decomposeFactor, decomposeFactor, "-1, or 1 to 1024")
        }
        if let oftBlockSize { try require((2...256).contains(oftBlockSize), .oftBlockSize, oftBlockSize, "2 to 256") }
        if let numVirtualTokens { try require((1...512).contains(numVirtualTokens), .numVirtualTokens, numVirtualTokens, "1 to 512") }
        if let tasks {
            let names = tasks.map { "\"\($0)\"" }.joined(separator: ", ")
            try require(
                (1...64).contains(tasks.count) && tasks.allSatisfy { Wire.isName($0) && $0.utf8.count <= 32 && !$0.contains(".") }, .tasks, names,
                "1 to 64 names of 1 to 32 of A-Z a-z 0-9 _ -")
            try require(Set(tasks).count == tasks.count, .tasks, names, "each name once")
        }
        if let taskR { try require((1...512).contains(taskR), .taskR, taskR, "1 to 512") }
        if let modulesToSave {
            try require(
                (1...64).contains(modulesToSave.count) && modulesToSave.allSatisfy { (1...256).contains($0.utf8.count) }
                    && Set(modulesToSave).count == modulesToSave.count,
                .modulesToSave, modulesToSave.joined(separator: ", "), "1 to 64 different names")
        }
        if let tokenIndices {
            try require(
                Self.tokenCounts.contains(tokenIndices.count) && Set(tokenIndices).count == tokenIndices.count
                    && tokenIndices.allSatisfy { (0..<1 << 24).contains($0) },
                .tokenIndices, "\(tokenIndices.count) numbers", "1 to \(Self.tokenCounts.upperBound) different token numbers from 0")
        }
        if let trainableTokens {
            try require(
                Self.tokenCounts.contains(trainableTokens.count) && trainableTokens.allSatisfy { (1...256).contains($0.utf8.count) },
                .trainableTokens, "\(trainableTokens.count) texts", "1 to \(Self.tokenCounts.upperBound) texts of 1 to 256 bytes")
        }
        if let reductionFactor {
            try require(reductionFactor >= 1 && reductionFactor <= 65536, .reductionFactor, reductionFactor, "1 to 65536")
        }
        if let adapterScaling {
            try require(adapterScaling > 0 && adapterScaling <= 1024, .adapterScaling, adapterScaling, "above 0, to 1024")
        }
        if mhAdapter != true { try require(outputAdapter != false, .outputAdapter, "false", "it with mh_adapter: true") }
        if let numExperts { try require((1...64).contains(numExperts), .numExperts, numExperts, "1 to 64") }
        if let topK { try require((1...64).contains(topK), .topK, topK, "1 to num_experts") }
        if let weight = routerAuxLossCoef { try require(weight >= 0 && weight <= 1024, .routerAuxLossCoef, weight, "0 (none) to 1024") }
        if let targetR { try require((1...512).contains(targetR), .targetR, targetR, "1 to 512") }
        for (key, steps) in [(CodingKeys.tinit, tinit), (.tfinal, tfinal)] {
            if let steps { try require((0...10_000_000).contains(steps), key, steps, "0 to 10000000 steps") }
        }
        if let deltaT { try require((1...10_000_000).contains(deltaT), .deltaT, deltaT, "1 to 10000000 steps") }
        for (key, beta) in [(CodingKeys.beta1, beta1), (.beta2, beta2)] {
            if let beta { try require(beta > 0 && beta < 1, key, beta, "above 0, below 1") }
        }
        if let orthRegWeight { try require(orthRegWeight >= 0 && orthRegWeight <= 1024, .orthRegWeight, orthRegWeight, "0 (none) to 1024") }
        try require(loraDropout >= 0 && loraDropout < 1, .loraDropout, loraDropout, "0 to below 1")
        switch loraTargetModules {
        case .names(let names):
            try require(
                (1...256).contains(names.count) && names.allSatisfy { (1...256).contains($0.utf8.count) },
                .loraTargetModules, "\(names.count) names", "1 to 256 names of 1 to 256 bytes")
        case .pattern(let pattern):
            try require(
                (1...4096).contains(pattern.utf8.count), .loraTargetModules, "\(pattern.utf8.count) bytes",
                "1 to 4096 bytes")
        }
        if let layersToTransform {
            try require(
                !layersToTransform.isEmpty && layersToTransform.allSatisfy { (0..<1024).contains($0) },
                .layersToTransform, layersToTransform, "layer numbers from 0")
        }
        try require((8...131072).contains(sequenceLen), .sequenceLen, sequenceLen, "8 to 131072 tokens")
        try require((1...1024).contains(microBatchSize), .microBatchSize, microBatchSize, "1 to 1024 samples")
        try require(
            (1...4096).contains(gradientAccumulationSteps), .gradientAccumulationSteps, gradientAccumulationSteps,
            "1 to 4096")
        try require(numEpochs > 0 && numEpochs <= 10000, .numEpochs, numEpochs, "above 0, to 10000")
        if let maxSteps { try require((1...10_000_000).contains(maxSteps), .maxSteps, maxSteps, "1 to 10000000") }
        try require(learningRate > 0 && learningRate <= 1, .learningRate, learningRate, "above 0, to 1")
        if let warmupSteps { try require(warmupSteps >= 0, .warmupSteps, warmupSteps, "0 or more") }
        if let warmupRatio {
            try require(warmupRatio >= 0 && warmupRatio <= 1, .warmupRatio, warmupRatio, "0 to 1")
            try require(warmupSteps == nil, .warmupRatio, "both", "warmup_steps or warmup_ratio, not both")
        }
        try require(weightDecay >= 0 && weightDecay <= 1, .weightDecay, weightDecay, "0 to 1")
        try require(adamBeta1 >= 0 && adamBeta1 < 1, .adamBeta1, adamBeta1, "0 to below 1")
        try require(adamBeta2 >= 0 && adamBeta2 < 1, .adamBeta2, adamBeta2, "0 to below 1")
        try require(adamEpsilon > 0 && adamEpsilon < 1, .adamEpsilon, adamEpsilon, "above 0, below 1")
        if let mezoEps { try require(mezoEps >= 1e-6 && mezoEps <= 1, .mezoEps, mezoEps, "0.000001 to 1") }
        try require(maxGradNorm >= 0 && maxGradNorm.isFinite, .maxGradNorm, maxGradNorm, "0 (off) or more")
        if let evalSteps { try require(evalSteps >= 1, .evalSteps, evalSteps, "1 or more") }
        if let saveSteps { try require(saveSteps >= 1, .saveSteps, saveSteps, "1 or more") }
        if let earlyStoppingPatience {
            try require(earlyStoppingPatience >= 1, .earlyStoppingPatience, earlyStoppingPatience, "1 or more")
            try require(valSetSize > 0, .earlyStoppingPatience, earlyStoppingPatience, "it with val_set_size above 0")
        }
        if let memoryBudget {
            try require(
                MemoryBudget(memoryBudget) != nil, .memoryBudget, "\"\(memoryBudget)\"",
                "a size such as 900MiB or 2GB, or a share such as 60%")
        }
        if let threads { try require((1...256).contains(threads), .threads, threads, "1 to 256") }
        if let priority { try require((-10...10).contains(priority), .priority, priority, "-10 to 10") }
        if let maxTime {
            try require(TimeSpan(maxTime) != nil, .maxTime, "\"\(maxTime)\"", "a time such as 6h, 90m or 1d12h, to 365d")
        }
        if let runBetween {
            try require(DayWindow(runBetween) != nil, .runBetween, "\"\(runBetween)\"", "two times of day such as 01:00-06:00")
        }
    }
}

/// `memory_budget` as a value.
package enum MemoryBudget: Equatable, Sendable {
    case bytes(UInt64)
    /// Share of the machine's memory, above 0 to 1.
    case share(Double)

    /// Nil when the text is neither a size (`B`, `kB`…`TB`, `KiB`…`TiB`, or a bare number of bytes) nor a percentage.
    package init?(_ text: String) {
        let number = text.prefix { $0.isNumber || $0 == "." }
        guard let value = Double(number), value > 0 else { return nil }
        let unit = text.dropFirst(number.count).drop { $0 == " " }
        if unit == "%" {
            guard value <= 100 else { return nil }
            self = .share(value / 100)
            return
        }
        let factors: [String: Double] = [
            "": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
            "KiB": 1024, "MiB": 1_048_576, "GiB": 1_073_741_824, "TiB": 1_099_511_627_776,
        ]
        guard let factor = factors[String(unit)], value * factor < 1e18 else { return nil }
        self = .bytes(UInt64(value * factor))
    }

    package func resolved(machineBytes: UInt64) -> UInt64 {
        switch self {
        case .bytes(let bytes): bytes
        case .share(let share): UInt64(Double(machineBytes) * share)
        }
    }
}
