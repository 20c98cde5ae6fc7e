// The job file is strict: what it does not know, it names with its line.
import EdgeWire
import EdgeYAML
import Foundation
import Testing

private let head = """
    base_model: smollm2
    datasets:
      - path: train.jsonl

    """

private func message(_ text: String) -> String {
    do {
        _ = try JobFile.read(text: text, fileName: "job.yaml")
        return "accepted"
    } catch { return "\(error)" }
}

@Suite struct JobFileTests {
    @Test func everyKeyOfARequestIsRead() throws {
        let request = try JobFile.read(
            text: head + """
                name: first
                val_set_size: 16
                adapter: qlora
                lora_r: 8
                lora_alpha: 16
                lora_dropout: 0.05
                lora_target_modules: [q_proj, v_proj]
                layers_to_transform: [2, 3]
                sequence_len: 1024
                micro_batch_size: 2
                gradient_accumulation_steps: 4
                num_epochs: 1.5
                max_steps: 7
                learning_rate: 1e-3
                lr_scheduler: linear
                warmup_steps: 2
                weight_decay: 0.01
                optimizer: adamw_bnb_8bit
                adam_beta1: 0.8
                adam_beta2: 0.95
                adam_epsilon: 1e-6
                max_grad_norm: 0.5
                seed: 18446744073709551615
                train_on_inputs: true
                eval_steps: 5
                save_steps: 6
                early_stopping_patience: 3
                memory_budget: 60%
                threads: 2
                priority: -2
                max_time: 00:06:00:00
                run_between: 22:00-06:00
                """, fileName: "job.yaml")
        var expected = JobRequest(baseModel: "smollm2", datasets: [DatasetReference(path: "train.jsonl")])
        expected.name = "first"
        expected.valSetSize = 16
        expected.adapter = "qlora"
        expected.loraR = 8
        expected.loraAlpha = 16
        expected.loraDropout = 0.05
        expected.loraTargetModules = .names(["q_proj", "v_proj"])
        expected.layersToTransform = [2, 3]
        expected.sequenceLen = 1024
        expected.microBatchSize = 2
        expected.gradientAccumulationSteps = 4
        expected.numEpochs = 1.5
        expected.maxSteps = 7
        expected.learningRate = 1e-3
        expected.lrScheduler = .linear
        expected.warmupSteps = 2
        expected.weightDecay = 0.01
        expected.optimizer = .adamw8Bit
        expected.adamBeta1 = 0.8
        expected.adamBeta2 = 0.95
        expected.adamEpsilon = 1e-6
        expected.maxGradNorm = 0.5
        expected.seed = .max
        expected.trainOnInputs = true
        expected.evalSteps = 5
        expected.saveSteps = 6
        expected.earlyStoppingPatience = 3
        expected.memoryBudget = "60%"
        expected.threads = 2
        expected.priority = -2
        expected.maxTime = "00:06:00:00"
        expected.runBetween = "22:00-06:00"
        #expect(request == expected)
        try request.validate()
    }

    @Test(arguments: ["2e-4", "2E-4", "0.0002", "2.0e-4", ".0002", "+2e-4"])
    func everyWayToWriteANumberIsANumber(_ text: String) throws {
        #expect(try JobFile.read(text: head + "learning_rate: \(text)", fileName: "job.yaml").learningRate == 2e-4)
    }

    @Test func anEmptyValueTakesTheDefault() throws {
        let request = try JobFile.read(text: head + "max_steps:\nlora_r: ~\nname: null", fileName: "job.yaml")
        #expect(request == JobRequest(baseModel: "smollm2", datasets: [DatasetReference(path: "train.jsonl")]))
    }

    @Test(arguments: ["configs/lora.yaml", "configs/small-board.yaml", "configs/demo/job.yaml"])
    func everyShippedJobFileIsValid(_ path: String) throws {
        let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent()
        let text = try String(contentsOf: root.appendingPathComponent(path), encoding: .utf8)
        let request = try JobFile.read(text: text, fileName: path)
        try request.validate()
        #expect(!request.datasets.isEmpty)
    }

    @Test func aNumberMayBeAName() throws {
        #expect(try JobFile.read(text: head + "name: 2024", fileName: "job.yaml").name == "2024")
    }

    @Test func spellingsOfAxolotlThatMeanTheSameAreAccepted() throws {
        let request = try JobFile.read(
            text: head + "lora_target_linear: true\npeft_layers_to_transform: [1]", fileName: "job.yaml")
        #expect(request.loraTargetModules == .pattern("all-linear"))
        #expect(request.layersToTransform == [1])
    }

