// Jobs in the store: submit, look up, change state, delete. A state changes in one place, `apply`.
import EdgeWire
import Foundation
import GRDB

/// What a submit came to.
package enum Submission: Equatable, Sendable {
    case created(Job)
    /// The same key with the same body: the job that it made.
    case existing(Job)
}

package struct IdempotencyKey: Equatable, Sendable {
    package let key: String
    package let bodyDigest: String
    package init(key: String, bodyDigest: String) {
        self.key = key
        self.bodyDigest = bodyDigest
    }
}

extension JobStore {
    /// As SQL. Listed and not negated: SQLite finds them by the index of states.
    static let unfinished =
        "state IN (" + JobState.allCases.filter { !$0.isFinal }.map { "'\($0.rawValue)'" }.joined(separator: ", ") + ")"

    /// The job that this key made before, or nil. Another body under the same key is a conflict.
    package func submitted(_ key: IdempotencyKey, ownerUid: UInt32) async throws -> Job? {
        try await queue.read { db in try Self.submitted(key, ownerUid: ownerUid, db) }
    }

    private static func submitted(_ key: IdempotencyKey, ownerUid: UInt32, _ db: Database) throws -> Job? {
        guard
            let row = try Row.fetchOne(
                db, sql: "SELECT body_digest, job FROM idempotency_keys WHERE owner_uid = ? AND key = ?",
                arguments: [ownerUid, key.key])
        else { return nil }
        guard try row.read("body_digest") == key.bodyDigest else {
            throw Problem(
                .conflict, "this Idempotency-Key was used for another request", hint: "use a new key for a new job")
        }
        return try job(row.read("job"), db)
    }

    /// Stores the job and its first events, unless its key, its name or the queue's length forbid it.
    ///
    /// - Parameter ownLimit: of jobs of this owner that are not finished; nil: the queue's limit alone.
    package func submit(
        _ job: Job, key: IdempotencyKey?, queueLimit: Int, ownLimit: Int? = nil, at now: Date
    ) async throws -> Submission {
        let result: Submission = try await queue.write { db in
            if let key, let existing = try Self.submitted(key, ownerUid: job.ownerUid, db) { return .existing(existing) }
            let waiting = try Int.fetchOne(
                db, sql: "SELECT count(*) FROM jobs WHERE \(Self.unfinished)") ?? 0
            guard waiting < queueLimit else {
                throw Problem(.queueFull, "\(waiting) jobs are waiting, the limit is \(queueLimit)")
            }
            if let ownLimit {
                let own = try Int.fetchOne(
                    db,
                    sql: "SELECT count(*) FROM jobs WHERE \(Self.unfinished) AND owner_uid = ?", arguments: [job.ownerUid]) ?? 0
                guard own < ownLimit else {
                    throw Problem(
                        .queueFull, "\(own) jobs of yours are waiting, the limit of a user is \(ownLimit)",
                        hint: "cancel one, or wait for one to end")
                }
            }
            try Self.requireFree(job.name, db)
            let place = (try Int.fetchOne(db, sql: "SELECT max(place) FROM jobs") ?? 0) + 1
            try db.execute(
                sql: """
                    INSERT INTO jobs (id, place, name, state, owner_uid, created_at, runs, fruitless_runs, request,
                        model_blob, dataset_blobs, plan, priority) VALUES (?, ?, ?, ?, ?, ?, 0, 0, ?, ?, ?, ?, ?)
                    """,
                arguments: [
                    job.id, place, job.name, job.state.rawValue, job.ownerUid, job.createdAt.timeIntervalSince1970,
                    try Column.text(job.request), job.modelBlob, try Column.text(job.datasetBlobs),
                    try job.plan.map(Column.text), job.request.priority ?? 0,
                ])
            if let key {
                try db.execute(
                    sql: "INSERT INTO idempotency_keys (owner_uid, key, body_digest, job) VALUES (?, ?, ?, ?)",
                    arguments: [job.ownerUid, key.key, key.bodyDigest, job.id])
            }
            var events: [JobEvent.Kind] = [.state(.queued, reason: nil)]
            if let plan = job.plan { events.append(.plan(plan)) }
            try Self.append(events, to: job.id, at: now, db)
            return .created(job)
        }
        changes.announce(job.id)
        return result
    }

    /// The job's name becomes its adapter's: one that is taken, or will be, is refused before the work is done.
    private static func requireFree(_ name: String, _ db: Database) throws {
        if let owner = try String.fetchOne(db, sql: "SELECT job FROM adapters WHERE name = ?", arguments: [name]) {
            throw Problem(
                .conflict, "there is an adapter \"\(name)\" already, of job \(owner)",
                hint: "another name, or: edgetune adapters remove \(name)")
        }
        let unfinished = try String.fetchOne(
            db,
            sql: "SELECT id FROM jobs WHERE name = ? AND \(unfinished)",
            arguments: [name])
        if let unfinished {
            throw Problem(.conflict, "job \(unfinished) has the name \"\(name)\" and is not finished", hint: "another name")
        }
    }

