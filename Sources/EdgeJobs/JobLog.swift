// A job's log, for people: what its workers said in words and on stderr. Written by `serve`, bounded, the oldest half
// goes first. It is a convenience: losing its last lines in a power cut is allowed, so nothing here syncs.
import EdgeWire
import Foundation

package struct JobLog: Sendable {
    package let directory: String

    package init(directory: String) { self.directory = directory }

    private func path(_ job: String) -> String { "\(directory)/\(job).log" }

    package func append(_ text: String, to job: String, at now: Date) throws {
        let stamp = now.formatted(.iso8601)
        let lines = text.split(separator: "\n").map { "\(stamp) \(Self.printable($0))\n" }.joined()
        let path = path(job)
        if !FileManager.default.fileExists(atPath: path) {
            _ = FileManager.default.createFile(atPath: path, contents: nil, attributes: [.posixPermissions: 0o600])
        }
        let handle = try FileHandle(forWritingTo: URL(fileURLWithPath: path))
        defer { try? handle.close() }
        let end = try handle.seekToEnd()
        try handle.write(contentsOf: Data(lines.utf8))
        guard end + UInt64(lines.utf8.count) > UInt64(WireLimit.logBytes) else { return }
        let kept = try read(job).suffix(WireLimit.logBytes / 2)
        let start = kept.firstIndex(of: UInt8(ascii: "\n")).map { $0 + 1 } ?? kept.startIndex
        try Data(kept[start...]).write(to: URL(fileURLWithPath: path), options: .atomic)
    }

    /// Empty when nothing was said yet.
    package func read(_ job: String) throws -> Data {
        guard let data = FileManager.default.contents(atPath: path(job)) else { return Data() }
        return data
    }

    package func remove(_ job: String) { try? FileManager.default.removeItem(atPath: path(job)) }

    /// Control characters would let a worker's text move a terminal's cursor.
    private static func printable(_ line: Substring) -> String {
        String(String.UnicodeScalarView(line.unicodeScalars.map { $0.value < 32 && $0 != "\t" || $0.value == 127 ? "?" : $0 }))
    }
}
