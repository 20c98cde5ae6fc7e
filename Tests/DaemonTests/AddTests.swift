// `edgetune models add` with the real client: which files of a path make a model, and what it says of one that makes none.
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct AddTests {
    static func edgetune(_ arguments: [String], _ daemon: DaemonProcess) throws -> (code: Int32, text: String) {
        try Command.run(
            (DaemonProcess.binary as NSString).deletingLastPathComponent + "/edgetune",
            arguments + ["--socket", daemon.socket], environment: ["PATH": "/usr/bin:/bin", "HOME": daemon.directory])
    }

    static func write(_ names: [String], in directory: String) throws {
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        for name in names {
            try "content of \(name)".write(toFile: directory + "/" + name, atomically: false, encoding: .utf8)
        }
    }

    @Test func aDirectoryASplitFileAndASnapshotAreAdded() throws {
        let directory = try TemporaryDirectory()
        let daemon = try PullTests.scripted(directory.path)
        let plain = directory.path + "/Llama-1B"
        try Self.write(["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "README.md"], in: plain)
        #expect(try Self.edgetune(["models", "add", plain + "/"], daemon).code == 0)
        let split = directory.path + "/gguf"
        try Self.write((1...3).map { "big-0000\($0)-of-00003.gguf" }, in: split)
        #expect(try Self.edgetune(["models", "add", split + "/big-00002-of-00003.gguf"], daemon).code == 0)
        // The hub's cache: links to files of other names, in a directory named by a commit.
        let cache = directory.path + "/models--owner--SmolLM/snapshots/0123"
        try Self.write([], in: cache)
        for name in ["config.json", "model.safetensors"] {
            try Self.write(["blob-" + name], in: directory.path)
            try FileManager.default.createSymbolicLink(
                atPath: cache + "/" + name, withDestinationPath: directory.path + "/blob-" + name)
        }
        #expect(try Self.edgetune(["models", "add", cache], daemon).code == 0)
        let models = try PullTests.models(daemon)
        #expect(models.map(\.name) == ["Llama-1B", "SmolLM", "big"])
        #expect(models[0].files?.map(\.name) == ["model.safetensors", "config.json", "tokenizer.json", "tokenizer.model"])
        #expect(models[1].files?.map(\.name) == ["model.safetensors", "config.json"])
        #expect(models[2].files?.map(\.name) == (1...3).map { "big-0000\($0)-of-00003.gguf" })
        // The same model again is the same model; its files are not sent again.
        let (code, text) = try Self.edgetune(["models", "add", plain], daemon)
        #expect(code == 0 && text.hasPrefix("Llama-1B: llama"), "\(text)")
        #expect(try PullTests.models(daemon) == models)
        let (shown, whole) = try Self.edgetune(["models", "show", "big"], daemon)
        #expect(shown == 0 && whole.contains("made from:    3 files") && whole.contains("big-00003-of-00003.gguf"), "\(whole)")
        #expect(try Self.edgetune(["models", "remove", "big"], daemon).code == 0)
        #expect(try Self.edgetune(["models", "show", "big"], daemon).code == 5)
    }

    @Test(arguments: [
        (["a.gguf", "b.gguf"], "", Int32(64), "has 2 models; name one of them:\n  a.gguf"),
        (["config.json", "pytorch_model.bin"], "", 5, "PyTorch's own format"),
        (["model.safetensors"], "", 5, "no config.json"),
        (["README.md"], "", 5, "has no GGUF file"),
        (["config.json", "model.safetensors"], "/model.safetensors", 64, "give the directory"),
        (["x-00001-of-00002.gguf"], "/x-00001-of-00002.gguf", 5, "there is no file"),
        ([], "/nothing", 5, "there is no file or directory"),
    ])
    func whatIsNoModelIsSaidWithWhatToDo(_ names: [String], _ path: String, _ code: Int32, _ text: String) throws {
        let directory = try TemporaryDirectory()
        let daemon = try PullTests.scripted(directory.path)
        try Self.write(names, in: directory.path + "/model")
        let outcome = try Self.edgetune(["models", "add", directory.path + "/model" + path], daemon)
        #expect(outcome.code == code && outcome.text.contains(text), "\(outcome.text)")
        #expect(try PullTests.models(daemon).isEmpty)
    }

    @Test func anIndexThatNamesWhatIsNotThereIsRefused() throws {
        let directory = try TemporaryDirectory()
        let daemon = try PullTests.scripted(directory.path)
        try Self.write(["config.json", "a.safetensors"], in: directory.path + "/m")
        try #"{"weight_map":{"x":"../../etc/passwd"}}"#.write(
            toFile: directory.path + "/m/model.safetensors.index.json", atomically: false, encoding: .utf8)
        let (code, text) = try Self.edgetune(["models", "add", directory.path + "/m"], daemon)
        #expect(code == 5 && text.contains("names ../../etc/passwd, which is not there"), "\(text)")
    }

    @Test func theReasonOfAFailedImportIsTheClientsOwnFailure() throws {
        let directory = try TemporaryDirectory()
        let failure = try FakeWorker.line(.failure(Problem(.unsupportedModel, "tensor x is damaged", hint: "fetch it again")))
        let worker = try FakeWorker.write(in: directory.path, importing: "sleep 0.2; echo '\(failure)'")
        let daemon = try DaemonProcess(in: directory.path, workerExecutable: worker)
        try Self.write(["config.json", "model.safetensors"], in: directory.path + "/m")
        let (code, text) = try Self.edgetune(["models", "add", directory.path + "/m"], daemon)
        #expect(code == 1 && text.contains("edgetune: tensor x is damaged\nhint: fetch it again"), "\(text)")
        let (_, list) = try Self.edgetune(["models"], daemon)
        #expect(list.contains("m: the import failed: tensor x is damaged"), "\(list)")
    }
}
