// Why a model cannot be imported, with names and numbers.
import EdgeFormats

package enum ImportError: Error, Equatable, Sendable {
    // Files.
    case tooManyFiles(Int, limit: Int)
    /// Not the name of a file in one directory.
    case badFileName(String)
    /// A link, directory or device.
    case notARegularFile(String)
    case missingFile(String, neededBecause: String)
    /// The weights are in formats that run code when they are opened.
    case pickledWeights([String])
    /// Weights twice: which are meant?
    case ambiguousWeights([String])
    /// A Git LFS pointer stands where the file should be.
    case lfsPointer(file: String, bytes: Int)
    case fileTooLarge(String, bytes: Int, limitBytes: Int)
    case badJSON(file: String, JSONTextError)
    case badField(file: String, field: String, expected: String)
    case badSafetensors(file: String, SafetensorsError)
    case badGGUF(file: String, GGUFError)

    // model.safetensors.index.json.
    case tensorMissingInShard(String, shard: String)
    case tensorInTwoShards(String, String, String)
    case tensorNotInIndex(String, shard: String)
    case noTensors

    // Values.
    case unsupportedDType(tensor: String, dtype: String)
    case unsupportedShape(tensor: String, shape: [Int], reason: String)
    /// `index` counts from the tensor's first element.
    case notFinite(tensor: String, index: Int)

    // bitsandbytes.
    case unsupportedQuantisation(method: String)
    /// `config.json` and the tensors disagree whether the weights are quantised.
    case quantisationContradicts(config: String, tensors: String)
    case missingCompanion(tensor: String, companion: String)
    /// Belongs to a quantised weight that is not there.
    case orphan(tensor: String)
    case wrongCompanion(tensor: String, expected: String, found: String)
    case unsupportedBlock(tensor: String, field: String, elements: Int, supported: Int)
    case badQuantState(tensor: String, field: String, expected: String)
    case unknownQuantMap(tensor: String, index: Int, value: Float, expected: Float)

    // Split GGUF.
    case mixedSources([String])
    /// One whole GGUF file: it is kept as it is.
    case notSplit(String)
    case splitsMissing([Int], of: Int)
    case splitTwice(Int, String, String)
    case splitContradicts(file: String, key: String, value: String, expected: String)
    case splitTensorCount(found: Int, expected: Int)
}

extension ImportError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .tooManyFiles(let count, let limit):
            "\(count) files; at most \(limit) are taken"
        case .badFileName(let name):
            "\(Self.shown(name)) is not the name of a file in one directory"
        case .notARegularFile(let name):
            "\(name) is not a regular file (links are not followed)"
        case .missingFile(let name, let reason):
            "\(name) is missing: \(reason)"
        case .pickledWeights(let names):
            "the weights are pickled (\(Self.list(names))), which is not read because opening such a file can run code; "
                + "convert them to safetensors, for example with transformers' save_pretrained"
        case .ambiguousWeights(let names):
            "the weights are there twice: \(Self.list(names)); leave out what is not meant"
        case .lfsPointer(let file, let bytes):
            "\(file) is a Git LFS pointer of \(bytes) bytes, not the file itself; `git lfs pull` fetches it"
        case .fileTooLarge(let name, let bytes, let limit):
            "\(name) has \(bytes) bytes; at most \(limit) are taken"
        case .badJSON(let file, let error):
            "\(file): \(error)"
        case .badField(let file, let field, let expected):
            "\(file): \(field) is not \(expected)"
        case .badSafetensors(let file, let error):
            "\(file): \(error)"
        case .badGGUF(let file, let error):
            "\(file): \(error)"
        case .tensorMissingInShard(let tensor, let shard):
            "the index places the tensor \(tensor) in \(shard), which does not have it"
        case .tensorInTwoShards(let tensor, let first, let second):
            "the tensor \(tensor) is in \(first) and in \(second)"
        case .tensorNotInIndex(let tensor, let shard):
            "the tensor \(tensor) in \(shard) is not in the index"
        case .noTensors:
            "there is no tensor in it"
        case .unsupportedDType(let tensor, let dtype):
            "the tensor \(tensor) is \(dtype); F32, F16 and BF16 are supported"
        case .unsupportedShape(let tensor, let shape, let reason):
            "the tensor \(tensor) has the shape \(shape), \(reason)"
        case .notFinite(let tensor, let index):
            "element \(index) of the tensor \(tensor) is infinite or not a number"
        case .unsupportedQuantisation(let method):
            "the weights are quantised by \(method); supported are unquantised weights and bitsandbytes' 4-bit ones"
        case .quantisationContradicts(let config, let tensors):
            "config.json says \(config), but \(tensors)"
        case .missingCompanion(let tensor, let companion):
            "the quantised weight \(tensor) comes without \(companion)"
        case .orphan(let tensor):
            "the tensor \(tensor) belongs to a quantised weight that is not there"
        case .wrongCompanion(let tensor, let expected, let found):
            "the tensor \(tensor) has \(found), expected \(expected)"
        case .unsupportedBlock(let tensor, let field, let elements, let supported):
            "the weight \(tensor) is quantised with \(field) \(elements); only \(supported) is supported"
        case .badQuantState(let tensor, let field, let expected):
            "the tensor \(tensor): \(field) is not \(expected)"
        case .unknownQuantMap(let tensor, let index, let value, let expected):
            "value \(index) of \(tensor) is \(value), bitsandbytes' is \(expected): an unknown data type"
        case .mixedSources(let names):
            "GGUF and other weights together: \(Self.list(names))"
        case .notSplit(let name):
            "\(name) is not one file of a split GGUF (no split.count)"
        case .splitsMissing(let numbers, let count):
            "of \(count) files of the split GGUF these are missing: \(numbers.prefix(8).map(String.init).joined(separator: ", "))"
        case .splitTwice(let number, let first, let second):
            "\(first) and \(second) are both file \(number) of the split GGUF"
        case .splitContradicts(let file, let key, let value, let expected):
            "\(file): \(key) is \(value), expected \(expected)"
        case .splitTensorCount(let found, let expected):
            "the files of the split GGUF have \(found) tensors, split.tensors.count is \(expected)"
        }
    }

    /// A hostile name must not break the line that it is shown in.
    private static func shown(_ name: String) -> String {
        "\"" + String(name.unicodeScalars.prefix(80).map { $0.value < 0x20 || $0.value == 0x7F ? "?" : Character($0) }) + "\""
    }

    private static func list(_ names: [String]) -> String {
        names.prefix(4).joined(separator: ", ") + (names.count > 4 ? " and \(names.count - 4) more" : "")
    }
}