    package func job(_ id: String) async throws -> Job? { try await queue.read { db in try Self.job(id, db) } }

    package func count(of state: JobState) async throws -> Int {
        try await queue.read { db in
            try Int.fetchOne(db, sql: "SELECT count(*) FROM jobs WHERE state = ?", arguments: [state.rawValue]) ?? 0
        }
    }

    /// Jobs that a daemon left behind in the middle of a run.
    package func interruptedJobs() async throws -> [Job] {
        try await queue.read { db in
            try Row.fetchAll(
                db, sql: "SELECT * FROM jobs WHERE state IN ('running', 'pausing', 'cancelling') ORDER BY place"
            ).map(Self.job)
        }
    }

    /// Changes the state by the state machine, stores the events of the change and returns the job as it is then.
    ///
    /// - Parameter problem: stored with the job when it becomes `failed`.
    @discardableResult
    package func apply(
        _ transition: JobTransition, to id: String, reason: String?, problem: Problem? = nil, at now: Date
    ) async throws -> Job {
        let job = try await queue.write { db in
            guard var job = try Self.job(id, db) else { throw Problem(.notFound, "there is no job \(id)") }
            do throws(TransitionRefusal) { job.state = try JobStateMachine.next(job.state, transition) } catch {
                throw error.problem
            }
            // Who was asked to pause or to end keeps the reason it has, whatever the run ended for.
            if ![.stopped, .yielded, .lost].contains(transition) || job.state == .queued { job.reason = reason }
            if transition == .start {
                job.runs += 1
                job.startedAt = job.startedAt ?? now
            }
            if transition == .lost { job.fruitlessRuns += 1 }
            if transition == .restarted { job.interruptedRuns += 1 }
            if [.resume, .stopped, .yielded].contains(transition) { (job.fruitlessRuns, job.interruptedRuns) = (0, 0) }
            var events: [JobEvent.Kind] = []
            if job.state == .failed, let problem {
                job.problem = problem
                events.append(.problem(problem))
            }
            if job.state == .succeeded || (job.state == .failed && transition == .salvaged) {
                job.adapter = job.name
                try Self.insertAdapter(of: job, at: now, db)
            }
            events.append(.state(job.state, reason: job.reason))
            if job.state.isFinal {
                job.finishedAt = now
                events.append(.end(job.state))
            }
            try db.execute(
                sql: """
                    UPDATE jobs SET state = ?, reason = ?, started_at = ?, finished_at = ?, runs = ?, fruitless_runs = ?,
                        interrupted_runs = ?, problem = ?, adapter = ? WHERE id = ?
                    """,
                arguments: [
                    job.state.rawValue, job.reason, job.startedAt?.timeIntervalSince1970,
                    job.finishedAt?.timeIntervalSince1970, job.runs, job.fruitlessRuns, job.interruptedRuns,
                    try job.problem.map(Column.text), job.adapter, id,
                ])
            try Self.append(events, to: id, at: now, db)
            return job
        }
        changes.announce(id)
        return job
    }

    /// Deletes a finished job with its events and keys. Its adapter, if any, keeps its record.
    package func deleteJob(_ id: String) async throws {
        try await queue.write { db in
            guard let job = try Self.job(id, db) else { throw Problem(.notFound, "there is no job \(id)") }
            guard job.state.isFinal else {
                throw Problem(
                    .wrongState, "job \(id) is \(job.state.rawValue)", hint: "cancel it first: edgetune cancel \(id)")
            }
            try db.execute(sql: "DELETE FROM jobs WHERE id = ?", arguments: [id])
        }
        changes.announce(id)
    }

    static func job(_ id: String, _ db: Database) throws -> Job? {
        try Row.fetchOne(db, sql: "SELECT * FROM jobs WHERE id = ?", arguments: [id]).map(job)
    }

    static func job(_ row: Row) throws(StoreError) -> Job {
        let id: String = try row.read("id")
        let stored: String = try row.read("state")
        guard let state = JobState(rawValue: stored) else { throw .damaged("state of \"\(id)\" is \"\(stored)\"") }
        var job = Job(
            id: id, name: try row.read("name"), ownerUid: try row.read("owner_uid"),
            createdAt: try row.readDate("created_at"), request: try row.readJSON("request"),
            modelBlob: try row.read("model_blob"), datasetBlobs: try row.readJSON("dataset_blobs"),
            plan: try row.readJSONIfThere("plan"))
        job.state = state
        job.reason = try row.readIfThere("reason")
        job.startedAt = try row.readDateIfThere("started_at")
        job.finishedAt = try row.readDateIfThere("finished_at")
        job.runs = try row.read("runs")
        job.fruitlessRuns = try row.read("fruitless_runs")
        // Of the third schema.
        job.interruptedRuns = try row.readIfThere("interrupted_runs") ?? 0
        job.runSeconds = try row.readSecondsIfThere("run_seconds") ?? 0
        job.progress = try row.readJSONIfThere("progress")
        job.problem = try row.readJSONIfThere("problem")
        job.adapter = try row.readIfThere("adapter")
        return job
    }
}
