// A directory for what is damaged: the things themselves under the paths that they had, and NOTE.txt, which says what was
// wrong with each. Made when the first thing comes; nothing here is ever deleted.
import EdgeJobs
import EdgeWire
import Foundation

struct Quarantine {
    let state: String
    let directory: String
    private(set) var isMade = false

    /// - Parameter now: names it.
    init(places: Places, now: Date) {
        state = places.state
        let stamp = now.formatted(.iso8601).filter { $0.isNumber || $0 == "T" }
        var free = "\(places.quarantine)/\(stamp)"
        var attempt = 1
        while access(free, F_OK) == 0 {
            attempt += 1
            free = "\(places.quarantine)/\(stamp)-\(attempt)"
        }
        directory = free
    }

    /// Moves a file or a directory of the state there.
    mutating func take(_ path: String, because reason: String) throws {
        precondition(path.hasPrefix(state + "/"))
        let target = directory + path.dropFirst(state.count)
        try make((target as NSString).deletingLastPathComponent)
        guard rename(path, target) == 0 else {
            throw ConfigError("\(path) cannot be moved to \(directory): \(String(cString: strerror(errno)))")
        }
        // The new name first: after a power cut it has both, or either.
        for name in [target, path] { try DurableDirectory.sync((name as NSString).deletingLastPathComponent) }
        try note("\(path.dropFirst(state.count + 1)): \(reason)")
    }

    /// Writes down rows that were taken out of the store.
    mutating func take(rows: [[String: String]], of table: String, because reason: String) throws {
        try make(directory)
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        let lines = try rows.map { String(decoding: try encoder.encode($0), as: UTF8.self) + "\n" }
        try append(lines.joined(), to: "\(table).jsonl")
        try note("\(rows.count) row(s) in \(table).jsonl: \(reason)")
    }

    private mutating func note(_ text: String) throws { try append(text + "\n", to: "NOTE.txt") }

    private mutating func make(_ path: String) throws {
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        isMade = true
    }

    private func append(_ text: String, to name: String) throws {
        let path = "\(directory)/\(name)"
        if access(path, F_OK) != 0 {
            _ = FileManager.default.createFile(atPath: path, contents: nil, attributes: [.posixPermissions: 0o600])
        }
        let handle = try FileHandle(forWritingTo: URL(fileURLWithPath: path))
        defer { try? handle.close() }
        try handle.seekToEnd()
        try handle.write(contentsOf: Data(text.utf8))
        // Before the row or the name that it tells of is gone for good.
        try handle.synchronize()
    }
}
