// The kernel's files about memory, heat and power (/proc, /sys), below a root: the machine's own, or a captured tree that a
// test rewrites. Text in and out; what it means is decided elsewhere.
import Foundation

package struct HostFiles: Equatable, Sendable {
    package static let machine = HostFiles(root: "")

    /// Put before every path; empty for the machine.
    package let root: String

    package init(root: String) { self.root = root }

    /// How a worker learns the root of the `serve` that started it.
    static let environmentKey = "EDGETUNED_HOST_ROOT"

    init(environment: [String: String]) { self.init(root: environment[Self.environmentKey] ?? "") }

    /// Nil when the kernel has no such file, or does not let this process read it.
    func text(_ path: String) -> String? {
        let descriptor = open(root + path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        // To the end: these files have no size, and Foundation stops after the first page of them.
        var bytes: [UInt8] = []
        var page = [UInt8](repeating: 0, count: 4096)
        while true {
            let got = read(descriptor, &page, page.count)
            if got < 0 && errno == EINTR { continue }
            guard got >= 0 else { return nil }
            if got == 0 { return String(decoding: bytes, as: UTF8.self) }
            bytes += page[..<got]
        }
    }

    /// The numbers of lines `key value` or `key: value kB`, in the units of the file.
    func figures(_ path: String) -> [String: UInt64] { Self.figures(text(path) ?? "") }

    static func figures(_ text: String) -> [String: UInt64] {
        var figures: [String: UInt64] = [:]
        for line in text.split(separator: "\n") {
            let words = line.split(whereSeparator: { " \t:".contains($0) })
            if words.count >= 2, let value = UInt64(words[1]) { figures[String(words[0])] = value }
        }
        return figures
    }

    /// Names in a directory, sorted; empty when there is none.
    func names(_ directory: String) -> [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: root + directory)) ?? []).sorted()
    }

    /// A file of one word or line, without its end.
    func word(_ path: String) -> String? { text(path)?.trimmingCharacters(in: .whitespacesAndNewlines) }

    /// A file of one number; nil when there is none, or when it says "max".
    func number(_ path: String) -> UInt64? {
        text(path).flatMap { UInt64($0.trimmingCharacters(in: .whitespacesAndNewlines)) }
    }

    /// One write, as the files of a cgroup want it. The file is there already, or this is a captured tree.
    ///
    /// - Returns: the errno, or nil.
    func write(_ text: String, to path: String) -> Int32? {
        let descriptor = open(root + path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else { return errno }
        defer { close(descriptor) }
        let bytes = Array(text.utf8)
        return Glibc.write(descriptor, bytes, bytes.count) == bytes.count ? nil : errno
    }
}

/// One pressure file (`some` and `full`): the share of time that tasks stood still for want of memory.
/// Documentation/accounting/psi.rst.
package struct MemoryPressure: Equatable, Sendable {
    package struct Stalls: Equatable, Sendable {
        /// Percent of the last ten seconds.
        package var avg10: Double
        /// Since boot.
        package var total: Duration

        package init(avg10: Double, total: Duration) {
            self.avg10 = avg10
            self.total = total
        }
    }
    package var some: Stalls
    package var full: Stalls

    package init(some: Stalls, full: Stalls) {
        self.some = some
        self.full = full
    }

    /// Nil when the text is none of a pressure file, or the kernel has no PSI.
    package init?(_ text: String?) {
        guard let text else { return nil }
        var stalls: [Substring: Stalls] = [:]
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ")
            func value(_ key: String) -> Substring? {
                words.first { $0.hasPrefix(key) }.map { $0.dropFirst(key.count) }
            }
            guard let kind = words.first, let avg10 = value("avg10=").flatMap({ Double($0) }),
                let total = value("total=").flatMap({ Int64($0) })
            else { continue }
            stalls[kind] = Stalls(avg10: avg10, total: .microseconds(total))
        }
        guard let some = stalls["some"], let full = stalls["full"] else { return nil }
        self.init(some: some, full: full)
    }
}
