// Who runs, and what ends a run: obstacles, time limits, turns, priorities, retries. With real processes.
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Synchronization
import Testing

@Suite struct QueuePolicyTests {
    private static func hot(_ detail: String = "hot") -> Obstacle { Obstacle(.heat, detail) }

    // MARK: obstacles of a running job

    @Test func aRunningJobLeavesForAnObstacleWaitsAndGoesOn() async throws {
        let cool = Allowance(true)
        let rig = try await QueueRig(
            train: "if [ -e $dir/again ]; then \(FakeWorker.succeed()); else touch $dir/again; \(FakeWorker.waitForStop()); fi",
            obstacle: { _, phase in cool.isGiven ? nil : Self.hot(phase == .run ? "90 of 80" : "75 of 70") })
        try await rig.submit("j-1")
        _ = try await rig.wait("j-1") { $0.progress != nil }
        cool.take()
        let waiting = try await rig.wait("j-1") { $0.state == .queued && $0.runs == 1 && $0.reason != nil }
        #expect(waiting.reason == "waits for a cooler board: 90 of 80; goes on from step 1")
        #expect(waiting.fruitlessRuns == 0)
        #expect(try rig.logText("j-1").contains("asked to leave: it waits for a cooler board: 90 of 80"))
        try await Task.sleep(for: .milliseconds(100))
        #expect(try await rig.store.job("j-1")?.runs == 1)
        #expect(await rig.queue.waits == "waits for a cooler board: 75 of 70")
        cool.give()
        #expect(try await rig.wait("j-1") { $0.state.isFinal }.state == .succeeded)
        #expect(await rig.queue.waits == nil)
    }

    @Test func oneLookIsNoObstacle() async throws {
        let looks = Counter()
        let rig = try await QueueRig(
            train: "echo '\(FakeWorker.step(1))'; read -r signal; \(FakeWorker.succeed())",
            // Every other look of the running job finds something.
            obstacle: { _, phase in phase == .run && looks.next() % 2 == 0 ? Self.hot() : nil })
        try await rig.submit("j-1")
        _ = try await rig.wait("j-1") { _ in looks.count > 10 }
        #expect(try await rig.store.job("j-1")?.runs == 1)
        #expect(try !rig.logText("j-1").contains("asked to leave"))
    }

