// What was planned against what was held: one job in the real worker, or many random ones.
import ArgumentParser
import EdgeFormats
import EdgeJobs
import EdgeModel
import EdgeTensor
import EdgeTrain
import EdgeWire
import Foundation

extension ZerothOrderSteps: ExpressibleByArgument {}

struct PlanBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "plan", abstract: "Run jobs in the real worker, and compare their memory and time with their plans.",
        discussion: """
            With --model, one job of samples of --tokens tokens, once per --budget. With --random, so many jobs of random shapes, \
            specifications and budgets, and the exit status tells whether every plan was kept.
            """)

    @Option(help: "A GGUF model.") var model: String?
    @Option(help: "Tokens in each sample.") var tokens = 512
    @Option(help: "Samples in a step.") var samples = 1
    @Option(help: "The PEFT method.") var adapter = "lora"
    @Option(help: "Rank of the adapters; the method's own when absent.") var rank: Int?
    @Option(help: "Adapted modules: all-linear, or names with commas.") var targets = "all-linear"
    @Option(help: "Steps.") var steps = 3
    @Option(help: "The lowest adapted layer.") var fromLayer = 0
    @Option(help: "bf16 or int8: what the layers below that give is kept on disk.") var activationCache: String?
    @Option(help: "Samples in the data set.") var examples = 2
    @Option(help: "Worker threads.") var threads = 2
    @Option(help: "f32, bf16, f16, int8 or auto.") var precision = "auto"
    @Option(help: "auto, adamw, adamw_8bit or adamw_bf16.") var optimizer = "auto"
    @Option(help: "never, auto or always: steps without a backward.") var zerothOrder = ZerothOrderSteps.never
    @Option(help: "Norm that gradients are clipped to; 0: none.") var maxGradNorm = 1.0
    @Option(help: "Budgets, such as 900MiB.") var budget: [String] = []
    @Option(help: "Random jobs.") var random: Int?
    @Option(help: "Of the random jobs.") var seed: UInt64 = 1
    @Option(help: "A memory cgroup below which every run gets its own, with its budget as the limit.") var cgroup: String?
    @Option(help: "Where files are put while this runs.") var directory = "/tmp"
    @Option(help: "The daemon's program; the one beside this when absent.") var worker: String?
    @Flag(help: "JSON lines.") var json = false

    struct Line: Encodable {
        var job: String
        var budgetBytes: Int, plannedPeakBytes: Int?, requiredBytes: Int?
        var peakRssBytes: Int?, pageTableBytes: Int?, swapBytes: Int?, groupPeakBytes: Int?, groupKills: Int?
        var plannedTokensPerSecond: Double?, tokensPerSecond: Double?
        var choices: [String]
        var problem: String?
        var verdict: String

        static let head = "budget   planned  measured  of plan  tokens/s  planned  verdict"
        var row: String {
            func mebibytes(_ bytes: Int?) -> String { bytes.map { "\(($0 + 1 << 19) >> 20)" } ?? "-" }
            func number(_ value: Double?) -> String { value.map { $0 < 10 ? "\(($0 * 100).rounded() / 100)" : "\(Int($0.rounded()))" } ?? "-" }
            let share = plannedPeakBytes.flatMap { planned in
                peakRssBytes.map { "\(Int((Double($0 + (pageTableBytes ?? 0)) / Double(planned) * 1000).rounded()))‰" }
            }
            let cells = [
                (mebibytes(budgetBytes), 9), (mebibytes(plannedPeakBytes ?? requiredBytes), 9), (mebibytes(peakRssBytes), 10),
                (share ?? "-", 9), (number(tokensPerSecond), 10), (number(plannedTokensPerSecond), 9),
            ]
            return cells.map { Measurement.padded($0.0, $0.1) }.joined() + verdict + "  " + job
                + (choices.isEmpty ? "" : ": " + choices.joined(separator: "; ")) + (problem.map { "; " + $0 } ?? "")
        }
    }

    func run() throws {
        let files = directory + "/edgebench-\(getpid())"
        try FileManager.default.createDirectory(atPath: files, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: files) }
        let bench = PlanRunner(
            worker: MeasuredWorker(executable: worker ?? MeasuredWorker.besideThis, cgroup: cgroup), files: files)
        if !json { print(Line.head) }
        if let random {
            var broken = 0
            for index in 0..<random {
                let line = try bench.random(seed: seed &+ UInt64(index))
                try show(line)
                if !line.verdict.hasPrefix("kept") && !line.verdict.hasPrefix("refused") { broken += 1 }
            }
            guard broken == 0 else { throw ExitCode.failure }
            return
        }
        guard let model else { throw ValidationError("--model, or --random") }
        var request = JobRequest(baseModel: "model", datasets: [DatasetReference(path: "data")])
        request.valSetSize = 0
        request.adapter = adapter
        request.loraR = rank
        request.loraTargetModules =
            targets == "all-linear" ? .pattern(targets) : .names(targets.split(separator: ",").map(String.init))
        if fromLayer > 0 { request.layersToTransform = Array(fromLayer..<(try BaseModel.open(path: model).spec.layerCount)) }
        request.activationCache = try activationCache.map { name in
            guard let format = ActivationCacheFormat(rawValue: name) else { throw ValidationError("no cache in \(name)") }
            return format
        }
        request.sequenceLen = tokens
        request.microBatchSize = samples
        request.gradientAccumulationSteps = 1
        request.maxSteps = steps
        request.maxGradNorm = maxGradNorm
        request.zerothOrder = zerothOrder == .never ? nil : zerothOrder
        request.threads = threads
        request.trainOnInputs = true
        guard let type = Precision(rawValue: precision) else { throw ValidationError("no precision \(precision)") }
        request.precision = type
        let data = files + "/data.jsonl"
        try bench.writeSamples([Int](repeating: tokens, count: max(samples, examples)), of: model, to: data)
        request.optimizer = try Optimizer(name: optimizer) ?? { throw ValidationError("no optimizer \(optimizer)") }()
        try bench.calibrate(type, threads: threads)
        for budget in budget.isEmpty ? ["1TB"] : budget {
            guard let bytes = MemoryBudget(budget)?.resolved(machineBytes: 0), bytes > 0 else {
                throw ValidationError("no budget \(budget)")
            }
            let found = try bench.measure(request, model: model, data: data, budget: Int(bytes))
            try show(found.line("\(tokens) tokens x \(samples), \(adapter)\(rank.map { " r \($0)" } ?? "") \(targets)"))
        }
    }

    private func show(_ line: Line) throws {
        if json { try Measurement.printLine(line) } else { print(line.row) }
        fflush(nil)
    }
}

