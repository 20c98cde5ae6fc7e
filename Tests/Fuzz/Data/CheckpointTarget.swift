// Checkpoints of a run and the best adapters that they name, as they lie on the disk.
//
// Claims: no file traps, damaged or forged with a right checksum; every refusal is a CheckpointError, and damage falls back to the
// checkpoint before; nothing is copied of a file that is refused; the heap holds at most 64 bytes for each byte of the files and
// a piece.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTrain

extension FuzzTarget {
    /// Two checkpoints and a best adapter, each with its length, after a byte of flags: bits 0 to 2, whether the file gets the magic,
    /// version, fingerprint and checksum that make it the run's own.
    static let checkpoint = FuzzTarget(
        name: "checkpoint", longestInput: 4096, heap: HeapClaim(bytesPerByte: 64, fixedBytes: 512 << 10),
        errors: [CheckpointError.self]
    ) { bytes in
        guard let flags = bytes.first else { return }
        let parts = Parts.withLengths(UnsafeRawBufferPointer(rebasing: bytes.dropFirst()), most: 3)
        for (index, name) in names.enumerated() {
            guard index < parts.count else {
                ScratchDirectory.removeFile(name)
                continue
            }
            let magic = index < 2 ? "EDGECKPT" : "EDGEBEST"
            _ = ScratchDirectory.save(flags & 1 << index == 0 ? parts[index] : sealed(parts[index], magic), to: name)
        }
        let (adapters, arena) = try SmallModel.adapters()
        try withExtendedLifetime(arena) {
            let values = UnsafeMutableBufferPointer(start: adapters.parameters, count: adapters.parameterCount)
            values.update(repeating: untouched)
            let matrices = adapters.layout.trained
            let state = try Arena(capacity: AdamW.bytes(matrices, .f32))
            let optimizer = AdamW(matrices, .f32, arena: state)
            let store = CheckpointStore(directory: ScratchDirectory.path, runFingerprint: fingerprint)
            let (restored, notes) = try store.restore(into: adapters, optimizer)
            try BrokenClaim.unless(notes.count <= 2, "\(notes.count) notes of two files")
            guard let restored else {
                try BrokenClaim.unless(values.allSatisfy { $0 == untouched }, "what is refused is not copied")
                return
            }
            if let best = restored.bestEvaluation { try store.restoreBest(into: adapters, step: best.step) }
        }
    }

    private static let names = ["step-000000001.ckpt", "step-000000002.ckpt", "best-000000001.f32"]
    private static let fingerprint = [UInt8](repeating: 7, count: SHA256.byteCount)
    private static let untouched: Float = 1234

    private static func sealed(_ body: [UInt8], _ magic: String) -> [UInt8] {
        let file = Array(magic.utf8) + [UInt8(CheckpointStore.version), 0, 0, 0, 0, 0, 0, 0] + fingerprint + body
        return file + file.withUnsafeBytes(SHA256.hash)
    }
}
