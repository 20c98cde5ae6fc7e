// Data sets: the lines of a JSONL file, and the text that is made of each where the model has no chat template.
//
// Claims: no file traps; every refusal is a DatasetError or a TrainingTextError; the heap holds at most 128 bytes for each byte
// of a line and one chunk; time is linear.
import EdgeFormats

extension FuzzTarget {
    static let dataset = FuzzTarget(
        name: "dataset", longestInput: 4096, heap: HeapClaim(bytesPerByte: 128, fixedBytes: 768 << 10),
        errors: [DatasetError.self, TrainingTextError.self]
    ) { bytes in
        var reader = try DatasetReader.open(path: ScratchDirectory.save(Array(bytes), to: "lines.jsonl"))
        while let sample = try reader.next() {
            if case .messages(let messages, _) = sample {
                try BrokenClaim.unless(!messages.isEmpty && messages.allSatisfy { !$0.role.isEmpty }, "a turn is somebody's")
            }
        }
    }
}
