// The job file's main keys as flags. A flag wins over the file.
import ArgumentParser
import EdgeWire

struct JobFlags: ParsableArguments {
    @Option(help: "Name for the job and its adapter.") var name: String?
    @Option(help: "A model that the daemon holds, or a .gguf file.") var baseModel: String?
    @Option(help: "A JSONL file, or a data set that the daemon holds. May be repeated.") var dataset: [String] = []
    @Option(help: "Held-out part: below 1 a share, else a count.") var valSetSize: Double?
    @Option(help: "The PEFT method: lora, or another that `edgetune methods` lists.") var adapter: String?
    @Option(help: "Rank.") var loraR: Int?
    @Option(help: "Scaling is alpha / r.") var loraAlpha: Double?
    @Option(help: "LoRA+: B's learning rate is so many times A's.") var loraplusLrRatio: Double?
    @Option(help: "Dropout, 0 to below 1.") var loraDropout: Double?
    @Option(help: "Names with commas, a regular expression, or all-linear.") var loraTargetModules: String?
    @Option(help: "Begin from this adapter: one that the daemon holds, a PEFT directory or a .gguf adapter.")
    var initFromAdapter: String?
    @Option(help: "Longest sample in tokens.") var sequenceLen: Int?
    @Option(help: "Samples per micro-batch.") var microBatchSize: Int?
    @Option(help: "Micro-batches per step.") var gradientAccumulationSteps: Int?
    @Option(help: "Passes over the data.") var numEpochs: Double?
    @Option(help: "Optimizer steps; overrides --num-epochs.") var maxSteps: Int?
    @Option(help: "Peak learning rate.") var learningRate: Double?
    @Option(help: "linear, cosine or constant.") var lrScheduler: LearningRateSchedule?
    @Option(help: "Steps of warm-up.") var warmupSteps: Int?
    @Option(help: "auto, adamw, adamw_8bit or adamw_bf16: how AdamW's moments are stored.") var optimizer: Optimizer?
    @Option(help: "never, auto (where nothing else fits) or always: steps of two forwards and no backward, MeZO.") var zerothOrder: ZerothOrderSteps?
    @Option(help: "Seed of everything random.") var seed: UInt64?
    @Option(help: "Type of the products with frozen weights: auto, f32, bf16, f16 or int8.") var precision: Precision?
    @Option(help: "Steps between evaluations.") var evalSteps: Int?
    @Option(help: "Steps between checkpoints.") var saveSteps: Int?
    @Option(help: "900MiB, 2GB or 60%.") var memoryBudget: String?
    @Option(help: "Worker threads.") var threads: Int?
    @Option(help: "Of two jobs that wait the higher runs first: -10 to 10, above 0 for administrators.") var priority: Int?
    @Option(help: "End after so much running, with what has been trained: 6h, 90m.") var maxTime: String?
    @Option(help: "Run in these hours only, local time: 01:00-06:00.") var runBetween: String?
    @Flag(help: "Scaling is alpha / sqrt(r): rank-stabilised LoRA.") var useRslora = false
    @Flag(help: "Loss on every token, not on the answers only.") var trainOnInputs = false

    func apply(to request: inout JobRequest) throws {
        if let name { request.name = name }
        if let baseModel { request.baseModel = baseModel }
        if !dataset.isEmpty { request.datasets = dataset.map(DatasetReference.init(path:)) }
        if let valSetSize { request.valSetSize = valSetSize }
        if let adapter { request.adapter = adapter }
        if let loraR { request.loraR = loraR }
        if let loraAlpha { request.loraAlpha = loraAlpha }
        if useRslora { request.useRslora = true }
        if let loraplusLrRatio { request.loraplusLrRatio = loraplusLrRatio }
        if let loraDropout { request.loraDropout = loraDropout }
        if let loraTargetModules { request.loraTargetModules = Self.targets(loraTargetModules) }
        if let initFromAdapter { request.initFromAdapter = initFromAdapter }
        if let sequenceLen { request.sequenceLen = sequenceLen }
        if let microBatchSize { request.microBatchSize = microBatchSize }
        if let gradientAccumulationSteps { request.gradientAccumulationSteps = gradientAccumulationSteps }
        if let numEpochs { request.numEpochs = numEpochs }
        if let maxSteps { request.maxSteps = maxSteps }
        if let learningRate { request.learningRate = learningRate }
        if let lrScheduler { request.lrScheduler = lrScheduler }
        if let warmupSteps { request.warmupSteps = warmupSteps }
        if let optimizer { request.optimizer = optimizer }
        if let zerothOrder { request.zerothOrder = zerothOrder }
        if let seed { request.seed = seed }
        if let precision { request.precision = precision }
        if let evalSteps { request.evalSteps = evalSteps }
        if let saveSteps { request.saveSteps = saveSteps }
        if let memoryBudget { request.memoryBudget = memoryBudget }
        if let threads { request.threads = threads }
        if let priority { request.priority = priority }
        if let maxTime { request.maxTime = maxTime }
        if let runBetween { request.runBetween = runBetween }
        if trainOnInputs { request.trainOnInputs = true }
    }

    /// Words are names; anything else is PEFT's pattern.
    static func targets(_ text: String) -> TargetModules {
        let names = text.split(separator: ",").map(String.init)
        let areNames = names.allSatisfy { $0.allSatisfy { $0.isLetter || $0.isNumber || $0 == "_" } }
        return areNames && text != "all-linear" && !names.isEmpty ? .names(names) : .pattern(text)
    }
}

extension LearningRateSchedule: ExpressibleByArgument {}
extension Precision: ExpressibleByArgument {}
extension ZerothOrderSteps: ExpressibleByArgument {}
extension Optimizer: ExpressibleByArgument {
    package init?(argument: String) { self.init(name: argument) }
}
