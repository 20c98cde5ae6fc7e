// `edgetuned work`: one order from stdin, done in this process, answered on stdout as JSON lines. `serve` starts one per
// job; the OOM killer takes this process and not the daemon, and its memory goes back to the board when it exits.
import ArgumentParser
import CSystemd
import EdgeJobs
import EdgeTensor
import EdgeTrain
import EdgeWire
import Foundation
import Synchronization

struct Work: ParsableCommand {
    static let name = "work"
    static let configuration = CommandConfiguration(
        commandName: name, abstract: "Do one order from stdin (started by serve).", shouldDisplay: false)

    func run() throws {
        let channel = WorkChannel()
        becomeTheOneToKill()
        guard var order = channel.readOrder() else { throw ExitCode(EX_USAGE) }
        let host = HostFiles(environment: ProcessInfo.processInfo.environment)
        takePriority(of: order, channel)
        do {
            joinGroup(of: &order, channel)
            let sandbox = try WorkSandbox.enter(for: order, host, group: order.controlGroup)
            if order.isLogged { channel.send(.log(sandbox)) }
            channel.watchForSignals()
            switch order {
            case .train(let order): try WorkRuns(order).train(channel, host)
            case .trainTogether(let order): try WorkRuns(order).train(channel, host)
            case .planTogether(let orders): channel.send(.plannedTogether(try WorkRuns.plan(orders)))
            case .plan(let order): channel.send(.planned(try WorkTraining(order).planReport))
            case .compareMethods(let order): channel.send(.comparedMethods(try methodTable(order)))
            case .rankLinears(let order): channel.send(.ranked(try rankLinears(order, channel)))
            case .calibrate(let order):
                try calibrate(order)
                channel.send(.calibrated)
            case .planImport(let files): channel.send(try importPlan(files))
            case .importModel(let order):
                try importModel(order, channel)
                channel.send(.importedModel)
            case .inspectModel(let path): channel.send(.inspectedModel(try modelReport(path)))
            case .importAdapter(let order):
                try importAdapter(order)
                channel.send(.importedAdapter)
            case .combineAdapters(let order):
                try edgetuned.combineAdapters(order)
                channel.send(.importedAdapter)
            case .composeAdapters(let order): channel.send(.composed(try compose(order, channel)))
            case .inspectDataset(let path): channel.send(.inspectedDataset(try datasetReport(path)))
            case .generate(let order): try generate(order, channel)
            case .merge(let order): try merge(order, channel)
            case .export(let order): channel.send(.exported(path: try export(order)))
            }
        } catch {
            channel.send(.failure(Problem(workError: error)))
            throw ExitCode.failure
        }
    }

    /// Of this thread, and of those that it starts from here on: of all that compute.
    private func takePriority(of order: WorkOrder, _ channel: WorkChannel) {
        let failed =
            switch order.niceness {
            case .nice(let value): setpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0, Int32(value)) != 0
            case .idle: edge_be_idle() != 0
            }
        // To a lower value than the daemon's own nobody but root may go.
        if failed, order.isLogged { channel.send(.log("priority \(order.niceness) not taken: \(String(cString: strerror(errno)))")) }
    }

    /// Moves this process into the run's cgroup, before anything is allocated that should be charged to it.
    private func joinGroup(of order: inout WorkOrder, _ channel: WorkChannel) {
        guard let group = order.controlGroup, let problem = ControlGroup.join(group) else { return }
        channel.send(.log("the run has no memory limit of the kernel's: \(problem)"))
        order.leaveControlGroup()
    }

    /// First in line when memory runs out, gone when `serve` is.
    private func becomeTheOneToKill() {
        _ = edge_set_parent_death_signal(SIGKILL)
        let score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC)
        if score >= 0 {
            // Failing means a container that forbids it; the daemon's own score is lower in any case.
            _ = write(score, "900", 3)
            close(score)
        }
        signal(SIGPIPE, SIG_IGN)
    }
}

extension WorkOrder {
    /// Those of runs come with one.
    fileprivate var controlGroup: String? {
        switch self {
        case .train(let order): order.controlGroup
        case .trainTogether(let order): order.jobs[0].controlGroup
        case .importModel(let order): order.controlGroup
        default: nil
        }
    }

    fileprivate mutating func leaveControlGroup() {
        switch self {
        case .train(var order):
            order.controlGroup = nil
            order.groupHoldsQuota = false
            self = .train(order)
        case .trainTogether(var order):
            order.jobs[0].controlGroup = nil
            order.jobs[0].groupHoldsQuota = false
            self = .trainTogether(order)
        case .importModel(var order):
            order.controlGroup = nil
            self = .importModel(order)
        default: break
        }
    }

    /// Nothing that a worker does is as urgent as what somebody waits for at a terminal.
    fileprivate var niceness: WorkerScheduling.Niceness {
        switch self {
        case .train(let order): order.scheduling.niceness
        case .trainTogether(let order): order.jobs[0].scheduling.niceness
        default: WorkerScheduling().niceness
        }
    }

    /// The others have one answer.
    fileprivate var isLogged: Bool {
        switch self {
        case .train, .trainTogether, .importModel: true
        default: false
        }
    }
}

/// The worker's side of the pipe.
final class WorkChannel: Sendable {
    private struct Requests {
        /// Nil stands for all jobs.
        var stopped: Set<String?> = []
        var finishing: Set<String?> = []
    }
    private let requests = Mutex(Requests())