/// One job's plan and run.
struct PlanFinding {
    let budget: Int
    let run: MeasuredRun

    /// A plan is kept when the worker ran to its end within the plan, and not far below it: a plan that is larger than need be
    /// refuses what would fit.
    func line(_ job: String) -> PlanBench.Line {
        let planned = run.plan.map { Int($0.peakBytes) }
        let held = run.peakResidentBytes + run.pageTableBytes
        let verdict =
            if run.problem?.kind == .insufficientMemory {
                "refused"
            } else if !run.isTrained {
                "FAILED"
            } else if let planned, held > planned {
                "ABOVE PLAN"
            } else if let planned, Double(run.peakResidentBytes) < 0.9 * Double(planned) {
                "BELOW 0.9"
            } else if run.groupKills > 0 || run.swapBytes > 0 {
                "KILLED OR SWAPPED"
            } else {
                "kept"
            }
        return PlanBench.Line(
            job: job, budgetBytes: budget, plannedPeakBytes: planned, requiredBytes: run.problem?.requiredBytes.map { Int($0) },
            peakRssBytes: run.isTrained ? run.peakResidentBytes : nil, pageTableBytes: run.pageTableBytes,
            swapBytes: run.swapBytes, groupPeakBytes: run.groupPeakBytes, groupKills: run.groupKills,
            plannedTokensPerSecond: run.plan?.tokensPerSecond, tokensPerSecond: run.tokensPerSecond,
            choices: run.plan?.choices ?? [],
            problem: run.problem.map { $0.kind == .insufficientMemory ? "would fit: " + ($0.hint ?? "").replacingOccurrences(of: "\n", with: " | ") : $0.detail },
            verdict: verdict)
    }
}

struct PlanRunner {
    let worker: MeasuredWorker
    let files: String

    func measure(_ request: JobRequest, model: String, data: String, budget: Int) throws -> PlanFinding {
        PlanFinding(budget: budget, run: try worker.run(.train(order(request, model, data, budget))))
    }

    private func order(_ request: JobRequest, _ model: String, _ data: String, _ budget: Int) throws -> WorkOrder.TrainOrder {
        let job = files + "/job"
        try? FileManager.default.removeItem(atPath: job)
        try FileManager.default.createDirectory(atPath: job, withIntermediateDirectories: true)
        var order = WorkOrder.TrainOrder(
            job: "job", request: request, modelPath: model, modelDigest: "sha256:0", datasetPaths: [data], directory: job,
            budgetBytes: UInt64(budget), budgetReason: nil, defaultSaveSteps: 1_000_000)
        order.calibrationPath = calibration
        order.availableBytes = UInt64(Measurement.bytes("MemAvailable", in: "/proc/meminfo"))
        return order
    }

    private var calibration: String { files + "/calibration.json" }

    /// What the plans of the runs that follow predict times from.
    func calibrate(_ precision: Precision, threads: Int) throws {
        let run = try worker.withoutGroup.run(
            .calibrate(WorkOrder.CalibrateOrder(precision: precision, threads: threads, path: calibration)))
        if let problem = run.problem { throw problem }
    }

