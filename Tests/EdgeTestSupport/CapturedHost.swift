// A tree of the kernel's files, which a test writes and `edgetuned serve --host-root` reads.
import Foundation

package struct CapturedHost: Sendable {
    package let root: String

    /// A calm machine of 4 GiB with PSI and no cgroup.
    package init(in directory: String) throws {
        root = directory + "/host"
        try setMemory(totalMiB: 4096, availableMiB: 3072)
        try setPressure()
        try write("0::/\n", to: "/proc/self/cgroup")
    }

    package func write(_ text: String, to path: String) throws {
        let file = URL(fileURLWithPath: root + path)
        try FileManager.default.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
        // Renamed into place, so that no reader sees half of it.
        try Data(text.utf8).write(to: file, options: .atomic)
    }

    package func read(_ path: String) -> String? { try? String(contentsOfFile: root + path, encoding: .utf8) }

    package func setMemory(totalMiB: Int, availableMiB: Int) throws {
        try write(
            "MemTotal:       \(totalMiB * 1024) kB\nMemFree:  1 kB\nMemAvailable:   \(availableMiB * 1024) kB\n",
            to: "/proc/meminfo")
    }

    package func setPressure(some: Double = 0, full: Double = 0) throws {
        func line(_ kind: String, _ avg10: Double) -> String { "\(kind) avg10=\(avg10) avg60=0.00 avg300=0.00 total=0\n" }
        try write(line("some", some) + line("full", full), to: "/proc/pressure/memory")
    }
}
