// A request's words as the data plane's values. Ranges are EdgeWire's; this only translates.
import EdgeModel
import EdgeTensor
import EdgeTrain
import EdgeWire

extension TrainingSpec {
    init(_ request: JobRequest, defaultSaveSteps: Int) throws {
        do { try request.validate() } catch let error as InvalidRequest {
            throw Problem(.invalidValue, error.description)
        }
        let targets: AdapterSpec.Targets =
            switch request.loraTargetModules {
            case .names(let names): .names(names)
            case .pattern("all-linear"): .allLinear
            case .pattern(let pattern): .pattern(pattern)
            }
        let schedule: Schedule =
            switch request.lrScheduler {
            case .linear: .linear
            case .cosine: .cosine
            case .constant: .constant
            }
        self.init(
            adapter: AdapterSpec(
                rank: request.loraR, alpha: Float(request.loraAlpha), dropout: Float(request.loraDropout),
                targets: targets, layers: request.layersToTransform),
            sequenceLength: request.sequenceLen, microBatchSize: request.microBatchSize,
            gradientAccumulation: request.gradientAccumulationSteps, epochs: request.numEpochs,
            maxSteps: request.maxSteps, learningRate: request.learningRate, schedule: schedule,
            warmUp: request.warmupSteps.map { .steps($0) } ?? .share(request.warmupRatio ?? 0),
            weightDecay: Float(request.weightDecay), beta1: request.adamBeta1, beta2: request.adamBeta2,
            adamEpsilon: Float(request.adamEpsilon), maxGradNorm: request.maxGradNorm == 0 ? nil : request.maxGradNorm,
            seed: request.seed, precision: ComputeType(request.precision), evalSteps: request.evalSteps, saveSteps: request.saveSteps ?? defaultSaveSteps,
            earlyStoppingPatience: request.earlyStoppingPatience, optimizer: OptimizerState(request.optimizer))
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
