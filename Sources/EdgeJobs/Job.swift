// The stored job. What the API shows of it is made in JobStatus+Job.swift, and nowhere else.
import EdgeWire
import Foundation

package struct Job: Equatable, Sendable {
    package var id: String
    /// Also the adapter's name.
    package var name: String
    package var state: JobState
    package var reason: String?
    package var ownerUid: UInt32
    package var createdAt: Date
    package var startedAt: Date?
    package var finishedAt: Date?
    package var runs: Int
    /// Runs in a row that ended without an answer and without a new checkpoint.
    package var fruitlessRuns: Int
    /// Runs in a row that ended with the daemon or the machine, without a new checkpoint.
    package var interruptedRuns = 0
    /// Of all runs together.
    package var runSeconds = 0.0
    package var request: JobRequest
    /// What the request named when it was submitted: a name may mean another file later, this job's files stay.
    package var modelBlob: String
    package var datasetBlobs: [String]
    package var progress: JobProgress?
    package var plan: PlanReport?
    package var problem: Problem?
    package var adapter: String?

    package init(
        id: String, name: String, ownerUid: UInt32, createdAt: Date, request: JobRequest, modelBlob: String,
        datasetBlobs: [String], plan: PlanReport?
    ) {
        self.id = id
        self.name = name
        state = .queued
        self.ownerUid = ownerUid
        self.createdAt = createdAt
        runs = 0
        fruitlessRuns = 0
        self.request = request
        self.modelBlob = modelBlob
        self.datasetBlobs = datasetBlobs
        self.plan = plan
    }

    /// Runs without progress after which a job has failed.
    package static let fruitlessRunLimit = 5
    /// A job that takes the board down each time is set aside, and not failed: it may be the board.
    package static let interruptedRunLimit = 20
}

/// `j-` and 12 characters: 40 bits of time in units of 2⁻⁴ s, then 20 random bits; ids sort by creation.
package enum JobID {
    private static let alphabet = Array("0123456789abcdefghjkmnpqrstvwxyz")

    package static func make(now: Date, random: UInt64) -> String {
        let ticks = UInt64(max(0, now.timeIntervalSince1970) * 16)
        let bits = (ticks & (1 << 40 - 1)) << 20 | random & (1 << 20 - 1)
        return "j-" + String((0..<12).reversed().map { alphabet[Int(bits >> (UInt64($0) * 5)) & 31] })
    }

    package static func isValid(_ id: String) -> Bool {
        id.hasPrefix("j-") && id.utf8.count == 14 && id.dropFirst(2).allSatisfy { alphabet.contains($0) }
    }
}
