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

extension AdapterSpec {
    /// - Throws: `Problem` for a method that there is not, and for a key that means nothing to the one asked for.
    init(_ request: JobRequest) throws {
        guard var method = AdapterMethods.named(request.adapter == "qlora" ? "lora" : request.adapter) else {
            let names = AdapterMethods.all.map(\.name)
            throw Problem(
                .invalidValue, "adapter: there is no method \"\(request.adapter)\"; use one of \(names.joined(separator: ", "))",
                hint: Wire.nearest(to: request.adapter, among: names).map { "did you mean \"\($0)\"?" })
        }
        func refuse(_ key: String, _ isGiven: Bool, unless hasIt: Bool, _ what: String) throws {
            guard isGiven, !hasIt else { return }
            throw Problem(.invalidValue, "\(key): \(method.name) has no \(what)", hint: "leave \(key) out")
        }
        let keys = method.configKeys
        let hasVirtualTokens = method.virtualTokenStart != nil
        try refuse("lora_r", request.loraR != nil, unless: keys.rank != nil && !hasVirtualTokens, "rank")
        try refuse("num_virtual_tokens", request.numVirtualTokens != nil, unless: hasVirtualTokens, "virtual tokens")
        try refuse("prompt_tuning_init", request.promptTuningInit != nil, unless: hasVirtualTokens, "virtual tokens")
        try refuse("lora_target_modules", request.loraTargetModules != .pattern("all-linear"), unless: method.hasTargets, "linears to choose")
        try refuse("layers_to_transform", request.layersToTransform != nil, unless: method.hasTargets, "layers to choose")
        let virtualTokenStart: VirtualTokenStart = request.promptTuningInit == .random ? .random : .samples
        if method is PrefixTuning { method = PrefixTuning(virtualTokenStart) }
        if method is PromptTuning { method = PromptTuning(virtualTokenStart) }
        let asksForTokens = request.tokenIndices != nil || request.trainableTokens != nil
        let tokensKey = request.tokenIndices == nil ? "trainable_tokens" : "token_indices"
        try refuse(tokensKey, asksForTokens, unless: method is TrainableTokens, "tokens to choose")
        if method is TrainableTokens {
            guard asksForTokens else {
                throw Problem(
                    .invalidValue, "trainable_tokens: missing; \(method.name) trains the embeddings of the tokens that are named",
                    hint: "trainable_tokens: [\"<|im_start|>\"], or token_indices: [1]")
            }
            // Those that are named by text are the model's tokenizer's to know.
            method = TrainableTokens((request.tokenIndices ?? []).map { TokenID($0) })
        }
        try refuse("lora_alpha", request.loraAlpha != nil, unless: keys.alpha != nil, "alpha")
        try refuse("lora_dropout", request.loraDropout > 0, unless: method.hasDropout, "dropout here")
        try refuse("use_rslora", request.useRslora == true, unless: method.storedFactors != nil && method.mixture == nil, "such scaling")
        try refuse("loraplus_lr_ratio", request.loraplusLrRatio != nil, unless: method.storedFactors != nil && method.mixture == nil, "B of its own")
        try refuse("init_lora_weights", request.initLoraWeights != nil, unless: method.peftType == AdapterMethods.lora.peftType, "such start")
        try refuse("decompose_factor", request.decomposeFactor != nil, unless: method is LoKr, "matrices of such sizes")
        try refuse("decompose_both", request.decomposeBoth == true, unless: method is LoKr, "such matrices")
        if method is LoKr {
            let factor = request.decomposeFactor ?? LoKr.defaultFactor
            method = LoKr(factor: factor > 0 ? factor : nil, decomposesBoth: request.decomposeBoth ?? false)
        }
        try refuse("oft_block_size", request.oftBlockSize != nil, unless: method is OFT, "blocks that are turned")
        try refuse("use_cayley_neumann", request.useCayleyNeumann != nil, unless: method is OFT, "such series")
        if method is OFT {
            method = OFT(
                .size(request.oftBlockSize ?? OFT.defaultBlockSize),
                request.useCayleyNeumann == false ? .exact : .neumann(terms: OFT.defaultTerms))
        }
        try refuse("tasks", request.tasks != nil, unless: method is MTLoRA, "tasks")
        try refuse("task_r", request.taskR != nil, unless: method is MTLoRA, "tasks")
        if method is MTLoRA {
            guard let tasks = request.tasks else {
                throw Problem(
                    .invalidValue, "tasks: missing; mtlora trains something for each task that the data sets' lines name",
                    hint: "tasks: [NAME, …], and \"task\": \"NAME\" in every line")
            }
            let rank = request.loraR ?? method.defaultRank
            method = MTLoRA(tasks: tasks, taskRank: request.taskR == rank ? nil : request.taskR)
        }
        let ofBottleneck: [(String, Bool)] = [
            ("reduction_factor", request.reductionFactor != nil), ("non_linearity", request.nonLinearity != nil),
            ("adapter_scaling", request.adapterScaling != nil), ("mh_adapter", request.mhAdapter != nil),
            ("output_adapter", request.outputAdapter != nil),
        ]
        for (key, isGiven) in ofBottleneck where !(key == "reduction_factor" && method is LadderSideTuning) {
            try refuse(key, isGiven, unless: method.bottleneck != nil, "bottleneck")
        }
        if method is LadderSideTuning, let factor = request.reductionFactor {
            // Which of them divide the hidden size is the model's to know.
            guard let whole = Int(exactly: factor), LadderSideTuning.reductionFactors.contains(whole) else {
                throw Problem(
                    .invalidValue, "reduction_factor: \(factor) is not allowed; with \(method.name) it is a whole number that divides the model's "
                        + "hidden size")
            }
            method = LadderSideTuning(reductionFactor: whole)
        }
        if let hub = method as? HubAdapter { method = hub.with { $0.take(request) }.with(prefixTokens: request.numVirtualTokens, virtualTokenStart) }
        for (key, isGiven) in [
            ("num_experts", request.numExperts != nil), ("top_k", request.topK != nil),
            ("router_aux_loss_coef", request.routerAuxLossCoef != nil),
        ] { try refuse(key, isGiven, unless: method is MixLoRA, "experts") }
        if method is MixLoRA {
            let experts = request.numExperts ?? MixLoRA.defaultExperts, chosen = request.topK ?? min(MixLoRA.defaultChosen, experts)
            guard chosen <= experts else {
                throw Problem(.invalidValue, "top_k: \(chosen) is not allowed; with num_experts: \(experts) use 1 to \(experts)")
            }
            try refuse("layers_to_transform", request.layersToTransform != nil, unless: false, "layers to choose: its files have all of them")
            method = MixLoRA(experts: experts, chosen: chosen, balance: request.routerAuxLossCoef ?? MixLoRA.defaultBalance)
        }
        if request.evaWhiten == true, request.initLoraWeights != .eva {
            throw Problem(.invalidValue, "eva_whiten: there is nothing to whiten; use it with init_lora_weights: eva")
        }
        if let start = request.initLoraWeights, start == .eva || start == .loftq, request.initFromAdapter != nil {
            throw Problem(
                .invalidValue, "init_lora_weights: \(start.rawValue) is not allowed: init_from_adapter begins from that adapter's weights",
                hint: "leave one of them out")
        }
        switch (request.initLoraWeights == .loftq, request.originalModel) {
        case (false, nil): break
        case (true, nil):
            throw Problem(
                .invalidValue, "original_model: missing; init_lora_weights: loftq compares the base with the model that it was quantised from",
                hint: "original_model: NAME, of `edgetune models list`")
        case (false, .some):
            throw Problem(.invalidValue, "original_model: nothing asks for it; use it with init_lora_weights: loftq")
        case (true, .some):
            // DoRA's magnitudes are the lengths of W's rows, which the start would change; DyLoRA's first ranks are an adapter by themselves.
            try refuse("init_lora_weights: loftq", true, unless: method.storedFactors != nil && method.name != AdapterMethods.dora.name, "such start")
        }
        let rank = request.loraR ?? request.numVirtualTokens ?? method.defaultRank
        let ofAllocation: [(String, Bool)] = [
            ("target_r", request.targetR != nil), ("tinit", request.tinit != nil), ("tfinal", request.tfinal != nil),
            ("delta_t", request.deltaT != nil), ("beta1", request.beta1 != nil), ("beta2", request.beta2 != nil),
            ("orth_reg_weight", request.orthRegWeight != nil),
        ]
        for (key, isGiven) in ofAllocation { try refuse(key, isGiven, unless: method is AdaLoRA, "ranks that are taken away") }
        if method is AdaLoRA { method = AdaLoRA(try RankAllocation(request, rank: rank)) }
        guard request.initLoraWeights != .orthogonal || rank % 2 == 0 else {
            throw Problem(.invalidValue, "lora_r: \(rank) is not allowed; with init_lora_weights: orthogonal use an even number")
        }
        guard rank <= method.largestRank else {
            throw Problem(.invalidValue, "lora_r: \(rank) is not allowed; with \(method.name) use 1 to \(method.largestRank)")
        }
        let targets: Targets =
            switch request.loraTargetModules {
            case .names(let names): .names(names)
            case .pattern("all-linear"): .allLinear
            case .pattern(let pattern): .pattern(pattern)
            }
        self.init(
            method: method, rank: rank, alpha: Float(request.loraAlpha ?? method.defaultAlpha(rank: rank)),
            dropout: Float(request.loraDropout), targets: targets, layers: request.layersToTransform)
        usesRankStabilizedScaling = request.useRslora ?? false
        learningRateRatio = request.loraplusLrRatio
        let isLoRA = method.peftType == AdapterMethods.lora.peftType
        try refuse("rank_pattern", request.rankPattern != nil, unless: isLoRA, "modules of other ranks")
        try refuse("alpha_pattern", request.alphaPattern != nil, unless: isLoRA, "modules of other alphas")
        rankPattern = ModulePatterns(request.rankPattern ?? [:])
        alphaPattern = ModulePatterns(request.alphaPattern ?? [:])
        for (key, bad) in [("rank_pattern", rankPattern.badPattern), ("alpha_pattern", alphaPattern.badPattern)] {
            if let bad { throw Problem(.invalidValue, "\(key): \"\(bad)\" is not a regular expression") }
        }
        switch request.initLoraWeights {
        case nil, .kaiming: start = .kaiming
        case .gaussian: start = .gaussian
        case .orthogonal: start = .orthogonal
        case .eva: start = .eva
        case .loftq: start = .loftq
        }
        whitensStart = request.evaWhiten ?? false
    }
}