    /// Lines that the model's tokenizer makes into so many tokens: found by trying, for letters merge as they like.
    func writeSamples(_ lengths: [Int], of model: String, to path: String) throws {
        let tokenizer = try Tokenizer(try TokenizerSpec(gguf: try GGUFFile.open(path: model)))
        let random = RandomSource(seed: 9, .sampling)
        var lines = ""
        for (index, length) in lengths.enumerated() {
            var words = ""
            var word = 0
            func count() -> Int { tokenizer.encode(words, specialTokens: .parse).count + 1 }
            // An end token follows the text.
            while count() < length {
                let gap = length - count()
                for _ in 0..<max(1, gap / 8) {
                    words += String(UnicodeScalar(UInt8(97 + random.integer(index * 100_000 + word, below: 26)))) + " "
                    word += 1
                }
            }
            while count() > length { words.removeLast() }
            lines += "{\"text\": \"\(words)\"}\n"
        }
        try Data(lines.utf8).write(to: URL(filePath: path))
    }

    /// A job of a random shape, specification and budget: below what it needs in one of six, else up to a little more than it
    /// can use.
    func random(seed: UInt64) throws -> PlanBench.Line {
        let source = RandomSource(seed: seed, .sampling)
        var draws = 0
        func draw(_ below: Int) -> Int {
            defer { draws += 1 }
            return source.integer(draws, below: below)
        }
        func one<T>(_ of: [T]) -> T { of[draw(of.count)] }
        let heads = one([2, 4, 6, 8]), headDim = one([32, 64])
        let shape = ModelShape(
            layers: 2 + draw(9), hidden: 64 * (3 + draw(8)), intermediate: 64 * (8 + draw(20)), heads: heads,
            keyValueHeads: one([1, 2, heads].filter { heads % $0 == 0 }), headDim: headDim, vocabulary: 64 * (16 + draw(300)),
            isTied: draw(2) == 0, context: 4096)
        let model = files + "/model.gguf", data = files + "/data.jsonl"
        let format = one([GGMLType.q4_0, .q4_1, .q8_0])
        try RandomModel(shape: shape, format: format, seed: seed).write(to: model)
        let longest = 64 + draw(700)
        let lengths = (0..<6 + draw(20)).map { index in index == 0 ? longest : 16 + draw(longest - 15) }
        try writeSamples(lengths, of: model, to: data)
        var request = JobRequest(baseModel: "model", datasets: [DatasetReference(path: "data")])
        request.valSetSize = one([0, 0.2])
        let method = draw(2) == 0 ? AdapterMethods.lora : one(AdapterMethods.ofAnyModel)
        request.adapter = method.name
        if method.configKeys.rank != nil { request.loraR = min(method.largestRank, one([1, 4, 8, 16, 32])) }
        if method.hasDropout { request.loraDropout = one([0, 0, 0.1]) }
        request.loraTargetModules = one([.pattern("all-linear"), .names(["q_proj", "v_proj"]), .names(["down_proj"])])
        if draw(4) == 0 { request.layersToTransform = [shape.layers - 1] }
        request.sequenceLen = 4096
        request.microBatchSize = 1 + draw(4)
        request.gradientAccumulationSteps = 1 + draw(3)
        request.maxSteps = 3
        request.maxGradNorm = one([0, 1])
        // Of a stream of its own: the other draws stay what they were.
        let kind = RandomSource(seed: seed, .direction).integer(0, below: 12)
        if ZerothOrder.isPossible(with: method), kind < 2 { request.zerothOrder = [.auto, .always][kind] }
        request.threads = 1 + draw(2)
        request.precision = one([.auto, .f32, .auto])
        request.trainOnInputs = true

        // As the daemon has it: the run is planned with what the worker that planned first measured of itself.
        var process: UInt64?
        func made(_ budget: Int) throws -> WorkOrder.TrainOrder {
            var order = try order(request, model, data, budget)
            order.processBytes = process
            return order
        }
        let free = try worker.withoutGroup.run(.plan(made(1 << 50))).plan
        let largest = Int(free?.peakBytes ?? 0)
        process = free?.processBytes
        let smallest = Int(try worker.withoutGroup.run(.plan(made(1 << 20))).problem?.requiredBytes ?? 0)
        guard largest > 0, smallest > 0 else { throw ValidationError("no plan for seed \(seed)") }
        let budget =
            draw(6) == 0
            ? smallest - 1 - draw(smallest / 4) : smallest + draw(max(1, (largest - smallest) * 11 / 10))
        let finding = PlanFinding(budget: budget, run: try worker.run(.train(made(budget))))
        var line = finding.line("seed \(seed): \(shape.layers)x\(shape.hidden), \(format.name), \(longest) tokens, \(method.name)" + (request.loraR.map { " r \($0)" } ?? ""))
        if line.verdict == "refused" && budget >= smallest { line.verdict = "REFUSED THOUGH IT FITS" }
        if line.verdict == "kept" && budget < smallest { line.verdict = "RAN THOUGH NOTHING FITS" }
        return line
    }
}
