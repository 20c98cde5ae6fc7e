// The part of a request that says which method is trained, and how.
import EdgeFormats
import EdgeModel
import EdgeTrain
import EdgeWire

extension AdapterSpec {
    /// - Throws: `Problem` for a method that there is not, and for a key that means nothing to the one asked for.
    init(_ request: JobRequest) throws {
        guard let named = AdapterMethods.named(request.adapter == "qlora" ? "lora" : request.adapter) else {
            let names = AdapterMethods.all.map(\.name)
            throw Problem(
                .invalidValue, "adapter: there is no method \"\(request.adapter)\"; use one of \(names.joined(separator: ", "))",
                hint: Wire.nearest(to: request.adapter, among: names).map { "did you mean \"\($0)\"?" })
        }
        for key in MethodKey.all where key.isGiven(request) && !key.isOf(named) {
            throw Problem(.invalidValue, "\(key.name): \(named.name) has no \(key.what)", hint: "leave \(key.name) out")
        }
        let method: any AdapterMethod = try (named as? any MethodOfRequest)?.asked(by: request) ?? named
        try Self.checkStart(request)
        let rank = (method is any VirtualTokenMethod ? request.numVirtualTokens : request.loraR) ?? method.defaultRank
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
        // Those that are named by text are the model's tokenizer's to know.
        let tokens = method is TrainableTokens ? [] : (request.tokenIndices ?? []).map { TokenID($0) }
        saved = SavedModules(names: request.modulesToSave ?? [], tokens: tokens)
        usesRankStabilizedScaling = request.useRslora ?? false
        learningRateRatio = request.loraplusLrRatio
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

    private static func checkStart(_ request: JobRequest) throws {
        if request.evaWhiten == true, request.initLoraWeights != .eva {
            throw Problem(.invalidValue, "eva_whiten: there is nothing to whiten; use it with init_lora_weights: eva")
        }
        if let start = request.initLoraWeights, start == .eva || start == .loftq, request.initFromAdapter != nil {
            throw Problem(
                .invalidValue, "init_lora_weights: \(start.rawValue) is not allowed: init_from_adapter begins from that adapter's weights",
                hint: "leave one of them out")
        }
        switch (request.initLoraWeights == .loftq, request.originalModel) {
        case (false, nil), (true, .some): break
        case (true, nil):
            throw Problem(
                .invalidValue, "original_model: missing; init_lora_weights: loftq compares the base with the model that it was quantised from",
                hint: "original_model: NAME, of `edgetune models list`")
        case (false, .some):
            throw Problem(.invalidValue, "original_model: nothing asks for it; use it with init_lora_weights: loftq")
        }
    }
}

/// A key of a request that means nothing to some methods.
private struct MethodKey: Sendable {
    let name: String
    /// That the others do not have.
    let what: String
    let isGiven: @Sendable (JobRequest) -> Bool
    let isOf: @Sendable (any AdapterMethod) -> Bool

    init(
        _ name: String, _ what: String, given isGiven: @escaping @Sendable (JobRequest) -> Bool,
        of isOf: @escaping @Sendable (any AdapterMethod) -> Bool
    ) {
        (self.name, self.what, self.isGiven, self.isOf) = (name, what, isGiven, isOf)
    }

    /// A key that is given when it is there.
    init<Value>(
        _ name: String, _ value: @escaping @Sendable (JobRequest) -> Value?, _ what: String,
        of isOf: @escaping @Sendable (any AdapterMethod) -> Bool
    ) {
        self.init(name, what, given: { value($0) != nil }, of: isOf)
    }

    @Sendable private static func hasVirtualTokens(_ method: any AdapterMethod) -> Bool { method.virtualTokenStart != nil }
    /// B · A of a linear's own, as PEFT's LoRA has it.
    @Sendable private static func hasFactors(_ method: any AdapterMethod) -> Bool {
        method.storedFactors != nil && method.mixture == nil && !method.isGated
    }
    /// DyLoRA's first ranks are an adapter by themselves, for which nothing beside would have been trained.
    @Sendable private static func canSave(_ method: any AdapterMethod) -> Bool { isLoRA(method) && !method.drawsRank }
    @Sendable private static func isLoRA(_ method: any AdapterMethod) -> Bool { method.peftType == AdapterMethods.lora.peftType }