extension TrainingSpec {
    /// With the tokens that a request names by text.
    ///
    /// - Throws: `Problem` where a text is not one token, or is one that the request names twice.
    mutating func resolveTokens(_ request: JobRequest, tokenizer: () throws -> Tokenizer) throws {
        guard let texts = request.trainableTokens else { return }
        let tokenizer = try tokenizer()
        var tokens = adapter.method.trainedTokens
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
        adapter.method = TrainableTokens(tokens)
    }
}

extension Bottleneck {
    fileprivate mutating func take(_ request: JobRequest) {
        reductionFactor = request.reductionFactor ?? reductionFactor
        scaling = request.adapterScaling ?? scaling
        followsAttention = request.mhAdapter ?? followsAttention
        followsMLP = request.outputAdapter ?? followsMLP
        switch request.nonLinearity {
        case nil: break
        case .relu: nonLinearity = .relu
        case .swish: nonLinearity = .swish
        case .gelu: nonLinearity = .gelu
        case .geluNew: nonLinearity = .geluNew
        case .tanh: nonLinearity = .tanh
        }
    }
}

extension RankAllocation {
    fileprivate init(_ request: JobRequest, rank: Int) throws {
        self.init()
        guard rank > 1 else { throw Problem(.invalidValue, "lora_r: \(rank) is not allowed; with adalora use 2 or more") }
        targetRank = request.targetR
        guard target(of: rank) < rank else {
            throw Problem(.invalidValue, "target_r: \(target(of: rank)) is not allowed; with lora_r: \(rank) use 1 to \(rank - 1)")
        }
        initialSteps = request.tinit ?? initialSteps
        finalSteps = request.tfinal ?? finalSteps
        interval = request.deltaT ?? interval
        beta1 = request.beta1 ?? beta1
        beta2 = request.beta2 ?? beta2
        orthogonality = request.orthRegWeight ?? orthogonality
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
