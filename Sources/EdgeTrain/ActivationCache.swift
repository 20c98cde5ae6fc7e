// What the layers below the lowest adapted one make of each sample, on disk: nothing changes it between epochs, so from the second on
// those layers are not run again. It is rounded before the adapted layers see it, in the first epoch too, and whether there was room
// for it or not: an adapter's bits do not depend on the disk, or on where a run was interrupted.
import EdgeFormats
import EdgeModel
import EdgeTensor
import Glibc

package final class ActivationCache {
    private let format: ActivationFormat
    private let columns: Int
    private let path: String
    private var descriptor: Int32 = -1
    /// A sample's rows on their way.
    private let buffer: UnsafeMutableRawPointer
    /// By sample: where its rows are or will be; less than 0: nowhere.
    private let places: UnsafeMutablePointer<Int64>
    private let isStored: UnsafeMutablePointer<Bool>
    private let count: Int
    /// Held: what is above is in it.
    private let arena: Arena

    /// Of memory.
    package static func bytes(_ format: ActivationFormat, samples: Int, longest: Int, _ spec: DecoderSpec) -> ByteCount {
        .wholeLines(longest * format.rowBytes(spec.hiddenSize)) + .wholeLines(samples * 8) + .wholeLines(samples)
    }

    /// Of disk.
    package static func fileBytes(_ format: ActivationFormat, tokens: Int, _ spec: DecoderSpec) -> ByteCount {
        ByteCount(tokens * format.rowBytes(spec.hiddenSize))
    }

    /// - Parameters:
    ///   - lengths: of the samples, in tokens; the first that fit in `limit` bytes of disk have a place.
    ///   - longest: of the plan.
    ///   - directory: of the file, which has no name and goes with the process.
    package init(
        _ format: ActivationFormat, lengths: [Int], longest: Int, limit: ByteCount, directory: String, _ spec: DecoderSpec, arena: Arena
    ) throws {
        self.format = format
        self.arena = arena
        columns = spec.hiddenSize
        count = lengths.count
        path = directory + "/activations.tmp"
        buffer = arena.bytes(.wholeLines(longest * format.rowBytes(columns))).baseAddress!
        places = arena.bytes(.wholeLines(8 * count)).baseAddress!.bindMemory(to: Int64.self, capacity: count)
        isStored = arena.bytes(.wholeLines(count)).baseAddress!.bindMemory(to: Bool.self, capacity: count)
        isStored.update(repeating: false, count: count)
        var end = 0
        for (sample, tokens) in lengths.enumerated() {
            let bytes = tokens * format.rowBytes(columns)
            places[sample] = end + bytes <= limit.bytes ? Int64(end) : -1
            if places[sample] >= 0 { end += bytes }
        }
        try reserve(end)
    }

    /// The disk may have less than when the run was planned: then nothing is stored.
    private func reserve(_ bytes: Int) throws {
        guard bytes > 0 else { return }
        unlink(path)
        descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw FileError(operation: "open", path: path, errno: errno) }
        unlink(path)
        switch posix_fallocate(descriptor, 0, off_t(bytes)) {
        case 0: break
        case ENOSPC, EDQUOT, EFBIG:
            for sample in 0..<count { places[sample] = -1 }
            // What was got of it goes back.
            guard ftruncate(descriptor, 0) == 0 else { throw FileError(operation: "ftruncate", path: path, errno: errno) }
        case let error: throw FileError(operation: "posix_fallocate", path: path, errno: error)
        }
    }

    deinit { if descriptor >= 0 { close(descriptor) } }

    /// Whether any sample has a place.
    package var hasRoom: Bool { (0..<count).contains { places[$0] >= 0 } }

    func has(_ sample: Int) -> Bool { isStored[sample] }

    /// - Parameter rows: `[tokens, hiddenSize]`, of a sample that is there.
    func load(_ sample: Int, into rows: Tensor, on pool: WorkerPool) throws {
        try transfer(rows.rows * format.rowBytes(columns), at: places[sample], "pread") { pread($0, $1, $2, $3) }
        format.decode(buffer, into: rows, on: pool)
    }

    /// Rounds the rows, and stores them where there is a place.
    func keep(_ sample: Int, _ rows: Tensor, on pool: WorkerPool) throws {
        format.encode(rows, into: buffer, on: pool)
        guard places[sample] >= 0 else { return }
        try transfer(rows.rows * format.rowBytes(columns), at: places[sample], "pwrite") { pwrite($0, $1, $2, $3) }
        isStored[sample] = true
    }

    private func transfer(
        _ bytes: Int, at offset: Int64, _ operation: String, _ call: (Int32, UnsafeMutableRawPointer, Int, off_t) -> Int
    ) throws {
        var done = 0
        while done < bytes {
            let moved = call(descriptor, buffer + done, bytes - done, off_t(offset) + off_t(done))
            if moved < 0 && errno == EINTR { continue }
            guard moved > 0 else { throw FileError(operation: operation, path: path, errno: moved == 0 ? EIO : errno) }
            done += moved
        }
    }
}

/// The samples of a micro-batch, by their numbers in a cache.
package struct CachedSamples {
    let cache: ActivationCache
    let numbers: [Int]
    /// The layer whose input is cached: the lowest adapted one.
    let layer: Int

    package init(cache: ActivationCache, numbers: [Int], layer: Int) {
        self.cache = cache
        self.numbers = numbers
        self.layer = layer
    }

    package var areThere: Bool { numbers.allSatisfy(cache.has) }

    /// - Parameter input: of the layer.
    package func load(into input: Tensor, _ spans: [AttentionSpan], on pool: WorkerPool) throws {
        for (number, span) in zip(numbers, spans) { try cache.load(number, into: rows(of: span, input), on: pool) }
    }

    /// Rounds the layer's input, and stores it.
    package func keep(_ input: Tensor, _ spans: [AttentionSpan], on pool: WorkerPool) throws {
        for (number, span) in zip(numbers, spans) { try cache.keep(number, rows(of: span, input), on: pool) }
    }

    private func rows(of span: AttentionSpan, _ input: Tensor) -> Tensor {
        input.rows(span.firstQuery..<span.firstQuery + span.queryCount)
    }
}
