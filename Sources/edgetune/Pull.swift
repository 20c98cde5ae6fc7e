// edgetune models pull: a model from the Hugging Face Hub, or a mirror of it, into the daemon. The daemon has no network;
// this program fetches and uploads.
import ArgumentParser
import EdgeWire
import Foundation
import NIOCore

extension Models {
    struct Pull: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Fetch a model from the Hugging Face Hub.",
            discussion: """
                The only command that uses the network. https_proxy and no_proxy are honoured, HF_ENDPOINT names another
                hub, HF_TOKEN holds a token for gated models. After Ctrl-C or a cut the same command goes on.
                """)
        @OptionGroup var daemon: DaemonOptions
        @OptionGroup var output: OutputOptions
        @Argument(help: "hf:OWNER/NAME, or hf:OWNER/NAME:FILE.gguf for one of its GGUF files.") var model: String
        @Option(help: "Name to give it; default: the repository's, or the GGUF file's.") var name: String?
        @Option(help: "Branch, tag or commit.") var revision = "main"
        @Option(help: "Another hub's address; default: HF_ENDPOINT, else \(HubEndpoint.own).") var mirror: String?
        @Option(help: "File with the token; default: HF_TOKEN, else what `hf auth login` stored.") var tokenFile: String?

        func validate() throws {
            try ModelText.validate(name)
            guard HubReference(model) != nil else {
                throw ValidationError("\(model) is no model of the hub: hf:OWNER/NAME or hf:OWNER/NAME:FILE.gguf")
            }
        }

        func run() async throws {
            guard let reference = HubReference(model) else { return }
            let environment = ProcessInfo.processInfo.environment
            let endpoint = try HubEndpoint(mirror: mirror, environment: environment)
            let token = try HubToken.find(file: tokenFile, environment: environment, endpoint: endpoint)
            let client = daemon.client
            // The first call: a daemon that is not there is told at once, before anything is fetched.
            let held = try await client.get(ModelList.self, Endpoint.models)
            let record = try await HubConnection.with(reference, endpoint, token, environment: environment) { hub in
                try await HubPull(client: client, hub: hub, reference: reference, held: held)
                    .run(revision: revision, name: name)
            }
            try output.print(record) { ModelText.line(record) }
        }
    }
}

/// One pull.
private struct HubPull {
    let client: DaemonClient
    let hub: HubConnection
    let reference: HubReference
    let held: ModelList

    /// A file, under the digest that it is uploaded as.
    private struct Item {
        var file: HubFile
        var digest: String
        /// Of a file whose digest the hub does not say: it was fetched for it.
        var content: ByteBuffer?
    }

    func run(revision: String, name: String?) async throws -> ModelRecord {
        let interrupt = InterruptExit(saying: "stopped; the same command goes on from here")
        defer { interrupt.cancel() }
        let repository = try await HubRepository.open(reference, revision: revision, hub)
        let chosen = try await files(of: repository)
        let items = try await self.items(chosen, repository)
        var listed: [ModelFile]?
        var proposed = ResourceName.allowed(reference.name)
        if case .gguf(let names) = chosen { proposed = ModelFiles.stem(ofGGUF: names[0]) }
        if case .gguf(let names) = chosen, names.count == 1 {} else {
            listed = items.map { item in
                ModelFile(name: item.file.name.split(separator: "/").last.map(String.init) ?? "", blob: item.digest)
            }
        }
        let chosenName = ModelName(given: name, proposed: proposed, files: listed, digest: items[0].digest)
        if let same = chosenName.same(in: held) { return same }
        try await ModelUpload.requireRoom(for: items.map { ($0.digest, $0.file.bytes) }, on: client)
        let transfer = HubTransfer(hub: hub, repository: repository, client: client)
        for item in items {
            if let content = item.content {
                try await BlobUpload.send(MemoryFile(name: item.file.name, content: content), as: item.digest, to: client)
            } else {
                try await transfer.send(item.file, as: item.digest)
            }
        }
        interrupt.cancel()
        let source = "hf:\(reference.repository)@\(repository.revision)" + (reference.file.map { ":" + $0 } ?? "")
        let free = chosenName.free(in: held)
        return try await ModelUpload.register(
            listed.map { ModelRequest(name: free, files: $0, source: source) }
                ?? ModelRequest(name: free, blob: items[0].digest, source: source), on: client)
    }

    private func files(of repository: HubRepository) async throws -> ModelFiles {
        let all = repository.files.map { NamedFile(name: $0.name, bytes: $0.bytes) }
        if let file = reference.file { return try ModelFiles.choose(gguf: file, from: all, in: reference.repository) }
        let chosen = try ModelFiles.choose(from: all, in: reference.repository)
        guard case .huggingFace(_, _, let name?) = chosen, let index = repository.files.first(where: { $0.name == name })
        else { return chosen }
        return try chosen.narrowed(byIndex: Data(try await repository.content(of: index, hub).readableBytesView))
    }

    private func items(_ chosen: ModelFiles, _ repository: HubRepository) async throws -> [Item] {
        var items: [Item] = []
        for name in chosen.names {
            guard let file = repository.files.first(where: { $0.name == name }), file.bytes > 0 else {
                throw CommandFailure(.failure, "\(name) is empty")
            }
            guard file.bytes <= WireLimit.blobBytes else {
                throw CommandFailure(.doesNotFit, "\(name) is over \(Amount.bytes(WireLimit.blobBytes))")
            }
            if let digest = file.sha256 {
                items.append(Item(file: file, digest: "sha256:" + digest))
            } else {
                let content = try await repository.content(of: file, hub)
                let digest = try MemoryFile(name: name, content: content).digest { _ in }
                items.append(Item(file: file, digest: digest, content: content))
            }
        }
        return items
    }
}