    static let all: [MethodKey] = [
        MethodKey("lora_r", \.loraR, "rank") { $0.configKeys.rank != nil && !($0 is any VirtualTokenMethod) },
        MethodKey("num_virtual_tokens", \.numVirtualTokens, "virtual tokens", of: hasVirtualTokens),
        MethodKey("prompt_tuning_init", \.promptTuningInit, "virtual tokens", of: hasVirtualTokens),
        MethodKey("lora_target_modules", "linears to choose", given: { $0.loraTargetModules != .pattern("all-linear") }, of: { $0.hasTargets }),
        MethodKey("layers_to_transform", \.layersToTransform, "layers to choose") { $0.hasTargets },
        // Its files have all of them.
        MethodKey("layers_to_transform", \.layersToTransform, "layers to choose: its files have all of them") { !($0 is MixLoRA) },
        MethodKey("modules_to_save", \.modulesToSave, "norms beside the linears", of: canSave),
        MethodKey("token_indices", \.tokenIndices, "tokens to choose") { $0 is TrainableTokens || canSave($0) },
        MethodKey("trainable_tokens", \.trainableTokens, "tokens to choose") { $0 is TrainableTokens || canSave($0) },
        MethodKey("lora_alpha", \.loraAlpha, "alpha") { $0.configKeys.alpha != nil },
        MethodKey("lora_dropout", "dropout here", given: { $0.loraDropout > 0 }, of: { $0.hasDropout }),
        MethodKey("use_rslora", "such scaling", given: { $0.useRslora == true }, of: hasFactors),
        MethodKey("loraplus_lr_ratio", \.loraplusLrRatio, "B of its own", of: hasFactors),
        MethodKey("init_lora_weights", \.initLoraWeights, "such start", of: isLoRA),
        // DoRA's magnitudes are the lengths of W's rows, which the start would change; DyLoRA's first ranks are an adapter by themselves.
        MethodKey("init_lora_weights: loftq", "such start", given: { $0.initLoraWeights == .loftq && $0.originalModel != nil }) {
            hasFactors($0) && $0.name != AdapterMethods.dora.name
        },
        MethodKey("decompose_factor", \.decomposeFactor, "matrices of such sizes") { $0 is LoKr },
        MethodKey("decompose_both", "such matrices", given: { $0.decomposeBoth == true }, of: { $0 is LoKr }),
        MethodKey("oft_block_size", \.oftBlockSize, "blocks that are turned") { $0 is OFT },
        MethodKey("use_cayley_neumann", \.useCayleyNeumann, "such series") { $0 is OFT },
        MethodKey("tasks", \.tasks, "tasks") { $0 is MTLoRA },
        MethodKey("task_r", \.taskR, "tasks") { $0 is MTLoRA },
        MethodKey("reduction_factor", \.reductionFactor, "bottleneck") { $0.bottleneck != nil || $0 is LadderSideTuning },
        MethodKey("non_linearity", \.nonLinearity, "bottleneck") { $0.bottleneck != nil },
        MethodKey("adapter_scaling", \.adapterScaling, "bottleneck") { $0.bottleneck != nil },
        MethodKey("mh_adapter", \.mhAdapter, "bottleneck") { $0.bottleneck != nil },
        MethodKey("output_adapter", \.outputAdapter, "bottleneck") { $0.bottleneck != nil },
        MethodKey("num_experts", \.numExperts, "experts") { $0 is MixLoRA },
        MethodKey("top_k", \.topK, "experts") { $0 is MixLoRA },
        MethodKey("router_aux_loss_coef", \.routerAuxLossCoef, "experts") { $0 is MixLoRA },
        MethodKey("target_r", \.targetR, "ranks that are taken away") { $0 is AdaLoRA },
        MethodKey("tinit", \.tinit, "ranks that are taken away") { $0 is AdaLoRA },
        MethodKey("tfinal", \.tfinal, "ranks that are taken away") { $0 is AdaLoRA },
        MethodKey("delta_t", \.deltaT, "ranks that are taken away") { $0 is AdaLoRA },
        MethodKey("beta1", \.beta1, "ranks that are taken away") { $0 is AdaLoRA },
        MethodKey("beta2", \.beta2, "ranks that are taken away") { $0 is AdaLoRA },
        MethodKey("orth_reg_weight", \.orthRegWeight, "ranks that are taken away") { $0 is AdaLoRA },
        MethodKey("rank_pattern", \.rankPattern, "modules of other ranks", of: isLoRA),
        MethodKey("alpha_pattern", \.alphaPattern, "modules of other alphas", of: isLoRA),
    ]
}

/// A method that a request has keys of its own for.
private protocol MethodOfRequest: AdapterMethod {
    /// - Throws: `Problem` for values that do not go together.
    func asked(by request: JobRequest) throws -> Self
}

extension JobRequest {
    fileprivate var virtualTokenStart: VirtualTokenStart { promptTuningInit == .random ? .random : .samples }
}

extension VirtualTokenMethod {
    fileprivate func asked(by request: JobRequest) -> Self { Self(request.virtualTokenStart) }
}

extension PrefixTuning: MethodOfRequest {}
extension PromptTuning: MethodOfRequest {}

extension TrainableTokens: MethodOfRequest {
    /// Those that are named by text are the model's tokenizer's to know.
    fileprivate func asked(by request: JobRequest) throws -> TrainableTokens {
        guard request.tokenIndices != nil || request.trainableTokens != nil else {
            throw Problem(
                .invalidValue, "trainable_tokens: missing; \(name) trains the embeddings of the tokens that are named",
                hint: "trainable_tokens: [\"<|im_start|>\"], or token_indices: [1]")
        }
        return TrainableTokens((request.tokenIndices ?? []).map { TokenID($0) })
    }
}

extension LoKr: MethodOfRequest {
    fileprivate func asked(by request: JobRequest) -> LoKr {
        let factor = request.decomposeFactor ?? LoKr.defaultFactor
        return LoKr(factor: factor > 0 ? factor : nil, decomposesBoth: request.decomposeBoth ?? false)
    }
}

extension OFT: MethodOfRequest {
    fileprivate func asked(by request: JobRequest) -> OFT {
        OFT(
            .size(request.oftBlockSize ?? OFT.defaultBlockSize),
            request.useCayleyNeumann == false ? .exact : .neumann(terms: OFT.defaultTerms))
    }
}

extension MTLoRA: MethodOfRequest {
    fileprivate func asked(by request: JobRequest) throws -> MTLoRA {
        guard let tasks = request.tasks else {
            throw Problem(
                .invalidValue, "tasks: missing; mtlora trains something for each task that the data sets' lines name",
                hint: "tasks: [NAME, …], and \"task\": \"NAME\" in every line")
        }
        return MTLoRA(tasks: tasks, taskRank: request.taskR == request.loraR ?? defaultRank ? nil : request.taskR)
    }
}

extension MixLoRA: MethodOfRequest {
    fileprivate func asked(by request: JobRequest) throws -> MixLoRA {
        let experts = request.numExperts ?? MixLoRA.defaultExperts, chosen = request.topK ?? min(MixLoRA.defaultChosen, experts)
        guard chosen <= experts else {
            throw Problem(.invalidValue, "top_k: \(chosen) is not allowed; with num_experts: \(experts) use 1 to \(experts)")
        }
        return MixLoRA(experts: experts, chosen: chosen, balance: request.routerAuxLossCoef ?? MixLoRA.defaultBalance)
    }
}

extension HubAdapter: MethodOfRequest {
    fileprivate func asked(by request: JobRequest) -> HubAdapter {
        with { $0.take(request) }.with(prefixTokens: request.numVirtualTokens, request.virtualTokenStart)
    }
}

extension LadderSideTuning: MethodOfRequest {
    fileprivate func asked(by request: JobRequest) throws -> LadderSideTuning {
        guard let factor = request.reductionFactor else { return self }
        // Which of them divide the hidden size is the model's to know.
        guard let whole = Int(exactly: factor), LadderSideTuning.reductionFactors.contains(whole) else {
            throw Problem(
                .invalidValue,
                "reduction_factor: \(factor) is not allowed; with \(name) it is a whole number that divides the model's hidden size")
        }
        return LadderSideTuning(reductionFactor: whole)
    }
}

extension AdaLoRA: MethodOfRequest {
    fileprivate func asked(by request: JobRequest) throws -> AdaLoRA {
        AdaLoRA(try RankAllocation(request, rank: request.loraR ?? defaultRank))
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
