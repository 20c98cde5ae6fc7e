// The list of jobs as the API's text. Request, plan, progress and problem are stored as the API writes them, so they are
// passed on as they are: decoding and encoding a thousand of them takes a fifth of a second, which a list may not.
import EdgeWire
import Foundation
import GRDB

extension JobStore {
    /// A `JobList` as JSON, newest first.
    ///
    /// - Parameter state: nil: all.
    package func listing(in state: JobState?, limit: Int) async throws -> Data {
        try await queue.read { db in
            let condition = state == nil ? "" : "WHERE state = ?"
            let arguments: StatementArguments = if let state { [state.rawValue, limit] } else { [limit] }
            let rows = try Row.fetchCursor(
                db,
                sql: """
                    SELECT *, json_valid(request) AND json_valid(coalesce(plan, '0'))
                        AND json_valid(coalesce(progress, '0')) AND json_valid(coalesce(problem, '0')) AS is_json
                    FROM jobs \(condition) ORDER BY place DESC LIMIT ?
                    """, arguments: arguments)
            var text = Data("{\"jobs\":[".utf8)
            var isFirst = true
            while let row = try rows.next() {
                if !isFirst { text.append(UInt8(ascii: ",")) }
                isFirst = false
                try Self.append(row, to: &text)
            }
            text.append(contentsOf: Data("]}".utf8))
            return text
        }
    }

    /// A `JobStatus` with its keys in order.
    private static func append(_ row: Row, to text: inout Data) throws {
        let id: String = try row.read("id")
        let (owner, runs): (UInt32, Int) = (try row.read("owner_uid"), try row.read("runs"))
        guard try row.read("is_json") else { throw StoreError.damaged("a column of \"\(id)\" is no JSON") }
        var separator = "{"
        func put(_ key: String, _ value: String?) {
            guard let value else { return }
            text.append(contentsOf: "\(separator)\"\(key)\":\(value)".utf8)
            separator = ","
        }
        put("adapter", try (row.readIfThere("adapter") as String?).map(quoted))
        put("created_at", try row.readDateIfThere("created_at").map(time))
        put("finished_at", try row.readDateIfThere("finished_at").map(time))
        put("id", try quoted(id))
        put("name", try quoted(row.read("name")))
        put("owner_uid", "\(owner)")
        put("plan", try row.readIfThere("plan"))
        put("problem", try row.readIfThere("problem"))
        put("progress", try row.readIfThere("progress"))
        put("reason", try (row.readIfThere("reason") as String?).map(quoted))
        put("request", try row.read("request"))
        put("runs", "\(runs)")
        put("started_at", try row.readDateIfThere("started_at").map(time))
        put("state", try quoted(row.read("state")))
        text.append(UInt8(ascii: "}"))
    }

    private static func time(_ date: Date) -> String { "\"\(date.formatted(.iso8601))\"" }

    private static func quoted(_ text: String) throws -> String {
        let isPlain = text.utf8.allSatisfy { $0 >= 0x20 && $0 != UInt8(ascii: "\"") && $0 != UInt8(ascii: "\\") }
        return isPlain ? "\"\(text)\"" : try Column.text(text)
    }
}
