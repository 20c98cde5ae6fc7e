// Jobs that are over: how they are deleted, and which go by themselves. Kept are the last so many, and not those of the last
// so many days: a board without a battery for its clock starts in some other year now and then, and nothing must go for that.
import EdgeJobs
import EdgeWire
import Foundation

extension Daemon {
    static let betweenRemovals = Duration.seconds(300)
    /// In one go, so that nothing else waits for long.
    private static let removalsAtOnce = 500

    /// Deletes a finished job, its log and its files. An adapter stays with its files, and goes when it is removed itself.
    func delete(_ job: Job) async throws {
        try await store.deleteJob(job.id)
        log.remove(job.id)
        let directory = queue.directory(of: job.id)
        try removeDirectory(try await store.adapter(ofJob: job.id) == nil ? directory : directory + "/checkpoints")
        for blob in Set(job.datasetBlobs) { try await release(blob) }
    }

    /// Deletes finished jobs beyond `keep_jobs`, and of those beyond `keep_logs` the events, the log and the checkpoints.
    func removeOldJobs() async throws {
        let config = config.now
        let old = try await store.finishedJobs(beyond: config.keepJobs, limit: Self.removalsAtOnce)
        for id in old {
            // Deleted by its owner meanwhile.
            guard let job = try await store.job(id), job.state.isFinal else { continue }
            try await delete(job)
        }
        let quiet = try await store.finishedJobsWithEvents(beyond: config.keepLogs, limit: Self.removalsAtOnce)
        for id in quiet {
            log.remove(id)
            try removeDirectory(queue.directory(of: id) + "/checkpoints")
            // Last: it is what is found by.
            try await store.removeEvents(of: id)
        }
        if !old.isEmpty || !quiet.isEmpty {
            logger.info("\(old.count) old jobs deleted, events and logs of \(quiet.count)")
        }
    }
}
