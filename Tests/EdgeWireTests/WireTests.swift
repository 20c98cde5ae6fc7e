// The wire as it is, byte for byte: a change here is a change of the API, and within 1.x fields are only added.
import EdgeWire
import Foundation
import Testing

private let moment = Date(timeIntervalSince1970: 1_760_000_000)

private func request() -> JobRequest {
    var request = JobRequest(baseModel: "m", datasets: [DatasetReference(path: "d")])
    request.name = "n"
    request.loraTargetModules = .names(["q_proj"])
    return request
}
private let progress = JobProgress(
    step: 3, totalSteps: 9, epoch: 0.5, loss: 2.25, learningRate: 0.125, gradNorm: 1.5, tokensPerSecond: 40,
    rssBytes: 5, plannedPeakBytes: 6, budgetBytes: 7, etaSeconds: 8, evalLoss: 2, bestEvalLoss: 1.75)
private let plan = PlanReport(
    pools: [PlanReport.Pool(name: "adapters", bytes: 1)], peakBytes: 2, budgetBytes: 3, choices: ["c"], precision: .int8,
    trainableParameters: 4, samples: 5, heldOutSamples: 6, tooLongSamples: 1, tooLongLines: [7], totalSteps: 8)
private let problem = Problem(.insufficientMemory, "d", hint: "h", requiredBytes: 2, budgetBytes: 1)
private let evaluation = EvaluationReport(step: 1, loss: 2, perplexity: 7.5, tokens: 3, isBest: true)

private func round<Value: Codable & Equatable>(
    _ value: Value, _ golden: String, sourceLocation: SourceLocation = #_sourceLocation
) throws {
    let text = String(decoding: try Wire.encoder().encode(value), as: UTF8.self)
    #expect(text == golden, sourceLocation: sourceLocation)
    #expect(try Wire.decoder().decode(Value.self, from: Data(golden.utf8)) == value, sourceLocation: sourceLocation)
}

private let requestJSON =
    #"{"adam_beta1":0.9,"adam_beta2":0.999,"adam_epsilon":1e-08,"adapter":"lora","base_model":"m","#
    + #""datasets":[{"path":"d"}],"gradient_accumulation_steps":8,"learning_rate":0.0002,"#
    + #""lora_dropout":0,"lora_target_modules":["q_proj"],"lr_scheduler":"cosine","max_grad_norm":1,"#
    + #""micro_batch_size":1,"name":"n","num_epochs":3,"optimizer":"auto","precision":"auto","seed":42,"sequence_len":512,"train_on_inputs":false,"#
    + #""val_set_size":0.1,"weight_decay":0}"#
private let progressJSON =
    #"{"best_eval_loss":1.75,"budget_bytes":7,"epoch":0.5,"eta_seconds":8,"eval_loss":2,"grad_norm":1.5,"#
    + #""learning_rate":0.125,"loss":2.25,"planned_peak_bytes":6,"rss_bytes":5,"step":3,"tokens_per_second":40,"#
    + #""total_steps":9}"#
private let planJSON =
    #"{"budget_bytes":3,"choices":["c"],"held_out_samples":6,"peak_bytes":2,"pools":[{"bytes":1,"name":"adapters"}],"#
    + #""precision":"int8","samples":5,"too_long_lines":[7],"too_long_samples":1,"total_steps":8,"trainable_parameters":4}"#
private let problemJSON =
    #"{"budget_bytes":1,"detail":"d","hint":"h","required_bytes":2,"status":422,"#
    + #""title":"Does not fit the memory budget","type":"urn:edgetune:problem:insufficient-memory"}"#
private let modelJSON =
    #"{"architecture":"llama","context_length":4,"file_bytes":6,"hidden_size":2,"layers":1,"parameters":5,"#
    + #""quantisation":"Q4_1 71 %","target_modules":["q_proj"],"title":"T","vocabulary":3}"#

@Suite struct GoldenTests {
    @Test func jobRequest() throws { try round(request(), requestJSON) }

