// The inputs of the layers between forward and backward: what gradient checkpointing keeps.
import EdgeFormats
import EdgeModel
import EdgeTensor
import Glibc

package enum CheckpointStorage: String, Equatable, Sendable, CaseIterable {
    case memory
    /// Rounded to bfloat16 where the backward reads them again; the forward, and so the loss, sees the exact values.
    case bf16
    /// In an unlinked file, exact: written behind the forward and read ahead of the backward.
    case file
}

package final class LayerCheckpoints {
    private let storage: CheckpointStorage
    private let lowest: Int
    /// In memory: one per trained layer, the last layer's output, and a spare for the frozen ones. Else a ring.
    private let buffers: [Tensor]
    private let rounded: [UnsafeMutablePointer<UInt16>]
    private var file: SpillFile?
    /// Held, because the file's thread works on it until the file has gone.
    private let arena: Arena
    private var tokens = 0
    /// In which buffer a layer's input is; only with a ring.
    private var holder: [Int?]

    private static func bufferCount(_ storage: CheckpointStorage, trainedLayers: Int) -> Int {
        switch storage {
        case .memory: trainedLayers + 2
        // The input and the output of the layer at work; with a file, one that is written or read meanwhile.
        case .bf16: 2
        case .file: 3
        }
    }

    package static func bytes(_ storage: CheckpointStorage, tokens: Int, trainedLayers: Int, _ spec: DecoderSpec) -> ByteCount {
        let one = ByteCount.floats(tokens * spec.hiddenSize).bytes
        let half = ByteCount.wholeLines(tokens * spec.hiddenSize * 2).bytes
        return ByteCount(
            bufferCount(storage, trainedLayers: trainedLayers) * one + (storage == .bf16 ? trainedLayers * half : 0))
    }

    deinit { file = nil }

    /// Bytes of disk that `file` takes.
    package static func fileBytes(tokens: Int, trainedLayers: Int, _ spec: DecoderSpec) -> ByteCount {
        ByteCount(trainedLayers * SpillFile.stride(tokens * spec.hiddenSize))
    }

    /// - Parameter directory: where `file` puts its file.
    /// - Throws: `FileError`, before anything runs, when the disk has no room.
    package init(
        _ storage: CheckpointStorage, tokens: Int, lowest: Int, _ spec: DecoderSpec, directory: String, arena: Arena
    ) throws {
        let trained = spec.layerCount - lowest
        self.storage = storage
        self.arena = arena
        self.lowest = lowest
        buffers = (0..<Self.bufferCount(storage, trainedLayers: trained)).map { _ in arena.tensor(tokens, spec.hiddenSize) }
        rounded =
            storage == .bf16
            ? (0..<trained).map { _ in
                arena.bytes(.wholeLines(tokens * spec.hiddenSize * 2)).baseAddress!
                    .bindMemory(to: UInt16.self, capacity: tokens * spec.hiddenSize)
            } : []
        holder = Array(repeating: nil, count: spec.layerCount + 1)
        if storage == .file {
            file = try SpillFile(directory: directory, slots: trained, floats: tokens * spec.hiddenSize)
        }
    }

    package func begin(tokens: Int) {
        self.tokens = tokens
        for layer in holder.indices { holder[layer] = nil }
    }

    /// Input of `layer` as the forward has it, or the output of the last layer when `layer` is the layer count.
    package func input(of layer: Int) -> Tensor {
        if let buffer = holder[layer] { return buffers[buffer].prefix(tokens) }
        if storage == .memory {
            if layer >= lowest { return buffers[layer - lowest].prefix(tokens) }
            // Frozen layers alternate, so that the lowest adapted layer's input lands in its own place.
            return ((lowest - layer) % 2 == 0 ? buffers[0] : buffers[buffers.count - 1]).prefix(tokens)
        }
        let buffer = layer % buffers.count
        holder[layer] = buffer
        if layer >= buffers.count { holder[layer - buffers.count] = nil }
        return buffers[buffer].prefix(tokens)
    }

    /// The place for `layer`'s output, once nothing is under way there.
    package func output(of layer: Int) throws -> Tensor {
        if let file, layer + 1 >= buffers.count { try file.finish(slot: layer + 1 - buffers.count - lowest) }
        return input(of: layer + 1)
    }

    /// The forward has used the input of `layer`.
    package func keep(_ layer: Int, on pool: WorkerPool) {
        guard layer >= lowest else { return }
        switch storage {
        case .memory: break
        case .bf16: roundToBF16(input(of: layer), into: rounded[layer - lowest], on: pool)
        case .file: file!.write(slot: layer - lowest, input(of: layer))
        }
    }

    /// Input of `layer` for the backward, which goes down; reads the one below meanwhile.
    package func fetch(_ layer: Int, on pool: WorkerPool) throws -> Tensor {
        switch storage {
        case .memory: return input(of: layer)
        case .bf16:
            let x = buffers[layer % buffers.count].prefix(tokens)
            expandBF16(rounded[layer - lowest], into: x, on: pool)
            return x
        case .file:
            guard let file else { preconditionFailure("no file") }
            if holder[layer] == nil { read(layer, file) }
            try file.finish(slot: layer - lowest)
            // What is above has been used: its place is free for the next that is not in memory.
            for above in layer + 1..<holder.count { holder[above] = nil }
            let x = buffers[holder[layer]!].prefix(tokens)
            for below in stride(from: layer - 1, through: max(lowest, layer - buffers.count + 1), by: -1)
            where holder[below] == nil {
                // It may be on its way to the file still.
                read(below, file)
            }
            return x
        }
    }

    private func read(_ layer: Int, _ file: SpillFile) {
        let buffer = layer % buffers.count
        for other in holder.indices where holder[other] == buffer { holder[other] = nil }
        holder[layer] = buffer
        file.read(slot: layer - lowest, into: buffers[buffer].prefix(tokens))
    }
}

