// Methods through the real daemon: the table, a job of each to its exports, and what is refused.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

struct Refusal: Sendable, CustomTestStringConvertible {
    let text: String
    let change: @Sendable (inout JobRequest) -> Void
    var testDescription: String { text }
}

@Suite(.serialized) struct DaemonMethodTests {
    static func table(_ daemon: DaemonProcess, _ change: (inout MethodsRequest) -> Void = { _ in }) throws -> MethodTable {
        var request = MethodsRequest(baseModel: "tiny")
        request.sequenceLen = 64
        change(&request)
        let answer = try daemon.post(Endpoint.methods, request)
        #expect(answer.status == 200, "\(answer.text)")
        return try answer.decoded(MethodTable.self)
    }

    @Test func everyMethodOfTheTableTrainsAndIsExportedAsTheTableSays() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        let rows = try Self.table(daemon).rows
        #expect(
            rows.map(\.name) == [
                "lora", "lora-fa", "dora", "dylora", "vera", "miss", "loha", "lokr", "adalora", "ia3", "oft", "rlrr", "mtlora", "mixlora",
                "prefix-tuning", "prompt-tuning", "ln-tuning", "trainable-tokens", "seq_bn", "double_seq_bn", "par_bn", "mam", "unipelt", "lst",
            ])
        for row in rows where row.name != "mtlora" {
            #expect(row.fits && row.peakBytes > 0 && row.tokensPerSecond ?? 0 > 0, "\(row)")
            var request = KillTests.request("of-\(row.name)")
            (request.adapter, request.loraR, request.loraDropout, request.maxSteps, request.saveSteps) = (row.name, nil, 0, 6, 100)
            if row.name == "trainable-tokens" { request.tokenIndices = [0] }
            let answer = try daemon.post(Endpoint.jobs, request)
            #expect(answer.status == 201, "\(answer.text)")
            let ended = try daemon.wait(for: try answer.decoded(JobStatus.self).id) { $0.state.isFinal }
            #expect(ended.state == .succeeded, "\(row.name): \(ended)")
            #expect(ended.plan?.trainableParameters == row.trainableParameters)
            for (reader, file) in [("peft", "adapter_model.safetensors"), ("adapters", "adapter.safetensors")] {
                let tensors = try daemon.call("GET", Endpoint.adapterFile(request.name!, file))
                #expect((tensors.status == 200) == row.exports.contains(reader), "\(row.name): \(tensors.status)")
                if tensors.status == 200 {
                    #expect(tensors.body.count > row.adapterBytes, "\(row)")
                } else {
                    #expect(tensors.text.contains("PEFT has no") || tensors.text.contains("--format peft"), "\(tensors.text)")
                }
            }
            let gguf = try daemon.call("GET", Endpoint.adapterFile(request.name!, "adapter.gguf"))
            #expect((gguf.status == 200) == row.exports.contains("gguf"), "\(row.name): \(gguf.status)")
            if gguf.status != 200 { #expect(gguf.text.contains("type lora only"), "\(gguf.text)") }
            var generation = GenerateRequest(
                model: "tiny", adapter: request.name, messages: [ChatMessage(role: "user", content: "ab")])
            generation.maxTokens = 4
            let generated = try daemon.post(Endpoint.generate, generation)
            #expect(generated.status == 200 && generated.text.contains("\"done\":true"), "\(generated.text)")
        }
    }

    @Test func aJobOfTasksGivesALoRAOfEach() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        let row = try #require(try Self.table(daemon).rows.first { $0.name == "mtlora" })
        #expect(row.exports == ["peft", "gguf"])
        var request = KillTests.request("both")
        (request.adapter, request.tasks, request.loraR, request.maxSteps, request.saveSteps) = ("mtlora", ["a", "b"], nil, 6, 100)
        let ended = try daemon.wait(for: try daemon.post(Endpoint.jobs, request).decoded(JobStatus.self).id) { $0.state.isFinal }
        #expect(ended.state == .succeeded && ended.plan?.trainableParameters == row.trainableParameters, "\(ended)")
        // What the tasks share, and one's own: two thirds of what all have.
        let tensors = try daemon.call("GET", Endpoint.adapterFile("both", task: "b", "adapter_model.safetensors"))
        #expect(tensors.status == 200 && tensors.body.count > row.adapterBytes * 2 / 3 && tensors.body.count < row.adapterBytes)
        let config = try daemon.call("GET", Endpoint.adapterFile("both", task: "b", "adapter_config.json")).text
        #expect(config.contains("\"peft_type\": \"LORA\"") && config.contains("\"r\": 32") && config.contains("\"lora_alpha\": 64"), "\(config)")
        #expect(try daemon.call("GET", Endpoint.adapterFile("both", task: "a", "adapter.gguf")).status == 200)
        var generation = GenerateRequest(model: "tiny", adapter: "both", messages: [ChatMessage(role: "user", content: "ab")])
        generation.maxTokens = 4
        let refused = try daemon.post(Endpoint.generate, generation)
        #expect(refused.text.contains("the adapter is a LoRA of each of the tasks a, b, and none was named"), "\(refused.text)")
        generation.task = "a"
        #expect(try daemon.post(Endpoint.generate, generation).text.contains("\"done\":true"))
        let merged = try daemon.post(Endpoint.mergedModel("both"), MergeRequest(format: .f16, task: "b"))
        #expect(merged.text.contains("\"losses\":{"), "\(merged.text)")
        let refusals: [(HTTPAnswer, String)] = [
            (try daemon.call("GET", Endpoint.adapterFile("both", "adapter.gguf")), "none was named"),
            (try daemon.call("GET", Endpoint.adapterFile("both", "adapter_model.safetensors")), "none was named"),
            (try daemon.call("GET", Endpoint.adapterFile("both", task: "c", "adapter.gguf")), "no task c; it has a, b"),
            (try daemon.post(Endpoint.mergedModel("both"), MergeRequest(format: .f16)), "none was named"),
        ]
        for (answer, text) in refusals { #expect(answer.text.contains(text), "\(answer.text)") }
        for (tasks, text) in [(["a"], "line 2: the job has no task \\\"b\\\"; it has a"), (["a", "b", "c"], "no line has the task \\\"c\\\"")] {
            (request.name, request.tasks) = ("x", tasks)
            let answer = try daemon.post(Endpoint.plan, request)
            #expect(answer.text.contains(text), "\(answer.text)")
        }
        try KillTests.importBlob(Data("{\"text\":\"abab\"}\n".utf8), as: "other", at: Endpoint.datasets, daemon)
        (request.tasks, request.datasets) = (["a", "b"], [DatasetReference(path: "other")])
        #expect(try daemon.post(Endpoint.plan, request).text.contains("line 1: needs a \\\"task\\\", one of the job's: a, b"))
    }

    /// Its own rank is too much for a model as narrow as this one, so the table has no row of it.
    @Test func aSparseChangeTrainsIsExportedAndGenerates() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        var request = KillTests.request("sparse")
        (request.adapter, request.loraR, request.loraDropout, request.maxSteps, request.saveSteps) = ("shira", 4, 0, 6, 100)
        let answer = try daemon.post(Endpoint.jobs, request)
        #expect(answer.status == 201, "\(answer.text)")
        let ended = try daemon.wait(for: try answer.decoded(JobStatus.self).id) { $0.state.isFinal }
        #expect(ended.state == .succeeded, "\(ended)")
        let config = try daemon.call("GET", Endpoint.adapterFile("sparse", "adapter_config.json")).text
        #expect(config.contains("\"peft_type\": \"SHIRA\"") && config.contains("\"r\": 4"), "\(config)")
        #expect(try daemon.call("GET", Endpoint.adapterFile("sparse", "adapter_model.safetensors")).status == 200)
        var generation = GenerateRequest(model: "tiny", adapter: "sparse", messages: [ChatMessage(role: "user", content: "ab")])
        generation.maxTokens = 4
        let generated = try daemon.post(Endpoint.generate, generation)
        #expect(generated.status == 200 && generated.text.contains("\"done\":true"), "\(generated.text)")
    }

    @Test func aMethodThatDoesNotFitSaysWhatItNeeds() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        let table = try Self.table(daemon) { $0.memoryBudget = "1MiB" }
        #expect(table.budgetBytes == 1 << 20)
        #expect(table.rows.allSatisfy { !$0.fits && $0.peakBytes > 1 << 20 && $0.tokensPerSecond == nil })
    }

    @Test func aJobTrainsWithoutABackwardWhereItAsksForThat() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        let rows = try Self.table(daemon).rows
        for row in rows {
            let needsOne = ["adalora", "dylora", "mixlora"].contains(row.name)
            #expect((row.forwardOnlyPeakBytes == nil) == needsOne, "\(row)")
            // Of lst's steps both kinds take less on this model than what comes before the first.
            #expect(row.forwardOnlyPeakBytes ?? 0 < row.peakBytes || row.name == "lst" && row.forwardOnlyPeakBytes == row.peakBytes, "\(row)")
        }
        for (steps, choice) in [(ZerothOrderSteps.always, true), (.auto, false)] {
            var request = KillTests.request("steps-\(steps.rawValue)")
            (request.zerothOrder, request.maxSteps) = (steps, 6)
            let answer = try daemon.post(Endpoint.jobs, request)
            #expect(answer.status == 201, "\(answer.text)")
            let ended = try daemon.wait(for: try answer.decoded(JobStatus.self).id) { $0.state.isFinal }
            #expect(ended.state == .succeeded, "\(ended)")
            #expect(ended.plan?.choices.contains { $0.contains("no backward") } == choice, "\(ended.plan?.choices ?? [])")
            #expect(try daemon.call("GET", Endpoint.adapterFile(request.name!, "adapter.gguf")).status == 200)
        }
    }

    @Test(arguments: [
        Refusal(text: "adapter: there is no method \"lorra\"; use one of lora, lora-fa,") { $0.adapter = "lorra" },
        Refusal(text: "lora_r: ia3 has no rank") { ($0.adapter, $0.loraR, $0.loraDropout) = ("ia3", 8, 0) },
        Refusal(text: "lora_alpha: vera has no alpha") { ($0.adapter, $0.loraAlpha, $0.loraDropout) = ("vera", 8, 0) },
        Refusal(text: "lora_dropout: dora has no dropout here") { $0.adapter = "dora" },
        Refusal(text: "use_rslora: miss has no such scaling") { ($0.adapter, $0.useRslora, $0.loraDropout) = ("miss", true, 0) },
        Refusal(text: "activation_cache: the model's first layer is adapted") { $0.activationCache = .bf16 },
        Refusal(text: "loraplus_lr_ratio: loha has no B of its own") { ($0.adapter, $0.loraplusLrRatio, $0.loraDropout) = ("loha", 4, 0) },
        Refusal(text: "init_lora_weights: ia3 has no such start") {
            ($0.adapter, $0.loraR, $0.initLoraWeights, $0.loraDropout) = ("ia3", nil, .eva, 0)
        },
        Refusal(text: "eva_whiten: there is nothing to whiten") { $0.evaWhiten = true },
        Refusal(text: "init_lora_weights: eva finds a direction for every rank; model.layers.0.self_attn.q_proj has the rank 65 and 64") {
            ($0.initLoraWeights, $0.loraR) = (.eva, 65)
        },
        Refusal(text: "lora_r: 23 is not allowed; with loha use 1 to 22") { ($0.adapter, $0.loraR, $0.loraDropout) = ("loha", 23, 0) },
        Refusal(text: "target_r: lora has no ranks that are taken away") { $0.targetR = 4 },
        Refusal(text: "target_r: 12 is not allowed; with lora_r: 12 use 1 to 11") {
            ($0.adapter, $0.loraR, $0.targetR, $0.loraDropout) = ("adalora", nil, 12, 0)
        },
        Refusal(text: "tinit: 4 and tfinal: 2 leave none of the run's 6 steps in which ranks are taken away") {
            ($0.adapter, $0.loraR, $0.tinit, $0.tfinal, $0.maxSteps) = ("adalora", nil, 4, 2, 6)
        },
        Refusal(text: "decompose_factor: loha has no matrices of such sizes") {
            ($0.adapter, $0.decomposeFactor, $0.loraDropout) = ("loha", 4, 0)
        },
        Refusal(text: "decompose_factor: 0 is not allowed; use -1, or 1 to 1024") {
            ($0.adapter, $0.decomposeFactor, $0.loraDropout) = ("lokr", 0, 0)
        },
        Refusal(text: "tasks: missing; mtlora trains something for each task") { ($0.adapter, $0.loraDropout) = ("mtlora", 0) },
        Refusal(text: "tasks: lora has no tasks") { $0.tasks = ["a"] },
        Refusal(text: "task_r: lora has no tasks") { $0.taskR = 4 },
        Refusal(text: "tasks: \"a.b\" is not allowed; use 1 to 64 names") { ($0.adapter, $0.tasks) = ("mtlora", ["a.b"]) },
        Refusal(text: "tasks: \"a\", \"a\" is not allowed; use each name once") { ($0.adapter, $0.tasks) = ("mtlora", ["a", "a"]) },
        Refusal(text: "mezo_eps: every step has a backward") { $0.mezoEps = 0.01 },
        Refusal(text: "mezo_eps: 2.0 is not allowed; use 0.000001 to 1") { ($0.zerothOrder, $0.mezoEps) = (.always, 2) },
        Refusal(text: "optimizer: adamw_8bit has moments, and steps without a backward have none") {
            ($0.zerothOrder, $0.optimizer) = (.always, .adamw8Bit)
        },
        Refusal(text: "zeroth_order: dylora needs a backward: its steps train a number of ranks that they draw") {
            ($0.adapter, $0.zerothOrder, $0.loraDropout) = ("dylora", .auto, 0)
        },
        Refusal(text: "zeroth_order: adalora needs a backward: it takes ranks away") {
            ($0.adapter, $0.loraR, $0.zerothOrder, $0.loraDropout) = ("adalora", nil, .always, 0)
        },
        Refusal(text: "oft_block_size: lora has no blocks that are turned") { $0.oftBlockSize = 8 },
        Refusal(text: "lora_r: oft has no rank") { ($0.adapter, $0.loraR, $0.loraDropout) = ("oft", 8, 0) },
        Refusal(text: "oft_block_size: 1 is not allowed; use 2 to 256") {
            ($0.adapter, $0.loraR, $0.oftBlockSize, $0.loraDropout) = ("oft", nil, 1, 0)
        },
        Refusal(text: "reduction_factor: lora has no bottleneck") { $0.reductionFactor = 8 },
        Refusal(text: "num_virtual_tokens: seq_bn has no virtual tokens") {
            ($0.adapter, $0.loraR, $0.numVirtualTokens, $0.loraDropout) = ("seq_bn", nil, 4, 0)
        },
        Refusal(text: "reduction_factor: 0.5 is not allowed; use 1 to 65536") {
            ($0.adapter, $0.loraR, $0.reductionFactor, $0.loraDropout) = ("par_bn", nil, 0.5, 0)
        },
        Refusal(text: "output_adapter: false is not allowed; use it with mh_adapter: true") {
            ($0.adapter, $0.loraR, $0.outputAdapter, $0.loraDropout) = ("seq_bn", nil, false, 0)
        },
        Refusal(text: "reduction_factor: 12 is not allowed; it divides the model's hidden size of 64: use one of 1, 2, 4,") {
            ($0.adapter, $0.loraR, $0.reductionFactor, $0.loraDropout) = ("lst", nil, 12, 0)
        },
        Refusal(text: "reduction_factor: 2.5 is not allowed; with lst it is a whole number") {
            ($0.adapter, $0.loraR, $0.reductionFactor, $0.loraDropout) = ("lst", nil, 2.5, 0)
        },
        Refusal(text: "non_linearity: lst has no bottleneck") {
            ($0.adapter, $0.loraR, $0.nonLinearity, $0.loraDropout) = ("lst", nil, .relu, 0)
        },
        Refusal(text: "layers_to_transform: lst has no layers to choose") {
            ($0.adapter, $0.loraR, $0.layersToTransform, $0.loraDropout) = ("lst", nil, [1], 0)
        },
        Refusal(text: "activation_cache: lst reads what every layer gives") {
            ($0.adapter, $0.loraR, $0.activationCache, $0.loraDropout) = ("lst", nil, .bf16, 0)
        },
        Refusal(text: "num_experts: lora has no experts") { $0.numExperts = 4 },
        Refusal(text: "top_k: 3 is not allowed; with num_experts: 2 use 1 to 2") {
            ($0.adapter, $0.numExperts, $0.topK, $0.loraDropout) = ("mixlora", 2, 3, 0)
        },
        Refusal(text: "layers_to_transform: mixlora has no layers to choose") {
            ($0.adapter, $0.layersToTransform, $0.loraDropout) = ("mixlora", [1], 0)
        },
        Refusal(text: "num_virtual_tokens: lora has no virtual tokens") { $0.numVirtualTokens = 8 },
        Refusal(text: "lora_r: prefix-tuning has no rank") { ($0.adapter, $0.loraR, $0.loraDropout) = ("prefix-tuning", 8, 0) },
        Refusal(text: "num_virtual_tokens: 0 is not allowed; use 1 to 512") {
            ($0.adapter, $0.loraR, $0.numVirtualTokens, $0.loraDropout) = ("prompt-tuning", nil, 0, 0)
        },
        Refusal(text: "num_virtual_tokens: 512 leave no room in the model's context of") {
            ($0.adapter, $0.loraR, $0.numVirtualTokens, $0.loraDropout) = ("prompt-tuning", nil, 512, 0)
        },
        Refusal(text: "lora_target_modules: prefix-tuning has no linears to choose") {
            ($0.adapter, $0.loraR, $0.loraTargetModules, $0.loraDropout) = ("prefix-tuning", nil, .names(["q_proj"]), 0)
        },
        Refusal(text: "lora_r: rlrr has no rank") { ($0.adapter, $0.loraDropout) = ("rlrr", 0) },
        Refusal(text: "bitfit trains biases, and no linear of this model has one") { ($0.adapter, $0.loraR, $0.loraDropout) = ("bitfit", nil, 0) },
        Refusal(text: "lora_r: 32 is not allowed; with shira model.layers.0.self_attn.k_proj can have 1 to 21") {
            ($0.adapter, $0.loraR, $0.loraDropout) = ("shira", nil, 0)
        },
        Refusal(text: "lora_alpha: shira has no alpha") { ($0.adapter, $0.loraAlpha, $0.loraDropout) = ("shira", 8, 0) },
        Refusal(text: "lora_target_modules q_proj matches nothing of this model that the method can change; there are input_layernorm, norm,") {
            ($0.adapter, $0.loraR, $0.loraTargetModules, $0.loraDropout) = ("ln-tuning", nil, .names(["q_proj"]), 0)
        },
        Refusal(text: "lora_r: ln-tuning has no rank") { ($0.adapter, $0.loraR, $0.loraDropout) = ("ln-tuning", 4, 0) },
        Refusal(text: "trainable_tokens: missing; trainable-tokens trains the embeddings of the tokens that are named") {
            ($0.adapter, $0.loraR, $0.loraDropout) = ("trainable-tokens", nil, 0)
        },
        Refusal(text: "trainable_tokens: \"<|im_start|>a\" is 2 tokens (1, 70), not one") {
            ($0.adapter, $0.loraR, $0.trainableTokens, $0.loraDropout) = ("trainable-tokens", nil, ["<|im_end|>", "<|im_start|>a"], 0)
        },
        Refusal(text: "trainable_tokens: \"<|im_start|>\" is token 1, which is named already") {
            ($0.adapter, $0.loraR, $0.tokenIndices, $0.trainableTokens, $0.loraDropout) = ("trainable-tokens", nil, [1], ["<|im_start|>"], 0)
        },
        Refusal(text: "token_indices names token 128; the model has tokens 0 to 127") {
            ($0.adapter, $0.loraR, $0.tokenIndices, $0.loraDropout) = ("trainable-tokens", nil, [128], 0)
        },
        Refusal(text: "token_indices: dylora has no tokens to choose") { ($0.adapter, $0.tokenIndices) = ("dylora", [1]) },
        Refusal(text: "modules_to_save: no norm of this model is called lm_head; there are input_layernorm, norm, post_attention_layernorm. Of "
            + "embeddings the rows that token_indices and trainable_tokens name are trained, and nothing of a head of its own") {
            $0.modulesToSave = ["lm_head"]
        },
        Refusal(text: "modules_to_save: vera has no norms beside the linears") {
            ($0.adapter, $0.loraR, $0.modulesToSave) = ("vera", nil, ["norm"])
        },
        Refusal(text: "lora_target_modules: trainable-tokens has no linears to choose") {
            ($0.adapter, $0.loraR, $0.tokenIndices, $0.loraTargetModules, $0.loraDropout) = ("trainable-tokens", nil, [1], .names(["norm"]), 0)
        },
    ] as [Refusal])
    func whatMeansNothingToAMethodIsRefused(_ refusal: Refusal) throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        var request = KillTests.request("x")
        refusal.change(&request)
        let problem = try daemon.post(Endpoint.plan, request).decoded(Problem.self)
        #expect(problem.kind == .invalidValue && problem.detail.hasPrefix(refusal.text), "\(problem)")
    }

    @Test func adaptersAreCombinedToOneThatGeneratesAndExports() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        #expect(try InitialAdapterTests.add("one", to: daemon).status == 201)
        func combine(_ name: String, _ parts: [String], _ kind: CombinationKind, _ change: (inout CombinationRequest) -> Void = { _ in })
            throws -> HTTPAnswer
        {
            var request = CombinationRequest(name: name, adapters: parts.map { .init(adapter: $0, weight: 0.5) }, combination: kind)
            change(&request)
            return try daemon.post(Endpoint.combinations, request)
        }
        let small = try combine("small", ["one"], .svd) { $0.rank = 2 }
        #expect(small.status == 201, "\(small.text)")
        #expect(try combine("both", ["one", "small"], .cat).status == 201)
        #expect(try combine("pruned", ["one", "one"], .dareTies) { $0.density = 0.5 }.status == 201)
        let config = try daemon.call("GET", Endpoint.adapterFile("both", "adapter_config.json")).text
        #expect(config.contains("\"r\": 6") && config.contains("\"lora_alpha\": 6"), "\(config)")
        #expect(try daemon.call("GET", Endpoint.adapterFile("both", "adapter.gguf")).status == 200)
        let generation = GenerateRequest(model: "tiny", adapter: "pruned", messages: [ChatMessage(role: "user", content: "ab")])
        #expect(try daemon.post(Endpoint.generate, generation).status == 200)

        let refusals: [(HTTPAnswer, Int, String)] = [
            (try combine("both", ["one"], .linear), 409, "there is another adapter"),
            (try combine("x", ["nobody"], .linear), 404, "there is no adapter"),
            (try combine("x", ["one", "small"], .linear), 422, "the adapters have the ranks 4, 2"),
            (try combine("x", ["one"], .ties), 422, "density: nothing is not allowed; use above 0, to 1"),
            (try combine("x", ["one"], .linear) { $0.rank = 2 }, 422, "rank: 2 is not allowed; use it with svd and truncate only"),
            (try combine("x", [], .linear), 422, "adapters: 0 entries"),
            (try combine("../x", ["one"], .linear), 422, "name"),
        ]
        for (answer, status, text) in refusals { #expect(answer.status == status && answer.text.contains(text), "\(answer.text)") }
        #expect(try daemon.call("GET", Endpoint.adapters).decoded(AdapterList.self).adapters.count == 4)
    }
}
