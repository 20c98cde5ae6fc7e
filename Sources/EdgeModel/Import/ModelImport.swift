// A model from elsewhere -> the one GGUF file that the daemon keeps. Which sources there are: HuggingFaceDirectory and SplitGGUF;
// how values are converted: ImportWriter. An ordinary GGUF file is none of them, for it is kept as it is.
import EdgeFormats
import EdgeTensor

package struct ModelImport {
    /// Part of the identity of an unfinished file: raised when the same source would give other bytes.
    private static let version = "edgetune import 1\n"
    /// What a step, its names and its place in the lists take at most, without very long names.
    private static let stepBytes = 2048
    /// The unfinished file's buffers, and pages of the program that nothing else has used.
    private static let fixedBytes = 2 << 20

    private let plan: ImportPlan
    /// SHA-256 of what will be written, as far as it can be known from headers.
    private let identity: [UInt8]

    /// Reads headers and JSON files only.
    ///
    /// - Parameter files: name in the source ("config.json", "model-00001-of-00002.safetensors") -> path on the disk. Names that
    ///   mean nothing here (README.md) are left alone.
    /// - Throws: `ImportError`, `FileError`.
    package init(files: [String: String]) throws {
        let source = try SourceFiles(files)
        let splits = source.names.filter(SplitGGUF.isPart)
        if splits.isEmpty {
            plan = try HuggingFaceDirectory(source).plan()
        } else {
            let others = source.names.filter { $0.hasSuffix(".safetensors") || $0 == HuggingFaceDirectory.indexName }
            guard others.isEmpty else { throw ImportError.mixedSources(splits + others) }
            plan = try SplitGGUF(source).plan()
        }
        var digest = SHA256()
        digest.update(Array(Self.version.utf8))
        source.identify(into: &digest)
        try plan.layout.writeHeader { digest.update($0) }
        identity = digest.finalize()
    }

    /// Of the finished file.
    package var outputBytes: ByteCount { ByteCount(plan.layout.fileBytes) }

    /// What this value holds and `write` needs: the header with the tokenizer's files, a piece of a tensor, and the absmax values of
    /// the largest matrix that is quantised.
    package var peakBytes: ByteCount {
        ByteCount(
            plan.layout.headerBytes + ImportWriter.scratchBytes(plan) + plan.steps.count * Self.stepBytes + Self.fixedBytes)
    }

    /// Writes the file; it appears at `path` when it is complete. What an interrupted call has written stays beside it
    /// (`ResumableFile`), and the next with the same path goes on from there when the source is still the same, after comparing what is
    /// there with its checksums.
    ///
    /// - Parameters:
    ///   - markBytes: after so many bytes at least there is a place to go on from.
    ///   - progress: gets the bytes of the file that are done; what it throws interrupts.
    /// - Throws: `ImportError.notFinite`, `FileError`, and what `progress` throws.
    package func write(
        to path: String, markBytes: Int = ResumableFile.usualMarkBytes, progress: (Int) throws -> Void
    ) throws {
        let file = try ResumableFile(path, identity: identity, markBytes: markBytes)
        try withoutActuallyEscaping(progress) { progress in
            let sink = { (bytes: UnsafeRawBufferPointer) in
                try file.write(bytes)
                try progress(file.offset)
            }
            try progress(file.offset)
            if file.offset == 0 { try plan.layout.writeHeader(to: sink) }
            let writer = ImportWriter(plan, to: sink)
            var begin = plan.layout.headerBytes
            for step in plan.steps {
                // Marks are at the ends of steps alone.
                precondition(file.offset <= begin || file.offset >= begin + step.byteCount)
                if file.offset == begin {
                    try writer.perform(step)
                    try file.mark()
                }
                begin += step.byteCount
            }
        }
        precondition(file.offset == plan.layout.fileBytes)
        try file.publish()
    }

    /// Removes what an interrupted `write` to `path` has left, if there is anything.
    package static func discard(_ path: String) throws { try ResumableFile.discard(path) }
}
