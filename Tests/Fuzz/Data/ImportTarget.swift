// A directory that somebody uploads as a model: Hugging Face's files, bitsandbytes' tensors, a split GGUF.
//
// Claims: nothing traps, whatever the names and the bytes; refusals are ImportError or FileError, a file's own GGUFError
// included; the plan of a directory that is taken has a size and a peak; writing it gives a file of exactly that size that
// GGUFFile opens; the heap holds at most 160 bytes for each byte of the directory, and a writer's fixed scratch.
import EdgeFormats
import EdgeModel

extension FuzzTarget {
    /// Pairs of parts with their lengths: a name and the file's bytes.
    static let modelImport = FuzzTarget(
        name: "import", longestInput: 16_384, heap: HeapClaim(bytesPerByte: 160, fixedBytes: 5 << 20),
        errors: [ImportError.self, FileError.self, GGUFError.self]
    ) { bytes in
        let parts = Parts.withLengths(bytes, most: 2 * 12)
        var files: [String: String] = [:]
        for index in stride(from: 0, to: parts.count - 1, by: 2) {
            let name = String(decoding: parts[index], as: UTF8.self)
            files[name] = ScratchDirectory.save(parts[index + 1], to: "file-\(index)")
        }
        let plan = try ModelImport(files: files)
        try BrokenClaim.unless(plan.peakBytes.bytes > 0, "importing takes memory")
        // A source may say how many zeros it stands for; files of this size are written.
        guard plan.outputBytes.bytes <= 64 << 10 else { return }
        let path = ScratchDirectory.path + "/imported.gguf"
        defer { ScratchDirectory.removeFile("imported.gguf") }
        do {
            try plan.write(to: path) { _ in }
        } catch {
            try ModelImport.discard(path)
            throw error
        }
        let file = try GGUFFile.open(path: path)
        try BrokenClaim.unless(file.fileBytes == plan.outputBytes.bytes, "\(file.fileBytes) bytes, planned \(plan.outputBytes.bytes)")
    }
}
