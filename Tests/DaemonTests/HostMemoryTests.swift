// What bounds a budget, case by case, on captured trees.
import EdgeTestSupport
import Testing

import edgetuned

private let mebibyte: UInt64 = 1 << 20

private struct BudgetCase: Sendable, CustomTestStringConvertible {
    let what: String
    var files: [String: String] = [:]
    var asked: String?
    var allowed = "75%"
    let mebibytes: UInt64
    let reason: String

    var testDescription: String { what }
}

private let unit = "/sys/fs/cgroup/system.slice/edgetuned.service"
private let v2 = ["/proc/self/cgroup": "0::/system.slice/edgetuned.service/serve\n"]
private let v1 = ["/proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n"]
private let v1Group = "/sys/fs/cgroup/memory/docker/abc"

/// On a machine of 4096 MiB of which 3000 are available.
private let cases = [
    BudgetCase(
        what: "the configuration's share", allowed: "50%", mebibytes: 2048,
        reason: "the daemon's memory_budget, 50% of MemTotal"),
    BudgetCase(what: "what is available", mebibytes: 2700, reason: "MemAvailable less a tenth"),
    BudgetCase(what: "what the job asks", asked: "500MiB", mebibytes: 500, reason: "the job's memory_budget, 500MiB"),
    BudgetCase(
        what: "a job that asks for more than it may", asked: "90%", allowed: "1GiB", mebibytes: 1024,
        reason: "the daemon's memory_budget, 1GiB"),
    BudgetCase(
        what: "the unit's memory.max, as a total",
        files: v2.merging([unit + "/memory.max": "\(1000 * mebibyte)\n", unit + "/memory.current": "0\n"]) { $1 },
        mebibytes: 750,
        reason: "the daemon's memory_budget, 75% of memory.max of /system.slice/edgetuned.service"),
    BudgetCase(
        what: "what the unit's memory.max leaves",
        files: v2.merging([unit + "/memory.max": "\(1000 * mebibyte)\n", unit + "/memory.current": "\(700 * mebibyte)\n"]) {
            $1
        },
        mebibytes: 270, reason: "what memory.max of /system.slice/edgetuned.service leaves less a tenth"),
    BudgetCase(
        what: "page cache of the group is there to be taken",
        files: v2.merging([
            unit + "/memory.max": "\(1000 * mebibyte)\n", unit + "/memory.current": "\(700 * mebibyte)\n",
            unit + "/memory.stat": "anon 5\ninactive_file \(300 * mebibyte)\nactive_file \(100 * mebibyte)\n",
        ]) { $1 },
        asked: "90%", allowed: "100%", mebibytes: 630,
        reason: "what memory.max of /system.slice/edgetuned.service leaves less a tenth"),
    BudgetCase(
        what: "memory.high below memory.max",
        files: v2.merging([
            unit + "/memory.max": "\(1000 * mebibyte)\n", unit + "/memory.high": "\(800 * mebibyte)\n",
            unit + "/memory.current": "0\n",
        ]) { $1 },
        allowed: "100%", mebibytes: 720, reason: "what memory.high of /system.slice/edgetuned.service leaves less a tenth"),
    BudgetCase(
        what: "an ancestor's limit",
        files: v2.merging([
            unit + "/memory.max": "max\n", "/sys/fs/cgroup/system.slice/memory.max": "\(600 * mebibyte)\n",
            "/sys/fs/cgroup/system.slice/memory.current": "\(100 * mebibyte)\n",
        ]) { $1 },
        allowed: "100%", mebibytes: 450, reason: "what memory.max of /system.slice leaves less a tenth"),
    BudgetCase(
        what: "a group that holds more than its limit",
        files: v2.merging([unit + "/memory.max": "1000\n", unit + "/memory.current": "2000\n"]) { $1 },
        mebibytes: 0, reason: "what memory.max of /system.slice/edgetuned.service leaves less a tenth"),
    BudgetCase(
        what: "v1's limit, and its page cache",
        files: v1.merging([
            v1Group + "/memory.limit_in_bytes": "\(1000 * mebibyte)\n",
            v1Group + "/memory.usage_in_bytes": "\(500 * mebibyte)\n",
            v1Group + "/memory.stat": "inactive_file 7\ntotal_inactive_file \(200 * mebibyte)\ntotal_active_file \(100 * mebibyte)\n",
        ]) { $1 },
        allowed: "100%", mebibytes: 720, reason: "what memory.limit_in_bytes of /docker/abc leaves less a tenth"),
    BudgetCase(
        what: "v1 in a container, whose own group is mounted as the root",
        files: v1.merging([
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": "\(400 * mebibyte)\n",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes": "0\n",
        ]) { $1 },
        allowed: "100%", mebibytes: 360, reason: "what memory.limit_in_bytes of / leaves less a tenth"),
    BudgetCase(
        what: "v1's huge number is no limit",
        files: v1.merging([
            v1Group + "/memory.limit_in_bytes": "9223372036854771712\n", v1Group + "/memory.usage_in_bytes": "5\n",
            "/proc/meminfo": "MemTotal: 4194304 kB\nMemAvailable: 3072000 kB\n",
        ]) { $1 },
        mebibytes: 2700, reason: "MemAvailable less a tenth"),
    BudgetCase(
        what: "a path outside the namespace",
        files: [
            "/proc/self/cgroup": "0::/../../x\n", "/sys/fs/cgroup/memory.max": "\(500 * mebibyte)\n",
            "/sys/fs/cgroup/memory.current": "0\n",
        ],
        allowed: "100%", mebibytes: 450, reason: "what memory.max of / leaves less a tenth"),
]

@Suite struct HostMemoryTests {
    @Test(arguments: cases) fileprivate func theLeastBoundIsTheBudget(_ budget: BudgetCase) throws {
        let directory = try TemporaryDirectory()
        let host = try CapturedHost(in: directory.path)
        try host.setMemory(totalMiB: 4096, availableMiB: 3000)
        for (path, text) in budget.files { try host.write(text, to: path) }
        let bound = HostMemory(HostFiles(root: host.root)).budget(asked: budget.asked, allowed: budget.allowed)
        #expect(bound.bytes / mebibyte == budget.mebibytes, "\(bound)")
        #expect(bound.name == budget.reason)
    }

    @Test func aPressureFileIsReadWhole() throws {
        let text = """
            some avg10=23.51 avg60=4.00 avg300=0.10 total=1234567
            full avg10=1.50 avg60=0.00 avg300=0.00 total=7
            """
        #expect(
            MemoryPressure(text)
                == MemoryPressure(
                    some: .init(avg10: 23.51, total: .microseconds(1_234_567)),
                    full: .init(avg10: 1.5, total: .microseconds(7))))
        #expect(MemoryPressure("") == nil)
        #expect(MemoryPressure(nil) == nil)
        #expect(MemoryPressure("some avg10=nothing\n") == nil)
    }
}
