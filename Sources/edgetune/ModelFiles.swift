// Which files of a directory or of a repository make a model. Names and sizes in, names out; nothing is opened here.
import Foundation

/// A file by its name where it comes from.
struct NamedFile: Equatable {
    var name: String
    var bytes: UInt64
}

enum ModelFiles: Equatable {
    /// One file, or all parts of a split one in their order.
    case gguf([String])
    /// Of a Hugging Face directory. `index` says which of the weights belong to it, where there are several.
    case huggingFace(weights: [String], rest: [String], index: String?)

    var names: [String] {
        switch self {
        case .gguf(let names): names
        case .huggingFace(let weights, let rest, _): weights + rest
        }
    }

    static let indexName = "model.safetensors.index.json"

    /// Chooses from what is there. Only the top level is looked at.
    ///
    /// - Parameter place: for messages: the directory or repository.
    static func choose(from all: [NamedFile], in place: String) throws(CommandFailure) -> ModelFiles {
        let names = all.map(\.name).filter { !$0.contains("/") }.sorted()
        let weights = names.filter { $0.hasSuffix(".safetensors") && !$0.hasPrefix("adapter_") }
        if names.contains("config.json"), !weights.isEmpty {
            let rest = names.filter { name in
                name.hasSuffix(".json") || name.hasSuffix(".jinja") || ["tokenizer.model", "merges.txt"].contains(name)
            }
            if names.contains(indexName) { return .huggingFace(weights: weights, rest: rest, index: indexName) }
            let single = weights.contains("model.safetensors") ? ["model.safetensors"] : weights
            return .huggingFace(weights: single, rest: rest, index: nil)
        }
        let models = all.filter { $0.name.hasSuffix(".gguf") }.sorted { $0.name < $1.name }
        let sets = ggufSets(models)
        if sets.count == 1 { return .gguf(sets[0].names) }
        guard sets.isEmpty else {
            let lines = sets.map { "  \($0.names[0])  \(Amount.bytes($0.bytes))" }.joined(separator: "\n")
            throw CommandFailure(.usage, "\(place) has \(sets.count) models; name one of them:\n\(lines)")
        }
        if !weights.isEmpty {
            throw CommandFailure(.notFound, "\(place) has weights, but no config.json that says what they are")
        }
        guard names.contains(where: { $0.hasSuffix(".bin") || $0.hasSuffix(".pt") || $0.hasSuffix(".pth") }) else {
            throw CommandFailure(.notFound, "\(place) has no GGUF file, and no config.json with *.safetensors")
        }
        throw CommandFailure(
            .notFound, "\(place) has its weights in PyTorch's own format, which is a program and is not read",
            hint: "look for a safetensors or GGUF form of the model")
    }

    /// One GGUF of `all` by its name, with its siblings when it is split.
    static func choose(gguf name: String, from all: [NamedFile], in place: String) throws(CommandFailure) -> ModelFiles {
        let known = Set(all.map(\.name))
        guard known.contains(name) else {
            let models = all.filter { $0.name.hasSuffix(".gguf") }
            let lines = ggufSets(models).map { "\n  \($0.names[0])  \(Amount.bytes($0.bytes))" }.joined()
            throw CommandFailure(.notFound, "\(place) has no file \(name)" + (lines.isEmpty ? "" : "; it has" + lines))
        }
        guard name.hasSuffix(".gguf") else {
            throw CommandFailure(.usage, "\(name) is no GGUF file", hint: "without a file name the whole repository is taken")
        }
        let parts = splitParts(of: name) ?? [name]
        if let missing = parts.first(where: { !known.contains($0) }) {
            throw CommandFailure(.notFound, "\(name) is one of \(parts.count) parts, and \(missing) is not in \(place)")
        }
        return .gguf(parts)
    }

    /// All parts of `NAME-00002-of-00003.gguf`; nil when the name is none of a part, or the only part.
    static func splitParts(of name: String) -> [String]? {
        guard let match = name.wholeMatch(of: #/(.*)-(\d{5})-of-(\d{5})\.gguf/#), let count = Int(match.3), count > 1,
            let number = Int(match.2), (1...count).contains(number)
        else { return nil }
        func padded(_ number: Int) -> String { String(("0000" + "\(number)").suffix(5)) }
        return (1...count).map { "\(match.1)-\(padded($0))-of-\(match.3).gguf" }
    }

    /// The model's name without its directory, its ending and the number of its part.
    static func stem(ofGGUF name: String) -> String {
        let base = name.split(separator: "/").last.map(String.init) ?? name
        guard splitParts(of: base) != nil else { return ResourceName.stem(of: base) }
        return ResourceName.stem(of: String(base.dropLast("-00001-of-00002.gguf".count)) + ".gguf")
    }

    private static func ggufSets(_ models: [NamedFile]) -> [(names: [String], bytes: UInt64)] {
        let sizes = Dictionary(models.map { ($0.name, $0.bytes) }) { first, _ in first }
        return models.compactMap { model in
            guard let parts = splitParts(of: model.name) else { return ([model.name], model.bytes) }
            // A set is told by its first part; what is missing of it is found when it is asked for.
            guard parts[0] == model.name else { return nil }
            return (parts, parts.reduce(0) { $0 + (sizes[$1] ?? 0) })
        }
    }

    /// Narrows the weights to those that the index names.
    func narrowed(byIndex json: Data) throws(CommandFailure) -> ModelFiles {
        struct Index: Decodable {
            var weightMap: [String: String]
            enum CodingKeys: String, CodingKey { case weightMap = "weight_map" }
        }
        guard case .huggingFace(let weights, let rest, let index?) = self else { return self }
        let named: Set<String>
        do { named = Set(try JSONDecoder().decode(Index.self, from: json).weightMap.values) } catch {
            throw CommandFailure(.failure, "\(index) cannot be read: it has no weight_map")
        }
        if let missing = named.subtracting(weights).min() {
            throw CommandFailure(.notFound, "\(index) names \(missing), which is not there")
        }
        return .huggingFace(weights: weights.filter(named.contains), rest: rest, index: index)
    }
}
