// A request's words as the data plane's values. Ranges are EdgeWire's; this only translates.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTrain
import EdgeWire

extension TrainingSpec {
    init(_ request: JobRequest, defaultSaveSteps: Int) throws {
        do { try request.validate() } catch let error as InvalidRequest {
            throw Problem(.invalidValue, error.description)
        }
        let schedule: Schedule =
            switch request.lrScheduler {
            case .linear: .linear
            case .cosine: .cosine
            case .constant: .constant
            }
        self.init(
            adapter: try AdapterSpec(request),
            sequenceLength: request.sequenceLen, microBatchSize: request.microBatchSize,
            gradientAccumulation: request.gradientAccumulationSteps, epochs: request.numEpochs,
            maxSteps: request.maxSteps, learningRate: request.learningRate, schedule: schedule,
            warmUp: request.warmupSteps.map { .steps($0) } ?? .share(request.warmupRatio ?? 0),
            weightDecay: Float(request.weightDecay), beta1: request.adamBeta1, beta2: request.adamBeta2,
            adamEpsilon: Float(request.adamEpsilon), maxGradNorm: request.maxGradNorm == 0 ? nil : request.maxGradNorm,
            seed: request.seed, precision: ComputeType(request.precision), evalSteps: request.evalSteps, saveSteps: request.saveSteps ?? defaultSaveSteps,
            earlyStoppingPatience: request.earlyStoppingPatience, optimizer: OptimizerState(request.optimizer))
        activationCache = request.activationCache.map { $0 == .bf16 ? .bf16 : .int8 }
        if activationCache != nil, adapter.method is LadderSideTuning {
            throw Problem(
                .invalidValue, "activation_cache: \(adapter.method.name) reads what every layer gives, and the cache has what one of them does",
                hint: "leave activation_cache out")
        }
        try readZerothOrder(request)
    }

    /// - Throws: `Problem` for what steps without a backward have no use for.
    private mutating func readZerothOrder(_ request: JobRequest) throws {
        switch request.zerothOrder {
        case nil, .never:
            guard request.mezoEps == nil else {
                throw Problem(.invalidValue, "mezo_eps: every step has a backward", hint: "use it with zeroth_order: auto or always")
            }
            return
        case .auto: zerothOrder = .whereNothingElseFits
        case .always:
            zerothOrder = .always
            guard optimizer == nil else {
                throw Problem(
                    .invalidValue, "optimizer: \(request.optimizer.rawValue) has moments, and steps without a backward have none",
                    hint: "leave optimizer out, or use zeroth_order: auto")
            }
        }
        let method = adapter.method
        guard ZerothOrder.isPossible(with: method) else {
            let reason =
                method.mixture != nil
                ? "the balance of its experts is a part of the loss that only a backward has"
                : method.drawsRank ? "its steps train a number of ranks that they draw" : "it takes ranks away by every parameter's own gradient"
            throw Problem(
                .invalidValue, "zeroth_order: \(method.name) needs a backward: \(reason)",
                hint: "adapter: lora, or leave zeroth_order out")
        }
        zerothOrderEpsilon = request.mezoEps.map { Float($0) } ?? zerothOrderEpsilon
    }
}

extension TrainingSpec {
    /// With the tokens that a request names by text.
    ///
    /// - Throws: `Problem` where a text is not one token, or is one that the request names twice.
    mutating func resolveTokens(_ request: JobRequest, tokenizer: () throws -> Tokenizer) throws {
        guard let texts = request.trainableTokens else { return }
        let tokenizer = try tokenizer()
        var tokens = adapter.trainedTokens
        for text in texts {
            let ids = tokenizer.encode(text, specialTokens: .parse)
            guard ids.count == 1 else {
                let listed = ids.prefix(8).map { "\($0)" }.joined(separator: ", ")
                throw Problem(
                    .invalidValue, "trainable_tokens: \"\(text)\" is \(ids.count) tokens (\(listed)), not one",
                    hint: "name each token by itself, or by its number in token_indices")
            }
            guard !tokens.contains(ids[0]) else {
                throw Problem(
                    .invalidValue, "trainable_tokens: \"\(text)\" is token \(ids[0]), which is named already", hint: "leave it out")
            }
            tokens.append(ids[0])
        }
        guard TrainableTokens.counts.contains(tokens.count) else {
            throw Problem(.invalidValue, "trainable_tokens: \(tokens.count) tokens are more than \(TrainableTokens.counts.upperBound)")
        }
        if adapter.method is TrainableTokens { adapter.method = TrainableTokens(tokens) } else { adapter.saved.tokens = tokens }
    }
}

extension OptimizerState {
    /// Nil for `auto`.
    fileprivate init?(_ optimizer: Optimizer) {
        switch optimizer {
        case .auto: return nil
        case .adamw: self = .f32
        case .adamw8Bit: self = .eightBit
        case .adamwBF16: self = .bf16
        }
    }
}

extension ComputeType {
    /// Nil for `auto`.
    init?(_ precision: Precision) {
        switch precision {
        case .auto: return nil
        case .f32: self = .f32
        case .bf16: self = .bf16
        case .f16: self = .f16
        case .int8: self = .int8
        }
    }
}
