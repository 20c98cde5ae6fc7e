// One place for walks through faults and crash points: a daemon above the faulty layer with its bystanders, the scenes that
// are played on it, and the tally of what was struck.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

final class FaultStage {
    enum Scene: String, CaseIterable {
        /// JobLife.
        case life
        /// OtherLife.
        case others
        /// The daemon starts on the first release's store.
        case migration
        /// The daemon starts where it and its worker were killed at a checkpoint, and the life goes on.
        case recovery
    }

    let files: FaultyFiles
    private(set) var client: StubbornClient
    let bystanders: Bystanders
    private var expected: [Data]?
    private var number = 0
    /// What was done where to how often.
    private(set) var points: [String: Int] = [:]
    private(set) var steps: [DurableStep: Int] = [:]
    private var restarts = 0
    private var refusals: [String: Int] = [:]
    private var cases = 0
    private let began: Date

    init(in directory: String) throws {
        files = try FaultyFiles(in: directory)
        files.record(.nothing)
        client = try StubbornClient(files)
        bystanders = try Bystanders(client)
        began = Date()
        // What the adapter is when nothing happens.
        expected = try life(.runs).run(client)
        guard expected != nil else { throw TestFailure("the first life came to nothing") }
        try keepOldState()
        try keepInterruptedState()
    }

    /// A copy of the state as the first release would have it.
    private func keepOldState() throws {
        #expect(client.daemon.terminate() == 0)
        let old = kept(.migration)
        try FileManager.default.copyItem(atPath: files.state, toPath: old)
        try OldStore.make(of: old + "/jobs.db", migrations: 1)
        try client.reviveIfGone()
    }

    private struct Interruption: Error {}
    private static let interrupted = 0

    /// A copy of the state when all were killed as a checkpoint was to get its name.
    private func keepInterruptedState() throws {
        files.arm(.kill(.both), at: 2, only: "rename jobs/")
        client.meanwhile = { [files] in if files.hasStruck { throw Interruption() } }
        let life = JobLife(number: Self.interrupted, course: .runs)
        #expect(throws: Interruption.self) { try life.run(client) }
        client.daemon.killNow()
        client.meanwhile = {}
        files.disarm()
        try FileManager.default.copyItem(atPath: files.state, toPath: kept(.recovery))
        try client.reviveIfGone()
        #expect(try life.run(client) == expected)
    }

    private func kept(_ scene: Scene) -> String { "\(files.directory)/\(scene)" }

    private func life(_ course: LifeCourse) -> JobLife {
        number += 1
        return JobLife(number: number, course: course)
    }

    /// Plays a scene with what is armed. True: it struck.
    func play(
        _ scene: Scene, _ course: LifeCourse = .runs, what: String, _ number: Int,
        prepare: (inout JobLife) -> Void = { _ in }, arm: () -> Void
    ) throws -> Bool {
        let when = "\(what) at \(number)"
        client.forgetRefusals()
        switch scene {
        case .life:
            var life = life(course)
            prepare(&life)
            arm()
            try run(life, when)
        case .others:
            arm()
            try OtherLife(adapter: bystanders.adapter).run(client)
        case .migration, .recovery:
            client.daemon.killNow()
            try FileManager.default.removeItem(atPath: files.state)
            try FileManager.default.copyItem(atPath: kept(scene), toPath: files.state)
            arm()
            try client.reviveIfGone()
            if scene == .recovery { try run(JobLife(number: Self.interrupted, course: .runs), when) }
        }
        files.disarm()
        client.meanwhile = {}
        try check(when)
        return tally(scene, what)
    }

    private func run(_ life: JobLife, _ when: String) throws {
        let adapter = try life.run(client)
        #expect(adapter == nil || adapter == expected, "\(when): other bytes after \(files.point)")
    }

    private func check(_ when: String) throws {
        try bystanders.check(client, when)
        let adapters = try client.get(AdapterList.self, Endpoint.adapters).adapters.map(\.job)
        let torn = try StateAudit.tornFiles(in: files.state, adapters: adapters)
        #expect(torn.isEmpty, "\(when), \(files.point): \(torn)")
    }

    private func tally(_ scene: Scene, _ what: String) -> Bool {
        cases += 1
        restarts += client.restarts
        for refusal in client.refusals { refusals[Self.kind(of: refusal), default: 0] += 1 }
        guard files.hasStruck else { return false }
        let step = DurableStep(files.operation, during: client.doingWhenStruck ?? "", onOldStore: scene == .migration)
        points["\(what): \(step): \(files.point)", default: 0] += 1
        steps[step, default: 0] += 1
        return true
    }

    /// Method, status and problem, without names and numbers.
    private static func kind(of refusal: String) -> String {
        if refusal.hasPrefix("start") { return "the daemon did not start" }
        let method = refusal.prefix { $0 != " " }
        guard let status = refusal.firstMatch(of: #/: ([1-5][0-9][0-9]) /#) else { return "\(method): no answer" }
        return "\(method): \(status.1) \(refusal.firstMatch(of: /urn:edgetune:problem:([a-z-]+)/).map { String($0.1) } ?? "")"
    }

    /// After a start in quiet there is nothing that nobody knows of.
    func finish(_ what: String) throws {
        let seconds = Date().timeIntervalSince(began)
        try client.restart()
        try bystanders.check(client, "at the end")
        let left = try StateAudit.leftovers(client)
        #expect(left.isEmpty, "left behind: \(left)")
        let rate = String(format: "%.2f", Double(cases) / seconds)
        print("\(what): \(points.values.reduce(0, +)) strikes at \(points.count) kinds of place in \(Int(seconds)) s, \(rate) cases/s")
        print("  " + steps.sorted { $0.key.rawValue < $1.key.rawValue }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))
        print("  \(restarts) restarts of the daemon")
        for (point, count) in points.sorted(by: { $0.key < $1.key }) { print("  \(count)x \(point)") }
        for (refusal, count) in refusals.sorted(by: { $0.key < $1.key }) { print("  answered \(count)x \(refusal)") }
    }
}
