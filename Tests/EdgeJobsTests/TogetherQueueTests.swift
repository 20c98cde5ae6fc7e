// Jobs that train together, as the queue has them: who joins whom, and what a worker's words and its end mean for each.
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite struct TogetherQueueTests {
    static func plan(_ jobs: Int, peakBytes: UInt64 = 1 << 20) -> TogetherPlan {
        TogetherPlan(jobs: jobs, peakBytes: peakBytes, budgetBytes: 2 << 20, spillBytes: 0, processBytes: 1, seconds: 1, secondsApart: 2)
    }

    static func line(_ job: String, _ message: WorkMessage) throws -> String {
        "echo '\(try FakeWorker.line(.ofJob(job, message)))'\n"
    }

    static func step(_ job: String, eta: Double? = nil) throws -> String {
        try line(
            job,
            .step(
                JobProgress(
                    step: 1, totalSteps: 3, epoch: 0, loss: 1, learningRate: 1, gradNorm: 1, tokensPerSecond: 1, rssBytes: 7 << 20,
                    plannedPeakBytes: 8 << 20, budgetBytes: 9 << 20, etaSeconds: eta, evalLoss: nil, bestEvalLoss: nil)))
    }

    static func succeed(_ job: String) throws -> String {
        try "mkdir -p $dir/jobs/\(job)/adapter; echo tensors > $dir/jobs/\(job)/adapter/adapter_model.safetensors.lz4\n" + line(job, .trained)
    }

    static let ended = "echo '\(try! FakeWorker.line(.jobsEnded))'\n"

    /// Jobs are submitted while nothing may start.
    static func rig(
        train: String, together: String, plan: TogetherPlan?, most: Int = 4, obstacle: @escaping @Sendable (Job, RunPhase) -> Obstacle? = { _, _ in nil },
        submit: (QueueRig) async throws -> Void
    ) async throws -> QueueRig {
        let open = Allowance()
        let rig = try await QueueRig(
            train: train, together: together, togetherPlan: plan, plan: FakeWorker.plan,
            settings: {
                $0.mostTogether = { most }
                $0.look = {
                    let isOpen = open.isGiven
                    return { isOpen ? obstacle($0, $1) : Obstacle(.hours, "closed") }
                }
            })
        try await submit(rig)
        open.give()
        return rig
    }

    static func asked(_ rig: QueueRig) -> String { (try? String(contentsOfFile: rig.path + "/asked", encoding: .utf8)) ?? "" }

    @Test func jobsOfOneRunEndEachByItself() async throws {
        let rig = try await Self.rig(
            train: "exit 9",
            together: Self.step("j-1") + Self.step("j-2") + Self.succeed("j-2")
                + "while [ ! -e $dir/go ]; do sleep 0.02; done\n" + Self.succeed("j-1") + Self.ended,
            plan: Self.plan(2)
        ) {
            try await $0.submit("j-1")
            try await $0.submit("j-2")
        }
        #expect(try await rig.wait("j-2") { $0.state.isFinal }.state == .succeeded)
        #expect(try await rig.store.job("j-1")?.state == .running)
        #expect(await rig.queue.runningJobs == ["j-1"])
        _ = FileManager.default.createFile(atPath: rig.path + "/go", contents: nil)
        let first = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(first.state == .succeeded && first.runs == 1 && first.progress?.step == 1)
        // Of a user's time both had half as long as they ran together.
        let entries = try await rig.store.queueEntries(with: "j-1", at: QueueRig.start)
        let ran = try await [rig.store.job("j-1"), rig.store.job("j-2")].compactMap { $0?.runSeconds }
        #expect(try #require(entries.usage[7]) < ran.reduce(0, +) && ran.allSatisfy { $0 > 0 })
    }

    @Test func onlyNeighboursOfOneUserOnOneBaseJoin() async throws {
        let rig = try await Self.rig(
            train: FakeWorker.succeed(), together: "exit 9", plan: nil
        ) {
            try await $0.submit("j-1")
            try await $0.submit("j-2", owner: 8)
            try await $0.submit("j-3") { $0.precision = .f32 }
            try await $0.submit("j-4") { $0.threads = 1 }
        }
        for id in ["j-1", "j-2", "j-3", "j-4"] { #expect(try await rig.wait(id) { $0.state.isFinal }.state == .succeeded) }
        #expect(Self.asked(rig) == "")
    }

    @Test func whatAPlanRefusesRunsAlone() async throws {
        let rig = try await Self.rig(train: FakeWorker.succeed(), together: "exit 9", plan: nil) {
            try await $0.submit("j-1")
            try await $0.submit("j-2")
        }
        for id in ["j-1", "j-2"] { #expect(try await rig.wait(id) { $0.state.isFinal }.state == .succeeded) }
        #expect(Self.asked(rig).split(separator: "\n").count == 1)
    }

    @Test func jobsThatDoNotFitTogetherNowRunAlone() async throws {
        let rig = try await Self.rig(
            train: FakeWorker.succeed(), together: "exit 9", plan: Self.plan(2, peakBytes: 1 << 30),
            obstacle: { job, _ in job.plan!.peakBytes > 1 << 20 ? Obstacle(.memory, "too little") : nil }
        ) {
            try await $0.submit("j-1")
            try await $0.submit("j-2")
        }
        for id in ["j-1", "j-2"] { #expect(try await rig.wait(id) { $0.state.isFinal }.state == .succeeded) }
    }

    @Test func afterACrashEachRunsAlone() async throws {
        let rig = try await Self.rig(
            train: FakeWorker.succeed(), together: Self.step("j-1") + "kill -9 $$", plan: Self.plan(2)
        ) {
            try await $0.submit("j-1")
            try await $0.submit("j-2")
        }
        for id in ["j-1", "j-2"] {
            let job = try await rig.wait(id) { $0.state.isFinal }
            #expect(job.state == .succeeded && job.runs == 2, "\(job)")
        }
    }

    @Test func aJobThatTheWorkerSaysNothingOfRunsAgain() async throws {
        let rig = try await Self.rig(
            train: FakeWorker.succeed(), together: Self.succeed("j-1") + Self.ended, plan: Self.plan(2)
        ) {
            try await $0.submit("j-1")
            try await $0.submit("j-2")
        }
        #expect(try await rig.wait("j-1") { $0.state.isFinal }.runs == 1)
        let second = try await rig.wait("j-2") { $0.state.isFinal }
        #expect(second.state == .succeeded && second.runs == 2)
        #expect(try rig.logText("j-2").contains("without a word of this job"))
    }

    @Test func oneIsCancelledPausedOrFailsAndTheOtherGoesOn() async throws {
        let rig = try await Self.rig(
            train: "exit 9",
            together: Self.step("j-1") + Self.step("j-2") + Self.step("j-3")
                + "read -r signal; echo \"$signal\" > $dir/signal; " + Self.line("j-2", .stopped(step: 1))
                + Self.line("j-3", .failure(Problem(.nonFinite, "loss is nan at step 3"))) + Self.succeed("j-1") + Self.ended,
            plan: Self.plan(3)
        ) {
            for id in ["j-1", "j-2", "j-3"] { try await $0.submit(id) }
        }
        _ = try await rig.wait("j-2") { $0.progress != nil }
        _ = try await rig.queue.act(.cancel, on: "j-2")
        #expect(try await rig.wait("j-1") { $0.state.isFinal }.state == .succeeded)
        #expect(try await rig.wait("j-2") { $0.state.isFinal }.state == .cancelled)
        #expect(try await rig.wait("j-3") { $0.state.isFinal }.state == .failed)
        #expect(try String(contentsOfFile: rig.path + "/signal", encoding: .utf8) == "stop j-2\n")
    }

    @Test func aRunThatHasLongToGoIsBegunAgainWithAJobThatCame() async throws {
        let step = try FakeWorker.line(
            .step(
                JobProgress(
                    step: 1, totalSteps: 3, epoch: 0, loss: 1, learningRate: 1, gradNorm: 1, tokensPerSecond: 1, rssBytes: 7 << 20,
                    plannedPeakBytes: 8 << 20, budgetBytes: 9 << 20, etaSeconds: 600, evalLoss: nil, bestEvalLoss: nil)))
        let rig = try await QueueRig(
            train: "echo '\(step)'; read -r signal; echo '\(FakeWorker.line(.stopped(step: 1)))'",
            together: Self.succeed("j-1") + Self.succeed("j-2") + Self.ended, togetherPlan: Self.plan(2), plan: FakeWorker.plan,
            settings: { $0.mostTogether = { 4 } })
        try await rig.submit("j-1")
        _ = try await rig.wait("j-1") { $0.progress != nil }
        try await rig.submit("j-2")
        #expect(try await rig.wait("j-2") { $0.state.isFinal }.state == .succeeded)
        let first = try await rig.wait("j-1") { $0.state.isFinal }
        #expect(first.state == .succeeded && first.runs == 2)
        #expect(try rig.logText("j-1").contains("waits for others to train together with; goes on from step 1"))
    }
}