    @Test func jobStatusAndList() throws {
        let status = JobStatus(
            id: "j-1", name: "n", state: .running, reason: "r", ownerUid: 1000, createdAt: moment, startedAt: moment,
            finishedAt: nil, runs: 1, request: request(), progress: progress, plan: plan, problem: problem, adapter: "a"
        )
        let golden =
            #"{"adapter":"a","created_at":"2025-10-09T08:53:20Z","id":"j-1","name":"n","owner_uid":1000,"plan":"#
            + planJSON + #","problem":"# + problemJSON + #","progress":"# + progressJSON + #","reason":"r","request":"#
            + requestJSON + #","runs":1,"started_at":"2025-10-09T08:53:20Z","state":"running"}"#
        try round(status, golden)
        try round(JobList(jobs: [status]), #"{"jobs":["# + golden + "]}")
    }

    @Test func planProgressEvaluationAndProblem() throws {
        try round(plan, planJSON)
        try round(progress, progressJSON)
        try round(problem, problemJSON)
        try round(evaluation, #"{"is_best":true,"loss":2,"perplexity":7.5,"step":1,"tokens":3}"#)
    }

    @Test func everyEvent() throws {
        let kinds: [(JobEvent.Kind, String)] = [
            (.state(.queued, reason: "r"), #""reason":"r","seq":1,"state":"queued","type":"state""#),
            (.state(.queued, reason: nil), #""seq":1,"state":"queued","type":"state""#),
            (.plan(plan), #""plan":"# + planJSON + #","seq":1,"type":"plan""#),
            (.step(progress), #""progress":"# + progressJSON + #","seq":1,"type":"step""#),
            (
                .evaluation(evaluation),
                #""evaluation":{"is_best":true,"loss":2,"perplexity":7.5,"step":1,"tokens":3},"seq":1,"type":"evaluation""#
            ),
            (.checkpoint(step: 4), #""seq":1,"step":4,"type":"checkpoint""#),
            (.log("l"), #""message":"l","seq":1,"type":"log""#),
            (.problem(problem), #""problem":"# + problemJSON + #","seq":1,"type":"problem""#),
            (.heartbeat, #""seq":1,"type":"heartbeat""#),
            (.end(.succeeded), #""seq":1,"state":"succeeded","type":"end""#),
        ]
        for (kind, fields) in kinds {
            try round(JobEvent(seq: 1, at: moment, event: kind), #"{"at":"2025-10-09T08:53:20Z","# + fields + "}")
        }
        #expect(Set(kinds.map(\.0.type)) == Set(JobEvent.knownTypes))
    }

    @Test func modelsDatasetsAdaptersAndBlobs() throws {
        try round(ImportRequest(name: "n", blob: "sha256:0"), #"{"blob":"sha256:0","name":"n"}"#)
        let model = ModelRecord(
            name: "n", blob: "b", ownerUid: 1, createdAt: moment,
            model: ModelReport(
                architecture: "llama", title: "T", layers: 1, hiddenSize: 2, vocabulary: 3, contextLength: 4,
                parameters: 5, quantisation: "Q4_1 71 %", fileBytes: 6, targetModules: ["q_proj"]))
        try round(
            ModelList(models: [model]),
            #"{"models":[{"blob":"b","created_at":"2025-10-09T08:53:20Z","model":"# + modelJSON
                + #","name":"n","owner_uid":1}]}"#)
        let dataset = DatasetRecord(
            name: "n", blob: "b", bytes: 2, ownerUid: 1, createdAt: moment,
            dataset: DatasetReport(samples: 3, kinds: ["prompt_completion": 3]))
        try round(
            DatasetList(datasets: [dataset]),
            #"{"datasets":[{"blob":"b","bytes":2,"created_at":"2025-10-09T08:53:20Z","dataset":"#
                + #"{"kinds":{"prompt_completion":3},"samples":3},"name":"n","owner_uid":1}]}"#)
        let adapter = AdapterRecord(
            name: "n", job: "j", baseModel: "m", ownerUid: 1, createdAt: moment, path: "/p",
            files: [AdapterRecord.File(name: "f", bytes: 1)])
        try round(
            AdapterList(adapters: [adapter]),
            #"{"adapters":[{"base_model":"m","created_at":"2025-10-09T08:53:20Z","files":[{"bytes":1,"name":"f"}],"#
                + #""job":"j","name":"n","owner_uid":1,"path":"/p"}]}"#)
        try round(
            BlobStatus(digest: "d", receivedBytes: 1, complete: false),
            #"{"complete":false,"digest":"d","received_bytes":1}"#)
    }

    @Test func modelsOfSeveralFiles() throws {
        let file = ModelFile(name: "f", blob: "sha256:0")
        let fileJSON = #"{"blob":"sha256:0","name":"f"}"#
        try round(ModelRequest(name: "n", blob: "sha256:0"), #"{"blob":"sha256:0","name":"n"}"#)
        try round(
            ModelRequest(name: "n", files: [file], source: "hf:a/b@c"),
            #"{"files":["# + fileJSON + #"],"name":"n","source":"hf:a/b@c"}"#)
        var status = ModelImportStatus(
            name: "n", state: .failed, ownerUid: 1, createdAt: moment, writtenBytes: 2, totalBytes: 3, peakBytes: 4,
            problem: problem)
        let rest = #","state":"failed","total_bytes":3,"written_bytes":2}"#
        let statusJSON = #"{"created_at":"2025-10-09T08:53:20Z","name":"n","owner_uid":1,"peak_bytes":4,"problem":"#
            + problemJSON + rest
        try round(status, statusJSON)
        try round(ModelList(models: [], imports: [status]), #"{"imports":["# + statusJSON + #"],"models":[]}"#)
        let record = ModelRecord(
            name: "n", blob: "b", ownerUid: 1, createdAt: moment,
            model: ModelReport(
                architecture: "llama", title: "T", layers: 1, hiddenSize: 2, vocabulary: 3, contextLength: 4,
                parameters: 5, quantisation: "Q4_1 71 %", fileBytes: 6, targetModules: ["q_proj"]),
            files: [file], source: "s")
        status = ModelImportStatus(done: record)
        try round(
            status,
            #"{"created_at":"2025-10-09T08:53:20Z","name":"n","owner_uid":1,"peak_bytes":0,"record":{"blob":"b","#
                + #""created_at":"2025-10-09T08:53:20Z","files":["# + fileJSON + #"],"model":"# + modelJSON
                + #","name":"n","owner_uid":1,"source":"s"},"state":"done","total_bytes":6,"written_bytes":6}"#)
    }

    @Test func generationAndStatus() throws {
        try round(
            GenerateRequest(model: "m", adapter: "a", messages: [ChatMessage(role: "user", content: "c")]),
            #"{"adapter":"a","max_tokens":256,"messages":[{"content":"c","role":"user"}],"model":"m","seed":42,"#
                + #""temperature":0}"#)
        try round(GenerateEvent(text: "t"), #"{"done":false,"text":"t"}"#)
        try round(
            GenerateEvent(done: true, promptTokens: 1, generatedTokens: 2, tokensPerSecond: 3, problem: problem),
            #"{"done":true,"generated_tokens":2,"problem":"# + problemJSON
                + #","prompt_tokens":1,"tokens_per_second":3}"#)
        try round(
            HostStatus(
                version: "v", startedAt: moment, kernelSet: "avx2", cores: 2, memoryTotalBytes: 3,
                memoryAvailableBytes: 4, diskFreeBytes: 5, temperatures: [.init(zone: "z", celsius: 40)],
                runningJobs: ["j"], queuedJobs: 6, models: 7, adapters: 8),
            #"{"adapters":8,"cores":2,"disk_free_bytes":5,"kernel_set":"avx2","memory_available_bytes":4,"#
                + #""memory_total_bytes":3,"models":7,"queued_jobs":6,"running_jobs":["j"],"#
                + #""started_at":"2025-10-09T08:53:20Z","temperatures":[{"celsius":40,"zone":"z"}],"version":"v"}"#)
    }

    @Test func problemKindsKeepTheirStatusAndName() {
        let table = Problem.Kind.allCases.map { "\($0.rawValue) \($0.status)" }
        #expect(
            table == [
                "bad-request 400", "unknown-key 400", "invalid-value 422", "insufficient-memory 422",
                "insufficient-disk 507", "unsupported-model 422", "bad-dataset 422", "bad-adapter 422",
                "not-found 404", "wrong-state 409", "conflict 409", "not-permitted 403", "digest-mismatch 422",
                "too-large 413", "queue-full 429", "cursor-expired 410", "non-finite 500", "plan-exceeded 500",
                "worker-killed 500", "worker-crashed 500", "internal-error 500",
            ])
    }
}

@Suite struct CompatibilityTests {
    @Test func absentKeysTakeTheirDefaults() throws {
        let read = try Wire.decoder().decode(
            JobRequest.self, from: Data(#"{"base_model":"m","datasets":[{"path":"d"}]}"#.utf8))
        #expect(read == JobRequest(baseModel: "m", datasets: [DatasetReference(path: "d")]))
    }

    @Test(arguments: [
        ("adamw", Optimizer.adamw), ("adamw_torch", .adamw), ("adamw_8bit", .adamw8Bit), ("adamw_bnb_8bit", .adamw8Bit),
        ("adamw_bf16", .adamwBF16), ("sgd", nil),
    ])
    func optimizersHaveTheirNamesElsewhereToo(_ name: String, _ optimizer: Optimizer?) throws {
        let text = #"{"base_model":"m","datasets":[{"path":"d"}],"optimizer":"\#(name)"}"#
        let read = try? Wire.decoder().decode(JobRequest.self, from: Data(text.utf8))
        #expect(read?.optimizer == optimizer)
    }

    @Test func fieldsAddedLaterAreIgnored() throws {
        let text = #"{"complete":true,"digest":"d","received_bytes":1,"colour":"green"}"#
        #expect(
            try Wire.decoder().decode(BlobStatus.self, from: Data(text.utf8))
                == BlobStatus(digest: "d", receivedBytes: 1, complete: true))
    }

    @Test func everyKeyOfARequestIsSnakeCaseOnTheWireAsInTheFile() throws {
        var full = request()
        (full.loraR, full.loraAlpha, full.useRslora, full.loraplusLrRatio, full.initLoraWeights) = (8, 16, true, 4, .gaussian)
        (full.rankPattern, full.alphaPattern) = (["q_proj": 4], ["k_proj": 2])
        (full.decomposeFactor, full.decomposeBoth) = (8, true)
        (full.oftBlockSize, full.useCayleyNeumann) = (8, false)
        (full.numExperts, full.topK, full.routerAuxLossCoef) = (4, 2, 0.1)
        (full.numVirtualTokens, full.promptTuningInit) = (8, .random)
        (full.tasks, full.taskR) = (["a"], 2)
        (full.tokenIndices, full.trainableTokens, full.modulesToSave) = ([1], ["<|im_end|>"], ["norm"])
        (full.reductionFactor, full.nonLinearity, full.adapterScaling) = (8, .geluNew, 2)
        (full.mhAdapter, full.outputAdapter) = (true, false)
        (full.targetR, full.tinit, full.tfinal, full.deltaT) = (4, 1, 1, 1)
        (full.beta1, full.beta2, full.orthRegWeight) = (0.5, 0.5, 0.1)
        (full.layersToTransform, full.activationCache) = ([1], .bf16)
        (full.zerothOrder, full.mezoEps) = (.auto, 0.01)
        full.initFromAdapter = "a"
        (full.evaWhiten, full.originalModel) = (true, "o")
        full.maxSteps = 1
        full.warmupSteps = 1
        full.warmupRatio = 0.5
        full.evalSteps = 1
        full.saveSteps = 1
        full.earlyStoppingPatience = 1
        full.memoryBudget = "60%"
        full.threads = 1
        full.priority = 1
        full.maxTime = "6h"
        full.runBetween = "01:00-06:00"
        let object = try JSONSerialization.jsonObject(with: Wire.encoder().encode(full)) as? [String: Any]
        #expect(
            Set(object?.keys ?? [:].keys) == Set(JobRequest.CodingKeys.allCases.map { Wire.snakeCase($0.rawValue) }))
    }

    @Test(arguments: [
        ("a", true), ("A.b_c-9", true), ("", false), (".a", false), ("-a", false), ("a/b", false), ("é", false),
    ])
    func namesAreSafeAsFileNamesAndArguments(_ name: String, _ isAllowed: Bool) {
        #expect(Wire.isName(name) == isAllowed)
        #expect(!Wire.isName(String(repeating: "a", count: 65)))
    }

    @Test func budgetsAreSizesOrShares() {
        #expect(MemoryBudget("900MiB") == .bytes(943_718_400))
        #expect(MemoryBudget("2 GB") == .bytes(2_000_000_000))
        #expect(MemoryBudget("60%") == .share(0.6))
        for text in ["", "MiB", "0", "-1MB", "101%", "5 apples", "1e30", "nan"] { #expect(MemoryBudget(text) == nil) }
    }

    @Test func rangesNameTheKeyTheValueAndTheLimit() {
        var wrong = request()
        wrong.loraR = 0
        let error = #expect(throws: InvalidRequest.self) { try wrong.validate() }
        #expect(error?.description == "lora_r: 0 is not allowed; use 1 to 512")
    }
}
