// The queue with real processes: shell scripts that speak the worker's protocol.
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Synchronization
import Testing

@Suite struct JobQueueTests {
    @Test func jobsRunInOrderAndLeaveAnAdapter() async throws {
        let rig = try await QueueRig(train: "echo x >> $dir/order; " + FakeWorker.succeed())
        try await rig.submit("j-1")
        try await rig.submit("j-2")
        let second = try await rig.wait("j-2") { $0.state.isFinal }
        let first = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(first.state == .succeeded && second.state == .succeeded, "\(second)")
        #expect(first.progress?.step == 1)
        #expect(try await rig.store.adapter("j-1")?.job == "j-1")
    }

    @Test func aKilledWorkerRunsAgainAndFinishes() async throws {
        let rig = try await QueueRig(
            train: "if [ ! -e $dir/once ]; then touch $dir/once; kill -9 $$; fi\n" + FakeWorker.succeed())
        try await rig.submit("j-1")
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(job.state == .succeeded)
        #expect(job.runs == 2)
    }

    @Test func fiveRunsWithoutACheckpointAreAFailureWithTheNumbers() async throws {
        let rig = try await QueueRig(train: "echo '\(FakeWorker.step(2))'; kill -9 $$")
        try await rig.submit("j-1")
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(job.state == .failed)
        #expect(job.runs == 5, "\(job)")
        #expect(job.problem?.kind == .workerKilled)
        #expect(job.problem?.detail.contains("held 7 MiB at step 2, planned 8 MiB, budget 9 MiB") == true)
    }

    @Test func aCheckpointStartsTheCountAnew() async throws {
        let checkpoint = try FakeWorker.line(.checkpoint(step: 1))
        let rig = try await QueueRig(
            train: """
                echo x >> $dir/runs
                if [ $(wc -l < $dir/runs) -ge 6 ]; then \(FakeWorker.succeed())
                else [ $(($(wc -l < $dir/runs) % 2)) -eq 0 ] && echo '\(checkpoint)'; kill -9 $$; fi
                """)
        try await rig.submit("j-1")
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(job.state == .succeeded)
        #expect(job.runs == 6)
    }

    @Test func aCrashIsToldWithWhatTheWorkerSaidLast() async throws {
        let rig = try await QueueRig(train: "echo 'index out of range' >&2; exit 3")
        try await rig.submit("j-1")
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(job.problem?.kind == .workerCrashed)
        #expect(job.problem?.detail.contains("exited with code 3 and no answer: index out of range") == true)
        #expect(String(decoding: try rig.log.read("j-1"), as: UTF8.self).contains("index out of range"))
    }

    @Test func aFailureMessageIsFinalAtOnce() async throws {
        let problem = Problem(.nonFinite, "loss is nan at step 3")
        let rig = try await QueueRig(train: "echo '\(FakeWorker.line(.failure(problem)))'")
        try await rig.submit("j-1")
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(job.state == .failed && job.runs == 1 && job.problem == problem)
    }

    @Test func aMachinesErrorIsNoFailureOfTheJobBeforeTheFifthTime() async throws {
        let broken = Problem(.internalError, "fsync of step-4.ckpt: Input/output error")
        let failure = try FakeWorker.line(.failure(broken))
        let rig = try await QueueRig(
            train: """
                case "$order" in *j-1*) if [ -e $dir/again ]; then \(FakeWorker.succeed())
                else touch $dir/again; echo '\(failure)'; fi ;; *) echo '\(failure)' ;; esac
                """)
        try await rig.submit("j-1")
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(job.state == .succeeded && job.runs == 2, "\(job)")
        try await rig.submit("j-2")
        let failed = try await rig.wait("j-2") { $0.state.isFinal }
        #expect(failed.state == .failed && failed.runs == 5)
        #expect(failed.problem?.detail.hasPrefix("\(broken.detail); 5 runs in a row") == true, "\(failed)")
    }

    @Test func aLogThatCannotBeWrittenEndsNoRun() async throws {
        let rig = try await QueueRig(train: "echo '\(FakeWorker.line(.log("said")))'\n" + FakeWorker.succeed())
        // A directory in its place.
        try FileManager.default.createDirectory(atPath: rig.path + "/j-1.log", withIntermediateDirectories: false)
        try await rig.submit("j-1")
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(job.state == .succeeded && job.runs == 1, "\(job)")
    }

