// edgetune export: an adapter's files to a directory or one file, complete under their final name or not there.
import ArgumentParser
import EdgeWire
import Foundation
import Glibc
import NIOCore

struct Export: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Copy an adapter out, for PEFT, llama.cpp, or as stored.")
    enum Format: String, ExpressibleByArgument, CaseIterable { case peft, gguf, artifact }

    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @Argument(help: "The adapter's name.") var adapter: String
    @Option(help: "peft: a directory. gguf: one file. artifact: the directory as stored.") var format: Format
    @Option(name: [.customLong("output"), .customShort("o")], help: "Where to.") var destination: String
    @Flag(help: "Replace what is there.") var force = false

    private struct Report: Encodable {
        let adapter: String
        let format: String
        let path: String
        let files: [String]
    }

    func run() async throws {
        var path = destination
        while path.count > 1, path.last == "/" { path.removeLast() }
        guard force || !Self.exists(path) else {
            throw CommandFailure(.conflict, "\(path) is there already", hint: "--force replaces it")
        }
        let client = daemon.client
        let record = try await client.get(AdapterRecord.self, Endpoint.adapter(client.escaped(adapter)))
        let files =
            switch format {
            case .peft: ["adapter_config.json", "adapter_model.safetensors", "README.md", "training.json"]
            case .gguf: ["adapter.gguf"]
            case .artifact: record.files.map(\.name)
            }
        // The names become paths here: one with a slash would leave the directory.
        for file in files where !Wire.isName(file) {
            throw DaemonError.unreadable("\"\(TerminalFilter.line(file))\" is not a file name")
        }
        let staging = path + ".edgetune-\(getpid())"
        do {
            if format == .gguf {
                try await fetch("adapter.gguf", to: staging, from: client)
            } else {
                guard mkdir(staging, 0o755) == 0 else { throw Self.failure("make", staging) }
                for file in files { try await fetch(file, to: staging + "/" + file, from: client) }
                try Self.sync(staging)
            }
            try Self.replace(path, with: staging)
        } catch {
            try? FileManager.default.removeItem(atPath: staging)
            throw error
        }
        try output.print(Report(adapter: adapter, format: format.rawValue, path: path, files: files)) {
            TerminalFilter.line(path)
        }
    }

    private func fetch(_ file: String, to path: String, from client: DaemonClient) async throws {
        let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else { throw Self.failure("write", path) }
        defer { close(descriptor) }
        // Long: the daemon makes two of the files on demand.
        let call = Call(path: Endpoint.adapterFile(client.escaped(adapter), file), idleSeconds: 900)
        var writeFailure: CommandFailure?
        try await client.stream(call) { piece in
            let isWritten = piece.withUnsafeReadableBytes { bytes in
                var rest = bytes
                while !rest.isEmpty {
                    let count = write(descriptor, rest.baseAddress, rest.count)
                    if count < 0, errno == EINTR { continue }
                    guard count > 0 else { return false }
                    rest = UnsafeRawBufferPointer(rebasing: rest[count...])
                }
                return true
            }
            if !isWritten { writeFailure = Self.failure("write", path) }
            return isWritten ? .more : .enough
        }
        if let writeFailure { throw writeFailure }
        guard fsync(descriptor) == 0 else { throw Self.failure("write", path) }
    }

    private static func exists(_ path: String) -> Bool {
        var status = stat()
        return lstat(path, &status) == 0
    }

    /// What was at `path` is set aside first: a directory cannot be renamed over one that is not empty.
    private static func replace(_ path: String, with staging: String) throws {
        let old = staging + ".old"
        let hadOld = exists(path)
        if hadOld, rename(path, old) != 0 { throw failure("replace", path) }
        guard rename(staging, path) == 0 else {
            let error = failure("make", path)
            if hadOld { rename(old, path) }
            throw error
        }
        try sync(path.lastIndex(of: "/").map { String(path[...$0]) } ?? ".")
        if hadOld { try FileManager.default.removeItem(atPath: old) }
    }

    private static func sync(_ directory: String) throws {
        let descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw failure("open", directory) }
        defer { close(descriptor) }
        guard fsync(descriptor) == 0 else { throw failure("write", directory) }
    }

    private static func failure(_ verb: String, _ path: String) -> CommandFailure {
        let code: ExitCode =
            switch errno {
            case EACCES, EPERM: .permission
            case ENOENT: .notFound
            case ENOSPC, EDQUOT: .doesNotFit
            default: .failure
            }
        return CommandFailure(code, "cannot \(verb) \(path): \(String(cString: strerror(errno)))")
    }
}
