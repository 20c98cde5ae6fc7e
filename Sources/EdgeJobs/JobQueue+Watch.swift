// The running job, looked at every few seconds: whether its time is up, whether the machine, its hours or another job is in its
// way, whether it still says anything. What is in its way ends the run with a checkpoint, as a shortage of memory that the
// worker finds itself does; the job waits with the reason, and goes on when there is nothing in its way.
import EdgeWire
import Foundation

extension JobQueue {
    /// Looks at `job`, which runs, until it is cancelled.
    func watch(_ job: Job, _ transcript: WorkerTranscript) async throws {
        let limit = job.request.maxTime.flatMap(TimeSpan.init).map { Duration.seconds($0.seconds) }
        let before = Duration.seconds(job.runSeconds)
        while !Task.isCancelled, let current, current.active.contains(job.id) {
            var wait = settings.obstacleInterval
            if let limit, let member = current[job.id], !member.isFinishing {
                let left = limit - before - current.ran
                if left <= .zero { try await finish(job, limit) } else { wait = min(wait, left) }
            }
            let silence = await transcript.silence
            if silence > settings.patience(job) { kill(job.id, .silent(silence)) }
            try await leaveIfNeeded(job)
            try? await Task.sleep(for: wait, clock: SuspendingClock())
        }
    }

    private func finish(_ job: Job, _ limit: Duration) async throws {
        guard let current else { return }
        self.current?[job.id]?.isFinishing = true
        current.control.finish(current.isTogether ? job.id : nil)
        let text = "max_time \(job.request.maxTime ?? "") is over: the run ends with what it has"
        write(text, to: job.id, at: settings.now())
        try await store.record([.log(text)], of: job.id, at: settings.now())
    }

    private func leaveIfNeeded(_ job: Job) async throws {
        guard let current, let seen = current[job.id], seen.obstacle == nil, !seen.isFinishing, !isStopping else { return }
        let machine = settings.look()
        var found = machine(job, .run)
        if found == nil { found = try await rivalOfAll(current, job, machine) }
        if found == nil, current.active.first == job.id, try await isWorthJoining(current, job, machine) {
            for id in runningJobs where self.current?[id]?.obstacle == nil { leave(id, Obstacle(.company, "")) }
            return
        }
        // It was waited above: this may be the next run, or one that is over.
        guard self.current?.active.contains(job.id) ?? false else { return }
        self.current?[job.id]?.suspected = found?.kind
        guard let found, seen.suspected == found.kind || found.kind == .turn else { return }
        leave(job.id, found)
    }

    private func leave(_ id: String, _ obstacle: Obstacle) {
        current?[id]?.obstacle = obstacle
        write("asked to leave: it \(obstacle.reason)", to: id, at: settings.now())
        stopRunning(id)
    }

    /// `rival` of a job, if each of the others that it trains with has one too: as long as one goes on, nobody can start.
    private func rivalOfAll(_ run: CurrentRun, _ job: Job, _ machine: (Job, RunPhase) -> Obstacle?) async throws -> Obstacle? {
        guard let found = try await rival(of: job, ran: run.ran, machine) else { return nil }
        for id in run.active where id != job.id {
            guard let other = try await store.job(id), try await rival(of: other, ran: run.ran, machine) != nil else { return nil }
        }
        return found
    }

    /// A job that is to run instead: one of a higher priority at once, another user's of the same one when this run has had
    /// its turn.
    private func rival(
        of job: Job, ran: Duration, _ machine: (Job, RunPhase) -> Obstacle?
    ) async throws -> Obstacle? {
        let (entries, usage) = try await store.queueEntries(with: job.id, at: settings.now())
        guard entries.count > 1, let own = entries.first(where: { $0.id == job.id }) else { return nil }
        let turn = settings.turn()
        let hadItsTurn = turn.map { ran >= $0 } ?? false
        for entry in FairShare.order(entries, usage: usage).prefix(while: { $0.id != job.id }).prefix(Self.candidates) {
            let isHigher = entry.priority > own.priority
            guard isHigher || (hadItsTurn && entry.ownerUid != own.ownerUid), let other = try await store.job(entry.id),
                canReplace(job, other, machine)
            else { continue }
            return Obstacle(
                .turn,
                isHigher
                    ? "\(entry.id) has priority \(entry.priority), this has \(own.priority)"
                    : "\(entry.id) of uid \(entry.ownerUid) is next, this ran \(Int(ran / .seconds(60))) min")
        }
        return nil
    }

    private func canReplace(_ running: Job, _ other: Job, _ machine: (Job, RunPhase) -> Obstacle?) -> Bool {
        guard retryWait(other) == nil else { return false }
        guard let obstacle = machine(other, .start) else { return true }
        // The memory that it lacks may be what the running one holds.
        guard obstacle.kind == .memory, let needed = other.plan?.peakBytes, let held = running.plan?.peakBytes else { return false }
        return needed <= held
    }
}
