// Timing and output shared by the benchmarks.
import EdgeTensor
import FoundationEssentials
import Glibc

enum Measurement {
    /// Median seconds of `runs` calls after one that is not counted.
    static func median(runs: Int, _ body: () throws -> Void) rethrows -> Double {
        try body()
        let seconds = try (0..<runs).map { _ in
            let start = ContinuousClock.now
            try body()
            return (ContinuousClock.now - start) / .seconds(1)
        }
        return seconds.sorted()[runs / 2]
    }

    /// Operations per second of the set's multiply-adds in `type` on the pool's threads, from registers alone.
    static func peak(_ kernels: KernelSet, _ type: ComputeType, pool: WorkerPool) -> Double {
        let rounds = 4_000_000
        var flop = 0.0
        let seconds = median(runs: 3) {
            pool.run(pool.threadCount) { _, scratch in flop = kernels.peakLoop(type, rounds: rounds, sink: scratch) }
        }
        return flop * Double(pool.threadCount) / seconds
    }

    /// Largest resident set of this process so far, in bytes; 0 where /proc is not there. Not `ru_maxrss`, which
    /// survives exec and so may be the parent's.
    static var peakResidentBytes: Int { bytes("VmHWM", in: "/proc/self/status") }

    /// A line `key: value kB` of a file of /proc, in bytes; 0 where it is not there.
    static func bytes(_ key: String, in path: String) -> Int {
        guard let file = fopen(path, "r") else { return 0 }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 256)
        while fgets(&line, Int32(line.count), file) != nil {
            let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            guard text.hasPrefix(key + ":") else { continue }
            return (Int(text.dropFirst(key.count + 1).filter(\.isNumber)) ?? 0) * 1024
        }
        return 0
    }

    static func padded(_ text: String, _ width: Int) -> String {
        text + String(repeating: " ", count: max(1, width - text.count))
    }

    static func printLine(_ value: some Encodable) throws {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        encoder.outputFormatting = [.sortedKeys]
        print(String(decoding: try encoder.encode(value), as: UTF8.self))
    }
}
