// A real `edgetuned work` with an order, as `edgetuned serve` would start it, and what it held at most.
import EdgeJobs
import EdgeWire
import Foundation
import Glibc

/// What became of one order.
struct MeasuredRun {
    var plan: PlanReport?
    /// Refusal, or whatever else ended it.
    var problem: Problem?
    var steps: [JobProgress] = []
    var isTrained = false
    /// Largest resident set (`ru_maxrss`), in bytes.
    var peakResidentBytes = 0
    /// VmPTE at the last step.
    var pageTableBytes = 0
    /// VmSwap at the last step.
    var swapBytes = 0
    /// Largest charge of the cgroup that the worker ran in, and processes that the kernel killed there.
    var groupPeakBytes: Int?
    var groupKills = 0
    var status: Int32 = 0

    /// The mean of the steps after the first, which reads the weights in.
    var tokensPerSecond: Double? {
        let later = steps.dropFirst().map(\.tokensPerSecond)
        return later.isEmpty ? nil : Double(later.count) / later.reduce(0) { $0 + 1 / $1 }
    }
}

struct MeasuredWorker {
    let executable: String
    /// A memory cgroup, of either version, below which each run gets its own with the budget as its limit.
    var cgroup: String?

    var withoutGroup: MeasuredWorker { MeasuredWorker(executable: executable) }

    /// The built one beside this program.
    static var besideThis: String {
        let own = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? "edgebench"
        return own.split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(separator: "/") + "/edgetuned"
    }

    func run(_ order: WorkOrder) throws -> MeasuredRun {
        let group = try cgroup.map { try LimitedGroup(below: $0, order) }
        defer { group?.remove() }
        var order = order
        if let group, case .train(var train) = order {
            train.controlGroup = group.directory
            order = .train(train)
        }
        let (input, output) = (try pipe(), try pipe())
        let process = try spawn(input: input.read, output: output.write)
        for descriptor in [input.read, output.write] { close(descriptor) }
        var line = try Wire.encoder().encode(order)
        line.append(UInt8(ascii: "\n"))
        // Closing the input tells the worker that nobody waits for it, so it stays open until the end.
        defer { close(input.write) }
        try FileHandle(fileDescriptor: input.write).write(contentsOf: line)
        var run = MeasuredRun()
        var splitter = LineSplitter(limit: WorkerLimit.lineBytes)
        let lines = FileHandle(fileDescriptor: output.read)
        // As it comes: a step's figures are looked up while the worker is there.
        while case let data = lines.availableData, !data.isEmpty {
            for line in try data.withUnsafeBytes({ try splitter.append($0) }) {
                take(try Wire.decoder().decode(WorkMessage.self, from: line), process, &run)
            }
        }
        close(output.read)
        var usage = rusage()
        while wait4(process, &run.status, 0, &usage) < 0 && errno == EINTR {}
        // The kernel's high-water mark of the process image that exited; a program that is exec'd inherits its parent's, which
        // here is smaller than any worker's.
        run.peakResidentBytes = usage.ru_maxrss * 1024
        if let group { (run.groupPeakBytes, run.groupKills) = group.counted() }
        return run
    }

    private func take(_ message: WorkMessage, _ process: pid_t, _ run: inout MeasuredRun) {
        switch message {
        case .plan(let plan), .planned(let plan): run.plan = plan
        case .failure(let problem): run.problem = problem
        case .trained: run.isTrained = true
        case .step(let progress):
            run.steps.append(progress)
            run.pageTableBytes = Measurement.bytes("VmPTE", in: "/proc/\(process)/status")
            run.swapBytes = Measurement.bytes("VmSwap", in: "/proc/\(process)/status")
        default: break
        }
    }

    private func pipe() throws -> (read: Int32, write: Int32) {
        var ends: [Int32] = [0, 0]
        guard Glibc.pipe(&ends) == 0 else { throw POSIXError(POSIXErrorCode(rawValue: errno) ?? .EIO) }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        return (ends[0], ends[1])
    }

    private func spawn(input: Int32, output: Int32) throws -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, input, 0)
        posix_spawn_file_actions_adddup2(&actions, output, 1)
        var arguments = [strdup(executable), strdup("work"), nil]
        defer { for argument in arguments { free(argument) } }
        var process = pid_t()
        let status = posix_spawn(&process, executable, &actions, nil, &arguments, environ)
        guard status == 0 else { throw POSIXError(POSIXErrorCode(rawValue: status) ?? .ENOENT) }
        return process
    }
}

/// A cgroup whose limit is the order's budget, to the byte.
private struct LimitedGroup {
    let directory: String
    /// Version 2's files; else version 1's.
    private let isUnified: Bool

    init(below parent: String, _ order: WorkOrder) throws {
        guard case .train(let train) = order else { throw POSIXError(.EINVAL) }
        directory = "\(parent)/edgebench-\(getpid())-\(UInt32.random(in: 0 ... .max))"
        isUnified = access(parent + "/cgroup.controllers", F_OK) == 0
        guard mkdir(directory, 0o755) == 0 else { throw POSIXError(POSIXErrorCode(rawValue: errno) ?? .EIO) }
        try write("\(train.budgetBytes)", to: isUnified ? "memory.max" : "memory.limit_in_bytes")
        if isUnified { try write("0", to: "memory.swap.max") }
    }

    private func write(_ text: String, to file: String) throws {
        try Data(text.utf8).write(to: URL(filePath: directory + "/" + file))
    }

    private func figures(_ file: String) -> String {
        (try? String(contentsOfFile: directory + "/" + file, encoding: .utf8)) ?? ""
    }

    func counted() -> (peakBytes: Int?, kills: Int) {
        let peak = Int(figures(isUnified ? "memory.peak" : "memory.max_usage_in_bytes").filter(\.isNumber))
        let kills = figures(isUnified ? "memory.events" : "memory.oom_control").split(separator: "\n")
            .first { $0.hasPrefix("oom_kill ") }.flatMap { Int($0.filter(\.isNumber)) }
        return (peak, kills ?? 0)
    }

    func remove() {
        // The kernel takes a moment to notice that the group is empty.
        for _ in 0..<50 where rmdir(directory) != 0 { usleep(20_000) }
    }
}