    @Test(arguments: [
        ("lora_rank: 8", "job.yaml: line 4: unknown key \"lora_rank\"; did you mean \"lora_r\"?"),
        ("learning_rat: 1", "job.yaml: line 4: unknown key \"learning_rat\"; did you mean \"learning_rate\"?"),
        ("flash_attention: true", "job.yaml: line 4: unknown key \"flash_attention\""),
        ("LORA_R: 8", "job.yaml: line 4: unknown key \"LORA_R\""),
        ("loraR: 8", "job.yaml: line 4: unknown key \"loraR\"; did you mean \"lora_r\"?"),
        ("\nlearning_rate: fast", "job.yaml: line 5: learning_rate wants a number, found \"fast\""),
        ("learning_rate: \"1e-4\"", "job.yaml: line 4: learning_rate wants a number, found \"1e-4\""),
        ("learning_rate: nan", "job.yaml: line 4: learning_rate wants a number, found \"nan\""),
        ("learning_rate: 0x10", "job.yaml: line 4: learning_rate wants a number, found \"0x10\""),
        ("lora_r: 1.5", "job.yaml: line 4: lora_r wants a whole number, found \"1.5\""),
        ("lora_r: [1]", "job.yaml: line 4: lora_r wants a whole number, found a list"),
        ("seed: -1", "job.yaml: line 4: seed wants a whole number, found \"-1\""),
        (
            "lora_r: 99999999999999999999",
            "job.yaml: line 4: lora_r wants a whole number, found \"99999999999999999999\""
        ),
        ("train_on_inputs: maybe", "job.yaml: line 4: train_on_inputs wants true or false, found \"maybe\""),
        ("lr_scheduler: step", "job.yaml: line 4: lr_scheduler wants linear, cosine, constant, found \"step\""),
        ("optimizer: sgd", "job.yaml: line 4: optimizer wants auto, adamw, adamw_8bit, adamw_bf16, found \"sgd\""),
        ("lora_r: 8\nlora_r: 9", "job.yaml: line 5: \"lora_r\" is given twice; the first is in line 4"),
        (
            "lora_target_modules: q\nlora_target_linear: yes",
            "job.yaml: line 5: \"lora_target_modules\" is given twice; the first is in line 4"
        ),
    ])
    func whatIsWrongIsNamedWithItsLine(_ line: String, _ expected: String) {
        #expect(message(head + line) == expected)
    }

    @Test(arguments: [
        ("", "job.yaml: base_model is missing"),
        ("base_model: m", "job.yaml: datasets is missing"),
        ("base_modle: m", "job.yaml: line 1: unknown key \"base_modle\"; did you mean \"base_model\"?"),
        ("- a", "job.yaml: line 1: keys and values are wanted here, found a list"),
        ("base_model: m\ndatasets: train.jsonl", "job.yaml: line 2: datasets wants a list, found \"train.jsonl\""),
        (
            "base_model: m\ndatasets:\n  - path: a\n    typ: b", "job.yaml: line 4: unknown key \"typ\"",
        ),
        ("base_model: m\ndatasets:\n  - file: a", "job.yaml: line 3: path is missing in datasets[0]"),
        ("base_model: m\n? [a]\n: b", "job.yaml: line 2: a key must be a plain word"),
    ])
    func aFileOfTheWrongShapeIsRefused(_ text: String, _ expected: String) {
        #expect(message(text) == expected)
    }

    @Test func brokenYAMLNamesItsLine() {
        #expect(message("base_model: m\nname: \"open").hasPrefix("job.yaml: line 2: "))
        #expect(message(head + "---\nbase_model: n").contains("single document"))
        #expect(message("base_model: \u{0}").hasPrefix("job.yaml: "))
    }

    @Test(.timeLimit(.minutes(1))) func anAliasBombIsRefusedAtOnce() {
        var bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        for level in 1...30 {
            let aliases = Array(repeating: "*a\(level - 1)", count: 9).joined(separator: ",")
            bomb += "a\(level): &a\(level) [\(aliases)]\n"
        }
        #expect(message(bomb).contains("aliases (*) are not allowed"))
        // As a key, where the parser itself would walk it.
        #expect(message(bomb + "? *a30\n: 1\n").contains("aliases (*) are not allowed"))
        #expect(message("a: \"\n&x\"\nb: &x [1]\nc: {\"k\":*x}").contains("line 4: anchors (&) and aliases (*)"))
    }

    @Test func aStarOrAnAmpersandAloneIsText() throws {
        let request = try JobFile.read(
            text: head + "lora_target_modules: '.*(q_proj|v_proj)'\nname: a  # & *b", fileName: "job.yaml")
        #expect(request.loraTargetModules == .pattern(".*(q_proj|v_proj)"))
    }

    @Test(.timeLimit(.minutes(1))) func sizeDepthAndCountAreLimited() {
        #expect(message(String(repeating: "#", count: YAMLLimit.bytes + 1)).contains("bytes are too many"))
        let nested = String(repeating: "[", count: 100) + String(repeating: "]", count: 100)
        #expect(message("name: \(nested)").contains("nested deeper than 16 levels"))
        #expect(message("name: " + String(repeating: "[", count: 60_000)).hasPrefix("job.yaml: "))
        let many = Array(repeating: "1", count: YAMLLimit.nodes + 1).joined(separator: ",")
        #expect(message("name: [\(many)]").contains("more than 4096 values"))
    }
}

@Suite struct StrictYAMLTests {
    private struct Settings: Decodable, Equatable {
        struct Inner: Decodable, Equatable { var maxQueued: Int }
        var stateDir: String?
        var limits: Inner?
        var shares: [String: Double]?
    }
    private let keys = ["state_dir", "limits", "shares"]

    @Test func anyDecodableIsReadStrictly() throws {
        let settings = try StrictYAML.decode(
            Settings.self, "state_dir: /tmp\nlimits:\n  max_queued: 4\n", knownKeys: keys)
        #expect(settings == Settings(stateDir: "/tmp", limits: .init(maxQueued: 4), shares: nil))
        #expect(try StrictYAML.decode(Settings.self, "", knownKeys: keys) == Settings())
    }

    @Test func nestedKeysAreHeldToTheirOwnType() {
        #expect(throws: YAMLProblem.self) {
            try StrictYAML.decode(Settings.self, "limits: {max_queued: 4, max_queue: 5}", knownKeys: keys)
        }
    }
}
