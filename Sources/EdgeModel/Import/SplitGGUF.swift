// The files of a split GGUF -> one: the metadata of the first file without the keys that speak of the split, and the tensors of
// all in order, byte for byte. (llama.cpp's gguf-split and gguf-py write such files.)
import EdgeFormats

struct SplitGGUF {
    private static let numberKey = "split.no", countKey = "split.count", tensorCountKey = "split.tensors.count"
    private static let splitPrefix = "split."
    private static let alignmentKey = "general.alignment"

    private struct Part {
        let name: String
        let file: GGUFFile
    }

    /// In order.
    private let parts: [Part]

    static func isPart(_ name: String) -> Bool { name.hasSuffix(".gguf") }

    init(_ source: SourceFiles) throws {
        let parts = try source.names.filter(Self.isPart).map { name in
            let region = try source.map(name, neededBecause: "it was there")
            do throws(GGUFError) {
                return Part(name: name, file: try GGUFFile(region))
            } catch {
                throw ImportError.badGGUF(file: name, error)
            }
        }
        guard let count = parts.first?.file.metadata[Self.countKey]?.integer else {
            throw ImportError.notSplit(parts.first?.name ?? "")
        }
        var byNumber: [Int: Part] = [:]
        for part in parts {
            try Self.require(part, Self.countKey, count)
            guard let number = part.file.metadata[Self.numberKey]?.integer, (0..<max(0, count)).contains(number) else {
                throw Self.contradiction(part, Self.numberKey, expected: "0 or more, below \(count)")
            }
            if let other = byNumber.updateValue(part, forKey: number) {
                throw ImportError.splitTwice(number + 1, other.name, part.name)
            }
        }
        guard parts.count == count else {
            // Not all of them, however many the file claims.
            let missing = (0..<min(count, parts.count + 8)).filter { byNumber[$0] == nil }.map { $0 + 1 }
            throw ImportError.splitsMissing(missing, of: count)
        }
        self.parts = (0..<count).map { byNumber[$0]! }
        try checkTensorCount()
        try checkMetadata()
    }

    func plan() throws -> ImportPlan {
        let first = parts[0]
        var layout = GGUFLayout(alignment: first.file.alignment, metadataBytes: first.file.metadataBytes)
        for (index, key) in first.file.metadataKeys.enumerated() where !key.hasPrefix(Self.splitPrefix) {
            try first.file.withEncodedKeyValue(index) { encoded throws(GGUFError) in try layout.add(key, encoded: encoded) }
        }
        for part in parts { part.file.releaseHeader() }
        var plan = ImportPlan(layout: layout)
        for part in parts {
            for tensor in part.file.tensors {
                do {
                    try plan.add(
                        tensor.name, .copy(SourceBytes(tensor), tail: []), as: [(tensor.name, tensor.shape, tensor.type)])
                } catch {
                    throw ImportError.badGGUF(file: part.name, error)
                }
            }
        }
        guard !plan.steps.isEmpty else { throw ImportError.noTensors }
        return plan
    }

    private func checkTensorCount() throws {
        let found = parts.reduce(0) { $0 + $1.file.tensors.count }
        for part in parts {
            guard let expected = part.file.metadata[Self.tensorCountKey]?.integer else {
                throw Self.contradiction(part, Self.tensorCountKey, expected: "\(found)")
            }
            guard expected == found else { throw ImportError.splitTensorCount(found: found, expected: expected) }
        }
    }

    /// What another file than the first says of the model must be what the first says.
    private func checkMetadata() throws {
        let first = parts[0].file
        let indexOfKey = Dictionary(uniqueKeysWithValues: first.metadataKeys.enumerated().map { ($1, $0) })
        for part in parts.dropFirst() {
            for (index, key) in part.file.metadataKeys.enumerated()
            where !key.hasPrefix(Self.splitPrefix) && key != Self.alignmentKey {
                let encoded = part.file.withEncodedKeyValue(index) { Array($0) }
                let isSame = indexOfKey[key].map { first.withEncodedKeyValue($0) { $0.elementsEqual(encoded) } } ?? false
                guard isSame else { throw Self.contradiction(part, key, expected: "as in \(parts[0].name)") }
            }
        }
    }

    private static func require(_ part: Part, _ key: String, _ expected: Int) throws {
        guard let value = part.file.metadata[key] else { throw ImportError.notSplit(part.name) }
        guard value.integer == expected else { throw contradiction(part, key, expected: "\(expected)") }
    }

    private static func contradiction(_ part: Part, _ key: String, expected: String) -> ImportError {
        let value = part.file.metadata[key]
        return .splitContradicts(
            file: part.name, key: key, value: value?.integer.map(String.init) ?? value?.typeName ?? "absent", expected: expected)
    }
}