    @Test func aWorkerThatIsKilledForItsSlownessToLeaveHasNotCrashed() async throws {
        let free = Allowance(true)
        let rig = try await QueueRig(
            train: "if [ -e $dir/again ]; then \(FakeWorker.succeed()); else touch $dir/again; echo '\(FakeWorker.step(1))'; exec sleep 60; fi",
            stopTimeout: .milliseconds(100), obstacle: { _, _ in free.isGiven ? nil : Self.hot() })
        try await rig.submit("j-1")
        _ = try await rig.wait("j-1") { $0.progress != nil }
        free.take()
        let waiting = try await rig.wait("j-1") { $0.state == .queued && $0.runs == 1 && $0.reason != nil }
        #expect(
            waiting.reason
                == "waits for a cooler board: hot; came to no checkpoint within 0.1 s and was killed; goes on from the last one")
        #expect(waiting.fruitlessRuns == 0)
        free.give()
        #expect(try await rig.wait("j-1") { $0.state.isFinal }.state == .succeeded)
    }

    @Test func whoIsPausedWhileItLeavesStaysPaused() async throws {
        let cool = Allowance(true)
        let rig = try await QueueRig(train: FakeWorker.waitForStop(), obstacle: { _, _ in cool.isGiven ? nil : Self.hot() })
        try await rig.submit("j-1")
        _ = try await rig.wait("j-1") { $0.progress != nil }
        _ = try await rig.queue.act(.pause, on: "j-1")
        cool.take()
        #expect(try await rig.wait("j-1") { $0.state == .paused }.reason == "paused by request")
    }

    // MARK: max_time

    /// Ends when it is asked to, with an adapter.
    private static func waitForFinish() throws -> String {
        "echo '\(try FakeWorker.step(1))'; read -r signal; [ \"$signal\" = finish ] && { \(try FakeWorker.succeed()); }"
    }

    @Test func whenItsTimeIsOverARunEndsWithItsAdapter() async throws {
        let rig = try await QueueRig(train: Self.waitForFinish())
        let clock = ContinuousClock.now
        try await rig.submit("j-1") { $0.maxTime = "1s" }
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(job.state == .succeeded && job.runs == 1, "\(job)")
        #expect(ContinuousClock.now - clock > .milliseconds(990))
        #expect(job.runSeconds > 0.9)
        #expect(try rig.logText("j-1").contains("max_time 1s is over"))
        let events = try await rig.store.events(of: "j-1", after: 0, limit: 99).map(\.line).joined()
        #expect(events.contains("max_time 1s is over"))
    }

    @Test func theTimeOfAllRunsTogetherIsLimited() async throws {
        let rig = try await QueueRig(
            train: """
                echo '\(FakeWorker.step(1))'; read -r signal
                case $signal in stop) echo '\(FakeWorker.line(.stopped(step: 1)))';; finish) \(FakeWorker.succeed());; esac
                """)
        try await rig.submit("j-1") { $0.maxTime = "10h" }
        _ = try await rig.wait("j-1") { $0.progress != nil }
        _ = try await rig.queue.act(.pause, on: "j-1")
        let paused = try await rig.wait("j-1") { $0.state == .paused }
        #expect(paused.runSeconds > 0)
        // A pause is not counted.
        try await Task.sleep(for: .milliseconds(300))
        #expect(try await rig.store.job("j-1")?.runSeconds == paused.runSeconds)
        try await rig.store.record([], of: "j-1", ran: 36_000, at: QueueRig.start)
        _ = try await rig.queue.act(.resume, on: "j-1")
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(job.state == .succeeded && job.runs == paused.runs + 1, "\(job)")
        #expect(try rig.logText("j-1").contains("max_time 10h is over"))
        #expect(job.runSeconds > 36_000)
    }

    // MARK: order

    @Test func aHigherPriorityTakesOverAndTheOtherGoesOn() async throws {
        let rig = try await QueueRig(
            train: """
                case "$order" in *j-1*) if [ -e $dir/again ]; then \(FakeWorker.succeed()); else touch $dir/again; \(FakeWorker.waitForStop()); fi;;
                *) \(FakeWorker.succeed());; esac
                """)
        try await rig.submit("j-1")
        _ = try await rig.wait("j-1") { $0.progress != nil }
        try await rig.submit("j-2") { $0.priority = -1 }
        try await Task.sleep(for: .milliseconds(200))
        #expect(try await rig.store.job("j-1")?.state == .running)
        try await rig.submit("j-3") { $0.priority = 5 }
        let third = try await rig.wait("j-3") { $0.state.isFinal }
        let first = try await rig.wait("j-1") { $0.state.isFinal }
        let second = try await rig.wait("j-2") { $0.state.isFinal }
        #expect(first.runs == 2 && [first, second, third].allSatisfy { $0.state == .succeeded })
        let events = try await rig.store.events(of: "j-1", after: 0, limit: 99).map(\.line).joined()
        #expect(events.contains("waits for its turn: j-3 has priority 5, this has 0; goes on from step 1"), "\(events)")
    }

    @Test func aHigherPriorityThatCannotStartTakesNothingOver() async throws {
        let rig = try await QueueRig(
            train: FakeWorker.waitForStop(),
            obstacle: { job, phase in job.id == "j-2" && phase == .start ? Obstacle(.hours, "closed") : nil })
        try await rig.submit("j-1")
        _ = try await rig.wait("j-1") { $0.progress != nil }
        try await rig.submit("j-2") { $0.priority = 5 }
        try await Task.sleep(for: .milliseconds(300))
        #expect(try await rig.store.job("j-1")?.state == .running)
    }

    @Test func anotherUserHasATurnWhenThisOneHasHadIts() async throws {
        let turn = Duration.milliseconds(700)
        let rig = try await QueueRig(
            train: """
                case "$order" in *j-1*) if [ -e $dir/again ]; then \(FakeWorker.succeed()); else touch $dir/again; \(FakeWorker.waitForStop()); fi;;
                *) \(FakeWorker.succeed());; esac
                """, settings: { $0.turn = { turn } })
        try await rig.submit("j-1", owner: 1)
        try await rig.submit("j-2", owner: 1)
        _ = try await rig.wait("j-1") { $0.progress != nil }
        try await rig.submit("j-3", owner: 2)
        let third = try await rig.wait("j-3") { $0.state.isFinal }
        #expect(third.state == .succeeded)
        let first = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(first.state == .succeeded && first.runs == 2)
        #expect(first.runSeconds > 0.6)
        _ = try await rig.wait("j-2") { $0.state.isFinal }
        let events = try await rig.store.events(of: "j-1", after: 0, limit: 99).map(\.line).joined()
        #expect(events.contains("waits for its turn: j-3 of uid 2 is next"), "\(events)")
    }

    @Test func theUserWhoHadLessIsNext() async throws {
        let open = Allowance()
        let rig = try await QueueRig(
            train: "echo \"$order\" | sed 's/.*\"job\":\"\\([^\"]*\\)\".*/\\1/' >> $dir/order; " + FakeWorker.succeed(),
            settings: {
                // As the daemon does it: one look for all that wait.
                $0.look = {
                    let isOpen = open.isGiven
                    return { _, _ in isOpen ? nil : Obstacle(.hours, "closed") }
                }
            },
            before: { store in
                // An hour of user 1's, and a minute of user 2's.
                for (owner, id, seconds) in [(UInt32(1), "j-old1", 3600.0), (2, "j-old2", 60)] {
                    var job = makeJob(id)
                    job.ownerUid = owner
                    _ = try await store.submit(job, key: nil, queueLimit: 9, at: QueueRig.start)
                    try await store.record([], of: id, ran: seconds, at: QueueRig.start)
                    try await store.apply(.cancel, to: id, reason: nil, at: QueueRig.start)
                }
            })
        for (id, owner, priority) in [("j-1", UInt32(1), nil), ("j-2", 1, nil), ("j-3", 2, nil), ("j-4", 3, nil), ("j-5", 1, 1), ("j-6", 3, -1)] as [(String, UInt32, Int?)] {
            try await rig.submit(id, owner: owner) { $0.priority = priority }
        }
        open.give()
        for id in ["j-1", "j-2", "j-3", "j-4", "j-5", "j-6"] { _ = try await rig.wait(id) { $0.state.isFinal } }
        let order = try String(contentsOfFile: rig.path + "/order", encoding: .utf8).split(separator: "\n")
        #expect(order == ["j-5", "j-4", "j-3", "j-1", "j-2", "j-6"])
    }

    // MARK: retries

    @Test func othersRunWhileACrashedJobWaitsForItsNextTry() async throws {
        let rig = try await QueueRig(
            train: "case \"$order\" in *j-1*) kill -9 $$;; *) \(FakeWorker.succeed());; esac", retryAfter: .seconds(600))
        try await rig.submit("j-1")
        try await rig.submit("j-2")
        #expect(try await rig.wait("j-2") { $0.state.isFinal }.state == .succeeded)
        let waiting = try await rig.wait("j-1") { $0.runs == 2 && $0.state == .queued }
        #expect(waiting.reason?.hasPrefix("waits for another try: 2 runs in a row came to no new checkpoint, the next is in 600 s: ") == true)
        #expect(waiting.reason?.contains("killed by SIGKILL") == true)
        try await Task.sleep(for: .milliseconds(200))
        #expect(try await rig.store.job("j-1")?.runs == 2)
        // Whoever wants it now, resumes it.
        _ = try await rig.queue.act(.pause, on: "j-1")
        _ = try await rig.queue.act(.resume, on: "j-1")
        #expect(try await rig.wait("j-1") { $0.runs == 4 && $0.state == .queued }.fruitlessRuns == 2)
    }

    @Test(arguments: [
        (0, 0, 0), (1, 0, 0), (2, 0, 4), (3, 0, 16), (4, 0, 64), (9, 0, 600), (1_000, 0, 600), (0, 2, 0), (0, 3, 4), (0, 4, 16), (3, 3, 16),
    ])
    func backOffGrowsFourfoldToTenMinutes(_ crashed: Int, _ interrupted: Int, _ seconds: Int) {
        #expect(Retry.delay(crashed: crashed, interrupted: interrupted, base: .seconds(4)) == .seconds(seconds))
    }

    @Test func whatMayPassIsTriedAgainAndBadInputIsNot() async throws {
        let passing = Problem(.internalError, "read step-3.ckpt: Input/output error")
        let bad = Problem(.badDataset, "no sample to train on")
        let rig = try await QueueRig(
            train: """
                case "$order" in *j-1*) if [ -e $dir/again ]; then \(FakeWorker.succeed()); else touch $dir/again; echo '\(FakeWorker.line(.failure(passing)))'; fi;;
                *) echo '\(FakeWorker.line(.failure(bad)))';; esac
                """)
        try await rig.submit("j-1")
        try await rig.submit("j-2")
        let first = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(first.state == .succeeded && first.runs == 2)
        let second = try await rig.wait("j-2") { $0.state.isFinal }
        #expect(second.problem == bad && second.runs == 1)
    }

    @Test func aWorkerThatHangsIsKilledAndTriedAgain() async throws {
        let rig = try await QueueRig(
            train: "if [ -e $dir/again ]; then \(FakeWorker.succeed()); else touch $dir/again; exec sleep 60; fi",
            settings: { $0.patience = { _ in .seconds(1) } })
        try await rig.submit("j-1")
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        // More than two where this process itself is slow to listen.
        #expect(job.state == .succeeded && job.runs >= 2)
        #expect(try rig.logText("j-1").contains("the worker said nothing for 0 min and was killed"))
    }

    /// Ten years back, ten years on, with every look at the calendar.
    @Test func aCalendarThatJumpsChangesNoLengthOfTime() async throws {
        let looks = Counter()
        let rig = try await QueueRig(
            train: "if [ -e $dir/again ]; then \(Self.waitForFinish()); else touch $dir/again; kill -9 $$; fi",
            settings: { $0.now = { QueueRig.start.addingTimeInterval(looks.next() % 2 == 0 ? 3e8 : -3e8) } })
        let clock = ContinuousClock.now
        try await rig.submit("j-1") { $0.maxTime = "1s" }
        let job = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(job.state == .succeeded && job.runs == 2)
        #expect((0.9..<600).contains(job.runSeconds), "\(job.runSeconds)")
        #expect(ContinuousClock.now - clock < .seconds(600))
        #expect(looks.count > 5)
    }

    @Test func aJobThatTakesTheMachineDownGivesWayAndIsSetAsideInTheEnd() async throws {
        let rig = try await QueueRig(
            train: FakeWorker.succeed(), retryAfter: .seconds(30),
            before: { store in
                for (id, ends) in [("j-1", 2), ("j-2", Job.interruptedRunLimit - 1)] {
                    _ = try await store.submit(makeJob(id), key: nil, queueLimit: 9, at: QueueRig.start)
                    for _ in 0..<ends {
                        try await store.apply(.start, to: id, reason: nil, at: QueueRig.start)
                        try await store.apply(.restarted, to: id, reason: nil, at: QueueRig.start)
                    }
                    try await store.apply(.start, to: id, reason: nil, at: QueueRig.start)
                }
            })
        #expect(try await rig.store.job("j-2")?.state == .paused)
        #expect(
            try await rig.store.job("j-2")?.reason
                == "20 runs in a row ended with the daemon or the machine before a checkpoint; edgetune resume j-2")
        try await rig.submit("j-3")
        #expect(try await rig.wait("j-3") { $0.state.isFinal }.state == .succeeded)
        let first = try await rig.wait("j-1") { $0.reason?.hasPrefix("waits") == true }
        #expect(first.reason == "waits for another try: 3 runs in a row came to no new checkpoint, the next is in 30 s")
        _ = try await rig.queue.act(.resume, on: "j-2")
        #expect(try await rig.wait("j-2") { $0.state.isFinal }.state == .succeeded)
    }
}

private final class Counter: Sendable {
    private let value = Mutex(0)
    var count: Int { value.withLock { $0 } }
    func next() -> Int {
        value.withLock {
            $0 += 1
            return $0
        }
    }
}