    @Test func aFullDiskPausesTheJobWhichGoesOnWhenThereIsRoom() async throws {
        let full = Problem(.insufficientDisk, "write step-4.ckpt: No space left on device")
        let rig = try await QueueRig(
            train: """
                if [ -e $dir/again ]; then \(FakeWorker.succeed())
                else touch $dir/again; echo '\(FakeWorker.line(.failure(full)))'; fi
                """)
        try await rig.submit("j-1")
        let job = try await rig.wait("j-1") { $0.state == .paused }
        #expect(job.reason?.contains("edgetune resume j-1") == true, "\(job)")
        #expect(try await rig.queue.act(.resume, on: "j-1").state == .queued)
        #expect(try await rig.wait("j-1") { $0.state.isFinal }.state == .succeeded)
    }

    @Test func noiseInsteadOfAMessageIsACrash() async throws {
        let rig = try await QueueRig(train: "echo hello; sleep 60")
        try await rig.submit("j-1")
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(job.problem?.kind == .workerCrashed)
    }

    @Test func aPausedJobGoesOnWhenItIsResumed() async throws {
        let rig = try await QueueRig(
            train: """
                if [ -e $dir/again ]; then \(FakeWorker.succeed())
                else touch $dir/again; \(FakeWorker.waitForStop()); fi
                """)
        try await rig.submit("j-1")
        _ = try await rig.wait("j-1") { $0.progress != nil }
        #expect(try await rig.queue.act(.pause, on: "j-1").state == .pausing)
        _ = try await rig.wait("j-1") { $0.state == .paused }
        #expect(try await rig.queue.act(.resume, on: "j-1").state == .queued)
        #expect(try await rig.wait("j-1") { $0.state.isFinal }.state == .succeeded)
    }

    @Test func aCancelledWorkerThatDoesNotListenIsKilled() async throws {
        let rig = try await QueueRig(train: "echo '\(FakeWorker.step(1))'; exec sleep 60", stopTimeout: .milliseconds(200))
        try await rig.submit("j-1")
        _ = try await rig.wait("j-1") { $0.progress != nil }
        _ = try await rig.queue.act(.cancel, on: "j-1")
        #expect(try await rig.wait("j-1") { $0.state.isFinal }.state == .cancelled)
    }

    @Test func aCancelWhilePausingWins() async throws {
        let rig = try await QueueRig(train: FakeWorker.waitForStop())
        try await rig.submit("j-1")
        _ = try await rig.wait("j-1") { $0.progress != nil }
        _ = try await rig.queue.act(.pause, on: "j-1")
        _ = try? await rig.queue.act(.cancel, on: "j-1")
        let job = try await rig.wait("j-1") { $0.state == .cancelled || $0.state == .paused }
        if job.state == .paused { _ = try await rig.queue.act(.cancel, on: "j-1") }
        #expect(try await rig.wait("j-1") { $0.state.isFinal }.state == .cancelled)
    }

    @Test func stoppingTheQueuePutsTheRunningJobBack() async throws {
        let rig = try await QueueRig(train: FakeWorker.waitForStop())
        try await rig.submit("j-1")
        _ = try await rig.wait("j-1") { $0.progress != nil }
        await rig.queue.stop {}
        let job = try await rig.wait("j-1") { $0.state == .queued }
        #expect(job.reason == "the daemon stopped; resumes at step 1")
        try await rig.running.value
    }

    @Test func aRestartResolvesWhatWasInterrupted() async throws {
        let rig = try await QueueRig(train: "exec sleep 60", before: { store in
            for (id, transitions) in [
                ("j-2", [JobTransition.start, .pause]), ("j-3", [.start, .cancel]), ("j-1", [.start]),
            ] {
                _ = try await store.submit(makeJob(id), key: nil, queueLimit: 9, at: QueueRig.start)
                for transition in transitions { try await store.apply(transition, to: id, reason: nil, at: QueueRig.start) }
            }
        })
        #expect(try await rig.store.job("j-2")?.state == .paused)
        #expect(try await rig.store.job("j-3")?.state == .cancelled)
        #expect(try await rig.wait("j-1") { $0.state == .running }.runs == 2)
    }

