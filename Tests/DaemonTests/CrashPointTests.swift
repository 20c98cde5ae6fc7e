// SIGKILL before each operation that changes the disk, one by one, in the daemon and in its workers: of every step of
// DurableStep.swift, which says what a crash point is called; with the job running, pausing and cancelling there, others queued
// behind it, and others paused, cancelled, failed and succeeded beside it.
//
//   EDGETUNE_CRASHES=all|FIRST-LAST   which n (default: a few); EDGETUNE_CRASH_WALKS=own,both,paused,… narrows it down;
//   EDGETUNE_PART, EDGETUNE_SECONDS   of Walk.swift
import EdgeTestSupport
import EdgeWire
import Foundation
import Synchronization
import Testing

@Suite(.serialized) struct CrashPointTests {
    struct Pass {
        let name: String
        let scene: FaultStage.Scene
        var course = LifeCourse.runs
        /// With both, workers alone are struck: a daemon's death is its worker's in any case.
        var victim = FaultyFiles.Victim.ownProcess
        /// Asked for while a worker stands before its operation, so that it dies in a job that is pausing or cancelling.
        var held: JobAction?
        /// When nobody says which.
        let sample: [Int]
    }

    static let passes = [
        Pass(name: "own", scene: .life, sample: [40, 120]),
        Pass(name: "both", scene: .life, victim: .both, sample: [20]),
        Pass(name: "paused", scene: .life, course: .isPaused, sample: []),
        Pass(name: "cancelled", scene: .life, course: .isCancelled, sample: [90]),
        Pass(name: "pausing", scene: .life, held: .pause, sample: [10]),
        Pass(name: "cancelling", scene: .life, held: .cancel, sample: [20]),
        Pass(name: "others", scene: .others, sample: [30]),
        Pass(name: "others-both", scene: .others, victim: .both, sample: [5]),
        Pass(name: "migration", scene: .migration, sample: [12]),
        Pass(name: "recovery", scene: .recovery, sample: [9]),
    ]

    @Test func noCrashPointLosesAnything() throws {
        let directory = try TemporaryDirectory()
        let stage = try FaultStage(in: directory.path)
        let chosen = FileFaultTests.chosen("EDGETUNE_CRASH_WALKS")
        for pass in Self.passes where chosen?.contains(pass.name) != false {
            try Walk("EDGETUNE_CRASHES", sample: pass.sample).each(pass.name) { try Self.crash(at: $0, pass, on: stage) }
        }
        #expect(!stage.points.isEmpty)
        if chosen == nil, ProcessInfo.processInfo.environment["EDGETUNE_CRASHES"] == "all" {
            #expect(Set(stage.steps.keys) == Set(DurableStep.allCases), "not every step was struck")
        }
        try stage.finish("crash points")
    }

    /// True: it came to that point.
    static func crash(at number: Int, _ pass: Pass, on stage: FaultStage) throws -> Bool {
        let watch = pass.held.map { HoldWatch(stage, $0) }
        let scope = watch != nil || pass.victim == .both ? FaultyFiles.Scope.workersChanges : .changes
        defer { watch?.end() }
        return try stage.play(
            pass.scene, pass.course, what: pass.name, number,
            prepare: { life in
                life.mayBeCancelled = pass.held == .cancel
                life.id = { id in watch?.job.withLock { $0 = id } }
            }
        ) { stage.files.arm(watch == nil ? .kill(pass.victim) : .holdAndKill(pass.victim), at: number, scope: scope) }
    }
}

/// Asks for something as soon as a worker is held, and then lets it die. On a thread of its own: the client may be waiting for an
/// answer that the held process owes.
private final class HoldWatch: Sendable {
    let job = Mutex<String?>(nil)
    private let isOver = Mutex(false)
    private let ended = DispatchSemaphore(value: 0)

    init(_ stage: FaultStage, _ action: JobAction) {
        // Read and written through shared memory, as by the processes that are watched.
        nonisolated(unsafe) let files = stage.files
        let socket = stage.client.daemon.socket
        Thread.detachNewThread { [self] in
            while !isOver.withLock({ $0 }) {
                if files.isHeld {
                    // A worker may be no job's.
                    if let job = job.withLock({ $0 }), let descriptor = try? RawHTTP.connect(socket) {
                        RawHTTP.send(RawHTTP.request("POST", Endpoint.jobAction(job, action)), to: descriptor)
                        _ = try? RawHTTP.readAll(descriptor)
                        close(descriptor)
                    }
                    files.release()
                }
                usleep(1000)
            }
            ended.signal()
        }
    }

    func end() {
        isOver.withLock { $0 = true }
        ended.wait()
    }
}
