// The list of jobs as the API's text. Request, plan, progress and problem are stored as the API writes them, so they are
// passed on as they are: decoding and encoding a thousand of them takes a fifth of a second, which a list may not.
import EdgeWire
import Foundation
import GRDB

extension JobStore {
    /// A `JobList` as JSON, newest first.
    ///
    /// - Parameters:
    ///   - state: nil: all.
    ///   - showsAll: whether all of a job is shown that this user owns; else it is as `JobStatus.forOthers`.
    package func listing(
        in state: JobState?, limit: Int, showsAll: @escaping @Sendable (_ ownerUid: UInt32) -> Bool
    ) async throws -> Data {
        try await queue.read { db in
            let condition = state == nil ? "" : "WHERE state = ?"
            let arguments: StatementArguments = if let state { [state.rawValue, limit] } else { [limit] }
            let rows = try Row.fetchCursor(
                db,
                sql: """
                    SELECT *, CASE WHEN json_valid(request) THEN json_extract(request, '$.base_model') END AS base_model,
                        json_valid(request) AND json_valid(coalesce(plan, '0'))
                        AND json_valid(coalesce(progress, '0')) AND json_valid(coalesce(problem, '0')) AS is_json
                    FROM jobs \(condition) ORDER BY place DESC LIMIT ?
                    """, arguments: arguments)
            var text = Data("{\"jobs\":[".utf8)
            var isFirst = true
            let requests = BareRequests()
            while let row = try rows.next() {
                if !isFirst { text.append(UInt8(ascii: ",")) }
                isFirst = false
                let owner: UInt32 = try row.read("owner_uid")
                try Self.append(row, of: owner, to: &text, bare: showsAll(owner) ? nil : requests)
            }
            text.append(contentsOf: Data("]}".utf8))
            return text
        }
    }

    /// A `JobStatus` with its keys in order.
    ///
    /// - Parameter bare: nil: all of the job.
    private static func append(_ row: Row, of owner: UInt32, to text: inout Data, bare: BareRequests?) throws {
        let id: String = try row.read("id")
        guard try row.read("is_json") else { throw StoreError.damaged("a column of \"\(id)\" is no JSON") }
        let runs: Int = try row.read("runs")
        var separator = "{"
        func put(_ key: String, _ value: String?) {
            guard let value else { return }
            text.append(contentsOf: "\(separator)\"\(key)\":\(value)".utf8)
            separator = ","
        }
        func putText(_ key: String) throws { put(key, try (row.readIfThere(key) as String?).map(quoted)) }
        func putTime(_ key: String) throws {
            put(key, try row.readDateIfThere(key).map { "\"\($0.formatted(.iso8601))\"" })
        }
        if bare == nil { try putText("adapter") }
        try putTime("created_at")
        try putTime("finished_at")
        put("id", try quoted(id))
        put("name", try quoted(bare == nil ? row.read("name") : id))
        put("owner_uid", "\(owner)")
        if bare == nil {
            put("plan", try row.readIfThere("plan"))
            put("problem", try row.readIfThere("problem"))
        } else {
            put("problem", try (row.readJSONIfThere("problem") as Problem?).map { try Column.text($0.forOthers) })
        }
        put("progress", try row.readIfThere("progress"))
        if bare == nil { try putText("reason") }
        put("request", try bare?.text(row.readIfThere("base_model")) ?? row.read("request"))
        if runs > 0 {
            put("run_seconds", try Column.text(JobStatus.shown(runSeconds: row.readSecondsIfThere("run_seconds") ?? 0)))
        }
        put("runs", "\(runs)")
        try putTime("started_at")
        put("state", try quoted(row.read("state")))
        text.append(UInt8(ascii: "}"))
    }

    private static func quoted(_ text: String) throws -> String {
        let isPlain = text.utf8.allSatisfy { $0 >= 0x20 && $0 != UInt8(ascii: "\"") && $0 != UInt8(ascii: "\\") }
        return isPlain ? "\"\(text)\"" : try Column.text(text)
    }
}

/// Requests of other users' jobs: what is shown of one is the same for all of a base model.
private final class BareRequests {
    private var texts: [String: String] = [:]

    func text(_ baseModel: String?) throws -> String {
        guard let baseModel else { throw StoreError.damaged("a request without a base model") }
        if let text = texts[baseModel] { return text }
        let text = try Column.text(JobRequest.forOthers(baseModel: baseModel))
        texts[baseModel] = text
        return text
    }
}
