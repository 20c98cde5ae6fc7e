// A generation order: a conversation to text, with or without an adapter, within the daemon's budget for it.
import EdgeFormats
import EdgeJobs
import EdgeModel
import EdgeTensor
import EdgeTrain
import EdgeWire

func generate(_ order: WorkOrder.GenerateOrder, _ channel: WorkChannel) throws {
    let model = try BaseModel.open(path: order.modelPath)
    let text = try ModelText(model)
    guard let template = text.chatTemplate else { throw ModelError.noChatTemplate }
    let request = order.request
    let rendered = try template.render(
        messages: request.messages.map { Message(role: $0.role, content: $0.content) }, addGenerationPrompt: .appended,
        bosToken: text.tokenizer.bosToken, eosToken: text.tokenizer.eosToken)
    let prompt = text.tokenizer.encode(rendered, specialTokens: .parse)
    let adapter = try order.adapterDirectory.map { directory in
        let loaded = try LoadedAdapter(directory: directory, task: request.task, of: model.spec)
        let layout = AdapterLayout(loaded.spec, modules: try loaded.modules(of: model.spec), of: model.spec)
        return (layout: layout, load: { (set: AdapterSet) in try loaded.load(into: set, model.spec) })
    }
    let context = (adapter?.layout.virtualTokens ?? 0) + prompt.count + request.maxTokens
    guard context <= model.spec.contextLength else {
        throw GenerationError.tooLong(
            prompt: context - request.maxTokens, maxTokens: request.maxTokens, contextLength: model.spec.contextLength)
    }
    let threads = ProcessFacts.coreCount
    let arena = Generator.bytes(
        model.spec, adapter?.layout, context: context, threads: threads)
    let needed = arena + model.weightBytes + ProcessMemory.typical.resident
    guard needed.bytes <= order.budgetBytes else {
        throw Problem(
            .insufficientMemory,
            "generating needs \(needed.mebibytes) MiB, the budget is \(order.budgetBytes >> 20) MiB",
            hint: "fewer max_tokens, or a larger memory budget", requiredBytes: UInt64(needed.bytes),
            budgetBytes: order.budgetBytes)
    }
    let generator = try Generator(
        model: model, adapter: adapter, context: context, kernels: try ProcessFacts.kernelSet(), threads: threads)
    var decoder = StreamingDecoder(text.tokenizer)
    let started = ContinuousClock.now
    let count = try generator.generate(
        prompt: prompt,
        GenerationSettings(
            maxTokens: request.maxTokens, temperature: Float(request.temperature), seed: request.seed),
        endTokens: endTokens(text.tokenizer)
    ) { token in
        let piece = try decoder.append(token)
        if !piece.isEmpty { channel.send(.generated(GenerateEvent(text: piece))) }
        return channel.isStopRequested ? .stop : .goOn
    }
    let rest = decoder.finish()
    if !rest.isEmpty { channel.send(.generated(GenerateEvent(text: rest))) }
    let seconds = (ContinuousClock.now - started) / .seconds(1)
    channel.send(
        .generated(
            GenerateEvent(
                done: true, promptTokens: prompt.count, generatedTokens: count,
                tokensPerSecond: Double(prompt.count + count) / max(seconds, 1e-9))))
}

/// The model's end of text, and the end of a turn where that is another token.
private func endTokens(_ tokenizer: Tokenizer) -> Set<TokenID> {
    var tokens = Set([tokenizer.eosTokenID].compactMap { $0 })
    for name in ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>"] {
        let ids = tokenizer.encode(name, specialTokens: .parse)
        if ids.count == 1 { tokens.insert(ids[0]) }
    }
    return tokens
}
