// Imports a model as the daemon does, and says how long that takes and what it holds.
import ArgumentParser
import EdgeModel
import Foundation

struct ImportBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "import", abstract: "Import a Hugging Face directory or a split GGUF, and measure it.")

    @Argument(help: "A directory with the model's files, links followed.") var directory: String
    @Argument(help: "The file to write.") var path: String
    @Option(help: "Stop after so many bytes of the file, as a power cut would; the next call goes on.") var stopAfter: Int?

    private struct Report: Encodable {
        let sourceBytes: Int, outputBytes: Int
        /// Planned, and what `write` added to the resident set.
        let peakBytes: Int, heldBytes: Int
        let headerSeconds: Double, seconds: Double
    }

    private struct Stopped: Error, CustomStringConvertible {
        let bytes: Int
        var description: String { "stopped after \(bytes) bytes" }
    }

    func run() throws {
        var files: [String: String] = [:]
        var sourceBytes = 0
        for name in try FileManager.default.contentsOfDirectory(atPath: directory) {
            let file = URL(filePath: directory).appending(path: name).resolvingSymlinksInPath()
            let attributes = try FileManager.default.attributesOfItem(atPath: file.path)
            guard attributes[.type] as? FileAttributeType == .typeRegular else { continue }
            files[name] = file.path
            sourceBytes += attributes[.size] as? Int ?? 0
        }
        let start = ContinuousClock.now
        let residentBefore = Measurement.bytes("VmRSS", in: "/proc/self/status")
        let model = try ModelImport(files: files)
        let headerSeconds = (ContinuousClock.now - start) / .seconds(1)
        try model.write(to: path) { done in
            if let stopAfter, done >= stopAfter { throw Stopped(bytes: done) }
        }
        try Measurement.printLine(
            Report(
                sourceBytes: sourceBytes, outputBytes: model.outputBytes.bytes, peakBytes: model.peakBytes.bytes,
                heldBytes: Measurement.peakResidentBytes - residentBefore, headerSeconds: headerSeconds,
                seconds: (ContinuousClock.now - start) / .seconds(1)))
    }
}