    fileprivate func isStopRequested(_ job: String?) -> Bool {
        requests.withLock { $0.stopped.contains(nil) || $0.stopped.contains(job) }
    }
    fileprivate func isFinishRequested(_ job: String?) -> Bool {
        requests.withLock { $0.finishing.contains(nil) || $0.finishing.contains(job) }
    }
    /// Of everything.
    var isStopRequested: Bool { isStopRequested(nil) }

    func readOrder() -> WorkOrder? {
        guard let line = readLine(), let order = try? Wire.decoder().decode(WorkOrder.self, from: Data(line.utf8)) else {
            FileHandle.standardError.write(Data("edgetuned work: expects an order from `edgetuned serve` on stdin\n".utf8))
            return nil
        }
        return order
    }

    /// A `stop` line asks for a checkpoint, a `finish` line for the adapter as it is; the end of stdin means that `serve` is gone,
    /// and then there is nobody to report to: the last checkpoint stands.
    func watchForSignals() {
        Thread.detachNewThread { [self] in
            while let line = readLine() {
                guard let signal = WorkSignal(line: line) else { continue }
                requests.withLock { requests in
                    switch signal.kind {
                    case .stop: requests.stopped.insert(signal.job)
                    case .finish: requests.finishing.insert(signal.job)
                    }
                }
            }
            _exit(EX_UNAVAILABLE)
        }
    }

    func send(_ message: WorkMessage) {
        do {
            var line = try Wire.encoder().encode(message)
            line.append(UInt8(ascii: "\n"))
            try FileHandle.standardOutput.write(contentsOf: line)
        } catch {
            // Nobody reads: as above.
            _exit(EX_IOERR)
        }
    }
}

/// The channel as a job uses it.
struct JobChannel: Sendable {
    private let channel: WorkChannel
    private let job: String
    private let isOnly: Bool

    /// - Parameter isOnly: nobody needs to be told which job is meant.
    init(_ channel: WorkChannel, job: String, isOnly: Bool) {
        self.channel = channel
        self.job = job
        self.isOnly = isOnly
    }

    func send(_ message: WorkMessage) { channel.send(isOnly ? message : .ofJob(job, message)) }
    var isStopRequested: Bool { channel.isStopRequested(job) }
    var isFinishRequested: Bool { channel.isFinishRequested(job) }
}

/// What this process holds and what the machine is, for reports. The data plane reads neither.
enum ProcessFacts {
    /// Resident set now and at its largest, in bytes; zero when /proc is not readable.
    static func residentBytes() -> (now: UInt64, peak: UInt64) {
        let kilobytes = HostFiles.machine.figures("/proc/self/status")
        return ((kilobytes["VmRSS"] ?? 0) * 1024, (kilobytes["VmHWM"] ?? 0) * 1024)
    }

    /// Gives back what only the start needed: free heap, and pages of program text, which come back from the page cache when
    /// they are run again. The loaders of Swift, Foundation and the daemon's half of this binary are most of it.
    private static func releaseStartup() {
        edge_give_back_free_heap()
        guard let maps = HostFiles.machine.text("/proc/self/maps") else { return }
        for line in maps.split(separator: "\n") {
            // Range, permissions, offset, device, inode, path.
            let fields = line.split(separator: " ")
            // Text alone is sure to be as the file has it: data was relocated, and a dropped page would lose that.
            guard fields.count >= 6, fields[1] == "r-xp", fields[5].hasPrefix("/") else { continue }
            let ends = fields[0].split(separator: "-").compactMap { UInt(String($0), radix: 16) }
            guard ends.count == 2, let start = UnsafeMutableRawPointer(bitPattern: ends[0]) else { continue }
            _ = madvise(start, Int(ends[1] - ends[0]), MADV_DONTNEED)
        }
    }

    /// The text that steps run, checkpoints' and the artifact's, the stacks of threads, and the heap of events: what comes on top of
    /// the resident set that is measured. 6 to 10 MiB on x86-64, most of it this program's own text.
    private static let growthBytes = 12 << 20

    /// This process with nothing but its order, for work that is planned without a measurement of it.
    static var idleBytes: UInt64 { residentBytes().now + UInt64(growthBytes) }

    /// To be asked when everything but the run's own memory is there.
    static func processMemory() throws -> ProcessMemory {
        releaseStartup()
        // What every step will run again is to be counted, and not what happened to be left.
        let progress = JobProgress(
            step: 1, totalSteps: 2, epoch: 0.5, loss: 2.5, learningRate: 1e-4, gradNorm: 0.7, tokensPerSecond: 100.5,
            rssBytes: residentBytes().now, plannedPeakBytes: 1, budgetBytes: 1, etaSeconds: 1.5, evalLoss: 2.25,
            bestEvalLoss: 2.25)
        _ = try Wire.encoder().encode(WorkMessage.step(progress))
        let resident = residentBytes()
        return ProcessMemory(
            resident: ByteCount(Int(resident.now) + growthBytes), preparation: ByteCount(Int(resident.peak)))
    }

    static var coreCount: Int { max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN)))) }

    /// `EDGETUNE_KERNELS` forces a weaker set, for tests and comparisons.
    static func kernelSet() throws -> KernelSet {
        try KernelSet.choose(ProcessInfo.processInfo.environment["EDGETUNE_KERNELS"])
    }
}
