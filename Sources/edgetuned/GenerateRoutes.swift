// Text from a model, with or without an adapter: one worker at a time, its lines streamed as they come.
import EdgeJobs
import EdgeWire
import Foundation
import HummingbirdCore
import NIOCore

extension Daemon {
    func generate(_ call: Call) async throws -> Response {
        let request = try await decodedBody(GenerateRequest.self, of: call, keys: .generate)
        try validate(request)
        guard let model = try await store.model(request.model) else {
            throw Problem(.notFound, "there is no model \"\(request.model.prefix(80))\"", hint: "edgetune models list")
        }
        var adapterDirectory: String?
        if let name = request.adapter {
            adapterDirectory = try await adapterDirectoryNamed(name, for: call.caller)
        }
        // Beside a running job only its own small share: a training run is never starved for an answer.
        let isAlone = await queue.runningJob == nil
        let budget = HostMemory(host).budget(
            asked: nil, allowed: isAlone ? config.now.memoryBudget : config.now.generateMemoryBudget)
        let order = WorkOrder.generate(
            .init(
                request: request, modelPath: blobs.path(try BlobDigest(model.blob)), adapterDirectory: adapterDirectory,
                budgetBytes: budget.bytes))
        try generating.enter()
        let (gate, launch, logger) = (generating, worker, logger)
        return Response(
            status: .ok, headers: [.contentType: Header.jsonLines],
            body: ResponseBody { writer in
                defer { gate.leave() }
                let (events, sink) = AsyncStream.makeStream(of: GenerateEvent.self)
                let work = Task {
                    defer { sink.finish() }
                    do {
                        let run = try await WorkerProcess.run(launch, order) { message in
                            if case .generated(let event) = message { sink.yield(event) }
                        }
                        if case .answered(.failure(let problem)) = run.end {
                            sink.yield(GenerateEvent(done: true, problem: problem))
                        } else if case .exited(0, nil) = run.end {
                            // `generated` with `done` is this order's last word.
                        } else if let problem = run.end.problem(last: nil, stderr: run.stderr) {
                            sink.yield(GenerateEvent(done: true, problem: problem))
                        }
                    } catch {
                        logger.error("generate: \(error)")
                        sink.yield(GenerateEvent(done: true, problem: Problem(apiError: error)))
                    }
                }
                defer { work.cancel() }
                for await event in events {
                    var line = ByteBuffer(bytes: try Wire.encoder().encode(event))
                    line.writeString("\n")
                    try await writer.write(line)
                }
                try await writer.finish(nil)
            })
    }

    private func validate(_ request: GenerateRequest) throws {
        func require(_ condition: Bool, _ key: String, _ allowed: String) throws {
            guard condition else { throw Problem(.invalidValue, "\(key): use \(allowed)") }
        }
        try require((1...1024).contains(request.messages.count), "messages", "1 to 1024 messages")
        try require((1...131_072).contains(request.maxTokens), "max_tokens", "1 to 131072")
        try require((0...100).contains(request.temperature), "temperature", "0 to 100")
    }
}