    @Test func aJobThatYieldsWaitsWithTheReasonAndGoesOn() async throws {
        let rig = try await QueueRig(
            train: """
                if [ -e $dir/again ]; then \(FakeWorker.succeed())
                else touch $dir/again; echo '\(FakeWorker.line(.checkpoint(step: 4)))'
                echo '\(FakeWorker.line(.yielded(step: 4, reason: "pressure")))'; fi
                """)
        try await rig.submit("j-1")
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(job.state == .succeeded && job.runs == 2)
        let events = try await rig.store.events(of: "j-1", after: 0, limit: 99).map(\.line).joined()
        #expect(events.contains("waits for memory: pressure; goes on from step 4"))
    }

    @Test func aSmallerJobPassesOneThatWaitsForMemory() async throws {
        let free = Allowance()
        let rig = try await QueueRig(
            train: FakeWorker.succeed(), obstacle: { job, _ in job.id == "j-1" && !free.isGiven ? Obstacle(.memory, "needs 9 MiB, 5 MiB are there") : nil })
        try await rig.submit("j-1")
        try await rig.submit("j-2")
        #expect(try await rig.wait("j-2") { $0.state.isFinal }.state == .succeeded)
        let waiting = try await rig.wait("j-1") { $0.reason != nil }
        #expect(waiting.state == .queued && waiting.runs == 0)
        #expect(waiting.reason == "waits for memory: needs 9 MiB, 5 MiB are there")
        free.give()
        #expect(try await rig.wait("j-1") { $0.state.isFinal }.state == .succeeded)
        // Told once, not with every look.
        let events = try await rig.store.events(of: "j-1", after: 0, limit: 99)
        #expect(events.filter { $0.line.contains("waits for memory") }.count == 1)
    }

    @Test func aWaitingJobCanBePausedResumedAndCancelled() async throws {
        let rig = try await QueueRig(train: FakeWorker.succeed(), obstacle: { _, _ in Obstacle(.memory, "none is there") })
        try await rig.submit("j-1")
        _ = try await rig.wait("j-1") { $0.reason != nil }
        #expect(try await rig.queue.act(.pause, on: "j-1").state == .paused)
        try await Task.sleep(for: .milliseconds(60))
        #expect(try await rig.store.job("j-1")?.reason == "paused by request")
        #expect(try await rig.queue.act(.resume, on: "j-1").state == .queued)
        _ = try await rig.wait("j-1") { $0.reason?.hasPrefix("waits for memory") == true }
        #expect(try await rig.queue.act(.cancel, on: "j-1").state == .cancelled)
    }

    @Test func aYieldWhilePausingKeepsThePausesReason() async throws {
        let rig = try await QueueRig(
            train: """
                echo '\(FakeWorker.step(1))'
                read -r signal && echo '\(FakeWorker.line(.yielded(step: 1, reason: "pressure")))'
                """)
        try await rig.submit("j-1")
        _ = try await rig.wait("j-1") { $0.progress != nil }
        _ = try await rig.queue.act(.pause, on: "j-1")
        #expect(try await rig.wait("j-1") { $0.state == .paused }.reason == "paused by request")
    }

    @Test func aKillByTheGroupsLimitIsToldAsThat() async throws {
        let report = RunGroupReport(limitBytes: 20 << 20, peakBytes: 19 << 20, swapPeakBytes: 0, oomKills: 1)
        let rig = try await QueueRig(
            train: "echo '\(FakeWorker.step(2))'; case $order in *control_group*here*) kill -9 $$;; esac",
            runGroup: { job, planned in
                #expect(job == "j-1" && planned == 1 << 20)
                return RunGroup(directory: "/here", end: { report })
            })
        try await rig.submit("j-1")
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(job.problem?.kind == .workerKilled)
        let expected = "killed by its cgroup's memory limit (limit 20 MiB, peak 19 MiB, swap peak 0 MiB, oom_kill 1); "
            + "it held 7 MiB at step 2, planned 8 MiB, budget 9 MiB"
        #expect(job.problem?.detail.contains(expected) == true, "\(job)")
        #expect(String(decoding: try rig.log.read("j-1"), as: UTF8.self).contains("cgroup of the run: limit 20 MiB"))
    }
}
