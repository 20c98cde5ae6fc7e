// What this machine, or the cgroup around the daemon, has of memory and heat. Reads files, decides nothing but the budget.
import EdgeWire
import Foundation

struct HostMemory: Equatable, Sendable {
    /// Of the machine, or of the cgroup where that is less.
    let totalBytes: UInt64
    let availableBytes: UInt64

    init(totalBytes: UInt64, availableBytes: UInt64) {
        self.totalBytes = totalBytes
        self.availableBytes = availableBytes
    }

    /// - Parameters:
    ///   - meminfo: text of /proc/meminfo.
    ///   - limits: `memory.max` and `memory.current` of each cgroup from ours to the root, where there are any.
    init(meminfo: String, limits: [(max: String, current: String)]) {
        func bytes(_ key: String) -> UInt64 {
            meminfo.split(separator: "\n").first { $0.hasPrefix(key) }
                .flatMap { $0.split(separator: " ").dropFirst().first }.flatMap { UInt64($0) }.map { $0 * 1024 } ?? 0
        }
        var total = bytes("MemTotal:")
        var available = bytes("MemAvailable:")
        for limit in limits {
            // "max" is no limit.
            guard let max = UInt64(limit.max.trimmingCharacters(in: .whitespacesAndNewlines)) else { continue }
            let current = UInt64(limit.current.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
            total = min(total, max)
            available = min(available, max - min(max, current))
        }
        self.init(totalBytes: total, availableBytes: available)
    }

    static func now() -> HostMemory {
        func text(_ path: String) -> String { (try? String(contentsOfFile: path, encoding: .utf8)) ?? "" }
        var limits: [(max: String, current: String)] = []
        // cgroup v2: one line, "0::/path". Raspberry Pi kernels have no memory controller: then no file exists.
        if let line = text("/proc/self/cgroup").split(separator: "\n").first(where: { $0.hasPrefix("0::") }) {
            var parts = line.dropFirst(3).split(separator: "/")
            while true {
                let directory = "/sys/fs/cgroup/" + parts.joined(separator: "/")
                limits.append((text(directory + "/memory.max"), text(directory + "/memory.current")))
                guard parts.popLast() != nil else { break }
            }
        }
        return HostMemory(meminfo: text("/proc/meminfo"), limits: limits)
    }

    /// Bytes that a job may plan for: what it asked, what the configuration allows, and what is there. A tenth of what
    /// is available stays free for everything else on the board.
    func budget(asked: String?, allowed: String) -> UInt64 {
        let limits = [asked, allowed].compactMap { $0 }.compactMap { MemoryBudget($0) }
            .map { $0.resolved(machineBytes: totalBytes) }
        return min(limits.min() ?? totalBytes, availableBytes - availableBytes / 10)
    }
}

enum HostSensors {
    static func temperatures() -> [HostStatus.Temperature] {
        let root = "/sys/class/thermal"
        let zones = ((try? FileManager.default.contentsOfDirectory(atPath: root)) ?? [])
            .filter { $0.hasPrefix("thermal_zone") }.sorted()
        return zones.compactMap { zone in
            func text(_ file: String) -> String? {
                (try? String(contentsOfFile: "\(root)/\(zone)/\(file)", encoding: .utf8))?
                    .trimmingCharacters(in: .whitespacesAndNewlines)
            }
            guard let milli = text("temp").flatMap(Double.init) else { return nil }
            return HostStatus.Temperature(zone: text("type") ?? zone, celsius: milli / 1000)
        }
    }
}
