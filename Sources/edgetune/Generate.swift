// edgetune generate: a prompt in, text out as it is made.
import ArgumentParser
import EdgeWire
import Foundation

struct Generate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Answer a prompt with a model, with or without an adapter.")
    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @Option(help: "A model that the daemon holds.") var model: String
    @Option(help: "An adapter that the daemon holds.") var adapter: String?
    @Option(help: "Of an adapter that has tasks: the one to answer for.") var task: String?
    @Option(help: "The prompt; default: standard input.") var prompt: String?
    @Option(help: "System message.") var system: String?
    @Option(help: "Longest answer in tokens.") var maxTokens: Int?
    @Option(help: "0: always the most likely token.") var temperature: Double?
    @Option(help: "Seed of the sampling.") var seed: UInt64?

    func run() async throws {
        var messages: [ChatMessage] = []
        if let system { messages.append(ChatMessage(role: "system", content: system)) }
        messages.append(ChatMessage(role: "user", content: try prompt ?? Self.standardInput()))
        var request = GenerateRequest(model: model, adapter: adapter, messages: messages)
        request.task = task
        if let maxTokens { request.maxTokens = maxTokens }
        if let temperature { request.temperature = temperature }
        if let seed { request.seed = seed }

        let client = daemon.client
        let call = Call(
            method: .POST, path: Endpoint.generate, headers: [("Content-Type", "application/json")],
            body: try client.encode(request), idleSeconds: 900)
        var filter = TerminalFilter()
        var last: GenerateEvent?
        try await client.lines(call) { line in
            let event = try client.decode(GenerateEvent.self, from: line)
            if output.json {
                Terminal.print(String(line))
            } else if let text = event.text {
                Terminal.print(filter.pass(text), terminator: "")
            }
            guard event.done || event.problem != nil else { return .more }
            last = event
            return .enough
        }
        guard let last else { throw DaemonError.lost("the text has no end") }
        if !output.json { Terminal.print("") }
        if let problem = last.problem { throw CommandFailure(problem) }
        if !output.json, Terminal.isInteractive, let tokens = last.generatedTokens, let speed = last.tokensPerSecond {
            Terminal.complain("\(tokens) tokens, \(Amount.fixed(speed, 1)) tokens/s")
        }
    }

    private static func standardInput() throws -> String {
        let limit = WireLimit.bodyBytes / 2
        let data = try FileHandle.standardInput.read(upToCount: limit + 1) ?? Data()
        guard data.count <= limit else { throw ValidationError("the prompt is over \(limit) bytes") }
        let text = String(decoding: data, as: UTF8.self).trimmingCharacters(in: .newlines)
        guard !text.isEmpty else { throw ValidationError("give --prompt, or the prompt on standard input") }
        return text
    }
}
