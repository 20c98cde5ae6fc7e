// A path of this machine to the files of a model: a GGUF file, the parts of a split one, or a Hugging Face directory.
import Foundation
import Glibc

struct ModelSource {
    /// What the model is called if nobody says.
    var name: String
    var form: Form

    enum Form {
        case single(LocalFile)
        case several([LocalFile])
    }

    /// Nil when there is nothing at `path`.
    init?(path: String) throws {
        if let file = try LocalFile(path: path) {
            try self.init(file)
            return
        }
        var status = stat()
        guard stat(path, &status) == 0 else { return nil }
        guard status.st_mode & S_IFMT == S_IFDIR else {
            throw CommandFailure(.usage, "\(path) is neither a file nor a directory")
        }
        try self.init(directory: path)
    }

    private init(_ file: LocalFile) throws {
        guard file.name.hasSuffix(".gguf") || !Self.isPart(file.name) else {
            throw CommandFailure(.usage, "\(file.path) is one file of a model", hint: "give the directory that it is in")
        }
        guard let parts = ModelFiles.splitParts(of: file.name) else {
            self.init(name: ResourceName.stem(of: file.name), form: .single(file))
            return
        }
        let directory = String(file.path.dropLast(file.name.count))
        self.init(name: ModelFiles.stem(ofGGUF: file.name), form: .several(try Self.open(parts, in: directory)))
    }

    private init(directory: String) throws {
        let base = directory.hasSuffix("/") ? directory : directory + "/"
        let names: [String]
        do { names = try FileManager.default.contentsOfDirectory(atPath: directory) } catch {
            throw CommandFailure(.permission, "cannot read \(directory): \(error.localizedDescription)")
        }
        // Links count as what they point to: the hub's own cache is made of them.
        let files = names.compactMap { name -> NamedFile? in
            var status = stat()
            guard stat(base + name, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return nil }
            return NamedFile(name: name, bytes: UInt64(status.st_size))
        }
        var chosen = try ModelFiles.choose(from: files, in: directory)
        if case .huggingFace(_, _, let index?) = chosen {
            guard let file = try LocalFile(path: base + index), file.bytes <= Self.indexBytes else {
                throw CommandFailure(.failure, "\(index) is over \(Amount.bytes(Self.indexBytes))")
            }
            chosen = try chosen.narrowed(byIndex: Data((try file.read(at: 0, count: Int(file.bytes))).readableBytesView))
        }
        let opened = try Self.open(chosen.names, in: base)
        if case .gguf(let parts) = chosen {
            let name = ModelFiles.stem(ofGGUF: parts[0])
            self.init(name: name, form: opened.count == 1 ? .single(opened[0]) : .several(opened))
        } else {
            self.init(name: Self.name(ofDirectory: directory), form: .several(opened))
        }
    }

    private init(name: String, form: Form) {
        self.name = name
        self.form = form
    }

    /// Of an index of the largest models: 100,000 tensors.
    static let indexBytes: UInt64 = 16 << 20

    private static func isPart(_ name: String) -> Bool {
        name.hasSuffix(".safetensors") || name.hasSuffix(".json") || name.hasSuffix(".bin")
    }

    private static func open(_ names: [String], in base: String) throws -> [LocalFile] {
        try names.map { name in
            guard let file = try LocalFile(path: base + name) else {
                throw CommandFailure(.notFound, "there is no file \(base + name)")
            }
            return file
        }
    }

    /// The last component; of a snapshot in the hub's cache (`models--OWNER--NAME/snapshots/REVISION`) the model's name.
    private static func name(ofDirectory path: String) -> String {
        let full = URL(fileURLWithPath: path).standardizedFileURL.pathComponents
        let cached = full.dropLast().last == "snapshots" ? full.dropLast(2).last?.components(separatedBy: "--").last : nil
        return ResourceName.allowed(cached ?? full.last ?? "model")
    }
}
