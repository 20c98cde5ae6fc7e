// Text from a model, with or without an adapter: one worker at a time, its lines streamed as they come.
import EdgeJobs
import EdgeWire
import Foundation
import HummingbirdCore

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
        let order = WorkOrder.generate(
            .init(
                request: request, modelPath: blobs.path(try BlobDigest(model.blob)), adapterDirectory: adapterDirectory,
                budgetBytes: await sideBudget().bytes))
        return try lines(
            of: order, through: generating,
            event: { if case .generated(let event) = $0 { event } else { nil } },
            problem: { GenerateEvent(done: true, problem: $0) })
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