/// Slots of equal size in a file without a name: gone with the process, whatever ends it.
private final class SpillFile {
    private let descriptor: Int32
    private let path: String
    private let slotBytes: Int
    private let thread = BackgroundThread()
    /// The last work on each slot.
    private var tickets: [BackgroundThread.Ticket]

    static func stride(_ floats: Int) -> Int { (floats * 4 + 4095) / 4096 * 4096 }

    init(directory: String, slots: Int, floats: Int) throws {
        path = directory + "/layer-inputs.tmp"
        slotBytes = Self.stride(floats)
        tickets = Array(repeating: 0, count: slots)
        unlink(path)
        descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw FileError(operation: "open", path: path, errno: errno) }
        unlink(path)
        // All of it now: a disk that is full is said before the first step, not in the middle of one.
        let status = posix_fallocate(descriptor, 0, off_t(max(1, slots * slotBytes)))
        guard status == 0 else {
            close(descriptor)
            throw FileError(operation: "posix_fallocate", path: path, errno: status)
        }
    }

    deinit {
        // Whatever is under way belongs to a run that has ended; only the descriptor must outlive it.
        try? thread.wait(tickets.max() ?? 0)
        close(descriptor)
    }

    func write(slot: Int, _ x: Tensor) { transfer(slot, x, "pwrite") { pwrite($0, $1, $2, $3) } }

    func read(slot: Int, into x: Tensor) { transfer(slot, x, "pread") { pread($0, $1, $2, $3) } }

    /// Returns when nothing is under way on the slot; slots that are not there are done.
    func finish(slot: Int) throws {
        guard tickets.indices.contains(slot) else { return }
        try thread.wait(tickets[slot])
    }

    private func transfer(
        _ slot: Int, _ x: Tensor, _ operation: String,
        _ call: @escaping (Int32, UnsafeMutableRawPointer, Int, off_t) -> Int
    ) {
        let (descriptor, path, first) = (descriptor, path, slot * slotBytes)
        tickets[slot] = thread.submit {
            var done = 0
            while done < x.count * 4 {
                let got = call(descriptor, UnsafeMutableRawPointer(x.base) + done, x.count * 4 - done, off_t(first + done))
                if got < 0 && errno == EINTR { continue }
                guard got > 0 else { throw FileError(operation: operation, path: path, errno: got == 0 ? EIO : errno) }
                done += got
            }
        }
    }
}
