// The order of the queue as a pure value, and what it is made of in the store.
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite struct QueueOrderTests {
    private static func entry(_ id: String, _ owner: UInt32, _ place: Int, priority: Int = 0) -> QueueEntry {
        QueueEntry(id: id, ownerUid: owner, priority: priority, place: place)
    }

    @Test func priorityThenLessUseThenPlace() {
        let entries = [
            Self.entry("a", 1, 1), Self.entry("b", 2, 2), Self.entry("c", 1, 3, priority: 1), Self.entry("d", 3, 4),
            Self.entry("e", 2, 5, priority: -1), Self.entry("f", 2, 6), Self.entry("g", 3, 7),
        ]
        let order = FairShare.order(entries.shuffled(), usage: [1: 100, 2: 10])
        #expect(order.map(\.id) == ["c", "d", "g", "b", "f", "a", "e"])
    }

    @Test func withoutUseTheOrderIsThatOfTheSubmits() {
        let entries = (0..<50).map { Self.entry("\($0)", UInt32($0 % 3), $0) }
        #expect(FairShare.order(entries.shuffled(), usage: [:]) == entries)
    }

    @Test func useCountsHalfAfterAWeekAndAClockThatWasSetBackChangesNothing() {
        #expect(FairShare.decayed(100, age: 7 * 86400) == 50)
        #expect(FairShare.decayed(100, age: 0) == 100)
        #expect(FairShare.decayed(100, age: -1e9) == 100)
        #expect(FairShare.decayed(100, age: 1e12) == 0)
    }

    /// Jobs of a length each, users with as many as they like: each user with work has had the same at any time, to one job's
    /// length.
    @Test(arguments: 1...5) func twoUsersWithWorkHaveTheSame(_ seed: UInt64) {
        var state = seed
        func random(_ bound: UInt64) -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return (state >> 33) % bound
        }
        // A hundred of user 1's were there before the ten of user 2's.
        var waiting = (0..<110).map { Self.entry("\($0)", $0 < 100 ? 1 : 2, $0) }
        var usage: [UInt32: Double] = [:]
        while waiting.contains(where: { $0.ownerUid == 2 }) {
            let next = FairShare.order(waiting, usage: usage)[0]
            waiting.removeAll { $0.id == next.id }
            usage[next.ownerUid, default: 0] += Double(1 + random(10))
            #expect(abs((usage[1] ?? 0) - (usage[2] ?? 0)) <= 10, "seed \(seed)")
        }
        #expect(waiting.count > 50)
    }

    @Test func runningTimeIsCountedPerJobAndPerUser() async throws {
        let directory = try TemporaryDirectory()
        let store = try JobStore(path: directory.path + "/jobs.db")
        let now = QueueRig.start
        for (id, owner) in [("j-1", UInt32(1)), ("j-2", 1), ("j-3", 2)] {
            var job = makeJob(id)
            job.ownerUid = owner
            job.request.priority = id == "j-2" ? 4 : nil
            _ = try await store.submit(job, key: nil, queueLimit: 9, at: now)
        }
        try await store.record([], of: "j-1", ran: 3, at: now)
        try await store.record([.log("x")], of: "j-1", ran: 4, at: now)
        try await store.record([], of: "j-2", ran: 5, at: now.addingTimeInterval(-3600))
        try await store.record([], of: "j-3", ran: 6, at: now)
        let (entries, usage) = try await store.queueEntries(with: nil, at: now)
        #expect(entries.map(\.id) == ["j-1", "j-2", "j-3"] && entries.map(\.priority) == [0, 4, 0])
        // The clock was set back by an hour in between: what was counted is as old as the clock says then, and no older.
        #expect(usage[1] == FairShare.decayed(12, age: 3600) && usage[2] == 6)
        #expect(try await store.job("j-1")?.runSeconds == 7)
        try await store.apply(.start, to: "j-3", reason: nil, at: now)
        #expect(try await store.queueEntries(with: nil, at: now).entries.map(\.id) == ["j-1", "j-2"])
        #expect(try await store.queueEntries(with: "j-3", at: now).entries.map(\.id) == ["j-1", "j-2", "j-3"])
        let weekLater = try await store.queueEntries(with: nil, at: now.addingTimeInterval(7 * 86400)).usage
        #expect(weekLater[2] == 3)
    }

    @Test func theOldestFinishedJobsAreBeyondWhatIsKept() async throws {
        let directory = try TemporaryDirectory()
        let store = try JobStore(path: directory.path + "/jobs.db")
        for number in 1...6 {
            // Stamps go backwards: what counts is the order.
            let at = QueueRig.start.addingTimeInterval(Double(-number) * 86400)
            _ = try await store.submit(makeJob("j-\(number)"), key: nil, queueLimit: 9, at: at)
            if number != 2 { try await store.apply(.cancel, to: "j-\(number)", reason: nil, at: at) }
        }
        #expect(try await store.finishedJobs(beyond: 2, limit: 9) == ["j-1", "j-3", "j-4"])
        #expect(try await store.finishedJobs(beyond: 2, limit: 1) == ["j-1"])
        #expect(try await store.finishedJobs(beyond: 9, limit: 9) == [])
        #expect(try await store.finishedJobsWithEvents(beyond: 3, limit: 9) == ["j-1", "j-3"])
        try await store.removeEvents(of: "j-1")
        #expect(try await store.finishedJobsWithEvents(beyond: 3, limit: 9) == ["j-3"])
        let left = try await store.events(of: "j-1", after: 0, limit: 9)
        #expect(left.count == 1 && left[0].line.contains("\"end\""))
        await #expect { try await store.events(of: "j-1", after: 1, limit: 9) } throws: {
            ($0 as? Problem)?.kind == .cursorExpired
        }
    }
}
